"""A job before and after training: what is wrong with it, where it goes, how programs of jobs are trained and reported."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from omegaconf import DictConfig

from rnn_lab.config import Config, problems, run_id
from rnn_lab.options import Options, options
from rnn_lab.provenance import provenance
from rnn_lab.recording import wandb
from rnn_lab.recording.journal import note

if TYPE_CHECKING:
    from rnn_lab.runner import Job, Outcome

ROOT = Path("runs")


class RunsFailed(Exception):
    """Some runs failed; the table that says so has been printed."""


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
    found = problems(config, list(hydra.overrides.task)) + options(hydra.launcher).problems()
    if not found:
        where = Path(hydra.sweep.dir, hydra.sweep.subdir) if sweeping else Path(hydra.run.dir)
        if where != run_directory(config):
            found.append(f"{where}: a run's directory is runs/<sweep>/<run id>; choose it by sweep=NAME")
    return found


def metric(summary: dict[str, float]) -> float | None:
    """What a sweeper may minimise: the last evaluation's error, else the last training loss; infinite for a run that diverged."""
    value = summary.get("eval/error", summary.get("train/loss"))
    return math.inf if value is not None and math.isnan(value) else value


def plan(tasks: Sequence[Task], options: Options) -> "tuple[list[Job], list[int], list[list[int]]]":
    """The jobs, the step at which each starts, and the programs that they make, as lists of indices."""
    from rnn_lab.runner import Job
    from rnn_lab.vectorize import programs

    jobs = [Job(task.config, task.directory, provenance() | {"overrides": task.overrides}) for task in tasks]
    configs, steps = [job.config for job in jobs], [job.beginning().step for job in jobs]
    cut = programs(configs, options.max_runs, steps)
    if options.max_runs is None and len(cut) < options.at_once:  # nobody shall be idle
        cut = programs(configs, math.ceil(len(configs) / options.at_once), steps)
    return jobs, steps, cut


def train_jobs(tasks: Sequence[Task], options: Options) -> "list[Outcome]":
    """Trains jobs as few programs, where options.engine says; one outcome a job."""
    if options.engine == "serial" and any(
        task.config.tracker.name == "wandb" and task.config.tracker.mode != "disabled" for task in tasks
    ):
        wandb.prepare()
    from rnn_lab.executors import engine
    from rnn_lab.recording.progress import Progress

    jobs, steps, programs = plan(tasks, options)
    updates = sum(job.config.training.updates - step for job, step in zip(jobs, steps, strict=True))
    progress = Progress(len(jobs), updates)
    try:
        trained = engine(options.engine)([[jobs[i] for i in program] for program in programs], options, progress)
    finally:
        progress.finish()
    outcomes = {
        i: o for program, ended in zip(programs, trained, strict=True) for i, o in zip(program, ended, strict=True)
    }
    return [outcomes[i] for i in range(len(jobs))]


def fail(task: Task, error: str) -> None:
    """Leaves the record of a job that Hydra could not begin."""
    from rnn_lab.runner import Job, record_failure

    record_failure(Job(task.config, task.directory, provenance() | {"overrides": task.overrides}), error)


def report(sweep: Path, outcomes: "dict[Path, Outcome]", skipped: int = 0) -> None:
    """How many runs ended how, and a line for each that came to nothing."""
    counts: dict[str, int] = {}
    for outcome in outcomes.values():
        counts[outcome.status] = counts.get(outcome.status, 0) + 1
    before = [f"{skipped} finished before"] if skipped else []
    if outcomes:
        line = ", ".join([f"{n} {status}" for status, n in sorted(counts.items())] + before)
        print(line)
        note(sweep / "sweep.log", line)
    for directory, outcome in outcomes.items():
        if outcome.to_be_repeated:
            print(f"  {outcome.status}  {directory}  {outcome.error}", file=sys.stderr)
