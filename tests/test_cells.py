"""Every cell, forward and backward, against autograd in float64 and PyTorch's own layers; beyond the range of the floats; at its limits."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from oracle import CELLS as TWINS
from oracle import LOSS, Backpropagated, backpropagate, each_run, random_parameters, weights
from torch import Tensor

from rnn_lab import bptt, probes
from rnn_lab.activations import ACTIVATIONS
from rnn_lab.cells import GRU, LSTM, Cell, Elman, Leaky, Own, Step
from rnn_lab.losses import softmax_cross_entropy
from rnn_lab.parameters import Parameters
from rnn_lab.scaled import value

INPUTS, HIDDEN, OUTPUTS, BATCH, STEPS = 4, 5, 3, 3, 6
close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-13)


class OwnElman:
    """The Elman cell as a user would write it."""

    def step(self, z: Tensor, h: Tensor, W: Tensor) -> Tensor:
        return torch.tanh(z + h @ W)


class OwnLSTM:
    """Two blocks, four gates."""

    gates, blocks = 4, 2

    def step(self, z: Tensor, s: tuple[Tensor, Tensor], W: Tensor) -> tuple[Tensor, Tensor]:
        c, h = TWINS["lstm"][0](z, s, W, "", 0)
        return h, c


class OwnGRU:
    """W_n is multiplied by r afterwards: what W's gradient is made of is not delta."""

    gates = 3

    def step(self, z: Tensor, h: Tensor, W: Tensor) -> Tensor:
        return TWINS["gru"][0](z, (h,), W, "", 0)[0]


OWN = {"own elman": (OwnElman, "elman"), "own lstm": (OwnLSTM, "lstm"), "own gru": (OwnGRU, "gru")}
NAMES = ["elman", "leaky", "lstm", "gru", *OWN]


def leaks(runs: tuple[int, ...]) -> Tensor:
    """Another one for each run."""
    return torch.from_numpy(np.random.default_rng(5).uniform(0.1, 0.9, runs)) if runs else torch.tensor(0.3).double()


def make(name: str, runs: tuple[int, ...] = (), phi: str = "tanh", dtype: torch.dtype = torch.float64) -> Cell:
    if name in OWN:
        return Own(OWN[name][0]())
    makers = {"elman": lambda: Elman(ACTIVATIONS[phi]), "leaky": lambda: Leaky(ACTIVATIONS[phi], leaks(runs).to(dtype))}
    return (makers | {"lstm": LSTM, "gru": GRU})[name]()


class Case:
    """A net of one kind of cell with random parameters, a mini-batch, and both backward passes."""

    def __init__(
        self,
        name: str,
        runs: tuple[int, ...] = (),
        layers: int = 1,
        L: int = 1,
        late: Tensor | None = None,
        **options: Any,
    ):
        dtype, phi = options.get("dtype", torch.float64), options.get("phi", "tanh")
        self.T, self.batch, hidden = options.get("T", STEPS), options.get("batch", BATCH), options.get("hidden", HIDDEN)
        self.name, self.phi, self.late, self.reduction = name, phi, late, options.get("reduction", "mean")
        self.cell = make(name, runs, phi, dtype)
        sizes, gain = (INPUTS, hidden, OUTPUTS), options.get("gain", 1.0)
        self.theta = random_parameters(runs, sizes, layers, dtype, gain, gates=self.cell.gates)
        rng = np.random.default_rng(1)
        self.x = torch.from_numpy(rng.standard_normal((*runs, self.T, self.batch, INPUTS))).to(dtype)
        self.y = torch.from_numpy(rng.integers(OUTPUTS, size=(*runs, L, self.batch)))
        self.net = bptt.Net(self.cell, softmax_cross_entropy, L, self.reduction)
        self.runs = runs

    def backward(self, keep: bool = True) -> tuple[Tensor, bptt.Buffers, Parameters]:
        buffers, grads = bptt.Buffers(self.theta, self.cell, self.T, self.batch, keep), self.theta.like()
        buffers.late = self.late
        o = bptt.forward(self.theta, self.x, self.net, buffers)
        loss, dE_do = bptt.objective(o, self.y, self.net, self.late)
        bptt.backward(self.theta, self.x, dE_do, self.net, buffers, grads)
        return loss, buffers, grads

    def scaled(self) -> tuple[bptt.ScaledAdjoints, bptt.Buffers, Parameters]:
        buffers, grads = bptt.Buffers(self.theta, self.cell, self.T, self.batch), self.theta.like()
        buffers.late = self.late
        o = bptt.forward(self.theta, self.x, self.net, buffers)
        _, dE_do = bptt.objective(o, self.y, self.net, self.late)
        return bptt.scaled_backward(self.theta, self.x, dE_do, self.net, buffers, grads), buffers, grads

    def series(self) -> dict[str, Tensor]:
        adjoints, buffers, _ = self.scaled()
        return probes.time_series(self.x, self.theta, self.net, buffers, adjoints)

    def truth(self, run: tuple[int, ...] = ()) -> Backpropagated:
        """Autograd on the run's own steps."""
        out = 0 if self.late is None else int(self.late[run])
        leak = leaks(self.runs)[run].item()
        twin = OWN[self.name][1] if self.name in OWN else self.name
        x, y = self.x[run][out:].double(), self.y[run][min(out, len(self.y[run]) - 1) :]
        w = {name: t.double() for name, t in weights(self.theta, run).items()}
        return backpropagate(w, x, y, self.phi, "cross entropy", self.reduction, twin, leak)


