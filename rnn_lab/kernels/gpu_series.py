"""All that is measured at every time step of an Elman net, in one pass over its states and adjoints on a GPU (Triton)."""

# pyright: reportMissingImports=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false, reportIndexIssue=false
# (What stands in a kernel is Triton's language, not Python.)

import torch
import triton
import triton.language as tl
from torch import Tensor

from rnn_lab.bptt import Buffers, ScaledAdjoints
from rnn_lab.cells import Cell, Elman
from rnn_lab.kernels import language
from rnn_lab.kernels.language import NOTHING, matrix, normalise, phi_of, scale, times_prime, width
from rnn_lab.parameters import Parameters
from rnn_lab.recurrence import runs_first


@triton.jit
def _aligned(rows, e):
    """Normalised rows with one exponent for all, that of the largest (scaled.aligned): what is far smaller may become 0."""
    rows, e = normalise(rows, e)
    largest = tl.max(tl.where(tl.max(tl.abs(rows), axis=1) > 0, e, NOTHING), axis=0)
    return scale(rows, e - largest), largest


@triton.jit
def _log10_norm(rows, e):
    """log10 of the root of the sum of squares of rows 2^e; -inf for zeros. float64, since e may be thousands."""
    return 0.3010299956639812 * (0.5 * tl.log2(tl.sum(tl.sum(rows * rows, axis=1), axis=0)) + e.to(tl.float64))


@triton.jit
def _series(
    x, W, h, dE_dh, delta, exponent, out, T, batch, inputs, hidden, x_run, W_run, h_run, out_size,
    PHI: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INPUTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of one run and step: SERIES and Omega's sum and count, one after another in `out` (8, runs, T)."""
    run, t = tl.program_id(0).to(tl.int64), tl.program_id(1)
    n, i, j = tl.arange(0, ROWS), tl.arange(0, INPUTS)[None, :], tl.arange(0, COLUMNS)[None, :]
    inside, size, row = (n[:, None] < batch) & (j < hidden), batch * hidden, run * T + t
    place, zero = n[:, None] * hidden + j, tl.zeros((ROWS,), tl.int32)
    x_t = tl.load(
        x + run * x_run + (t * batch + n[:, None]) * inputs + i, mask=(n[:, None] < batch) & (i < inputs), other=0.0
    )
    before = tl.load(h + run * h_run + t * size + place, mask=inside, other=0.0)
    state = tl.load(h + run * h_run + (t + 1) * size + place, mask=inside, other=0.0)
    d, own = (
        tl.load(dE_dh + row * size + place, mask=inside, other=0.0),
        tl.load(delta + row * size + place, mask=inside, other=0.0),
    )
    e = tl.load(exponent + row * batch + n, mask=n < batch, other=0)

    back = tl.dot(own, matrix(W, hidden, hidden, W_run, True, COLUMNS, COLUMNS), input_precision=PRECISION)
    squares = tl.sum(d * d, axis=1)
    ratio, plain = tl.sum(back * back, axis=1) / squares, scale(tl.sqrt(squares)[:, None], e)
    counts = (tl.max(plain, axis=1) >= 1e-10) & (n < batch)
    excess = tl.where(counts, ratio - 1, 0.0)

    d, d_e = _aligned(d, e)
    own, own_e = _aligned(own, e)
    states, h_e = _aligned(state, zero)
    before, before_e = _aligned(before, zero)
    x_t, x_e = _aligned(x_t, zero)
    dW = tl.dot(tl.trans(before), own, input_precision=PRECISION)
    dU = tl.dot(tl.trans(x_t), own, input_precision=PRECISION)
    half = 0.5 * tl.log2(tl.sum((n < batch).to(tl.float32), axis=0)) * 0.30103
    to = out + row
    tl.store(to, _log10_norm(d, d_e) + half)  # the mean over the batch, and its 1/B taken out
    tl.store(to + out_size, _log10_norm(own, own_e) + half)
    tl.store(to + 2 * out_size, _log10_norm(states, h_e) - half)
    prime = tl.where(inside, times_prime(tl.full((ROWS, COLUMNS), 1.0, tl.float32), state, PHI), 0.0)
    tl.store(to + 3 * out_size, tl.sum(tl.sum(prime, axis=1), axis=0) / size)
    tl.store(to + 4 * out_size, _log10_norm(dW, before_e + own_e))
    tl.store(to + 5 * out_size, _log10_norm(dU, x_e + own_e))
    tl.store(to + 6 * out_size, tl.sum(excess * excess, axis=0))
    tl.store(to + 7 * out_size, tl.sum(counts.to(tl.float32), axis=0))


SERIES = ("dE_dh/log10_norm", "delta/log10_norm", "h/norm", "phi_prime/mean", "dW/log10_norm", "dU/log10_norm")
CROWD = 64  # examples that fit on the chip at once


def time_series(
    x: Tensor, theta: Parameters, cell: Cell, buffers: Buffers, adjoints: ScaledAdjoints
) -> tuple[dict[str, Tensor], Tensor]:
    """probes.time_series and regularizers.net_omega in one pass over states and adjoints: (*runs, layers, T) each, and (*runs,)."""
    assert isinstance(cell, Elman)
    runs, (hidden, _), phi = theta.flat.shape[:-1], theta.V.shape[-2:], phi_of(cell)
    T, batch, found = len(buffers.traces[0].steps), x.shape[-2], []
    omega = torch.zeros(runs, dtype=torch.float64, device=x.device)
    for layer, trace, d, delta in zip(theta.layers, buffers.traces, adjoints.dE_dh, adjoints.delta, strict=True):
        rows, W, h = runs_first(x, 3).flatten(1, 2), runs_first(layer.W, 2), runs_first(trace.s[0], 3)
        out = torch.empty(8, len(rows), T, dtype=torch.float64, device=rows.device)
        numbers = T, batch, rows.shape[-1], hidden, rows.stride(0), W.stride(0), h.stride(0), out.stride(0)
        sizes = {"ROWS": width(batch), "COLUMNS": width(hidden), "INPUTS": width(rows.shape[-1])}
        _series[len(rows), T](
            rows,
            W,
            h,
            d.mantissa,
            delta.mantissa,
            d.exponent,
            out,
            *numbers,
            PHI=phi,
            **sizes,
            PRECISION=language.PRECISION,
        )
        *series, excess, number = out.view(8, *runs, T)
        series[2] = 10 ** series[2]
        found.append(series)
        omega = omega + excess.sum(-1) / number.sum(-1).clamp(min=1)
        x = trace.s[0][..., 1:, :, :]
    return dict(zip(SERIES, (torch.stack(each, dim=-2) for each in zip(*found, strict=True)), strict=True)), omega
