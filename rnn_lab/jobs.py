"""A job before and after training: what is wrong with it, where it goes, how programs of jobs are trained and reported."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from rnn_lab.config import Config, problems, run_id
from rnn_lab.provenance import provenance

if TYPE_CHECKING:
    from rnn_lab.runner import Outcome

ROOT = Path("runs")
ENGINES = ("serial",)


class RunsFailed(Exception):
    """Some runs failed; the table that says so has been printed."""


def run_directory(config: Config) -> Path:
    return ROOT / config.sweep / run_id(config)


def check(composed: DictConfig, config: Config, sweeping: bool) -> list[str]:
    """Everything wrong with one composed job, Hydra's own settings included; one line each."""
    hydra = composed.hydra
    found = problems(config, list(hydra.overrides.task))
    if hydra.launcher.get("engine", "serial") not in ENGINES:
        found.append(f"hydra.launcher.engine={hydra.launcher.engine}: must be one of {', '.join(ENGINES)}")
    max_runs = hydra.launcher.get("max_runs", 1)
    if not isinstance(max_runs, int) or isinstance(max_runs, bool) or max_runs < 1:
        found.append(f"hydra.launcher.max_runs={max_runs}: must be a whole number >= 1")
    if not found:
        where = Path(hydra.sweep.dir, hydra.sweep.subdir) if sweeping else Path(hydra.run.dir)
        if where != run_directory(config):
            found.append(f"{where}: a run's directory is runs/<sweep>/<run id>; choose it by sweep=NAME")
    return found


def metric(summary: dict[str, float]) -> float | None:
    """What a sweeper may minimise: the last evaluation's error, else the last training loss."""
    return summary.get("eval/error", summary.get("train/loss"))


def train_jobs(jobs: list[tuple[Config, Path, list[str]]], max_runs: int = 1) -> "list[Outcome]":
    """Trains jobs, as few programs as max_runs allows, in this process."""
    from rnn_lab.recording.progress import Progress
    from rnn_lab.runner import Job, run_program
    from rnn_lab.vectorize import programs

    origin = provenance()
    work: list[Job] = [
        Job(config, directory, {**origin, "overrides": overrides}) for config, directory, overrides in jobs
    ]
    progress = Progress(len(work), sum(job.config.training.updates for job in work))
    outcomes: dict[int, Outcome] = {}
    try:
        for program in programs([job.config for job in work], max_runs):
            outcomes |= dict(zip(program, run_program([work[i] for i in program], progress), strict=True))
    finally:
        progress.finish()
    return [outcomes[i] for i in range(len(work))]


def report(outcomes: "dict[Path, Outcome]", skipped: int = 0) -> None:
    """How many runs ended how, and a line for each that failed."""
    counts: dict[str, int] = {}
    for outcome in outcomes.values():
        counts[outcome.status] = counts.get(outcome.status, 0) + 1
    before = [f"{skipped} finished before"] if skipped else []
    if outcomes:
        print(", ".join([f"{n} {status}" for status, n in sorted(counts.items())] + before))
    for directory, outcome in outcomes.items():
        if outcome.status == "failed":
            print(f"  failed  {directory}  {outcome.error}", file=sys.stderr)
