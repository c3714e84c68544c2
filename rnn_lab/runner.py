"""Trains a program and records every run of it: what stands between a list of configs and their directories.

`run_program` is all that an engine has to call, in any process: it takes configs, paths and numbers, and what it did is in the directories.
"""

import logging
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rnn_lab import checkpoints, interrupts, kernels
from rnn_lab.checkpoints import Beginning
from rnn_lab.config import Config, cell_name, container, run_id, run_name
from rnn_lab.probes.contributions import MARGINALS
from rnn_lab.recording import Row, RunInfo, wandb
from rnn_lab.recording.journal import note_run
from rnn_lab.recording.progress import Progress
from rnn_lab.recording.store import SHAPE, Locked, StoreSink
from rnn_lab.training import Snapshot, Training, timestep_series
from rnn_lab.vectorize import make_task

log = logging.getLogger("rnn_lab")
kernels.say = lambda line: print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Job:
    """One run to train: its config, its directory, and what its record says about where it came from (command, versions, git)."""

    config: Config
    directory: Path
    provenance: dict[str, Any]

    @cached_property
    def info(self) -> RunInfo:
        config = self.config
        tags = [config.task.name, cell_name(config), config.clip.name]
        return RunInfo(run_id(config), config.sweep, self.directory, container(config), run_name(config), tags)

    def describe(self) -> dict[str, Any]:
        """What its record says besides its config."""
        task = make_task(self.config.task)
        return {
            "series": list(timestep_series(self.config)),
            "layers": self.config.model.layers,
            "T": task.steps,
            "baseline": task.baseline_of(self.config.task.reduction)._asdict(),
            **self.provenance,
        }

    def beginning(self) -> Beginning:
        """Where it starts: from its checkpoint, if it was killed."""
        described = self.describe()
        return checkpoints.beginning(self.directory, run_id(self.config), {key: described[key] for key in SHAPE})


@dataclass
class Outcome:
    """How a run ended: completed, diverged, failed or killed; `summary` holds its last row, `error` what went wrong."""

    status: str
    summary: dict[str, float]
    error: str | None = None

    @property
    def to_be_repeated(self) -> bool:
        """No result came of it."""
        return self.status in ("failed", "killed")


class Recorder:
    """The record of one run, and its end. Where our store fails, this run fails, not its neighbours.

    program_runs: how many share the seconds.
    """

    def __init__(self, job: Job, beginning: Beginning, program_runs: int = 1):
        self.info, tracker = job.info, job.config.tracker
        describe = job.describe() | {"program_runs": program_runs}
        self.outcome: Outcome | None = None
        self._last: dict[str, float] = {}
        self._diverged_at: int | None = None
        self.store = StoreSink(self.info, describe, beginning.step, beginning.since)
        if tracker.name == "wandb":
            wandb.mirror(job.directory, tracker.mode, tracker.project, tracker.series)
        for row in self.store.recorded():
            self._last |= {"step": row.step, **row.scalars}
        note_run(self.info, f"resumed from step {beginning.step}" if beginning.step else "started")

    def log(self, row: Row, diverged: bool) -> None:
        """Records a row; a run that diverges ends with it."""
        if self.outcome is not None:
            return
        try:
            self.store.log(row)
        except OSError as error:
            return self.finish("failed", f"{type(error).__name__}: {error}")
        self._last |= {"step": row.step, **row.scalars}
        if diverged:
            self._diverged_at = row.step
            self.finish("diverged")

    def save(self, state: dict[str, Any]) -> None:
        """A checkpoint, unless the run has ended."""
        if self.outcome is not None:
            return
        try:
            checkpoints.save(self.info.directory, self.info.run_id, state, self.store.progress())
        except OSError as error:
            checkpoints.warn(f"{self.info.directory.parent}: no checkpoints ({type(error).__name__}: {error})")

    def finish(self, status: str, error: str | None = None) -> None:
        """Ends the run once; later calls do nothing."""
        if self.outcome is not None:
            return
        self.outcome = Outcome(status, self._last, error)
        try:
            self.store.finish(status, self._last, self._diverged_at, error)
        except OSError as failure:
            self.outcome = Outcome("failed", self._last, f"{type(failure).__name__}: {failure}")
        self._note_end(self.outcome)

    def _note_end(self, outcome: Outcome) -> None:
        how = outcome.status + (f": {outcome.error}" if outcome.error else "")
        numbers = [f"{key} {self._last[key]:.6g}" for key in ("step", "train/loss", "eval/error") if key in self._last]
        seconds = f"{self.store.progress()['seconds']:.1f} s"
        note_run(self.info, ", ".join([how, *numbers, seconds]))


def record_failure(job: Job, error: str) -> None:
    """Says in the directory of a run that failed before it began why, if it can be said there."""
    with suppress(OSError, Locked):
        if not (job.directory / "run.json").exists():
            StoreSink(job.info, job.describe()).finish("failed", {}, error=error)


