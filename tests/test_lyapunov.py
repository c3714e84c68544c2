"""Lyapunov spectra against what is known exactly: determinants, eigenvalues, autograd, mean field."""

import math

import numpy as np
import pytest
import torch
from oracle import PHI, random_parameters
from torch import Tensor

from rnn_lab import bptt, graded, jacobians, lyapunov, theory
from rnn_lab.activations import ACTIVATIONS
from rnn_lab.cells import GRU, LSTM, Elman, Leaky, Own
from rnn_lab.losses import softmax_cross_entropy
from rnn_lab.parameters import Layer, Parameters


def start(theta: Parameters, batch: int = 1, seed: int = 0) -> list[Tensor]:
    rng, shape = np.random.default_rng(seed), (*theta.flat.shape[:-1], batch, theta.V.shape[-2])
    return [torch.from_numpy(rng.standard_normal(shape)) for _ in theta.layers]


def zeros(theta: Parameters, steps: int, batch: int = 1) -> list[Tensor]:
    return [theta.flat.new_zeros(*theta.flat.shape[:-1], batch, theta.layers[0].U.shape[-2])] * steps


def noise(theta: Parameters, steps: int, batch: int = 1, seed: int = 1) -> list[Tensor]:
    rng, shape = np.random.default_rng(seed), zeros(theta, 1, batch)[0].shape
    return [torch.from_numpy(rng.standard_normal(shape)) for _ in range(steps)]


def growth(theta: Parameters, phi: str, inputs: list[Tensor], n: int | None = None) -> Tensor:
    """From a random state; a linear net, whose states would overflow and don't matter, from 0."""
    h = [(phi != "linear") * state for state in start(theta, inputs[0].shape[-2])]
    return torch.stack(list(lyapunov.log_growth(jacobians.along(theta.layers, Elman(ACTIVATIONS[phi]), inputs, h), n)))


def recurrent(W: Tensor) -> Parameters:
    """A net of this W, (*runs, H, H), without input or bias."""
    theta = Parameters.zeros(tuple(W.shape[:-2]), 1, W.shape[-1], 1, dtype=torch.float64)
    theta.layers[0].W.copy_(W)
    return theta


def gaussian(H: int, g: float, seed: int = 0) -> Tensor:
    return g / H**0.5 * torch.from_numpy(np.random.default_rng(seed).standard_normal((H, H)))


# -------------------- the Jacobian of one step


@pytest.mark.parametrize("phi", PHI)
@pytest.mark.parametrize("depth", [1, 3])
def test_the_jacobian_is_autograds(phi, depth, runs):
    theta = random_parameters(runs, (2, 4, 1), depth)
    h, [x] = start(theta, 3), noise(theta, 1, 3)
    after, J = jacobians.step(theta.layers, Elman(ACTIVATIONS[phi]), x, h)
    for run in np.ndindex(*runs):
        for example in range(3):

            def joint(flat: Tensor, at=(*run, example)) -> Tensor:
                below, states = x[at], []
                for layer, own in zip(theta.layers, flat.chunk(depth), strict=True):
                    U, W, b = (t[at[:-1]] for t in layer)
                    below = PHI[phi](below @ U + own @ W + b[0])
                    states.append(below)
                return torch.cat(states)

            flat = torch.cat([own[*run, example] for own in h])
            expected: Tensor = torch.func.jacrev(joint)(flat)  # type: ignore[assignment]
            torch.testing.assert_close(J[*run, example], expected)
            torch.testing.assert_close(torch.cat([own[*run, example] for own in after]), joint(flat))


@pytest.mark.parametrize("phi", ["tanh", "sigmoid"])
def test_saturated_units_keep_their_slope(phi):
    """1 - h^2 would be an exact 0, in float32 from |a| = 9 on, in float64 from 19 on."""
    a = torch.tensor([9.5, -12.0, 30.0, -300.0]).double()
    scale = {"tanh": math.log(4) - 2 * a.abs(), "sigmoid": -a.abs()}[phi]
    torch.testing.assert_close(ACTIVATIONS[phi].prime_of(a).log(), scale, rtol=1e-4, atol=0)
    assert (ACTIVATIONS[phi].prime_of(a[:3].float()) > 0).all()


