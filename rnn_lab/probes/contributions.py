"""The lecture's double sum: how much each pair of a loss at step t and a use of the weights at step k adds to the gradient."""

import math

import torch
from torch import Tensor

from rnn_lab import bptt, clipping
from rnn_lab.double_sum import deltas_of_each_loss
from rnn_lab.parameters import Layer, Parameters
from rnn_lab.probes.summands import log10_product_norms
from rnn_lab.recurrence import runs_first
from rnn_lab.scaled import LOG10_2, Scaled, add_, aligned, ldexp_, normalise_, value

PARAMETERS = ("W", "U", "b")
MARGINALS = 4  # rows
LOG10_E = math.log10(math.e)
FAR = 300  # powers of two: squares of sums that much larger than expected still fit into float64


def contributions(
    x: Tensor, theta: Parameters, dE_do: Tensor, net: bptt.Net, buffers: bptt.Buffers
) -> tuple[Tensor, Parameters]:
    """log10 of the Frobenius norms of step k's summand of each dE_t/dW, dE_t/dU and dE_t/db, and of sums over pairs.

    -> (*runs, 3 parameters, layers, L + 4, T) float64, and the sum of all summands, which is dE/dtheta (but V, c). Rows:
    0..L-1   E_t of the last L steps; column k - 1 is step k. NaN where k > t: no such pair
    L        by t: the sum over k, which is dE_t/dW; column t - 1. NaN where a step has no loss
    L + 1    by k: the sum over t. Of W and U it is the series dW/log10_norm, dU/log10_norm
    L + 2    by lag: the sum over all pairs of t - k = T - column - 1, so the last column is lag 0
    L + 3    beyond: the sum over all pairs of at least that lag. The last column is all of dE/dW
    E_t is the batch mean, weighted as in the objective: the E_t of the deck's plain sum with task.reduction=sum, 1/L of it with mean. Full
    BPTT, without Omega. Exact zeros are -inf; nothing under- or overflows that the forward pass could hold.
    Cost with a loss at every step of T = 100: about 500 updates' time, an LSTM's 570 of its own (alone), and in T^2 for other lengths,
    where an update's grows with T. Memory: 2 T times the parameters' in float64.
    """
    (T, L), layers = (len(buffers.traces[0].steps), dE_do.shape[-3]), len(theta.layers)
    sources = [runs_first(x, 3), *(runs_first(trace.s[0][..., 1:, :, :], 3) for trace in buffers.traces)]
    norms = torch.full((len(sources[0]), 3, layers, L + MARGINALS, T), torch.nan, dtype=torch.float64, device=x.device)
    by_t, by_lag = (
        [[_Sums(runs_first(t, 2), number) for t in _by_parameter(layer)] for layer in theta.layers] for number in (L, T)
    )
    for k, found in deltas_of_each_loss(theta, dE_do, net, buffers):
        losses = found[0][0].mantissa.shape[1]
        for n, (delta, sent) in enumerate(found):
            W, at = runs_first(theta.layers[n].W, 2), buffers.traces[n].steps[k].map(lambda x: x.unsqueeze(1))
            source = sources[n][:, k].unsqueeze(1)
            first, second = net.cell.weight_summands(at, sent, W)
            D, D_W = aligned(delta), aligned(second) if second is not delta else None
            factors = ((first, D_W or D), (source, D), (torch.ones_like(source[..., :1]), D))
            for p, (first, second) in enumerate(factors):
                [norms[:, p, n, L - losses : L, k]] = log10_product_norms(*second, first)
                [norms[:, p, n, L + 1, k]] = log10_product_norms(*_sum_over_losses(*second), first[:, 0])
                by_t[n][p].add_(L - losses, first, *second)
                by_lag[n][p].add_(max(T - L - k, 0), first, *second)
    total = theta.like()
    for n, layer in enumerate(total.layers):
        for p, whole in enumerate(_by_parameter(layer)):
            norms[:, p, n, L, T - L :] = _log10_norm(by_t[n][p].sums()).T
            norms[:, p, n, L + 2], norms[:, p, n, L + 3], all_pairs = _marginals(by_lag[n][p].sums())
            whole.copy_(all_pairs.view(whole.shape))
    return norms.view(*x.shape[:-3], *norms.shape[1:]), total


