"""Backpropagation through time against autograd, against hand calculation, and beyond the range of the floats."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from oracle import backpropagate, each_run, random_parameters, weights
from torch import Tensor

from rnn_lab import bptt
from rnn_lab.activations import ACTIVATIONS
from rnn_lab.cells import Elman
from rnn_lab.losses import softmax_cross_entropy, squared_error
from rnn_lab.parameters import Parameters
from rnn_lab.probes import log10_norms
from rnn_lab.scaled import value

INPUTS, HIDDEN, OUTPUTS, BATCH, STEPS = 4, 5, 3, 3, 6
LOSSES = {"cross entropy": softmax_cross_entropy, "squared error": squared_error}


def data(
    runs: tuple[int, ...],
    loss: str,
    L: int,
    T: int = STEPS,
    batch: int = BATCH,
    dtype=torch.float64,
    sizes=(INPUTS, OUTPUTS),
) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.standard_normal((*runs, T, batch, sizes[0]))).to(dtype)
    if loss == "cross entropy":
        return x, torch.from_numpy(rng.integers(sizes[1], size=(*runs, L, batch)))
    return x, torch.from_numpy(rng.standard_normal((*runs, L, batch, sizes[1]))).to(dtype)


def run_backward(theta: Parameters, x: Tensor, y: Tensor, net: bptt.Net, keep: bool = True):
    """Loss, buffers and gradients of the plain backward pass."""
    buffers, grads = bptt.Buffers(theta, net.cell, x.shape[-3], x.shape[-2], keep_dE_dh=keep), theta.like()
    loss, dE_do = bptt.objective(bptt.forward(theta, x, net, buffers), y, net)
    bptt.backward(theta, x, dE_do, net, buffers, grads)
    return loss, buffers, grads


def run_scaled(theta: Parameters, x: Tensor, y: Tensor, net: bptt.Net):
    """Adjoints, buffers and gradients of the renormalised backward pass."""
    buffers, grads = bptt.Buffers(theta, net.cell, x.shape[-3], x.shape[-2]), theta.like()
    _, dE_do = bptt.objective(bptt.forward(theta, x, net, buffers), y, net)
    return bptt.scaled_backward(theta, x, dE_do, net, buffers, grads), buffers, grads


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("L", [1, STEPS], ids=["last step", "every step"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("phi", ACTIVATIONS)
def test_every_gradient_is_autograds(runs, phi, loss, L, reduction, layers):
    """dE/dh_t and delta_t for every t and layer, dU dW db dV dc, the objective; W not symmetric; both passes."""
    theta = random_parameters(runs, (INPUTS, HIDDEN, OUTPUTS), layers)
    x, y = data(runs, loss, L)
    net = bptt.Net(Elman(ACTIVATIONS[phi]), LOSSES[loss], L, reduction)
    objective, buffers, grads = run_backward(theta, x, y, net)
    adjoints, scaled_buffers, scaled_grads = run_scaled(theta, x, y, net)
    close = partial(torch.testing.assert_close, rtol=1e-11, atol=1e-14)
    for run in each_run(runs):
        truth = backpropagate(weights(theta, run), x[run], y[run], phi, loss, reduction)
        close(objective[run], truth.objective)
        for n in range(layers):
            close(buffers.h[n][run][1:], truth.h[n])
            close(buffers.dE_dh[n][run], truth.dE_dh[n])
            close(value(adjoints.dE_dh[n])[run], truth.dE_dh[n])
            for delta in (buffers.delta[n], scaled_buffers.delta[n], value(adjoints.delta[n])):
                close(delta[run], truth.delta[n])
        for gradient in (grads, scaled_grads):
            found = weights(gradient, run)
            assert found.keys() == truth.grads.keys()
            for name, expected in truth.grads.items():
                close(found[name], expected, msg=lambda m, name=name: f"d{name}: {m}")


def test_the_gradient_is_the_slope_of_the_objective(runs):
    """Central differences of the objective in every single parameter, without autograd."""
    theta = random_parameters(runs, (2, 3, 2), layers=2)
    x, y = data(runs, "cross entropy", STEPS, sizes=(2, 2))
    net = bptt.Net(Elman(ACTIVATIONS["tanh"]), softmax_cross_entropy, STEPS)
    _, buffers, grads = run_backward(theta, x, y, net)

    def objective() -> Tensor:
        return bptt.objective(bptt.forward(theta, x, net, buffers), y, net)[0]

    epsilon = 1e-5
    for slope, parameter in zip(grads.flat.unbind(-1), theta.flat.unbind(-1), strict=True):
        parameter += epsilon
        above = objective()
        parameter -= 2 * epsilon
        difference = (above - objective()) / (2 * epsilon)
        parameter += epsilon
        torch.testing.assert_close(slope, difference, rtol=1e-7, atol=1e-9)


def by_hand(w: float, u: float, b: float, v: float, c: float, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """One linear unit, h_t = sum_{k<=t} w^(t-k) (u x_k + b), squared error of v h_s + c at the last L steps.

    dE/dh_t = sum_{s>=t} w^(s-t) 2 v (v h_s + c - y_s) / (L batch), and dE/dw = sum_t dE/dh_t h_{t-1}.
    x: (T, batch), y: (L, batch).
    """
    (T, batch), L = x.shape, len(y)
    inputs = u * x + b
    h = torch.stack([torch.stack([w ** (t - k) * inputs[k] for k in range(t + 1)]).sum(0) for t in range(T)])
    residual = torch.zeros(T, batch, dtype=x.dtype)
    residual[T - L :] = v * h[T - L :] + c - y
    dE_do = 2 * residual / (L * batch)
    dE_dh = torch.stack([torch.stack([w ** (s - t) * v * dE_do[s] for s in range(t, T)]).sum(0) for t in range(T)])
    before = torch.cat([torch.zeros(1, batch, dtype=x.dtype), h[:-1]])
    return {
        "dE_dh": dE_dh,
        "W1": (dE_dh * before).sum(),
        "U1": (dE_dh * x).sum(),
        "b1": dE_dh.sum(),
        "V": (dE_do * h).sum(),
        "c": dE_do.sum(),
        "objective": residual.square().sum() / (L * batch),
    }


@pytest.mark.parametrize("L", [1, 7], ids=["last step", "every step"])
def test_one_linear_unit_by_hand(L):
    ws, (u, b, v, c) = [0.5, 1.0, -1.5], (0.8, 0.1, 1.2, -0.3)
    theta = Parameters.zeros((3,), 1, 1, 1, dtype=torch.float64)
    for view, number in ((theta.layers[0].U, u), (theta.layers[0].b, b), (theta.V, v), (theta.c, c)):
        view.fill_(number)
    theta.layers[0].W.copy_(torch.tensor(ws, dtype=torch.float64).view(3, 1, 1))
    x, y = data((3,), "squared error", L, T=7, sizes=(1, 1))
    loss, buffers, grads = run_backward(theta, x, y, bptt.Net(Elman(ACTIVATIONS["linear"]), squared_error, L))
    for run, w in enumerate(ws):
        truth = by_hand(w, u, b, v, c, x[run, ..., 0], y[run, ..., 0])
        torch.testing.assert_close(buffers.dE_dh[0][run, ..., 0], truth["dE_dh"])
        torch.testing.assert_close(loss[run], truth["objective"])
        for name, gradient in weights(grads, (run,)).items():
            torch.testing.assert_close(gradient.squeeze(), truth[name], msg=lambda m, name=name: f"d{name}: {m}")


def test_with_a_loss_at_the_last_step_one_linear_unit_decays_as_w_to_the_lag():
    """dE/dh_t = w^(T-t) dE/dh_T: the lecture's vanishing gradient in its smallest form."""
    theta = random_parameters((), (1, 1, 1))
    theta.layers[0].W.fill_(0.5)
    x, y = data((), "squared error", 1, T=30, sizes=(1, 1))
    _, buffers, _ = run_backward(theta, x, y, bptt.Net(Elman(ACTIVATIONS["linear"]), squared_error))
    lag = torch.arange(29, -1, -1, dtype=torch.float64).view(-1, 1, 1)
    torch.testing.assert_close(buffers.dE_dh[0], 0.5**lag * buffers.dE_dh[0][-1])


