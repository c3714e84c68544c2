"""The fused kernels against autograd and the reference; a run alone against the run in company; extreme numbers; the loop on top."""

import math

import numpy as np
import pytest
import torch

numba = pytest.importorskip("numba")
pytestmark = pytest.mark.slow  # compiles for most of a minute on a fresh clone

from oracle import backpropagate, make_config, random_parameters, weights  # noqa: E402

from rnn_lab import bptt, losses, probes  # noqa: E402
from rnn_lab.activations import ACTIVATIONS  # noqa: E402
from rnn_lab.cells import Elman  # noqa: E402
from rnn_lab.kernels import functions  # noqa: E402
from rnn_lab.kernels.engine import Program  # noqa: E402
from rnn_lab.parameters import Parameters  # noqa: E402
from rnn_lab.training import train  # noqa: E402

I, O = 6, 4  # noqa: E741


class Case:
    """A program with random parameters and one mini-batch: symbols and cross entropy, or numbers and squared error."""

    def __init__(self, phi, R=2, T=7, batch=3, hidden=5, layers=1, L=1, symbols=True, dtype=torch.float64, gain=1.0):
        self.theta = random_parameters((R,), (I, hidden, O), layers, dtype, gain)
        self.T, self.batch, self.layers = T, batch, layers
        self.phi, self.loss = phi, "cross entropy" if symbols else "squared error"
        loss = losses.softmax_cross_entropy if symbols else losses.squared_error
        self.net = bptt.Net(Elman(ACTIVATIONS[phi]), loss, L)
        rng = np.random.default_rng(3)
        if symbols:
            self.x, self.y = rng.integers(I, size=(R, T, batch)).astype(np.uint8), rng.integers(O, size=(R, L, batch))
            self.dense = torch.from_numpy(np.eye(I)[self.x]).to(dtype)
        else:
            numpy_dtype = self.theta.flat.numpy().dtype
            self.x = rng.normal(size=(R, T, batch, I)).astype(numpy_dtype)
            self.y = rng.normal(size=(R, L, batch, O)).astype(numpy_dtype)
            self.dense = torch.from_numpy(self.x)

    def fused(self, measure=True, threads=1, theta=None, runs=slice(None)):
        """Objective, gradients and series of the kernel, for all runs or some of them."""
        program = Program(theta or self.theta, self.net, self.T, self.batch, threads)
        objective, o = program(self.x[runs, None], self.y[runs, None], 0, measure)
        return objective, program.grads.flat, program.timesteps(), o

    def reference(self):
        buffers, grads = bptt.Buffers(self.theta, self.net.cell, self.T, self.batch), self.theta.like()
        o = bptt.forward(self.theta, self.dense, self.net, buffers)
        objective, dE_do = bptt.objective(o, torch.from_numpy(self.y), self.net)
        adjoints = bptt.scaled_backward(self.theta, self.dense, dE_do, self.net, buffers, grads)
        series = {
            "dE_dh/log10_norm": probes.log10_norms(adjoints.dE_dh),
            "delta/log10_norm": probes.log10_norms(adjoints.delta),
            "h/norm": probes.h_norm(buffers.h),
            "phi_prime/mean": probes.phi_prime_mean([h[..., 1:, :, :] for h in buffers.h], self.net.cell.phi),
        }
        return objective, grads.flat, series, o


def subset(theta: Parameters, r: int) -> Parameters:
    """Run r alone."""
    first = theta.layers[0].U
    alone = Parameters.zeros((1,), first.shape[-2], first.shape[-1], theta.V.shape[-1], len(theta.layers), first.dtype)
    alone.flat.copy_(theta.flat[r : r + 1])
    return alone


def assert_close(fused, reference, rtol=1e-10, atol=1e-11):
    objective, grads, series, o = reference
    torch.testing.assert_close(fused[0], objective.double(), rtol=rtol, atol=atol)
    torch.testing.assert_close(fused[1], grads, rtol=rtol, atol=atol, equal_nan=True)
    torch.testing.assert_close(fused[3], o, rtol=rtol, atol=atol, equal_nan=True)
    for name, values in series.items():
        torch.testing.assert_close(fused[2][name], values, rtol=rtol, atol=atol, equal_nan=True, msg=name)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_functions_are_right_to_a_few_units_in_the_last_place(name, kind):
    function = getattr(functions, name)

    @numba.njit(**functions.JIT)
    def apply(a, out):
        for j in range(a.size):
            out[j] = function(a[j])

    a = np.concatenate([np.linspace(-80, 80, 100_001), np.geomspace(1e-35, 1, 100), [0.0]]).astype(kind)
    out = np.empty_like(a)
    apply(a, out)
    exact = np.tanh(a.astype(np.longdouble)) if name == "tanh" else 1 / (1 + np.exp(-a.astype(np.longdouble)))
    assert (np.abs(out - exact) <= 4 * np.spacing(np.abs(exact).astype(kind))).all()
    extreme = np.array([np.inf, -np.inf, np.nan, 1e30, -1e30, 100, -800], kind)
    out = np.empty_like(extreme)
    apply(extreme, out)
    np.testing.assert_array_equal(out, [1, -1, np.nan, 1, -1, 1, -1] if name == "tanh" else [1, 0, np.nan, 1, 0, 1, 0])


