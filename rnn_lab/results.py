"""What was recorded, as three pandas frames. The names of their columns are owned here; no torch; wandb only when asked for."""

import gc
import itertools
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rnn_lab.conditions import Condition, conditions, meeting
from rnn_lab.conditions import text as text  # how a cell is shown: analysis reads nothing but this module
from rnn_lab.recording.collected import Damaged, index_columns, read_collected
from rnn_lab.recording.runs import ResultsError, Run, read_array, read_info, read_run
from rnn_lab.recording.wandb.files import wandb_files

WANDB = "wandb:"  # begins the address of a project at a server
# The metric columns of .steps. They are always there; what was not measured is NaN.
METRICS = (
    "train/loss",
    "train/error",
    "eval/loss",
    "eval/error",
    "test/loss",
    "test/error",
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
    "contributions/long_term_share",
    "contributions/residual",
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


ABOUT = ("run_id", "sweep", "status", "diverged_at")  # of .runs, before the config


@dataclass(frozen=True)
class Results:
    """Three frames joined by `run_id`; a missing value is NaN in all of them.

    runs        one row a run: run_id, sweep, status, diverged_at, config, last value of each metric, origin, flags (what whoever
                uses its numbers must know: "diverged at 120", "killed at 40 of 400", "stopped at 40 of 400" (solved), "resumed 2x",
                "uncommitted changes", "begun by other code"; missing where there is nothing to say)
    steps       one row a record: run_id, step, metrics
    timesteps   one row a record, layer and t: run_id, step, layer (1 = nearest input), t (1..T), lag (T - t), series
    config      the names of those columns of `runs` that are leaves of the config
    """

    runs: pd.DataFrame
    steps: pd.DataFrame
    timesteps: pd.DataFrame
    config: tuple[str, ...]


def load(path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], where: str | Iterable[str] = ()) -> Results:
    """Everything recorded under `path`: a run directory, a sweep directory, "wandb:ENTITY/PROJECT", a folder of .wandb files where there
    are no runs of our own store, or a list of such.

    where: only the runs that meet this condition, or all of these (see `rnn_lab.conditions`); the records of others are not read, but
    where a condition asks for the last value of a metric. A run appears once, however often it is named. Two directories of one
    run id hold the same configuration: the one with more records is taken, with a warning. Raises ResultsError on a path without
    runs, on foreign files, and on a condition that is not understood or that no run meets.

    Cost for 1,000 runs of 100 records of 200 time steps and 6 series: 1.4 s of one core if they are collected (see
    `rnn_lab.recording.collected`), else 4 s, and the time in which the machine provides 1.5 (1.9) GB, 1.2 of which are the frames.
    """
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    if not paths:
        raise ResultsError("no runs given: expected run or sweep directories")
    asked = conditions(where)
    with _without_collector():
        sources = {key: source for path in paths for key, source in _sources(path).items()}
        try:
            return _results(sources, asked, collected=True)
        except Damaged as damage:
            warnings.warn(f"{damage}; reading the runs' own files", stacklevel=2)
            return _results(sources, asked, collected=False)


