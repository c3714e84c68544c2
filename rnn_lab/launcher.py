"""Hydra's sweeper and launcher for the lab: a sweep's jobs become as few tensor programs as their shapes allow.

No torch at import time: `--help` and shell completion pass through here.
"""

import itertools
import os
import pickle
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from rnn_lab import quicker
from rnn_lab.complaints import complaint
from rnn_lab.config import Config, ConfigError, leaves, static_key, typed
from rnn_lab.jobs import RunsFailed, Task, check, fail, finished, metric, report, run_directory, train_jobs
from rnn_lab.options import options
from rnn_lab.recording.collected import collect
from rnn_lab.recording.journal import note
from rnn_lab.recording.progress import Progress, told
from rnn_lab.recording.runs import ResultsError
from rnn_lab.recording.store import discard_checkpoint, lock

if TYPE_CHECKING:
    from rnn_lab.runner import Outcome

WAVE = 2048  # jobs at most that wait inside Hydra while they are trained: each takes a thread and half a megabyte
WAVE_HERE = 256  # in this process: the next begin while wandb's process records the last; but of each shape a program's
VALUE_KEYS = {leaf.key for leaf in leaves(Config())} - {"preset"}  # preset=NAME chooses a file of conf/preset


def task_config(composed: DictConfig) -> DictConfig:
    """A composed config without Hydra's own node."""
    return OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])


@dataclass
class Prepared:
    """One job of a sweep: Hydra's composed config and ours."""

    composed: DictConfig
    config: Config

    @cached_property
    def directory(self) -> Path:
        return run_directory(self.config)

    @property
    def task(self) -> Task:
        return Task(self.config, self.directory, list(self.composed.hydra.overrides.task))


class VectorizedSweeper(Sweeper):
    """Every combination of the values given, like Hydra's basic sweeper; but all jobs are composed once and checked before anything
    is written, and a failed run does not hide the others' results.

    params: sweeps that an experiment writes down; the command line's go before them.
    """

    def __init__(self, params: dict[str, Any] | None):
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context: HydraContext = hydra_context
        self.config: DictConfig = config
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        jobs = self.combinations([*(f"{key}={value}" for key, value in self.params.items()), *arguments])
        directory = Path(self.config.hydra.sweep.dir)
        ours = self.launcher if isinstance(self.launcher, VectorizedLauncher) else None
        if ours:
            ours.prepare(jobs)
            if ours.options.dry_run:
                ours.rehearse(jobs)
        with ours.alone_in(directory) if ours else nullcontext():
            directory.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(self.config, directory / "multirun.yaml")
            returns = self.launcher.launch(jobs, initial_job_idx=0)
        if any(r.status == JobStatus.FAILED for r in returns):
            raise RunsFailed
        return [returns]

    def combinations(self, arguments: list[str]) -> list[list[str]]:
        """The overrides of each job; a later argument replaces an earlier one of the same key."""
        values: dict[str, list[str]] = {}
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        for override in parser.parse_overrides(arguments):
            key, given = override.get_key_element(), [""]
            if not override.is_sweep_override():
                given = [override.get_value_element_as_str()]
            elif not override.is_discrete_sweep() or not (given := _swept(override)):
                raise ConfigError(f"{override.input_line}: give the values themselves: key=a,b,c or key=range(a,b)")
            values[key] = [f"{key}={value}" for value in given]
        return [list(job) for job in itertools.product(*values.values())]


def _swept(override: Override) -> list[str]:
    try:
        return list(override.sweep_string_iterator())
    except (HydraException, ValueError):  # glob() of what is no group
        return []


@cache
def _parsed(override: str) -> Override:
    """Once for all jobs that share it."""
    return OverridesParser.create().parse_overrides([override])[0]


