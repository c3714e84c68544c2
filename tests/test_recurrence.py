"""One layer through time: where it starts, what late runs see, and a renormalised backward pass against exact rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from rnn_lab.activations import ACTIVATIONS
from rnn_lab.cells import Elman
from rnn_lab.parameters import Layer
from rnn_lab.recurrence import Trace, gradients, scaled_deltas, states
from rnn_lab.scaled import Scaled, normalise_

DTYPES = [torch.float32, torch.float64]


def random(*shape: int, seed: int = 0, dtype=torch.float64) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def elman(phi: str, runs: tuple[int, ...], T: int, batch: int, hidden: int, dtype=torch.float64) -> tuple[Elman, Trace]:
    cell = Elman(ACTIVATIONS[phi])
    return cell, Trace(cell, torch.empty(0, dtype=dtype).new_zeros, runs, T, batch, hidden, keep=False)


def test_states_start_from_the_h_0_given(runs):
    """A linear net without input: h_t = h_0 W^t."""
    W, h_0, x = random(*runs, 3, 3), random(*runs, 2, 3, seed=1), torch.zeros(*runs, 4, 2, 1, dtype=torch.float64)
    cell, trace = elman("linear", runs, 4, 2, 3)
    [h] = trace.s
    h[..., 0, :, :] = h_0
    states(x, Layer(x.new_zeros(*runs, 1, 3), W, x.new_zeros(*runs, 1, 3)), cell, trace)
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
    cell, trace = elman("tanh", (), T, batch, hidden, dtype)
    trace.s[0].copy_(h)
    dE_dh, delta, _ = scaled_deltas(immediate, W, cell, trace)

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
    cell, trace = elman("tanh", runs, 4, 3, 6)
    trace.s[0].copy_(h)
    trace.delta.copy_(delta)
    grad = Layer(random(*runs, 2, 6), random(*runs, 6, 6), random(*runs, 1, 6))  # what was there before is overwritten
    gradients(x, random(*runs, 6, 6), cell, trace, grad)
    torch.testing.assert_close(grad.U, torch.einsum("...tbi,...tbj->...ij", x, delta))
    torch.testing.assert_close(grad.W, torch.einsum("...tbi,...tbj->...ij", h[..., :-1, :, :], delta))
    torch.testing.assert_close(grad.b, torch.einsum("...tbj->...j", delta).unsqueeze(-2))
