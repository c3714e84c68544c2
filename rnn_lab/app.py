"""The command line of experiments/train.py: Hydra, with errors in one line and exit statuses that mean something."""

import importlib
import os
import re
import signal
import sys
import types
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from rnn_lab import config_files, launcher
from rnn_lab.complaints import complaint
from rnn_lab.config import CELL_NAMES, Config, ConfigError, problems, run_id, typed
from rnn_lab.interrupts import SIGNALS
from rnn_lab.jobs import RunsFailed, Task, check, finished, metric, report, run_directory, train_jobs
from rnn_lab.options import options
from rnn_lab.recording import wandb
from rnn_lab.recording.store import finished_run, lock


class Check(Callback):
    """Before a single run writes anything: refuses bad input in one line, and leaves a finished run as it is."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            job = typed(config)
            found = check(config, job, sweeping=False)
            if found:
                raise ConfigError("\n".join(found))
            if run_directory(job).is_dir():
                os.close(lock(run_directory(job)))  # nobody trains it at the moment
        except Exception as error:  # Hydra would turn it into a warning and go on
            print(complaint(error), file=sys.stderr)
            raise SystemExit(2) from None
        dry_run = options(config.hydra.launcher).dry_run
        if record := (finished_run if dry_run else finished)(run_directory(job)):
            print(f"{run_directory(job)}: {record['status']} already; nothing to do")
            raise SystemExit(0)
        if dry_run:
            from rnn_lab.rehearsal import rehearse

            rehearse([Task(job, run_directory(job), [])], options(config.hydra.launcher), 1)
            raise SystemExit(0)


def train_one(composed: DictConfig) -> float | None:
    """Hydra's task function for a single run."""
    config = typed(composed)
    overrides = list(HydraConfig.get().overrides.task)
    if found := problems(config, overrides):  # under another launcher nobody has looked yet
        raise ConfigError("\n".join(found))
    if record := finished(run_directory(config)):
        return metric(record.get("summary", {}))
    directory = run_directory(config)
    [outcome] = train_jobs([Task(config, directory, overrides)], options(HydraConfig.get().launcher))
    report(directory.parent, {directory: outcome})
    if outcome.to_be_repeated:
        raise RunsFailed
    return metric(outcome.summary)


def register() -> None:
    """Makes launcher, sweeper, schema and the run_id resolver known to Hydra.

    Hydra takes plugins only under `hydra_plugins.`, a namespace that an editable install cannot extend: the module goes in by hand.
    """
    try:
        namespace: Any = importlib.import_module("hydra_plugins")
    except ImportError:
        namespace = sys.modules["hydra_plugins"] = types.ModuleType("hydra_plugins")
        namespace.__path__ = []
    namespace.rnn_lab = sys.modules["hydra_plugins.rnn_lab"] = launcher
    for plugin in (launcher.VectorizedLauncher, launcher.VectorizedSweeper):
        plugin.__module__ = "hydra_plugins.rnn_lab"
        Plugins.instance().register(plugin)
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("run_id", _resolve_run_id, replace=True)
    config_files.guard()


def register_cell(name: str, cell: type) -> None:
    """Makes `model=name` choose a cell of the user's: a class with `step(z, s, W)`, see cells.Own. Raises ConfigError for a name in use.

    Call it before `command_line`. A run's id knows the name alone: a cell that computes something else needs another name.
    """
    from rnn_lab.cells import OWN  # imports torch

    if name in CELL_NAMES or not re.fullmatch(r"\w+", name):
        raise ConfigError(
            f"{name}: a new cell's name must be letters, digits and _, and none of {', '.join(CELL_NAMES)}"
        )
    OWN[name] = cell
    CELL_NAMES.append(name)
    ConfigStore.instance().store(group="model", name=name, node={"name": name})


def _resolve_run_id(_root_: DictConfig) -> str:
    """For hydra.run.dir and hydra.sweep.subdir; never raises, since Hydra would answer with a traceback after writing files."""
    try:
        return run_id(typed(_root_))
    except Exception:
        return "not_a_run"


def command_line(main: Any) -> None:
    """Runs a Hydra main function: one line and exit status 2 for bad input, 1 if runs failed, 128 + its number on a signal."""
    register()
    own_errors = os.environ.get("HYDRA_FULL_ERROR") != "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra lets exceptions through to us
    came: list[int] = []

    def leave(number: int, _: object) -> None:
        came.append(number)
        sys.exit(128 + number)

    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, leave)
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough: `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except RunsFailed:
        sys.exit(1)
    except Exception as error:
        if came:  # the exit went through code that tidied up after itself, and failed (OmegaConf does)
            sys.exit(128 + came[0])
        if not own_errors:
            raise
        print(complaint(error), file=sys.stderr)
        sys.exit(2)
    finally:
        wandb.close()
