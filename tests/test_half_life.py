"""Half-lives and their intervals, against curves of known slope and noise."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.append(str(Path(__file__).parents[1]))
half_life = importlib.import_module("analysis.half_life")

LAG = np.arange(60)


@pytest.mark.parametrize(("slope", "steps"), [(-np.log10(2), 1), (-np.log10(2) / 7, 7), (np.log10(2) / 30, 30)])
def test_of_an_exact_exponential(slope, steps):
    found = half_life.fit(LAG, 3 + slope * LAG)
    assert found.mean == pytest.approx(slope)
    assert half_life.half_life(pd.Series([found.mean])).item() == pytest.approx(steps)
    assert half_life.interval(found) == pytest.approx((steps, steps))


def test_only_the_lags_of_the_recorded_slope_count_in_any_order():
    lag = np.arange(200)[::-1]
    curve = np.where(lag < 60, -0.1 * lag, 1e3)
    assert half_life.fit(lag, curve).mean == pytest.approx(-0.1)
    curve[lag == 5] = -np.inf
    curve[lag == 6] = np.nan
    assert half_life.fit(lag, curve).mean == pytest.approx(-0.1)


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_the_interval_of_a_fit_covers_the_truth(correlation):
    """2,000 noisy curves; with residuals that resemble their neighbours plain least squares would cover 2/3 of the time only."""
    rng, inside = np.random.default_rng(0), 0
    for _ in range(2000):
        noise = rng.standard_normal(60)
        for t in range(1, 60):
            noise[t] += correlation * noise[t - 1]
        found = half_life.fit(LAG, -0.05 * LAG + noise)
        inside += found.low <= -0.05 <= found.high
    assert 0.88 < inside / 2000 < 0.975


def test_the_interval_over_seeds_is_students():
    rng = np.random.default_rng(1)
    found = [half_life.over_seeds(-0.05 + 0.01 * rng.standard_normal(3)) for _ in range(4000)]
    assert np.mean([low <= -0.05 <= high for _, low, high in found]) == pytest.approx(0.95, abs=0.015)
    assert half_life.over_seeds([-0.1, np.nan]) == pytest.approx((-0.1, np.nan, np.nan), nan_ok=True)


def test_an_interval_that_holds_0_has_no_upper_end():
    low, high = half_life.interval(half_life.Slope(-0.01, -0.04, 0.02))
    assert low == pytest.approx(np.log10(2) / 0.04)
    assert high == np.inf
    assert half_life.interval(half_life.Slope(0.02, 0.01, 0.04)) == pytest.approx(
        (np.log10(2) / 0.04, np.log10(2) / 0.01)
    )


@pytest.mark.parametrize("curve", [[], [1.0], [np.nan, 1.0], [-np.inf] * 5])
def test_too_few_points_have_no_slope(curve):
    assert half_life.fit(np.arange(len(curve)), curve) == pytest.approx((np.nan,) * 3, nan_ok=True)


def test_two_points_leave_no_interval():
    assert half_life.fit([0, 1], [0.0, -1.0]) == pytest.approx((-1.0, np.nan, np.nan), nan_ok=True)
