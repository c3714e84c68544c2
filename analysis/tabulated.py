"""The numbers of the paper's tables, as frames: what analysis/tables.py prints."""

from collections.abc import Sequence
from pathlib import Path

import grouping
import numpy as np
import pandas as pd
from success_rate import METHODS, SOLVED, wilson

from rnn_lab.results import Results, ResultsError, text

NATURAL = {"characters": "bits a character", "music": "nats a step"}


def natural_data(results: Results) -> pd.DataFrame:
    """One row a data set, method and setting.

    data, unit       "pydoc_data.topics, 5 ahead"; bits a character or nats a step: of all numbers that follow
    method, setting  what else the runs of a data set differ in, seeds apart: "lr 0.1"
    test, spread     mean over seeds and their standard deviation (n - 1), at each seed's evaluation of lowest validation loss
    valid, updates   the means of that loss and of the updates before it
    chosen           of a method's settings the one of lowest `valid`
    seeds, diverged, unfinished    runs that ended, those of them that diverged (their best evaluation counts), and those that did not end
    alone, given_last              the test loss of two predictors that count: symbols (keys); and pairs (each key's state before and now)
    """
    runs = results.runs[results.runs["task.name"].isin(NATURAL)].reset_index(drop=True)
    ended = runs["status"].isin(["completed", "diverged"])
    rows = results.steps.dropna(subset=["eval/loss", "test/loss"])
    best = rows.loc[rows.groupby("run_id")["eval/loss"].idxmin()].set_index("run_id")
    factor = np.where(runs["task.name"].eq("characters"), 1 / np.log(2), 1.0)
    if runs["task.reduction"].eq("sum").any():
        raise ResultsError("task.reduction=sum: its losses are not those of a step")
    frame = runs[["run_id", "seed"]].assign(
        data=_data(runs),
        unit=runs["task.name"].map(NATURAL),
        method=_methods(runs),
        test=runs["run_id"].map(best["test/loss"]) * factor,
        valid=runs["run_id"].map(best["eval/loss"]) * factor,
        updates=runs["run_id"].map(best["step"]),
        ended=ended,
        diverged=runs["status"].eq("diverged"),
        unfinished=~ended,
        alone=runs["baseline/test_loss"] * factor,
        given_last=runs["baseline/given_last_test_loss"] * factor,
    )
    frame["setting"] = _settings(runs, results.config, [frame["data"], frame["method"]])
    by = ["data", "unit", "method", "setting"]
    _no_twins(frame, by)
    counted = frame[frame["ended"]]
    if counted["test"].isna().any() or counted.empty:
        raise ResultsError("nothing to tabulate: a run was never evaluated (eval.every), or none has ended")
    found = counted.groupby(by, sort=False).agg(
        test=("test", "mean"), spread=("test", "std"), valid=("valid", "mean"), updates=("updates", "mean"),
        seeds=("seed", "size"), diverged=("diverged", "sum"), alone=("alone", "first"), given_last=("given_last", "first"),
        run_ids=("run_id", " ".join),
    ).reset_index()  # fmt: skip
    unfinished = frame.groupby(by)["unfinished"].sum()
    found.insert(10, "unfinished", [int(unfinished[tuple(key)]) for key in found[by].to_numpy()])
    lowest = found.groupby(["data", "method"])["valid"].transform("min")
    found.insert(4, "chosen", found["valid"].eq(lowest))
    return found.sort_values(["data", "method", "setting"], key=order, ignore_index=True)


