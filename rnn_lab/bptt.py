"""Backpropagation through time of a whole net: stacked recurrent layers, output, objective.

The objective is the batch mean of the mean (or the sum) of E_t over the steps that carry a loss: the last one, or every one. Nothing
builds an autograd graph; autograd is the oracle in the tests. All tensors carry leading run axes `(*runs, ...)`, none for a single run.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rnn_lab.activations import Activation
from rnn_lab.cells import elman
from rnn_lab.losses import Loss, before_start
from rnn_lab.parameters import Parameters
from rnn_lab.scaled import Scaled, scaled, value


@dataclass(frozen=True)
class Net:
    """What every run of a program shares: phi, the loss, how many of the last steps carry it, and how they are reduced.

    loss_steps: L, 1 for a loss at the last step, T for one at every step. reduction: "mean" or "sum" over those steps.
    """

    phi: Activation
    loss: Loss
    loss_steps: int = 1
    reduction: str = "mean"

    def weight(self, batch: int, late: Tensor | None = None) -> float | Tensor:
        """The factor of one example's E_t in the objective; (*runs,) where runs have true lengths of their own and every step a loss."""
        if self.reduction == "sum":
            return 1 / batch
        if late is None or self.loss_steps == 1:
            return 1 / (batch * self.loss_steps)
        return 1 / (batch * (self.loss_steps - late).double())


class Buffers:
    """Preallocated states and adjoints of one program: h (*runs, T + 1, batch, hidden) and delta (*runs, T, batch, hidden), a list over
    layers, h_0 = 0. dE_dh is kept at every step only if `keep_dE_dh`; otherwise all steps share the memory of one.

    late: how many steps each run sits out before the first of the mini-batch at hand, (*runs,), set by who draws it; None: none does.
    Sequences are right-aligned: the last step is common. Where a run sits out, its states, dE_dh and delta are 0.
    """

    late: Tensor | None = None

    def __init__(self, theta: Parameters, T: int, batch: int, keep_dE_dh: bool = False):
        runs, hidden = theta.flat.shape[:-1], theta.V.shape[-2]
        new, layers = theta.flat.new_zeros, range(len(theta.layers))
        self.h = [new(*runs, T + 1, batch, hidden) for _ in layers]
        self.delta = [new(*runs, T, batch, hidden) for _ in layers]
        self.keep_dE_dh = keep_dE_dh
        kept = [new(*runs, T if keep_dE_dh else 1, batch, hidden) for _ in layers]
        self.dE_dh = [k.expand(*runs, T, batch, hidden) for k in kept]


@dataclass
class ScaledAdjoints:
    """Total gradients at every state and pre-activation, per layer, as (mantissa, exponent)."""

    dE_dh: list[Scaled]
    delta: list[Scaled]


def forward(theta: Parameters, x: Tensor, net: Net, buffers: Buffers) -> Tensor:
    """Fills buffers.h layer by layer and returns the outputs o_t = h_t V + c of the last L steps, (*runs, L, batch, outputs)."""
    for layer, h in zip(theta.layers, buffers.h, strict=True):
        elman.states(x, layer.U, layer.W, layer.b, net.phi, h, buffers.late)
        x = h[..., 1:, :, :]
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
        layer, grad, h, delta = theta.layers[n], grads.layers[n], buffers.h[n], buffers.delta[n]
        elman.deltas(immediate, h, layer.W, net.phi, buffers.dE_dh[n], delta, buffers.late)
        elman.gradients(x if n == 0 else buffers.h[n - 1][..., 1:, :, :], h, delta, grad.U, grad.W, grad.b)
        if n > 0:
            immediate = delta @ layer.U.transpose(-2, -1).unsqueeze(-3)


