"""The Lyapunov spectrum of the net as it is driven by the mini-batch at hand."""

import torch
from torch import Tensor

from rnn_lab import jacobians, lyapunov
from rnn_lab.cells import Cell
from rnn_lab.parameters import Layer, Parameters

SEQUENCES = 2  # of the mini-batch, its first
TRANSIENT = 4  # one part in so many of a sequence is left out at its beginning, where h_0 = 0 still shows


def lyapunov_scalars(theta: Parameters, x: Tensor, cell: Cell, late: Tensor | None) -> dict[str, Tensor]:
    """Of all layers' joint state, (*runs,): lyapunov/max, the first exponent (nats a step); kaplan_yorke (a dimension); entropy (nats).

    x: (*runs, T, batch, inputs), late: (*runs,), how many of the T steps each run sits out. Finite-time exponents: means over what a run's
    own steps leave after the first quarter, and over the first two sequences; float64. entropy is the sum of the positive ones.
    Cost: a QR a step and sequence: about 55 updates' time, an LSTM's (its state is twice as wide) 115 of its own.
    """
    T, x = x.shape[-3], x[..., :SEQUENCES, :].double()
    layers = [Layer(*(weights.double() for weights in layer)) for layer in theta.layers]
    h = jacobians.at_rest(layers, cell, x)
    growth = torch.stack(list(lyapunov.log_growth(jacobians.along(layers, cell, x.unbind(-3), h, late))))
    first = torch.zeros(x.shape[:-3], dtype=torch.int64, device=x.device) if late is None else late
    exponents = lyapunov.mean_from(growth, first + (T - first) // TRANSIENT).mean(-2)
    return {
        "lyapunov/max": exponents.amax(-1),
        "lyapunov/kaplan_yorke": lyapunov.kaplan_yorke(exponents),
        "lyapunov/entropy": lyapunov.entropy_rate(exponents),
    }
