"""Gradient norms through time: how large the total gradient is at every time step, of any size."""

import math

import torch
from torch import Tensor

from rnn_lab.scaled import Scaled, log10_rms_norm


def log10_norms(adjoints: list[Scaled]) -> Tensor:
    """log10 of the root mean square over the batch of the per-example norm ||dE/dh_t|| (or ||delta_t||), at each (layer, t).

    adjoints: per layer (*runs, T, batch, hidden), carrying the batch mean's 1/B, which is taken out here. -> (*runs, layers, T), float64.
    -inf is an exact zero. Cost: with the renormalised backward sweep and all other series of a row .7 of
    an update's time, an LSTM's .9, at the recorded steps only.
    """
    batch = adjoints[0].mantissa.shape[-2]
    return torch.stack([log10_rms_norm(a) for a in adjoints], dim=-2) + math.log10(batch)
