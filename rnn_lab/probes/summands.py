"""The lecture's sum over time: how much each step's use of W and U adds to the gradient."""

import torch
from torch import Tensor

from rnn_lab.bptt import Buffers, ScaledAdjoints
from rnn_lab.cells import Cell
from rnn_lab.parameters import Parameters
from rnn_lab.scaled import LOG10_2, Scaled, aligned


def log10_summand_norms(delta: Scaled, *sources: Tensor) -> list[Tensor]:
    """log10 of the Frobenius norm of source_t^T delta_t, step t's summand of the batch-mean dE/dW (source: h_{t-1}) or dE/dU (x_t).

    delta: (*runs, T, batch, hidden), the batch mean's 1/B included; sources (*runs, T, batch, in) -> (*runs, T) each, float64.
    ||A^T D||^2 = sum of (A A^T) * (D D^T): no (in, hidden) matrix for each step. An exact zero is -inf, as for W at t = 1, where h_0 = 0.
    """
    return log10_product_norms(*aligned(delta), *sources)


def log10_product_norms(D: Tensor, exponent: Tensor, *sources: Tensor) -> list[Tensor]:
    """The same from `aligned`'s two results. Sources may be one for several D."""
    gram = D @ D.transpose(-2, -1)
    squares = ((A @ A.transpose(-2, -1) * gram).sum((-2, -1)).clamp(min=0) for A in map(torch.Tensor.double, sources))
    return [LOG10_2 * (0.5 * torch.log2(square) + exponent) for square in squares]


def summand_series(
    x: Tensor, theta: Parameters, cell: Cell, buffers: Buffers, adjoints: ScaledAdjoints
) -> dict[str, Tensor]:
    """dW/log10_norm and dU/log10_norm at each (layer, t), (*runs, layers, T).

    Cost: in the kernel, part of the .7 of an update of all series of a row (adjoints); the reference's, half of its own update.
    """
    norms, source = [], x
    for n, (layer, trace, delta) in enumerate(zip(theta.layers, buffers.traces, adjoints.delta, strict=True)):
        first, second = cell.weight_summands(trace.sequence, adjoints.sent[n], layer.W)
        if second is delta:  # one Gram matrix for both
            norms.append(log10_summand_norms(delta, first, source))
        else:
            norms.append(log10_summand_norms(second, first) + log10_summand_norms(delta, source))
        source = trace.s[0][..., 1:, :, :]
    dW, dU = (torch.stack(layers, dim=-2) for layers in zip(*norms, strict=True))
    return {"dW/log10_norm": dW, "dU/log10_norm": dU}
