"""Run directories -> three pandas frames. The names of their columns are owned here; no torch, no wandb.

A run directory holds `run.json`, `steps.jsonl` (a line a record) and `timesteps.f32` (a float32 block a record, in the
order series, layer, t; block i belongs to line i). A record whose true length isn't run.json's T says so: its own "T".
"""

import json
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rnn_lab.recording.store import is_locked

# The metric columns of .steps. They are always there; what was not measured is NaN.
METRICS = (
    "train/loss",
    "train/error",
    "eval/loss",
    "eval/error",
    "grad/norm",
    "grad/norm_clipped",
    "grad/clipped",
    "grad/clipped_fraction",
    "grad/cosine",
    "grad/nonfinite",
    "grad/smoothness",
    "W/rho",
    "W/sigma_max",
    "omega",
    "truncation/bias",
    "truncation/cosine",
    "dE_dh/slope",
    "lyapunov/max",
    "lyapunov/kaplan_yorke",
    "lyapunov/entropy",
    "flossing/loss_first",
    "flossing/loss_last",
    "theory/slope",
    "theory/eta",
)
STATUSES = ("completed", "failed", "diverged", "running", "killed")
FORMAT = 1


class ResultsError(ValueError):
    """What was asked for is not there or cannot be read; the message is one line that names the path."""


@dataclass(frozen=True)
class Results:
    """Three frames joined by `run_id`; a missing value is NaN in all of them.

    runs        one row a run: run_id, sweep, status, diverged_at, config, last value of each metric, origin
    steps       one row a record: run_id, step, metrics
    timesteps   one row a record, layer and t: run_id, step, layer (1 = nearest input), t (1..T), lag (T - t), series
    config      the names of those columns of `runs` that are leaves of the config
    """

    runs: pd.DataFrame
    steps: pd.DataFrame
    timesteps: pd.DataFrame
    config: tuple[str, ...]


@dataclass(frozen=True)
class _Run:
    path: Path
    info: dict[str, Any]
    config: dict[str, Any]
    rows: list[dict[str, float]]
    lengths: np.ndarray  # (record,), the true length of each
    blocks: np.ndarray  # (record, series, layer, T), right-aligned: a shorter record is NaN before its own t = 1


