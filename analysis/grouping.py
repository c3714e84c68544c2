"""Which runs are repetitions of one another, what their group is called in a figure, and what is drawn of a group."""

import contextlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from rnn_lab.results import Results, ResultsError

# Leaves of the config that do not change what a record at one step holds: bookkeeping, cadences, how far training goes,
# and on what the numbers are computed (rounding apart, the same run).
IGNORED = ("sweep", "seed", "tracker.", "eval.", "probe.", "training.updates", "training.log_every",
           "training.stop_when_solved", "training.kernel", "training.device")  # fmt: skip
# What acts through updates only: at step 0 it has not acted yet.
AFTER_UPDATES = ("clip.", "optimizer.", "regularizer.")
GROUP = ["panel", "length", "init", "variant"]
GATED = ("lstm", "gru")
MOST_VARIANTS = 6


def where(results: Results, conditions: Sequence[str]) -> Results:
    """Only the runs that meet every condition KEY=VALUE, KEY being a column of `.runs`."""
    runs = rows_where(results.runs, results.config, conditions)
    steps, timesteps = (frame[frame["run_id"].isin(runs["run_id"])] for frame in (results.steps, results.timesteps))
    return Results(runs, steps, timesteps, results.config)


def rows_where(runs: pd.DataFrame, keys: Sequence[str], conditions: Sequence[str]) -> pd.DataFrame:
    """The rows that meet every condition KEY=VALUE. keys: which columns to name where a condition does not fit."""
    for condition in conditions:
        key, _, value = condition.partition("=")
        if key not in runs:
            known = [name for name in keys if runs[name].nunique(dropna=False) > 1]
            raise ResultsError(
                f"--where {condition}: no key {key!r}; the runs differ in {', '.join(known) or 'nothing'}"
            )
        cells = runs[key].map(text)
        with contextlib.suppress(ValueError):
            value = text(float(value))  # 1.0 and 1e0 are 1
        if not cells.eq(value).any():
            raise ResultsError(f"--where {condition}: no such run; {key} is {' or '.join(sorted(set(cells)))}")
        runs = runs[cells.eq(value)]
    return runs


def groups(results: Results, ignored: tuple[str, ...] = ()) -> pd.DataFrame:
    """One row a run: run_id, status, seed, and the names that say which group it repeats (GROUP).

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
        panel=activation.where(model.eq("elman"), model + " " + activation).where(~model.isin(GATED), model),
        length=leaf("task.length", 0).astype(int),
        init=scale.where(std.eq("std null"), std).where(preset.eq("none"), preset),
    )
    named["variant"] = _variants(runs, results.config, named, IGNORED + ignored)
    return named


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


def tally(named: pd.DataFrame, drawn: pd.DataFrame, loaded: int) -> pd.DataFrame:
    """For each group: the runs it stands for, how many diverged or are unfinished; the runs given in all; ids drawn."""
    flags = named.assign(
        diverged=named["status"].eq("diverged"), unfinished=~named["status"].isin(["completed", "diverged"])
    )
    counts = flags.groupby(GROUP)[["diverged", "unfinished"]].sum()
    counts.insert(0, "runs", flags.groupby(GROUP).size())
    ids = drawn.groupby(GROUP)["run_id"].agg(" ".join)
    return counts.assign(loaded=loaded, run_ids=ids).reset_index()


def status_notes(frame: pd.DataFrame) -> list[str]:
    """What the figure's reader must know about runs that did not complete; from `tally`'s columns."""
    counted = frame.drop_duplicates(GROUP)
    runs, diverged, unfinished = (int(counted[key].sum()) for key in ("runs", "diverged", "unfinished"))
    absent = int(counted["loaded"].iloc[0]) - runs
    notes = [f"{diverged} of {runs} runs diverged; what they recorded is included."] if diverged else []
    notes += [f"{unfinished} of {runs} runs failed, were killed or are still running."] if unfinished else []
    return notes + (
        [f"{absent} of {runs + absent} runs given have no such record and are not drawn."] if absent else []
    )


def between(counts: pd.Series) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low}" if low == high else f"{low} to {high}"


def text(value: object) -> str:
    """A cell as people type it: 1 and not 1.0, null and not NaN."""
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, int | float | np.number):
        return "null" if np.isnan(value) else f"{value:.10g}"
    return "null" if value is None else str(value)


def in_order(labels: pd.Series) -> list:
    """The distinct labels; those that end in a number by its size."""

    def key(label: object) -> tuple[str, float]:
        head, _, tail = str(label).rpartition(" ")
        try:
            return head, float(tail)
        except ValueError:
            return str(label), 0.0

    return sorted(labels.unique(), key=key)
