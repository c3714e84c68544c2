"""The whole gradient of a run, before and after clipping."""

import torch
from torch import Tensor

from rnn_lab import clipping


def gradient_scalars(raw: Tensor, applied: Tensor, clipped: Tensor) -> dict[str, Tensor]:
    """Norms, cosine and counts for raw and applied gradients (*runs, P).

    grad/norm, grad/norm_clipped: Euclidean norm over all parameters, before and after clipping.  grad/clipped: 0 or 1.
    grad/cosine: between applied and raw, NaN if either is zero or not finite.  grad/nonfinite: entries, before clipping.
    """
    return {
        "grad/norm": clipping.norm(raw),
        "grad/norm_clipped": clipping.norm(applied),
        "grad/clipped": clipped.double(),
        "grad/cosine": cosine(raw, applied),
        "grad/nonfinite": (~torch.isfinite(raw)).sum(-1).double(),
    }


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of the angle between vectors (*runs, P), float64; NaN if either is zero or not finite."""
    # each is scaled to length 1 first: products of very large or very small entries would not fit
    return (a.double() / clipping.norm(a).unsqueeze(-1) * (b.double() / clipping.norm(b).unsqueeze(-1))).sum(-1)


def truncation_scalars(full: Tensor, truncated: Tensor) -> dict[str, Tensor]:
    """What truncated BPTT leaves out of dE/dtheta (*runs, P), on the same mini-batch and parameters.

    truncation/bias: ||truncated - full|| / ||full||.  truncation/cosine: between the two.
    Cost: the full gradient comes from the recorded row's own sweep, so next to nothing.
    """
    return {
        "truncation/bias": clipping.norm(truncated.double() - full.double()) / clipping.norm(full),
        "truncation/cosine": cosine(truncated, full),
    }
