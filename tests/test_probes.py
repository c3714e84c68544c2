"""Probes against direct float64 computation."""

import math

import numpy as np
import pytest
import torch
from oracle import random_parameters

from rnn_lab import clipping, probes
from rnn_lab.activations import ACTIVATIONS
from rnn_lab.parameters import Parameters
from rnn_lab.scaled import Scaled, scaled


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def test_log10_norms_are_of_the_per_example_norm_with_the_batch_mean_taken_out(runs):
    """sqrt(mean_b ||B d_b||^2): an objective that is a batch mean hands each example 1/B of its own gradient."""
    layers = [random(*runs, 4, 3, 5), random(*runs, 4, 3, 5, seed=1)]
    found = probes.log10_norms([scaled(d) for d in layers])
    assert found.shape == (*runs, 2, 4)
    for n, d in enumerate(layers):
        torch.testing.assert_close(found[..., n, :], (3 * d).norm(dim=-1).square().mean(-1).sqrt().log10())


def test_doubling_the_batch_does_not_change_the_curve():
    d = random(4, 3, 5) / 3
    twice = torch.cat([d, d], dim=1) / 2
    torch.testing.assert_close(probes.log10_norms([scaled(d)]), probes.log10_norms([scaled(twice)]))


def least_squares(curve: np.ndarray) -> float:
    """numpy's fit of the last 60 steps' log10 norms on the lag, exact zeros left out."""
    lag = np.arange(len(curve))[::-1]
    use = np.isfinite(curve) & (lag < 60)
    return np.polyfit(lag[use], curve[use], 1)[0]


@pytest.mark.parametrize("T", [2, 30, 60, 61, 1000])
def test_slope_is_numpys_least_squares_over_lags_0_to_59(T):
    curve = random(3, T).numpy()
    expected = [least_squares(c) for c in curve]
    np.testing.assert_allclose(probes.slope(torch.from_numpy(curve)), expected)


def test_slope_is_negative_where_the_gradient_vanishes_towards_the_past(runs):
    """A straight line of -1.7 decades a step back, ending at 1e-170."""
    line = torch.linspace(-170, -1.7, 100, dtype=torch.float64).expand(*runs, 100)
    torch.testing.assert_close(probes.slope(line), torch.full(runs, -1.7, dtype=torch.float64))


def test_slope_leaves_exact_zeros_out():
    curve = random(100)
    curve[::3] = -math.inf
    curve[-5] = math.nan
    assert probes.slope(curve).item() == pytest.approx(least_squares(curve.numpy()))
    nothing, one = torch.full((100,), -math.inf), torch.full((100,), -math.inf)
    one[-1] = 0
    assert probes.slope(torch.stack([nothing, one])).isnan().all()
    assert probes.slope(torch.tensor([0.0])).isnan()  # T = 1


def test_rho_and_sigma_max_of_a_non_normal_matrix():
    """[[.5, 10], [0, .5]]: rho = 1/2, yet sigma_max > 10: a gradient that grows before it vanishes."""
    W = torch.tensor([[0.5, 10.0], [0.0, 0.5]])
    assert probes.rho(W).item() == pytest.approx(0.5, abs=1e-7)
    assert probes.sigma_max(W).item() == pytest.approx(math.sqrt(50.25 + 10 * math.sqrt(25.25)))
    rotation = 3 * torch.tensor([[0.0, -1.0], [1.0, 0.0]])  # a complex pair
    assert (probes.rho(rotation).item(), probes.sigma_max(rotation).item()) == pytest.approx((3, 3))


def test_the_spectrum_of_a_net_is_its_largest_layers(runs):
    theta = random_parameters(runs, (3, 6, 2), layers=2)
    found = probes.spectrum(theta)
    W = np.stack([layer.W.numpy() for layer in theta.layers])
    np.testing.assert_allclose(found["W/rho"], np.abs(np.linalg.eigvals(W)).max((0, -1)))
    np.testing.assert_allclose(found["W/sigma_max"], np.linalg.norm(W, 2, (-2, -1)).max(0))


def test_the_spectrum_of_a_broken_net_is_nan_and_its_neighbours_is_not():
    theta = Parameters.zeros((2,), 1, 2, 1)
    theta.layers[0].W.copy_(torch.stack([torch.tensor([[math.inf, 0], [0, 1]]), 2 * torch.eye(2)]))
    found = probes.spectrum(theta)
    for name in ("W/rho", "W/sigma_max"):
        assert found[name][0].isnan()
        assert found[name][1] == 2


