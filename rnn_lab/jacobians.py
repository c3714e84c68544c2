"""The Jacobian of one step in time of a whole net, along a trajectory.

A layer's state is one vector, (*runs, batch, blocks hidden), h first; N is the size of the joint state of all layers. All is
differentiable. For Elman and leaky cells phi' is taken from a_t, since 1 - h_t^2 is an exact 0 for a saturated unit.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vjp

from rnn_lab.cells import Blocks, Cell, Elman
from rnn_lab.parameters import Layer

Local = tuple[Tensor, Tensor, Tensor]


def layer_step(layer: Layer, cell: Cell, x: Tensor, s: Tensor) -> Local:
    """s_t, ds_t/dx_t and ds_t/ds_{t-1} of one layer; [i, j] of a Jacobian is d(i-th of the new) / d(j-th of the old).

    x, s: (*runs, batch, features) -> (*runs, batch, n), (*runs, batch, n, inputs), (*runs, batch, n, n), n = blocks hidden.
    """
    *runs, batch, n = s.shape
    U, W, b = (weights.reshape(-1, *weights.shape[-2:]) for weights in layer)
    z = x.expand(*runs, batch, -1).reshape(len(W), batch, -1) @ U + b  # one x may drive all
    blocks = s.reshape(len(W), batch, n).chunk(cell.blocks, -1)
    by_z, by_state = _pointwise(cell, z, blocks[0], W) if isinstance(cell, Elman) else _pulled_back(cell, z, blocks, W)
    after = torch.cat(cell.step(z, blocks, W), -1)
    return after.view(s.shape), (by_z @ U.mT.unsqueeze(1)).view(*runs, batch, n, -1), by_state.view(*runs, batch, n, n)


def _pointwise(cell: Elman, z: Tensor, h: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
    """diag(phi'(a_t)) W^T (deck, "BPTT"); leaky units: (1 - leak) I + leak diag(phi'(a_t)) W^T."""
    prime = cell.phi.prime_of(z + h @ W)
    if cell.leak is None:
        return torch.diag_embed(prime), prime.unsqueeze(-1) * W.mT.unsqueeze(1)
    leak = cell.leak.to(h.dtype).view(-1, 1, 1)
    held, prime = torch.diag_embed((1 - leak).expand_as(h)), leak * prime
    return torch.diag_embed(prime), held + prime.unsqueeze(-1) * W.mT.unsqueeze(1)


def _pulled_back(cell: Cell, z: Tensor, s: Blocks, W: Tensor) -> tuple[Tensor, Tensor]:
    """Any cell: every unit vector of s_t, as rows, back through its `step` by torch.func.vjp."""
    runs, batch, _ = z.shape
    unit = torch.eye(sum(block.shape[-1] for block in s), dtype=z.dtype, device=z.device)
    rows = (row.repeat_interleave(len(unit), 1) for row in (z, *s))
    pull = vjp(lambda z, *s: torch.cat(cell.step(z, s, W), -1), *rows)[1]
    by_z, *by_state = pull(unit.repeat(runs, batch, 1))
    return by_z.unflatten(1, (batch, -1)), torch.cat(by_state, -1).unflatten(1, (batch, -1))


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
    Autonomous: inputs of zeros. Cost: as one step forward of N sequences; gated cells: forward and backward of N.
    """
    for t, x in enumerate(inputs):
        s, J = step(layers, cell, x, s)
        if late is not None:
            s = [state.masked_fill((t < late)[..., None, None], 0) for state in s]
        yield J
