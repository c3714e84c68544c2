"""What theory says about the gradient through time: Pascanu's bound, and the mean-field rate of wide random nets. NumPy only.

Mean field (Schoenholz et al. 2017; Chen, Pennington & Schoenholz 2018) is about W_ij ~ N(0, g^2 / H), H large, biases 0: pre-activations
are Gaussian with second moment q_t, and a gradient's norm changes by sqrt(chi(q_t)) on its step back through t. Its limits: weights that
training has moved are not random any more; for g just above 1 and H of a few hundred an autonomous net is not yet chaotic; for g < 1
without input the rate over a long time is log10 rho(W). Only the first exponent is predicted (in nats: 0.5 ln chi), not a spectrum.

All functions broadcast: activation is a name, everything else arrays, and 600 nets along 100 steps take 0.1 s.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

LAGS = 60  # slopes, measured and predicted, are those over lags 0..min(LAGS, T) - 1


# --------------------------------------------------------------------------------------------- Pascanu, Mikolov & Bengio 2013, section 2


def eta(activation: str, sigma_max: ArrayLike, leak: ArrayLike = 1.0) -> Array:
    """eta = gamma sigma_max(W), gamma = sup |phi'| (P13 eqs 6-7); leaky units with rate a = `leak`: (1 - a) + a gamma sigma_max.

    sigma_max is the largest *singular value*. eta < 1 is sufficient for vanishing, eta > 1 necessary for exploding.
    """
    leak = np.asarray(leak, float)
    return (1 - leak) + leak * PHI[activation].gamma * np.asarray(sigma_max, float)


def log10_bound(eta: ArrayLike, lag: ArrayLike) -> Array:
    """log10 of eta^(t - k): ||delta_k|| <= eta^(t - k) ||delta_t||, for the delta of E_t alone, in the top layer of an Elman net."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.equal(lag, 0), 0.0, np.asarray(lag, float) * np.log10(eta))


def half_life(slope: ArrayLike) -> Array:
    """Steps over which a norm halves or, where it explodes, doubles: log10(2) / |slope|; slope: decades a step. NaN where that is 0."""
    slope = np.abs(np.asarray(slope, float))
    return math.log10(2) / np.where(slope > 0, slope, np.nan)


def log10_rho(W: ArrayLike) -> Array:
    """log10 of the spectral radius, (..., H, H) -> (...): decades a step, over a long time, of a linear net or of any net at a = 0."""
    with np.errstate(divide="ignore"):
        return np.log10(np.abs(np.linalg.eigvals(np.asarray(W, float))).max(-1))


# ------------------------------------------------------------------------------------------------------------------------- mean field


def mean_square(activation: str, q: ArrayLike) -> Array:
    """E[phi(sqrt(q) z)^2], z ~ N(0, 1): the second moment (not the variance) of a unit's state."""
    return PHI[activation].mean_square(np.asarray(q, float))


def mean_square_slope(activation: str, q: ArrayLike) -> Array:
    """E[phi'(sqrt(q) z)^2], z ~ N(0, 1)."""
    return PHI[activation].mean_square_slope(np.asarray(q, float))


def chi(activation: str, g: ArrayLike, q: ArrayLike) -> Array:
    """chi(q) = g^2 E[phi'(sqrt(q) z)^2]: the factor of a squared gradient norm on one step back. chi = 1 is the critical line."""
    return np.square(g) * mean_square_slope(activation, q)