def contribution_scalars(log10_norms: Tensor, total: Parameters, full: Parameters, lag: int) -> dict[str, Tensor]:
    """What `contributions` says in two numbers, (*runs,) each.

    contributions/long_term_share: ||sum over the pairs with t - k > lag|| / ||dE/dW||, W of all layers in one norm; more than 1 where the
    others work against them, NaN where dE/dW is 0.  contributions/residual: ||sum of all summands - dE/dtheta|| / ||dE/dtheta|| without
    V and c, `full` being the gradient by `bptt`: rounding, or something is wrong.
    """
    beyond = torch.logsumexp(2 * log10_norms[..., 0, :, -1, :] / LOG10_E, dim=-2) * LOG10_E / 2  # over layers
    share = 10 ** (beyond[..., -2 - lag] - beyond[..., -1]) if lag < beyond.shape[-1] - 1 else 0 * beyond[..., -1]
    runs = log10_norms.shape[:-4]
    ours, theirs = (
        torch.cat([t.double().reshape(*runs, -1) for layer in each.layers for t in layer], -1) for each in (total, full)
    )
    return {
        "contributions/long_term_share": share,
        "contributions/residual": clipping.norm(ours - theirs) / clipping.norm(theirs),
    }


def _by_parameter(layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
    return layer.W, layer.U, layer.b


class _Sums:
    """Sums of summands, one for each lag t - k, or t: mantissas (number, runs, in, columns) in float64, exponents (number, runs)."""

    def __init__(self, like: Tensor, number: int):
        self._sums = like.new_zeros(number, *like.shape, dtype=torch.float64)
        nothing = torch.iinfo(torch.int32).min // 2
        self._exponent = torch.full((number, len(like)), nothing, dtype=torch.int32, device=like.device)

    def add_(self, place: int, first: Tensor, D: Tensor, exponent: Tensor) -> None:
        """first^T D 2^exponent of neighbouring losses to the sums from `place` on: (runs, losses, n, in), (runs, losses, n, columns)."""
        D, exponent, A = D.transpose(0, 1), exponent.T, first.double().expand(*D.shape[:-1], -1).transpose(0, 1)
        sums, own = (each[place : place + len(D)] for each in (self._sums, self._exponent))
        grown = exponent - own > FAR  # seldom: at other times it is the small factor D that is shifted, not the sums
        sums[grown] = ldexp_(sums[grown].flatten(1), (own - exponent)[grown]).view(-1, *sums.shape[2:])
        own[grown] = exponent[grown]
        D = ldexp_(D.clone(memory_format=torch.contiguous_format), (exponent - own).unsqueeze(-1))
        sums.view(-1, *sums.shape[2:]).baddbmm_(A.flatten(0, 1).transpose(1, 2), D.flatten(0, 1))

    def sums(self) -> Scaled:
        """Each sum as a vector, (number, runs, in x columns)."""
        return normalise_(Scaled(self._sums.flatten(2), self._exponent))


def _marginals(by_lag: Scaled) -> tuple[Tensor, Tensor, Tensor]:
    """log10 norms by lag and of all that is beyond it, (runs, T) each, the largest lag first; and the sum of all."""
    beyond, norms = Scaled(torch.zeros_like(by_lag.mantissa[0]), torch.zeros_like(by_lag.exponent[0])), []
    for mantissa, exponent in zip(reversed(by_lag.mantissa), reversed(by_lag.exponent), strict=True):
        norms.append(_log10_norm(add_(beyond, Scaled(mantissa, exponent))))
    return _log10_norm(by_lag).flip(0).T, torch.stack(norms, dim=-1), value(beyond)


def _sum_over_losses(D: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor]:
    """D 2^exponent, (runs, losses, n, columns) -> (runs, n, columns)."""
    largest = exponent.amax(1, keepdim=True)
    return ldexp_(D.clone(), (exponent - largest).unsqueeze(-1)).sum(1), largest.squeeze(1)


def _log10_norm(x: Scaled) -> Tensor:
    return LOG10_2 * (torch.log2(torch.linalg.vector_norm(x.mantissa, dim=-1)) + x.exponent)
