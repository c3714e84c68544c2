"""The lecture's worked example, term by term: E_3 of a four-step net, its gradient as a sum over k = 0..3.

The deck counts steps from 0 (h_3 = tanh(U x_3 + W h_2), h_{-1} = 0) and writes column vectors; the engine counts t = 1..4 and works on
rows, with weights (in, out). So the deck's W is our W transposed, and its step k our t = k + 1. One example, no biases.
"""

import numpy as np
import pytest
import torch

from rnn_lab import bptt, probes
from rnn_lab.activations import ACTIVATIONS
from rnn_lab.cells import Elman
from rnn_lab.losses import softmax_cross_entropy
from rnn_lab.parameters import Parameters

INPUTS, HIDDEN, CLASSES, LABEL = 3, 5, 4, 2


@pytest.fixture(scope="module")
def deck():
    """U, W, V (deck's orientation), x_0..x_3, h_{-1}..h_3 and yhat_3, in NumPy."""
    rng = np.random.default_rng(3)
    U, W, V = rng.normal(size=(HIDDEN, INPUTS)), rng.normal(size=(HIDDEN, HIDDEN)), rng.normal(size=(CLASSES, HIDDEN))
    x, h = rng.normal(size=(4, INPUTS)), {-1: np.zeros(HIDDEN)}
    for t in range(4):
        h[t] = np.tanh(U @ x[t] + W @ h[t - 1])
    z = V @ h[3]
    return U, W, V, x, h, np.exp(z) / np.exp(z).sum()


@pytest.fixture(scope="module")
def engine(deck):
    """The same net in the engine after one scaled backward pass."""
    U, W, V, x, _, _ = deck
    theta = Parameters.zeros((), INPUTS, HIDDEN, CLASSES, dtype=torch.float64)
    for ours, theirs in ((theta.layers[0].U, U), (theta.layers[0].W, W), (theta.V, V)):
        ours.copy_(torch.from_numpy(theirs.T.copy()))
    net = bptt.Net(Elman(ACTIVATIONS["tanh"]), softmax_cross_entropy)
    sequence, y = torch.from_numpy(x).unsqueeze(1), torch.tensor([[LABEL]])
    buffers, grads = bptt.Buffers(theta, net.cell, 4, 1), theta.like()
    _, dE_do = bptt.objective(bptt.forward(theta, sequence, net, buffers), y, net)
    adjoints = bptt.scaled_backward(theta, sequence, dE_do, net, buffers, grads)
    series = probes.summand_series(sequence, theta, net.cell, buffers, adjoints)
    return sequence, buffers, grads, series, probes.contributions(sequence, theta, dE_do, net, buffers)[0]


def dE_3_dh(deck) -> np.ndarray:
    """dE_3/dyhat_3 dyhat_3/dh_3 = (yhat_3 - y_3) V, as a row."""
    _, _, V, _, _, yhat = deck
    return (yhat - np.eye(CLASSES)[LABEL]) @ V


def chain(deck, k: int) -> np.ndarray:
    """prod_{j=k+1}^{3} dh_j/dh_{j-1}, with dh_j/dh_{j-1} = diag(1 - h_j^2) W."""
    _, W, _, _, h, _ = deck
    product = np.eye(HIDDEN)
    for j in range(3, k, -1):
        product = product @ np.diag(1 - h[j] ** 2) @ W
    return product


def summand(deck, k: int, source: np.ndarray) -> np.ndarray:
    """Step k's term of dE_3/dW (source h_{k-1}) or dE_3/dU (source x_k): the chain times d+h_k/dW, the immediate derivative."""
    _, _, _, _, h, _ = deck
    return np.outer(dE_3_dh(deck) @ chain(deck, k) * (1 - h[k] ** 2), source)


def test_dE_3_dV_is_the_outer_product(deck, engine):
    *_, h, yhat = deck
    np.testing.assert_allclose(engine[2].V.numpy().T, np.outer(yhat - np.eye(CLASSES)[LABEL], h[3]), rtol=1e-12)


@pytest.mark.parametrize("k", range(4))
def test_each_term_of_the_sum(deck, engine, k):
    *_, x, h, _ = deck
    _, buffers, _, series, pairs = engine
    delta = buffers.delta[0][k, 0].numpy()
    for name, source, ours in (
        ("dW/log10_norm", h[k - 1], buffers.h[0][k, 0].numpy()),
        ("dU/log10_norm", x[k], engine[0][k, 0].numpy()),
    ):
        term = summand(deck, k, source)
        np.testing.assert_allclose(np.outer(delta, ours), term, rtol=1e-12, atol=1e-15)
        with np.errstate(divide="ignore"):
            norm = np.log10(np.linalg.norm(term))
        np.testing.assert_allclose(series[name][0, k], norm, rtol=1e-12)
        np.testing.assert_allclose(pairs["WU".index(name[1]), 0, 0, k], norm, rtol=1e-12)  # the row of E_3


def test_the_first_step_adds_nothing_to_dW(engine):
    """h_{-1} = 0: an exact zero, not a small number."""
    series = engine[3]
    assert series["dW/log10_norm"][0, 0] == -np.inf
    assert torch.isfinite(series["dU/log10_norm"]).all()


def test_the_terms_add_up(deck, engine):
    *_, x, h, _ = deck
    grads = engine[2].layers[0]
    np.testing.assert_allclose(grads.W.numpy().T, sum(summand(deck, k, h[k - 1]) for k in range(4)), rtol=1e-12)
    np.testing.assert_allclose(grads.U.numpy().T, sum(summand(deck, k, x[k]) for k in range(4)), rtol=1e-12)
