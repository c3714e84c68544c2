"""Backpropagation through time of a whole net: stacked recurrent layers, output, objective.

The objective is the batch mean of the mean (or the sum) of E_t over the steps that carry a loss: the last one, or every one. Nothing
builds an autograd graph; autograd is the oracle in the tests. All tensors carry leading run axes `(*runs, ...)`, none for a single run.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rnn_lab.activations import Activation
from rnn_lab.cells import elman
from rnn_lab.losses import Loss
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

    def weight(self, batch: int) -> float:
        """The factor of one example's E_t in the objective."""
        return 1 / batch if self.reduction == "sum" else 1 / (batch * self.loss_steps)


class Buffers:
    """Preallocated states and adjoints of one program: h (*runs, T + 1, batch, hidden) and delta (*runs, T, batch, hidden), a list over
    layers, h_0 = 0. dE_dh is kept at every step only if `keep_dE_dh`; otherwise all steps share the memory of one.
    """

    def __init__(self, theta: Parameters, T: int, batch: int, keep_dE_dh: bool = False):
        runs, hidden = theta.flat.shape[:-1], theta.V.shape[-2]
        new, layers = theta.flat.new_zeros, range(len(theta.layers))
        self.h = [new(*runs, T + 1, batch, hidden) for _ in layers]
        self.delta = [new(*runs, T, batch, hidden) for _ in layers]
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
        elman.states(x, layer.U, layer.W, layer.b, net.phi, h)
        x = h[..., 1:, :, :]
    return torch.matmul(x[..., -net.loss_steps :, :, :], theta.V.unsqueeze(-3)) + theta.c.unsqueeze(-3)


def objective(o: Tensor, y: Tensor, net: Net) -> tuple[Tensor, Tensor]:
    """The objective of each run (*runs,) and its gradient at the outputs, the batch mean's 1/B included. y: (*runs, L, batch, ...)."""
    E, dE_do = net.loss(o, y)
    weight = net.weight(o.shape[-2])
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
        elman.deltas(immediate, h, layer.W, net.phi, buffers.dE_dh[n], delta)
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
    immediate = scaled(dE_do @ theta.V.transpose(-2, -1).unsqueeze(-3))
    adjoints = ScaledAdjoints([], [])
    for n in reversed(range(len(theta.layers))):
        layer, grad, h, delta = theta.layers[n], grads.layers[n], buffers.h[n], buffers.delta[n]
        exponent = torch.zeros(delta.shape[:-1], dtype=torch.int32, device=delta.device)
        dE_dh, total = Scaled(torch.empty_like(delta), exponent), Scaled(torch.empty_like(delta), exponent)
        elman.scaled_deltas(immediate, h, layer.W, net.phi, dE_dh, total)
        adjoints.dE_dh.insert(0, dE_dh)
        adjoints.delta.insert(0, total)
        delta.copy_(value(total))
        elman.gradients(x if n == 0 else buffers.h[n - 1][..., 1:, :, :], h, delta, grad.U, grad.W, grad.b)
        if n > 0:
            below = scaled(total.mantissa @ layer.U.transpose(-2, -1).unsqueeze(-3))
            immediate = Scaled(below.mantissa, below.exponent + total.exponent)
    return adjoints