def test_the_curve_is_the_total_gradient_not_the_immediate_one():
    """torch.stack(hs) with retain_grad holds d+E/dh_t only, 0 before the last step; the recorded curve is not."""
    theta = random_parameters((), (INPUTS, HIDDEN, OUTPUTS))
    x, y = data((), "cross entropy", 1)
    w = weights(theta)
    h_t, hs = x.new_zeros(BATCH, HIDDEN), []
    w["W1"].requires_grad_()
    for x_t in x:
        h_t = torch.tanh(x_t @ w["U1"] + h_t @ w["W1"] + w["b1"])
        hs.append(h_t)
    trap = torch.stack(hs)
    trap.retain_grad()
    torch.nn.functional.cross_entropy(trap[-1] @ w["V"] + w["c"], y[0]).backward()
    assert trap.grad is not None

    net = bptt.Net(Elman(ACTIVATIONS["tanh"]), softmax_cross_entropy)
    _, buffers, _ = run_backward(theta, x, y, net)
    adjoints, _, _ = run_scaled(theta, x, y, net)
    curve = log10_norms(adjoints.dE_dh)[0]
    assert trap.grad[:-1].count_nonzero() == 0
    torch.testing.assert_close(buffers.dE_dh[0][-1], trap.grad[-1])
    assert (buffers.dE_dh[0].norm(dim=-1) > 0).all()
    truth = backpropagate(weights(theta), x, y, "tanh", "cross entropy", "mean")
    rms = (truth.dE_dh[0] * BATCH).square().sum(-1).mean(-1).sqrt()
    torch.testing.assert_close(curve, rms.log10())


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("every_step", [False, True], ids=["last step", "every step"])
@pytest.mark.parametrize("phi", ACTIVATIONS)
def test_renormalising_changes_no_bit_where_float32_suffices(runs, phi, every_step, layers):
    """Powers of two are exact, so a recorded step trains on the very gradients of an unrecorded one."""
    T, batch = 25, 20
    theta = random_parameters(runs, (6, 50, 4), layers, torch.float32, gain=0.7)
    theta.V.mul_(0.1)  # or a linear net is so sure of a class that softmax itself is subnormal
    net = bptt.Net(Elman(ACTIVATIONS[phi]), softmax_cross_entropy, T if every_step else 1)
    x, y = data(runs, "cross entropy", net.loss_steps, T, batch, torch.float32, (6, 4))
    _, buffers, grads = run_backward(theta, x, y, net)
    adjoints, scaled_buffers, scaled_grads = run_scaled(theta, x, y, net)
    assert torch.isfinite(grads.flat).all()
    assert torch.equal(scaled_grads.flat, grads.flat)
    for n in range(layers):
        assert torch.equal(value(adjoints.dE_dh[n]), buffers.dE_dh[n])
        assert torch.equal(value(adjoints.delta[n]), buffers.delta[n])
        assert torch.equal(scaled_buffers.delta[n], buffers.delta[n])