class VectorizedLauncher(Launcher):
    """Trains the jobs of a sweep as few tensor programs: grouped by shape, finished ones skipped, killed ones resumed, equal ones run once.

    settings: the fields of options.Options.
    """

    def __init__(self, **settings: Any):
        self.options = options(settings)
        self._prepared: dict[tuple[str, ...], Prepared] = {}
        self._structures: dict[tuple[str, ...], bytes] = {}
        self._alone = False

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context: HydraContext = hydra_context
        self.config: DictConfig = config
        quicker.install()

    def prepare(self, job_overrides: Sequence[Sequence[str]]) -> list[Prepared]:
        """Composes each job once and checks them all. Raises ConfigError with every problem, before anything is written."""
        found: dict[str, None] = {}  # in order, each once
        new = [job for job in dict.fromkeys(map(tuple, job_overrides)) if job not in self._prepared]
        for overrides in told(new, "composing jobs"):
            try:
                composed = self._compose(list(overrides))
                config = typed(composed)
                found |= dict.fromkeys(check(composed, config, sweeping=True))
                self._prepared[overrides] = Prepared(composed, config)
            except Exception as error:
                found |= dict.fromkeys(complaint(error, list(overrides)).splitlines())
        sweeps = sorted({job.config.sweep for job in self._prepared.values()})
        if len(sweeps) > 1:
            found[f"sweep={','.join(sweeps)}: a sweep has one name"] = None
        if found:
            raise ConfigError("\n".join(found))
        return [self._prepared[tuple(overrides)] for overrides in job_overrides]

    def _compose(self, overrides: list[str]) -> DictConfig:
        """The job config that Hydra's own composition gives. What only sets values is applied to a copy of one composed job: 10 times
        faster than composing each, and most sweeps set values.
        """
        loader = self.hydra_context.config_loader
        parsed = [_parsed(line) for line in overrides]
        values = [o for o in parsed if o.key_or_group in VALUE_KEYS and o.type == OverrideType.CHANGE]
        structure = tuple(o.input_line or "" for o in parsed if o not in values)
        if structure not in self._structures:
            self._structures[structure] = pickle.dumps(loader.load_sweep_config(self.config, list(structure)))
        composed = pickle.loads(self._structures[structure])  # a tenth of the time of copy.deepcopy
        for override in values:
            OmegaConf.update(composed, override.key_or_group, override.value())
        hydra, task_overrides = composed.hydra, [o for o in parsed if not o.is_hydra_override()]
        with read_write(hydra):
            hydra.overrides.task = [o.input_line for o in task_overrides]
            rules = hydra.job.config.override_dirname
            hydra.job.override_dirname = get_overrides_dirname(
                task_overrides, kv_sep=rules.kv_sep, item_sep=rules.item_sep, exclude_keys=list(rules.exclude_keys)
            )
        return composed

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        jobs = self.prepare(job_overrides)
        for number, job in enumerate(jobs):
            with read_write(job.composed.hydra), open_dict(job.composed.hydra):
                job.composed.hydra.job.id = job.composed.hydra.job.num = initial_job_idx + number
        if self.options.dry_run:
            self.rehearse(job_overrides)
        with self.alone_in(jobs[0].directory.parent):
            return self._launch(jobs)

    def rehearse(self, job_overrides: Sequence[Sequence[str]]) -> NoReturn:
        """Says what would be done, and leaves: another sweeper than ours would ask for the results."""
        from rnn_lab.rehearsal import rehearse

        unique = {job.directory: job for job in self.prepare(job_overrides)}
        rehearse([job.task for job in unique.values()], self.options, len(job_overrides))
        sys.exit(0)

    @contextmanager
    def alone_in(self, sweep: Path) -> Iterator[None]:
        """Nobody else launches into this sweep meanwhile. Raises Locked; may be nested."""
        if self._alone:
            yield
            return
        sweep.mkdir(parents=True, exist_ok=True)
        held, self._alone = lock(sweep), True
        try:
            yield
        finally:
            self._alone = False
            os.close(held)

    def _launch(self, jobs: list[Prepared]) -> list[JobReturn]:
        sweep, unique = jobs[0].directory.parent, {job.directory: job for job in jobs}
        before = {d: record for d in told(unique, "looking for what is trained already") if (record := finished(d))}
        todo = [job for directory, job in unique.items() if directory not in before]
        line = f"{len(jobs)} jobs, {len(unique)} runs, {len(before)} of them finished before"
        print(f"{sweep}: {line}")
        note(sweep / "sweep.log", f"launched: {line}")
        for directory in before:
            discard_checkpoint(directory)  # of one that was killed as it ended
        returns = {d: self._returned(unique[d], metric(r.get("summary", {}))) for d, r in before.items()}

        ended: dict[Path, Outcome] = {}
        wave, progress = WAVE, Progress(len(todo), sum(job.config.training.updates for job in todo))
        if self.options.engine == "serial":
            wave = min(WAVE, max(WAVE_HERE, 32 * len({static_key(job.config) for job in todo})))
        for start in range(0, len(todo), wave):
            ended |= self._train(todo[start : start + wave], returns, progress)
        report(sweep, ended, len(before))
        self._collect(sweep)
        return [returns[job.directory] for job in jobs]

    def _train(self, jobs: list[Prepared], returns: dict[Path, JobReturn], progress: Progress) -> "dict[Path, Outcome]":
        """Trains jobs, and adds to `returns` what each has to return; how those ended that could begin or told why not."""
        suspended = [SuspendedJob(job.composed, self.hydra_context) for job in jobs]
        singleton, environment = HydraConfig.instance().cfg, dict(os.environ)
        try:
            ready = [job for job, task in zip(jobs, suspended, strict=True) if task.begin()]
            outcomes = train_jobs([job.task for job in ready], self.options, progress) if ready else []
            trained = dict(zip((job.directory for job in ready), outcomes, strict=True))
            for job, task in zip(jobs, suspended, strict=True):
                returns[job.directory] = task.end(trained.get(job.directory))
                if job.directory not in trained and task.outcome:
                    fail(job.task, task.outcome.error or "")
        finally:
            for task in suspended:
                task.abandon()
            HydraConfig.instance().cfg = singleton
            os.environ.clear()
            os.environ.update(environment)
        return {
            job.directory: task.outcome for job, task in zip(jobs, suspended, strict=True) if task.outcome is not None
        }

    @staticmethod
    def _collect(sweep: Path) -> None:
        """Not worth a failure: the runs' own files are all there."""
        try:
            collect(sweep)
        except (OSError, ResultsError) as error:
            print(f"{sweep}: not collected into Parquet: {error}", file=sys.stderr)

    @staticmethod
    def _returned(job: Prepared, value: Any) -> JobReturn:
        status = JobStatus.FAILED if isinstance(value, Exception) else JobStatus.COMPLETED
        overrides = list(job.composed.hydra.overrides.task)
        return JobReturn(overrides=overrides, cfg=task_config(job.composed), status=status, _return_value=value)


