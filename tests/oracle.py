"""The plain twin of the engine: a run, a step at a time, autograd for the gradients. Slow and obvious on purpose."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rnn_lab.config import Config
from rnn_lab.parameters import Parameters

PHI = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu, "linear": torch.clone}
LOSS = {
    "cross entropy": lambda o, y: F.cross_entropy(o, y, reduction="sum"),
    "squared error": lambda o, y: ((o - y) ** 2).sum(),
}


def make_config(values: dict[str, Any] | None = None) -> Config:
    """The default config with some dotted keys set: {"task.length": 10}."""
    config = Config()
    for key, value in (values or {}).items():
        *groups, name = key.split(".")
        node: Any = config
        for group in groups:
            node = getattr(node, group)
        assert name in {f.name for f in fields(node)}, key
        setattr(node, name, value)
    return config


def random_parameters(
    runs: tuple[int, ...],
    sizes: tuple[int, int, int],
    layers: int = 1,
    dtype: torch.dtype = torch.float64,
    gain: float = 1.0,
    seed: int = 0,
    gates: int = 1,
) -> Parameters:
    """Parameters of (inputs, hidden, outputs), every entry random, biases too; W (each gate's) has spectral radius about `gain`."""
    theta, rng = Parameters.zeros(runs, *sizes, layers, dtype, gates=gates), np.random.default_rng(seed)

    def fill(view: Tensor, std: float) -> None:
        view.copy_(torch.from_numpy(std * rng.standard_normal(view.shape)))

    for layer in theta.layers:
        fill(layer.U, 0.7)
        fill(layer.W, gain / sizes[1] ** 0.5)
        fill(layer.b, 0.3)
    fill(theta.V, 0.7)
    fill(theta.c, 0.3)
    return theta


def each_run(runs: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The indices of all runs; for runs = () the one index ()."""
    return product(*map(range, runs))


def weights(theta: Parameters, run: tuple[int, ...] = ()) -> dict[str, Tensor]:
    """One run's parameters, or its gradients, by name: U1 W1 b1 ... V c."""
    named = {f"{name}{n}": t for n, layer in enumerate(theta.layers, 1) for name, t in layer._asdict().items()}
    return {name: t[run].detach().clone() for name, t in (named | {"V": theta.V, "c": theta.c}).items()}


@dataclass
class Backpropagated:
    """What autograd says about one run; h, dE_dh and delta are (layers, T, batch, hidden), o is (T, batch, outputs)."""

    objective: Tensor
    o: Tensor
    h: Tensor
    dE_dh: Tensor
    delta: Tensor
    grads: dict[str, Tensor]


def forward(w: dict[str, Tensor], x: Tensor, phi: str) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """x (T, batch, inputs) -> a and h as lists (layer after layer, each T long) and o as a list of T."""
    a: list[Tensor] = []
    h: list[Tensor] = []
    below = list(x)
    layer = 1
    while f"W{layer}" in w:
        h_t = x.new_zeros(x.shape[1], w[f"W{layer}"].shape[0])
        states = []
        for x_t in below:
            a_t = x_t @ w[f"U{layer}"] + h_t @ w[f"W{layer}"] + w[f"b{layer}"]
            h_t = PHI[phi](a_t)
            a.append(a_t)
            states.append(h_t)
        h += states
        below = states
        layer += 1
    return a, h, [h_t @ w["V"] + w["c"] for h_t in below]


def backpropagate(w: dict[str, Tensor], x: Tensor, y: Tensor, phi: str, loss: str, reduction: str) -> Backpropagated:
    """Total derivatives, by autograd on the list of nodes; the loss is carried by the last len(y) steps."""
    w = {name: t.clone().requires_grad_() for name, t in w.items()}
    a, h, o = forward(w, x, phi)
    L, batch, T = len(y), x.shape[1], len(x)
    E = torch.stack([LOSS[loss](o_t, y_t) for o_t, y_t in zip(o[T - L :], y, strict=True)]).sum() / batch
    E = E / L if reduction == "mean" else E
    found = torch.autograd.grad(E, [*h, *a, *w.values()])
    n = len(h)

    def by_layer(steps) -> Tensor:
        return torch.stack(list(steps)).detach().unflatten(0, (-1, T))

    grads = dict(zip(w, found[2 * n :], strict=True))
    return Backpropagated(
        E.detach(), torch.stack(o).detach(), by_layer(h), by_layer(found[:n]), by_layer(found[n : 2 * n]), grads
    )
