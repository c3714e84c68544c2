"""Frames -> what a page holds: plain lists, short numbers, and the gradient norms through time in one byte each.

A number that is not finite is null (missing, NaN) or a string ("Infinity", "-Infinity"), which JavaScript's Number() reads.
"""

import base64
import zlib
from typing import Any

import grouping
import numpy as np
import pandas as pd
from remedies import half_life

from rnn_lab.results import Results

DIGITS = 5  # significant, of what was recorded against updates; the table has all
LEVELS = 253  # codes 3..255, from the smallest to the largest finite norm of a record
MISSING, ZERO, INFINITE = 0, 1, 2  # codes: NaN, or before a shorter record's t = 1; log10 of an exact 0; overflow
QUANTISED = "/log10_norm"  # series of this name are embedded, of others the mean over time
# Columns of the table: the axes that vary, then these.
COLUMNS = {
    "status": ("status", ""),
    "diverged_at": ("diverged at", "the update at which loss or gradient stopped being finite"),
    "eval/error": ("eval error", "fraction of fresh sequences that are wrong, the last value"),
    "train/error": ("train error", "fraction of the last recorded mini-batch that is wrong"),
    "train/loss": ("train loss", "of the last recorded mini-batch"),
    "dE_dh/slope": ("slope", "of log10 norm of dE/dh_t on lag, decades a step, at the last record; negative: vanishing"),
    "half_life": ("half-life", "time steps until the gradient has halved or, where it explodes, doubled: log10(2) / |slope|"),
    "flags": ("marks", "diverged, cut short, resumed, trained by code with uncommitted changes or by several versions of it"),
    "message": ("message", "why the run failed"),
    "run_id": ("run", "the name of its directory"),
}  # fmt: skip


def quantise(blocks: np.ndarray) -> np.ndarray:
    """Norms (..., T) as bytes (..., 8 + T): a record's smallest and largest finite value as float32, then its codes.

    A finite value is off by half a level at most: (largest - smallest) / 504. Codes are differences along t modulo 256,
    which a packer likes better: 200 curves that are nearly lines take a third of the room.
    """
    values = np.asarray(blocks, "<f4")
    finite = np.isfinite(values)
    low = np.where(finite, values, np.inf).min(-1, keepdims=True)
    high = np.where(finite, values, -np.inf).max(-1, keepdims=True)
    low, high = (np.where(np.isfinite(end), end, 0).astype("<f4") for end in (low, high))
    level = (high.astype(float) - low) / (LEVELS - 1)
    place = np.divide(
        np.where(finite, values, low) - low.astype(float), level, where=level > 0, out=np.zeros(values.shape)
    )
    codes = np.where(finite, 3 + np.rint(place), MISSING).astype(np.uint8)
    codes[np.isneginf(values)], codes[np.isposinf(values)] = ZERO, INFINITE
    steps = np.diff(codes, axis=-1, prepend=np.uint8(0))
    ends = np.ascontiguousarray(np.concatenate([low, high], axis=-1)).view(np.uint8)
    return np.concatenate([ends, steps], axis=-1)


def pack(codes: np.ndarray) -> str:
    """zlib, then base64: what a browser's DecompressionStream("deflate") reads."""
    return base64.b64encode(zlib.compress(codes.tobytes(), 6)).decode()


def portable(value: float, digits: int = 17) -> float | int | str | None:
    """A number as JSON has it."""
    if not np.isfinite(value):
        return None if np.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def short(values: pd.Series | np.ndarray) -> list[float | int | str | None]:
    return [portable(value, DIGITS) for value in np.asarray(values, float).tolist()]


def axes(results: Results) -> list[str]:
    """The leaves of the config in which the runs differ; of leaves that say the same, the first. The seed comes last."""
    runs, found = results.runs, {}
    for key in results.config:
        column = runs[key].map(grouping.text)
        if column.nunique() > 1 and not key.startswith("tracker."):
            found.setdefault(tuple(pd.factorize(column)[0]), key)
    return sorted(found.values(), key="seed".__eq__)


