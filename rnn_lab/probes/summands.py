"""The lecture's sum over time: how much each step's use of W and U adds to the gradient."""

import torch
from torch import Tensor

from rnn_lab.scaled import LOG10_2, Scaled, ldexp_


def log10_summand_norms(delta: Scaled, *sources: Tensor) -> list[Tensor]:
    """log10 of the Frobenius norm of source_t^T delta_t, step t's summand of the batch-mean dE/dW (source: h_{t-1}) or dE/dU (x_t).

    delta: (*runs, T, batch, hidden), the batch mean's 1/B included; sources (*runs, T, batch, in) -> (*runs, T) each, float64.
    ||A^T D||^2 = sum of (A A^T) * (D D^T): no (in, hidden) matrix for each step. An exact zero is -inf, as for W at t = 1, where h_0 = 0.
    """
    nonzero = (delta.mantissa != 0).any(-1)
    largest = torch.where(nonzero, delta.exponent, torch.iinfo(torch.int32).min // 2).amax(-1, keepdim=True)
    D = ldexp_(delta.mantissa.double(), delta.exponent - largest)
    gram, some = D @ D.transpose(-2, -1), nonzero.any(-1)
    norms = []
    for A in (source.double() for source in sources):
        square = (A @ A.transpose(-2, -1)).mul_(gram).sum((-2, -1)).clamp(min=0)
        norms.append(torch.where(some, LOG10_2 * (0.5 * torch.log2(square) + largest.squeeze(-1)), -torch.inf))
    return norms


def summand_series(x: Tensor, h: list[Tensor], delta: list[Scaled]) -> dict[str, Tensor]:
    """dW/log10_norm and dU/log10_norm at each (layer, t), (*runs, layers, T). h: per layer (*runs, T + 1, batch, hidden).

    Cost: about half an update at batch 20 and 50 units, at recorded rows.
    """
    below = [x, *(states[..., 1:, :, :] for states in h[:-1])]
    norms = [
        log10_summand_norms(d, states[..., :-1, :, :], source)
        for d, states, source in zip(delta, h, below, strict=True)
    ]
    dW, dU = (torch.stack(layers, dim=-2) for layers in zip(*norms, strict=True))
    return {"dW/log10_norm": dW, "dU/log10_norm": dU}