@pytest.mark.parametrize("phi", PHI)
def test_phi_and_its_slope_are_those_of_the_engine(phi):
    a = torch.linspace(-4, 4, 41).double()
    h = ACTIVATIONS[phi].apply(a, torch.empty_like(a))
    torch.testing.assert_close(ACTIVATIONS[phi].of(a), h)
    torch.testing.assert_close(ACTIVATIONS[phi].prime_of(a), ACTIVATIONS[phi].prime(h))


def test_a_run_that_sits_out_begins_from_zero_later():
    theta, late = random_parameters((3,), (2, 4, 1)), torch.tensor([0, 2, 5])
    x, zero = noise(theta, 8), [torch.zeros(3, 1, 4).double()]
    together = list(jacobians.along(theta.layers, Elman(ACTIVATIONS["tanh"]), x, zero, late))
    for run, waited in enumerate(late.tolist()):
        own = [Layer(*(t[run] for t in layer)) for layer in theta.layers]
        alone = jacobians.along(own, Elman(ACTIVATIONS["tanh"]), [u[run] for u in x[waited:]], [zero[0][run]])
        torch.testing.assert_close(torch.stack(together[waited:])[:, run], torch.stack(list(alone)))


class Damped:
    """A user's cell of two blocks, with h first."""

    blocks = 2

    def step(self, z: Tensor, s: tuple[Tensor, Tensor], W: Tensor) -> tuple[Tensor, Tensor]:
        h, v = s
        v = 0.5 * v + torch.tanh(z + h @ W)
        return torch.sin(h + v), v


CELLS = {
    "leaky": lambda: Leaky(ACTIVATIONS["tanh"], torch.tensor([0.3, 0.8]).double()),
    "lstm": LSTM,
    "gru": GRU,
    "own": lambda: Own(Damped()),
}


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("depth", [1, 2])
def test_the_jacobian_of_every_cell_is_that_of_central_differences(name, depth):
    """Of the joint state of all layers and blocks, by a step of 1e-6 of the net itself."""
    cell = CELLS[name]()
    theta, rng = Parameters.zeros((2,), 2, 3, 1, depth, torch.float64, gates=cell.gates), np.random.default_rng(0)
    theta.flat.copy_(torch.from_numpy(rng.standard_normal(theta.flat.shape)))
    s = [torch.from_numpy(rng.standard_normal((2, 4, cell.blocks * 3))) for _ in range(depth)]
    [x] = noise(theta, 1, 4)
    after, J = jacobians.step(theta.layers, cell, x, s)
    assert J.shape == (2, 4, depth * cell.blocks * 3, depth * cell.blocks * 3)

    def moved(direction: Tensor) -> Tensor:
        pieces = [own + 1e-6 * d for own, d in zip(s, direction.chunk(depth), strict=True)]
        return torch.cat(jacobians.step(theta.layers, cell, x, pieces)[0], -1)

    unit = torch.eye(J.shape[-1]).double()
    columns = [(moved(e) - moved(-e)) / 2e-6 for e in unit]
    torch.testing.assert_close(J, torch.stack(columns, -1), rtol=1e-5, atol=1e-8)
    buffers = bptt.Buffers(theta, cell, 1, 4)
    for trace, own in zip(buffers.traces, s, strict=True):
        for block, value in zip(trace.s, own.chunk(cell.blocks, -1), strict=True):
            block[:, 0] = value
    bptt.forward(theta, x.unsqueeze(1), bptt.Net(cell, softmax_cross_entropy), buffers)
    for trace, own in zip(buffers.traces, after, strict=True):  # the state itself is the engine's
        torch.testing.assert_close(torch.cat([block[:, 1] for block in trace.s], -1), own)


@pytest.mark.parametrize("name", CELLS)
def test_exponents_of_every_cell_add_up_to_the_log_determinant(name):
    cell = CELLS[name]()
    theta, rng = Parameters.zeros((2,), 2, 3, 1, 1, torch.float64, gates=cell.gates), np.random.default_rng(0)
    theta.flat.copy_(torch.from_numpy(rng.standard_normal(theta.flat.shape)))
    s = [torch.from_numpy(rng.standard_normal((2, 1, cell.blocks * 3)))]
    J = torch.stack(list(jacobians.along(theta.layers, cell, noise(theta, 30), s)))
    exponents = torch.stack(list(lyapunov.log_growth(J))).mean(0)
    torch.testing.assert_close(exponents.sum(-1), torch.linalg.slogdet(J)[1].mean(0))