def table(results: Results) -> pd.DataFrame:
    """`.runs` and half_life; `error` is called message, since errors are fractions here. What a source doesn't know is missing."""
    runs = results.runs.reset_index(drop=True).rename(columns={"error": "message"})
    runs = runs.assign(half_life=half_life(runs["dE_dh/slope"]))
    return runs.reindex(columns=list(dict.fromkeys([*runs.columns, *COLUMNS, "baseline/loss", "baseline/error"])))


def embed(results: Results, every: int = 1) -> dict[str, Any]:
    """All that the page shows of these runs, figures and provenance apart; of each run's records every `every`-th and the last."""
    runs, varied = table(results), axes(results)
    columns = varied + [key for key in COLUMNS if runs[key].notna().any()]
    steps = dict(iter(results.steps.sort_values("step", kind="stable").groupby("run_id", sort=False)))
    blocks = dict(iter(results.timesteps.groupby("run_id", sort=False)))
    embedded = []
    for row in runs.to_dict("records"):
        own = steps.get(row["run_id"], results.steps.iloc[:0])
        kept = np.unique(np.append(np.arange(0, len(own), every), len(own) - 1)) if len(own) else []
        own = own.iloc[kept]
        series = _series(own["step"].to_numpy(), blocks.get(row["run_id"], results.timesteps.iloc[:0]))
        cells = [_cell(row[key]) for key in columns]
        embedded.append(
            {"id": row["run_id"], "label": _label(row, varied), "cells": cells} | _curves(own, row) | series
        )
    fixed = [key for key in results.config if key not in varied]
    return {
        "axes": varied,
        "columns": [{"key": key, "name": COLUMNS.get(key, (key, ""))[0], "note": COLUMNS.get(key, ("", ""))[1]} for key in columns],
        "config": {key: " | ".join(map(str, dict.fromkeys(runs[key].map(grouping.text)))) for key in fixed},
        "every": every,
        "runs": embedded,
    }  # fmt: skip


def _label(row: dict, varied: list[str]) -> str:
    """ "tanh, scale 4, clip none, seed 0"; the id where nothing varies."""

    def words(key: str) -> str:
        name, value = key.removesuffix(".name").rpartition(".")[2], row[key]
        return value if isinstance(value, str) and value != "none" else f"{name} {grouping.text(value)}"

    return ", ".join(map(words, varied)) or row["run_id"]


def _cell(value: object) -> float | int | str | None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return None if value is None else grouping.text(value)
    return portable(float(value))


def _curves(own: pd.DataFrame, row: dict) -> dict[str, Any]:
    """Everything recorded against updates."""
    measured = [name for name in own.columns[2:] if own[name].notna().any()]
    return {
        "status": row["status"],
        "divergedAt": _cell(row["diverged_at"]),
        "baseline": {kind: _cell(row[f"baseline/{kind}"]) for kind in ("loss", "error")},
        "steps": own["step"].tolist(),
        "metrics": {name: short(own[name]) for name in measured},
    }


def _series(steps: np.ndarray, rows: pd.DataFrame) -> dict[str, Any]:
    """Everything recorded through time, right-aligned: T, layers, each record's own length, norms, and means of the rest."""
    rows = rows[rows["step"].isin(steps)]
    if rows.empty:
        return {"T": 0, "layers": 0, "lengths": [], "series": {}, "means": {}}
    T, layers = int(rows["lag"].max()) + 1, int(rows["layer"].max())
    at = np.searchsorted(steps, rows["step"]), rows["layer"].to_numpy() - 1, T - 1 - rows["lag"].to_numpy()
    lengths = np.zeros(len(steps), int)
    np.maximum.at(lengths, at[0], (rows["t"] + rows["lag"]).to_numpy())
    series, means = {}, {}
    for name in rows.columns[5:]:
        dense = np.full((len(steps), layers, T), np.nan, np.float32)
        dense[at] = rows[name]
        if np.isnan(dense).all():
            continue
        if name.endswith(QUANTISED):
            series[name] = pack(quantise(dense))
        else:
            means[name] = [short(pd.DataFrame(dense[:, layer]).mean(axis=1)) for layer in range(layers)]
    return {"T": T, "layers": layers, "lengths": lengths.tolist(), "series": series, "means": means}
