"""A job before and after training: what is wrong with it, where it goes, how programs of jobs are trained and reported."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig

from rnn_lab.config import Config, problems, run_id
from rnn_lab.provenance import provenance
from rnn_lab.recording.journal import note

if TYPE_CHECKING:
    from rnn_lab.runner import Job, Outcome

ROOT = Path("runs")
ENGINES = ("serial",)


class RunsFailed(Exception):
    """Some runs failed; the table that says so has been printed."""


@dataclass(frozen=True)
class Options:
    """hydra.launcher: how jobs are trained. None of it changes a number.

    engine: where programs run; "serial" is this process.  max_runs: runs in one program at most; None: as many as train fastest.
    checkpoint_seconds: a killed run loses no more than this.  dry_run: say what would be done, and do nothing.
    """

    engine: str = "serial"
    max_runs: int | None = None
    checkpoint_seconds: float = 30.0
    dry_run: bool = False

    def problems(self) -> list[str]:
        """What is wrong, one line each."""
        rules = {
            "engine": (self.engine in ENGINES, f"one of {', '.join(ENGINES)}"),
            "max_runs": (self.max_runs is None or _is_whole(self.max_runs), "null or a whole number >= 1"),
            "checkpoint_seconds": (_is_seconds(self.checkpoint_seconds), "a finite number >= 0"),
            "dry_run": (isinstance(self.dry_run, bool), "true or false"),
        }
        return [
            f"hydra.launcher.{key}={getattr(self, key)}: must be {words}"
            for key, (ok, words) in rules.items()
            if not ok
        ]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def options(hydra: Any) -> Options:
    """Those of a composed job's hydra node; the defaults under another launcher."""
    return Options(**{f.name: hydra.launcher.get(f.name, f.default) for f in fields(Options)})


class Task(NamedTuple):
    """A job that has to be trained: its config, its directory, and the overrides that made it."""

    config: Config
    directory: Path
    overrides: list[str]


def run_directory(config: Config) -> Path:
    return ROOT / config.sweep / run_id(config)


def check(composed: DictConfig, config: Config, sweeping: bool) -> list[str]:
    """Everything wrong with one composed job, Hydra's own settings included; one line each."""
    hydra = composed.hydra
    found = problems(config, list(hydra.overrides.task)) + options(hydra).problems()
    if not found:
        where = Path(hydra.sweep.dir, hydra.sweep.subdir) if sweeping else Path(hydra.run.dir)
        if where != run_directory(config):
            found.append(f"{where}: a run's directory is runs/<sweep>/<run id>; choose it by sweep=NAME")
    return found


def metric(summary: dict[str, float]) -> float | None:
    """What a sweeper may minimise: the last evaluation's error, else the last training loss; infinite for a run that diverged."""
    value = summary.get("eval/error", summary.get("train/loss"))
    return math.inf if value is not None and math.isnan(value) else value


def plan(tasks: Sequence[Task], max_runs: int | None) -> "tuple[list[Job], list[int], list[list[int]]]":
    """The jobs, the step at which each starts, and the programs that they make, as lists of indices."""
    from rnn_lab.runner import Job
    from rnn_lab.vectorize import programs

    jobs = [Job(task.config, task.directory, provenance() | {"overrides": task.overrides}) for task in tasks]
    steps = [job.beginning().step for job in jobs]
    return jobs, steps, programs([job.config for job in jobs], max_runs, steps)


def train_jobs(tasks: Sequence[Task], options: Options) -> "list[Outcome]":
    """Trains jobs as few programs; one outcome a job. Each program is one call of `run_program`, here in this process."""
    from rnn_lab.recording.progress import Progress
    from rnn_lab.runner import run_program

    jobs, steps, programs = plan(tasks, options.max_runs)
    updates = sum(job.config.training.updates - step for job, step in zip(jobs, steps, strict=True))
    progress = Progress(len(jobs), updates)
    outcomes: dict[int, Outcome] = {}
    try:
        for program in programs:
            trained = run_program([jobs[i] for i in program], progress, options.checkpoint_seconds)
            outcomes |= dict(zip(program, trained, strict=True))
    finally:
        progress.finish()
    return [outcomes[i] for i in range(len(jobs))]


def fail(task: Task, error: str) -> None:
    """Leaves the record of a job that Hydra could not begin."""
    from rnn_lab.runner import Job, record_failure

    record_failure(Job(task.config, task.directory, provenance() | {"overrides": task.overrides}), error)


def report(sweep: Path, outcomes: "dict[Path, Outcome]", skipped: int = 0) -> None:
    """How many runs ended how, and a line for each that failed."""
    counts: dict[str, int] = {}
    for outcome in outcomes.values():
        counts[outcome.status] = counts.get(outcome.status, 0) + 1
    before = [f"{skipped} finished before"] if skipped else []
    if outcomes:
        line = ", ".join([f"{n} {status}" for status, n in sorted(counts.items())] + before)
        print(line)
        note(sweep / "sweep.log", line)
    for directory, outcome in outcomes.items():
        if outcome.status == "failed":
            print(f"  failed  {directory}  {outcome.error}", file=sys.stderr)
