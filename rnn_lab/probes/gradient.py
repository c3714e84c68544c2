"""The whole gradient of a run, before and after clipping."""

import torch
from torch import Tensor

from rnn_lab import clipping


def gradient_scalars(raw: Tensor, size: Tensor, applied: Tensor, clipped: Tensor) -> dict[str, Tensor]:
    """Norms, cosine and counts for raw and applied gradients (*runs, P). size: ||raw||, (*runs,).

    grad/norm, grad/norm_clipped: Euclidean norm over all parameters, before and after clipping.  grad/clipped: 0 or 1.
    grad/cosine: between applied and raw, NaN if either is zero or not finite.  grad/nonfinite: entries, before clipping.
    """
    size_applied = size if applied is raw else clipping.norm(applied)
    return {
        "grad/norm": size,
        "grad/norm_clipped": size_applied,
        "grad/clipped": clipped.double(),
        "grad/cosine": _cosine(raw, size, applied, size_applied),
        "grad/nonfinite": _nonfinite(raw, size),
    }


def _nonfinite(raw: Tensor, size: Tensor) -> Tensor:
    """How many entries of raw (*runs, P) are infinite or NaN, float64. Where all norms are finite, none is."""
    if not size.is_cuda and torch.isfinite(size).all():  # a GPU is not asked, since that would be waiting for it
        return torch.zeros_like(size)
    return (~torch.isfinite(raw)).sum(-1).double()


def _cosine(a: Tensor, size_a: Tensor, b: Tensor, size_b: Tensor) -> Tensor:
    """Of the angle between vectors (*runs, P) of these norms (*runs,), float64; NaN if either is zero or not finite."""
    # each is scaled to length 1 first: products of very large or very small entries would not fit
    return (a.double() / size_a.unsqueeze(-1) * (b.double() / size_b.unsqueeze(-1))).sum(-1)


def truncation_scalars(full: Tensor, truncated: Tensor) -> dict[str, Tensor]:
    """What truncated BPTT leaves out of dE/dtheta (*runs, P), on the same mini-batch and parameters.

    truncation/bias: ||truncated - full|| / ||full||.  truncation/cosine: between the two.
    Cost: the full gradient comes from the recorded row's own sweep, so next to nothing.
    """
    size = clipping.norm(full)
    return {
        "truncation/bias": clipping.norm(truncated.double() - full.double()) / size,
        "truncation/cosine": _cosine(truncated, clipping.norm(truncated), full, size),
    }