def test_keeping_dE_dh_changes_no_bit(runs):
    theta = random_parameters(runs, (INPUTS, HIDDEN, OUTPUTS), 2, torch.float32)
    x, y = data(runs, "cross entropy", STEPS, dtype=torch.float32)
    net = bptt.Net(Elman(ACTIVATIONS["sigmoid"]), softmax_cross_entropy, STEPS)
    _, kept, grads = run_backward(theta, x, y, net, keep=True)
    _, shared, same = run_backward(theta, x, y, net, keep=False)
    assert torch.equal(grads.flat, same.flat)
    assert all(torch.equal(a, b) for a, b in zip(kept.delta, shared.delta, strict=True))


def rescaled_log10_norms(theta: Parameters, h: Tensor, dE_do: Tensor, prime, T: int) -> np.ndarray:
    """log10 of the batch RMS of ||dE/dh_t|| of one run, in float64, each example's scale apart as a log."""
    W, V = theta.layers[0].W.double().numpy(), theta.V.double().numpy()
    states, last = h.double().numpy(), dE_do[-1].double().numpy() * dE_do.shape[-2]
    d, log_scale, curve = last @ V.T, np.zeros(len(last)), np.empty(T)
    for t in range(T, 0, -1):
        size = np.linalg.norm(d, axis=1)
        d, log_scale = d / size[:, None], log_scale + np.log(size)
        top = log_scale.max()
        curve[t - 1] = (top + 0.5 * np.log(np.mean(np.exp(2 * (log_scale - top))))) / math.log(10)
        d = (d * prime(states[t])) @ W.T
    return curve