@contextmanager
def _without_collector() -> Iterator[None]:
    """A million small objects are made and live on: looking for dead ones among them would take a tenth of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _results(sources: "Mapping[Path, _Source]", asked: Sequence[Condition], collected: bool) -> Results:
    infos = {key: source.info for key, source in sources.items()}
    configs = {key: _leaves(info["config"]) for key, info in infos.items()}
    heads = {key: {name: info.get(name) for name in ABOUT} | configs[key] for key, info in infos.items()}
    tails = {key: _tail(sources[key].name, info) for key, info in infos.items()}
    leaves = tuple(dict.fromkeys(itertools.chain.from_iterable(configs.values())))

    rows: dict[Any, dict[str, Any]] = {key: heads[key] | tails[key] for key in infos}
    known = set().union(*rows.values())
    early, late = ([c for c in asked if (c.keys <= known) is first] for first in (True, False))
    runs = _unique(_read({key: sources[key] for key in meeting(early, rows, leaves)}, collected), sources)
    if late:
        summaries: dict[Any, Any] = _last(_steps_frame(list(runs.values()))).to_dict("index")
        nothing = dict.fromkeys(METRICS)
        rows = {key: rows[key] | summaries.get(run.info["run_id"], nothing) for key, run in runs.items()}
        runs = {key: runs[key] for key in meeting(late, rows, leaves)}
    steps = _steps_frame(list(runs.values()))
    reached = steps.groupby("run_id")["step"].max()
    flags = [_flags(infos[key], int(reached.get(infos[key]["run_id"], 0))) for key in runs]
    marked = [tails[key] | {"flags": flag} for key, flag in zip(runs, flags, strict=True)]
    about = _runs_frame([heads[key] for key in runs], _last(steps), marked)
    config = tuple(leaf for leaf in leaves if leaf in about)
    return Results(about, steps, _timesteps_frame(list(runs.values())), config)


def select(rows: pd.DataFrame, where: str | Iterable[str], keys: Sequence[str] = ()) -> pd.DataFrame:
    """The rows of any table that meet these conditions. keys: which columns to name where a condition names none. Raises as `load`."""
    records: dict[int, Any] = dict(enumerate(rows.to_dict("records")))
    return rows.iloc[meeting(conditions(where), records, keys)]


@dataclass(frozen=True)
class Contributions:
    """The lecture's double sum dE/dW = sum_t sum_{k <= t}, at one record of one run: log10 of Frobenius norms, per layer (layer 1 first).

    Each field holds an array for "W", "U" and "b". E_t is the batch mean, weighted as in the objective (1/L with task.reduction=mean).
    log10_norm  (layer, t, k): step k's summand of dE_t/dW, NaN for k > t; t = 1..T, or T alone where the last step has the only loss
    by_k        (layer, k): of the sum over t
    by_t        (layer, t): of the sum over k, which is dE_t/dW; NaN where t has no loss
    by_lag      (layer, lag): of the sum over the pairs of t - k = lag, lag = 0..T-1
    beyond      (layer, lag): of the sum over the pairs of t - k >= lag; that of lag 0 is all of dE/dW
    """

    step: int
    log10_norm: dict[str, np.ndarray]
    by_k: dict[str, np.ndarray]
    by_t: dict[str, np.ndarray]
    by_lag: dict[str, np.ndarray]
    beyond: dict[str, np.ndarray]


# Where they stand below the pairs, and in which order: lags from the largest to 0.
MARGINALS = {"by_t": (-4, 1), "by_k": (-3, 1), "by_lag": (-2, -1), "beyond": (-1, -1)}


def contributions(path: str | os.PathLike[str], step: int | None = None) -> Contributions:
    """What probe.contributions_every recorded in a run directory at `step`; None: its last record. Raises ResultsError."""
    directory = Path(path, "contributions")
    steps = sorted(int(file.stem) for file in directory.glob("*.npy") if file.stem.isdigit())
    if not steps or (step is not None and step not in steps):
        there = f"at step {step}; they are at {', '.join(map(str, steps))}" if steps else "(probe.contributions_every)"
        raise ResultsError(f"{path}: no contributions {there}")
    step = steps[-1] if step is None else step
    found = read_array(directory / f"{step}.npy")
    rows, T = found.shape[-2:]
    if rows - len(MARGINALS) not in (1, T):
        raise ResultsError(f"{directory}: another version of rnn_lab wrote this; train the run again")
    arrays = dict(zip("WUb", found, strict=True))
    fields = {
        name: {parameter: a[:, row, ::order] for parameter, a in arrays.items()}
        for name, (row, order) in MARGINALS.items()
    }
    return Contributions(step, {parameter: a[:, : -len(MARGINALS)] for parameter, a in arrays.items()}, **fields)


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


# -------------------------------------------------------------------------------------------------------- finding the runs


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


@dataclass(frozen=True)
class _Source:
    """Where a run is recorded. name: as the user told it.  sweep: the directory of the sweep; None for what wandb has."""

    name: str
    info: dict[str, Any]
    read: Callable[[], Run]
    sweep: Path | None = None


def _sources(given: str | os.PathLike[str]) -> dict[Path, _Source]:
    """What is recorded there, by resolved directory or file; by address what is at a wandb server."""
    name = os.fspath(given)
    if name.startswith(WANDB) or _is_of_wandb(Path(name)):
        from rnn_lab.recording.wandb.reader import recorded

        found = {where: _Source(where, run.info, run.run) for where, run in recorded(name).items()}
        return {Path(where) if name.startswith(WANDB) else Path(where).resolve(): run for where, run in found.items()}
    found = {}
    for directory in _run_directories(Path(name)):
        info, where = read_info(directory), directory.resolve()
        found[where] = _Source(str(directory), info, partial(read_run, directory, info), where.parent)
    return found


def _is_of_wandb(folder: Path) -> bool:
    """Whether wandb's files are all there is."""
    ours = (folder / "run.json").is_file() or any(folder.glob("[!.]*/run.json"))
    return not ours and any(wandb_files(folder))


def _read(sources: Mapping[Path, _Source], collected: bool) -> dict[Path, Run]:
    """The runs; those of a sweep from its Parquet files as far as these are up to date, if `collected`. Raises Damaged."""
    sweeps: dict[Path, dict[Path, dict[str, Any]]] = {}
    for directory, source in sources.items():
        if source.sweep and collected:
            sweeps.setdefault(source.sweep, {})[directory] = source.info
    held: dict[Path, Run] = {}
    for sweep, own in sweeps.items():
        if len(own) > 1:  # one run is read as fast from its own files
            held |= read_collected(sweep, own)
    return {key: held.get(key) or source.read() for key, source in sources.items()}


def _unique(runs: Mapping[Path, Run], sources: Mapping[Path, _Source]) -> dict[Path, Run]:
    """Each run once."""
    chosen: dict[str, Path] = {}
    for key, run in runs.items():
        twin = chosen.setdefault(run.info["run_id"], key)
        if twin != key:
            best = max(twin, key, key=lambda k: len(runs[k].scalars["step"]))
            names = f"{sources[twin].name} and in {sources[key].name}: using {sources[best].name}"
            warnings.warn(f"run {run.info['run_id']} is in {names}", stacklevel=4)
            chosen[run.info["run_id"]] = best
    return {key: runs[key] for key in chosen.values()}


