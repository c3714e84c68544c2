"""The loops of an Elman layer on a GPU (Triton): those of `recurrence` again, each one launch instead of several for every step of time.

A program is one run and ROWS of its examples; W stays on the chip while time passes, and nothing but the states and the deltas, which later
products read, goes to memory. Float32; products are of float32's precision (see PRECISION). No run sees another, so a run's numbers are
bitwise the same alone and in any program.
"""

# pyright: reportMissingImports=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false, reportIndexIssue=false
# (What stands in a kernel is Triton's language, not Python.)

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.nvidia.compiler import CUDAOptions

from rnn_lab import recurrence
from rnn_lab.activations import ACTIVATIONS
from rnn_lab.bptt import Buffers, ScaledAdjoints
from rnn_lab.cells import Cell, Elman
from rnn_lab.parameters import Layer, Parameters
from rnn_lab.recurrence import Trace, runs_first
from rnn_lab.scaled import Scaled

ROWS, WARPS = 16, 8  # of a program: examples, warps
WIDEST = 128  # units, and inputs
# A product on the tensor cores: each float as the sum of three of 8 bits, and the six of their products that float32 can tell from 0. It is
# as exact as float32's own (half of tf32x3's error) and four times as fast; older versions of Triton do not have it.
PRECISION = "bf16x6" if "bf16x6" in CUDAOptions.allowed_dot_input_precisions else "ieee"
SIGMOID, TANH, RELU, LINEAR = (tl.constexpr(number) for number in range(4))
PHI = {"sigmoid": SIGMOID, "tanh": TANH, "relu": RELU, "linear": LINEAR}
NOTHING = tl.constexpr(-(2**30))  # the exponent of a zero vector


def suits(cell: Cell, inputs: int, hidden: int, dtype: str) -> bool:
    """Whether these loops are for such a net."""
    return type(cell) is Elman and max(inputs, hidden) <= WIDEST and dtype == "float32"


@triton.jit
def _tanh(a):
    """Where |a| < .55 from a polynomial (least squares; within 1.3 units in the last place), else 1 - 2 / (1 + exp |2 a|)."""
    square, size = a * a, tl.abs(a)
    series = ((0.0164108146 * square - 0.0526556037) * square + 0.1332042218) * square - 0.3333292902
    far = 1 - 2 / (1 + tl.exp(2 * size))
    return tl.where(size < 0.55, a + a * (square * series), tl.where(a < 0, -far, far))


@triton.jit
def _sigmoid(a):
    """1 / (1 + exp(-a)); the product -a log2 e is carried in two parts, for exp's relative error grows with its argument."""
    x = -a
    high = x * 1.44269504
    low = tl.fma(x, 1.44269504, -high) + x * 1.9259629e-8
    near = tl.where(tl.abs(high) < 200, low * 0.693147181, 0.0)
    return 1 / (1 + tl.exp2(high) * (1 + near))


@triton.jit
def _phi(a, PHI: tl.constexpr):
    if PHI == SIGMOID:
        return _sigmoid(a)
    if PHI == TANH:
        return _tanh(a)
    if PHI == RELU:
        return tl.where(a < 0, 0.0, a)
    return a


@triton.jit
def _times_prime(d, h, PHI: tl.constexpr):
    """phi'(a) d, from h = phi(a)."""
    if PHI == SIGMOID:
        return d * (h * (1 - h))
    if PHI == TANH:
        return d * (1 - h * h)
    if PHI == RELU:
        return tl.where(h <= 0, 0.0, d)
    return d


