"""The states themselves: their size, and how far the activations are from saturation."""

import torch
from torch import Tensor

from rnn_lab.activations import Activation


def h_norm(h: list[Tensor]) -> Tensor:
    """Root mean square over the batch of ||h_t||, at each (layer, t). h: per layer (*runs, T + 1, batch, hidden) -> (*runs, layers, T)."""
    norms = [torch.linalg.vector_norm(layer[..., 1:, :, :], dim=-1, dtype=torch.float64) for layer in h]
    return torch.stack([n.square().mean(-1).sqrt() for n in norms], dim=-2)


def phi_prime_mean(h: list[Tensor], phi: Activation) -> Tensor:
    """phi'(a_t), the mean over units and batch, at each (layer, t): 0 is saturation. -> (*runs, layers, T)."""
    return torch.stack([phi.prime(layer[..., 1:, :, :]).mean((-2, -1), dtype=torch.float64) for layer in h], dim=-2)
