"""Trains a program and records every run of it: what stands between a list of configs and their directories."""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rnn_lab import kernels
from rnn_lab.config import Config, cell_name, container, run_id, run_name
from rnn_lab.recording import Row, RunInfo, Sink
from rnn_lab.recording.progress import Progress
from rnn_lab.recording.store import StoreSink
from rnn_lab.recording.wandb import WandbSink
from rnn_lab.training import Snapshot, timestep_series, train
from rnn_lab.vectorize import make_task

log = logging.getLogger("rnn_lab")
kernels.say = lambda line: print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Job:
    """One run to train: its config, its directory, and what its record says about where it came from (command, versions, git)."""

    config: Config
    directory: Path
    provenance: dict[str, Any]


@dataclass
class Outcome:
    """How a run ended: completed, diverged or failed; `summary` holds its last row, `error` what went wrong."""

    status: str
    summary: dict[str, float]
    error: str | None = None


class Recorder:
    """The sinks of one run, and its end. A sink of ours that fails fails this run, not its neighbours."""

    def __init__(self, job: Job, program_runs: int = 1):
        config = job.config
        task = make_task(config.task)
        tags = [config.task.name, cell_name(config), config.clip.name]
        info = RunInfo(run_id(config), config.sweep, job.directory, container(config), run_name(config), tags)
        describe = {
            "series": list(timestep_series(config)),
            "layers": config.model.layers,
            "T": task.steps,
            "baseline": task.baseline_of(config.task.reduction)._asdict(),
            "program_runs": program_runs,  # how many share the seconds
            **job.provenance,
        }
        self.store = StoreSink(info, describe)
        self.mirrors: list[Sink] = []
        if config.tracker.name == "wandb":
            self.mirrors.append(WandbSink(info, config.tracker.mode, config.tracker.project))
        self.outcome: Outcome | None = None
        self._last: dict[str, float] = {}
        self._diverged_at: int | None = None

    def log(self, row: Row, diverged: bool) -> None:
        """Records a row; a run that diverges ends with it."""
        if self.outcome is not None:
            return
        try:
            self.store.log(row)
        except OSError as error:
            return self.finish("failed", f"{type(error).__name__}: {error}")
        for mirror in self.mirrors:
            mirror.log(row)
        self._last |= {"step": row.step, **row.scalars}
        if diverged:
            self._diverged_at = row.step
            self.finish("diverged")

    def finish(self, status: str, error: str | None = None) -> None:
        """Ends the run once; later calls do nothing."""
        if self.outcome is not None:
            return
        self.outcome = Outcome(status, self._last, error)
        summary = self._last if self._diverged_at is None else self._last | {"diverged_at": self._diverged_at}
        for mirror in self.mirrors:
            mirror.finish(status, summary)
        try:
            self.store.finish(status, self._last, self._diverged_at, error)
        except OSError as failure:
            self.outcome = Outcome("failed", self._last, f"{type(failure).__name__}: {failure}")


def run_program(jobs: list[Job], progress: Progress) -> list[Outcome]:
    """Trains the jobs as one program and records each; one outcome a job, in their order.

    If the program as a whole breaks, its runs are trained one by one, so that only the guilty one fails.
    """
    recorders: list[Recorder | None] = []
    errors: list[str] = []
    for job in jobs:
        try:
            recorders.append(Recorder(job, len(jobs)))
            errors.append("")
        except (OSError, RuntimeError) as error:
            recorders.append(None)
            errors.append(f"{type(error).__name__}: {error}" if isinstance(error, OSError) else str(error))
    opened = [r for r in recorders if r is not None]
    status: tuple[str, str | None] = ("killed", None)
    try:
        configs = [job.config for job, r in zip(jobs, recorders, strict=True) if r is not None]
        step = 0
        for snapshot in train(configs) if configs else ():
            _record(snapshot, opened)
            progress.advance((snapshot.step - step) * len(opened), int(snapshot.diverged.sum()))
            step = snapshot.step
        status = ("completed", None)
    except (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        log.debug("a program failed", exc_info=True)
        status = ("failed", f"{type(error).__name__}: {error}")
    finally:
        for recorder in opened:
            recorder.finish(*status)
    if status[0] == "failed" and len(jobs) > 1:
        return [run_program([job], progress)[0] for job in jobs]
    return [
        r.outcome if r is not None and r.outcome is not None else Outcome("failed", {}, error)
        for r, error in zip(recorders, errors, strict=True)
    ]


def _record(snapshot: Snapshot, recorders: list[Recorder]) -> None:
    """Unstacks a snapshot into the rows of its runs."""
    for run in np.flatnonzero(snapshot.runs):
        scalars = {name: float(values[run]) for name, values in snapshot.scalars.items()}
        timesteps = {name: values[run][..., snapshot.late[run] :] for name, values in snapshot.timesteps.items()}
        recorders[run].log(Row(snapshot.step, scalars, timesteps), bool(snapshot.diverged[run]))
        if snapshot.solved[run]:
            recorders[run].finish("completed")
