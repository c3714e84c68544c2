"""Optimisers with a memory against torch.optim, run by run; frozen runs keep theirs."""

import pytest
import torch
from oracle import each_run

from rnn_lab.optimizers import OPTIMIZERS, update_

SETTINGS = {"lr": 0.03, "momentum": 0.8, "decay": 0.7, "beta1": 0.6, "beta2": 0.9, "epsilon": 1e-3}
TORCH = {
    "sgd": lambda w, s: torch.optim.SGD(w, lr=s["lr"]),
    "momentum": lambda w, s: torch.optim.SGD(w, lr=s["lr"], momentum=s["momentum"]),
    "rmsprop": lambda w, s: torch.optim.RMSprop(w, lr=s["lr"], alpha=s["decay"], eps=s["epsilon"]),
    "adam": lambda w, s: torch.optim.Adam(w, lr=s["lr"], betas=(s["beta1"], s["beta2"]), eps=s["epsilon"]),
}


def program(name: str, runs: tuple[int, ...], dtype: torch.dtype = torch.float64):
    """Parameters, state, and settings that differ from run to run."""
    draw = torch.Generator().manual_seed(0)
    theta = torch.randn(*runs, 16, generator=draw, dtype=dtype)
    settings = {
        key: SETTINGS[key] * (0.5 + 0.5 * torch.rand(runs, generator=draw, dtype=torch.float64))
        for key in OPTIMIZERS[name].settings
    }
    return theta, OPTIMIZERS[name].state(theta), settings, draw


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_torchs_with_settings_for_each_run(name, runs):
    theta, state, settings, draw = program(name, runs)
    twins = {run: theta[run].clone().requires_grad_() for run in each_run(runs)}
    steppers = {run: TORCH[name]([w], {k: v[run].item() for k, v in settings.items()}) for run, w in twins.items()}
    everyone = torch.ones(runs, dtype=torch.bool)
    for scale in (1.0, 1e-4, 30.0, 0.0, 1.0, 1.0):  # a gradient of 0 too
        g = scale * torch.randn(*runs, 16, generator=draw, dtype=torch.float64)
        update_(OPTIMIZERS[name], theta, g, state, settings, everyone)
        for run, twin in twins.items():
            twin.grad = g[run].clone()
            steppers[run].step()
    for run, twin in twins.items():
        torch.testing.assert_close(theta[run], twin.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_runs_keep_parameters_and_state_and_the_others_do_not_notice(name, dtype):
    theta, state, settings, draw = program(name, (2, 3), dtype)
    alone, its_state = theta.clone(), tuple(s.clone() for s in state)
    everyone, active = torch.ones(2, 3, dtype=torch.bool), torch.tensor([[True, False, True], [True, True, False]])
    frozen: list[torch.Tensor] = []
    for step in range(6):
        g = torch.randn(2, 3, 16, generator=draw, dtype=dtype)
        update_(OPTIMIZERS[name], alone, g, its_state, settings, everyone)
        if step > 2:
            g[~active] = torch.nan
        update_(OPTIMIZERS[name], theta, g, state, settings, active if step > 2 else everyone)
        if step == 2:
            frozen = [tensor[~active].clone() for tensor in (theta, *state)]
    for tensor, twin, kept in zip((theta, *state), (alone, *its_state), frozen, strict=True):
        assert torch.equal(tensor[active], twin[active]), "bitwise what it is among runs that all go on"
        assert torch.equal(tensor[~active], kept)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_padding_stays_zero(name):
    theta, state, settings, _ = program(name, (3,), torch.float32)
    theta[:, 9:] = 0
    g = torch.ones_like(theta)
    g[:, 9:] = 0
    for _ in range(3):
        update_(OPTIMIZERS[name], theta, g, state, settings, torch.ones(3, dtype=torch.bool))
    assert not theta[:, 9:].any()
    assert theta[:, :9].isfinite().all()
