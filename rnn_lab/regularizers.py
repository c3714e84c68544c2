"""Pascanu et al.'s regulariser: the gradient should keep its size from each step to the one before (P13, section 3.3, eqs 9-10).

In the convention of the authors' code, for row vectors and W (in, out), per example:

    ratio_t = ||delta_t W^T||^2 / ||d_t||^2,   d_t = dE/dh_t,  delta_t = phi'(a_t) * d_t = dE/da_t   (total, the batch mean's 1/B in both)
    Omega = mean of (ratio_t - 1)^2 over the examples and steps t = 1..T that count: those with ||d_t||^2 >= 1e-20; 0 if none does

delta_t W^T is what d_t sends back to h_{t-1}; for t = 1 to h_0. A leaky unit sends (1 - leak) d_t + delta_t W^T, delta_t = leak phi' d_t.
Per layer; a net's Omega is their sum. Elman and leaky cells only. Only W's own appearance is differentiated: states, d_t and delta_t are
constants. So both value and gradient are closed forms, and no second backward pass is needed.
"""

import torch
from torch import Tensor

from rnn_lab.bptt import Buffers, ScaledAdjoints
from rnn_lab.cells import Elman
from rnn_lab.parameters import Parameters
from rnn_lab.scaled import value

TINY = 1e-20  # of ||d_t||^2, the 1/B included


def _ratios(d: Tensor, delta: Tensor, W: Tensor, leak: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ratio_t - 1 (0 where it does not count), how many count, ||d_t||, and what is sent back. Norms in float64: their squares fit."""
    back = (delta.flatten(-3, -2) @ W.transpose(-2, -1)).unflatten(-2, delta.shape[-3:-1])
    if leak is not None:
        back += (1 - leak)[..., None, None, None] * d
    size = torch.linalg.vector_norm(d, dim=-1, dtype=torch.float64)
    counts = size.square() >= TINY
    excess = torch.where(counts, (torch.linalg.vector_norm(back, dim=-1, dtype=torch.float64) / size).square() - 1, 0)
    return excess, counts.sum((-2, -1)), size, back


def omega(d: Tensor, delta: Tensor, W: Tensor, leak: Tensor | None = None) -> Tensor:
    """Omega of one layer: d = dE/dh_t and delta (*runs, T, batch, hidden), leak (*runs,) -> (*runs,), float64.

    Cost: about a third of an update; at recorded rows alone where the regulariser is off.
    """
    excess, number, _, _ = _ratios(d, delta, W, leak)
    return excess.square().sum((-2, -1)) / number.clamp(min=1)


def omega_gradient(d: Tensor, delta: Tensor, W: Tensor, leak: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Omega of one layer and its immediate derivative, (*runs,) and (*runs, hidden, hidden).

    d+Omega/dW = 4/N sum over t and examples of (ratio_t - 1) / ||d_t||^2 (delta_t W^T)^T delta_t,   N how many count.
    Both factors of the product are taken relative to ||d_t||, so that neither under- nor overflows where ||d_t|| itself does not.
    Cost: half to nine tenths of an update, at every update.
    """
    excess, number, size, back = _ratios(d, delta, W, leak)
    number = number.clamp(min=1)
    size = torch.where(excess == 0, 1, size).to(d.dtype).unsqueeze(-1)
    weight = (4 * excess / number[..., None, None]).to(d.dtype).unsqueeze(-1)
    left, right = (back / size * weight).flatten(-3, -2), (delta / size).flatten(-3, -2)
    return excess.square().sum((-2, -1)) / number, left.transpose(-2, -1) @ right


def net_omega(theta: Parameters, cell: Elman, adjoints: ScaledAdjoints) -> Tensor:
    """Omega of a net, the sum over its layers, (*runs,), of what a recorded row measured anyway."""
    layers = zip(adjoints.dE_dh, adjoints.delta, theta.layers, strict=True)
    return torch.stack([omega(value(d), value(delta), layer.W, cell.leak) for d, delta, layer in layers]).sum(0)


def add_omega_gradient_(theta: Parameters, cell: Elman, buffers: Buffers, alpha: Tensor, grads: Parameters) -> Tensor:
    """Adds alpha d+Omega/dW to the W of `grads`, layer by layer, and returns Omega. alpha: (*runs,). `buffers` must keep dE_dh."""
    total = torch.zeros_like(alpha, dtype=torch.float64)
    for layer, grad, d, delta in zip(theta.layers, grads.layers, buffers.dE_dh, buffers.delta, strict=True):
        own, dW = omega_gradient(d, delta, layer.W, cell.leak)
        grad.W.add_(alpha[..., None, None] * dW)
        total += own
    return total