def test_gradient_scalars(runs):
    raw, applied = random(*runs, 9), random(*runs, 9, seed=1)
    clipped = torch.ones(runs, dtype=torch.bool)
    found = probes.gradient_scalars(raw, clipping.norm(raw), applied, clipped)
    torch.testing.assert_close(found["grad/norm"], raw.square().sum(-1).sqrt())
    torch.testing.assert_close(found["grad/norm_clipped"], applied.square().sum(-1).sqrt())
    torch.testing.assert_close(found["grad/cosine"], torch.nn.functional.cosine_similarity(raw, applied, dim=-1))
    assert (found["grad/clipped"] == 1).all()
    assert (found["grad/nonfinite"] == 0).all()


def test_gradient_scalars_of_numbers_whose_products_float32_cannot_hold():
    """The cosine of clipped to raw is 1 for gradients of 1e38 and of 1e-38 alike."""
    raw = torch.tensor([[3e38, -2e38], [1e-38, 3e-38], [math.inf, 1.0], [math.nan, math.inf], [0.0, 0.0]])
    found = probes.gradient_scalars(raw, clipping.norm(raw), 0.5 * raw, torch.zeros(5, dtype=torch.bool))
    assert found["grad/cosine"][:2].tolist() == pytest.approx([1, 1])
    assert found["grad/cosine"][2:].isnan().all()
    assert found["grad/norm"][0].item() == pytest.approx(math.hypot(3e38, 2e38))
    assert found["grad/norm"][2] == math.inf
    assert found["grad/nonfinite"].tolist() == [0, 0, 1, 2, 0]


def test_h_norm_leaves_h_0_out(runs):
    h = random(*runs, 6, 3, 5)
    torch.testing.assert_close(
        probes.h_norm([h, 2 * h])[..., 1, :], 2 * (h[..., 1:, :, :] ** 2).sum(-1).mean(-1).sqrt()
    )
    assert probes.h_norm([h]).shape == (*runs, 1, 5)


def test_phi_prime_mean_is_one_quarter_for_a_resting_sigmoid_and_zero_in_saturation():
    rest, saturated = torch.full((4, 3, 5), 0.5), torch.ones(4, 3, 5)
    assert (probes.phi_prime_mean([rest], ACTIVATIONS["sigmoid"]) == 0.25).all()
    assert (probes.phi_prime_mean([saturated], ACTIVATIONS["sigmoid"]) == 0).all()


@pytest.mark.parametrize("phi", ACTIVATIONS)
def test_phi_prime_mean_is_over_units_and_batch(runs, phi):
    a = random(*runs, 6, 3, 5).requires_grad_()
    h = ACTIVATIONS[phi].apply(a.detach(), torch.empty_like(a))
    value = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu, "linear": torch.clone}[phi](a)
    (prime,) = torch.autograd.grad(value.sum(), a)
    torch.testing.assert_close(probes.phi_prime_mean([h], ACTIVATIONS[phi])[..., 0, :], prime.mean((-2, -1)))


@pytest.mark.parametrize("size", [0, -3000, 3000])
def test_summands_of_the_gradient_are_of_any_size(size):
    """Against the products themselves in float64, examples of very different size included; the exponent only shifts the log."""
    generator = torch.Generator().manual_seed(2)
    source = torch.randn(2, 4, 7, 3, generator=generator, dtype=torch.float64)
    mantissa = torch.randn(2, 4, 7, 5, generator=generator, dtype=torch.float64)
    exponent = torch.randint(-30, 30, (2, 4, 7), generator=generator, dtype=torch.int32)
    delta = mantissa * 2.0 ** exponent.double().unsqueeze(-1)
    expected = torch.linalg.matrix_norm(source.transpose(-2, -1) @ delta).log10() + size * math.log10(2)
    [found] = probes.log10_summand_norms(Scaled(mantissa, exponent + size), source)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_step_without_source_or_gradient_adds_an_exact_zero():
    ones, zeros = torch.ones(2, 3, 4, 5), torch.zeros(2, 3, 4, dtype=torch.int32)
    for source, mantissa in ((0 * ones, ones), (ones, 0 * ones)):
        [found] = probes.log10_summand_norms(Scaled(mantissa, zeros), source)
        assert found.isneginf().all()