def assert_gradients(found: Parameters, run: tuple[int, ...], truth: Backpropagated, check=close) -> None:
    named = weights(found, run)
    assert named.keys() == truth.grads.keys()
    for name, expected in truth.grads.items():
        check(named[name], expected, msg=lambda m, name=name: f"d{name}: {m}")


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("L", [1, STEPS], ids=["last step", "every step"])
@pytest.mark.parametrize("name", NAMES)
def test_every_gradient_is_autograds(runs, name, L, layers):
    """h_t, dE/dh_t, delta_t, an LSTM's dE/dc_t for every t and layer, and all weights'; W not symmetric; both passes."""
    case = Case(name, runs, layers, L, reduction="sum" if layers == 2 else "mean")
    objective, buffers, grads = case.backward()
    adjoints, scaled_buffers, scaled_grads = case.scaled()
    for run in each_run(runs):
        truth = case.truth(run)
        close(objective[run], truth.objective)
        for n in range(layers):
            close(buffers.h[n][run][1:], truth.h[n])
            close(buffers.dE_dh[n][run], truth.dE_dh[n])
            close(value(adjoints.dE_dh[n])[run], truth.dE_dh[n])
            for delta in (buffers.delta[n], scaled_buffers.delta[n], value(adjoints.delta[n])):
                close(delta[run], truth.delta[n])
            if name == "lstm":
                assert truth.dE_dc is not None
                close(buffers.traces[n].dE_ds[1][run][1:], truth.dE_dc[n])
                close(value(adjoints.block(1)[n])[run], truth.dE_dc[n])
        assert_gradients(grads, run, truth)
        assert_gradients(scaled_grads, run, truth)


@pytest.mark.parametrize("phi", ACTIVATIONS)
def test_leaky_units_of_every_activation(runs, phi):
    case = Case("leaky", runs, 2, STEPS, phi=phi)
    _, _, grads = case.backward()
    for run in each_run(runs):
        assert_gradients(grads, run, case.truth(run))


def test_a_leak_of_1_is_the_elman_net():
    elman = Case("elman", (3,), 2, STEPS)
    leaky = Case("elman", (3,), 2, STEPS)
    leaky.cell = Leaky(ACTIVATIONS["tanh"], torch.ones(3).double())
    leaky.net = bptt.Net(leaky.cell, softmax_cross_entropy, STEPS)
    torch.testing.assert_close(leaky.backward()[2].flat, elman.backward()[2].flat, rtol=1e-14, atol=1e-16)


