"""How fast the gradient vanishes or explodes, in one number."""

from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnn_lab.theory import LAGS

Array = TypeVar("Array", Tensor, NDArray)


def slope(log10_norm: Array) -> Array:
    """Least-squares slope of log10 ||dE/dh_t|| on the lag T - t, lags 0..min(59, T - 1): decades a step, negative = vanishing.

    log10_norm: (..., T), one layer. Exact zeros (-inf) and NaN are left out; with fewer than two finite points the slope is NaN.
    Cost: some twenty operations on (runs, 60): next to nothing, and for one run a quarter of it with NumPy's arrays.
    """
    xp: Any = torch if isinstance(log10_norm, Tensor) else np
    y = xp.asarray(log10_norm[..., -LAGS:], dtype=xp.float64)
    lag = xp.arange(y.shape[-1] - 1, -1, -1, dtype=xp.float64, device=y.device)
    finite = xp.isfinite(y)
    n = finite.sum(-1)
    mean = (lag * finite).sum(-1) / xp.where(n == 0, 1, n)
    lag_c = xp.where(finite, lag - mean[..., None], 0.0)
    return (lag_c * xp.where(finite, y, 0.0)).sum(-1) / xp.where(n < 2, xp.nan, (lag_c * lag_c).sum(-1))
