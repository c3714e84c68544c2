"""Truncated BPTT against autograd through a net whose past is detached K steps before each loss."""

import pytest
import torch
from oracle import LOSS, PHI, each_run, random_parameters, weights
from torch import Tensor

from rnn_lab import bptt, probes
from rnn_lab.activations import ACTIVATIONS
from rnn_lab.cells import Elman
from rnn_lab.losses import softmax_cross_entropy
from rnn_lab.parameters import Parameters

T, B, SIZES = 7, 3, (2, 4, 3)


def oracle(w: dict[str, Tensor], x: Tensor, y: Tensor, phi: str, K: int) -> dict[str, Tensor]:
    """For each E_t a forward pass of its own, all states before step t - K + 1 detached; the mean over t and the batch."""
    w = {name: t.clone().requires_grad_() for name, t in w.items()}
    layers, L = sum(name[0] == "W" for name in w), len(y)
    E = torch.zeros((), dtype=x.dtype)
    for t in range(T - L, T):
        h = [x.new_zeros(B, SIZES[1])] * layers
        for k in range(t + 1):
            if k == t - K + 1:
                h = [state.detach() for state in h]
            below = x[k]
            for n in range(layers):
                h[n] = below = PHI[phi](below @ w[f"U{n + 1}"] + h[n] @ w[f"W{n + 1}"] + w[f"b{n + 1}"])
            if k <= t - K:  # nothing of these steps is reached
                h = [state.detach() for state in h]
        E = E + LOSS["cross entropy"](below @ w["V"] + w["c"], y[t - (T - L)]) / (B * L)
    return dict(zip(w, torch.autograd.grad(E, list(w.values())), strict=True))


def both(
    runs: tuple[int, ...], K: int, L: int, layers: int, phi: str = "tanh"
) -> tuple[Parameters, Parameters, Parameters, dict]:
    theta, draw = random_parameters(runs, SIZES, layers), torch.Generator().manual_seed(1)
    x = torch.randn(*runs, T, B, SIZES[0], generator=draw, dtype=torch.float64)
    y = torch.randint(SIZES[2], (*runs, L, B), generator=draw)
    net = bptt.Net(Elman(ACTIVATIONS[phi]), softmax_cross_entropy, loss_steps=L)
    buffers, full, truncated = bptt.Buffers(theta, net.cell, T, B), theta.like(), theta.like()
    _, dE_do = bptt.objective(bptt.forward(theta, x, net, buffers), y, net)
    bptt.backward(theta, x, dE_do, net, buffers, full)
    bptt.truncated_backward(theta, x, dE_do, net, buffers, truncated, K)
    return theta, full, truncated, {run: oracle(weights(theta, run), x[run], y[run], phi, K) for run in each_run(runs)}


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("L", [1, 3, T])
@pytest.mark.parametrize("K", [1, 2, 4])
def test_each_loss_reaches_k_steps_and_no_further(runs, K, L, layers):
    _, full, truncated, expected = both(runs, K, L, layers)
    for run, named in expected.items():
        found = weights(truncated, run)
        for name, g in named.items():
            torch.testing.assert_close(found[name], g, rtol=1e-10, atol=1e-13, msg=lambda m, name=name: f"{name}: {m}")
    assert not torch.allclose(full.flat, truncated.flat, rtol=1e-3)


@pytest.mark.parametrize("phi", ["sigmoid", "relu", "linear"])
def test_other_activations(phi):
    _, _, truncated, expected = both((), 3, T, 1, phi)
    for name, g in expected[()].items():
        torch.testing.assert_close(weights(truncated)[name], g, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("L", [1, 3, T])
@pytest.mark.parametrize("K", [T, T + 5])
def test_a_window_as_long_as_the_sequence_is_full_bptt(L, K):
    _, full, truncated, _ = both((2, 3), K, L, 2)
    torch.testing.assert_close(truncated.flat, full.flat, rtol=1e-11, atol=1e-14)


def test_the_bias_probe():
    full, truncated = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[3.0, 0.0], [1.0, 0.0]])
    found = probes.truncation_scalars(full, truncated)
    assert found["truncation/bias"].tolist() == pytest.approx([0.8, 0.0])
    assert found["truncation/cosine"].tolist() == pytest.approx([0.6, 1.0])
