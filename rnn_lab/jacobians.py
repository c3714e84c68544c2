"""The Jacobian of one step in time of a whole net, along a trajectory.

Everything here is differentiable and works at any dtype: phi' is taken from a_t, since 1 - h_t^2 is an exact 0 for a saturated unit.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rnn_lab.activations import Activation
from rnn_lab.parameters import Layer


def layer_step(layer: Layer, phi: Activation, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """h_t = phi(x_t U + h_{t-1} W + b), and diag(phi'(a_t)) U^T = dh_t/dx_t, diag(phi'(a_t)) W^T = dh_t/dh_{t-1} (deck, "BPTT").

    x, h: (*runs, batch, features) -> (*runs, batch, hidden), (*runs, batch, hidden, inputs), (*runs, batch, hidden, hidden).
    """
    a = x @ layer.U + h @ layer.W + layer.b
    prime = phi.prime_of(a).unsqueeze(-1)
    return phi.of(a), prime * layer.U.mT.unsqueeze(-3), prime * layer.W.mT.unsqueeze(-3)


def step(layers: Sequence[Layer], phi: Activation, x: Tensor, h: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """One step of a stacked net: the new state of each layer, and the Jacobian of the joint state, (*runs, batch, N, N).

    N = layers * hidden, the layer nearest the input first. [i, j] is dh_t,i / dh_{t-1},j; a layer sees those below at the same t.
    """
    after, rows = [], []
    for n, (layer, own) in enumerate(zip(layers, h, strict=True)):
        x, by_input, by_state = layer_step(layer, phi, x, own)
        hidden = by_state.shape[-1]
        row = F.pad(by_state, (n * hidden, (len(layers) - n - 1) * hidden))
        rows.append(row + by_input @ rows[-1] if rows else row)
        after.append(x)
    return after, torch.cat(rows, -2)


def along(
    layers: Sequence[Layer],
    phi: Activation,
    inputs: Iterable[Tensor],
    h: Sequence[Tensor],
    late: Tensor | None = None,
) -> Iterator[Tensor]:
    """`step`'s Jacobian at t = 1, 2 ... for each x_t of `inputs`, (*runs, batch, inputs), from h_0 = h, a state for each layer.

    late: how many steps each run sits out at the beginning, its state held at 0, (*runs,); None: none does. Their Jacobians mean nothing.
    Autonomous: inputs of zeros. Cost: as one step forward of N sequences.
    """
    for t, x in enumerate(inputs):
        h, J = step(layers, phi, x, h)
        if late is not None:
            h = [state.masked_fill((t < late)[..., None, None], 0) for state in h]
        yield J