def load(path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Results:
    """Everything recorded under `path`: a run directory, a sweep directory, or a list of such.

    A run appears once, however often it is named. Two directories of one run id hold the same configuration: the one
    with more records is taken, with a warning. Raises ResultsError on a path without runs and on foreign files.
    """
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    if not paths:
        raise ResultsError("no runs given: expected run or sweep directories")
    directories = {directory.resolve(): directory for given in paths for directory in _run_directories(Path(given))}
    chosen: dict[str, _Run] = {}
    for run in map(_read_run, directories.values()):
        twin = chosen.setdefault(run.info["run_id"], run)
        if twin is not run:
            best = max(twin, run, key=lambda r: len(r.rows))
            warnings.warn(
                f"run {run.info['run_id']} is in {twin.path} and in {run.path}: using {best.path}", stacklevel=2
            )
            chosen[run.info["run_id"]] = best
    runs = list(chosen.values())
    steps = _steps_frame(runs)
    config = tuple(dict.fromkeys(key for run in runs for key in run.config))
    return Results(_runs_frame(runs, steps), steps, _timesteps_frame(runs), config)


def provenance(runs: pd.DataFrame) -> dict[str, str]:
    """Where these runs (rows of `.runs`) came from, as short texts for a figure's metadata; no dates, no paths."""

    def distinct(column: str) -> list[str]:
        return list(dict.fromkeys(runs[column].dropna().astype(str))) if column in runs else []

    dirty = runs["git.dirty"] if "git.dirty" in runs else [False] * len(runs)
    commits = [
        f"{commit} (dirty)" if changed is True or changed == 1 else str(commit)
        for commit, changed in zip(
            runs["git.commit"] if "git.commit" in runs else [None] * len(runs), dirty, strict=True
        )
        if isinstance(commit, str) and commit
    ]
    absolute = r"(?<!\S)/\S*/(?=[^\s/]+/[^\s/]+\.py\b)"  # /home/me/lab/experiments/train.py -> experiments/train.py
    versions = [name for name in map(str, runs.columns) if name.startswith("versions.")]
    return {
        "runs": " ".join(sorted(distinct("run_id"))),
        "sweeps": " ".join(distinct("sweep")),
        "commands": "; ".join(dict.fromkeys(re.sub(absolute, "", command) for command in distinct("command"))),
        "commits": "; ".join(dict.fromkeys(commits)),
        "versions": ", ".join(f"{name.removeprefix('versions.')} {'/'.join(distinct(name))}" for name in versions),
    }


# -------------------------------------------------------------------------------------------------- reading a directory


def _run_directories(path: Path) -> list[Path]:
    if not path.exists():
        raise ResultsError(f"{path}: no such directory")
    if not path.is_dir():
        raise ResultsError(f"{path}: not a directory; expected a run or a sweep")
    if (path / "run.json").is_file():
        return [path]
    children = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    found = [child for child in children if (child / "run.json").is_file()]
    if not found:
        sweeps = [str(child) for child in children if any(child.glob("*/run.json"))]
        hint = f"; it holds sweeps, name them: {' '.join(sweeps[:5])}" if sweeps else ""
        raise ResultsError(f"{path}: no runs here (expected run.json in it or in its sub-directories){hint}")
    return found


def _read_run(path: Path) -> _Run:
    try:
        info = _read_info(path / "run.json")
        if info["status"] == "running" and not is_locked(path):
            info = _read_info(path / "run.json")  # it may have finished between our two looks
            if info["status"] == "running":
                info["status"] = "killed"
        rows = _read_rows(
            path / "steps.jsonl"
        )  # before the blocks: the writer appends a record's block before its line
        lengths = np.array([row.pop("T", info["T"]) for row in rows], dtype=int)
        shape = (len(info["series"]), info["layers"], info["T"])
        file = path / "timesteps.f32"
        if np.prod(shape) == 0 or not file.exists():
            blocks = np.empty((0, *shape), "<f4")
        else:
            ends = np.cumsum(lengths) * shape[0] * shape[1]
            count = int(np.searchsorted(ends, file.stat().st_size // 4, side="right"))
            rows, lengths, ends = rows[:count], lengths[:count], ends[:count]
            blocks = _blocks(np.fromfile(file, "<f4", ends[-1] if count else 0), ends, lengths, shape)
    except OSError as error:
        raise ResultsError(f"{error.filename or path}: {error.strerror or error}") from error
    return _Run(path, info, _leaves(info["config"]), rows, lengths, blocks)


def _blocks(flat: np.ndarray, ends: np.ndarray, lengths: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """The records of a file as (record, series, layer, T)."""
    *sizes, T = shape
    if (lengths == T).all():
        return flat.reshape(-1, *shape)
    blocks = np.full((len(lengths), *shape), np.nan, "<f4")
    for block, own, length in zip(blocks, np.split(flat, ends[:-1]), lengths, strict=True):
        block[..., T - length :] = own.reshape(*sizes, length)
    return blocks


def _read_info(file: Path) -> dict[str, Any]:
    try:
        info = json.loads(file.read_bytes())
    except ValueError as error:
        raise ResultsError(f"{file}: not readable as JSON ({error})") from error
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        found = info.get("format") if isinstance(info, dict) else type(info).__name__
        raise ResultsError(f"{file}: not a run.json of format {FORMAT} (found {found!r})")
    kinds = {"run_id": str, "status": str, "config": dict, "series": list, "layers": int, "T": int}
    wrong = [key for key, kind in kinds.items() if not isinstance(info.get(key), kind)]
    if wrong or info["status"] not in STATUSES:
        raise ResultsError(f"{file}: missing or unusable: {', '.join(wrong) or 'status'}")
    return info


def _read_rows(file: Path) -> list[dict[str, float]]:
    if not file.exists():
        return []
    lines = file.read_bytes().removesuffix(b"\n").split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break  # the writer died inside its last line, or has not finished it
            raise ResultsError(f"{file}:{number}: not a record (not readable as JSON)") from error
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise ResultsError(f"{file}:{number}: not a record (expected an object with an integer step)")
        if not all(isinstance(value, int | float | None) for value in row.values()):
            raise ResultsError(f"{file}:{number}: not a record (a value is not a number)")
        rows.append(row)
    return rows


# ------------------------------------------------------------------------------------------------------ building frames


def _leaves(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict as one flat dict with dotted keys; lists become tuples, so that users can group by them."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat |= _leaves(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = tuple(value) if isinstance(value, list) else value
    return flat


def _runs_frame(runs: list[_Run], steps: pd.DataFrame) -> pd.DataFrame:
    heads = [
        {key: run.info.get(key) for key in ("run_id", "sweep", "status", "diverged_at")} | run.config for run in runs
    ]
    tails = [
        {f"baseline/{key}": value for key, value in (run.info.get("baseline") or {}).items()}
        | {"T": run.info["T"], "layers": run.info["layers"], "path": str(run.path)}
        | {key: run.info.get(key) for key in ("name", "command", "error", "started", "finished")}
        | {key: run.info.get(key) for key in ("seconds", "cpu_seconds", "program_runs")}
        | _leaves({key: run.info.get(key) or {} for key in ("git", "versions")})
        for run in runs
    ]
    head, tail = (pd.DataFrame(records) for records in (heads, tails))
    last = steps.drop(columns="step").groupby("run_id").last().reindex(head["run_id"]).reset_index(drop=True)
    frame = pd.concat([head, last, tail], axis=1)
    empty = frame.columns[frame.isna().all()]
    return frame.astype(dict.fromkeys(empty, float) | {"diverged_at": float})  # all None would be of dtype object


def _steps_frame(runs: list[_Run]) -> pd.DataFrame:
    rows = [row for run in runs for row in run.rows]
    names = list(dict.fromkeys([*METRICS, *(name for row in rows for name in row)]))
    names = [name for name in names if name != "step"]
    frame = {
        "run_id": _ids(runs, [len(run.rows) for run in runs]),
        "step": np.array([row["step"] for row in rows], dtype=np.int64),
    }
    return pd.DataFrame(
        frame | {name: np.array([row.get(name, np.nan) for row in rows], dtype=float) for name in names}
    )


def _timesteps_frame(runs: list[_Run]) -> pd.DataFrame:
    """Every run fills its slice of columns allocated once: no loop over rows, and one copy of the data."""
    counts = [int(run.lengths[: len(run.blocks)].sum()) * run.info["layers"] for run in runs]
    total = sum(counts)
    columns = {name: np.empty(total, np.int32) for name in ("step", "layer", "t", "lag")}
    series = dict.fromkeys(name for run in runs for name in run.info["series"])
    columns |= {name: np.full(total, np.nan, np.float32) for name in series}
    start = 0
    for run, count in zip(runs, counts, strict=True):
        if count:
            _fill({name: column[start : start + count] for name, column in columns.items()}, run)
        start += count
    return pd.DataFrame({"run_id": _ids(runs, counts)} | columns, copy=False)


def _fill(columns: dict[str, np.ndarray], run: _Run) -> None:
    """One run's slice of the columns, in the order record, layer, t."""
    layers, T = run.info["layers"], run.info["T"]
    shape = (len(run.blocks), layers, T)
    t = np.arange(1, T + 1) - (T - run.lengths)[:, None, None]
    begun = None if (run.lengths == T).all() else np.broadcast_to(t >= 1, shape)

    def put(name: str, values: np.ndarray) -> None:
        if begun is None:
            columns[name].reshape(shape)[:] = values
        else:
            columns[name][:] = np.broadcast_to(values, shape)[begun]

    put("step", np.array([row["step"] for row in run.rows])[:, None, None])
    put("layer", np.arange(1, layers + 1)[:, None])
    put("t", t)
    put("lag", np.arange(T)[::-1])
    for index, name in enumerate(run.info["series"]):
        put(name, run.blocks[:, index])


def _ids(runs: list[_Run], counts: list[int]) -> Any:
    # Plain strings: a categorical is smaller, but value_counts, concat, `+` and seaborn's hue surprise people.
    return pd.array([run.info["run_id"] for run in runs], dtype="str").repeat(counts)
