"""The whole gradient of a run, before and after clipping."""

import torch
from torch import Tensor

from rnn_lab import clipping


def gradient_scalars(raw: Tensor, applied: Tensor, clipped: Tensor) -> dict[str, Tensor]:
    """Norms, cosine and counts for raw and applied gradients (*runs, P).

    grad/norm, grad/norm_clipped: Euclidean norm over all parameters, before and after clipping.  grad/clipped: 0 or 1.
    grad/cosine: between applied and raw, NaN if either is zero or not finite.  grad/nonfinite: entries, before clipping.
    """
    norm, norm_clipped = clipping.norm(raw), clipping.norm(applied)
    # each is scaled to length 1 first: products of very large or very small entries would not fit
    cosine = (raw.double() / norm.unsqueeze(-1) * (applied.double() / norm_clipped.unsqueeze(-1))).sum(-1)
    return {
        "grad/norm": norm,
        "grad/norm_clipped": norm_clipped,
        "grad/clipped": clipped.double(),
        "grad/cosine": cosine,
        "grad/nonfinite": (~torch.isfinite(raw)).sum(-1).double(),
    }
