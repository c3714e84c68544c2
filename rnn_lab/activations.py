"""Activations phi and their derivatives, written for preallocated buffers."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """One activation phi.

    `apply(a, out)` writes out = h = phi(a).
    `backward(g, h, out)` writes out = phi'(a) * g, with phi' taken from h = phi(a).
    `prime(h)` is phi'(a), again from h.
    `gamma` is sup |phi'| (P13, section 2.1: 1 for tanh, 1/4 for sigmoid).
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor], Tensor]
    prime: Callable[[Tensor], Tensor]
    gamma: float


ACTIVATIONS: dict[str, Activation] = {
    "sigmoid": Activation(
        apply=lambda a, out: torch.sigmoid(a, out=out),
        backward=lambda g, h, out: _aten.sigmoid_backward.grad_input(g, h, grad_input=out),
        prime=lambda h: h * (1 - h),
        gamma=0.25,
    ),
    "tanh": Activation(
        apply=lambda a, out: torch.tanh(a, out=out),
        backward=lambda g, h, out: _aten.tanh_backward.grad_input(g, h, grad_input=out),
        prime=lambda h: 1 - h * h,
        gamma=1.0,
    ),
    "relu": Activation(
        apply=lambda a, out: torch.clamp(a, min=0, out=out),
        backward=lambda g, h, out: _aten.threshold_backward.grad_input(g, h, 0, grad_input=out),
        prime=lambda h: torch.where(h.isnan(), h, (h > 0).to(h.dtype)),
        gamma=1.0,
    ),
    "linear": Activation(
        apply=lambda a, out: out.copy_(a),
        backward=lambda g, h, out: out.copy_(g),
        prime=lambda h: torch.where(h.isnan(), h, 1.0),
        gamma=1.0,
    ),
}
