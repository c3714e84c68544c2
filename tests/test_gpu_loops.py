"""The fused loops of a GPU against PyTorch's: on a GPU where there is one, else in Triton's interpreter, where Triton is installed."""

import os
from dataclasses import replace

import pytest
import torch

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
pytest.importorskip("triton")

from oracle import random_parameters  # noqa: E402

from rnn_lab import bptt, losses, probes, recurrence, regularizers  # noqa: E402
from rnn_lab.activations import ACTIVATIONS  # noqa: E402
from rnn_lab.cells import LSTM, Elman  # noqa: E402
from rnn_lab.kernels import gpu, gpu_series, language  # noqa: E402
from rnn_lab.parameters import Parameters  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning"),  # the interpreter's own
]
DEVICE = "cuda" if GPU else "cpu"
SIZES = {"R": 3, "T": 40, "batch": 20, "hidden": 50} if GPU else {"R": 2, "T": 4, "batch": 18, "hidden": 5}


@pytest.fixture(autouse=True)
def _precision(monkeypatch):
    if not GPU:
        monkeypatch.setattr(language, "PRECISION", "ieee")  # the interpreter multiplies float32 anyway


class Case:
    """A net with random parameters and a mini-batch, float64."""

    def __init__(self, phi="tanh", every=False, layers=1, gain=1.0, late=None, **sizes):
        self.R, self.T, self.batch, hidden = (SIZES | sizes).values()
        self.theta = random_parameters((self.R,), (6, hidden, 4), layers, torch.float64, gain)
        rng, L = torch.Generator().manual_seed(0), self.T if every else 1
        self.x = torch.randn(self.R, self.T, self.batch, 6, dtype=torch.float64, generator=rng)
        self.y = torch.randint(4, (self.R, L, self.batch), generator=rng)
        self.net = bptt.Net(Elman(ACTIVATIONS[phi]), losses.softmax_cross_entropy, L)
        self.late = None if late is None else torch.tensor(late[: self.R])

    def run(self, dtype: torch.dtype, device: str, loops: bptt.Loops) -> list[torch.Tensor]:
        """Gradients, plain and by the renormalised sweep, dE/dh, and log10 ||dE/dh_t||, log10 ||delta_t||."""
        runs, hidden = tuple(self.theta.flat.shape[:-1]), self.theta.V.shape[-2]
        theta = Parameters.zeros(runs, 6, hidden, 4, len(self.theta.layers), dtype, device)
        theta.flat.copy_(self.theta.flat)
        x, y, net = self.x.to(device, dtype), self.y.to(device), replace(self.net, loops=loops)
        buffers = bptt.Buffers(theta, net.cell, self.T, self.batch, keep_dE_dh=True)
        buffers.late = None if self.late is None else self.late.to(device)
        plain, scaled = theta.like(), theta.like()
        _, dE_do = bptt.objective(bptt.forward(theta, x, net, buffers), y, net, buffers.late)
        bptt.backward(theta, x, dE_do, net, buffers, plain)
        dE_dh = [d.clone() for d in buffers.dE_dh]
        adjoints = bptt.scaled_backward(theta, x, dE_do, net, buffers, scaled)
        norms = [probes.log10_norms(each) for each in (adjoints.dE_dh, adjoints.delta)]
        return [t.double().cpu() for t in (plain.flat, scaled.flat, *dE_dh, *norms)]

    def exact(self) -> list[torch.Tensor]:
        return self.run(torch.float64, "cpu", recurrence)

    def plain(self) -> list[torch.Tensor]:
        return self.run(torch.float32, DEVICE, recurrence)

    def fused(self) -> list[torch.Tensor]:
        return self.run(torch.float32, DEVICE, gpu)


@pytest.mark.parametrize("late", [None, (0, 3, 39)], ids=["whole", "late"])
@pytest.mark.parametrize("every", [False, True], ids=["last", "every"])
@pytest.mark.parametrize("phi", ACTIVATIONS)
def test_fused_loops_are_as_exact_as_float32(phi, every, late):
    """No further from float64 than a few times PyTorch's float32 is, where that is not lucky."""
    case = Case(phi, every, layers=2, late=late)
    for truth, theirs, ours in zip(case.exact(), case.plain(), case.fused(), strict=True):
        seen = torch.isfinite(truth)
        assert torch.equal(truth[~seen], ours[~seen])  # -inf, where a run sits out
        size = truth[seen].abs().max()
        mine, its = ((found - truth)[seen].abs().max() / size for found in (ours, theirs))
        assert mine < 8 * its + 1e-6, (mine, its)


