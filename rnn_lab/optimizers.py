"""Optimisers over whole parameter vectors (*runs, P), with settings (*runs,) for each run.

Each changes theta and its state in place: `update_(theta, g, *state, **settings)`, and follows torch.optim to the letter. An entry whose
square float32 cannot hold (|g| > 1.8e19, unclipped) makes `rmsprop_` and `adam_` divide by infinity: it stops moving, as in torch.optim.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def _each(setting: Tensor, theta: Tensor) -> Tensor:
    """A setting of each run, (*runs,), beside vectors (*runs, P)."""
    return setting.to(theta.dtype).unsqueeze(-1)


def sgd_(theta: Tensor, g: Tensor, lr: Tensor) -> None:
    """theta -= lr g. lr: (*runs,)."""
    theta.addcmul_(g, _each(lr, theta), value=-1)


def momentum_(theta: Tensor, g: Tensor, velocity: Tensor, lr: Tensor, momentum: Tensor) -> None:
    """v = mu v + g,  theta -= lr v (Polyak's heavy ball, as torch.optim.SGD writes it: lr is outside v)."""
    velocity.mul_(_each(momentum, theta)).add_(g)
    theta.addcmul_(velocity, _each(lr, theta), value=-1)


def rmsprop_(theta: Tensor, g: Tensor, square: Tensor, lr: Tensor, decay: Tensor, epsilon: Tensor) -> None:
    """s = d s + (1 - d) g^2,  theta -= lr g / (sqrt(s) + eps) (Tieleman & Hinton 2012)."""
    square.mul_(_each(decay, theta)).add_(g * g * _each(1 - decay, theta))
    theta.sub_(g / (square.sqrt() + _each(epsilon, theta)) * _each(lr, theta))


def adam_(
    theta: Tensor, g: Tensor, mean: Tensor, square: Tensor, updates: Tensor,
    lr: Tensor, beta1: Tensor, beta2: Tensor, epsilon: Tensor,
) -> None:  # fmt: skip
    """m = b1 m + (1 - b1) g,  s = b2 s + (1 - b2) g^2,  theta -= lr m / (1 - b1^n) / (sqrt(s / (1 - b2^n)) + eps) (Kingma & Ba 2015).

    updates: n, how many this run has had, (*runs, 1) float64.
    """
    updates += 1
    n = updates.squeeze(-1)
    mean.mul_(_each(beta1, theta)).add_(g * _each(1 - beta1, theta))
    square.mul_(_each(beta2, theta)).add_(g * g * _each(1 - beta2, theta))
    denominator = square.sqrt().div_(_each((1 - beta2**n).sqrt(), theta)).add_(_each(epsilon, theta))
    theta.sub_(mean / denominator * _each(lr / (1 - beta1**n), theta))


class Optimizer(NamedTuple):
    """update_: theta and state in place.  settings: the names of its keywords.  state: zeros (*runs, ...) to start from, for a theta."""

    update_: Callable[..., None]
    settings: tuple[str, ...]
    state: Callable[[Tensor], tuple[Tensor, ...]]


def _count(theta: Tensor) -> Tensor:
    return theta.new_zeros(*theta.shape[:-1], 1, dtype=torch.float64)


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Optimizer(sgd_, ("lr",), lambda theta: ()),
    "momentum": Optimizer(momentum_, ("lr", "momentum"), lambda theta: (torch.zeros_like(theta),)),
    "rmsprop": Optimizer(rmsprop_, ("lr", "decay", "epsilon"), lambda theta: (torch.zeros_like(theta),)),
    "adam": Optimizer(
        adam_,
        ("lr", "beta1", "beta2", "epsilon"),
        lambda theta: (torch.zeros_like(theta), torch.zeros_like(theta), _count(theta)),
    ),
}


def update_(
    optimizer: Optimizer,
    theta: Tensor,
    g: Tensor,
    state: tuple[Tensor, ...],
    settings: dict[str, Tensor],
    active: Tensor | NDArray[np.bool_],
) -> None:
    """One update of the runs where `active` (*runs,) is true; the parameters and the state of the others are not touched."""
    if active.all():
        return optimizer.update_(theta, g, *state, **settings)
    active, in_place = torch.as_tensor(active), (theta, *state)
    copies = [tensor[active] for tensor in in_place]
    moving, *its_state = copies
    optimizer.update_(moving, g[active], *its_state, **{name: each[active] for name, each in settings.items()})
    for tensor, copy in zip(in_place, copies, strict=True):
        tensor[active] = copy