PYTORCHS = {"elman": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", PYTORCHS)
def test_states_and_gradients_are_those_of_torch_nn(name, layers):
    """weight_ih = U^T, weight_hh = W^T, bias_ih = b, bias_hh = 0: gates in the same order; a loss at every step."""
    case = Case(name, (), layers, STEPS)
    theirs = PYTORCHS[name](INPUTS, HIDDEN, layers, dtype=torch.float64)
    for n, layer in enumerate(case.theta.layers):
        state = {"weight_ih": layer.U.T, "weight_hh": layer.W.T, "bias_ih": layer.b[0], "bias_hh": 0 * layer.b[0]}
        with torch.no_grad():
            for key, tensor in state.items():
                getattr(theirs, f"{key}_l{n}").copy_(tensor)
    h = theirs(case.x)[0]
    E = sum(LOSS["cross entropy"](h[t] @ case.theta.V + case.theta.c, case.y[t]) for t in range(STEPS))
    (E / (BATCH * STEPS)).backward()
    _, buffers, grads = case.backward()
    close(buffers.h[-1][1:], h.detach())
    for n, layer in enumerate(grads.layers):
        close(layer.U, getattr(theirs, f"weight_ih_l{n}").grad.T)
        close(layer.W, getattr(theirs, f"weight_hh_l{n}").grad.T)
        close(layer.b[0], getattr(theirs, f"bias_ih_l{n}").grad)


@pytest.mark.parametrize("L", [1, STEPS])
@pytest.mark.parametrize("name", NAMES)
def test_every_run_is_the_run_alone_at_its_true_length(runs, name, L):
    """Runs of a program that start later: their gradients are autograd's on their own steps; 0 where they sit out."""
    late = torch.from_numpy(np.random.default_rng(7).integers(0, STEPS - 1, runs))
    case = Case(name, runs, 2, L, late)
    for pass_ in (case.backward, case.scaled):
        adjoints, buffers, grads = pass_()
        for run in each_run(runs):
            out, truth = int(late[run]), case.truth(run)
            assert_gradients(grads, run, truth)
            for n in range(2):
                close(buffers.h[n][run][1 + out :], truth.h[n])
                close(buffers.delta[n][run][out:], truth.delta[n])
                assert not buffers.h[n][run][: 1 + out].any()
                assert not buffers.delta[n][run][:out].any()
                if isinstance(adjoints, bptt.ScaledAdjoints):
                    assert not adjoints.dE_ds[n].mantissa[run][:out].any()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("every_step", [False, True], ids=["last step", "every step"])
@pytest.mark.parametrize("name", NAMES)
def test_renormalising_changes_no_bit_where_float32_suffices(runs, name, every_step, layers):
    """Powers of two are exact, so a recorded step trains on the very gradients of an unrecorded one."""
    T = 25
    case = Case(name, runs, layers, T if every_step else 1, dtype=torch.float32, T=T, batch=20, hidden=50, gain=0.7)
    _, kept, grads = case.backward()
    _, _, shared_grads = case.backward(keep=False)
    adjoints, _, scaled_grads = case.scaled()
    assert torch.isfinite(grads.flat).all()
    assert torch.equal(shared_grads.flat, grads.flat)
    assert torch.equal(scaled_grads.flat, grads.flat)
    for n in range(layers):
        assert torch.equal(value(adjoints.dE_dh[n]), kept.dE_dh[n])
        assert torch.equal(value(adjoints.delta[n]), kept.delta[n])


@pytest.mark.parametrize("name", ["elman", "lstm", "gru"])
def test_a_run_in_a_program_is_bitwise_the_run_alone(name):
    """At (B, H, T) = (20, 50, 100) in float32. (Leaky units, each run with a leak of its own: through the training loop.)"""
    case = Case(name, (3,), dtype=torch.float32, T=100, batch=20, hidden=50)
    _, buffers, grads = case.backward()
    series = case.series()
    for run in range(3):
        alone = Case(name, (), dtype=torch.float32, T=100, batch=20, hidden=50)
        alone.theta.flat.copy_(case.theta.flat[run])
        alone.x, alone.y = case.x[run].clone(), case.y[run].clone()
        _, own_buffers, own_grads = alone.backward()
        assert torch.equal(own_buffers.delta[0], buffers.delta[0][run])
        assert torch.equal(own_grads.flat, grads.flat[run])
        for key, curve in alone.series().items():
            assert torch.equal(curve, series[key][run]), key


# ----------------------------------------------------------------------------------------------------------------- what is measured


@pytest.mark.parametrize("L", [1, STEPS], ids=["last step", "every step"])
@pytest.mark.parametrize("name", NAMES)
def test_series_are_what_their_names_say(runs, name, L):
    """Norms of autograd's total gradients, and of each step's own use of W and U."""
    case = Case(name, runs, 2, L)
    series = case.series()
    assert set(series) == set(probes.series_names(type(case.cell)))
    assert all(curve.shape == (*runs, 2, STEPS) for curve in series.values())
    for run in each_run(runs):
        truth = case.truth(run)

        def log10_rms(d: Tensor) -> Tensor:
            return (BATCH * d).norm(dim=-1).square().mean(-1).sqrt().log10()

        expected = {
            "dE_dh/log10_norm": log10_rms(truth.dE_dh),
            "delta/log10_norm": log10_rms(truth.delta),
            "h/norm": truth.h.norm(dim=-1).square().mean(-1).sqrt(),
            "dW/log10_norm": torch.linalg.matrix_norm(truth.dW).log10(),
        }
        for n, source in enumerate((case.x[run], truth.h[0])):
            summand = torch.einsum("tbi,tbj->tij", source, truth.delta[n])
            close(series["dU/log10_norm"][run][n], torch.linalg.matrix_norm(summand).log10(), atol=1e-7, rtol=1e-7)
        if truth.dE_dc is not None and name == "lstm":
            expected["dE_dc/log10_norm"] = log10_rms(truth.dE_dc)
        for key, curve in expected.items():
            close(series[key][run], curve, atol=1e-7, rtol=1e-7, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_measuring_changes_nothing_that_is_measured_after(dtype):
    """In float64 a conversion copies nothing: what is scaled in place must be a copy."""
    case = Case("elman", (2,), 1, STEPS, dtype=dtype, T=STEPS)
    adjoints, buffers, _ = case.scaled()
    before = [value(x) for x in (*adjoints.dE_ds, *adjoints.delta)]
    probes.time_series(case.x, case.theta, case.net, buffers, adjoints)
    for x, other in zip((*adjoints.dE_ds, *adjoints.delta), before, strict=True):
        assert torch.equal(value(x), other)


@pytest.mark.parametrize("name", NAMES)
def test_the_summands_add_up_to_the_gradient(name):
    """The factors that the probe measures, multiplied out and summed over t."""
    case = Case(name, (2,), 1, STEPS)
    adjoints, buffers, grads = case.scaled()
    first, second = case.cell.weight_summands(buffers.traces[0].sequence, adjoints.sent[0], case.theta.layers[0].W)
    close(torch.einsum("rtni,rtnj->rij", first, value(second)), grads.layers[0].W)


@pytest.mark.parametrize("name", ["elman", "leaky", "lstm", "gru"])
def test_a_step_is_what_the_forward_pass_makes_in_place(name):
    """On a W that is not symmetric, from a state that is not 0."""
    cell, rng = make(name, (2,)), np.random.default_rng(0)
    z, W, *s = (
        torch.from_numpy(rng.standard_normal(shape))
        for shape in ((2, 4, 3 * cell.gates), (2, 3, 3 * cell.gates), *[(2, 4, 3)] * cell.blocks)
    )
    after, kept = (tuple(torch.empty_like(s[0]) for _ in range(n)) for n in (cell.blocks, cell.kept))
    gates = after[0] if cell.in_place else z.clone()
    at = Step(gates.copy_(z), tuple(s), after, kept)
    cell.forward(at, W, torch.empty_like(z))
    for block, expected in zip(after, cell.step(z, tuple(s), W), strict=True):
        torch.testing.assert_close(block, expected)


def test_gate_saturation_counts_sigmoid_gates_below_a_tenth_and_above_nine():
    """Of an LSTM's i, f, o; its g is no gate in this sense. NaN where an activation is."""
    gates = torch.tensor([0.05, 0.5, 0.95, 0.89] + [0.11, 0.91, 0.5, 0.5] + [0.0] * 4 + [0.09, 0.5, 0.5, 0.5])
    layer = gates.expand(3, 2, 16).clone()
    layer[1, 0, 0] = math.nan
    layer[2, :, :] = torch.sigmoid(torch.tensor(0.0))
    found = probes.gate_saturation([layer, layer], 4, LSTM.sigmoids)
    assert found.shape == (2, 3)
    assert found[0].tolist() == pytest.approx([4 / 12, math.nan, 0], nan_ok=True)


def test_the_series_of_each_cell():
    assert "phi_prime/mean" in probes.series_names(Leaky)
    assert "phi_prime/mean" not in probes.series_names(LSTM)
    assert {"dE_dc/log10_norm", "gates/saturation"} <= set(probes.series_names(LSTM))
    assert "gates/saturation" in probes.series_names(GRU)
    assert "dE_dc/log10_norm" not in probes.series_names(GRU)
    assert set(probes.series_names(Own)) < set(probes.series_names(Elman))


# ------------------------------------------------------------------------------------------------------------------------ at the limits


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_that_vanishes_below_float32_is_measured(name):
    """Small weights, 200 steps: float32's renormalised curves are those of float64, which can hold these."""
    options = {"T": 200, "gain": 0.02, "phi": "sigmoid"}
    if name == "leaky":
        options["gain"] = 0.0  # then dE/dh decays by 1 - leak alone
    single, double = (Case(name, dtype=dtype, **options) for dtype in (torch.float32, torch.float64))
    for case in (single, double):
        for layer in case.theta.layers:
            layer.b.fill_(-3.0 if name.endswith(("lstm", "gru")) else 0.0)  # gates that keep little
        case.theta.flat.copy_(case.theta.flat.float())
        case.x = case.x.float().to(case.x.dtype)
    truth = double.truth()
    ours, exact = single.series(), double.series()
    lowest = exact["dE_dh/log10_norm"].min().item()
    assert lowest < -60 or name == "leaky", lowest
    for key in ("dE_dh/log10_norm", "delta/log10_norm", "dU/log10_norm"):
        torch.testing.assert_close(ours[key], exact[key], rtol=0, atol=2e-3)
    if lowest > -150:  # squares fit float64
        expected = (BATCH * truth.dE_dh).norm(dim=-1).square().mean(-1).sqrt().log10()
        torch.testing.assert_close(exact["dE_dh/log10_norm"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [0.0, 1.0, 1e6, 1e30], ids=str)
@pytest.mark.parametrize("phi", ["tanh", "relu"])
def test_the_shortest_shapes_and_the_largest_weights(name, size, phi):
    """H = B = T = 1 and three layers; nothing is finite where it should not be, no exponent is a float's limit, NaN is not hidden."""
    for T, hidden, batch in ((1, 1, 1), (40, 3, 2)):
        case = Case(name, (2,), 3, T, T=T, hidden=hidden, batch=batch, phi=phi, dtype=torch.float32)
        for layer in case.theta.layers:
            layer.W.mul_(size)
            layer.U.mul_(max(size, 1.0))
        loss, buffers, grads = case.backward()
        series = case.series()
        for key in ("dE_dh/log10_norm", "delta/log10_norm"):
            finite = torch.isfinite(buffers.h[-1]).all() and torch.isfinite(loss).all()
            assert not (finite and series[key].isnan().any()), key
            assert not (series[key] == math.inf).any() or not finite
        if T == 1 and torch.isfinite(grads.flat).all():
            assert (series["dW/log10_norm"] == -math.inf).all(), "h_0 = 0"
        assert grads.flat.shape == case.theta.flat.shape
