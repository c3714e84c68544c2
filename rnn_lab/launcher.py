"""Hydra's side of the lab: from composed configs to programs. A single run and a sweep go the same way.

No torch at import time: `--help` and shell completion pass through here.
"""

import copy
import fcntl
import importlib
import itertools
import os
import signal
import sys
import threading
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from rnn_lab.complaints import complaint
from rnn_lab.config import Config, ConfigError, leaves, problems, run_id, typed
from rnn_lab.provenance import provenance
from rnn_lab.recording.store import FINISHED, lock, read_run

if TYPE_CHECKING:
    from rnn_lab.runner import Outcome

ROOT = Path("runs")
VALUE_KEYS = {leaf.key for leaf in leaves(Config())} - {"preset"}  # preset=NAME chooses a file of conf/preset
ENGINES = ("serial",)


class RunsFailed(Exception):
    """Some runs failed; the table that says so has been printed."""


def task_config(composed: DictConfig) -> DictConfig:
    """A composed config without Hydra's own node."""
    return OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])


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


class Check(Callback):
    """Before a single run writes anything: refuses bad input in one line, and leaves a finished run as it is."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            job = typed(config)
            found = check(config, job, sweeping=False)
            if found:
                raise ConfigError("\n".join(found))
        except Exception as error:  # Hydra would turn it into a warning and go on
            print(complaint(error), file=sys.stderr)
            raise SystemExit(2) from None
        record = read_run(run_directory(job))
        if record is not None and record.get("status") in FINISHED:
            print(f"{run_directory(job)}: {record['status']} already; nothing to do")
            raise SystemExit(0)


def train_one(composed: DictConfig) -> float | None:
    """Hydra's task function for a single run."""
    config = typed(composed)
    [outcome] = _run([(config, run_directory(config), list(HydraConfig.get().overrides.task))])
    _report({run_directory(config): outcome})
    if outcome.status == "failed":
        raise RunsFailed
    return _metric(outcome.summary)


def _metric(summary: dict[str, float]) -> float | None:
    """What a sweeper may minimise: the last evaluation's error, else the last training loss."""
    return summary.get("eval/error", summary.get("train/loss"))


def _run(jobs: list[tuple[Config, Path, list[str]]], max_runs: int = 1) -> "list[Outcome]":
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


def _report(outcomes: "dict[Path, Outcome]", skipped: int = 0) -> None:
    """How many runs ended how, and a line for each that failed."""
    counts: dict[str, int] = {}
    for outcome in outcomes.values():
        counts[outcome.status] = counts.get(outcome.status, 0) + 1
    parts = [f"{n} {status}" for status, n in sorted(counts.items())] + (
        [f"{skipped} finished before"] if skipped else []
    )
    print(f"{', '.join(parts) or 'nothing to do'}")
    for directory, outcome in outcomes.items():
        if outcome.status == "failed":
            print(f"  failed  {directory}  {outcome.error}", file=sys.stderr)


@dataclass
class Prepared:
    """One job of a sweep: Hydra's composed config and ours."""

    composed: DictConfig
    config: Config

    @property
    def directory(self) -> Path:
        return run_directory(self.config)


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
        if isinstance(self.launcher, VectorizedLauncher):
            self.launcher.prepare(jobs)
        directory = Path(self.config.hydra.sweep.dir)
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
            key = override.get_key_element()
            if override.is_sweep_override() and not override.is_discrete_sweep():
                raise ConfigError(f"{override.input_line}: give the values themselves: key=a,b,c or key=range(a,b)")
            given = (
                override.sweep_string_iterator()
                if override.is_sweep_override()
                else [override.get_value_element_as_str()]
            )
            values[key] = [f"{key}={value}" for value in given]
        return [list(job) for job in itertools.product(*values.values())]