# -------------------- exact identities


@pytest.mark.parametrize("phi", ["tanh", "sigmoid", "linear"])
@pytest.mark.parametrize("depth", [1, 2])
def test_all_exponents_add_up_to_the_log_determinant(phi, depth, runs):
    """sum = ln|det W| + mean over time of sum_i ln phi'(a_i), layers added up; large weights, so that some units are saturated to 1e-15."""
    theta = random_parameters(runs, (2, 6, 1), depth, gain=6.0)
    x, h = noise(theta, 25, 2), start(theta, 2)
    found = growth(theta, phi, x).mean(0).sum(-1)
    expected = torch.stack([torch.linalg.slogdet(layer.W)[1] for layer in theta.layers]).sum(0).unsqueeze(-1)
    for x_t in x:
        for n, layer in enumerate(theta.layers):
            a = x_t @ layer.U + h[n] @ layer.W + layer.b
            expected = expected + ACTIVATIONS[phi].prime_of(a).log().sum(-1) / len(x)
            h[n] = x_t = PHI[phi](a)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-10)


def test_an_orthogonal_linear_net_has_only_zeros():
    W = torch.linalg.qr(gaussian(20, 1))[0]
    exponents = growth(recurrent(W), "linear", zeros(recurrent(W), 300)).mean(0)
    torch.testing.assert_close(exponents, torch.zeros_like(exponents), atol=1e-12, rtol=0)
    assert lyapunov.kaplan_yorke(torch.zeros(20)) == 20


def test_a_linear_nets_exponents_are_the_logs_of_its_eigenvalues():
    """W far from normal: its singular values are others, by a factor of 30."""
    moduli = 10.0 ** torch.arange(1, -4, -1).double()
    theta = recurrent(torch.triu(gaussian(5, 30), 1) + torch.diag(moduli))
    exponents = growth(theta, "linear", zeros(theta, 400))[100:].mean(0)
    torch.testing.assert_close(exponents[0], moduli.log())


def test_complex_eigenvalues_give_pairs():
    W = gaussian(12, 1.5)
    exponents = growth(recurrent(W), "linear", zeros(recurrent(W), 6000))[1000:].mean(0)
    expected = torch.linalg.eigvals(W).abs().log().sort(descending=True).values
    torch.testing.assert_close(exponents[0], expected, atol=2e-3, rtol=0)


def test_a_quiet_net_contracts_at_its_spectral_radius():
    W = gaussian(40, 0.8)
    exponents = growth(recurrent(W), "tanh", zeros(recurrent(W), 3000))[1000:].mean(0)
    assert abs(exponents[0, 0] - torch.linalg.eigvals(W).abs().max().log()) < 2e-3


def test_n_directions_are_the_first_of_all():
    theta = random_parameters((), (2, 12, 1), gain=3.0)
    x = noise(theta, 600)
    some, every = (growth(theta, "tanh", x, n)[300:].mean(0) for n in (3, None))
    torch.testing.assert_close(some, every[..., :3], atol=1e-9, rtol=0)


def test_the_leading_exponent_is_that_of_two_neighbouring_trajectories():
    """Benettin's other way: a perturbation of 1e-8, followed by the net itself and rescaled every step. Chaotic, autonomous."""
    W, steps = gaussian(50, 2.5), 1500
    h = start(recurrent(W))[0]
    v = torch.from_numpy(np.random.default_rng(5).standard_normal((1, 50)))
    logs = []
    for _ in range(steps):
        v = 1e-8 * v / torch.linalg.vector_norm(v)
        moved = torch.tanh((h + v) @ W)
        h = torch.tanh(h @ W)
        v = moved - h
        logs.append((torch.linalg.vector_norm(v) / 1e-8).log())
    found = growth(recurrent(W), "tanh", zeros(recurrent(W), steps))
    assert abs(found[300:, 0, 0].mean() - torch.stack(logs)[300:].mean()) < 1e-5
    assert found[300:, 0, 0].mean() > 0.05


