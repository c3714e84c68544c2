"""Theory against itself (closed forms, Monte Carlo), and against nets that are simulated."""

import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from oracle import make_config

from rnn_lab import theory, training
from rnn_lab.activations import ACTIVATIONS

PHI = {
    "sigmoid": (lambda a: 0.5 + 0.5 * np.tanh(a / 2), lambda a: 0.25 * (1 - np.tanh(a / 2) ** 2)),
    "tanh": (np.tanh, lambda a: 1 - np.tanh(a) ** 2),
    "relu": (lambda a: np.maximum(a, 0), lambda a: (a > 0).astype(float)),
    "linear": (lambda a: a, np.ones_like),
}
NAMES = list(PHI)


def trapezoid(f, q: float, points: int = 400_001) -> float:
    """E[f(sqrt(q) z)], twenty times finer than the theory's own."""
    z = np.linspace(-10, 10, points)
    return float(np.trapezoid(f(np.sqrt(q) * z) * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi), z))


# -- Gaussian averages


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("q", [0.0, 1e-7, 3e-4, 0.04, 0.5, 1.7, 13.0, 777.0, 3e3])
def test_averages_are_the_integrals(name, q):
    phi, prime = PHI[name]
    square, slope = trapezoid(lambda a: phi(a) ** 2, q), trapezoid(lambda a: prime(a) ** 2, q)
    rtol = 1e-4 if name == "relu" else 1e-6  # the quadrature's own error at a kink
    np.testing.assert_allclose(theory.mean_square(name, q), square, rtol, atol=1e-18)
    if name != "relu" or q > 0:
        np.testing.assert_allclose(theory.mean_square_slope(name, q), slope, rtol)


@pytest.mark.parametrize("name", NAMES)
def test_averages_by_monte_carlo(name):
    phi, prime = PHI[name]
    z = np.random.default_rng(0).standard_normal(400_000)
    for q in (0.3, 4.0):
        for f, expected in ((phi, theory.mean_square(name, q)), (prime, theory.mean_square_slope(name, q))):
            sample = f(np.sqrt(q) * z) ** 2
            assert abs(sample.mean() - expected) < 5 * sample.std() / np.sqrt(len(z)) + 1e-12


@pytest.mark.parametrize(("name", "limit"), [("tanh", 1.0), ("sigmoid", 0.5)])
def test_averages_far_out_follow_saturation(name, limit):
    """phi'^2 is a peak of width 1 at 0, seen by a Gaussian of density 1 / sqrt(2 pi q) there."""
    phi, prime = PHI[name]
    a = np.linspace(-80, 80, 200_001)
    for q in (2e4, 1e6, 1e9):
        peak = np.trapezoid(prime(a) ** 2, a) / np.sqrt(2 * np.pi * q)
        tail = np.trapezoid(limit - (phi(a) ** 2 + phi(-a) ** 2) / 2, a) / np.sqrt(2 * np.pi * q)
        np.testing.assert_allclose(theory.mean_square_slope(name, q), peak, rtol=1e-4)
        np.testing.assert_allclose(theory.mean_square(name, q), limit - tail, rtol=1e-6)


def test_fifty_gauss_hermite_nodes_are_a_trap():
    """For tanh at g = 5 without input they give half the true chi."""
    q = float(theory.fixed_point("tanh", 5.0, 0.0))
    z, w = np.polynomial.hermite_e.hermegauss(50)
    hermite = 25 * (w * PHI["tanh"][1](np.sqrt(q) * z) ** 2).sum() / np.sqrt(2 * np.pi)
    truth = 25 * trapezoid(lambda a: PHI["tanh"][1](a) ** 2, q)
    np.testing.assert_allclose(theory.chi("tanh", 5.0, q), truth, rtol=1e-6)
    assert 0.35 < hermite / truth < 0.65


# -- fixed points and the critical line


