"""The state's memory: against autograd's Jacobians, against perturbed nets, and as the transpose of the gradient."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from oracle import PHI, each_run, make_config, random_parameters, weights
from torch import Tensor

from rnn_lab import bptt, jacobians, probes
from rnn_lab.activations import ACTIVATIONS
from rnn_lab.cells import GRU, LSTM, Elman
from rnn_lab.losses import softmax_cross_entropy
from rnn_lab.parameters import Parameters
from rnn_lab.training import train

T, BATCH, SIZES = 7, 3, (2, 5, 3)


def net(phi: str) -> bptt.Net:
    return bptt.Net(Elman(ACTIVATIONS[phi]), softmax_cross_entropy)


def inputs(runs: tuple[int, ...], steps: int = T, batch: int = BATCH, dtype=torch.float64) -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).standard_normal((*runs, steps, batch, SIZES[0]))).to(dtype)


def from_state(w: dict[str, Tensor], x: Tensor, phi: str, layer: int, t: int, moved: Tensor) -> Tensor:
    """h_T of the top layer where h_t of a layer (both from 1) is replaced by `moved`; x (T, inputs)."""
    layers = sum(name.startswith("W") for name in w)
    below, states = list(x), []
    for n in range(1, layers + 1):
        h, states = torch.zeros(SIZES[1], dtype=x.dtype), []
        for step, x_t in enumerate(below, 1):
            h = PHI[phi](x_t @ w[f"U{n}"] + h @ w[f"W{n}"] + w[f"b{n}"][0])
            h = moved if (n, step) == (layer, t) else h
            states.append(h)
        below = states
    return states[-1]


def states(w: dict[str, Tensor], x: Tensor, phi: str) -> Tensor:
    """(layers, T, hidden), x (T, inputs)."""
    below, found = x, []
    for n in range(1, sum(name.startswith("W") for name in w) + 1):
        h = [torch.zeros(SIZES[1], dtype=x.dtype)]
        for x_t in below:
            h.append(PHI[phi](x_t @ w[f"U{n}"] + h[-1] @ w[f"W{n}"] + w[f"b{n}"][0]))
        below = torch.stack(h[1:])
        found.append(below)
    return torch.stack(found)


@pytest.mark.parametrize("phi", PHI)
@pytest.mark.parametrize("layers", [1, 2])
def test_it_is_the_frobenius_norm_of_autograds_jacobian(runs, phi, layers):
    theta = random_parameters(runs, SIZES, layers, gain=1.3)
    x = inputs(runs)
    found = probes.memory(theta, x, net(phi), None)
    assert found.shape == (*runs, layers, T)
    for run in each_run(runs):
        w, squares = weights(theta, run), torch.zeros(layers, T).double()
        for example in range(BATCH):
            own = x[run][:, example]
            h = states(w, own, phi)
            for layer in range(layers):
                for t in range(T):
                    last = partial(from_state, w, own, phi, layer + 1, t + 1)
                    J = torch.func.jacrev(last)(h[layer, t])
                    squares[layer, t] += J.square().sum() / SIZES[1] / BATCH  # type: ignore[union-attr]
        torch.testing.assert_close(found[run], 0.5 * squares.log10())


def test_it_is_how_far_perturbed_nets_end_from_the_unperturbed_one():
    """1,000 random directions of length 1e-6 at every t: no derivative is taken."""
    theta, phi, rng = random_parameters((), SIZES, 1, gain=1.5), "tanh", np.random.default_rng(2)
    x = inputs((), batch=1)
    w, found = weights(theta), probes.memory(theta, x, net(phi), None)[0]
    h = states(w, x[:, 0], phi)[0]
    v = torch.from_numpy(rng.standard_normal((1000, SIZES[1])))
    v = 1e-6 * v / torch.linalg.vector_norm(v, dim=1, keepdim=True)
    for t in range(T):
        moved = h[t] + v
        for x_t in x[t + 1 :, 0]:
            moved = torch.tanh(x_t @ w["U1"] + moved @ w["W1"] + w["b1"])
        rms = (moved - h[-1]).square().sum(1).mean().sqrt() / 1e-6
        assert abs(found[t] - rms.log10()) < 0.03


def test_of_a_linear_functional_the_gradient_is_its_transpose():
    """E = u . h_T: the mean square of ||dE/dh_t|| over all unit vectors u is that of ||dh_T/dh_t v|| over all v, exactly, at every t."""
    theta, phi = random_parameters((), SIZES, 1, gain=1.5), "tanh"
    x, squares = inputs((), batch=1), 0
    w = weights(theta)
    for u in torch.eye(SIZES[1]).double():
        h_t = [state.detach().requires_grad_() for state in states(w, x[:, 0], phi)[0]]
        E = [from_state(w, x[:, 0], phi, 1, t, h) @ u for t, h in enumerate(h_t, 1)]
        grads = [torch.autograd.grad(e, h)[0] for e, h in zip(E, h_t, strict=True)]
        squares = squares + torch.stack(grads).square().sum(-1) / SIZES[1]
    torch.testing.assert_close(probes.memory(theta, x, net(phi), None)[0], 0.5 * torch.as_tensor(squares).log10())


@pytest.mark.parametrize("cell", [LSTM(), GRU(), Elman(ACTIVATIONS["tanh"])], ids=["lstm", "gru", "elman"])
def test_every_cell_remembers_in_its_whole_state(cell):
    """dh_T/ds_t is the product of the steps' Jacobians, forward in time. An LSTM's c_t is moved as the node it is: h_t follows."""
    theta, x = Parameters.zeros((2,), *SIZES, dtype=torch.float64, gates=cell.gates), inputs((2,))
    theta.flat.copy_(torch.from_numpy(np.random.default_rng(4).standard_normal(theta.flat.shape)))
    network, buffers = bptt.Net(cell, softmax_cross_entropy), bptt.Buffers(theta, cell, T, BATCH)
    bptt.forward(theta, x, network, buffers)
    J = list(jacobians.along(theta.layers, cell, x.unbind(1), jacobians.at_rest(theta.layers, cell, x)))
    product, expected = torch.eye(J[0].shape[-1]).double().expand_as(J[0]), []
    for t in reversed(range(T)):
        to_h, *to_c = product[..., : SIZES[1], :].split(SIZES[1], -1)
        if to_c:
            o, c = buffers.traces[0].gates[:, t].chunk(4, -1)[3], buffers.traces[0].s[1][:, t + 1]
            to_c = [to_c[0] + to_h * (o * (1 - c.tanh() ** 2)).unsqueeze(-2)]
        squares = torch.cat([to_h, *to_c], -1).square().sum((-2, -1)) / product.shape[-1]
        expected.insert(0, 0.5 * squares.mean(-1).log10())
        product = product @ J[t]
    found = probes.memory(theta, x, network, None)
    torch.testing.assert_close(found[:, 0], torch.stack(expected, -1))


def test_a_linear_nets_memory_is_that_of_the_powers_of_W():
    theta = random_parameters((), SIZES, 1)
    W, powers = theta.layers[0].W, torch.eye(SIZES[1]).double()
    found = probes.memory(theta, inputs(()), net("linear"), None)[0]
    for t in reversed(range(T)):
        gain = torch.linalg.matrix_norm(powers) / SIZES[1] ** 0.5
        torch.testing.assert_close(found[t], gain.log10())
        powers = powers @ W


@pytest.mark.parametrize(("gain", "size"), [(1e-4, -3.9), (1e4, 4.1)])
def test_float32_neither_under_nor_overflows(gain, size):
    """100 steps of a factor of about `gain`: 1e-400 and 1e+400."""
    theta = Parameters.zeros((), *SIZES, dtype=torch.float32)
    theta.layers[0].W.copy_(gain * torch.eye(SIZES[1]))
    found = probes.memory(theta, inputs((), 100, dtype=torch.float32), net("linear"), None)[0]
    expected = torch.arange(99, -1, -1) * math.log10(gain)
    torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=1e-4)
    assert abs(found[0] / 99 - size) < 0.2


def test_what_is_forgotten_is_minus_infinity():
    theta = random_parameters((), SIZES, 1)
    theta.layers[0].W.zero_()
    found = probes.memory(theta, inputs(()), net("tanh"), None)[0]
    assert found[-1] == pytest.approx(0, abs=1e-12)
    assert (found[:-1] == -torch.inf).all()


def test_runs_of_different_length_and_many_units_are_their_own():
    """Right-aligned: as alone at the run's own length; more units than the batch has rows: several chunks."""
    theta, late = random_parameters((3,), SIZES, 1), torch.tensor([0, 2, 6])
    x = inputs((3,), batch=2)
    together = probes.memory(theta, x, net("tanh"), late)
    for run, waited in enumerate(late.tolist()):
        flat = Parameters.zeros((), *SIZES, dtype=torch.float64)
        flat.flat.copy_(theta.flat[run])
        alone = probes.memory(flat, x[run, waited:], net("tanh"), None)
        torch.testing.assert_close(together[run, :, waited:], alone)
        assert (together[run, :, :waited] == -torch.inf).all()


