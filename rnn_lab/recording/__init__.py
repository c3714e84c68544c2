"""Sinks: where the records of a run go, one file a sink."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Row:
    """One run at one step."""

    step: int
    scalars: dict[str, float]  # contract names ("train/loss", "grad/norm", ...); only what was measured at this step
    timesteps: dict[str, np.ndarray]  # contract name ("dE_dh/log10_norm", ...) -> (layers, true length) float32
    contributions: np.ndarray | None = None  # probes.contributions of this run, cut to the true length; where measured


class Sink(Protocol):
    """One sink object per run."""

    def log(self, row: Row) -> None: ...

    def finish(self, status: str, summary: dict[str, float]) -> None: ...  # completed | diverged | failed | killed


@dataclass(frozen=True)
class RunInfo:
    """What a sink is told about its run when it is opened."""

    run_id: str  # 10 hex digits
    sweep: str  # sweep name
    directory: Path  # runs/<sweep>/<run id>
    config: dict  # resolved nested config, plain containers
    name: str  # readable: e.g. "tanh-scale1.5-L100-norm-seed3-<run_id>"
    tags: list[str]