@pytest.mark.parametrize("symbols", [True, False], ids=["symbols", "numbers"])
@pytest.mark.parametrize("every", [False, True], ids=["last", "every"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("phi", ACTIVATIONS)
def test_kernel_against_autograd_and_the_reference(phi, layers, every, symbols):
    case = Case(phi, layers=layers, L=7 if every else 1, symbols=symbols)
    found = case.fused()
    objective, flat, series, _ = found
    assert_close(found, case.reference())
    grads = Parameters.zeros((2,), I, 5, O, layers, torch.float64)
    grads.flat.copy_(flat)
    for r in range(2):
        y = torch.from_numpy(case.y[r])
        truth = backpropagate(weights(case.theta, (r,)), case.dense[r], y, phi, case.loss, "mean")
        torch.testing.assert_close(objective[r], truth.objective, rtol=1e-10, atol=1e-12)
        for name, gradient in weights(grads, (r,)).items():
            torch.testing.assert_close(
                gradient.squeeze(0), truth.grads[name].squeeze(0), rtol=1e-9, atol=1e-12, msg=name
            )
        for name, total in (("dE_dh", truth.dE_dh), ("delta", truth.delta)):
            rms = (case.batch * total).norm(dim=-1).square().mean(-1).sqrt()
            torch.testing.assert_close(series[f"{name}/log10_norm"][r], rms.log10(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("phi", ["tanh", "sigmoid"])
def test_float32_is_as_accurate_as_the_reference(phi):
    single, double = (Case(phi, T=60, batch=20, hidden=50, dtype=d, gain=0.8) for d in (torch.float32, torch.float64))
    exact = double.reference()[1]
    error = [(case[1].double() - exact).norm() / exact.norm() for case in (single.fused(), single.reference())]
    assert error[0] < 2 * error[1] + 1e-7
    exact_series, found = double.reference()[2], single.fused()[2]
    for name in exact_series:
        torch.testing.assert_close(found[name], exact_series[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("batch", "hidden"), [(20, 50), (7, 33), (1, 50), (3, 2)])
def test_a_run_alone_is_bitwise_the_run_in_a_program_on_any_number_of_threads(batch, hidden):
    case = Case("tanh", R=8, T=20, batch=batch, hidden=hidden, dtype=torch.float32, gain=1.5)
    program = case.fused(threads=1)
    for other in (case.fused(threads=2), case.fused(threads=3, measure=False)):
        assert torch.equal(program[0], other[0])
        assert torch.equal(program[1], other[1])
    for r in range(8):
        alone = case.fused(theta=subset(case.theta, r), runs=slice(r, r + 1))
        assert torch.equal(alone[0], program[0][r : r + 1])
        assert torch.equal(alone[1][0], program[1][r])
        for name, values in alone[2].items():
            assert torch.equal(values[0], program[2][name][r]), name


def test_vanishing_beyond_any_float_is_measured():
    """P13's sigmoid preset at T = 1000: W, U ~ N(0, 0.01^2); float64 ends at 1e-308, its squares at 1e-162."""
    case = Case("sigmoid", R=1, T=1000, hidden=50, dtype=torch.float32)
    for layer in case.theta.layers:
        layer.W.mul_(0.01 * 50**0.5)
        layer.U.mul_(0.01 / 0.7)
    series = case.fused()[2]
    assert series["dE_dh/log10_norm"].min() < -1000
    assert_close(case.fused(), case.reference(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exploding_beyond_any_float_is_measured(dtype):
    case = Case("relu", R=1, T=600, hidden=50, dtype=dtype)
    layer = case.theta.layers[0]
    layer.W.copy_(torch.eye(50) * 1e3)  # every unit stays on
    layer.U.fill_(1e-30)
    layer.b.fill_(0)
    case.theta.V.mul_(0)
    case.theta.c.fill_(1)
    case.theta.V[..., 0, :] = torch.tensor([0.5, -0.5, 0.2, 0.1])
    case.x, case.T = case.x[:, :10], 10
    case.dense = case.dense[:, :10]
    assert torch.isfinite(case.fused()[1]).all()
    far = Case("linear", R=1, T=600, hidden=50, dtype=dtype)
    far.theta.layers[0].W.copy_(torch.eye(50) * 1e3)
    far.theta.layers[0].U.fill_(0)
    far.theta.layers[0].b.fill_(0)  # h = 0 throughout, so that only the gradient explodes
    found, reference = far.fused(), far.reference()
    assert found[2]["dE_dh/log10_norm"].max() > 1700
    torch.testing.assert_close(found[2]["dE_dh/log10_norm"], reference[2]["dE_dh/log10_norm"], rtol=1e-5, atol=1e-5)
    assert not torch.isfinite(found[1]).all()


def test_nan_and_saturation_as_in_the_reference():
    case = Case("tanh", T=9)
    case.theta.layers[0].b[0] = 1e3  # every unit saturated: phi' is 0, exactly
    case.theta.layers[0].W[1, 2, 3] = math.nan
    found, reference = case.fused(), case.reference()
    assert (found[2]["delta/log10_norm"][0] == -math.inf).all()
    assert (found[2]["phi_prime/mean"][0] == 0).all()
    assert torch.equal(torch.isnan(found[1]), torch.isnan(reference[1]))
    for name in found[2]:
        torch.testing.assert_close(found[2][name], reference[2][name], rtol=1e-10, atol=1e-12, equal_nan=True)


def test_steps_that_a_run_sits_out_are_as_if_they_were_not_there():
    case = Case("sigmoid", L=7, layers=2)
    program, late = Program(case.theta, case.net, 7, 3), np.array([2, 0])
    weight = np.array([1 / (3 * 5), 1 / (3 * 7)])
    objective, _ = program(case.x[:, None], case.y[:, None], 0, True, late, weight)
    case.x, case.y, case.T = case.x[:, 2:], case.y[:, 2:], 5
    case.net = bptt.Net(case.net.cell, case.net.loss, 5)
    shorter = case.fused()
    torch.testing.assert_close(objective[0], shorter[0][0], rtol=1e-12, atol=0)
    torch.testing.assert_close(program.grads.flat[0], shorter[1][0], rtol=1e-10, atol=1e-14)
    for name, values in program.timesteps().items():
        torch.testing.assert_close(values[0, :, 2:], shorter[2][name][0], rtol=1e-10, atol=1e-12, msg=name)


def trained(kernel, seeds, **values):
    settings = {"task.length": 20, "training.updates": 12, "training.log_every": 4, "clip.name": "norm"}
    settings |= {"training.kernel": kernel} | {k.replace("__", "."): v for k, v in values.items()}
    return list(train([make_config(settings | {"seed": s}) for s in seeds]))


def test_training_with_the_kernel_is_training_with_the_reference():
    rows = zip(
        trained("numba", (0, 1), training__dtype="float64"),
        trained("reference", (0, 1), training__dtype="float64"),
        strict=True,
    )
    for fused, reference in rows:
        assert fused.step == reference.step
        for group in ("scalars", "timesteps"):
            found, wanted = getattr(fused, group), getattr(reference, group)
            assert set(found) == set(wanted)
            for name in wanted:
                np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_trained_alone_is_bitwise_trained_in_a_program():
    shape = {"model__hidden": 13, "training__batch_size": 7}
    program = trained("numba", (0, 1, 2), **shape)
    for seed in (0, 2):
        for alone, row in zip(trained("numba", (seed,), **shape), program, strict=True):
            for name, values in alone.timesteps.items():
                np.testing.assert_array_equal(values[0], row.timesteps[name][seed], err_msg=name)
            for name in ("train/loss", "grad/norm"):
                assert alone.scalars[name][0] == row.scalars[name][seed]


def test_a_run_that_diverges_between_two_rows_is_measured():
    rows = trained("numba", (0,), optimizer__lr=1e30, clip__name="none", model__activation="relu")
    reference = trained("reference", (0,), optimizer__lr=1e30, clip__name="none", model__activation="relu")
    assert [(r.step, r.diverged.tolist()) for r in rows] == [(r.step, r.diverged.tolist()) for r in reference]
    assert rows[-1].diverged.all()
