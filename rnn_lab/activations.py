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
    `of(a)` and `prime_of(a)` are phi(a) and phi'(a), both differentiable; phi' from a is right where h has saturated: 1 - h^2 is 0 there.
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor], Tensor]
    prime: Callable[[Tensor], Tensor]
    gamma: float
    of: Callable[[Tensor], Tensor]
    prime_of: Callable[[Tensor], Tensor]


def _sigmoid_prime(a: Tensor) -> Tensor:
    """e^-|a| / (1 + e^-|a|)^2."""
    e = torch.exp(-a.abs())
    return e / (1 + e).square()


ACTIVATIONS: dict[str, Activation] = {
    "sigmoid": Activation(
        apply=lambda a, out: torch.sigmoid(a, out=out),
        backward=lambda g, h, out: _aten.sigmoid_backward.grad_input(g, h, grad_input=out),
        prime=lambda h: h * (1 - h),
        gamma=0.25,
        of=torch.sigmoid,
        prime_of=_sigmoid_prime,
    ),
    "tanh": Activation(
        apply=lambda a, out: torch.tanh(a, out=out),
        backward=lambda g, h, out: _aten.tanh_backward.grad_input(g, h, grad_input=out),
        prime=lambda h: 1 - h * h,
        gamma=1.0,
        of=torch.tanh,
        prime_of=lambda a: 4 * _sigmoid_prime(2 * a),
    ),
    "relu": Activation(
        apply=lambda a, out: torch.clamp(a, min=0, out=out),
        backward=lambda g, h, out: _aten.threshold_backward.grad_input(g, h, 0, grad_input=out),
        prime=lambda h: torch.where(h.isnan(), h, (h > 0).to(h.dtype)),
        gamma=1.0,
        of=torch.relu,
        prime_of=lambda a: torch.where(a.isnan(), a, (a > 0).to(a.dtype)),
    ),
    "linear": Activation(
        apply=lambda a, out: out.copy_(a),
        backward=lambda g, h, out: out.copy_(g),
        prime=lambda h: torch.where(h.isnan(), h, 1.0),
        gamma=1.0,
        of=torch.clone,
        prime_of=lambda a: torch.where(a.isnan(), a, 1.0),
    ),
}