class SuspendedJob(threading.Thread):
    """One job inside Hydra's own `run_job`, held at its task function until the program that trains it has ended.

    So Hydra itself makes each job's directory, `.hydra/`, callbacks and JobReturn, in job order, however many train at once.
    """

    def __init__(self, composed: DictConfig, hydra_context: HydraContext):
        super().__init__(daemon=True)
        self._composed, self._hydra_context = composed, hydra_context
        self._paused, self._resumed = threading.Event(), threading.Event()
        self._reached, self._failure = False, "ended before it began"
        self._hydra_config: Any = None  # what Hydra's callbacks ask for, while this job is at work
        self._returned: JobReturn | None = None
        self.outcome: Outcome | None = None

    def run(self) -> None:
        try:
            self._returned = run_job(
                hydra_context=self._hydra_context,
                task_function=self._task,
                config=self._composed,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
                configure_logging=False,
            )
        except Exception as error:  # its directory cannot be made, say: this job alone fails
            self._failure = f"{type(error).__name__}: {error}"
        finally:
            self._paused.set()

    def _task(self, _: DictConfig) -> float | None:
        self._reached, self._hydra_config = True, HydraConfig.instance().cfg
        self._paused.set()
        self._resumed.wait()
        assert self.outcome is not None
        if self.outcome.to_be_repeated:
            raise RunsFailed(self.outcome.error)
        return metric(self.outcome.summary)

    def begin(self) -> bool:
        """Runs until the task function is reached; whether it was."""
        self.start()
        self._paused.wait()
        return self._reached

    def end(self, outcome: "Outcome | None") -> JobReturn:
        """Lets the task function return (or raise, for a failed run), and Hydra finish the job."""
        from rnn_lab.runner import Outcome

        self.outcome = outcome or Outcome("failed", {}, self._failure)
        HydraConfig.instance().cfg = self._hydra_config  # its own again, whichever job began last
        self._resumed.set()
        self.join()
        overrides = list(self._composed.hydra.overrides.task)
        return self._returned or JobReturn(
            overrides=overrides, status=JobStatus.FAILED, _return_value=RunsFailed(self.outcome.error)
        )

    def abandon(self) -> None:
        """The sweep was interrupted: nothing to return."""
        if self.is_alive():
            from rnn_lab.runner import Outcome

            self.end(Outcome("failed", {}, "interrupted"))
