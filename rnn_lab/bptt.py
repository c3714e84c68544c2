"""Backpropagation through time of a whole net: stacked recurrent layers, output, objective.

The objective is the batch mean of the mean (or the sum) of E_t over the steps that carry a loss: the last one, or every one. Nothing
builds an autograd graph; autograd is the oracle in the tests. All tensors carry leading run axes `(*runs, ...)`, none for a single run.
"""

from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor

from rnn_lab import recurrence
from rnn_lab.cells import Blocks, Cell
from rnn_lab.losses import Loss, before_start
from rnn_lab.parameters import Layer, Parameters
from rnn_lab.recurrence import Trace, runs_first
from rnn_lab.scaled import Scaled, scaled, value


class Loops(Protocol):
    """The loops through time of a layer, as `recurrence` has them."""

    def states(self, x: Tensor, weights: Layer, cell: Cell, trace: Trace, late: Tensor | None = None) -> None: ...
    def deltas(self, immediate: Tensor, W: Tensor, cell: Cell, trace: Trace, late: Tensor | None = None) -> None: ...
    def scaled_deltas(
        self, immediate: Scaled, W: Tensor, cell: Cell, trace: Trace, late: Tensor | None = None
    ) -> tuple[Scaled, Scaled, Scaled]: ...
    def gradients(self, x: Tensor, W: Tensor, cell: Cell, trace: Trace, grad: Layer) -> None: ...


@dataclass(frozen=True)
class Net:
    """What every run of a program shares: the cell, the loss, how many of the last steps carry it, and how they are reduced.

    loss_steps: L, 1 for a loss at the last step, T for one at every step. reduction: "mean" or "sum" over those steps.
    loops: `recurrence`, or the same fused.
    """

    cell: Cell
    loss: Loss
    loss_steps: int = 1
    reduction: str = "mean"
    loops: Loops = recurrence

    def weight(self, batch: int, late: Tensor | None = None) -> float | Tensor:
        """The factor of one example's E_t in the objective; (*runs,) where runs have true lengths of their own and every step a loss."""
        if self.reduction == "sum":
            return 1 / batch
        if late is None or self.loss_steps == 1:
            return 1 / (batch * self.loss_steps)
        return 1 / (batch * (self.loss_steps - late).double())


class Buffers:
    """Preallocated states and adjoints of one program: a trace for each layer, and what of it is named most, as lists over layers:
    h (*runs, T + 1, batch, hidden), h_0 = 0 unless `carry`; delta (*runs, T, batch, gates hidden); dE_dh (*runs, T, batch, hidden), which
    is kept at every step only if `keep_dE_dh`; otherwise all steps share the memory of one.

    late: how many steps each run sits out before the first of the mini-batch at hand, (*runs,), set by who draws it; None: none does.
    Sequences are right-aligned: the last step is common. Where a run sits out, its states, dE_dh and delta are 0.
    """

    late: Tensor | None = None

    def __init__(self, theta: Parameters, cell: Cell, T: int, batch: int, keep_dE_dh: bool = False):
        runs, hidden = tuple(theta.flat.shape[:-1]), theta.V.shape[-2]
        self.keep_dE_dh = keep_dE_dh
        self.traces = [Trace(cell, theta.flat.new_zeros, runs, T, batch, hidden, keep_dE_dh) for _ in theta.layers]
        self.h = [trace.s[0] for trace in self.traces]
        self.delta = [trace.delta for trace in self.traces]
        self.dE_dh = [trace.dE_ds[0][..., 1:, :, :] for trace in self.traces]

    @property
    def last_states(self) -> list[Tensor]:
        """s_T of each layer, block by block, (*runs, batch, hidden)."""
        return [block[..., -1, :, :] for trace in self.traces for block in trace.s]

    def carry(self) -> None:
        """s_0 = s_T of the sequences before, whose continuation comes next. Gradients don't go back there."""
        for trace in self.traces:
            for block in trace.s:
                block[..., 0, :, :] = block[..., -1, :, :]


@dataclass
class ScaledAdjoints:
    """Total gradients per layer as (mantissa, exponent): at every state (all its blocks in one vector, h first), at every z_t, and `sent`,
    what W's gradient is made of (delta itself but for a GRU and a user's own cell).
    """

    dE_ds: list[Scaled]
    delta: list[Scaled]
    sent: list[Scaled]
    blocks: int = 1

    def block(self, number: int) -> list[Scaled]:
        """dE/d(that block of the state): 0 is h, 1 an LSTM's c."""
        return [Scaled(d.mantissa.chunk(self.blocks, -1)[number], d.exponent) for d in self.dE_ds]

    @property
    def dE_dh(self) -> list[Scaled]:
        return self.block(0)


