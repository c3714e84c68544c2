"""What wandb is given of a run: rows, pictures through time, summary and table. Plain Python; `wandb` isn't needed.

Per row
    the scalars                          under their contract names; but for those in FIRST
    through_time/<series>/layer<k>       a histogram whose bin is the time step and whose count is `heat` of the norm:
                                         the web dashboard draws those of all rows as a heatmap, updates x time
    dE_dh_at/lag_0000 ... dE_dh_at/t_1   log10 norms of the top layer at some lags T - t, the same for every length, and
                                         at the first time step: lines, which are all that the terminal dashboard draws
    Main/1_train/loss, Main/2_...        those in FIRST: both dashboards sort by name, capitals first, and show the first page
At the end the summary and, of a run that has a result, one table with the exact norms.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rnn_lab import theory
from rnn_lab.recording import Row

LAGS = (0, 5, 10, 20, 50, 100, 200, 500, 1000)
FIRST = ("train/loss", "train/error", "dE_dh/slope", "grad/norm", "grad/norm_clipped", "grad/clipped_fraction",
         "dE_dh_at/lag_0000", "dE_dh_at/t_1", "eval/error")  # fmt: skip
KEYS = {name: f"Main/{place}_{name}" for place, name in enumerate(FIRST, start=1)}
NAMES = {key: name for name, key in KEYS.items()}
SMALLEST, LARGEST = -46.0, 39.0  # decades just outside float32: its smallest number is 1e-44.9, its largest 1e38.5
MOST_BINS = 512  # wandb refuses a histogram with more
MOST_TABLE_ROWS = 200_000  # wandb's own limit
CURVE = "dE_dh/log10_norm"
BEST = ("train/loss", "train/error", "eval/loss", "eval/error")


def chosen(series: list[str], setting: str) -> list[str]:
    """The names among `series` that tracker.series="dE_dh" or "all" stands for."""
    return series if setting == "all" else [name for name in series if name == CURVE]


def payload(row: Row, series: list[str]) -> dict[str, Any]:
    """A row as wandb gets it, with heatmaps of `series`."""
    scalars = row.scalars | (sampled(row.timesteps[CURVE][-1]) if CURVE in row.timesteps else {})
    found: dict[str, Any] = {KEYS.get(name, name): value for name, value in scalars.items()}
    for name in series:
        for layer, values in enumerate(row.timesteps[name], start=1):
            colours, edges = pooled(heat(values) if name.endswith("log10_norm") else plain(values))
            key = f"through_time/{name.split('/')[0]}/layer{layer}"
            # A dict and no wandb.Histogram: the same on the wire for half the time
            found[key] = {"_type": "histogram", "values": colours.round(2).tolist(), "bins": edges.tolist()}
    return found


def heat(log10_norm: np.ndarray) -> np.ndarray:
    """The colour of a norm: log10 norm + 46, clipped to 0..85. So 46 is a norm of 1, and each unit is a decade.

    0 means "below float32" (and -inf, a gradient of exactly zero), 85 "above float32" (and inf or nan: blown up). A
    heatmap wants counts, which are finite and not negative; it also has one colour scale for all its rows, so that one
    value of 1e-300 without the clip would leave no colours for the rest.
    """
    finite = np.where(np.isnan(log10_norm), LARGEST, np.asarray(log10_norm, dtype=np.float64))
    return np.clip(finite, SMALLEST, LARGEST) - SMALLEST


def plain(values: np.ndarray) -> np.ndarray:
    """The colour of what isn't a logarithm: itself; 0 where it is missing, and float32's largest number where it is infinite."""
    return np.clip(np.nan_to_num(np.asarray(values, dtype=np.float64)), 0.0, 10.0**38.5)


def pooled(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over as few neighbouring time steps as leave at most 512 bins, and the bins' edges in 0..T.

    Bin k holds time steps edges[k] + 1 ... edges[k + 1]; up to T = 512 that is the one step t = k + 1.
    """
    T = len(values)
    if T <= MOST_BINS:
        return values, np.arange(T + 1)
    starts = np.arange(0, T, -(-T // MOST_BINS))
    edges = np.append(starts, T)
    return np.add.reduceat(values, starts) / np.diff(edges), edges


def sampled(log10_norm: np.ndarray) -> dict[str, float]:
    """The norms at LAGS (lag 0 is the last time step) and at the first time step, as scalars named by lag."""
    T = len(log10_norm)
    at = {f"dE_dh_at/lag_{lag:04d}": float(log10_norm[T - 1 - lag]) for lag in LAGS if lag < T}
    return {**at, "dE_dh_at/t_1": float(log10_norm[0])}


class Summary:
    """Final and best values of a run, collected row by row."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._best: dict[str, float] = {}

    def add(self, row: Row) -> None:
        self._last |= row.scalars
        for name in BEST:
            value = row.scalars.get(name, math.nan)
            if math.isfinite(value):
                self._best[name] = min(value, self._best.get(name, math.inf))

    def so_far(self) -> dict[str, Any]:
        """The last value of each scalar, best/<name> of losses and errors, dE_dh/half_life."""
        found: dict[str, Any] = self._last | {f"best/{name}": value for name, value in self._best.items()}
        if "dE_dh/slope" in found:
            found["dE_dh/half_life"] = float(theory.half_life(found["dE_dh/slope"]))
        return found

    def ended(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """How it ended: `so_far`, status, diverged_at."""
        found = self.so_far()
        if record.get("diverged_at") is not None:
            found["diverged_at"] = record["diverged_at"]
        return found | {"status": record["status"]}


def table(rows: list[Row], series: list[str]) -> tuple[list[str], list[tuple[float, ...]]]:
    """Columns and cells of the table (step, layer, t, series ...) with the exact norms. About 5 ms for 10,000 cells.

    Where it would have more than MOST_TABLE_ROWS, only every so many-th of our rows is in it, counted from the last.
    """
    most = max(1, MOST_TABLE_ROWS // max(row.timesteps[CURVE].size for row in rows))
    kept = rows[::-1][:: -(-len(rows) // most)][::-1]
    sizes = [row.timesteps[CURVE].shape for row in kept]
    columns = {
        "step": np.repeat([row.step for row in kept], [layers * T for layers, T in sizes]),
        "layer": np.concatenate([np.repeat(np.arange(1, layers + 1), T) for layers, T in sizes]),
        "t": np.concatenate([np.tile(np.arange(1, T + 1), layers) for layers, T in sizes]),
        **{name: np.concatenate([row.timesteps[name].ravel() for row in kept]) for name in series},
    }
    return list(columns), list(zip(*(column.tolist() for column in columns.values()), strict=True))
