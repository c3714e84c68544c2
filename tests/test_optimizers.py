"""Optimisers against torch.optim."""

import pytest
import torch
from oracle import each_run

from rnn_lab.optimizers import sgd_


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sgd_is_torchs_with_a_learning_rate_for_each_run(runs, dtype):
    draw = torch.Generator().manual_seed(0)
    theta = torch.randn(*runs, 9, generator=draw, dtype=dtype)
    lr = torch.rand(runs, generator=draw, dtype=torch.float64)
    twins = {run: theta[run].clone().requires_grad_() for run in each_run(runs)}
    steppers = {run: torch.optim.SGD([twin], lr=lr[run].item()) for run, twin in twins.items()}
    for _ in range(5):
        g = torch.randn(*runs, 9, generator=draw, dtype=dtype)
        sgd_(theta, g, lr)
        for run, twin in twins.items():
            twin.grad = g[run].clone()
            steppers[run].step()
    for run, twin in twins.items():
        torch.testing.assert_close(theta[run], twin.detach())


def test_a_learning_rate_of_zero_changes_nothing():
    theta = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    before = theta.clone()
    sgd_(theta, torch.ones(2, 5), torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert torch.equal(theta[0], before[0])
    torch.testing.assert_close(theta[1], before[1] - 1)
