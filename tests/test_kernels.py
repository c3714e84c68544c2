"""The fused kernels against autograd, the reference and PyTorch's own cells; a run alone against the run in company; extreme numbers."""

import math

import numpy as np
import pytest
import torch

numba = pytest.importorskip("numba")
pytestmark = pytest.mark.slow  # compiles for most of a minute on a fresh clone

from kernel_oracle import truth  # noqa: E402
from oracle import make_config, random_parameters  # noqa: E402

from rnn_lab import bptt, losses, regularizers  # noqa: E402
from rnn_lab.activations import ACTIVATIONS  # noqa: E402
from rnn_lab.cells import GRU, LSTM, Elman, Leaky  # noqa: E402
from rnn_lab.kernels import functions  # noqa: E402
from rnn_lab.kernels.cells import CELLS  # noqa: E402
from rnn_lab.kernels.engine import Program  # noqa: E402
from rnn_lab.parameters import Parameters  # noqa: E402
from rnn_lab.training import train  # noqa: E402

I, O = 6, 4  # noqa: E741
LEAK = np.array([0.3, 0.8, 1.0])


class Case:
    """A program with random parameters and one mini-batch: symbols and cross entropy, or numbers and squared error."""

    def __init__(
        self, cell="elman", phi="tanh", R=2, T=7, batch=3, hidden=5, layers=1, L=1, symbols=True, dtype=torch.float64, gain=1.0
    ):  # fmt: skip
        self.theta = random_parameters((R,), (I, hidden, O), layers, dtype, gain, gates=CELLS[cell].gates)
        self.cell, self.T, self.batch, self.layers, self.L, self.phi = cell, T, batch, layers, L, phi
        self.leak = np.resize(LEAK, R) if cell == "leaky" else np.ones(R)
        self.loss = losses.softmax_cross_entropy if symbols else losses.squared_error
        rng = np.random.default_rng(3)
        if symbols:
            self.x, self.y = rng.integers(I, size=(R, T, batch)).astype(np.uint8), rng.integers(O, size=(R, L, batch))
            self.dense = torch.from_numpy(np.eye(I)[self.x]).to(dtype)
        else:
            numpy_dtype = self.theta.flat.numpy().dtype
            self.x = rng.normal(size=(R, T, batch, I)).astype(numpy_dtype)
            self.y = rng.normal(size=(R, L, batch, O)).astype(numpy_dtype)
            self.dense = torch.from_numpy(self.x)

    def net(self, runs=slice(None)) -> bptt.Net:
        phi, leak = ACTIVATIONS[self.phi], torch.from_numpy(self.leak[runs]).to(self.theta.flat.dtype)
        cell = {"elman": lambda: Elman(phi), "leaky": lambda: Leaky(phi, leak), "lstm": LSTM, "gru": GRU}[self.cell]()
        return bptt.Net(cell, self.loss, self.L)

    def program(self, threads=1, theta=None, runs=slice(None)) -> Program:
        return Program(self.theta if theta is None else theta, self.net(runs), self.T, self.batch, threads)

    def fused(self, measure=True, threads=1, theta=None, runs=slice(None), alpha=None) -> "Found":
        """All runs or some of them."""
        program = self.program(threads, theta, runs)
        return Found(program, program(self.x[runs, None], self.y[runs, None], 0, measure, alpha=alpha))

    def truth(self, r):
        y = torch.from_numpy(self.y[r])
        return truth(self.cell, self.theta, r, self.dense[r], y, self.L, self.phi, float(self.leak[r]))


class Found:
    """What a program computed."""

    def __init__(self, program, returned):
        self.objective, self.o = returned
        self.flat, self.series = program.grads.flat, program.timesteps()
        self.curve = torch.from_numpy(program.curve().copy())
        self.omega, self.grads = program.omega(), program.grads


def subset(theta: Parameters, r: int) -> Parameters:
    """Run r alone."""
    alone = Parameters.zeros(
        (1,), theta.layers[0].U.shape[-2], theta.V.shape[-2], theta.V.shape[-1], len(theta.layers), theta.flat.dtype,
        gates=theta.layers[0].U.shape[-1] // theta.V.shape[-2],
    )  # fmt: skip
    alone.flat.copy_(theta.flat[r : r + 1])
    return alone


