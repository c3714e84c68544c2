"""Omega against a loop that reads the formula aloud, and its gradient against differences in W alone."""

import pytest
import torch
from oracle import each_run, random_parameters
from torch import Tensor

from rnn_lab import bptt, regularizers
from rnn_lab.activations import ACTIVATIONS
from rnn_lab.cells import Elman, Leaky
from rnn_lab.losses import softmax_cross_entropy
from rnn_lab.parameters import Parameters
from rnn_lab.scaled import Scaled

T, B, SIZES = 6, 4, (3, 5, 2)


def leaks(runs: tuple[int, ...]) -> Tensor:
    return torch.rand(runs, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 0.8 + 0.1


def backpropagated(
    runs: tuple[int, ...],
    phi: str = "tanh",
    layers: int = 1,
    L: int = 1,
    dtype: torch.dtype = torch.float64,
    gain: float = 1.5,
    leaky: bool = False,
) -> tuple[Parameters, bptt.Buffers, Parameters, bptt.ScaledAdjoints]:
    """Parameters, what `backward` leaves in buffers and gradients, and what a recorded row has."""
    theta = random_parameters(runs, SIZES, layers, dtype=dtype, gain=gain)
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(*runs, T, B, SIZES[0], generator=draw, dtype=dtype)
    y = torch.randint(SIZES[2], (*runs, L, B), generator=draw)
    cell = Leaky(ACTIVATIONS[phi], leaks(runs)) if leaky else Elman(ACTIVATIONS[phi])
    net = bptt.Net(cell, softmax_cross_entropy, loss_steps=L)
    buffers, grads = bptt.Buffers(theta, net.cell, T, B, keep_dE_dh=True), theta.like()
    _, dE_do = bptt.objective(bptt.forward(theta, x, net, buffers), y, net)
    adjoints = bptt.scaled_backward(theta, x, dE_do, net, buffers, theta.like())
    bptt.backward(theta, x, dE_do, net, buffers, grads)
    return theta, buffers, grads, adjoints


def literal(d: Tensor, phi_prime: Tensor, W: Tensor, leak: float = 1.0) -> float:
    """P13 eq. 10, one run, as in the authors' code: d, phi' (T, batch, hidden). Column by column, example by example."""
    above, counted = 0.0, 0.0
    for t in range(len(d)):
        for e in range(d.shape[1]):
            size = sum(float(v) ** 2 for v in d[t, e])
            ratio = 1.0
            if size >= 1e-20:
                counted += 1 / d.shape[1]
                back = [
                    sum(float(d[t, e, i]) * leak * float(phi_prime[t, e, i]) * float(W[j, i]) for i in range(len(W)))
                    + (1 - leak) * float(d[t, e, j])
                    for j in range(len(W))
                ]
                ratio = sum(b**2 for b in back) / size
            above += (ratio - 1) ** 2 / d.shape[1]
    return above / counted if counted else 0.0


@pytest.mark.parametrize("phi", ["tanh", "sigmoid", "relu"])
@pytest.mark.parametrize("L", [1, T])
def test_omega_is_the_formula(runs, phi, L):
    theta, buffers, _, _ = backpropagated(runs, phi, L=L)
    W = theta.layers[0].W
    found = regularizers.omega(buffers.dE_dh[0], buffers.delta[0], W)
    for run in each_run(runs):
        prime = ACTIVATIONS[phi].prime(buffers.h[0][run][1:])
        expected = literal(buffers.dE_dh[0][run], prime, W[run])
        assert found[run].item() == pytest.approx(expected, rel=1e-11)
        assert literal(buffers.dE_dh[0][run], prime, W[run].T) != pytest.approx(expected, rel=1e-3)


def test_a_leaky_unit_sends_part_of_its_gradient_straight_back(runs):
    """The formula with the whole Jacobian dh_t/dh_{t-1}; its gradient by differences; each run its own leak."""
    theta, buffers, _, adjoints = backpropagated(runs, L=T, leaky=True)
    leak, d, delta, W = leaks(runs), buffers.dE_dh[0], buffers.delta[0], theta.layers[0].W
    value, dW = regularizers.omega_gradient(d, delta, W, leak)
    cell = Leaky(ACTIVATIONS["tanh"], leak)
    torch.testing.assert_close(regularizers.net_omega(theta, cell, adjoints), value)
    for run in each_run(runs):
        prime = ACTIVATIONS["tanh"].prime(buffers.traces[0].gates[run])
        assert value[run].item() == pytest.approx(literal(d[run], prime, W[run], leak[run].item()), rel=1e-11)
    grads = theta.like()
    alpha = torch.full(runs, 2.0).double()
    torch.testing.assert_close(regularizers.add_omega_gradient_(theta, cell, buffers, alpha, grads), value)
    torch.testing.assert_close(grads.layers[0].W, 2 * dW)
    h = 1e-5
    for j, i in ((0, 0), (1, 3), (4, 2)):
        step = torch.zeros_like(W)
        step[..., j, i] = h
        above, below = (regularizers.omega(d, delta, W + sign * step, leak) for sign in (1, -1))
        torch.testing.assert_close(dW[..., j, i], (above - below) / (2 * h), rtol=1e-6, atol=1e-7)


def test_the_first_steps_jacobian_is_to_h_0():
    """One step, one unit, linear: ratio = w^2."""
    d = torch.tensor(0.3, dtype=torch.float64).view(1, 1, 1)
    W = torch.tensor([[3.0]], dtype=torch.float64)
    assert regularizers.omega(d, d, W).item() == pytest.approx((9 - 1) ** 2)
    value, dW = regularizers.omega_gradient(d, d, W)
    assert value.item() == pytest.approx(64)
    assert dW.item() == pytest.approx(2 * 8 * 2 * 3)


def test_tiny_gradients_count_as_a_ratio_of_one_and_not_at_all_in_the_mean():
    """||d||^2 just above and below 1e-20, and zero."""
    d = torch.tensor([2e-10, 1.001e-10, 0.999e-10, 0.0], dtype=torch.float64).view(4, 1, 1)
    W = torch.tensor([[2.0]], dtype=torch.float64)
    value, dW = regularizers.omega_gradient(d, d, W)
    assert value.item() == pytest.approx((4 - 1) ** 2), "the mean over the two that count"
    assert dW.item() == pytest.approx(2 * 3 * 2 * 2)
    value, dW = regularizers.omega_gradient(d / 1e3, d / 1e3, W)
    assert (value.item(), dW.item()) == (0, 0)


@pytest.mark.parametrize("L", [1, T])
def test_its_gradient_by_differences_with_states_and_deltas_held_constant(runs, L):
    theta, buffers, _, _ = backpropagated(runs, L=L)
    d, delta, W = buffers.dE_dh[0].clone(), buffers.delta[0], theta.layers[0].W.clone()
    d[..., 0, 0, :] = 1e-12  # does not count
    value, dW = regularizers.omega_gradient(d, delta, W)
    assert torch.equal(value, regularizers.omega(d, delta, W))
    h = 1e-5
    for j in range(W.shape[-2]):
        for i in range(W.shape[-1]):
            step = torch.zeros_like(W)
            step[..., j, i] = h
            slope = (regularizers.omega(d, delta, W + step) - regularizers.omega(d, delta, W - step)) / (2 * h)
            torch.testing.assert_close(dW[..., j, i], slope, rtol=1e-6, atol=1e-7)


def test_layers_add_up_and_alpha_belongs_to_a_run():
    theta, buffers, grads, adjoints = backpropagated((3,), layers=2)
    cell = Elman(ACTIVATIONS["tanh"])
    plain, alpha = grads.flat.clone(), torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)
    total = regularizers.add_omega_gradient_(theta, cell, buffers, alpha, grads)
    each = [regularizers.omega_gradient(buffers.dE_dh[n], buffers.delta[n], theta.layers[n].W) for n in range(2)]
    torch.testing.assert_close(total, each[0][0] + each[1][0])
    torch.testing.assert_close(total, regularizers.net_omega(theta, cell, adjoints))
    expected = theta.like()
    for n in range(2):
        expected.layers[n].W.copy_(alpha[:, None, None] * each[n][1])
    torch.testing.assert_close(grads.flat - plain, expected.flat)
    assert torch.equal(grads.flat[0], plain[0])


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e30])
def test_float32_says_what_float64_says_at_any_size_that_counts(scale):
    """Squares of 1e30 do not fit float32; products of what is as small as 1e-9 end below its normal range."""
    theta, buffers, _, _ = backpropagated((), gain=1.0)
    d, delta, W = buffers.dE_dh[0], buffers.delta[0], theta.layers[0].W
    unit = scale / torch.linalg.vector_norm(d, dim=-1, keepdim=True)
    d, delta = d * unit, delta * unit
    value, dW = regularizers.omega_gradient(d, delta, W)
    value32, dW32 = regularizers.omega_gradient(d.float(), delta.float(), W.float())
    torch.testing.assert_close(value32, value, rtol=1e-5, atol=0)
    torch.testing.assert_close(dW32.double(), dW, rtol=1e-4, atol=1e-6)


def test_a_recorded_row_has_the_bits_of_any_other():
    theta, buffers, _, adjoints = backpropagated((3,), dtype=torch.float32)
    kept = [d.clone() for d in buffers.dE_dh]
    assert torch.equal(
        regularizers.net_omega(theta, Elman(ACTIVATIONS["tanh"]), adjoints),
        regularizers.omega(kept[0], buffers.delta[0], theta.layers[0].W),
    )


def test_what_underflows_counts_not():
    nothing = Scaled(torch.ones(T, B, 5), torch.full((T, B), -400, dtype=torch.int32))
    theta = random_parameters((), SIZES, dtype=torch.float32)
    assert (
        regularizers.net_omega(theta, Elman(ACTIVATIONS["tanh"]), bptt.ScaledAdjoints([nothing], [nothing], [nothing]))
        == 0
    )