@pytest.mark.parametrize("phi", ACTIVATIONS)
def test_series_and_omega_are_the_probes(phi):
    """In one pass over states and adjoints, and with the float32 of that; against the probes in float64."""
    case, found = Case(phi, layers=2, late=(0, 3, 39)), []
    for dtype, device, loops in ((torch.float64, "cpu", recurrence), (torch.float32, DEVICE, gpu)):
        theta = Parameters.zeros((case.R,), 6, case.theta.V.shape[-2], 4, 2, dtype, device)
        theta.flat.copy_(case.theta.flat)
        x, net = case.x.to(device, dtype), replace(case.net, loops=loops)
        buffers = bptt.Buffers(theta, net.cell, case.T, case.batch)
        buffers.late = case.late.to(device)
        _, dE_do = bptt.objective(bptt.forward(theta, x, net, buffers), case.y.to(device), net, buffers.late)
        adjoints = bptt.scaled_backward(theta, x, dE_do, net, buffers, theta.like())
        if loops is gpu:
            series, omega = gpu_series.time_series(x, theta, net.cell, buffers, adjoints)
        else:
            series = probes.time_series(x, theta, net, buffers, adjoints)
            omega = regularizers.net_omega(theta, net.cell, adjoints)
        found.append({name: value.cpu() for name, value in (series | {"omega": omega}).items()})
    exact, ours = found
    assert ours.keys() == exact.keys()
    for name, value in exact.items():
        kinks = (
            2e-2 if phi == "relu" and name == "omega" else 1e-4
        )  # a unit that is off in float64 may be on in float32
        torch.testing.assert_close(
            ours[name].double(), value.double(), rtol=kinks, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(("phi", "gain"), [("sigmoid", 1e-4), ("tanh", 1e-8), ("linear", 1e8)])
def test_fused_norms_neither_under_nor_overflow(phi, gain):
    case = Case(phi, gain=gain, T=24)
    if phi == "linear":  # states stay 0, adjoints do not
        case.x.zero_()
        case.theta.layers[0].b.zero_()
    for truth, ours in zip(case.exact()[-2:], case.fused()[-2:], strict=True):
        assert truth.abs().max() > 60
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("broken", [torch.inf, torch.nan])
def test_what_is_not_finite_stays_in_its_run(broken):
    case = Case(hidden=5)
    whole = case.fused()
    case.theta.layers[0].W[1, 0, 1] = broken
    found = case.fused()
    for one, other in zip(whole, found, strict=True):
        assert torch.equal(one[0], other[0])
    assert not torch.isfinite(found[0][1]).all()


def test_a_run_alone_is_the_run_in_a_program():
    """Bit for bit, as far as these loops go: from the same parameters and the same gradients at the outputs."""
    case = Case()
    x, given = case.x.to(DEVICE, torch.float32), torch.randn(case.R, 1, *case.x.shape[2:-1], case.theta.V.shape[-2])
    theta = Parameters.zeros((case.R,), 6, given.shape[-1], 4, 1, torch.float32, DEVICE)
    theta.flat.copy_(case.theta.flat)
    found = []
    for runs in (slice(None), slice(case.R - 1, None)):
        alone = Parameters.zeros((len(x[runs]),), 6, given.shape[-1], 4, 1, torch.float32, DEVICE)
        alone.flat.copy_(theta.flat[runs])
        trace = bptt.Buffers(alone, case.net.cell, case.T, case.batch).traces[0]
        gpu.states(x[runs], alone.layers[0], case.net.cell, trace)
        gpu.deltas(given[runs].to(DEVICE), alone.layers[0].W, case.net.cell, trace)
        found.append((trace.s[0][-1], trace.delta[-1]))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
        assert one.any()


def test_they_are_for_elman_nets_in_float32_that_fit_on_the_chip():
    assert gpu.suits(Elman(ACTIVATIONS["tanh"]), 6, 128, "float32")
    assert not gpu.suits(Elman(ACTIVATIONS["tanh"]), 6, 129, "float32")
    assert not gpu.suits(Elman(ACTIVATIONS["tanh"]), 6, 50, "float64")
    assert not gpu.suits(LSTM(), 6, 50, "float32")
