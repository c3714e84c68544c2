"""What every worker does, and what the driver knows of it."""

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from rnn_lab.cells import OWN
from rnn_lab.recording.journal import note_run
from rnn_lab.recording.progress import Progress, Silent
from rnn_lab.recording.status import last_step
from rnn_lab.recording.store import finished_run
from rnn_lab.runner import Job, Outcome, run_program


def train(
    jobs: list[Job], checkpoint_seconds: float, cores: int = 1, own: dict[str, type] | None = None
) -> list[Outcome]:
    """One program, in a process that does nothing else. What an earlier attempt at the program has finished is left alone.

    own: users' cells, where the process has not run their script.
    """
    OWN.update(own or {})
    use(cores)
    todo = [job for job in jobs if not finished_run(job.directory)]
    trained = run_program(todo, Silent(len(todo), 0), checkpoint_seconds) if todo else []
    outcomes = dict(zip((job.directory for job in todo), trained, strict=True))
    return [outcomes.get(job.directory) or recorded(job, "") for job in jobs]


def use(cores: int) -> None:
    """This process's kernels, of which none has been asked for yet, run on so many cores."""
    os.environ["NUMBA_NUM_THREADS"] = str(cores)  # read when a kernel is first asked for


def recorded(job: Job, lost: str) -> Outcome:
    """How a run stands by its record; lost: what became of its worker, where the worker has not said how the run ended."""
    if record := finished_run(job.directory):
        return Outcome(record["status"], record.get("summary", {}))
    note_run(job.info, f"killed: {lost}")
    return Outcome("killed", {}, lost)


class Watch:
    """Shows the progress of programs that train elsewhere, by their records."""

    def __init__(self, programs: Sequence[list[Job]], progress: Progress):
        self._programs, self._progress, self._shown = programs, progress, 0
        self._began = {job.directory: job.beginning().step for program in programs for job in program}
        self._done = dict.fromkeys(self._began, 0)
        self._pause, self._looked = 1.0, time.monotonic()

    def look(self, running: Iterable[int]) -> None:
        """At the programs of these numbers, but no more than a twentieth of the time. Cost: 0.1 ms a run."""
        if time.monotonic() - self._looked < self._pause:
            return
        began = time.monotonic()
        for index in running:
            for job in self._programs[index]:
                self._see(job.directory, last_step(job.directory))
        self._tell(0)
        self._looked = time.monotonic()
        self._pause = max(1.0, 20 * (self._looked - began))

    def ended(self, index: int, outcomes: list[Outcome]) -> None:
        """A program has: what it had to do is behind it, in whatever way."""
        for job in self._programs[index]:
            self._see(job.directory, job.config.training.updates)
        self._tell(sum(outcome.status == "diverged" for outcome in outcomes))

    def _see(self, directory: Path, step: int) -> None:
        self._done[directory] = max(self._done[directory], step - self._began[directory])

    def _tell(self, diverged: int) -> None:
        done = sum(self._done.values())
        self._progress.advance(done - self._shown, diverged)
        self._shown = done
