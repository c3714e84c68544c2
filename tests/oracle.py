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
Blocks = tuple[Tensor, ...]
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


def elman(z: Tensor, s: Blocks, W: Tensor, phi: str, leak: float) -> Blocks:
    return (PHI[phi](z + s[0] @ W),)


def leaky(z: Tensor, s: Blocks, W: Tensor, phi: str, leak: float) -> Blocks:
    return ((1 - leak) * s[0] + leak * PHI[phi](z + s[0] @ W),)


def lstm(z: Tensor, s: Blocks, W: Tensor, phi: str, leak: float) -> Blocks:
    i, f, g, o = (z + s[0] @ W).chunk(4, -1)
    c = torch.sigmoid(f) * s[1] + torch.sigmoid(i) * torch.tanh(g)
    return c, torch.sigmoid(o) * torch.tanh(c)  # c first: it is what h is made of


def gru(z: Tensor, s: Blocks, W: Tensor, phi: str, leak: float) -> Blocks:
    (z_r, z_z, z_n), (p_r, p_z, p_n) = z.chunk(3, -1), (s[0] @ W).chunk(3, -1)
    r, keep = torch.sigmoid(z_r + p_r), torch.sigmoid(z_z + p_z)
    return ((1 - keep) * torch.tanh(z_n + r * p_n) + keep * s[0],)


CELLS = {"elman": (elman, 1), "leaky": (leaky, 1), "lstm": (lstm, 2), "gru": (gru, 1)}


@dataclass
class Backpropagated:
    """What autograd says about one run; h, dE_dh, delta and dE_dc (an LSTM's) are (layers, T, batch, ...), o is (T, batch, outputs).

    delta: dE/d(x_t U + b).  dW: (layers, T, hidden, ...), step t's own use of W, as if each step had a copy.
    """

    objective: Tensor
    o: Tensor
    h: Tensor
    dE_dh: Tensor
    delta: Tensor
    grads: dict[str, Tensor]
    dW: Tensor
    dE_dc: Tensor | None = None


@dataclass
class Nodes:
    """The nodes of a forward pass, each a list (layer after layer, each T long); W: the copies of W, one a step; o: a list of T."""

    z: list[Tensor]
    h: list[Tensor]
    c: list[Tensor]
    W: list[Tensor]
    o: list[Tensor]


def forward(w: dict[str, Tensor], x: Tensor, phi: str, cell: str = "elman", leak: float = 1.0) -> Nodes:
    """x (T, batch, inputs) through all layers."""
    nodes, below, layer, (step, blocks) = Nodes([], [], [], [], []), list(x), 1, CELLS[cell]
    while f"W{layer}" in w:
        W = w[f"W{layer}"]
        s = (x.new_zeros(x.shape[1], len(W)),) * blocks
        states = []
        for x_t in below:
            nodes.z.append(x_t @ w[f"U{layer}"] + w[f"b{layer}"])
            nodes.W.append(W.clone())
            *c, h = step(nodes.z[-1], s, nodes.W[-1], phi, leak)
            nodes.c += c
            s = (h, *c)
            states.append(h)
        nodes.h += states
        below = states
        layer += 1
    nodes.o = [h_t @ w["V"] + w["c"] for h_t in below]
    return nodes


def backpropagate(
    w: dict[str, Tensor],
    x: Tensor,
    y: Tensor,
    phi: str,
    loss: str,
    reduction: str,
    cell: str = "elman",
    leak: float = 1.0,
) -> Backpropagated:
    """Total derivatives, by autograd on the list of nodes; the loss is carried by the last len(y) steps."""
    w = {name: t.clone().requires_grad_() for name, t in w.items()}
    nodes = forward(w, x, phi, cell, leak)
    L, batch, T = len(y), x.shape[1], len(x)
    E = torch.stack([LOSS[loss](o_t, y_t) for o_t, y_t in zip(nodes.o[T - L :], y, strict=True)]).sum() / batch
    E = E / L if reduction == "mean" else E
    wanted = (nodes.h, nodes.z, nodes.W, nodes.c, list(w.values()))
    found = iter(torch.autograd.grad(E, [node for nodes in wanted for node in nodes]))
    *by_node, grads = ([next(found) for _ in nodes] for nodes in wanted)

    def by_layer(steps) -> Tensor:
        return torch.stack(list(steps)).detach().unflatten(0, (-1, T))

    dE_dh, delta, dW = (by_layer(steps) for steps in by_node[:3])
    dE_dc = by_layer(by_node[3]) if nodes.c else None
    return Backpropagated(
        E.detach(),
        torch.stack(nodes.o).detach(),
        by_layer(nodes.h),
        dE_dh,
        delta,
        dict(zip(w, grads, strict=True)),
        dW,
        dE_dc,
    )


def truncated(
    w: dict[str, Tensor],
    x: Tensor,
    y: Tensor,
    phi: str,
    loss: str,
    reduction: str,
    cell: str,
    leak: float,
    K: int,
) -> dict[str, Tensor]:
    """Gradients of truncated BPTT: for each E_t a forward pass of its own, all states before step t - K + 1 detached."""
    w = {name: t.clone().requires_grad_() for name, t in w.items()}
    (step, blocks), layers, L, (T, batch, _) = CELLS[cell], sum(name[0] == "W" for name in w), len(y), x.shape
    E = torch.zeros((), dtype=x.dtype)
    for t in range(T - L, T):
        s = [(x.new_zeros(batch, len(w["W1"])),) * blocks] * layers
        for k in range(t + 1):
            if k == t - K + 1:
                s = [tuple(block.detach() for block in state) for state in s]
            below = x[k]
            for n in range(layers):
                z = below @ w[f"U{n + 1}"] + w[f"b{n + 1}"]
                *c, below = step(z, s[n], w[f"W{n + 1}"], phi, leak)
                s[n] = (below, *c)
            if k <= t - K:  # nothing of these steps is reached
                s = [tuple(block.detach() for block in state) for state in s]
        E = E + LOSS[loss](below @ w["V"] + w["c"], y[t - (T - L)]) / batch / (L if reduction == "mean" else 1)
    return dict(zip(w, torch.autograd.grad(E, list(w.values()), materialize_grads=True), strict=True))