def converted(case: Case, dtype: torch.dtype) -> Case:
    """The same numbers in another type."""
    other = object.__new__(Case)
    other.__dict__.update(case.__dict__)
    other.theta = case.theta.like()
    other.theta = Parameters.zeros(
        tuple(case.theta.flat.shape[:-1]), I, case.theta.V.shape[-2], O, case.layers, dtype,
        gates=CELLS[case.cell].gates,
    )  # fmt: skip
    other.theta.flat.copy_(case.theta.flat)
    return other


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


ALL = [
    *(("elman", phi) for phi in ACTIVATIONS),
    ("leaky", "tanh"),
    ("leaky", "relu"),
    ("lstm", "tanh"),
    ("gru", "tanh"),
]


@pytest.mark.parametrize("symbols", [True, False], ids=["symbols", "numbers"])
@pytest.mark.parametrize("every", [False, True], ids=["last", "every"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("cell", "phi"), ALL)
def test_kernel_against_autograd(cell, phi, layers, every, symbols):
    """Objective, gradients, every series at every step, the curve of E_T alone, and Omega."""
    case = Case(cell, phi, layers=layers, L=7 if every else 1, symbols=symbols)
    found = case.fused()
    for r in range(2):
        exact = case.truth(r)
        torch.testing.assert_close(found.objective[r], exact.objective, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.flat[r], exact.grads, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.curve[r], exact.curve, rtol=1e-10, atol=1e-10)
        assert set(found.series) == set(exact.series)
        for name, values in exact.series.items():
            torch.testing.assert_close(found.series[name][r], values, rtol=1e-9, atol=1e-10, msg=name)
        if found.omega is not None:
            torch.testing.assert_close(found.omega[r], exact.omega, rtol=1e-9, atol=1e-12)
    assert (found.omega is None) == (cell in ("lstm", "gru"))


@pytest.mark.parametrize("every", [False, True], ids=["last", "every"])
@pytest.mark.parametrize("cell", CELLS)
def test_every_example_and_every_error_may_have_a_scale_of_its_own(cell, every):
    """Errors from 1 to 1e14 in one batch and from step to step: adjoints of different exponents meet in sums, shifted."""
    case = Case(cell, T=7, batch=5, layers=2, L=7 if every else 1, symbols=False)
    case.y *= 10.0 ** np.random.default_rng(1).integers(0, 15, size=case.y.shape)
    found = case.fused()
    for r in range(2):
        exact = case.truth(r)
        torch.testing.assert_close(
            found.flat[r] / exact.grads.abs().max(), exact.grads / exact.grads.abs().max(), rtol=1e-9, atol=1e-14
        )
        torch.testing.assert_close(found.curve[r], exact.curve, rtol=1e-9, atol=1e-10)
        for name, values in exact.series.items():
            torch.testing.assert_close(found.series[name][r], values, rtol=1e-9, atol=1e-9, msg=name)
        if found.omega is not None:
            torch.testing.assert_close(found.omega[r], exact.omega, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("measure", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", ["elman", "leaky"])
def test_the_regulariser_adds_alpha_times_its_immediate_derivative(cell, layers, measure):
    case, alpha = Case(cell, R=3, layers=layers, hidden=13), np.array([4.0, 0.5, 0.0])
    found, without = case.fused(measure, alpha=alpha), case.fused(measure)
    assert found.omega is not None
    for r in range(3):
        exact = case.truth(r)
        if measure or alpha[r]:
            torch.testing.assert_close(found.omega[r], exact.omega, rtol=1e-9, atol=1e-12)
        for layer, before, derivative in zip(found.grads.layers, without.grads.layers, exact.omega_W, strict=True):
            torch.testing.assert_close(layer.W[r], before.W[r] + alpha[r] * derivative, rtol=1e-9, atol=1e-12)
            assert torch.equal(layer.U[r], before.U[r])
            assert torch.equal(layer.b[r], before.b[r])


def test_omega_counts_what_the_reference_counts_and_is_its_omega():
    """A curve that falls through ||d||^2 = 1e-20: steps beyond do not count."""
    case = Case("elman", "sigmoid", R=1, T=60, hidden=13)
    found = case.fused(alpha=np.array([2.0]))
    assert case.fused().series["dE_dh/log10_norm"].min() < -15
    net, grads = case.net(), case.theta.like()
    buffers = bptt.Buffers(case.theta, net.cell, case.T, case.batch, keep_dE_dh=True)
    o = bptt.forward(case.theta, case.dense, net, buffers)
    _, dE_do = bptt.objective(o, torch.from_numpy(case.y), net)
    bptt.backward(case.theta, case.dense, dE_do, net, buffers, grads)
    alpha = torch.tensor([2.0], dtype=torch.float64)
    torch.testing.assert_close(
        found.omega, regularizers.add_omega_gradient_(case.theta, net.cell, buffers, alpha, grads), rtol=1e-10, atol=0
    )
    torch.testing.assert_close(found.flat, grads.flat, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_gated_kernels_are_those_of_torch_nn(cell, layers):
    case = Case(cell, R=1, T=9, batch=4, hidden=6, layers=layers, symbols=False)
    found, theta, H = case.fused(), case.theta, 6
    net = (torch.nn.LSTM if cell == "lstm" else torch.nn.GRU)(I, H, layers, dtype=torch.float64)
    with torch.no_grad():
        for n, layer in enumerate(theta.layers):
            getattr(net, f"weight_ih_l{n}").copy_(layer.U[0].T)
            getattr(net, f"weight_hh_l{n}").copy_(layer.W[0].T)
            getattr(net, f"bias_ih_l{n}").copy_(layer.b[0, 0])
            getattr(net, f"bias_hh_l{n}").zero_()
    h, _ = net(case.dense[0])
    E = (h[-1] @ theta.V[0] + theta.c[0] - torch.from_numpy(case.y[0, 0])).square().sum() / 4
    E.backward()
    torch.testing.assert_close(found.objective[0], E.detach(), rtol=1e-12, atol=0)
    for n, layer in enumerate(found.grads.layers):
        torch.testing.assert_close(layer.U[0].T, getattr(net, f"weight_ih_l{n}").grad, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(layer.W[0].T, getattr(net, f"weight_hh_l{n}").grad, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(layer.b[0, 0], getattr(net, f"bias_ih_l{n}").grad, rtol=1e-10, atol=1e-13)


def test_a_leak_of_1_is_an_elman_net():
    leaky, elman = Case("leaky", T=20, hidden=13), Case("elman", T=20, hidden=13)
    leaky.leak = np.ones(2)
    torch.testing.assert_close(leaky.fused().flat, elman.fused().flat, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("cell", "phi"), [("elman", "tanh"), ("elman", "sigmoid"), ("leaky", "tanh"), ("lstm", "tanh"), ("gru", "tanh")]
)
def test_float32_has_the_accuracy_of_float32(cell, phi):
    single = Case(cell, phi, T=60, batch=20, hidden=50, dtype=torch.float32, gain=0.8)
    exact, found = converted(single, torch.float64).fused(), single.fused()
    assert (found.flat.double() - exact.flat).norm() / exact.flat.norm() < 2e-6
    for name in exact.series:
        torch.testing.assert_close(found.series[name], exact.series[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(("batch", "hidden"), [(20, 50), (7, 33), (1, 50), (3, 2)])
@pytest.mark.parametrize("cell", CELLS)
def test_a_run_alone_is_bitwise_the_run_in_a_program_on_any_number_of_threads(cell, batch, hidden):
    case, alpha = Case(cell, R=8, T=20, batch=batch, hidden=hidden, layers=2, dtype=torch.float32, gain=1.5), np.ones(8)
    program = case.fused(threads=1, alpha=alpha)
    for other in (case.fused(threads=2, alpha=alpha), case.fused(threads=3, measure=False, alpha=alpha)):
        assert torch.equal(program.objective, other.objective)
        assert torch.equal(program.flat, other.flat)
    for r in range(8):
        alone = case.fused(theta=subset(case.theta, r), runs=slice(r, r + 1), alpha=alpha[r : r + 1])
        assert torch.equal(alone.objective, program.objective[r : r + 1])
        assert torch.equal(alone.flat[0], program.flat[r])
        for name, values in alone.series.items():
            assert torch.equal(values[0], program.series[name][r]), name


def test_vanishing_beyond_any_float_is_measured():
    """P13's sigmoid preset at T = 1000: W, U ~ N(0, 0.01^2); float64 ends at 1e-308, its squares at 1e-162. A step costs rho(W) / 4."""
    case = Case("elman", "sigmoid", R=1, T=1000, hidden=50, dtype=torch.float32)
    for layer in case.theta.layers:
        layer.W.mul_(0.01 * 50**0.5)
        layer.U.mul_(0.01 / 0.7)
    found, exact = case.fused(), converted(case, torch.float64).fused()
    curve = found.series["dE_dh/log10_norm"][0, 0]
    assert curve.min() < -1000
    rho = torch.linalg.eigvals(case.theta.layers[0].W[0].double()).abs().max()
    torch.testing.assert_close((curve[900] - curve[0]) / 900, -(rho / 4).log10(), rtol=1e-2, atol=0)
    for name in ("dE_dh", "delta", "dW", "dU"):
        series = f"{name}/log10_norm"
        torch.testing.assert_close(found.series[series], exact.series[series], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("cell", ["leaky", "lstm", "gru"])
def test_cells_vanish_beyond_any_float_at_a_constant_rate(cell):
    """With W = 0 and forget, update gates and leak constant, dE/dstate falls by the same factor at every step: known in closed form."""
    case = Case(cell, R=1, T=800, hidden=5, dtype=torch.float32)
    layer = case.theta.layers[0]
    layer.W.zero_()
    layer.U.zero_()
    layer.b.zero_()
    case.leak = np.array([0.9])
    keeps = {"leaky": 0.1, "lstm": 0.5, "gru": 0.5}[cell]  # 1 - a, sigmoid(0), sigmoid(0)
    series = case.fused().series["dE_dc/log10_norm" if cell == "lstm" else "dE_dh/log10_norm"][0, 0]
    torch.testing.assert_close(
        series.diff(), torch.full((799,), -math.log10(keeps), dtype=torch.float64), rtol=1e-5, atol=0
    )
    assert series[0] < -230


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exploding_beyond_any_float_is_measured(dtype):
    far = Case("elman", "linear", R=1, T=600, hidden=50, dtype=dtype)
    layer = far.theta.layers[0]
    layer.W.copy_(torch.eye(50) * 1e3)
    layer.U.fill_(0)
    layer.b.fill_(0)  # h = 0 throughout, so that only the gradient explodes
    found = far.fused()
    torch.testing.assert_close(
        found.series["dE_dh/log10_norm"][0, 0].diff(), torch.full((599,), -3.0, dtype=torch.float64), rtol=1e-5, atol=0
    )
    assert not torch.isfinite(found.flat).all()


@pytest.mark.parametrize("cell", CELLS)
def test_saturation_is_exact(cell):
    """Every unit far into saturation: phi' and the gates' derivatives are 0, exactly, and so is delta."""
    case = Case(cell, T=9)
    case.leak = np.ones(2)
    case.theta.layers[0].b[0] = 1e3
    found = case.fused()
    assert (found.series["delta/log10_norm"][0] == -math.inf).all()
    assert (found.series["dU/log10_norm"][0] == -math.inf).all()
    own = found.series["gates/saturation" if cell in ("lstm", "gru") else "phi_prime/mean"][0]
    assert (own == (1 if cell in ("lstm", "gru") else 0)).all()
    assert torch.isfinite(found.series["delta/log10_norm"][1]).all()


@pytest.mark.parametrize("cell", CELLS)
def test_nan_stays_in_its_run_and_shows(cell):
    case = Case(cell, T=9)
    case.theta.layers[0].W[1, 2, 3] = math.nan
    found, sane = case.fused(alpha=np.ones(2)), Case(cell, T=9).fused(alpha=np.ones(2))
    assert torch.isnan(found.objective[1])
    assert torch.isnan(found.grads.layers[0].W[1]).all()
    assert torch.isnan(found.series["delta/log10_norm"][1]).all()
    assert torch.isnan(found.series["h/norm"][1, :, 1:]).all()
    assert torch.equal(found.flat[0], sane.flat[0])


def test_an_infinite_state_is_what_it_is_in_autograd():
    case = Case("elman", "relu", R=1, T=5, dtype=torch.float32)
    case.theta.layers[0].W.copy_(torch.eye(5) * 1e20)
    case.theta.layers[0].b.fill_(1)
    found, exact = case.fused(), case.truth(0)
    assert torch.isinf(found.series["h/norm"]).any()
    assert torch.equal(torch.isfinite(found.objective[0]), torch.isfinite(exact.objective))
    assert torch.equal(torch.isfinite(found.grads.layers[0].W[0]).all(), torch.isfinite(exact.grads).all())


@pytest.mark.parametrize("cell", CELLS)
def test_steps_that_a_run_sits_out_are_as_if_they_were_not_there(cell):
    case = Case(cell, "sigmoid", L=7, layers=2)
    program, late = case.program(), np.array([2, 0])
    weight, alpha = np.array([1 / (3 * 5), 1 / (3 * 7)]), np.ones(2)
    case.fused(alpha=alpha)
    objective, _ = program(case.x[:, None], case.y[:, None], 0, True)  # leaves its states in the memory
    objective, _ = program(case.x[:, None], case.y[:, None], 0, True, late, weight, alpha)
    series, omega, curve = program.timesteps(), program.omega(), torch.from_numpy(program.curve().copy())
    case.x, case.y, case.T = case.x[:, 2:], case.y[:, 2:], 5
    case.L = 5
    shorter = case.fused(alpha=alpha)
    torch.testing.assert_close(objective[0], shorter.objective[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(program.grads.flat[0], shorter.flat[0], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(curve[0, 2:], shorter.curve[0], rtol=1e-10, atol=1e-14)
    for name, values in series.items():
        torch.testing.assert_close(values[0, :, 2:], shorter.series[name][0], rtol=1e-10, atol=1e-12, msg=name)
        if "log10" in name:
            assert (values[0, :, :2] == -math.inf).all()
    if omega is not None and shorter.omega is not None:
        torch.testing.assert_close(omega[0], shorter.omega[0], rtol=1e-10, atol=0)


@pytest.mark.parametrize("cell", CELLS)
def test_the_smallest_shapes(cell):
    case = Case(cell, R=2, T=1, batch=1, hidden=1, layers=3)
    found = case.fused(alpha=np.ones(2))
    torch.testing.assert_close(case.fused().flat[0], case.truth(0).grads, rtol=1e-10, atol=1e-14)
    assert (found.series["dW/log10_norm"] == -math.inf).all()


def trained(kernel, seeds, **values):
    settings = {"task.length": 20, "training.updates": 12, "training.log_every": 4, "clip.name": "norm"}
    settings |= {"training.kernel": kernel} | {k.replace("__", "."): v for k, v in values.items()}
    return list(train([make_config(settings | {"seed": s}) for s in seeds]))


@pytest.mark.parametrize(
    "values",
    [
        *({"model__name": cell} for cell in CELLS),
        {"model__name": "leaky", "model__leak": 0.3, "model__layers": 2},
        {"regularizer__name": "omega"},
        {"task__name": "memorization"},
        {"task__name": "addition", "model__name": "lstm"},
        {"task__name": "memorization", "model__name": "gru", "model__layers": 2},
    ],
    ids=str,
)
def test_training_with_the_kernel_is_training_with_the_reference(values):
    """Every scalar and every series of every row, the reference's slope of E_T alone and Omega too."""
    values |= {"training__dtype": "float64"}
    rows = zip(trained("numba", (0, 1), **values), trained("reference", (0, 1), **values), strict=True)
    for fused, reference in rows:
        assert fused.step == reference.step
        assert set(fused.scalars) == set(reference.scalars)
        assert set(fused.timesteps) == set(reference.timesteps)
        for name, wanted in reference.scalars.items():
            np.testing.assert_allclose(fused.scalars[name], wanted, rtol=1e-5, atol=1e-6, err_msg=name)
        for name, wanted in reference.timesteps.items():
            for found_r, wanted_r, late in zip(fused.timesteps[name], wanted, reference.late, strict=True):
                np.testing.assert_allclose(found_r[:, late:], wanted_r[:, late:], rtol=1e-5, atol=1e-6, err_msg=name)


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
