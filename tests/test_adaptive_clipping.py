"""AGC and AutoClip against literal loops; what every clip does with what is not finite."""

import math

import numpy as np
import pytest
import torch
from oracle import each_run, random_parameters, weights

from rnn_lab import clipping
from rnn_lab.parameters import Parameters

SIZES = (3, 5, 2)


def settings(theta: Parameters, **given: float) -> clipping.Settings:
    runs = tuple(theta.flat.shape[:-1])
    values = {"threshold": 1.0, "factor": 0.01, "percentile": 10.0} | given
    each = {key: torch.full(runs, value, dtype=torch.float64) for key, value in values.items()}
    return clipping.Settings(**each, matrices=theta.matrices)


def gradients(theta: Parameters, scale: float = 0.1) -> Parameters:
    g = theta.like()
    g.flat.copy_(
        scale * torch.randn(theta.flat.shape, generator=torch.Generator().manual_seed(3), dtype=theta.flat.dtype)
    )
    return g


@pytest.mark.parametrize("layers", [1, 3])
def test_matrices_are_the_weights_and_not_the_biases(runs, layers):
    theta = random_parameters(runs, SIZES, layers)
    expected = [m for layer in theta.layers for m in (layer.U, layer.W)] + [theta.V]
    found = theta.matrices(theta.flat)
    assert [f.data_ptr() for f in found] == [e.data_ptr() for e in expected]
    assert [f.shape for f in found] == [e.shape for e in expected]
    copied = theta.matrices(theta.flat.clone())
    assert all(torch.equal(a, b) for a, b in zip(copied, expected, strict=True))


@pytest.mark.parametrize("layers", [1, 2])
def test_agc_is_a_loop_over_units(runs, layers):
    """Unit i's incoming weights are column i; every third column is zero, where 1e-3 takes the place of its norm."""
    theta = random_parameters(runs, SIZES, layers)
    for matrix in theta.matrices(theta.flat):
        matrix[..., ::3] = 0
    g, s = gradients(theta), settings(theta, factor=0.05)
    applied, clipped = clipping.CLIPS["agc"](g.flat, clipping.norm(g.flat), theta.flat, s)
    after = theta.like()
    after.flat.copy_(applied)
    cut = 0
    for run in each_run(runs):
        w, before, now = weights(theta, run), weights(g, run), weights(after, run)
        any_cut = False
        for name, matrix in before.items():
            expected = matrix.clone()
            if name[0] in "UWV":
                for i in range(matrix.shape[1]):
                    bound = 0.05 * max(w[name][:, i].norm().item(), 1e-3)
                    if (size := matrix[:, i].norm().item()) > bound:
                        expected[:, i] *= bound / size
                        any_cut, cut = True, cut + 1
            torch.testing.assert_close(now[name], expected, rtol=1e-12, atol=0)
        assert clipped[run] == any_cut
    assert cut
    untouched, none = clipping.CLIPS["agc"](1e-9 * g.flat, clipping.norm(1e-9 * g.flat), theta.flat, s)
    assert torch.equal(untouched, 1e-9 * g.flat)
    assert not none.any()


@pytest.mark.parametrize("p", [0.0, 10.0, 37.5, 50.0, 100.0])
def test_the_history_is_numpys_percentile_of_all_norms_so_far(runs, p):
    history, rng, seen = clipping.History(math.prod(runs)), np.random.default_rng(0), []
    for n in range(60):
        size = torch.from_numpy(np.asarray(rng.lognormal(sigma=3, size=runs)))
        if n % 7 == 0 and seen:
            size = torch.from_numpy(seen[-1].copy())  # ties
        seen.append(size.numpy().copy())
        found = history.percentile(size, torch.full(runs, p, dtype=torch.float64))
        np.testing.assert_allclose(found.numpy(), np.percentile(np.stack(seen), p, axis=0), rtol=1e-13)


def test_each_run_has_its_own_percentile_and_history():
    history, sizes = clipping.History(2), torch.tensor([[1.0, 10.0], [3.0, 30.0]], dtype=torch.float64)
    p = torch.tensor([50.0, 100.0], dtype=torch.float64)
    assert history.percentile(sizes[0], p).tolist() == [1, 10]
    assert history.percentile(sizes[1], p).tolist() == [2, 30]


def test_autoclip_is_clipping_by_norm_at_the_percentile(runs):
    theta = random_parameters(runs, SIZES)
    s, norms = settings(theta, percentile=25.0), []
    for n in range(12):
        g = gradients(theta, scale=2.0 ** (n * 5 % 7)).flat
        norms.append(clipping.norm(g).numpy())
        applied, clipped = clipping.CLIPS["autoclip"](g, clipping.norm(g), theta.flat, s)
        level = torch.from_numpy(np.asarray(np.percentile(np.stack(norms), 25, axis=0)))
        torch.testing.assert_close(clipping.norm(applied), level.minimum(clipping.norm(g)))
        assert torch.equal(clipped, clipping.norm(g) >= level)


def test_autoclip_does_not_remember_what_is_not_finite():
    history, p = clipping.History(1), torch.tensor([100.0], dtype=torch.float64)

    def next(norm: float) -> float:
        return history.percentile(torch.tensor([norm], dtype=torch.float64), p).item()

    assert next(math.nan) == math.inf
    assert next(2.0) == 2
    assert next(math.inf) == 2
    assert next(math.nan) == 2
    assert next(3.0) == 3


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", clipping.CLIPS)
def test_what_each_clip_does_with_an_entry_that_is_not_finite(name, bad):
    """The table in clipping.py, line by line; the neighbouring run is clipped as if it were alone."""
    theta = random_parameters((2,), SIZES)
    g, s = gradients(theta, scale=10.0), settings(theta)
    alone, _ = clipping.CLIPS[name](g.flat, clipping.norm(g.flat), theta.flat, settings(theta))
    g.layers[0].W[0, 2, 1] = bad
    applied, clipped = clipping.CLIPS[name](g.flat, clipping.norm(g.flat), theta.flat, s)
    torch.testing.assert_close(applied[1], alone[1], rtol=0, atol=0)
    expected = g.flat[0].clone()
    if name == "value":
        expected = expected.clamp(-1, 1)  # leaves NaN
    elif name == "agc":
        expected = alone[0].clone()
        unit = theta.like()
        unit.layers[0].W[0, :, 1] = 1
        expected[unit.flat[0] == 1] = g.flat[0][unit.flat[0] == 1]
    torch.testing.assert_close(applied[0], expected, rtol=0, atol=0, equal_nan=True)
    assert clipped.tolist() == {"none": [False, False], "norm": [False, True], "autoclip": [False, True]}.get(
        name, [True, True]
    )


def test_agc_in_float32_where_squares_do_not_fit():
    theta = random_parameters((), SIZES, dtype=torch.float32)
    g = gradients(theta)
    g.flat.mul_(1e37)
    applied, _ = clipping.CLIPS["agc"](g.flat, clipping.norm(g.flat), theta.flat, settings(theta))
    for matrix, weight in zip(theta.matrices(applied), theta.matrices(theta.flat), strict=True):
        torch.testing.assert_close(matrix.norm(dim=0), 0.01 * weight.norm(dim=0), rtol=1e-5, atol=0)
