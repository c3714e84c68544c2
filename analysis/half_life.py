"""How many time steps it takes until a norm has halved (or, where it explodes, doubled): the fit, and its intervals."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from overlay import t_quantile

from rnn_lab.theory import LAGS


class Slope(NamedTuple):
    """Of log10 norms on the lag, decades a step, with the ends of its 95 % interval; NaN where it cannot be said."""

    mean: float
    low: float
    high: float


def half_life(slope: pd.Series) -> pd.Series:
    """log10(2) / |slope|, time steps; NaN where the slope is 0."""
    return np.log10(2) / slope.abs().where(slope != 0)


def interval(slope: Slope) -> tuple[float, float]:
    """The ends of the half-life's interval; the upper one is inf where the slope may be 0 (neither vanishing nor exploding is sure)."""
    ends = np.sort(np.abs([slope.low, slope.high]))
    longest = np.inf if slope.low * slope.high <= 0 else np.log10(2) / ends[0]
    return float(np.log10(2) / ends[1]) if ends[1] else np.inf, float(longest)


def fit(lag: ArrayLike, log10_norm: ArrayLike) -> Slope:
    """Least squares over lags 0..min(59, T - 1), as dE_dh/slope, with an interval from the residuals.

    Residuals of neighbouring steps are alike, so n points are worth n (1 - r) / (1 + r), r their autocorrelation (AR(1); r < 0 counts
    as 0; they are worth 3 at least). Values that are not finite are left out; fewer than three leave no interval.
    """
    x, y = np.asarray(lag, float), np.asarray(log10_norm, float)
    order = np.argsort(x)
    x, y = x[order], y[order]
    used = np.isfinite(y) & (x < LAGS)
    x, y = x[used], y[used]
    if len(x) < 2:
        return Slope(np.nan, np.nan, np.nan)
    x = x - x.mean()
    mean = (x @ y) / (x @ x)
    residuals = y - y.mean() - mean * x
    total, rounding = residuals @ residuals, 1e-24 * len(x) * np.abs(y).max() ** 2
    r = max(residuals[1:] @ residuals[:-1] / total, 0.0) if total > rounding else 0.0
    if len(x) < 3:
        return Slope(mean, np.nan, np.nan)
    worth = max(len(x) * (1 - r) / (1 + r), 3.0)
    half = t_quantile(round(worth) - 1) * np.sqrt(total / (worth - 2) / (x @ x))
    return Slope(mean, mean - half, mean + half)


def over_seeds(slopes: ArrayLike) -> Slope:
    """The mean over seeds and its t-interval; one seed leaves no interval."""
    finite = np.asarray(slopes, float)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return Slope(np.nan, np.nan, np.nan)
    mean = float(finite.mean())
    half = t_quantile(len(finite)) * finite.std(ddof=1) / np.sqrt(len(finite)) if len(finite) > 1 else np.nan
    return Slope(mean, mean - half, mean + half)
