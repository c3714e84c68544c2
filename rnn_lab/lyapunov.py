"""Lyapunov spectra: how fast small perturbations of the state grow or shrink along a trajectory, in nats a step.

QR of J_t Q_{t-1} (Benettin et al. 1980); its use on recurrent nets: Engelken, Wolf & Abbott 2023, Vogt et al. 2022. All exponents add up
to the mean of ln|det J_t|, for an Elman layer ln|det W| + the mean over time of sum_i ln phi'(a_i).
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from rnn_lab import graded


def basis(N: int, n: int) -> Tensor:
    """n orthonormal columns of N entries to start from, (N, n) float64: random, but always the same; more columns begin with these."""
    return torch.linalg.qr(torch.from_numpy(np.random.default_rng(0).standard_normal((n, N))).mT)[0]


def log_growth(jacobians: Iterable[Tensor], n: int | None = None) -> Iterator[Tensor]:
    """ln |diag R_t| of Q_t R_t = J_t Q_{t-1}, (..., n) for each Jacobian (..., N, N); n: how many directions, the fastest; None: all.

    Their means over a long time are the exponents; before the Q_t have turned to the trajectory's own directions (a transient) they are
    not. -inf: a direction is lost, as where W is singular or a unit of a ReLU net is off. Cost: a QR a step: 0.1 ms at N = n = 50,
    0.7 ms at 100, 3 ms at 200; differentiable.
    """
    Q = None
    for J in jacobians:
        if Q is None:
            Q = basis(J.shape[-1], n or J.shape[-1]).to(J)
        Q, R = graded.qr(J @ Q)
        yield R.diagonal(dim1=-2, dim2=-1).abs().log()


def mean_from(growth: Tensor, first: Tensor) -> Tensor:
    """The mean over steps of growth (steps, *runs, batch, n) from step `first` (*runs,) on, counted from 0."""
    t = torch.arange(len(growth), device=growth.device).view(-1, *[1] * first.ndim)
    counted = (t >= first)[..., None, None]
    return torch.where(counted, growth, 0).sum(0) / counted.sum(0)


def kaplan_yorke(exponents: Tensor) -> Tensor:
    """Dimension of the attractor, (..., N) -> (...): k + (l_1 + ... + l_k) / |l_{k+1}|, k the most exponents whose sum is not negative.

    Kaplan & Yorke 1979. Takes all exponents, in any order; 0 where all are negative, N where even the sum of all is not.
    """
    ordered = exponents.sort(-1, descending=True).values
    sums, N = ordered.cumsum(-1), exponents.shape[-1]
    k = (sums >= 0).sum(-1, keepdim=True)
    last, following = sums.gather(-1, (k - 1).clamp(min=0)), ordered.gather(-1, k.clamp(max=N - 1))
    part = torch.where((k > 0) & (k < N), last / following.abs(), 0)
    return (k + part).squeeze(-1).masked_fill(exponents.isnan().any(-1), torch.nan)


def entropy_rate(exponents: Tensor) -> Tensor:
    """The sum of the positive exponents, (..., N) -> (...), nats a step: what a state's digits reveal of it, at most (Ruelle's bound)."""
    return exponents.clamp(min=0).sum(-1)


def standard_error(quantity: Callable[[Tensor], Tensor], growth: Tensor, blocks: int = 20) -> Tensor:
    """Of a function of the exponents, from the spread over blocks of time: the jackknife, which leaves out a block in turn.

    growth: (steps, ..., n) -> the shape of `quantity` of (..., n). Right if a block is longer than the trajectory's memory.
    """
    means = torch.stack([block.mean(0) for block in growth.tensor_split(blocks)])
    others = ~torch.eye(blocks, dtype=torch.bool)
    values = torch.stack([quantity(means[left].mean(0)) for left in others])
    return ((blocks - 1) * (values - values.mean(0)).square().mean(0)).sqrt()