def scaled_backward(
    theta: Parameters, x: Tensor, dE_do: Tensor, net: Net, buffers: Buffers, grads: Parameters
) -> ScaledAdjoints:
    """`backward` with adjoints of any size. `grads` and buffers.delta receive the plain floats, bit for bit those of `backward` wherever
    those stay in the normal range; what it returns never under- or overflows.
    """
    output_gradients(buffers.h[-1][..., -net.loss_steps :, :, :], dE_do, grads)
    adjoints = scaled_adjoints(theta, dE_do, net, buffers)
    for n, (dE_dh, total) in enumerate(zip(adjoints.dE_dh, adjoints.delta, strict=True)):
        grad, h, delta = grads.layers[n], buffers.h[n], buffers.delta[n]
        delta.copy_(value(total))
        if buffers.keep_dE_dh:
            buffers.dE_dh[n].copy_(value(dE_dh))
        elman.gradients(x if n == 0 else buffers.h[n - 1][..., 1:, :, :], h, delta, grad.U, grad.W, grad.b)
    return adjoints


def scaled_adjoints(theta: Parameters, dE_do: Tensor, net: Net, buffers: Buffers) -> ScaledAdjoints:
    """The sweep of `scaled_backward`, which changes nothing. dE_do: of the last steps, as many as it has: its last one alone gives the
    gradients of E_T, whatever other steps carry a loss.
    """
    immediate = scaled(dE_do @ theta.V.transpose(-2, -1).unsqueeze(-3))
    adjoints = ScaledAdjoints([], [])
    for n in reversed(range(len(theta.layers))):
        layer, h, delta = theta.layers[n], buffers.h[n], buffers.delta[n]
        exponent = torch.zeros(delta.shape[:-1], dtype=torch.int32, device=delta.device)
        dE_dh, total = Scaled(torch.empty_like(delta), exponent), Scaled(torch.empty_like(delta), exponent)
        elman.scaled_deltas(immediate, h, layer.W, net.phi, dE_dh, total, buffers.late)
        adjoints.dE_dh.insert(0, dE_dh)
        adjoints.delta.insert(0, total)
        if n > 0:
            below = scaled(total.mantissa @ layer.U.transpose(-2, -1).unsqueeze(-3))
            immediate = Scaled(below.mantissa, below.exponent + total.exponent)
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
    immediate = dE_do @ theta.V.transpose(-2, -1).unsqueeze(-3)
    T, L, slots = buffers.delta[0].shape[-3], net.loss_steps, min(K, net.loss_steps)
    carried = [immediate.new_zeros(*immediate.shape[:-3], slots, *immediate.shape[-2:]) for _ in theta.layers]
    for k in reversed(range(T)):  # 0-based; carried: dE_t/dh_k, a slot for each E_t
        if k + K < T - L:  # none left
            for delta in buffers.delta:
                delta[..., : k + 1, :, :] = 0
            break
        if T - L <= k + K < T:
            for dE_dh in carried:
                dE_dh[..., (k + K) % slots, :, :] = 0
        if k >= T - L:
            carried[-1][..., k % slots, :, :] = immediate[..., k - (T - L), :, :]
        for n in reversed(range(len(theta.layers))):
            if buffers.late is not None:
                carried[n].masked_fill_((k < buffers.late)[..., None, None, None], 0)
            layer, h_k, dE_da = theta.layers[n], buffers.h[n][..., k + 1, :, :], torch.empty_like(carried[n])
            net.phi.backward(carried[n], h_k.unsqueeze(-3).expand_as(dE_da), dE_da)
            buffers.delta[n][..., k, :, :] = dE_da.sum(-3)
            if n > 0:
                carried[n - 1] += dE_da @ layer.U.transpose(-2, -1).unsqueeze(-3)
            carried[n] = dE_da @ layer.W.transpose(-2, -1).unsqueeze(-3)
    for n, (grad, h, delta) in enumerate(zip(grads.layers, buffers.h, buffers.delta, strict=True)):
        elman.gradients(x if n == 0 else buffers.h[n - 1][..., 1:, :, :], h, delta, grad.U, grad.W, grad.b)