@triton.jit
def _matrix(M, rows, columns, run_size, TRANSPOSED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The run's matrix (rows, columns), or its transposed, with zeros around it."""
    k, j = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    place = j * columns + k if TRANSPOSED else k * columns + j
    inside = (k < columns) & (j < rows) if TRANSPOSED else (k < rows) & (j < columns)
    return tl.load(M + tl.program_id(0).to(tl.int64) * run_size + place, mask=inside, other=0.0)


@triton.jit
def _examples(batch, hidden, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Of this program: its rows, where each of its vectors stands in (batch, hidden), and which of these places there are."""
    n, j = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)[None, :]
    return n, n[:, None] * hidden + j, (n[:, None] < batch) & (j < hidden)


@triton.jit
def _forward(
    x, U, b, W, h, late, T, batch, inputs, hidden, x_run, run_size, h_run,
    PHI: tl.constexpr, LATE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INPUTS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """h_t = phi(x_t U + b + h_{t-1} W), t = 1..T. x: (runs, T, batch, inputs), h: (runs, T + 1, batch, hidden)."""
    run = tl.program_id(0).to(tl.int64)
    _, place, inside = _examples(batch, hidden, ROWS, COLUMNS)
    _, x_place, x_inside = _examples(batch, inputs, ROWS, INPUTS)
    u, w = (
        _matrix(U, inputs, hidden, run_size, False, INPUTS, COLUMNS),
        _matrix(W, hidden, hidden, run_size, False, COLUMNS, COLUMNS),
    )
    bias = _matrix(b, 1, hidden, run_size, False, 1, COLUMNS)
    first = tl.load(late + run) if LATE else T
    x_at, at = x + run * x_run + x_place, h + run * h_run + batch * hidden + place
    state, x_t = tl.zeros((ROWS, COLUMNS), tl.float32), tl.load(x_at, mask=x_inside, other=0.0)
    for t in range(T):
        coming = tl.load(x_at + tl.minimum(t + 1, T - 1) * batch * inputs, mask=x_inside, other=0.0)
        z = tl.dot(x_t, u, bias + tl.zeros((ROWS, COLUMNS), tl.float32), input_precision=PRECISION)
        state = _phi(tl.dot(state, w, z, input_precision=PRECISION), PHI)
        state = tl.where(inside, state, 0.0)
        if LATE:
            state = tl.where(t >= first, state, 0.0)
        tl.store(at, state, mask=inside)
        at += batch * hidden
        x_t = coming


@triton.jit
def _backward(
    given, h, W, late, dE_dh, delta, T, L, batch, hidden, h_run, W_run, d_run, d_step,
    PHI: tl.constexpr, LATE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
    KEEP: tl.constexpr,
):  # fmt: skip
    """dE/dh_t = given_t + delta_{t+1} W^T and delta_t = phi'(a_t) dE/dh_t, t = T..1. given: (runs, L, batch, hidden), the last L steps.

    h: (runs, T + 1, ...).  delta: (runs, T, ...).  dE_dh: (runs, T + 1, ...) with strides of its own, filled from t = 1 on if it is to be
    kept.
    """
    run = tl.program_id(0).to(tl.int64)
    _, place, inside = _examples(batch, hidden, ROWS, COLUMNS)
    w = _matrix(W, hidden, hidden, W_run, True, COLUMNS, COLUMNS)
    first, size = tl.load(late + run) if LATE else 0, batch * hidden
    at, to = h + run * h_run + T * size + place, delta + (run * T + T - 1) * size + place
    keep, given_at = dE_dh + run * d_run + T * d_step + place, given + (run * L + L - 1) * size + place
    d, state = tl.zeros((ROWS, COLUMNS), tl.float32), tl.load(at, mask=inside, other=0.0)
    for back in range(T):
        at -= size
        coming = tl.load(at, mask=inside, other=0.0)  # h_0 at last
        if back < L:
            d += tl.load(given_at, mask=inside, other=0.0)
            given_at -= size
        d = tl.where(inside, d, 0.0)
        if LATE:
            d = tl.where(T - 1 - back >= first, d, 0.0)
        if KEEP:
            tl.store(keep, d, mask=inside)
            keep -= d_step
        d = _times_prime(d, state, PHI)
        tl.store(to, d, mask=inside)
        to -= size
        d = tl.dot(d, w, input_precision=PRECISION)
        state = coming


@triton.jit
def _two_to(k):
    return ((k + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _scale(d, k):
    """d 2^k, row by row (scaled.ldexp_)."""
    last = tl.minimum(tl.maximum(k, -126), 127)
    rest = tl.minimum(tl.maximum(k - last, -126), 127)
    return d * _two_to(rest)[:, None] * _two_to(last)[:, None]


@triton.jit
def _normalise(d, e):
    """scaled.normalise_: d's rows end in [1, 4), what they lost is in e."""
    largest = tl.max(tl.abs(d), axis=1)
    k = tl.minimum(tl.maximum((largest.to(tl.int32, bitcast=True) >> 23) - 127, -126), 126)
    return d * _two_to(-k)[:, None], e + k


@triton.jit
def _add(d, e, g, g_e):
    """scaled.add_: the smaller is shifted to the larger's exponent; a zero vector has no say in it."""
    own = tl.where(tl.max((d != 0).to(tl.int32), axis=1) > 0, e, NOTHING)
    other = tl.where(tl.max((g != 0).to(tl.int32), axis=1) > 0, g_e, NOTHING)
    exponent = tl.maximum(own, other)
    total = _scale(d, e - exponent) + _scale(g, g_e - exponent)
    return _normalise(total, tl.where(exponent == NOTHING, 0, exponent))


@triton.jit
def _scaled_backward(
    given, given_e, h, W, late, dE_dh, exponent, delta, T, L, batch, hidden, h_run, W_run,
    PHI: tl.constexpr, LATE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`_backward` with every vector renormalised at each step. given_e, exponent: (runs, L, batch) and (runs, T, batch), the latter of
    dE_dh and delta, (runs, T, ...) both."""
    run = tl.program_id(0).to(tl.int64)
    n, place, inside = _examples(batch, hidden, ROWS, COLUMNS)
    w = _matrix(W, hidden, hidden, W_run, True, COLUMNS, COLUMNS)
    first, size = tl.load(late + run) if LATE else 0, batch * hidden
    at, last = h + run * h_run + T * size + place, (run * T + T - 1) * size + place
    e_at, given_at, given_e_at = (
        (run * T + T - 1) * batch + n,
        (run * L + L - 1) * size + place,
        (run * L + L - 1) * batch + n,
    )
    d, e, state = (
        tl.zeros((ROWS, COLUMNS), tl.float32),
        tl.zeros((ROWS,), tl.int32),
        tl.load(at, mask=inside, other=0.0),
    )
    for back in range(T):
        at -= size
        coming = tl.load(at, mask=inside, other=0.0)
        d, e = _normalise(d, e)
        if back < L:
            g = tl.load(given + given_at, mask=inside, other=0.0)
            d, e = _add(d, e, g, tl.load(given_e + given_e_at, mask=n < batch, other=0))
            given_at -= size
            given_e_at -= batch
        d = tl.where(inside, d, 0.0)
        if LATE:
            d = tl.where(T - 1 - back >= first, d, 0.0)
        tl.store(dE_dh + last, d, mask=inside)
        tl.store(exponent + e_at, e, mask=n < batch)
        d = _times_prime(d, state, PHI)
        tl.store(delta + last, d, mask=inside)
        d = tl.dot(d, w, input_precision=PRECISION)
        last -= size
        e_at -= batch
        state = coming


@triton.jit
def _aligned(rows, e):
    """Normalised rows with one exponent for all, that of the largest (scaled.aligned): what is far smaller may become 0."""
    rows, e = _normalise(rows, e)
    largest = tl.max(tl.where(tl.max(tl.abs(rows), axis=1) > 0, e, NOTHING), axis=0)
    return _scale(rows, e - largest), largest


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

    back = tl.dot(own, _matrix(W, hidden, hidden, W_run, True, COLUMNS, COLUMNS), input_precision=PRECISION)
    squares = tl.sum(d * d, axis=1)
    ratio, plain = tl.sum(back * back, axis=1) / squares, _scale(tl.sqrt(squares)[:, None], e)
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
    prime = tl.where(inside, _times_prime(tl.full((ROWS, COLUMNS), 1.0, tl.float32), state, PHI), 0.0)
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
    runs, (hidden, _), phi = theta.flat.shape[:-1], theta.V.shape[-2:], _phi_of(cell)
    T, batch, found = len(buffers.traces[0].steps), x.shape[-2], []
    omega = torch.zeros(runs, dtype=torch.float64, device=x.device)
    for layer, trace, d, delta in zip(theta.layers, buffers.traces, adjoints.dE_dh, adjoints.delta, strict=True):
        rows, W, h = runs_first(x, 3).flatten(1, 2), runs_first(layer.W, 2), runs_first(trace.s[0], 3)
        out = torch.empty(8, len(rows), T, dtype=torch.float64, device=rows.device)
        numbers = T, batch, rows.shape[-1], hidden, rows.stride(0), W.stride(0), h.stride(0), out.stride(0)
        sizes = {"ROWS": _width(batch), "COLUMNS": _width(hidden), "INPUTS": _width(rows.shape[-1])}
        _series[len(rows), T](
            rows, W, h, d.mantissa, delta.mantissa, d.exponent, out, *numbers, PHI=phi, **sizes, PRECISION=PRECISION
        )
        *series, excess, number = out.view(8, *runs, T)
        series[2] = 10 ** series[2]
        found.append(series)
        omega = omega + excess.sum(-1) / number.sum(-1).clamp(min=1)
        x = trace.s[0][..., 1:, :, :]
    return dict(zip(SERIES, (torch.stack(each, dim=-2) for each in zip(*found, strict=True)), strict=True)), omega


def _phi_of(cell: Elman) -> tl.constexpr:
    return next(PHI[name] for name, phi in ACTIVATIONS.items() if phi is cell.phi)


def _width(size: int) -> int:
    return max(16, triton.next_power_of_2(size))


def _launch(
    kernel: triton.JITFunction, cell: Cell, trace: Trace, late: Tensor | None, *tensors: object, **more: object
) -> None:
    """A kernel through time: one program for each run and ROWS of its examples."""
    assert isinstance(cell, Elman)
    runs, batch, hidden = trace.steps[0].after[0].shape
    settings = {
        "PHI": _phi_of(cell),
        "LATE": late is not None,
        "ROWS": ROWS,
        "COLUMNS": _width(hidden),
        "PRECISION": PRECISION,
    }
    kernel[runs, triton.cdiv(batch, ROWS)](*tensors, **settings, num_warps=WARPS, **more)


def states(x: Tensor, weights: Layer, cell: Cell, trace: Trace, late: Tensor | None = None) -> None:
    """recurrence.states."""
    U, W, b = (runs_first(t, 2) for t in weights)
    x, h = runs_first(x, 3).flatten(1, 2), runs_first(trace.s[0], 3)
    T, (batch, hidden), inputs = len(trace.steps), h.shape[-2:], U.shape[-2]
    numbers = T, batch, inputs, hidden, x.stride(0), W.stride(0), h.stride(0)
    _launch(_forward, cell, trace, late, x, U, b, W, h, late, *numbers, INPUTS=_width(inputs))


def deltas(immediate: Tensor, W: Tensor, cell: Cell, trace: Trace, late: Tensor | None = None) -> None:
    """recurrence.deltas."""
    given, W, h, d = runs_first(immediate, 3).contiguous(), runs_first(W, 2), runs_first(trace.s[0], 3), trace.dE_ds[0]
    T, (batch, hidden), d = len(trace.steps), h.shape[-2:], runs_first(d, 3)
    numbers = T, given.shape[1], batch, hidden, h.stride(0), W.stride(0), d.stride(0), d.stride(1)
    _launch(_backward, cell, trace, late, given, h, W, late, d, trace.delta, *numbers, KEEP=d.stride(1) > 0)


def scaled_deltas(
    immediate: Scaled, W: Tensor, cell: Cell, trace: Trace, late: Tensor | None = None
) -> tuple[Scaled, Scaled, Scaled]:
    """recurrence.scaled_deltas."""
    W, h = runs_first(W, 2), runs_first(trace.s[0], 3)
    given, given_e = (runs_first(t, n).contiguous() for t, n in ((immediate.mantissa, 3), (immediate.exponent, 2)))
    dE_dh, delta = torch.empty_like(trace.delta), torch.empty_like(trace.delta)
    exponent = torch.empty(delta.shape[:-1], dtype=torch.int32, device=delta.device)
    T, (batch, hidden) = len(trace.steps), h.shape[-2:]
    numbers = T, given.shape[1], batch, hidden, h.stride(0), W.stride(0)
    _launch(_scaled_backward, cell, trace, late, given, given_e, h, W, late, dE_dh, exponent, delta, *numbers)
    return Scaled(dE_dh, exponent), Scaled(delta, exponent), Scaled(delta, exponent)


gradients = recurrence.gradients  # large products, for which there are libraries