# -------------------- as probes of a training run

BASE = {"training.updates": 6, "training.log_every": 4, "task.length": 12, "model.hidden": 6, "training.batch_size": 5}


def test_each_probe_has_its_own_cadence_and_changes_nothing():
    def rows(**values):
        return {snapshot.step: snapshot for snapshot in train([make_config(BASE | values)])}

    plain = rows()
    probed = rows(**{"probe.memory_every": 3, "probe.lyapunov_every": 5})
    assert list(plain) == [0, 4, 6]
    assert list(probed) == [0, 3, 4, 5, 6]
    remembered = {step: row.timesteps["memory/log10_gain"] for step, row in probed.items()}
    assert [step for step, series in remembered.items() if np.isfinite(series).all()] == [0, 3, 6]
    assert all(np.isnan(remembered[step]).all() for step in (4, 5))
    assert [step for step, row in probed.items() if "lyapunov/max" in row.scalars] == [0, 5, 6]
    for step, row in plain.items():
        assert row.scalars["train/loss"] == probed[step].scalars["train/loss"]
        assert "memory/log10_gain" not in row.timesteps


def test_a_run_alone_is_what_it_is_among_neighbours():
    values = BASE | {"probe.memory_every": 6, "probe.lyapunov_every": 6, "training.dtype": "float64", "init.scale": 3.0}
    configs = [make_config(values | {"seed": seed, "init.scale": 1.0 + seed}) for seed in range(3)]
    together = list(train(configs))[-1]
    for run, config in enumerate(configs):
        alone = list(train([config]))[-1]
        np.testing.assert_allclose(
            together.timesteps["memory/log10_gain"][run], alone.timesteps["memory/log10_gain"][0], rtol=1e-6, atol=1e-6
        )
        for name in ("lyapunov/max", "lyapunov/kaplan_yorke", "lyapunov/entropy"):
            np.testing.assert_allclose(together.scalars[name][run], alone.scalars[name][0], rtol=1e-9)