def test_a_thousand_steps_vanish_to_1e_minus_1750():
    """Sigmoid, W ~ N(0, .01^2) as in P13, in float32, which ends at 1e-45: the curve is that of rescaled float64."""
    T = 1000
    theta = random_parameters((), (6, 50, 4), dtype=torch.float32, gain=0.01 * 50**0.5)
    net = bptt.Net(Elman(ACTIVATIONS["sigmoid"]), softmax_cross_entropy)
    x, y = data((), "cross entropy", 1, T, 5, torch.float32, (6, 4))
    adjoints, buffers, _ = run_scaled(theta, x, y, net)
    _, dE_do = bptt.objective(bptt.forward(theta, x, net, buffers), y, net)
    truth = rescaled_log10_norms(theta, buffers.h[0], dE_do, lambda h: h * (1 - h), T)
    curve = log10_norms(adjoints.dE_dh)[0].numpy()
    np.testing.assert_allclose(curve, truth, atol=2e-3)
    assert -1900 < curve[0] < -1600
    assert buffers.delta[0][0].count_nonzero() == 0, "float32 can hold this: the test shows nothing"


def test_tanh_at_rest_explodes_by_its_gain_each_step():
    """No input: h_t = 0, phi' = 1, so orthogonal W of gain 50: ||dE/dh_t|| = 50^(T-t) ||dE/dh_T||, up to 1e1697."""
    T, gain = 1000, 50.0
    theta = random_parameters((), (6, 50, 4), dtype=torch.float32)
    layer = theta.layers[0]
    layer.U.zero_()
    layer.b.zero_()
    layer.W.copy_(gain * torch.linalg.qr(layer.W.double())[0])
    x, y = data((), "cross entropy", 1, T, 20, torch.float32, (6, 4))
    net = bptt.Net(Elman(ACTIVATIONS["tanh"]), softmax_cross_entropy)
    adjoints, _, _ = run_scaled(theta, x, y, net)
    _, plain, _ = run_backward(theta, x, y, net)
    for curve in (log10_norms(adjoints.dE_dh)[0], log10_norms(adjoints.delta)[0]):
        lag = torch.arange(T - 1, -1, -1, dtype=torch.float64)
        torch.testing.assert_close(curve - curve[-1], lag * math.log10(gain), atol=1e-3, rtol=0)
    assert not torch.isfinite(plain.delta[0]).all(), "float32 can hold this: the test shows nothing"