def forward(theta: Parameters, x: Tensor, net: Net, buffers: Buffers) -> Tensor:
    """Fills buffers.h layer by layer and returns the outputs o_t = h_t V + c of the last L steps, (*runs, L, batch, outputs)."""
    for layer, trace in zip(theta.layers, buffers.traces, strict=True):
        net.loops.states(x, layer, net.cell, trace, buffers.late)
        x = trace.s[0][..., 1:, :, :]
    return _times(x[..., -net.loss_steps :, :, :], theta.V) + theta.c.unsqueeze(-3)


def _times(h: Tensor, V: Tensor) -> Tensor:
    """h_t V, (*runs, L, batch, outputs). A batched product with a single column rounds differently for one run and for several: summed."""
    if V.shape[-1] == 1:
        return (h * V.transpose(-2, -1).unsqueeze(-3)).sum(-1, keepdim=True)
    return torch.matmul(h, V.unsqueeze(-3))


def losses(o: Tensor, y: Tensor, net: Net, late: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """E_t (*runs, L, batch) and dE_t/do_t, 0 at the steps that a run sits out. y: (*runs, L, batch, ...)."""
    E, dE_do = net.loss(o, y)
    if late is not None and net.loss_steps > 1:
        waiting = before_start(late, net.loss_steps)
        E, dE_do = E.masked_fill(waiting, 0), dE_do.masked_fill_(waiting.unsqueeze(-1), 0)
    return E, dE_do


def objective(o: Tensor, y: Tensor, net: Net, late: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The objective of each run (*runs,) and its gradient at the outputs, the batch mean's 1/B included. y: (*runs, L, batch, ...)."""
    E, dE_do = losses(o, y, net, late)
    weight = net.weight(o.shape[-2], late)
    if isinstance(weight, Tensor):
        weight = weight.to(o.dtype)
        return E.sum((-2, -1)) * weight, dE_do.mul_(weight[..., None, None, None])
    return E.sum((-2, -1)) * weight, dE_do.mul_(weight)


def output_gradients(h: Tensor, dE_do: Tensor, grads: Parameters) -> None:
    """dE/dV = sum_t h_t^T dE/do_t (deck: (yhat - y) outer h) and dE/dc. h: the states of the L steps that carry a loss."""
    states, errors = h.flatten(-3, -2), dE_do.flatten(-3, -2)
    grads.V.copy_(states.transpose(-2, -1) @ errors)
    grads.c.copy_(errors.sum(-2, keepdim=True))


def backward(theta: Parameters, x: Tensor, dE_do: Tensor, net: Net, buffers: Buffers, grads: Parameters) -> None:
    """Fills buffers.delta, buffers.dE_dh and all of `grads` from the states of the last `forward`."""
    output_gradients(buffers.h[-1][..., -net.loss_steps :, :, :], dE_do, grads)
    immediate = dE_do @ theta.V.transpose(-2, -1).unsqueeze(-3)
    for n in reversed(range(len(theta.layers))):
        layer, trace = theta.layers[n], buffers.traces[n]
        net.loops.deltas(immediate, layer.W, net.cell, trace, buffers.late)
        if n > 0:
            immediate = trace.delta @ layer.U.transpose(-2, -1).unsqueeze(-3)
    weight_gradients(theta, x, net, buffers, grads)


def weight_gradients(theta: Parameters, x: Tensor, net: Net, buffers: Buffers, grads: Parameters) -> None:
    """U, W and b of `grads`, layer by layer, from the states and deltas in `buffers`."""
    for layer, trace, grad in zip(theta.layers, buffers.traces, grads.layers, strict=True):
        net.loops.gradients(x, layer.W, net.cell, trace, grad)
        x = trace.s[0][..., 1:, :, :]


def scaled_backward(
    theta: Parameters, x: Tensor, dE_do: Tensor, net: Net, buffers: Buffers, grads: Parameters
) -> ScaledAdjoints:
    """`backward` with adjoints of any size. `grads` and buffers.delta receive the plain floats, bit for bit those of `backward` wherever
    those stay in the normal range; what it returns never under- or overflows.
    """
    output_gradients(buffers.h[-1][..., -net.loss_steps :, :, :], dE_do, grads)
    adjoints = scaled_adjoints(theta, dE_do, net, buffers)
    for n, trace in enumerate(buffers.traces):
        trace.delta.copy_(value(adjoints.delta[n]))
        if net.cell.sent:
            trace.sent.copy_(value(adjoints.sent[n]))
        if buffers.keep_dE_dh:
            buffers.dE_dh[n].copy_(value(adjoints.dE_dh[n]))
    weight_gradients(theta, x, net, buffers, grads)
    return adjoints


def scaled_adjoints(theta: Parameters, dE_do: Tensor, net: Net, buffers: Buffers) -> ScaledAdjoints:
    """The sweep of `scaled_backward`, which changes nothing. dE_do: of the last steps, as many as it has: its last one alone gives the
    gradients of E_T, whatever other steps carry a loss.
    """
    immediate = scaled(dE_do @ theta.V.transpose(-2, -1).unsqueeze(-3))
    adjoints = ScaledAdjoints([], [], [], net.cell.blocks)
    for n in reversed(range(len(theta.layers))):
        layer = theta.layers[n]
        found = net.loops.scaled_deltas(immediate, layer.W, net.cell, buffers.traces[n], buffers.late)
        for kept, own in zip((adjoints.dE_ds, adjoints.delta, adjoints.sent), found, strict=True):
            kept.insert(0, own)
        if n > 0:
            delta = adjoints.delta[0]
            below = scaled(delta.mantissa @ layer.U.transpose(-2, -1).unsqueeze(-3))
            immediate = Scaled(below.mantissa, below.exponent + delta.exponent)
    return adjoints


def truncated_backward(
    theta: Parameters, x: Tensor, dE_do: Tensor, net: Net, buffers: Buffers, grads: Parameters, K: int
) -> None:
    """`backward` of truncated BPTT: each E_t reaches steps t-K+1..t exactly and no further, in all layers. Fills buffers.delta and `grads`.

    The losses that reach a step change from step to step, so their adjoints are carried apart, one slot for each: slot t mod S, S =
    min(K, L), and a new E_t takes the place of the one that is K steps away. No chunks: with K = T it is `backward` to rounding.
    Cost: the recursion takes S times the time of `backward`'s, so 1 for a loss at the last step, K for one at every step.
    """
    output_gradients(buffers.h[-1][..., -net.loss_steps :, :, :], dE_do, grads)
    immediate = runs_first(dE_do @ theta.V.transpose(-2, -1).unsqueeze(-3), 3)
    T, L, slots = len(buffers.traces[0].steps), net.loss_steps, min(K, net.loss_steps)
    late = None if buffers.late is None else buffers.late.reshape(-1, 1, 1, 1)
    carried = [_slots(trace.steps[0].before, slots) for trace in buffers.traces]
    for k in reversed(range(T)):  # 0-based; carried: dE_t/ds_k, a slot for each E_t
        if k + K < T - L:  # none left
            for trace in buffers.traces:
                trace.delta[..., : k + 1, :, :] = trace.sent[..., : k + 1, :, :] = 0
            break
        if T - L <= k + K < T:
            for block in chain(*carried):
                block[:, (k + K) % slots] = 0
        if k >= T - L:
            carried[-1][0][:, k % slots] = immediate[:, k - (T - L)]
        for n in reversed(range(len(theta.layers))):
            if late is not None:
                for block in carried[n]:
                    block.masked_fill_(k < late, 0)
            U, W, _ = (runs_first(t, 2) for t in theta.layers[n])
            found = recurrence.back_for_each(carried[n], W.transpose(1, 2), net.cell, buffers.traces[n], k)
            for own, each in zip(buffers.traces[n].deltas[k], found, strict=True):
                own.copy_(each.sum(1))
            if n > 0:
                carried[n - 1][0].flatten(1, 2).add_(found[0].flatten(1, 2) @ U.transpose(1, 2))
    weight_gradients(theta, x, net, buffers, grads)


def _slots(blocks: Blocks, slots: int) -> Blocks:
    """Zeros (runs, slots, rows, hidden) for each block (runs, rows, hidden)."""
    return tuple(block.new_zeros(len(block), slots, *block.shape[1:]) for block in blocks)
