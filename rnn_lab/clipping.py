"""Gradient clipping: what a run's whole gradient (*runs, P) becomes before the optimiser sees it.

Each function returns the gradient to apply and, for each run, whether it was clipped. Norms are taken in float64, so a norm that float32
could not hold is still clipped. Where the norm is not finite, there is nothing to scale by: `by_norm` returns the gradient as it is and
calls it not clipped; `by_value` clamps +-inf like any other entry and leaves NaN. (The training loop freezes such a run in either case.)
"""

from collections.abc import Callable

import torch
from torch import Tensor

Clip = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


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


def by_norm(g: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """theta g / ||g|| where ||g|| >= theta (P13, Algorithm 1). threshold: (*runs,)."""
    size = norm(g)
    clipped = (size >= threshold) & torch.isfinite(size)
    if not clipped.any():
        return g, clipped
    factor = torch.where(clipped, threshold / size, 1.0)
    return (g.double() * factor.unsqueeze(-1)).to(g.dtype), clipped


def by_value(g: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Every entry clamped to [-theta, theta]. threshold: (*runs,)."""
    bound = threshold.to(g.dtype).unsqueeze(-1)
    return g.clamp(-bound, bound), (g.abs() > bound).any(-1)


CLIPS: dict[str, Clip] = {"none": none, "norm": by_norm, "value": by_value}