@pytest.mark.parametrize("name", NAMES)
def test_the_fixed_point_is_where_the_recursion_settles(name):
    g, inputs = np.array([0.3, 0.9, 1.2, 3.0])[:, None], np.array([0.01, 0.5, 4.0])
    q = theory.second_moments(name, g, np.broadcast_to(inputs[:, None], (4, 3, 3000)))[..., -1]
    fixed = theory.fixed_point(name, g, inputs)
    bounded = np.isfinite(fixed)
    assert bounded.all() == (name in ("sigmoid", "tanh"))
    np.testing.assert_allclose(fixed[bounded], q[bounded], rtol=1e-6)
    assert (q[~bounded] > 1e50).all()


def test_closed_forms():
    np.testing.assert_allclose(theory.fixed_point("linear", 0.5, 0.3), 0.3 / 0.75)
    np.testing.assert_allclose(theory.fixed_point("relu", 1.0, 0.3), 0.3 / 0.5)
    constant = np.full(30, 0.2)
    for name, halved in (("linear", 1), ("relu", 2)):
        slope = theory.slope(name, 3.0, theory.second_moments(name, 3.0, constant))
        np.testing.assert_allclose(slope, 0.5 * np.log10(9 / halved))
        np.testing.assert_allclose(theory.critical_g(name, constant), halved**0.5)
    still = theory.second_moments("tanh", 3.0, np.zeros(50))  # autonomous, from h_0 = 0: stays there
    np.testing.assert_array_equal(still, 0)
    np.testing.assert_allclose(theory.slope("tanh", 3.0, still), np.log10(3), rtol=1e-6)
    np.testing.assert_allclose(theory.critical_g("tanh", 0.0), 1, rtol=1e-4)


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_chi_is_1_on_the_critical_line_and_nowhere_near(name):
    inputs = np.geomspace(1e-4, 100, 30)
    g = theory.critical_g(name, inputs)
    assert (np.diff(g) > 0).all()  # input calms a saturating net
    np.testing.assert_allclose(theory.chi(name, g, theory.fixed_point(name, g, inputs)), 1, rtol=1e-6)
    assert (theory.chi(name, 0.97 * g, theory.fixed_point(name, 0.97 * g, inputs)) < 1).all()
    assert (theory.chi(name, 1.03 * g, theory.fixed_point(name, 1.03 * g, inputs)) > 1).all()


# -- along a sequence


def test_the_recursion_by_hand():
    inputs = np.array([0.3, 0.0, 1.1])
    q = theory.second_moments("linear", 2.0, inputs)
    np.testing.assert_allclose(q, [0.3, 4 * 0.3, 16 * 0.3 + 1.1])
    q = theory.second_moments(
        "sigmoid", 2.0, inputs, late=1
    )  # held at h = 0 in the first step: sigmoid(0)^2 = 1/4 does not enter
    np.testing.assert_allclose(q[1:], [0.0, 4 * 0.25 + 1.1])
    chis = theory.chi("sigmoid", 2.0, q)
    np.testing.assert_allclose(theory.slope("sigmoid", 2.0, q, late=1), 0.5 * np.log10(chis[2]))
    np.testing.assert_allclose(theory.slope("sigmoid", 2.0, q), 0.5 * np.log10(chis[1:]).mean())
    assert np.isnan(theory.slope("tanh", 1.0, np.ones(1)))


def test_the_slope_averages_over_the_lags_of_the_measured_one():
    q = np.random.default_rng(0).uniform(0.1, 3, 100)
    steps = 0.5 * np.log10(theory.chi("tanh", 1.5, q))
    curve = np.concatenate([[0], np.cumsum(steps[::-1])])  # log10 ||dE/dh_t|| at lags 0, 1, ...
    np.testing.assert_allclose(theory.slope("tanh", 1.5, q), (curve[59] - curve[0]) / 59)
    np.testing.assert_allclose(theory.slope("tanh", 1.5, q[:30]), steps[1:30].mean())


