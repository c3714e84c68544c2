"""Clipping against torch.nn.utils, and where float32 and infinity are."""

import math

import pytest
import torch
from oracle import each_run
from torch import Tensor

from rnn_lab import clipping


def gradients(runs: tuple[int, ...], size: int = 40, dtype=torch.float64) -> Tensor:
    """Runs of very different norm."""
    g = torch.randn(*runs, size, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return g * 10 ** torch.linspace(-2, 2, max(1, math.prod(runs)), dtype=dtype).view(*runs, 1)


def each(runs: tuple[int, ...], number: float) -> Tensor:
    return torch.full(runs, number, dtype=torch.float64)


@pytest.mark.parametrize("threshold", [1e-3, 1.0, 50.0])
def test_by_norm_is_clip_grad_norm(runs, threshold):
    """One norm over all parameters of a run, not over those of its neighbours. (PyTorch divides by norm + 1e-6.)"""
    g = gradients(runs)
    applied, clipped = clipping.by_norm(g, each(runs, threshold))
    for run in each_run(runs):
        parts = [torch.zeros(10, dtype=g.dtype, requires_grad=True) for _ in range(4)]
        for part, gradient in zip(parts, g[run].split(10), strict=True):
            part.grad = gradient.clone()
        norm = torch.nn.utils.clip_grad_norm_(parts, threshold)
        assert clipping.norm(g)[run] == pytest.approx(norm.item())
        assert clipped[run] == (norm >= threshold)
        torch.testing.assert_close(
            applied[run],
            torch.cat([p.grad for p in parts if p.grad is not None]),
            rtol=2e-3 if threshold < 1 else 2e-5,
            atol=0,
        )


def test_by_norm_keeps_the_direction_and_ends_at_the_threshold(runs):
    g, theta = gradients(runs), each(runs, 0.5)
    applied, clipped = clipping.by_norm(g, theta)
    torch.testing.assert_close(clipping.norm(applied), clipping.norm(g).minimum(theta))
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(g, applied, dim=-1), each(runs, 1))
    assert torch.equal(applied[~clipped], g[~clipped])


def test_a_norm_equal_to_the_threshold_counts_as_clipped():
    """Algorithm 1 says >=."""
    applied, clipped = clipping.by_norm(torch.tensor([3.0, 4.0]), torch.tensor(5.0, dtype=torch.float64))
    assert clipped
    assert applied.tolist() == [3, 4]


def test_each_run_has_its_own_threshold():
    applied, clipped = clipping.by_norm(
        torch.tensor([[3.0, 4.0]] * 3), torch.tensor([1.0, 5.5, 2.5], dtype=torch.float64)
    )
    torch.testing.assert_close(applied, torch.tensor([[0.6, 0.8], [3, 4], [1.5, 2]]))
    assert clipped.tolist() == [True, False, True]
    applied, clipped = clipping.by_value(
        torch.tensor([[3.0, -4.0]] * 3), torch.tensor([1.0, 5.5, 3.5], dtype=torch.float64)
    )
    assert applied.tolist() == [[1, -1], [3, -4], [3, -3.5]]
    assert clipped.tolist() == [True, False, True]


@pytest.mark.parametrize("size", [1e38, 1e-30], ids=["overflows", "underflows"])
def test_norms_whose_squares_float32_cannot_hold(size):
    """clip_grad_norm_ in float32 sees an infinite norm and returns zeros; here 1e38 is clipped like any number."""
    g = torch.full((100,), size)
    assert not torch.isfinite(g.square().sum().log())
    assert clipping.norm(g).item() == pytest.approx(10 * g[0].item())
    applied, clipped = clipping.by_norm(g, torch.tensor(1e-29 if size < 1 else 1.0, dtype=torch.float64))
    assert clipped == (size > 1) or size < 1
    torch.testing.assert_close(applied, torch.full((100,), min(size, 0.1)))


def test_by_value_is_clip_grad_value(runs):
    g = gradients(runs)
    applied, clipped = clipping.by_value(g, each(runs, 0.7))
    parameter = torch.zeros_like(g, requires_grad=True)
    parameter.grad = g.clone()
    torch.nn.utils.clip_grad_value_([parameter], 0.7)
    assert parameter.grad is not None
    assert torch.equal(applied, parameter.grad)
    assert torch.equal(clipped, (g.abs() > 0.7).any(-1))


def test_none_changes_nothing(runs):
    g = gradients(runs)
    applied, clipped = clipping.none(g, each(runs, 1e-9))
    assert torch.equal(applied, g)
    assert clipped.shape == runs
    assert not clipped.any()


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_by_norm_does_not_repair_what_is_not_finite(bad):
    """PyTorch would turn [inf, 1] into [nan, 0]; here it stays as it was, not clipped, and its neighbour is clipped."""
    g = torch.tensor([[bad, 1.0], [3.0, 4.0]])
    applied, clipped = clipping.by_norm(g, torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(applied, torch.tensor([[bad, 1.0], [0.6, 0.8]]), equal_nan=True)
    assert clipped.tolist() == [False, True]


def test_by_value_clamps_infinity_and_leaves_nan():
    applied, clipped = clipping.by_value(
        torch.tensor([[math.inf, 0.5], [-math.inf, 0.5], [math.nan, 0.5]]), torch.ones(3, dtype=torch.float64)
    )
    assert applied[:2].tolist() == [[1, 0.5], [-1, 0.5]]
    assert applied[2, 0].isnan()
    assert clipped.tolist() == [True, True, False]


def test_a_float64_gradient_whose_squares_do_not_fit_has_a_norm():
    """3-4-5 triangles at both ends of float64, where the squares are inf or 0."""
    g = torch.tensor([[3e200, 4e200], [3e-200, 4e-200], [0.0, 0.0], [torch.inf, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(
        clipping.norm(g), torch.tensor([5e200, 5e-200, 0.0, torch.inf], dtype=torch.float64), rtol=1e-14, atol=0
    )
    applied, clipped = clipping.by_norm(g[:1], torch.ones(1, dtype=torch.float64))
    assert clipped.all()
    torch.testing.assert_close(applied, torch.tensor([[0.6, 0.8]], dtype=torch.float64))
