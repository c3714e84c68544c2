"""Activations against autograd and against their textbook derivatives."""

import math

import numpy as np
import pytest
import torch
from oracle import PHI

from rnn_lab.activations import ACTIVATIONS

A = torch.linspace(-6, 6, 1001, dtype=torch.float64)  # 0 is in it: the kink of ReLU, the steepest point of the others
PRIME = {
    "sigmoid": lambda a: np.exp(-a) / (1 + np.exp(-a)) ** 2,
    "tanh": lambda a: 1 / np.cosh(a) ** 2,
    "relu": lambda a: (a > 0).astype(float),
    "linear": np.ones_like,
}


def test_the_four_of_the_lecture_and_no_other():
    assert set(ACTIVATIONS) == {"sigmoid", "tanh", "relu", "linear"}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_value_and_derivative(name):
    phi = ACTIVATIONS[name]
    h = phi.apply(A, torch.empty_like(A))
    torch.testing.assert_close(h, PHI[name](A))
    np.testing.assert_allclose(phi.prime(h), PRIME[name](A.numpy()), rtol=1e-10)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_backward_is_autograds(name):
    phi, a, g = ACTIVATIONS[name], A.clone().requires_grad_(), torch.cos(7 * A)
    h = PHI[name](a)
    (expected,) = torch.autograd.grad(h, a, g)
    torch.testing.assert_close(phi.backward(g, h.detach(), torch.empty_like(g)), expected)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gamma_is_the_supremum_of_the_derivative(name):
    """P13, section 2.1: 1 for tanh, 1/4 for sigmoid (the deck's bound of 1 for sigmoid is a slip)."""
    assert np.abs(PRIME[name](A.numpy())).max() == pytest.approx(ACTIVATIONS[name].gamma, rel=1e-12)
    assert ACTIVATIONS["sigmoid"].gamma == 1 / 4


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_results_go_where_they_are_told_a_strided_view_too(name):
    """One time step of (runs, time, batch, hidden) is a view with gaps; h may also be written over a."""
    phi, a, g = ACTIVATIONS[name], A[:24].view(2, 3, 4).clone(), A[-24:].view(2, 3, 4)
    sequence = torch.full((2, 5, 3, 4), 9.0, dtype=torch.float64)
    h = phi.apply(a, sequence[:, 1])
    assert h.data_ptr() == sequence[:, 1].data_ptr()
    torch.testing.assert_close(sequence[:, 1], PHI[name](a))
    phi.backward(g, h, sequence[:, 3])
    torch.testing.assert_close(sequence[:, 3], g * phi.prime(h))
    assert (sequence[:, [0, 2, 4]] == 9).all()
    torch.testing.assert_close(phi.apply(a, a), sequence[:, 1])


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_saturation_is_an_exact_zero(name):
    h = ACTIVATIONS[name].apply(torch.tensor([100.0]), torch.empty(1))
    assert h == 1
    assert ACTIVATIONS[name].prime(h) == 0


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_is_not_repaired(name):
    phi, nan = ACTIVATIONS[name], torch.tensor([math.nan])
    assert phi.apply(nan, torch.empty(1)).isnan()
    assert phi.backward(nan, torch.tensor([0.5]), torch.empty(1)).isnan()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_derivative_of_a_nan_state_is_nan(name):
    assert ACTIVATIONS[name].prime(torch.tensor([torch.nan])).isnan().all()
