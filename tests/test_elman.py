"""The cell alone: its forward pass is PyTorch's own, its renormalised backward pass is exact rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from rnn_lab.activations import ACTIVATIONS
from rnn_lab.cells import elman
from rnn_lab.scaled import Scaled, normalise_

DTYPES = [torch.float32, torch.float64]


def random(*shape: int, seed: int = 0, dtype=torch.float64) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


@pytest.mark.parametrize("phi", ["tanh", "relu"])
def test_states_are_those_of_torch_nn_rnn(phi):
    """The same net in PyTorch's own words: weight_ih = U^T, weight_hh = W^T, bias_ih = b."""
    T, batch, inputs, hidden = 9, 3, 4, 5
    x, U, W, b = (
        random(T, batch, inputs),
        random(inputs, hidden, seed=1),
        random(hidden, hidden, seed=2),
        random(1, hidden, seed=3),
    )
    rnn = torch.nn.RNN(inputs, hidden, nonlinearity=phi, dtype=torch.float64)
    rnn.load_state_dict({"weight_ih_l0": U.T, "weight_hh_l0": W.T, "bias_ih_l0": b[0], "bias_hh_l0": 0 * b[0]})
    with torch.no_grad():
        expected = rnn(x)[0]
    h = x.new_zeros(T + 1, batch, hidden)
    elman.states(x, U, W, b, ACTIVATIONS[phi], h)
    torch.testing.assert_close(h[1:], expected)
    assert h[0].count_nonzero() == 0


def test_states_start_from_the_h_0_given(runs):
    """A linear net without input: h_t = h_0 W^t."""
    W, h_0, x = random(*runs, 3, 3), random(*runs, 2, 3, seed=1), torch.zeros(*runs, 4, 2, 1, dtype=torch.float64)
    h = x.new_zeros(*runs, 5, 2, 3)
    h[..., 0, :, :] = h_0
    elman.states(x, x.new_zeros(*runs, 1, 3), W, x.new_zeros(*runs, 1, 3), ACTIVATIONS["linear"], h)
    for t in range(5):
        torch.testing.assert_close(h[..., t, :, :], h_0 @ torch.linalg.matrix_power(W, t))


Vector = list[Fraction]


def exact(mantissa: Tensor, exponent: int) -> Vector:
    """The very numbers that a scaled vector stands for."""
    return [Fraction(m) * Fraction(2) ** exponent for m in mantissa.tolist()]


def log10_size(v: Vector) -> float:
    square = sum(e * e for e in v)
    return 0.5 * (math.log10(square.numerator) - math.log10(square.denominator)) if square else -math.inf


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gain", [1e-12, 1.0, 1e12], ids=["vanishes", "holds", "explodes"])
@pytest.mark.parametrize("carries_loss", ["last step", "every step", "last half"])
def test_renormalised_deltas_are_those_of_exact_arithmetic(carries_loss, gain, dtype):
    """dE/dh_t = immediate_t + (dE/dh_{t+1} phi') W^T in rational numbers, immediates from 2^-1500 to 2^1500.

    Sums of a large and a small term, of like terms, and of a zero vector are in it. Errors are relative to the norm.
    """
    T, batch, hidden = 24, 3, 3
    L = {"last step": 1, "every step": T, "last half": T // 2}[carries_loss]
    rng = np.random.default_rng(0)
    W = (random(hidden, hidden, seed=1) * gain).to(dtype)
    h = torch.tanh(random(T + 1, batch, hidden, seed=2)).to(dtype)
    immediate = Scaled(
        random(L, batch, hidden, seed=3).to(dtype), torch.from_numpy(rng.integers(-1500, 1500, (L, batch))).int()
    )
    immediate.mantissa[L // 2 :: 7, 0] = 0
    immediate.mantissa[-1] = 1
    normalise_(immediate)
    exponent = torch.zeros(T, batch, dtype=torch.int32)
    dE_dh, delta = (
        Scaled(torch.empty(T, batch, hidden, dtype=dtype), exponent),
        Scaled(torch.empty(T, batch, hidden, dtype=dtype), exponent),
    )
    elman.scaled_deltas(immediate, h, W, ACTIVATIONS["tanh"], dE_dh, delta)

    weights = [[Fraction(w) for w in row] for row in W.tolist()]
    tolerance = 3000 * torch.finfo(dtype).eps
    for example in range(batch):
        d: Vector = [Fraction(0)] * hidden
        for t in range(T - 1, -1, -1):
            if t >= T - L:
                now = t - (T - L)
                d = [
                    a + b
                    for a, b in zip(
                        d, exact(immediate.mantissa[now, example], int(immediate.exponent[now, example])), strict=True
                    )
                ]
            prime = [1 - Fraction(v) ** 2 for v in h[t + 1, example].tolist()]
            total = [a * b for a, b in zip(d, prime, strict=True)]
            for ours, truth in ((dE_dh, d), (delta, total)):
                found = exact(ours.mantissa[t, example], int(ours.exponent[t, example]))
                error = [a - b for a, b in zip(found, truth, strict=True)]
                assert log10_size(error) <= log10_size(truth) + math.log10(tolerance)
            d = [sum((total[j] * weights[k][j] for j in range(hidden)), Fraction(0)) for k in range(hidden)]


def test_gradients_are_sums_of_outer_products(runs):
    """dU = sum over steps and examples of x_t (outer) delta_t, dW of h_{t-1} (outer) delta_t, db of delta_t."""
    x, h, delta = random(*runs, 4, 3, 2), random(*runs, 5, 3, 6, seed=1), random(*runs, 4, 3, 6, seed=2)
    dU, dW, db = (
        random(*runs, 2, 6),
        random(*runs, 6, 6),
        random(*runs, 1, 6),
    )  # whatever was there before is overwritten
    elman.gradients(x, h, delta, dU, dW, db)
    torch.testing.assert_close(dU, torch.einsum("...tbi,...tbj->...ij", x, delta))
    torch.testing.assert_close(dW, torch.einsum("...tbi,...tbj->...ij", h[..., :-1, :, :], delta))
    torch.testing.assert_close(db, torch.einsum("...tbj->...j", delta).unsqueeze(-2))