def run_program(jobs: list[Job], progress: Progress, checkpoint_seconds: float) -> list[Outcome]:
    """Trains the jobs as one program and records each; one outcome a job, in their order. Runs that were killed at different steps are
    programs of their own.

    If a program as a whole breaks, its runs are trained one by one, so that only the guilty one fails. A checkpoint is written every so
    many seconds, and when a signal comes that ends the process: it comes through when the update at hand is done and saved.
    """
    beginnings = [job.beginning() for job in jobs]
    outcomes: dict[int, Outcome] = {}
    for step in sorted({beginning.step for beginning in beginnings}):
        members = [i for i, beginning in enumerate(beginnings) if beginning.step == step]
        with interrupts.deferred() as interrupted:
            program = _Program([jobs[i] for i in members], [beginnings[i] for i in members])
            failed = program.train(progress, checkpoint_seconds, interrupted)
        trained = program.outcomes()
        if failed and len(members) > 1:
            trained = [run_program([jobs[i]], progress, checkpoint_seconds)[0] for i in members]
        outcomes |= dict(zip(members, trained, strict=True))
    return [outcomes[i] for i in range(len(jobs))]


class _Program:
    """Jobs that start at one step, and their recorders; a job whose record cannot be opened fails alone."""

    def __init__(self, jobs: list[Job], beginnings: list[Beginning]):
        self.jobs, self.recorders, self.errors = jobs, dict[int, Recorder](), dict[int, str]()
        for index, (job, beginning) in enumerate(zip(jobs, beginnings, strict=True)):
            try:
                self.recorders[index] = Recorder(job, beginning, len(jobs))
            except OSError as error:
                self.errors[index] = f"{type(error).__name__}: {error}"
            except RuntimeError as error:  # Locked, which says it all
                self.errors[index] = str(error)
        self.states = [beginnings[index].state for index in self.recorders]

    def outcomes(self) -> list[Outcome]:
        ended = {index: recorder.outcome for index, recorder in self.recorders.items()}
        return [ended.get(index) or Outcome("failed", {}, self.errors.get(index)) for index in range(len(self.jobs))]

    def train(self, progress: Progress, checkpoint_seconds: float, interrupted: list[int]) -> bool:
        """Until the end, or until `interrupted` is no longer empty. Whether the program as a whole failed."""
        status: tuple[str, str | None] = ("killed", None)
        try:
            if not self.recorders or self._train(progress, checkpoint_seconds, interrupted):
                status = ("completed", None)
        except (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
            log.debug("a program failed", exc_info=True)
            status = ("failed", f"{type(error).__name__}: {error}")
        finally:
            for recorder in self.recorders.values():
                recorder.finish(*status)
        return status[0] == "failed"

    def _train(self, progress: Progress, checkpoint_seconds: float, interrupted: list[int]) -> bool:
        training = Training([self.jobs[index].config for index in self.recorders])
        states = [state for state in self.states if state is not None]
        if states:
            training.restore(states)
        recorders, updates = list(self.recorders.values()), training.first.training.updates
        saved = time.monotonic()
        while not training.done:
            if interrupted or time.monotonic() - saved >= checkpoint_seconds:
                for recorder, state in zip(recorders, training.state(), strict=True):
                    recorder.save(state)
                saved = time.monotonic()
            if interrupted:
                break
            step, diverged = training.step, 0
            for snapshot in training.advance():
                _record(snapshot, recorders)
                diverged += int(snapshot.diverged.sum())
            going = [run for run, recorder in enumerate(recorders) if recorder.outcome is None]
            ended = len(recorders) - len(going)
            progress.advance((training.step - step) * len(going) + (updates - step) * ended, diverged)
            if ended and going and not training.done:  # the others need not wait for what no longer matters
                training, recorders = training.part(going), [recorders[run] for run in going]
        return training.done


def _record(snapshot: Snapshot, recorders: list[Recorder]) -> None:
    """Unstacks a snapshot into the rows of its runs."""
    for run in np.flatnonzero(snapshot.runs):
        scalars = {name: float(values[run]) for name, values in snapshot.scalars.items()}
        timesteps = {name: values[run][..., snapshot.late[run] :] for name, values in snapshot.timesteps.items()}
        pairs = None if snapshot.contributions is None else _own_pairs(snapshot.contributions[run], snapshot.late[run])
        recorders[run].log(Row(snapshot.step, scalars, timesteps, pairs), bool(snapshot.diverged[run]))
        if snapshot.solved[run]:
            recorders[run].finish("completed")


def _own_pairs(contributions: np.ndarray, late: int) -> np.ndarray:
    """Without the columns of steps before the run's own first, and the rows of their losses where every step has one."""
    rows, T = contributions.shape[-2:]
    return contributions[..., late if rows == T + MARGINALS else 0 :, late:]
