"""Which runs are repetitions of one another, what their group is called in a figure, and what is drawn of a group."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from rnn_lab.results import Results, ResultsError, text

# Leaves of the config that do not change what a record at one step holds: bookkeeping, cadences, how far training goes,
# and on what the numbers are computed (rounding apart, the same run).
IGNORED = ("sweep", "seed", "tracker.", "eval.", "probe.", "training.updates", "training.log_every",
           "training.stop_when_solved", "training.kernel", "training.device")  # fmt: skip
# What acts through updates only: at step 0 it has not acted yet.
AFTER_UPDATES = ("clip.", "optimizer.", "regularizer.")
GROUP = ["panel", "length", "init", "variant"]
GATED = {"lstm": "LSTM", "gru": "GRU"}
ENDED = ("completed", "diverged")
MOST_VARIANTS = 6


def groups(results: Results, ignored: tuple[str, ...] = ()) -> pd.DataFrame:
    """One row a run: run_id, status, seed, code (commit; "" unknown), dirty, and the names that say which group it repeats (GROUP).

    panel    the activation, or the cell where it is gated
    length   task.length
    init     "scale 1.5", "std 0.01", or the preset
    variant  what else differs between runs that share these three ("clip norm"), seeds apart; "-" if nothing does.
             `ignored`: beginnings of keys that make no variants, AFTER_UPDATES at step 0, say
    """
    runs = results.runs.reset_index(drop=True)

    def leaf(key: str, default: object) -> pd.Series:
        column = runs[key].astype(object) if key in runs else pd.Series(None, index=runs.index, dtype=object)
        return column.where(column.notna(), default)

    activation, model, preset = leaf("model.activation", "?"), leaf("model.name", "elman"), leaf("preset", "none")
    scale, std = "scale " + leaf("init.scale", 1).map(text), "std " + leaf("init.std", None).map(text)
    named = runs[["run_id", "status"]].assign(
        seed=leaf("seed", 0),
        panel=activation.where(model.eq("elman"), model + " " + activation).where(~model.isin(GATED), model.map(GATED)),
        length=leaf("task.length", 0).astype(int),
        init=scale.where(std.eq("std null"), std).where(preset.eq("none"), preset),
    )
    named = named.join(origins(runs).drop(columns="run_id"))
    named["variant"] = _variants(runs, results.config, named, IGNORED + ignored)
    return named


def origins(runs: pd.DataFrame) -> pd.DataFrame:
    """run_id, code (its commit; "" where that is unknown), dirty (whether the code had uncommitted changes) of each row."""
    known = runs.reindex(columns=["run_id", "git.commit", "git.dirty"]).astype(object)
    return pd.DataFrame(
        {
            "run_id": runs["run_id"],
            "code": known["git.commit"].fillna("").astype(str),
            "dirty": known["git.dirty"].eq(True),
        }
    )


def of_one_length(results: Results, length: int | None) -> tuple[pd.DataFrame, int, list[int]]:
    """The groups of the runs of one length (None: the longest) that have a record, how many runs of it there are, and all lengths."""
    named = groups(results)
    lengths = sorted(named["length"].unique())
    length = lengths[-1] if length is None else length
    named = named[named["length"] == length]
    recorded = named[named["run_id"].isin(results.steps["run_id"])]
    if recorded.empty:
        given = ", ".join(map(str, lengths))
        raise ResultsError(f"nothing to draw: no run of length {length} has a record; the lengths given are {given}")
    return recorded, len(named), lengths


def _variants(runs: pd.DataFrame, config: Sequence[str], named: pd.DataFrame, ignored: tuple[str, ...]) -> pd.Series:
    same = [named[key] for key in ("panel", "length", "init")]
    leaves, distinct, label = [], 1, pd.Series("", index=runs.index)
    for key in config:
        if key.startswith(ignored) or runs[key].map(text).groupby(same).nunique().max() < 2:
            continue
        short = key.removesuffix(".name") if key.endswith(".name") else key.rpartition(".")[2]
        finer = label + ", " + short + " " + runs[key].map(text)
        if finer.nunique() > distinct:  # a leaf that follows from the ones before it says nothing new
            leaves, distinct, label = [*leaves, key], finer.nunique(), finer
    if distinct > MOST_VARIANTS:
        raise ResultsError(
            f"the runs differ in {', '.join(leaves)} too ({distinct} variants): choose by --where KEY=VALUE"
        )
    return label.str.removeprefix(", ").replace("", "-")


def summarise(rows: pd.DataFrame, by: Sequence[str], column: str) -> pd.DataFrame:
    """Mean, lowest and highest of the *finite* values of each group, and how many those are.

    zeros counts -inf (the log of an exact 0), missing counts NaN and +inf.
    """
    values = rows[column].astype(float)
    parts = rows[list(by)].assign(
        value=values.where(np.isfinite(values)), zero=np.isneginf(values), missing=values.isna() | np.isposinf(values)
    )
    columns = {"mean": ("value", "mean"), "low": ("value", "min"), "high": ("value", "max"),
               "seeds": ("value", "count"), "zeros": ("zero", "sum"), "missing": ("missing", "sum")}  # fmt: skip
    return parts.groupby(list(by), sort=False).agg(**columns).reset_index()


def once(named: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """Of runs that share group and seed (they differ in what is IGNORED), the one that came furthest: an ended one first."""
    reached = named["run_id"].map(steps.groupby("run_id")["step"].max())
    order = named.assign(ended=named["status"].isin(ENDED), reached=reached).sort_values(
        ["ended", "reached"], ascending=False, kind="stable"
    )
    return named.loc[named.index.isin(order.drop_duplicates([*GROUP, "seed"]).index)]


def tally(named: pd.DataFrame, drawn: pd.DataFrame, loaded: int) -> pd.DataFrame:
    """For each group: the runs it stands for, how many diverged, are unfinished, were trained by code with uncommitted changes, or are not
    drawn since another run has their settings and seed; and of all runs: how many versions of the code, how many were given; ids drawn.
    """
    flags = named.assign(
        diverged=named["status"].eq("diverged"),
        unfinished=~named["status"].isin(ENDED),
        twins=~named["run_id"].isin(drawn["run_id"]),
    )
    counts = flags.groupby(GROUP)[["diverged", "unfinished", "dirty", "twins"]].sum()
    counts.insert(0, "runs", flags.groupby(GROUP).size())
    ids = drawn.groupby(GROUP)["run_id"].agg(" ".join)
    return counts.assign(versions=named["code"].nunique(), loaded=loaded, run_ids=ids).reset_index()


def status_notes(frame: pd.DataFrame) -> list[str]:
    """What the figure's reader must know about runs that did not complete, or should not be compared; from `tally`'s columns."""
    counted = frame.drop_duplicates(GROUP)
    runs, diverged, unfinished, twins = (int(counted[k].sum()) for k in ("runs", "diverged", "unfinished", "twins"))
    absent = int(counted["loaded"].iloc[0]) - runs
    notes = [f"{diverged} of {runs} runs diverged; what they recorded is included."] if diverged else []
    notes += [f"{unfinished} of {runs} runs failed, were killed or are still running."] if unfinished else []
    notes += [f"{twins} runs share settings and seed with another and are drawn once."] if twins else []
    notes += code_notes(runs, int(counted["dirty"].sum()), int(counted["versions"].iloc[0]))
    return notes + (
        [f"{absent} of {runs + absent} runs given have no such record and are not drawn."] if absent else []
    )


def code_notes(runs: int, dirty: int, versions: int) -> list[str]:
    """Of runs that not one committed version of the code has trained."""
    notes = [f"{dirty} of {runs} runs were trained by code with uncommitted changes."] if dirty else []
    return notes + ([f"The runs come from {versions} versions of the code."] if versions > 1 else [])


def between(counts: pd.Series) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low}" if low == high else f"{low} to {high}"


def in_order(labels: pd.Series) -> list:
    """The distinct labels; those that end in a number by its size."""

    def key(label: object) -> tuple[str, float]:
        head, _, tail = str(label).rpartition(" ")
        try:
            return head, float(tail)
        except ValueError:
            return str(label), 0.0

    return sorted(labels.unique(), key=key)