def test_runs_are_broadcast_and_cheap():
    g, inputs = np.random.default_rng(0).uniform(0.2, 4, 600), np.random.default_rng(1).uniform(0.01, 2, (600, 100))
    theory.chi("tanh", 1.0, 1.0)  # makes the table
    began = time.process_time()
    slopes = theory.slope("tanh", g, theory.second_moments("tanh", g, inputs))
    assert time.process_time() - began < 1.5  # 2.5 ms a run at most; measured: 0.2
    for run in (0, 599):
        alone = theory.slope("tanh", g[run], theory.second_moments("tanh", g[run], inputs[run]))
        np.testing.assert_allclose(slopes[run], alone, rtol=1e-12)


# -- Pascanu's bound


def test_eta():
    assert {name: phi.gamma for name, phi in theory.PHI.items()} == {n: phi.gamma for n, phi in ACTIVATIONS.items()}
    np.testing.assert_allclose(theory.eta("sigmoid", [4.0, 6.0]), [1.0, 1.5])  # gamma = 1/4
    np.testing.assert_allclose(theory.eta("tanh", 1.5, leak=0.2), 0.8 + 0.2 * 1.5)
    np.testing.assert_allclose(theory.log10_bound(0.1, [0, 3]), [0, -3])
    np.testing.assert_array_equal(theory.log10_bound(0.0, [0, 3]), [0, -np.inf])
    a = np.linspace(-9, 9, 20_001)
    for name, (_, prime) in PHI.items():
        np.testing.assert_allclose(prime(a).max(), theory.PHI[name].gamma)


def test_log10_rho_is_the_rate_of_a_linear_net_over_a_long_time():
    W = np.random.default_rng(0).standard_normal((2, 30, 30)) / 30**0.5
    moved = np.linalg.matrix_power(W, 800) @ np.ones(30)
    rate = np.log10(np.linalg.norm(moved, axis=-1)) / 800
    np.testing.assert_allclose(theory.log10_rho(W), rate, atol=0.01)


@pytest.mark.parametrize("activation", NAMES)
def test_measured_deltas_never_exceed_the_bound(activation):
    """||delta_k|| <= eta^(t-k) ||delta_t||, last-step loss, top layer, at each record of nets that learn."""
    scales = (0.3, 1.0, 3.0)
    configs = [
        make_config({"model.activation": activation, "model.layers": layers, "task.length": 30, "init.scale": scale,
                     "model.hidden": 20, "training.updates": 20, "training.dtype": "float64", "probe.spectrum_every": 10,
                     "clip.name": "norm", "optimizer.lr": 0.1})
        for layers in (1,) for scale in scales
    ]  # fmt: skip
    for snapshot in training.train(configs):
        delta = snapshot.timesteps["delta/log10_norm"][:, -1, ::-1].astype(float)
        eta = snapshot.scalars["theory/eta"][:, None]
        np.testing.assert_allclose(eta[:, 0], theory.eta(activation, snapshot.scalars["W/sigma_max"]))
        slack = theory.log10_bound(eta, np.arange(30)) - (delta - delta[:, :1])
        assert slack.min() > -1e-4  # series are float32
        per_step = np.log10(eta) - np.diff(delta)
        assert per_step.min() > -1e-4


# -- recorded by the run, and right for wide nets


@pytest.fixture
def no_eigenvalues(monkeypatch):
    """Of wide matrices they take most of the time, and these tests do not look at them."""
    monkeypatch.setattr(training.Training, "_spectrum", lambda self: {})


def untrained(values: dict, seeds: int = 1):
    [snapshot] = training.train([make_config({"training.updates": 0, **values, "seed": seed}) for seed in range(seeds)])
    return snapshot.scalars


