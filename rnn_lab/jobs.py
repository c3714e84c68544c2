"""A job before and after training: what is wrong with it, where it goes, how programs of jobs are trained and reported."""

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from rnn_lab.config import RECALL_TASKS, Config, least_bytes, problems, run_id
from rnn_lab.options import Options, options
from rnn_lab.provenance import provenance
from rnn_lab.recording import wandb
from rnn_lab.recording.descriptors import room
from rnn_lab.recording.journal import note
from rnn_lab.recording.progress import Progress
from rnn_lab.recording.runs import damage
from rnn_lab.recording.store import DESCRIPTORS, finished_run, reopen

if TYPE_CHECKING:
    from rnn_lab.runner import Job, Outcome

ROOT = Path("runs")
HYDRA: dict[str, tuple[list[Any], str]] = {  # what of Hydra's own settings would write elsewhere, or secrets
    "hydra.output_subdir": ([".hydra"], ".hydra, in the run's directory"),
    "hydra.job.chdir": ([False, None], "false"),
    "hydra.job.env_copy": ([[]], "[], since .hydra/ would hold the values"),
}


class RunsFailed(Exception):
    """Some runs failed; the table that says so has been printed."""


class Task(NamedTuple):
    """A job that has to be trained: its config, its directory, and the overrides that made it."""

    config: Config
    directory: Path
    overrides: list[str]


def run_directory(config: Config) -> Path:
    """runs/<sweep>/<run id>, relative to the current directory."""
    return ROOT / config.sweep / run_id(config)


def check(composed: DictConfig, config: Config, sweeping: bool) -> list[str]:
    """Everything wrong with one composed job, Hydra's own settings included; one line each."""
    hydra, launcher = composed.hydra, options(composed.hydra.launcher)
    found = problems(config, list(hydra.overrides.task)) + launcher.problems()
    if not found:
        where = Path(hydra.sweep.dir, hydra.sweep.subdir) if sweeping else Path(hydra.run.dir)
        if where != run_directory(config):
            found.append(f"{where}: a run's directory is runs/<sweep>/<run id>; choose it by sweep=NAME")
        found += [f"{key}={OmegaConf.select(composed, key)}: must be {words}" for key, (allowed, words) in HYDRA.items()
                  if OmegaConf.select(composed, key) not in allowed]  # fmt: skip
        if launcher.engine in ("serial", "processes"):
            found += _too_large(config)
    return found


def _too_large(config: Config) -> list[str]:
    """What cannot fit here: rather refused than killed by the system, with whatever else runs on this machine."""
    needed, there = least_bytes(config), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed <= there:
        return []
    lengths = {"task.length": config.task.length, "task.length_range": config.task.length_range}
    lengths["eval.lengths"] = config.eval.lengths
    sizes = {"model.hidden": config.model.hidden, "model.layers": config.model.layers}
    sizes |= {key: value for key, value in lengths.items() if value is not None}
    sizes["training.batch_size"] = config.training.batch_size
    if config.task.name in RECALL_TASKS:
        sizes["task.positions"] = config.task.positions
    said = " ".join(f"{key}={value}" for key, value in sizes.items())
    return [f"{said}: one run takes {needed / 1e9:.3g} GB or more, and this machine has {there / 1e9:.3g} GB"]


def finished(directory: Path) -> dict[str, Any] | None:
    """run.json of a run that has ended with a result, all of which is there; None if it has to be trained. One that is damaged is told,
    and reopened. Cost: that of reading its files.
    """
    record = finished_run(directory)
    if record is None or (what := damage(directory)) is None:
        return record
    print(f"{what}; this run is measured anew", file=sys.stderr)
    note(directory.parent / "sweep.log", what)
    reopen(directory)
    return None


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
    if max(map(len, cut), default=0) > (most := room(DESCRIPTORS)):
        cut = programs(configs, most, steps)
    if options.max_runs is None and len(cut) < options.at_once:  # nobody shall be idle
        cut = programs(configs, math.ceil(len(configs) / options.at_once), steps)
    return jobs, steps, cut


def train_jobs(tasks: Sequence[Task], options: Options, progress: Progress | None = None) -> "list[Outcome]":
    """Trains jobs as few programs, where options.engine says; one outcome a job. progress: of the sweep, where these are a part of it."""
    progress = progress or Progress(len(tasks), sum(task.config.training.updates for task in tasks))
    if options.engine == "serial" and any(
        task.config.tracker.name == "wandb" and task.config.tracker.mode != "disabled" for task in tasks
    ):
        wandb.prepare()
    from rnn_lab.executors import engine

    jobs, steps, programs = plan(tasks, options)
    progress.total -= sum(steps)  # those were done before
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
