"""hydra.launcher: how jobs are trained and where. None of it changes a number. No torch here: bad input must be answered at once."""

import importlib.util
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from rnn_lab.config import YES_OR_NO, ConfigError, Rule, one_of, or_null

ENGINES = ("serial", "processes", "slurm", "ray")
WHOLE = Rule(lambda v: type(v) is int and v >= 1, "a whole number >= 1")
COUNT = Rule(lambda v: type(v) is int and v >= 0, "a whole number >= 0")
SECONDS = Rule(lambda v: type(v) in (int, float) and 0 <= v < math.inf, "a finite number >= 0")
GIGABYTES = Rule(lambda v: type(v) in (int, float) and 0 < v < math.inf, "a finite number > 0")
NAME = Rule(lambda v: isinstance(v, str) and re.fullmatch(r"[\w.,:&|-]+", v) is not None, "a name as sbatch takes it")
ADDRESS = Rule(
    lambda v: isinstance(v, str) and re.fullmatch(r"auto|(ray://)?[\w.-]+:\d+", v) is not None, "auto or host:port"
)


def option(default: Any, rule: Rule) -> Any:
    """A field with what it allows."""
    return field(default=default, metadata={"rule": rule})


def cores() -> int:
    """How many this process may use; all of them where the system does not say (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Slurm:
    """hydra.launcher.slurm: what one program asks for. None: the cluster's own default.

    minutes: the time limit; a program that reaches it is saved and queued again.  memory: gigabytes.  requeues: how often a program may
    reach its time limit.
    """

    partition: str | None = option(None, or_null(NAME))
    account: str | None = option(None, or_null(NAME))
    qos: str | None = option(None, or_null(NAME))
    constraint: str | None = option(None, or_null(NAME))
    minutes: int = option(60, WHOLE)
    cpus: int = option(1, WHOLE)
    gpus: int = option(0, COUNT)
    memory: float = option(4, GIGABYTES)
    requeues: int = option(100, COUNT)


@dataclass(frozen=True)
class Ray:
    """hydra.launcher.ray: address: of a cluster that runs; None: one of this machine alone, on its loopback interface, for as long as the
    sweep takes.  cpus, gpus: what one program asks for.
    """

    address: str | None = option(None, or_null(ADDRESS))
    cpus: int = option(1, WHOLE)
    gpus: int = option(0, COUNT)


@dataclass(frozen=True)
class Options:
    """engine: where programs run; "serial" is this process.  workers: programs at a time; None: a core each (processes, ray), or as many as
    Slurm lets run.  max_runs: runs in one program at most; None: as many as train fastest.
    checkpoint_seconds: a killed run loses no more than this.  dry_run: say what would be done, and do nothing.
    """

    engine: str = option("serial", one_of(*ENGINES))
    workers: int | None = option(None, or_null(WHOLE))
    max_runs: int | None = option(None, or_null(WHOLE))
    checkpoint_seconds: float = option(30.0, SECONDS)
    dry_run: bool = option(False, YES_OR_NO)
    slurm: Slurm = Slurm()
    ray: Ray = Ray()

    @property
    def at_once(self) -> int:
        """How many programs will run at a time, as far as it is known here."""
        if self.engine == "serial":
            return 1
        return self.workers or (cores() if self.engine == "processes" else 1)

    @property
    def threads(self) -> int:
        """How many a worker uses."""
        return {"slurm": self.slurm.cpus, "ray": self.ray.cpus}.get(self.engine, 1)

    def problems(self) -> list[str]:
        """What is wrong, one line each; what the engine needs and does not find, too."""
        found = _broken(self, "hydra.launcher")
        return found or [f"hydra.launcher.engine={self.engine}: {what}" for what in self._missing()]

    def _missing(self) -> list[str]:
        package = {"slurm": "submitit", "ray": "ray"}.get(self.engine)
        if package and importlib.util.find_spec(package) is None:
            return [f"{package} is not installed: pip install '.[{self.engine}]'"]
        if self.engine == "slurm" and shutil.which("sbatch") is None:
            return ["there is no sbatch here: run this on a machine of the cluster"]
        return []


def _broken(settings: Any, prefix: str) -> list[str]:
    found = []
    for f in fields(settings):
        key, value, rule = f"{prefix}.{f.name}", getattr(settings, f.name), f.metadata.get("rule")
        if is_dataclass(value):
            found += _broken(value, key)
        elif rule and not rule.holds(value):
            found.append(f"{key}={value}: must be {rule.words}")
    return found


def options(launcher: Mapping[Any, Any]) -> Options:
    """Those of a composed job's hydra.launcher; the defaults under another launcher than ours. Raises ConfigError for a key of nobody."""

    def build(cls: Any, given: Mapping[Any, Any], prefix: str) -> Any:
        unknown = sorted({str(key) for key in given} - {f.name for f in fields(cls)} - {"_target_"})
        if unknown and "engine" in launcher:
            raise ConfigError("\n".join(f"{prefix}.{key}: no such key" for key in unknown))
        nested = {f.name: type(f.default) for f in fields(cls) if is_dataclass(f.default)}
        values = {f.name: given.get(f.name, f.default) for f in fields(cls)}
        groups = {
            name: build(group, values[name], f"{prefix}.{name}") for name, group in nested.items() if name in given
        }
        return cls(**values | groups)

    return build(Options, launcher, "hydra.launcher")
