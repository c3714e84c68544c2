"""The Jacobian of one step in time of a whole net, along a trajectory.

A layer's state is one vector, (*runs, batch, blocks hidden), h first; N is the size of the joint state of all layers. For Elman and leaky
cells all is differentiable, and phi' is taken from a_t, since 1 - h_t^2 is an exact 0 for a saturated unit.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rnn_lab.cells import Cell, Elman, Step
from rnn_lab.parameters import Layer

Local = tuple[Tensor, Tensor, Tensor]


def layer_step(layer: Layer, cell: Cell, x: Tensor, s: Tensor) -> Local:
    """s_t, ds_t/dx_t and ds_t/ds_{t-1} of one layer; [i, j] of a Jacobian is d(i-th of the new) / d(j-th of the old).

    x, s: (*runs, batch, features) -> (*runs, batch, n), (*runs, batch, n, inputs), (*runs, batch, n, n), n = blocks hidden.
    """
    return _pointwise(layer, cell, x, s) if isinstance(cell, Elman) else _pulled_back(layer, cell, x, s)


def _pointwise(layer: Layer, cell: Elman, x: Tensor, h: Tensor) -> Local:
    """diag(phi'(a_t)) W^T (deck, "BPTT"); leaky units: (1 - leak) I + leak diag(phi'(a_t)) W^T."""
    a = x @ layer.U + h @ layer.W + layer.b
    after, prime = cell.phi.of(a), cell.phi.prime_of(a).unsqueeze(-1)
    by_input, by_state = prime * layer.U.mT.unsqueeze(-3), prime * layer.W.mT.unsqueeze(-3)
    if cell.leak is None:
        return after, by_input, by_state
    leak = cell.leak.to(h.dtype)[..., None, None]
    held = torch.diag_embed((1 - leak).expand_as(h))
    return torch.lerp(h, after, leak), leak.unsqueeze(-1) * by_input, held + leak.unsqueeze(-1) * by_state


def _pulled_back(layer: Layer, cell: Cell, x: Tensor, s: Tensor) -> Local:
    """Any cell: every unit vector of s_t, as rows, through its own backward step."""
    *runs, batch, n = s.shape
    hidden, inputs = layer.W.shape[-2], layer.U.shape[-2]
    W = layer.W.reshape(-1, hidden, cell.gates * hidden)

    def new(rows: int, blocks: int) -> Tensor:
        return s.new_empty(len(W), rows, blocks * hidden)

    def separate(joint: Tensor) -> tuple[Tensor, ...]:
        return tuple(block.contiguous() for block in joint.chunk(cell.blocks, -1))

    z = (x @ layer.U + layer.b).reshape(len(W), batch, -1)
    after, kept = (tuple(new(batch, 1) for _ in range(count)) for count in (cell.blocks, cell.kept))
    at = Step(z, separate(s.reshape(len(W), batch, n)), after, kept)
    cell.forward(at, W, torch.empty_like(z))
    rows = batch * n
    unit = separate(torch.eye(n, dtype=s.dtype, device=s.device).repeat(len(W), batch, 1))
    before, delta = tuple(new(rows, 1) for _ in unit), new(rows, cell.gates)
    sent = new(rows, cell.sent) if cell.sent else delta
    cell.backward(unit, at.map(lambda t: t.repeat_interleave(n, 1)), W.mT, delta, sent, before)
    by_input = (delta @ layer.U.reshape(len(W), inputs, -1).mT).view(*runs, batch, n, inputs)
    return torch.cat(after, -1).view(*runs, batch, n), by_input, torch.cat(before, -1).view(*runs, batch, n, n)


def step(layers: Sequence[Layer], cell: Cell, x: Tensor, s: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """One step of a stacked net: the new state of each layer, and the Jacobian of the joint state, (*runs, batch, N, N).

    The layer nearest the input comes first. A layer sees h of the one below at the same t.
    """
    after, rows = [], []
    for number, (layer, own) in enumerate(zip(layers, s, strict=True)):
        new, by_input, by_state = layer_step(layer, cell, x, own)
        n, hidden = new.shape[-1], layer.W.shape[-2]
        row = F.pad(by_state, (number * n, (len(layers) - number - 1) * n))
        rows.append(row + by_input @ rows[-1][..., :hidden, :] if rows else row)
        after.append(new)
        x = new[..., :hidden]
    return after, torch.cat(rows, -2)


def at_rest(layers: Sequence[Layer], cell: Cell, x: Tensor) -> list[Tensor]:
    """s_0 = 0 of each layer, for inputs x (*runs, T, batch, inputs)."""
    return [x.new_zeros(*x.shape[:-3], x.shape[-2], cell.blocks * layer.W.shape[-2]) for layer in layers]


def along(
    layers: Sequence[Layer],
    cell: Cell,
    inputs: Iterable[Tensor],
    s: Sequence[Tensor],
    late: Tensor | None = None,
) -> Iterator[Tensor]:
    """`step`'s Jacobian at t = 1, 2 ... for each x_t of `inputs`, (*runs, batch, inputs), from s_0 = s, a state for each layer.

    late: how many steps each run sits out at the beginning, its state held at 0, (*runs,); None: none does. Their Jacobians mean nothing.
    Autonomous: inputs of zeros. Cost: as one step forward of N sequences; gated cells: as one step backward of N.
    """
    for t, x in enumerate(inputs):
        s, J = step(layers, cell, x, s)
        if late is not None:
            s = [state.masked_fill((t < late)[..., None, None], 0) for state in s]
        yield J
