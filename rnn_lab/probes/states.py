"""The states themselves: their size, and how far the activations are from saturation. Cost: part of a row's .7 of an update (adjoints)."""

import torch
from torch import Tensor

from rnn_lab.activations import Activation


def h_norm(h: list[Tensor]) -> Tensor:
    """Root mean square over the batch of ||h_t||, at each (layer, t). h: per layer (*runs, T + 1, batch, hidden) -> (*runs, layers, T)."""
    norms = [torch.linalg.vector_norm(layer[..., 1:, :, :], dim=-1, dtype=torch.float64) for layer in h]
    return torch.stack([n.square().mean(-1).sqrt() for n in norms], dim=-2)


def phi_prime_mean(states: list[Tensor], phi: Activation) -> Tensor:
    """phi'(a_t), the mean over units and batch, at each (layer, t): 0 is saturation. -> (*runs, layers, T).

    states: phi(a_t), per layer (*runs, T, batch, hidden).
    """
    return torch.stack([phi.prime(layer).mean((-2, -1), dtype=torch.float64) for layer in states], dim=-2)


def gate_saturation(gates: list[Tensor], number: int, sigmoids: tuple[int, ...]) -> Tensor:
    """The fraction of gate activations below .1 or above .9, over all sigmoid gates, units and the batch, at each (layer, t).

    Those are Karpathy, Johnson & Li's (2015) left- and right-saturated gates: neither passes a gradient on to its pre-activation, and a
    forget gate that is right-saturated passes the cell's state and gradient on unchanged. NaN where an activation is.
    gates: per layer (*runs, T, batch, number * hidden); `sigmoids`: which of the `number` gates are meant. -> (*runs, layers, T), float64.
    """

    def fraction(layer: Tensor) -> Tensor:
        each = layer.chunk(number, -1)
        values = torch.stack([each[gate] for gate in sigmoids], -2)
        return torch.where(values.isnan(), values, ((values < 0.1) | (values > 0.9)).to(values.dtype))

    return torch.stack([fraction(layer).mean((-3, -2, -1), dtype=torch.float64) for layer in gates], dim=-2)
