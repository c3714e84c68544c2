"""Truncated BPTT against autograd through a net whose past is detached K steps before each loss."""

import pytest
import torch
from oracle import CELLS, each_run, random_parameters, truncated, weights
from torch import Tensor

from rnn_lab import bptt, probes
from rnn_lab.activations import ACTIVATIONS
from rnn_lab.cells import GRU, LSTM, Cell, Elman, Leaky, Own
from rnn_lab.losses import softmax_cross_entropy
from rnn_lab.parameters import Parameters

T, B, SIZES = 7, 3, (2, 4, 3)


LEAK = 0.4


def make(name: str, phi: str) -> Cell:
    if name == "own lstm":
        return Own(OwnLSTM())
    leak = torch.tensor(LEAK, dtype=torch.float64)
    return {"elman": Elman(ACTIVATIONS[phi]), "leaky": Leaky(ACTIVATIONS[phi], leak), "lstm": LSTM(), "gru": GRU()}[
        name
    ]


class OwnLSTM:
    gates, blocks = 4, 2

    def step(self, z: Tensor, s: tuple[Tensor, Tensor], W: Tensor) -> tuple[Tensor, Tensor]:
        c, h = CELLS["lstm"][0](z, s, W, "", 0)
        return h, c


def oracle(
    theta: Parameters, run: tuple[int, ...], x: Tensor, y: Tensor, phi: str, name: str, K: int
) -> dict[str, Tensor]:
    return truncated(weights(theta, run), x, y, phi, "cross entropy", "mean", name.removeprefix("own "), LEAK, K)


def both(
    runs: tuple[int, ...], K: int, L: int, layers: int, phi: str = "tanh", name: str = "elman"
) -> tuple[Parameters, Parameters, Parameters, dict]:
    cell = make(name, phi)
    theta, draw = random_parameters(runs, SIZES, layers, gates=cell.gates), torch.Generator().manual_seed(1)
    x = torch.randn(*runs, T, B, SIZES[0], generator=draw, dtype=torch.float64)
    y = torch.randint(SIZES[2], (*runs, L, B), generator=draw)
    net = bptt.Net(cell, softmax_cross_entropy, loss_steps=L)
    buffers, full, truncated = bptt.Buffers(theta, cell, T, B), theta.like(), theta.like()
    _, dE_do = bptt.objective(bptt.forward(theta, x, net, buffers), y, net)
    bptt.backward(theta, x, dE_do, net, buffers, full)
    bptt.truncated_backward(theta, x, dE_do, net, buffers, truncated, K)
    expected = {run: oracle(theta, run, x[run], y[run], phi, name, K) for run in each_run(runs)}
    return theta, full, truncated, expected


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


@pytest.mark.parametrize("name", ["leaky", "lstm", "gru", "own lstm"])
@pytest.mark.parametrize(("L", "K"), [(1, 3), (T, 3), (4, 5)])
def test_other_cells(runs, name, L, K):
    """A loss at every step has more adjoints on the way than one, and each stops where it should, in all blocks of the state."""
    _, full, truncated, expected = both(runs, K, L, 2, name=name)
    for run, named in expected.items():
        found = weights(truncated, run)
        for key, g in named.items():
            torch.testing.assert_close(found[key], g, rtol=1e-10, atol=1e-13, msg=lambda m, key=key: f"{key}: {m}")
    assert not torch.allclose(full.flat, truncated.flat, rtol=1e-3)


@pytest.mark.parametrize("phi", ["sigmoid", "relu", "linear"])
def test_other_activations(phi):
    _, _, truncated, expected = both((), 3, T, 1, phi)
    for name, g in expected[()].items():
        torch.testing.assert_close(weights(truncated)[name], g, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("L", [1, 3, T])
@pytest.mark.parametrize("K", [T, T + 5])
@pytest.mark.parametrize("name", ["elman", "lstm", "gru"])
def test_a_window_as_long_as_the_sequence_is_full_bptt(name, L, K):
    _, full, truncated, _ = both((2, 3), K, L, 2, name=name)
    torch.testing.assert_close(truncated.flat, full.flat, rtol=1e-11, atol=1e-14)


def test_the_bias_probe():
    full, truncated = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[3.0, 0.0], [1.0, 0.0]])
    found = probes.truncation_scalars(full, truncated)
    assert found["truncation/bias"].tolist() == pytest.approx([0.8, 0.0])
    assert found["truncation/cosine"].tolist() == pytest.approx([0.6, 1.0])