def test_dead_units_give_an_exact_zero():
    """ReLU units below 0 at every step: nothing flows back, and log10 of it is -inf."""
    theta = random_parameters((2,), (INPUTS, HIDDEN, OUTPUTS), dtype=torch.float32)
    theta.layers[0].b.fill_(-1e6)
    x, y = data((2,), "cross entropy", STEPS, dtype=torch.float32)
    adjoints, _, grads = run_scaled(theta, x, y, bptt.Net(Elman(ACTIVATIONS["relu"]), softmax_cross_entropy, STEPS))
    assert (log10_norms(adjoints.delta) == -torch.inf).all()
    assert torch.isfinite(log10_norms(adjoints.dE_dh)).all()  # every step has a loss, and dE/dh_t is taken before phi'
    assert grads.layers[0].W.count_nonzero() == 0
    assert grads.c.count_nonzero() > 0

    adjoints, _, _ = run_scaled(theta, x, y[:, -1:], bptt.Net(Elman(ACTIVATIONS["relu"]), softmax_cross_entropy))
    assert (log10_norms(adjoints.dE_dh)[..., :-1] == -torch.inf).all()
    assert torch.isfinite(log10_norms(adjoints.dE_dh)[..., -1]).all()


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_what_is_not_finite_stays_not_finite(bad):
    """Explosion is data: an infinite or NaN output gradient reaches every step, and only the run that has it."""
    theta = random_parameters((2,), (INPUTS, HIDDEN, OUTPUTS), dtype=torch.float32)
    net = bptt.Net(Elman(ACTIVATIONS["tanh"]), softmax_cross_entropy)
    x, y = data((2,), "cross entropy", 1, dtype=torch.float32)
    buffers, grads = bptt.Buffers(theta, net.cell, STEPS, BATCH), theta.like()
    _, dE_do = bptt.objective(bptt.forward(theta, x, net, buffers), y, net)
    dE_do[0, 0, 1, 2] = bad
    adjoints = bptt.scaled_backward(theta, x, dE_do, net, buffers, grads)
    for curve in (log10_norms(adjoints.dE_dh), log10_norms(adjoints.delta)):
        assert not torch.isfinite(curve[0]).any()
        assert not (curve[0] == -torch.inf).any()
        assert torch.isfinite(curve[1]).all()
    assert not torch.isfinite(grads.layers[0].W[0]).any()
    assert torch.isfinite(grads.flat[1]).all()


def test_padding_between_the_parameters_stays_zero(runs):
    theta = random_parameters(runs, (INPUTS, HIDDEN, OUTPUTS), 2, torch.float32)
    x, y = data(runs, "cross entropy", 1, dtype=torch.float32)
    _, _, grads = run_backward(theta, x, y, bptt.Net(Elman(ACTIVATIONS["tanh"]), softmax_cross_entropy))
    entries = sum(
        g[run].numel() for run in each_run(runs) for g in (*grads.layers[0], *grads.layers[1], grads.V, grads.c)
    )
    assert grads.flat.numel() > entries
    assert grads.flat.count_nonzero() == entries


@pytest.mark.parametrize("phi", ACTIVATIONS)
def test_a_run_in_a_program_is_bitwise_the_run_alone(phi):
    """At (B, H, T) = (20, 50, 100) in float32: states, loss, every delta and every gradient, plain and renormalised."""
    theta = random_parameters((3,), (6, 50, 4), dtype=torch.float32)
    x, y = data((3,), "cross entropy", 1, 100, 20, torch.float32, (6, 4))
    net = bptt.Net(Elman(ACTIVATIONS[phi]), softmax_cross_entropy)
    loss, together, grads = run_backward(theta, x, y, net)
    adjoints, _, scaled_grads = run_scaled(theta, x, y, net)
    for run in range(3):
        for runs, index in (((), ()), ((1,), 0), ((1, 1), (0, 0))):
            own = Parameters.zeros(runs, 6, 50, 4)
            own.flat.copy_(theta.flat[run])
            own_x, own_y = x[run].expand(*runs, -1, -1, -1), y[run].expand(*runs, -1, -1)
            alone_loss, alone, alone_grads = run_backward(own, own_x, own_y, net)
            alone_adjoints, _, alone_scaled_grads = run_scaled(own, own_x, own_y, net)
            assert torch.equal(alone_loss[index], loss[run])
            assert torch.equal(alone.h[0][index], together.h[0][run])
            assert torch.equal(alone.delta[0][index], together.delta[0][run])
            assert torch.equal(alone_grads.flat[index], grads.flat[run])
            assert torch.equal(alone_scaled_grads.flat[index], scaled_grads.flat[run])
            assert torch.equal(log10_norms(alone_adjoints.delta)[index], log10_norms(adjoints.delta)[run])
