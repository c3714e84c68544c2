"""One recurrent layer through time, whatever its cell: the loops, forward and backward.

Sequences are (*runs, time, batch, features), weights (*runs, in, out), biases (*runs, 1, out); `runs` is any number of leading axes, none
for a single run. Where `late` is given, (*runs,), it says how many steps each run sits out at the beginning: its states and its total
gradients are 0 there. None: no run does.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rnn_lab.cells import Blocks, Cell, Step
from rnn_lab.parameters import Layer
from rnn_lab.scaled import Scaled, add_, normalise_


def runs_first(x: Tensor, trailing: int) -> Tensor:
    """All leading run axes as one, as a view (`view` raises where that would need a copy)."""
    return x.view(-1, *x.shape[-trailing:])


class Trace:
    """A layer's preallocated states and adjoints, with h first among the blocks of a state, and s_0 = 0.

    s, dE_ds: a tensor (*runs, T + 1, batch, hidden) a block.  gates, kept, delta, sent: (*runs, T, batch, ...), see `Cell`.
    All steps of dE_ds share the memory of one if it isn't to be kept.
    Views, made once: steps, deltas (delta and sent) and d (dE/ds_0 first) of each step, their run axes as one; sequence: all steps, and
    whole: all steps as rows.
    """

    def __init__(
        self, cell: Cell, new: Callable[..., Tensor], runs: tuple[int, ...], T: int, batch: int, hidden: int, keep: bool
    ):
        self.s = tuple(new(*runs, T + 1, batch, hidden) for _ in range(cell.blocks))
        self.gates = self.s[0][..., 1:, :, :] if cell.in_place else new(*runs, T, batch, cell.gates * hidden)
        self.kept = tuple(new(*runs, T, batch, hidden) for _ in range(cell.kept))
        self.delta = new(*runs, T, batch, cell.gates * hidden)
        self.sent = new(*runs, T, batch, cell.sent * hidden) if cell.sent else self.delta
        own = [new(*runs, T + 1 if keep else 1, batch, hidden) for _ in range(cell.blocks)]
        self.dE_ds = tuple(block.expand(*runs, T + 1, batch, hidden) for block in own)

        before, after = (tuple(block[..., part, :, :] for block in self.s) for part in (slice(T), slice(1, T + 1)))
        self.sequence = Step(self.gates, before, after, self.kept)
        by_run = self.sequence.map(lambda x: runs_first(x, 3))
        self.whole = by_run.map(lambda x: x.flatten(1, 2))
        self.steps = [by_run.map(lambda x, t=t: x[:, t]) for t in range(T)]
        self.deltas = _by_step((runs_first(self.delta, 3), runs_first(self.sent, 3)))
        self.d = _by_step(tuple(runs_first(block, 3) for block in self.dE_ds))


def _by_step(blocks: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    return list(zip(*(block.unbind(1) for block in blocks), strict=True))


def _late(late: Tensor | None, T: int) -> tuple[int, Tensor | None]:
    """A number of steps after which no run sits out any more, and each run's own beside (runs, batch, hidden)."""
    if late is None:
        return 0, None
    most = T if late.is_cuda else int(late.max())  # a GPU is not asked, since that would be waiting for it
    return most, late.reshape(-1, 1, 1)


def states(x: Tensor, weights: Layer, cell: Cell, trace: Trace, late: Tensor | None = None) -> None:
    """Forward pass: s_t from z_t = x_t U + b and s_{t-1}, t = 1..T (deck, "Forward Pass"). Fills trace.s but for s_0, gates and kept."""
    waiting, late = _late(late, len(trace.steps))
    U, W, b = (runs_first(t, 2) for t in weights)
    z = trace.whole.gates
    z.copy_(b.expand(-1, z.shape[1], -1)).baddbmm_(runs_first(x, 3).flatten(1, 2), U)
    scratch = torch.empty_like(trace.steps[0].gates, memory_format=torch.contiguous_format)
    for t, at in enumerate(trace.steps):
        cell.forward(at, W, scratch)
        if late is not None and t < waiting:
            for block in at.after:
                block.masked_fill_(t < late, 0)


def deltas(immediate: Tensor, W: Tensor, cell: Cell, trace: Trace, late: Tensor | None = None) -> None:
    """Total gradients at the states and at z_t, last step first (deck, "BPTT"; P13 eqs 3-5).

    dE/dh_t = immediate_t + what step t + 1 sends back,  delta_t = dE/dz_t;  for Elman dE/dh_t = immediate_t + delta_{t+1} W^T.

    immediate: d+E/dh_t of the last L steps, (*runs, L, batch, hidden), L = 1 (loss at the last step) to T; the batch mean's 1/B is in it,
    and it is 0 where a run sits out. Fills trace.delta, sent and dE_ds.
    """
    waiting, late = _late(late, len(trace.steps))
    immediate, WT = runs_first(immediate, 3), runs_first(W, 2).transpose(1, 2)
    d, T, L = trace.d, len(trace.steps), immediate.shape[1]
    for block in d[T]:
        block.zero_()
    for t in range(T - 1, -1, -1):
        if t >= T - L:
            d[t + 1][0].add_(immediate[:, t - (T - L)])
        if late is not None and t < waiting:
            for block in d[t + 1]:
                block.masked_fill_(t < late, 0)
        delta, sent = trace.deltas[t]
        cell.backward(d[t + 1], trace.steps[t], WT, delta, sent, d[t])