class VectorizedLauncher(Launcher):
    """Trains the jobs of a sweep as few tensor programs: grouped by shape, finished ones skipped, equal ones run once.

    engine: where programs run; "serial" is this process.  max_runs: runs in one program at most.
    """

    def __init__(self, engine: str, max_runs: int):
        self.engine, self.max_runs = engine, max_runs
        self._prepared: dict[tuple[str, ...], Prepared] = {}
        self._structures: dict[tuple[str, ...], DictConfig] = {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context: HydraContext = hydra_context
        self.config: DictConfig = config

    def prepare(self, job_overrides: Sequence[Sequence[str]]) -> list[Prepared]:
        """Composes each job once and checks them all. Raises ConfigError with every problem, before anything is written."""
        found: dict[str, None] = {}  # in order, each once
        for overrides in map(tuple, job_overrides):
            if overrides in self._prepared:
                continue
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
        parsed = OverridesParser.create().parse_overrides(overrides)
        values = [o for o in parsed if o.key_or_group in VALUE_KEYS and o.type == OverrideType.CHANGE]
        structure = tuple(o.input_line or "" for o in parsed if o not in values)
        if structure not in self._structures:
            self._structures[structure] = loader.load_sweep_config(self.config, list(structure))
        composed = copy.deepcopy(self._structures[structure])
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
        sweep = jobs[0].directory.parent
        sweep.mkdir(parents=True, exist_ok=True)
        held = lock(sweep)
        try:
            return self._launch(jobs)
        finally:
            fcntl.flock(held, fcntl.LOCK_UN)
            os.close(held)

    def _launch(self, jobs: list[Prepared]) -> list[JobReturn]:
        unique = {job.directory: job for job in jobs}
        records = {directory: read_run(directory) for directory in unique}
        finished = {d: r for d, r in records.items() if r is not None and r.get("status") in FINISHED}
        todo = [job for directory, job in unique.items() if directory not in finished]
        print(
            f"{jobs[0].directory.parent}: {len(jobs)} jobs, {len(unique)} runs, {len(finished)} of them finished before"
        )
        returns = {d: self._returned(unique[d], _metric(r.get("summary", {}))) for d, r in finished.items()}

        suspended = [SuspendedJob(job.composed, self.hydra_context) for job in todo]
        singleton, environment = HydraConfig.instance().cfg, dict(os.environ)
        try:
            ready = [job for job, task in zip(todo, suspended, strict=True) if task.begin()]
            work = [(job.config, job.directory, list(job.composed.hydra.overrides.task)) for job in ready]
            trained = dict(zip((job.directory for job in ready), _run(work, self.max_runs), strict=True))
            for job, task in zip(todo, suspended, strict=True):
                returns[job.directory] = task.end(trained.get(job.directory))
        finally:
            for task in suspended:
                task.abandon()
            HydraConfig.instance().cfg = singleton
            os.environ.clear()
            os.environ.update(environment)
        ended = {
            job.directory: task.outcome for job, task in zip(todo, suspended, strict=True) if task.outcome is not None
        }
        _report(ended, len(finished))
        return [returns[job.directory] for job in jobs]

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
        self._reached = False
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
        self._reached = True
        self._paused.set()
        self._resumed.wait()
        assert self.outcome is not None
        if self.outcome.status == "failed":
            raise RunsFailed(self.outcome.error)
        return _metric(self.outcome.summary)

    def begin(self) -> bool:
        """Runs until the task function is reached; whether it was."""
        self.start()
        self._paused.wait()
        return self._reached

    def end(self, outcome: "Outcome | None") -> JobReturn:
        """Lets the task function return (or raise, for a failed run), and Hydra finish the job."""
        from rnn_lab.runner import Outcome

        self.outcome = outcome or Outcome("failed", {}, self._failure)
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


def register() -> None:
    """Makes launcher, sweeper, schema and the run_id resolver known to Hydra.

    Hydra takes plugins only under `hydra_plugins.`, a namespace that an editable install cannot extend: this module goes in by hand.
    """
    try:
        namespace: Any = importlib.import_module("hydra_plugins")
    except ImportError:
        namespace = sys.modules["hydra_plugins"] = types.ModuleType("hydra_plugins")
        namespace.__path__ = []
    namespace.rnn_lab = sys.modules["hydra_plugins.rnn_lab"] = sys.modules[__name__]
    for plugin in (VectorizedLauncher, VectorizedSweeper):
        plugin.__module__ = "hydra_plugins.rnn_lab"
        Plugins.instance().register(plugin)
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("run_id", _resolve_run_id, replace=True)


def _resolve_run_id(_root_: DictConfig) -> str:
    """For hydra.run.dir and hydra.sweep.subdir; never raises, since Hydra would answer with a traceback after writing files."""
    try:
        return run_id(typed(_root_))
    except Exception:
        return "not_a_run"


def command_line(main: Any) -> None:
    """Runs a Hydra main function: one line and exit status 2 for bad input, 1 if runs failed, 130 or 143 on a signal."""
    register()
    own_errors = os.environ.get("HYDRA_FULL_ERROR") != "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra lets exceptions through to us
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except RunsFailed:
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if not own_errors:
            raise
        print(complaint(error), file=sys.stderr)
        sys.exit(2)