def pathological_tasks(results: Results) -> pd.DataFrame:
    """One row a task, method, setting and length that was tested: "trained" is what eval/error is measured on.

    trained_on       task.length or its range
    solved, seeds    seeds with an evaluation of less than 1 % wrong; of which seeds, with the share's 95 % Wilson interval low..high.
                     At other lengths: at the first evaluation that solved the task, or the last one of a seed that did not
    error            the mean over seeds of the error at that evaluation
    updates          the median over the seeds that solved the task of the updates that it took;  most_updates: what they had
    unfinished       runs that did not end, and are not counted
    """
    runs = results.runs[~results.runs["task.name"].isin(NATURAL)].reset_index(drop=True)
    evaluated = results.steps.dropna(subset=["eval/error"])
    evaluated = evaluated[evaluated["run_id"].isin(runs["run_id"])]
    if evaluated.empty:
        raise ResultsError("nothing to tabulate: no run was evaluated (eval.every)")
    lengths = {"eval/error": "trained"} | {
        key: str(key).removeprefix("eval/error_L") for key in evaluated if str(key).startswith("eval/error_L")
    }
    at = evaluated.assign(solved=evaluated["eval/error"] < SOLVED).sort_values(["solved", "step"])
    first = at[at["solved"]].groupby("run_id").first()
    decided = pd.concat([first, at[~at["run_id"].isin(first.index)].groupby("run_id").last()])
    ranges = runs["task.length_range"] if "task.length_range" in runs else pd.Series(None, index=runs.index)
    frame = runs[["run_id", "seed"]].assign(
        task=runs["task.name"].str.replace("_", " "),
        method=_methods(runs),
        trained_on=[f"{r[0]} to {r[1]}" if isinstance(r, tuple) else f"{n}" for r, n in zip(ranges, runs["task.length"], strict=True)],
        updates=runs["run_id"].map(first["step"]),
        most_updates=runs["training.updates"],
        ended=runs["status"].isin(["completed", "diverged"]),
    )  # fmt: skip
    frame["setting"] = _settings(runs, results.config, [frame["task"], frame["method"], frame["trained_on"]])
    by = ["task", "method", "setting", "trained_on"]
    _no_twins(frame, by)
    parts = []
    for key, length in lengths.items():
        errors = frame["run_id"].map(decided[key])
        there = frame.assign(length=length, error=errors, solved=errors < SOLVED)[errors.notna()]
        own = there[there["ended"]].groupby([*by, "length"], sort=False).agg(
            solved=("solved", "sum"), seeds=("seed", "size"), error=("error", "mean"), updates=("updates", "median"),
            most_updates=("most_updates", "max"), run_ids=("run_id", " ".join),
        )  # fmt: skip
        parts.append(own.assign(unfinished=there.assign(left=~there["ended"]).groupby([*by, "length"])["left"].sum()))
    found = pd.concat(parts).reset_index()
    low, high = wilson(found["solved"].to_numpy(float), found["seeds"].to_numpy(float))
    found = found.assign(low=low, high=high)
    return found.sort_values([*by, "length"], key=order, ignore_index=True)


def _data(runs: pd.DataFrame) -> pd.Series:
    path = runs["task.path"] if "task.path" in runs else pd.Series(None, index=runs.index, dtype=object)
    names = path.map(lambda p: Path(p).stem if isinstance(p, str) else "Python's reference manual")
    what = names.where(runs["task.name"].eq("characters"), "Bach's chorales")
    ahead = runs["task.ahead"].fillna(1).astype(int)
    return what + ahead.map(lambda n: ", next" if n == 1 else f", {n} ahead")


def _methods(runs: pd.DataFrame) -> list[str]:
    return [
        METHODS.get(pair, " + ".join(pair)) for pair in zip(runs["clip.name"], runs["regularizer.name"], strict=True)
    ]


def _settings(runs: pd.DataFrame, config: Sequence[str], same: list[pd.Series]) -> pd.Series:
    """What else differs between runs that share these: "lr 0.1, alpha 2"; "-" if nothing does."""
    ignored = (*grouping.IGNORED, "task.", "preset")
    leaves = [
        key for key in config if not key.startswith(ignored) and runs[key].map(text).groupby(same).nunique().max() > 1
    ]
    labels = [key.rpartition(".")[2] + " " + runs[key].map(text) for key in leaves]
    return pd.Series([", ".join(row) for row in zip(*labels, strict=True)] if labels else "-", index=runs.index)


def _no_twins(frame: pd.DataFrame, by: list[str]) -> None:
    if frame.duplicated([*by, "seed"]).any():
        raise ResultsError("several runs share data, method, setting and seed: choose by --where KEY=VALUE")


def order(column: pd.Series) -> pd.Series:
    """Methods as the paper lists them, lengths by size behind what was trained on."""
    if column.name == "method":
        return column.map(lambda m: (len(str(m)), str(m)))
    if column.name == "length":
        return column.map(lambda n: -1 if n == "trained" else int(str(n)))
    return column