def scaled_deltas(
    immediate: Scaled, W: Tensor, cell: Cell, trace: Trace, late: Tensor | None = None
) -> tuple[Scaled, Scaled, Scaled]:
    """`deltas` with every vector renormalised at each step, so that no length and no gain under- or overflows; `trace` is only read.

    Mantissas of `immediate` are shaped as in `deltas`, exponents (*runs, L, batch). Returns dE/ds_t (*runs, T, batch, blocks hidden), delta
    and sent (*runs, T, batch, ...), which share one exponent tensor.
    """
    waiting, late = _late(late, len(trace.steps))
    T, (batch, hidden) = len(trace.steps), trace.s[0].shape[-2:]
    others = (cell.blocks - 1) * hidden  # nothing but h is seen from outside
    given = F.pad(runs_first(immediate.mantissa, 3), (0, others)) if others else runs_first(immediate.mantissa, 3)
    given_e, WT = runs_first(immediate.exponent, 2), runs_first(W, 2).transpose(1, 2)
    d = given.new_zeros(len(given), T + 1, batch, cell.blocks * hidden)
    exponent = torch.zeros(len(given), T + 1, batch, dtype=torch.int32, device=d.device)
    delta = torch.empty_like(trace.delta)
    sent = torch.empty_like(trace.sent) if cell.sent else delta
    delta_steps, sent_steps, L = runs_first(delta, 3).unbind(1), runs_first(sent, 3).unbind(1), given.shape[1]
    carried = [Scaled(*step) for step in zip(d.unbind(1), exponent.unbind(1), strict=True)]
    for t in range(T - 1, -1, -1):
        total = normalise_(carried[t + 1])
        if t >= T - L:
            add_(total, Scaled(given[:, t - (T - L)], given_e[:, t - (T - L)]))
        if late is not None and t < waiting:
            total.mantissa.masked_fill_(t < late, 0)
        carried[t].exponent.copy_(total.exponent)
        before = carried[t].mantissa.chunk(cell.blocks, -1)
        cell.backward(total.mantissa.chunk(cell.blocks, -1), trace.steps[t], WT, delta_steps[t], sent_steps[t], before)
    runs = trace.delta.shape[:-3]
    shared = exponent.view(*runs, T + 1, batch)[..., 1:, :]
    total = Scaled(delta, shared)
    return (
        Scaled(d.view(*runs, T + 1, batch, -1)[..., 1:, :, :], shared),
        total,
        Scaled(sent, shared) if cell.sent else total,
    )


def back_for_each(d: Blocks, WT: Tensor, cell: Cell, trace: Trace, t: int) -> tuple[Tensor, Tensor]:
    """One step back for several losses side by side, as rows: delta and sent of 0-based step t, (runs, losses, batch, ...) each.

    d: the adjoints dE/ds_t of every loss, (runs, losses, batch, hidden) a block, which dE/ds_{t-1} replaces.
    """
    losses, at = d[0].shape[1], trace.steps[t]
    if losses > 1:
        at = at.map(lambda x: x.repeat(1, losses, 1))
    delta, sent = (own.new_empty(len(own), losses * own.shape[1], own.shape[2]) for own in trace.deltas[t])
    rows = tuple(block.flatten(1, 2) for block in d)
    cell.backward(rows, at, WT, delta, sent, rows)
    delta, sent = (own.unflatten(1, (losses, -1)) for own in (delta, sent if cell.sent else delta))
    return delta, sent


def gradients(x: Tensor, W: Tensor, cell: Cell, trace: Trace, grad: Layer) -> None:
    """dE/dU = sum_t x_t^T delta_t,  dE/dW = sum_t h_{t-1}^T sent_t,  dE/db = sum_t delta_t (deck, "BPTT" and its homework).

    sent is delta for an Elman net. delta carries the batch mean's 1/B, so the sum over the batch is the gradient of the mean.
    """
    dU, dW, db = (runs_first(t, 2) for t in grad)
    delta, sent = (runs_first(t, 3).flatten(1, 2) for t in (trace.delta, trace.sent))
    dU.baddbmm_(runs_first(x, 3).flatten(1, 2).transpose(1, 2), delta, beta=0)
    cell.weight_gradient(trace.whole, sent, runs_first(W, 2), dW)
    db.copy_(delta.sum(1, keepdim=True))
