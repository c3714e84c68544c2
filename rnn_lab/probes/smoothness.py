"""How fast the gradient itself changes: what gradient clipping is said to be good for (Zhang et al. 2020)."""

import torch
from torch import Tensor

from rnn_lab import bptt, clipping
from rnn_lab.parameters import Parameters

POINTS = 6  # on the segment


def smoothness(
    before: Parameters, after: Parameters, x: Tensor, y: Tensor, net: bptt.Net, buffers: bptt.Buffers
) -> Tensor:
    """Local smoothness along the last update d = after - before, (*runs,), all on one mini-batch (Zhang et al. ICLR 2020, appendix H).

    The largest ||g(before + s d) - g(before)|| / (s ||d||) over s = 1/6, 2/6 ... 1.  g: dE/dtheta by full BPTT, without Omega.
    buffers: overwritten.  NaN where the update moved nothing.  Cost: seven gradients by the reference at the
    rows that have it: about 20 updates' time, an LSTM's 25 of its own.
    """

    def gradient(theta: Parameters) -> Tensor:
        grads = theta.like()
        _, dE_do = bptt.objective(bptt.forward(theta, x, net, buffers), y, net, buffers.late)
        bptt.backward(theta, x, dE_do, net, buffers, grads)
        return grads.flat.double()

    start, d, point, found = gradient(before), after.flat.double() - before.flat.double(), before.like(), []
    for s in range(1, POINTS + 1):
        point.flat.copy_(before.flat.double() + d * (s / POINTS) if s < POINTS else after.flat)
        found.append(clipping.norm(gradient(point) - start) / clipping.norm(point.flat.double() - before.flat.double()))
    return torch.stack(found).amax(0)
