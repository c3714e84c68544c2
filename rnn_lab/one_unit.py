"""The RNN of one unit without input, x <- w phi(x) + b: its fixed points, where they appear and vanish, its cycle. NumPy only.

P13 section 2.2 (the example is Doya's, 1993). x is the pre-activation, as in the paper. Both activations are
phi(x) = centre + height tanh(rate x), so that every formula is one.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class Phi(NamedTuple):
    """phi(x) = centre + height tanh(rate x), elementwise."""

    centre: float
    height: float
    rate: float

    def __call__(self, x: ArrayLike) -> Array:
        return self.centre + self.height * np.tanh(np.multiply(self.rate, x))

    def slope(self, x: ArrayLike) -> Array:
        """phi'(x) = height rate / cosh(rate x)^2; 0 far out, where cosh would overflow."""
        e = np.exp(-2 * np.abs(np.multiply(self.rate, x)))
        return 4 * self.height * self.rate * e / (1 + e) ** 2

    def change(self, x: float, u: ArrayLike) -> Array:
        """phi(x + u) - phi(x) to a few roundings of itself, however small u is: by the addition theorem, nothing cancels (x of order 1)."""
        v = np.tanh(np.multiply(self.rate, u))
        return self.slope(x) / self.rate * v / (1 + np.tanh(self.rate * x) * v)


PHI = {"logistic": Phi(0.5, 0.5, 0.5), "tanh": Phi(0.0, 1.0, 1.0)}


def bias(phi: Phi, w: ArrayLike, x: ArrayLike) -> Array:
    """The b for which x is a fixed point, b = x - w phi(x): over x the whole branch, through its folds, exact and without a solver."""
    return np.subtract(x, np.multiply(w, phi(x)))


def multiplier(phi: Phi, w: ArrayLike, x: ArrayLike) -> Array:
    """w phi'(x), by which a small deviation from the fixed point x is multiplied in one step: stable where its size is below 1."""
    return np.multiply(w, phi.slope(x))


def critical(phi: Phi, w: float, value: float) -> Array:
    """The two x of multiplier `value`, ascending: 1 for folds, -1 for flips (period doubling). Empty where there are none.

    cosh(rate x)^2 = height rate w / value. At the critical w itself (1 / sup phi': 4 for logistic, 1 for tanh) the folds meet in a cusp,
    where the branch is still single-valued: no fold.
    """
    ratio = phi.height * phi.rate * w / value
    x = np.arccosh(np.sqrt(ratio)) / phi.rate if ratio > 1 else np.empty(0)
    return np.append(-x, x)


def fixed_points(phi: Phi, w: float, b: float) -> Array:
    """All x = w phi(x) + b, ascending, to rounding: between folds x - w phi(x) is monotone, so each stretch holds one at most."""
    reach = abs(b) + abs(w) * (abs(phi.centre) + phi.height) + 1  # phi is bounded
    ends = np.concatenate([[-reach], critical(phi, w, 1), [reach]])
    above = bias(phi, w, ends) > b
    return np.array(
        [
            _switch(lambda x, last=last: (bias(phi, w, x) > b) == last, low, high)
            for low, high, first, last in zip(ends, ends[1:], above, above[1:], strict=False)
            if first != last
        ]
    )


def cycle(phi: Phi, w: float, b: float) -> Array:
    """The attracting cycle of period 2, (low, high), that w < 0 has for b between its flips; empty elsewhere.

    The second iterate minus x is positive just above the repelling fixed point, negative at the top of f's range, and changes sign once
    between: phi has a negative Schwarzian derivative, so that there is no other 2-cycle (Singer 1978).
    """
    flips = critical(phi, w, -1)
    if not len(flips) or not bias(phi, w, flips[0]) < b < bias(phi, w, flips[1]):
        return np.empty(0)

    def f(x: float) -> float:
        return float(w * phi(x) + b)

    high = _switch(lambda x: f(f(x)) < x, fixed_points(phi, w, b)[0], f(-np.inf))
    return np.array([f(high), high])


def _switch(condition: Callable[[float], bool], low: float, high: float) -> float:
    """Where a condition that fails at `low` and holds at `high` begins to hold, to neighbouring floats."""
    while low < (middle := low + (high - low) / 2) < high:
        low, high = (low, middle) if condition(middle) else (middle, high)
    return float(high)
