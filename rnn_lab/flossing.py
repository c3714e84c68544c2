"""Gradient flossing: pushes the first Lyapunov exponents to 0, so that as many directions neither vanish nor explode (Engelken 2023).

Steps of their own, before training or between its updates, with Adam on U, W and b; V and c have no part in it. By autograd through the
QR of the Jacobians and through the trajectory they are taken along, for every cell: the exponents are those of its whole state, an LSTM's c
included.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnn_lab import jacobians, lyapunov, optimizers, vectorize
from rnn_lab.cells import Cell
from rnn_lab.config import Config
from rnn_lab.parameters import Layer, Parameters
from rnn_lab.tasks import Task

SEQUENCES = 2  # in a step
ADAM = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}


def loss(layers: list[Layer], cell: Cell, x: Tensor, n: int, late: Tensor | None = None) -> Tensor:
    """The mean over the first n directions and over sequences of lambda_i^2, (*runs,); nats^2.

    lambda_i is the mean of ln |R_ii| over the steps of x (*runs, window, batch, inputs), from h_0 = 0 and always the same basis Q_0. late:
    how many of the steps each run sits out, (*runs,). Differentiable; a lost direction (a ReLU net with fewer than n active units) is inf.
    """
    window = x.shape[-3]
    h = jacobians.at_rest(layers, cell, x)
    growth = torch.stack(list(lyapunov.log_growth(jacobians.along(layers, cell, x.unbind(-3), h, late), n)))
    first = (
        torch.zeros(x.shape[:-3], dtype=torch.int64, device=x.device) if late is None else late.clamp(max=window - 1)
    )
    return lyapunov.mean_from(growth, first).square().mean((-2, -1))


def floss_(
    theta: Parameters,
    cell: Cell,
    draw: Callable[[], tuple[Tensor, Tensor | None]],
    steps: int,
    n: int,
    lr: Tensor,
    active: NDArray[np.bool_],
) -> Tensor:
    """That many steps of Adam on `loss`, in place, for the runs where `active` (*runs,); their losses before each, (steps, *runs), float64.

    draw: gives x and late of the next step. lr: (*runs,). A run's NaN is its own. Cost of a step: about a QR of n columns and twice that
    backward, for each time step and sequence: with 2 sequences of 50 steps, n = 10 and 50 units about 8 updates' time.
    """
    adam, grads = optimizers.OPTIMIZERS["adam"], theta.like()
    state, found = adam.state(theta.flat), []
    settings = {"lr": lr} | {name: torch.full_like(lr, value) for name, value in ADAM.items()}
    for _ in range(steps):
        layers = [Layer(*(w.double().clone().requires_grad_() for w in layer)) for layer in theta.layers]
        x, late = draw()
        value = loss(layers, cell, x.double(), n, late)
        into = [g for layer in grads.layers for g in layer]
        for g, gradient in zip(
            into, torch.autograd.grad(value.sum(), [w for layer in layers for w in layer]), strict=True
        ):
            g.copy_(gradient)
        found.append(value.detach())
        optimizers.update_(adam, theta.flat, grads.flat, state, settings, active)
    return torch.stack(found)


def due(config: Config, step: int) -> bool:
    """Whether there are such steps before update step + 1: before the first and, if so configured, every `flossing.every`."""
    every = config.flossing.every
    return config.flossing.name != "none" and (step == 0 or (every is not None and step % every == 0))


def floss(
    configs: list[Config], step: int, task: Task, theta: Parameters, cell: Cell, active: NDArray[np.bool_]
) -> dict[str, Tensor]:
    """The steps that the configs ask for, on fresh sequences (of these their last `flossing.window` time steps) from streams of their own.

    flossing/loss_first, flossing/loss_last: the losses before the first and before the last step, each on its own sequences, (runs,).
    """
    first, device, T = configs[0].flossing, str(theta.flat.device), task.steps
    rngs = [vectorize.flossing_rng(c.seed, step) for c in configs]
    batches = vectorize.mini_batches(task, rngs, SEQUENCES, theta.flat.dtype, device)

    def draw() -> tuple[Tensor, Tensor | None]:
        x = batches.draw()[0][..., -first.window :, :, :]
        return x, None if batches.late is None else (batches.late - (T - x.shape[-3])).clamp(min=0)

    lr = vectorize.per_run([c.flossing.lr for c in configs], device)
    losses = floss_(theta, cell, draw, first.steps, first.exponents, lr, active)
    return {"flossing/loss_first": losses[0], "flossing/loss_last": losses[-1]}