def second_moments(activation: str, g: ArrayLike, inputs: ArrayLike, late: ArrayLike = 0) -> Array:
    """q_t = g^2 E[phi(sqrt(q_{t-1}) z)^2] + inputs_t, t = 1..T, from h_0 = 0 (so q_1 = inputs_1).

    g: (...), inputs: (..., T), the second moment std_U^2 ||x_t||^2 (+ std_b^2) that the input adds; one-hot: ||x_t||^2 = 1. -> (..., T).
    The layer above has inputs_t = (H std_U^2) E[phi(sqrt(q_t) z)^2], q_t this layer's. Unbounded phi: q may grow to inf.
    late: how many steps a right-aligned sequence sits out, its state held at 0; (...).
    """
    g2, inputs = np.square(g), np.asarray(inputs, float)
    q = np.empty((*np.broadcast_shapes(g2.shape, np.shape(late), inputs.shape[:-1]), inputs.shape[-1]))
    q[..., 0] = inputs[..., 0]
    with np.errstate(over="ignore"):
        for t in range(1, q.shape[-1]):
            q[..., t] = g2 * mean_square(activation, q[..., t - 1]) * (t > np.asarray(late)) + inputs[..., t]
    return q


def slope(activation: str, g: ArrayLike, q: ArrayLike, late: ArrayLike = 0, lags: int = LAGS) -> Array:
    """Decades a step by which log10 ||dE/dh_t|| changes towards the past: the mean of 0.5 log10 chi(q_t), (..., T) -> (...).

    The mean is over the steps between lags 0..min(lags, T) - 1, those of the measured slope; dE/dh_t = W^T delta_{t+1} is one step back
    through a_{t+1}, so these are t = T down to T - min(lags, T) + 2. In a sequence no longer than `lags` the transient from h_0 is among
    them. NaN where there is no such step (T = 1).
    """
    q = np.asarray(q, float)
    t = np.arange(len(q.T))  # from 0
    counted = (t > max(len(t) - lags, 0)) & (t > np.asarray(late)[..., None])
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = 0.5 * np.log10(chi(activation, np.asarray(g, float)[..., None], q))
        return np.where(counted, steps, 0).sum(-1) / counted.sum(-1)


def fixed_point(activation: str, g: ArrayLike, inputs: ArrayLike) -> Array:
    """q* = g^2 E[phi(sqrt(q*) z)^2] + inputs, where a constant input takes q_t; inf where q_t grows without bound."""
    g2, inputs = np.broadcast_arrays(np.square(np.asarray(g, float)), np.asarray(inputs, float))
    growth = PHI[activation].growth
    if growth is not None:  # E[phi^2] = growth q
        contracts = g2 * growth < 1
        return np.where(contracts, inputs / np.where(contracts, 1 - g2 * growth, 1), np.inf)
    # E[phi^2] <= 1 is concave in q: right of q* the map lies below the diagonal
    return _bisect(lambda q: q - g2 * mean_square(activation, q) - inputs, _LEAST, g2 + inputs + _LEAST)


def critical_g(activation: str, inputs: ArrayLike) -> Array:
    """The g with chi(q*) = 1: gradients vanish below it and explode above, at a constant input second moment.

    chi = 1 is g^2 = 1 / E[phi'^2]; put into the equation of the fixed point: q - E[phi^2] / E[phi'^2] = inputs, one equation for q.
    ReLU and linear: chi does not depend on q, so neither does the line (sqrt 2 and 1).
    """
    inputs = np.asarray(inputs, float)
    growth = PHI[activation].growth
    if growth is not None:
        return np.full(inputs.shape, growth**-0.5)
    q = _bisect(lambda q: q - mean_square(activation, q) / mean_square_slope(activation, q) - inputs, _LEAST, _MOST)
    return mean_square_slope(activation, q) ** -0.5


def _bisect(rising: Callable[[Array], Array], low: ArrayLike, high: ArrayLike) -> Array:
    """Where a function of q > 0 changes from < 0 to >= 0, to rounding; `low` where it never is < 0. Halves log q."""
    low, high = np.log(low), np.log(high)
    for _ in range(60):
        middle = (low + high) / 2
        above = rising(np.exp(middle)) >= 0
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return np.exp(low)


# -------------------------------------------------------------------------------------------------------------- Gaussian averages of phi

