"""The error of one unit after 50 steps over (w, b), its exact gradient, and the wall in it (P13 section 2.3, Figure 6). NumPy only.

    x_t = w sigmoid(x_{t-1}) + b, x_0 = .5, t = 1..50        E = (sigmoid(x_50) - .7)^2

The wall is where x_0 changes from one attractor to the other; it gets narrower like lambda^-50 as w grows, soon narrower than the spacing
of floats. So every point is given as (w, d), d = b - line(w) its distance from the line on which x_0 is a fixed point: there
u_t = x_t - x_0 obeys u_t = w (phi(x_0 + u_{t-1}) - phi(x_0)) + d without cancellation, and d = 1e-30 is as good as d = 1.
"""

import numpy as np
from numpy.typing import ArrayLike

from rnn_lab.one_unit import PHI, Array, bias, critical, multiplier

phi = PHI["logistic"]
X0, T, TARGET = 0.5, 50, 0.7


def line(w: ArrayLike) -> Array:
    """b = x_0 - w phi(x_0), for which every x_t = x_0."""
    return bias(phi, w, X0)


def distance(w: ArrayLike, b: ArrayLike) -> Array:
    """d of a point (w, b); exact to rounding of b, which is all that b itself knows."""
    return np.subtract(b, line(w))


def states(w: ArrayLike, d: ArrayLike) -> Array:
    """u_t = x_t - x_0, (T + 1, ...), from u_0 = 0."""
    w, d = np.asarray(w, float), np.asarray(d, float)
    u = np.zeros((T + 1, *np.broadcast_shapes(w.shape, d.shape)))
    for t in range(1, T + 1):
        u[t] = w * phi.change(X0, u[t - 1]) + d
    return u


def error(w: ArrayLike, d: ArrayLike) -> Array:
    """E = (sigmoid(x_50) - .7)^2, at w and the distance d, broadcast."""
    return np.square(phi(X0 + states(w, d)[T]) - TARGET)


def gradient(w: ArrayLike, d: ArrayLike) -> tuple[Array, Array, Array]:
    """E, dE/dw (at constant b) and dE/db, by BPTT.

    delta_T = dE/dx_T, delta_{t-1} = w phi'(x_{t-1}) delta_t; dE/dw = sum_t delta_t phi(x_{t-1}), dE/db = sum_t delta_t. Each summand of a
    sum has the same sign (w > 0), so nothing cancels; finite while lambda^50 is, for w up to 5e6.
    """
    x = X0 + states(w, d)
    delta = 2 * (phi(x[T]) - TARGET) * phi.slope(x[T])
    dE_dw, dE_db = np.zeros_like(delta), np.zeros_like(delta)
    for t in range(T, 0, -1):
        dE_dw += delta * phi(x[t - 1])
        dE_db += delta
        delta = multiplier(phi, w, x[t - 1]) * delta
    return np.square(phi(x[T]) - TARGET), dE_dw, dE_db


def log10_norm(w: ArrayLike, d: ArrayLike) -> Array:
    """log10 of ||(dE/dw, dE/db)||."""
    with np.errstate(divide="ignore"):
        return np.log10(np.hypot(*gradient(w, d)[1:]))


def descend(w: float, b: float, lr: float, steps: int, threshold: float = np.inf) -> Array:
    """Gradient descent on (w, b) from there, (steps + 1, 2); g <- threshold g / ||g|| if ||g|| >= threshold (P13 Algorithm 1)."""
    path = np.empty((steps + 1, 2))
    path[0] = w, b
    for step in range(steps):
        g = np.array(gradient(path[step, 0], distance(*path[step]))[1:])
        norm = np.hypot(*g)
        path[step + 1] = path[step] - lr * (g * threshold / norm if norm >= threshold else g)
    return path


# ----------------------------------------------------------------------------------------------------------------------------- the wall


def wall(w: float) -> float:
    """The b at which x_0 changes its attractor as T -> inf; NaN where there is one attractor only (w <= 4).

    A map with w > 0 is monotone, so the one boundary between two basins is the unstable fixed point. x_0 lies on it along line(w) if
    lambda = w phi'(x_0) > 1. Below that (4 < w < 4.255) the unstable points are all left of x_0 > 0, which changes where its attractor
    vanishes: at the fold.
    """
    if multiplier(phi, w, X0) >= 1:
        return float(line(w))
    folds = critical(phi, w, 1)
    return float(bias(phi, w, folds[1])) if len(folds) else np.nan


def sensitivity(w: ArrayLike) -> Array:
    """dx_T/db on line(w): 1 + lambda + ... + lambda^(T-1), lambda = w phi'(x_0). Its inverse is the wall's width in b."""
    return np.power.outer(multiplier(phi, w, X0), np.arange(T)).sum(-1)


def log10_norm_on_line(w: ArrayLike) -> Array:
    """log10 of the gradient's norm at d = 0, in closed form: 2 |phi(x_0) - target| phi'(x_0) dx_T/db ||(phi(x_0), 1)||."""
    scale = 2 * abs(phi(X0) - TARGET) * phi.slope(X0) * np.hypot(phi(X0), 1)
    return np.log10(scale * sensitivity(w))


def crest(w: float) -> float:
    """The d of the largest gradient at this w, in the wall where a grid sees nothing: searched in units of its width, refined."""
    low, high = -40 / sensitivity(w), 40 / sensitivity(w)
    for _ in range(6):
        d = np.linspace(low, high, 401)
        best = int(np.argmax(log10_norm(w, d)))
        low, high = d[max(best - 2, 0)], d[min(best + 2, 400)]
    return float(d[best])