@pytest.mark.parametrize(
    ("activation", "g", "input_std", "tolerance"),
    [
        ("tanh", 0.5, 0.5, 0.01),
        ("tanh", 1.0, 0.4, 0.015),
        ("tanh", 2.5, 0.4, 0.02),
        ("tanh", 2.5, 2.0, 0.02),
        ("sigmoid", 1.0, 0.4, 0.01),
        ("sigmoid", 12.0, 0.4, 0.02),
        ("relu", 1.0, 0.4, 0.02),
        ("relu", 2.0, 0.4, 0.02),
        ("linear", 1.2, 0.4, 0.01),
    ],
)
@pytest.mark.usefixtures("no_eigenvalues")
def test_wide_nets_have_the_predicted_slope(activation, g, input_std, tolerance):
    values = {"model.hidden": 600, "task.length": 40, "training.batch_size": 4, "init.scale": g}
    found = untrained(values | {"model.activation": activation, "init.input_std": input_std}, seeds=2)
    assert abs(found["dE_dh/slope"].mean() - found["theory/slope"][0]) < tolerance
    q = theory.second_moments(activation, g, np.full(40, input_std**2))
    np.testing.assert_allclose(found["theory/slope"], theory.slope(activation, g, q))


@pytest.mark.usefixtures("no_eigenvalues")
def test_the_top_layer_of_a_stack_hears_the_one_below():
    values = {"model.hidden": 600, "model.layers": 2, "task.length": 40, "training.batch_size": 4, "init.scale": 2.0}
    found = untrained(values | {"init.input_std": 0.8}, seeds=2)
    below = theory.second_moments("tanh", 2.0, np.full(40, 0.64))
    top = theory.second_moments("tanh", 2.0, 600 * 0.64 * theory.mean_square("tanh", below))
    np.testing.assert_allclose(found["theory/slope"], theory.slope("tanh", 2.0, top))
    narrow = untrained(values | {"init.input_scale": 1.3}, seeds=2)
    assert abs(narrow["dE_dh/slope"].mean() - narrow["theory/slope"][0]) < 0.02
    alone = theory.slope("tanh", 2.0, theory.second_moments("tanh", 2.0, np.full(40, 1.69 / 6)))
    assert abs(narrow["theory/slope"][0] - alone) > 0.02


def test_inputs_that_are_no_symbols_enter_by_their_second_moment():
    """U[0, 1] counts 1/3 (and the two marks 2 / T each), not its variance 1/12. A wide net of unit gain agrees."""
    values = {"task.name": "addition", "task.length": 40, "training.batch_size": 200, "model.hidden": 20}
    found = untrained(values | {"init.input_std": 1.5, "init.scale": 1.5}, seeds=1)
    expected = theory.slope("tanh", 1.5, theory.second_moments("tanh", 1.5, np.full(40, 2.25 * (1 / 3 + 2 / 40))))
    np.testing.assert_allclose(found["theory/slope"], expected, atol=0.02)


def test_theory_is_missing_where_none_applies():
    kinds = ("gaussian", "orthogonal", "gaussian")
    configs = [
        make_config({"init.name": kind, "training.updates": 10, "training.log_every": 5, "task.length": 20})
        for kind in kinds
    ]
    first, second, last = training.train(configs)
    np.testing.assert_array_equal(np.isfinite(first.scalars["theory/slope"]), [True, False, True])
    assert np.isfinite(first.scalars["theory/eta"]).all()
    assert not {"theory/slope", "theory/eta"} & set(second.scalars)  # weights have moved; no spectrum here
    assert "theory/slope" not in last.scalars
    assert np.isfinite(last.scalars["theory/eta"]).all()


def test_a_std_is_a_gain():
    by_scale = untrained({"init.scale": 2.0, "init.input_scale": 3.0, "model.hidden": 16, "task.length": 20})
    by_std = untrained({"init.std": 0.5, "init.input_std": 3 / 6**0.5, "model.hidden": 16, "task.length": 20})
    np.testing.assert_allclose(by_scale["theory/slope"], by_std["theory/slope"], rtol=1e-12)


def test_no_gain_at_all_is_an_infinite_rate():
    found = untrained({"init.scale": 0.0, "task.length": 20})
    assert found["theory/slope"] == -np.inf
    assert found["theory/eta"] == 0


def test_theory_needs_numpy_alone():
    code = "import sys; from rnn_lab import theory; theory.critical_g('tanh', 1.0); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "pandas", "scipy", "hydra"} & set(loaded)
    assert torch.get_num_threads() == 1