# Trapezoid on z in [-10, 10] with 20,001 points: Gauss-Hermite with 50 nodes gives half the true chi of tanh at g = 5, because a
# saturating phi' is a narrow peak. The averages are smooth in log q, so they are computed once at knots and interpolated (relative
# error below 1e-7). What lies beyond the knots is known: phi is linear near 0, and saturates like q^(-1/2) far out.
_LEAST, _MOST, _KNOTS_A_DECADE, _POINTS = 1e-10, 1e4, 12, 20_001
_NODES = np.arange(6)  # an interpolation uses six knots: a polynomial of degree 5
_OTHERS = ~np.eye(6, dtype=bool)
_SCALES = np.where(_OTHERS, _NODES[:, None] - _NODES, 1).prod(-1)


def _tanh_squares(a: Array) -> tuple[Array, Array]:
    """tanh(a)^2 and tanh'(a)^2, both even, for a >= 0."""
    e = np.exp(-2 * a)
    return (np.expm1(-2 * a) / (1 + e)) ** 2, (4 * e / (1 + e) ** 2) ** 2


def _sigmoid_squares(a: Array) -> tuple[Array, Array]:
    """The even part of sigmoid(a)^2, which is 1/2 - sigmoid'(a), and sigmoid'(a)^2, for a >= 0."""
    e = np.exp(-a)
    prime = e / (1 + e) ** 2
    return 0.5 - prime, prime**2


@cache
def _log_averages(squares: Callable[[Array], tuple[Array, Array]]) -> tuple[Array, Array]:
    """ln E[phi^2] and ln E[phi'^2] at knots evenly spaced in ln q. Even integrands: the half z >= 0, twice. Tenths of a second, once."""
    z, dz = np.linspace(0, 10, _POINTS // 2 + 1, retstep=True)
    weights = 2 * dz * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    weights[[0, -1]] /= 2
    q = np.geomspace(_LEAST, _MOST, round(math.log10(_MOST / _LEAST) * _KNOTS_A_DECADE) + 1)
    averages = np.array([[(y * weights).sum() for y in squares(math.sqrt(at) * z)] for at in q])
    return np.log(averages[:, 0]), np.log(averages[:, 1])


def _average(
    squares: Callable[[Array], tuple[Array, Array]], which: int, at_0: float, at_inf: float, q: Array
) -> Array:
    """E[phi^2] or E[phi'^2] (which = 0 or 1) at q, by Lagrange's polynomial through the nearest knots; at_0, at_inf: the ends."""
    table = _log_averages(squares)[which]
    at = np.log(np.clip(q, _LEAST, _MOST) / _LEAST) / math.log(_MOST / _LEAST) * (len(table) - 1)
    first = np.clip(at.astype(int) - 2, 0, len(table) - len(_NODES))
    offsets = (at - first)[..., None] - _NODES
    basis = np.where(_OTHERS, offsets[..., None, :], 1.0).prod(-1) / _SCALES
    value = np.exp((table[first[..., None] + _NODES] * basis).sum(-1))
    near = at_0 + (value - at_0) * (q / _LEAST)
    far = at_inf + (value - at_inf) * np.sqrt(_MOST / np.maximum(q, _MOST))
    return np.select([q < _LEAST, q > _MOST], [near, far], value)


class Phi(NamedTuple):
    """An activation as mean field sees it. growth: E[phi^2] / q where that is constant (phi unbounded), else None."""

    gamma: float
    mean_square: Callable[[Array], Array]
    mean_square_slope: Callable[[Array], Array]
    growth: float | None = None


PHI: dict[str, Phi] = {
    "sigmoid": Phi(
        0.25, partial(_average, _sigmoid_squares, 0, 0.25, 0.5), partial(_average, _sigmoid_squares, 1, 0.0625, 0.0)
    ),
    "tanh": Phi(1.0, partial(_average, _tanh_squares, 0, 0.0, 1.0), partial(_average, _tanh_squares, 1, 1.0, 0.0)),
    "relu": Phi(1.0, lambda q: q / 2, lambda q: np.full_like(q, 0.5), growth=0.5),
    "linear": Phi(1.0, lambda q: q, np.ones_like, growth=1.0),
}
