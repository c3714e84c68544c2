"""How fast the gradient vanishes or explodes, in one number."""

import torch
from torch import Tensor

from rnn_lab.theory import LAGS


def slope(log10_norm: Tensor) -> Tensor:
    """Least-squares slope of log10 ||dE/dh_t|| on the lag T - t, lags 0..min(59, T - 1): decades a step, negative = vanishing.

    log10_norm: (..., T), one layer. Exact zeros (-inf) and NaN are left out; with fewer than two finite points the slope is NaN.
    Cost: some twenty operations on (runs, 60): next to nothing.
    """
    y = log10_norm.flip(-1)[..., :LAGS].double()
    lag = torch.arange(y.shape[-1], dtype=torch.float64, device=y.device).expand_as(y)
    finite = torch.isfinite(y)
    n = finite.sum(-1, keepdim=True)
    lag_c = torch.where(finite, lag - (lag * finite).sum(-1, keepdim=True) / n, 0)
    y0 = torch.where(finite, y, 0)
    slopes = (lag_c * y0).sum(-1) / lag_c.square().sum(-1)
    return slopes.masked_fill(n.squeeze(-1) < 2, torch.nan)
