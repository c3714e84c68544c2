"""Losses against torch.nn.functional, their gradients against autograd."""

import math

import pytest
import torch
import torch.nn.functional as F

from rnn_lab.losses import softmax_cross_entropy, squared_error


def outputs(runs: tuple[int, ...], scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*runs, 4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def classes(runs: tuple[int, ...]) -> torch.Tensor:
    return torch.randint(5, (*runs, 4, 3), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("scale", [1.0, 300.0], ids=["moderate", "extreme"])
def test_cross_entropy_is_pytorchs(runs, scale):
    o, y = outputs(runs, scale).requires_grad_(), classes(runs)
    expected = F.cross_entropy(o.reshape(-1, 5), y.reshape(-1), reduction="none").view(y.shape)
    (gradient,) = torch.autograd.grad(expected.sum(), o)
    E, dE_do = softmax_cross_entropy(o.detach(), y)
    torch.testing.assert_close(E, expected.detach())
    torch.testing.assert_close(dE_do, gradient)


def test_cross_entropy_of_certainty_and_of_ignorance():
    """In nats: ln 4 for four equal outputs, 0 for certainty, and the gradient is yhat - y."""
    E, dE_do = softmax_cross_entropy(torch.tensor([[0.0, 0, 0, 0], [0, 1000, 0, 0]]), torch.tensor([2, 1]))
    assert E.tolist() == pytest.approx([math.log(4), 0])
    assert dE_do.tolist() == [[0.25, 0.25, -0.75, 0.25], [0, 0, 0, 0]]


def test_squared_error_is_the_sum_over_outputs(runs):
    o, y = outputs(runs).requires_grad_(), outputs(runs) ** 2
    expected = F.mse_loss(o, y, reduction="none").sum(-1)
    (gradient,) = torch.autograd.grad(expected.sum(), o)
    E, dE_do = squared_error(o.detach(), y)
    torch.testing.assert_close(E, expected.detach())
    torch.testing.assert_close(dE_do, gradient)


@pytest.mark.parametrize("loss", [softmax_cross_entropy, squared_error])
def test_arguments_are_left_alone(loss):
    o = outputs(())
    y = classes(()) if loss is softmax_cross_entropy else outputs(()) ** 2
    before = o.clone(), y.clone()
    loss(o, y)
    assert torch.equal(o, before[0])
    assert torch.equal(y, before[1])
