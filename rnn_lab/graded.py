"""Linear algebra that stays accurate for products of many Jacobians, whose singular values span hundreds of decades.

The diagonal of R is for exponents over a long time; over a finite lag it may be off by a decade. There the product is carried as triangular
rows, each with an exponent of its own, and one-sided Jacobi makes those rows orthogonal, which finds every singular value to high
*relative* accuracy (Demmel & Veselic 1992). Matrices are columns-to-columns: (dh_t/dh_{t-1})[i, j] = dh_t,i / dh_{t-1},j.
"""

import math
from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from rnn_lab.scaled import LOG10_2, Scaled, normalise_, power_of_two

SWEEPS = 40  # the most there may be; rows of random products need 6 to 10


def qr(A: Tensor) -> tuple[Tensor, Tensor]:
    """A = Q R, (..., N, n) with N >= n, rows sorted by size first: Householder's method is then accurate in each row, however small.

    Saturated units make rows of a Jacobian that are 1e-20 of others (Cox & Higham 1998). Q has its rows in A's order.
    """
    order = A.abs().amax(-1, keepdim=True).argsort(dim=-2, descending=True, stable=True).expand_as(A)
    Q, R = torch.linalg.qr(A.gather(-2, order))
    return torch.empty_like(A).scatter(-2, order, Q), R


def log10_singular_values(jacobians: Iterable[Tensor], lags: Collection[int]) -> Tensor:
    """log10 of the singular values of J_lag ... J_2 J_1 for each lag, largest first: (..., len(lags), N), float64; an exact 0 is -inf.

    jacobians: J_1, J_2 ... (..., N, N); no more of them are asked for than the longest lag. Cost: a QR for each, and for each lag about
    ten sweeps of N^2 / 2 rotations: half a second at N = 100, a tenth of that at N = 30.
    """
    found: dict[int, Tensor] = {}
    if min(lags) < 1:
        raise ValueError(f"lags are at least 1, not {min(lags)}")
    product, Q = None, None
    for lag, J in enumerate(jacobians, start=1):
        Q, R = qr(J.double() if Q is None else J.double() @ Q)
        product = normalise_(scaled_rows(R) if product is None else _times(R, product))
        if lag in lags:
            found[lag] = _jacobi(Scaled(product.mantissa.clone(), product.exponent.clone()))
        if lag == max(lags):
            return torch.stack([found[lag] for lag in lags], dim=-2)
    raise ValueError(f"{max(lags)} Jacobians are needed")


def scaled_rows(A: Tensor) -> Scaled:
    """The rows of A (..., m, n), each with an exponent of its own."""
    return normalise_(Scaled(A.clone(), torch.zeros(A.shape[:-1], dtype=torch.int32, device=A.device)))


def _times(R: Tensor, rows: Scaled) -> Scaled:
    """R times a matrix whose rows have exponents of their own; each row of the result gets its largest term's."""
    tiny = torch.iinfo(torch.int32).min // 2
    own = torch.where((rows.mantissa != 0).any(-1), rows.exponent, tiny).unsqueeze(-2)
    exponent = torch.where(R != 0, own, tiny).amax(-1)
    shift = (own - exponent.unsqueeze(-1)).clamp(-1022, 0)
    return Scaled((R * power_of_two(shift, R.dtype)) @ rows.mantissa, torch.where(exponent == tiny, 0, exponent))


def _jacobi(rows: Scaled) -> Tensor:
    """log10 of the singular values of a matrix of scaled rows, largest first: rotates pairs of rows until all are orthogonal.

    Pairs that share no row are rotated together. A rotation that is not needed is not made, so neighbours along leading axes, which may
    take more sweeps, change nothing.
    """
    N = rows.mantissa.shape[-2]
    for _ in range(SWEEPS):
        rotated = [_rotate_(rows, first, second) for first, second in _rounds(N)]
        normalise_(rows)
        if not any(rotated):
            break
    norms = torch.log10(torch.linalg.vector_norm(rows.mantissa, dim=-1)) + LOG10_2 * rows.exponent.double()
    return norms.sort(-1, descending=True).values


def _rounds(N: int) -> list[tuple[Tensor, Tensor]]:
    """Every pair of N rows once, in rounds of pairs that share no row (a round-robin tournament)."""
    players = list(range(N + N % 2))  # one sits out where N is odd
    rounds = []
    for _ in range(len(players) - 1):
        half = len(players) // 2
        pairs = [pair for pair in zip(players[:half], reversed(players[half:]), strict=True) if N not in pair]
        rounds.append(tuple(torch.tensor(side) for side in zip(*pairs, strict=True)) if pairs else None)
        players = [players[0], players[-1], *players[1:-1]]
    return [pairs for pairs in rounds if pairs is not None]


def _rotate_(rows: Scaled, first: Tensor, second: Tensor) -> bool:
    """Makes rows first[p] and second[p] orthogonal for every p; whether any were not.

    With x the larger row, y the smaller one and epsilon = 2^(exponent of y - that of x) <= 1 or nearly so, the tangent of the angle is
    epsilon tau, and x <- c (x - epsilon^2 tau y), y <- c (y + tau x) hold for the mantissas: nothing under- or overflows.
    """
    m, e = rows.mantissa, rows.exponent
    swap = e[..., first] < e[..., second]
    large, small = torch.where(swap, second, first), torch.where(swap, first, second)
    where_x, where_y = (i.unsqueeze(-1).expand(*i.shape, m.shape[-1]) for i in (large, small))
    x, y = m.gather(-2, where_x), m.gather(-2, where_y)
    epsilon = power_of_two((e.gather(-1, small) - e.gather(-1, large)).clamp(min=-1022), m.dtype)
    xx, yy, xy = x.square().sum(-1), y.square().sum(-1), (x * y).sum(-1)
    needed = xy.abs() > 1e-15 * math.sqrt(m.shape[-1]) * (xx * yy).sqrt()
    if not needed.any():
        return False
    z = (epsilon.square() * yy - xx) / torch.where(needed, 2 * xy, 1)
    tau = torch.where(needed, torch.where(z < 0, -1.0, 1.0) / (z.abs() + torch.hypot(epsilon, z)), 0)
    t = epsilon * tau
    c = (1 / torch.hypot(t, torch.ones_like(t))).unsqueeze(-1)
    m.scatter_(-2, where_x, c * (x - (epsilon * t).unsqueeze(-1) * y))
    m.scatter_(-2, where_y, c * (y + tau.unsqueeze(-1) * x))
    return True
