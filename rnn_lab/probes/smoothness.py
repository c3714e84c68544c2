"""How fast the gradient itself changes: what gradient clipping is said to be good for (Zhang et al. 2020)."""

from torch import Tensor

from rnn_lab import bptt, clipping
from rnn_lab.parameters import Parameters


def smoothness(
    theta: Parameters, before: Parameters, x: Tensor, y: Tensor, net: bptt.Net, buffers: bptt.Buffers, g: Parameters
) -> Tensor:
    """Local smoothness along the last update: ||g(theta) - g(before)|| / ||theta - before||, (*runs,), both on one mini-batch.

    Zhang et al. (ICLR 2020, appendix H) take the largest such quotient over points of the segment; this is its end point alone.
    g: dE/dtheta at theta.  buffers: overwritten.  NaN where the update moved nothing.
    Cost: one more update's time at the rows that have it.
    """
    old = theta.like()
    _, dE_do = bptt.objective(bptt.forward(before, x, net, buffers), y, net, buffers.late)
    bptt.backward(before, x, dE_do, net, buffers, old)
    change = clipping.norm(g.flat.double() - old.flat.double())
    return change / clipping.norm(theta.flat.double() - before.flat.double())