# ------------------------------------------------------------------------------------------------------ building frames


def _leaves(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict as one flat dict with dotted keys; lists become tuples, so that users can group by them."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat |= _leaves(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = tuple(value) if isinstance(value, list) else value
    return flat


def _tail(path: str, info: dict[str, Any]) -> dict[str, Any]:
    return (
        {f"baseline/{key}": value for key, value in (info.get("baseline") or {}).items()}
        | {"T": info["T"], "layers": info["layers"], "path": path}
        | {key: info.get(key) for key in ("name", "command", "error", "started", "finished")}
        | {key: info.get(key) for key in ("seconds", "cpu_seconds", "program_runs")}
        | {"resumed": len(info.get("resumed") or [])}
        | _leaves({key: info.get(key) or {} for key in ("git", "versions", "data")})
    )


def _flags(info: dict[str, Any], reached: int) -> str | None:
    """reached: the last step that is recorded."""
    updates = info["config"].get("training", {}).get("updates", "?")
    git, earlier, resumed = info.get("git") or {}, info.get("earlier_git") or [], info.get("resumed") or []
    found = {
        f"diverged at {info.get('diverged_at')}": info["status"] == "diverged",
        f"{info['status']} at {reached} of {updates}": info["status"] not in ("completed", "diverged"),
        f"stopped at {reached} of {updates}": info["status"] == "completed" and updates not in ("?", reached),
        f"resumed {len(resumed)}x": bool(resumed),
        "uncommitted changes": any(origin.get("dirty") for origin in (git, *earlier)),
        "begun by other code": any(origin.get("commit") != git.get("commit") for origin in earlier),
    }
    return "; ".join(words for words, holds in found.items() if holds) or None


def _runs_frame(heads: list[dict[str, Any]], last: pd.DataFrame, tails: list[dict[str, Any]]) -> pd.DataFrame:
    head, tail = pd.DataFrame(heads), pd.DataFrame(tails)
    frame = pd.concat([head, last.reindex(head["run_id"]).reset_index(drop=True), tail], axis=1)
    frame = frame.loc[:, ~frame.columns.duplicated()]  # whatever a config of somebody else's calls its keys
    empty = frame.columns[frame.isna().all()]
    return frame.astype(dict.fromkeys(empty, float) | {"diverged_at": float})  # all None would be of dtype object


def _last(steps: pd.DataFrame) -> pd.DataFrame:
    """The last value of each metric that is not missing, by run_id."""
    return steps.drop(columns="step").groupby("run_id").last()


def _steps_frame(runs: list[Run]) -> pd.DataFrame:
    names = dict.fromkeys([*METRICS, *(name for run in runs for name in run.scalars if name != "step")])
    types = {"step": np.int64} | dict.fromkeys(names, np.float64)
    return _frame(types, runs, [len(run.scalars["step"]) for run in runs], lambda run: run.scalars)


def _timesteps_frame(runs: list[Run]) -> pd.DataFrame:
    types: dict[str, Any] = dict.fromkeys(("step", "layer", "t", "lag"), np.int32)
    types |= dict.fromkeys((name for run in runs for name in run.info["series"]), np.float32)
    counts = [int(run.lengths.sum()) * run.info["layers"] for run in runs]
    return _frame(types, runs, counts, lambda run: index_columns(run) | run.series())


def _frame(
    types: Mapping[str, Any], runs: list[Run], counts: list[int], columns_of: Callable[[Run], Mapping[str, np.ndarray]]
) -> pd.DataFrame:
    """`counts[i]` rows of run i. Every run fills its part of columns allocated once: no loop over rows, and one copy of the data."""
    columns = {name: np.empty(sum(counts), kind) for name, kind in types.items()}
    with ThreadPoolExecutor(1) as meanwhile:  # Arrow and NumPy both let go of the interpreter
        ids, start = meanwhile.submit(_ids, runs, counts), 0
        for run, count in zip(runs, counts, strict=True):
            own = columns_of(run) if count else {}
            for name, column in columns.items() if count else ():
                column[start : start + count] = own.get(name, np.nan)
            start += count
        return pd.DataFrame({"run_id": ids.result()} | columns, copy=False)


def _ids(runs: list[Run], counts: list[int]) -> Any:
    # Plain strings: a categorical is smaller, but value_counts, concat, `+` and seaborn's hue surprise people.
    import pyarrow as pa

    ids = pa.array([run.info["run_id"] for run in runs], pa.large_string())
    rows = pa.DictionaryArray.from_arrays(np.repeat(np.arange(len(runs), dtype=np.int32), counts), ids)
    kind: Any = pd.StringDtype(na_value=np.nan)
    return kind.__from_arrow__(rows.cast(ids.type))  # half the time of pd.array(...).repeat
