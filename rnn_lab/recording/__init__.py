"""Where the rows of a run go: our own store, and what is made of it. One file or package a sink."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Row:
    """One run at one step."""

    step: int
    scalars: dict[str, float]  # contract names ("train/loss", "grad/norm", ...); only what was measured at this step
    timesteps: dict[str, np.ndarray]  # contract name ("dE_dh/log10_norm", ...) -> (layers, true length) float32
    contributions: np.ndarray | None = None  # probes.contributions of this run, cut to the true length; where measured


@dataclass(frozen=True)
class RunInfo:
    """What the store is told about its run when it is opened."""

    run_id: str  # 10 hex digits
    sweep: str  # sweep name
    directory: Path  # runs/<sweep>/<run id>
    config: dict  # resolved nested config, plain containers
    name: str  # readable: e.g. "tanh-scale1.5-L100-norm-seed3-<run_id>"
    tags: list[str]
