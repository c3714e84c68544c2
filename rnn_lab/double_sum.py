"""The lecture's sum over pairs (deck: dE_t/dW = sum over k <= t): the total gradients of every E_t alone, at every step before it."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from rnn_lab.bptt import Buffers, Net
from rnn_lab.parameters import Parameters
from rnn_lab.recurrence import back_for_each, runs_first
from rnn_lab.scaled import Scaled, add_, normalise_, scaled


def deltas_of_each_loss(
    theta: Parameters, dE_do: Tensor, net: Net, buffers: Buffers
) -> Iterator[tuple[int, list[tuple[Scaled, Scaled]]]]:
    """One sweep back: for each 0-based step k, the last first, and each layer delta = dE_t/dz_k and `sent` (see `Cell`) of every E_t apart.

    Mantissas are (runs, losses, batch, ...), run axes as one; the losses are those of steps t >= k, in order. E_t is weighted as dE_do,
    (*runs, L, batch, outputs) of the last L steps, says. Any size, as in `bptt.scaled_adjoints`, of which this is the sum over t taken
    apart. `buffers` are only read. Cost: for a loss at every step (T + 1) / 2 times that sweep's time.
    """
    given = scaled(runs_first(dE_do @ theta.V.transpose(-2, -1).unsqueeze(-3), 3))
    layers = [[runs_first(t, 2) for t in layer] for layer in theta.layers]
    (runs, L, batch, hidden), T = given.mantissa.shape, len(buffers.traces[0].steps)
    others = (net.cell.blocks - 1) * hidden  # nothing but h is seen from outside
    late = None if buffers.late is None else buffers.late.reshape(-1, 1, 1, 1)
    carried = [  # dE_t/ds_k, a slot for each E_t
        Scaled(given.mantissa.new_zeros(runs, L, batch, hidden + others), torch.zeros_like(given.exponent))
        for _ in layers
    ]
    for k in reversed(range(T)):
        first = max(k - (T - L), 0)
        if k >= T - L:
            carried[-1].mantissa[:, first, :, :hidden] = given.mantissa[:, first]
            carried[-1].exponent[:, first] = given.exponent[:, first]
        found: list[tuple[Scaled, Scaled]] = []
        for n in reversed(range(len(layers))):
            d = normalise_(Scaled(carried[n].mantissa[:, first:], carried[n].exponent[:, first:]))
            if found:  # what the layer above sends down
                above = found[0][0]
                below = scaled(above.mantissa @ layers[n + 1][0].transpose(1, 2).unsqueeze(1))
                add_(d, Scaled(F.pad(below.mantissa, (0, others)), below.exponent + above.exponent))
            if late is not None:
                d.mantissa.masked_fill_(k < late, 0)
            exponent, blocks = d.exponent.clone(), d.mantissa.chunk(net.cell.blocks, -1)
            each = back_for_each(blocks, layers[n][1].transpose(1, 2), net.cell, buffers.traces[n], k)
            delta, sent = (Scaled(own, exponent) for own in each)
            found.insert(0, (delta, sent if net.cell.sent else delta))
        yield k, found