@pytest.mark.parametrize("phi", ["tanh", "sigmoid"])
def test_the_leading_exponent_of_wide_driven_nets_is_mean_fields(phi):
    """0.5 ln chi(q*), one-hot symbols at random; the spread over seeds and finite width are within 0.03 nats."""
    g, H, std = (2.5, 400, 0.7) if phi == "tanh" else (12.0, 400, 0.7)
    theta = Parameters.zeros((4,), 6, H, 1, dtype=torch.float64)
    rng = np.random.default_rng(3)
    theta.layers[0].W.copy_(torch.from_numpy(rng.standard_normal((4, H, H)) * g / H**0.5))
    theta.layers[0].U.copy_(torch.from_numpy(rng.standard_normal((4, 6, H)) * std))
    x = [torch.eye(6).double()[torch.from_numpy(rng.integers(6, size=(4, 1)))] for _ in range(400)]
    found = growth(theta, phi, x, 1)[100:].mean(0)
    predicted = 0.5 * np.log(theory.chi(phi, g, theory.fixed_point(phi, g, std**2)))
    assert abs(found.mean() - predicted) < 0.03, (found.mean(), predicted)


def test_finite_lags_tend_to_the_exponents():
    """ln sigma_i / lag from the same Jacobians: the sums agree at every lag, each value at a long one."""
    theta = random_parameters((), (2, 8, 1), gain=2.0)
    J = list(jacobians.along(theta.layers, Elman(ACTIVATIONS["tanh"]), noise(theta, 800), start(theta)))
    exponents = torch.stack(list(lyapunov.log_growth(J)))
    rates = graded.log10_singular_values(J, [5, 800]) * math.log(10) / torch.tensor([5, 800]).double()[:, None]
    torch.testing.assert_close(rates[0, 0].sum(), exponents[:5].mean(0).sum())
    torch.testing.assert_close(rates[0, 1], exponents.mean(0)[0], atol=0.02, rtol=0)
    assert (rates[0, 0] - exponents[:5].mean(0)[0]).abs().max() > 0.1


# -------------------- what is made of them


@pytest.mark.parametrize(
    ("exponents", "dimension", "entropy"),
    [
        ([0.9056, 0.0, -14.572], 2.06215, 0.9056),  # Lorenz (Sprott 2003): 2.06
        ([0.5, -1.0], 1.5, 0.5),
        ([-1.0, 0.5], 1.5, 0.5),
        ([-0.1, -2.0], 0.0, 0.0),
        ([0.0, -1.0], 1.0, 0.0),
        ([0.3, 0.2], 2.0, 0.5),
        ([0.3, -math.inf], 1.0, 0.3),
        ([0.3, 0.1, -0.3, -0.2, -5.0], 3 + 2 / 3, 0.4),
        ([math.nan, -1.0], math.nan, math.nan),
    ],
)
def test_kaplan_yorke_and_entropy(exponents, dimension, entropy):
    values = torch.tensor([exponents] * 2).double()
    np.testing.assert_allclose(lyapunov.kaplan_yorke(values), [dimension] * 2, atol=1e-4)
    np.testing.assert_allclose(lyapunov.entropy_rate(values), [entropy] * 2)


def test_the_standard_error_is_that_of_a_mean_and_covers_the_truth():
    """Independent draws: sd / sqrt(steps); for a curved function of the mean, too (here its square at 0.5: 2 * 0.5 * that)."""
    rng = np.random.default_rng(0)
    draws = torch.from_numpy(0.5 + rng.standard_normal((4000, 200, 1)))
    of_mean = lyapunov.standard_error(lambda e: e[..., 0], draws)
    of_square = lyapunov.standard_error(lambda e: e[..., 0] ** 2, draws)
    for found in (of_mean, of_square):
        assert abs(found.square().mean().sqrt() * 4000**0.5 - 1) < 0.05
    assert ((draws.mean(0)[:, 0] - 0.5).abs() < 2 * of_mean).double().mean() > 0.9


def test_a_net_that_is_not_finite_leaves_its_neighbours_alone():
    theta = random_parameters((3,), (2, 5, 1))
    x = noise(theta, 20)
    alone = growth(theta, "tanh", x)
    theta.layers[0].W[1] = torch.nan
    found = growth(theta, "tanh", x)
    assert found[:, 1].isnan().all()
    torch.testing.assert_close(found[:, [0, 2]], alone[:, [0, 2]])