def test_the_probed_exponents_are_those_of_the_driven_net():
    """A linear net: its Jacobian is W^T whatever drives it; ln of W's largest |eigenvalue| after the first quarter of 400 steps."""
    theta = random_parameters((2,), (2, 8, 1), gain=0.5)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 2000, 2, 2)))
    found = probes.lyapunov_scalars(theta, x, Elman(ACTIVATIONS["linear"]), torch.tensor([0, 600]))
    expected = torch.linalg.eigvals(theta.layers[0].W).abs().amax(-1).log()
    torch.testing.assert_close(found["lyapunov/max"], expected, atol=2e-3, rtol=0)
    assert (found["lyapunov/kaplan_yorke"] == 0).all()
    theta.layers[0].W.mul_(20)  # all directions grow
    found = probes.lyapunov_scalars(theta, x[:, :100] * 0, Elman(ACTIVATIONS["linear"]), None)
    determinants = torch.linalg.slogdet(theta.layers[0].W)[1]
    assert (found["lyapunov/kaplan_yorke"] <= 8).all()
    all_grow = found["lyapunov/kaplan_yorke"] == 8
    torch.testing.assert_close(found["lyapunov/entropy"][all_grow], determinants[all_grow], atol=0.05, rtol=0)
    assert all_grow.any()
