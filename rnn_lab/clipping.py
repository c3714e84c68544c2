"""Gradient clipping: what a run's whole gradient (*runs, P) becomes before the optimiser sees it.

Each function returns the gradient to apply and, for each run, whether it was clipped. Norms are taken in float64, so a norm that float32
could not hold is still clipped. What is not finite is never repaired silently:

| clip | an entry is +-inf | an entry is NaN | `clipped` |
|---|---|---|---|
| none | as it is | as it is | no |
| norm, autoclip | the whole gradient as it is; autoclip does not remember the norm | the same | no |
| value | +-threshold | as it is | if any entry was cut, the infinite ones included |
| agc | the entry's unit as it is, the other units clipped | the same | if another unit was |

In every case grad/nonfinite counts the entries before the clip, and the training loop freezes the run: it diverged.
"""

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

SMALLEST_WEIGHT = 1e-3  # AGC: a unit whose weights are smaller than this (all zero, say) is clipped as if they were not


def norm(g: Tensor) -> Tensor:
    """||g||, one norm over all parameters, float64: (*runs, P) -> (*runs,). Finite entries have a finite norm, in float64 runs too."""
    if g.dtype != torch.float64:
        return torch.linalg.vector_norm(g, dim=-1, dtype=torch.float64)
    largest = g.abs().amax(-1)
    unit = torch.where(torch.isfinite(largest) & (largest > 0), largest, 1)
    return unit * torch.linalg.vector_norm(g / unit.unsqueeze(-1), dim=-1)


def none(g: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """g as it is."""
    return g, torch.zeros_like(threshold, dtype=torch.bool)


def by_norm(g: Tensor, threshold: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """theta g / ||g|| where ||g|| >= theta (P13, Algorithm 1). threshold: (*runs,).  size: ||g||, if it is known.

    >>> by_norm(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), torch.tensor([1.0, 1.0]))
    (tensor([[0.6000, 0.8000],
            [0.3000, 0.4000]]), tensor([ True, False]))
    """
    size = norm(g) if size is None else size
    clipped = (size >= threshold) & torch.isfinite(size)
    if not clipped.is_cuda and not clipped.any():  # a GPU is not asked, since that would be waiting for it
        return g, clipped
    factor = torch.where(clipped, threshold / size, 1.0)
    return (g.double() * factor.unsqueeze(-1)).to(g.dtype), clipped


def by_value(g: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Every entry clamped to [-theta, theta]. threshold: (*runs,)."""
    bound = threshold.to(g.dtype).unsqueeze(-1)
    return g.clamp(-bound, bound), (g.abs() > bound).any(-1)


def by_unit(g: Tensor, theta: Tensor, factor: Tensor, matrices: "Matrices") -> tuple[Tensor, Tensor]:
    """AGC: every unit's incoming gradient shortened to ||g_i|| <= factor max(||w_i||, 1e-3) (Brock et al. 2021, eq. 3).

    Unit i is column i of a weight matrix (in, out); biases are exempt. theta: the parameters, like g. factor: (*runs,).
    """
    applied, clipped = g.clone(), torch.zeros_like(factor, dtype=torch.bool)
    for g_i, w_i in zip(matrices(applied), matrices(theta), strict=True):
        size, weight = norm(g_i.transpose(-2, -1)), norm(w_i.transpose(-2, -1))
        bound = factor.unsqueeze(-1) * weight.clamp(min=SMALLEST_WEIGHT)
        over = (size > bound) & torch.isfinite(size)
        g_i.copy_(torch.where(over.unsqueeze(-2), g_i.double() * (bound / size).unsqueeze(-2), g_i))
        clipped |= over.any(-1)
    return applied, clipped


class History:
    """The norms that each run has had, for their exact percentile (AutoClip): two heaps a run, O(log n) an update.

    `low` holds the smallest norms (negated, since a heap gives its smallest), `high` the others; plain lists of floats. About 32 bytes an
    update and run, and about 1.5 microseconds.
    """

    def __init__(self, runs: int):
        self.low: list[list[float]] = [[] for _ in range(runs)]
        self.high: list[list[float]] = [[] for _ in range(runs)]

    def of(self, run: int) -> list[float]:
        """All norms of a run so far; `put` takes them back."""
        return [-size for size in self.low[run]] + self.high[run]

    def put(self, run: int, sizes: list[float]) -> None:
        """Replaces what a run remembers."""
        self.low[run], self.high[run] = [], sorted(sizes)

    def percentile(self, size: Tensor, p: Tensor) -> Tensor:
        """Remembers the norms `size` (*runs,), where finite, and gives the p-th percentile, 0..100, of all so far; inf if there is none.

        Between two norms it interpolates linearly, as numpy.percentile does.
        """
        new, percent = size.flatten().tolist(), p.flatten().tolist()
        found = [self._percentile(*run) for run in zip(self.low, self.high, new, percent, strict=True)]
        return torch.tensor(found, dtype=torch.float64, device=size.device).view(size.shape)

    @staticmethod
    def _percentile(low: list[float], high: list[float], new: float, percent: float) -> float:
        if math.isfinite(new):
            heapq.heappush(high, -heapq.heappushpop(low, -new))
        if not (low or high):
            return math.inf
        rank = percent / 100 * (len(low) + len(high) - 1)  # 0-based, and where low ends
        while len(low) <= rank:
            heapq.heappush(low, -heapq.heappop(high))
        while len(low) > math.floor(rank) + 1:
            heapq.heappush(high, -heapq.heappop(low))
        below = -low[0]
        return below + (rank - math.floor(rank)) * (high[0] - below) if high else below


Matrices = Callable[[Tensor], list[Tensor]]  # the views (*runs, in, out) of the weight matrices in a vector (*runs, P)


@dataclass
class Settings:
    """What a program's clip needs beside the gradient: each run's settings (*runs,), the layout of its vectors, the norms so far."""

    threshold: Tensor
    factor: Tensor
    percentile: Tensor
    matrices: Matrices
    history: History = field(init=False)

    def __post_init__(self) -> None:
        self.history = History(self.threshold.numel())


# gradient, its norm, parameters -> gradient to apply, clipped
Clip = Callable[[Tensor, Tensor, Tensor, Settings], tuple[Tensor, Tensor]]

CLIPS: dict[str, Clip] = {
    "none": lambda g, size, theta, s: none(g, s.threshold),
    "norm": lambda g, size, theta, s: by_norm(g, s.threshold, size),
    "value": lambda g, size, theta, s: by_value(g, s.threshold),
    "agc": lambda g, size, theta, s: by_unit(g, theta, s.factor, s.matrices),
    # AutoClip (Seetharaman et al. 2020): the threshold is a percentile of the run's norms so far, the current one included
    "autoclip": lambda g, size, theta, s: by_norm(g, s.history.percentile(size, s.percentile), size),
}
