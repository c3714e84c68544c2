"""The loops of an Elman layer on a GPU (Triton): those of `recurrence` again, each one launch instead of several for every step of time.

A program is one run and ROWS of its examples; W stays on the chip while time passes, and nothing but the states and the deltas, which later
products read, goes to memory. Float32, products included (see language.PRECISION). No run sees another: from the same numbers a run's are
bitwise the same alone and in any program.
"""

# pyright: reportMissingImports=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false, reportIndexIssue=false
# (What stands in a kernel is Triton's language, not Python.)

import torch
import triton
import triton.language as tl
from torch import Tensor

from rnn_lab import recurrence
from rnn_lab.cells import Cell, Elman
from rnn_lab.kernels import language
from rnn_lab.kernels.language import add, examples, matrix, normalise, phi, phi_of, times_prime, width
from rnn_lab.parameters import Layer
from rnn_lab.recurrence import Trace, runs_first
from rnn_lab.scaled import Scaled

ROWS, WARPS = 16, 8  # of a program: examples, warps
WIDEST = 128  # units, and inputs


def suits(cell: Cell, inputs: int, hidden: int, dtype: str) -> bool:
    """Whether these loops are for such a net."""
    return type(cell) is Elman and max(inputs, hidden) <= WIDEST and dtype == "float32"


@triton.jit
def _forward(
    x, U, b, W, h, late, T, batch, inputs, hidden, x_run, run_size, h_run,
    PHI: tl.constexpr, LATE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INPUTS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """h_t = phi(x_t U + b + h_{t-1} W), t = 1..T. x: (runs, T, batch, inputs), h: (runs, T + 1, batch, hidden)."""
    run = tl.program_id(0).to(tl.int64)
    _, place, inside = examples(batch, hidden, ROWS, COLUMNS)
    _, x_place, x_inside = examples(batch, inputs, ROWS, INPUTS)
    u, w = (
        matrix(U, inputs, hidden, run_size, False, INPUTS, COLUMNS),
        matrix(W, hidden, hidden, run_size, False, COLUMNS, COLUMNS),
    )
    bias = matrix(b, 1, hidden, run_size, False, 1, COLUMNS)
    first = tl.load(late + run) if LATE else T
    x_at, at = x + run * x_run + x_place, h + run * h_run + batch * hidden + place
    state, x_t = tl.zeros((ROWS, COLUMNS), tl.float32), tl.load(x_at, mask=x_inside, other=0.0)
    for t in range(T):
        coming = tl.load(x_at + tl.minimum(t + 1, T - 1) * batch * inputs, mask=x_inside, other=0.0)
        z = tl.dot(x_t, u, bias + tl.zeros((ROWS, COLUMNS), tl.float32), input_precision=PRECISION)
        state = phi(tl.dot(state, w, z, input_precision=PRECISION), PHI)
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
    _, place, inside = examples(batch, hidden, ROWS, COLUMNS)
    w = matrix(W, hidden, hidden, W_run, True, COLUMNS, COLUMNS)
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
        d = times_prime(d, state, PHI)
        tl.store(to, d, mask=inside)
        to -= size
        d = tl.dot(d, w, input_precision=PRECISION)
        state = coming


@triton.jit
def _scaled_backward(
    given, given_e, h, W, late, dE_dh, exponent, delta, T, L, batch, hidden, h_run, W_run,
    PHI: tl.constexpr, LATE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`_backward` with every vector renormalised at each step. given_e, exponent: (runs, L, batch) and (runs, T, batch), the latter of
    dE_dh and delta, (runs, T, ...) both."""
    run = tl.program_id(0).to(tl.int64)
    n, place, inside = examples(batch, hidden, ROWS, COLUMNS)
    w = matrix(W, hidden, hidden, W_run, True, COLUMNS, COLUMNS)
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
        d, e = normalise(d, e)
        if back < L:
            g = tl.load(given + given_at, mask=inside, other=0.0)
            d, e = add(d, e, g, tl.load(given_e + given_e_at, mask=n < batch, other=0))
            given_at -= size
            given_e_at -= batch
        d = tl.where(inside, d, 0.0)
        if LATE:
            d = tl.where(T - 1 - back >= first, d, 0.0)
        tl.store(dE_dh + last, d, mask=inside)
        tl.store(exponent + e_at, e, mask=n < batch)
        d = times_prime(d, state, PHI)
        tl.store(delta + last, d, mask=inside)
        d = tl.dot(d, w, input_precision=PRECISION)
        last -= size
        e_at -= batch
        state = coming


def _launch(
    kernel: triton.JITFunction, cell: Cell, trace: Trace, late: Tensor | None, *tensors: object, **more: object
) -> None:
    """A kernel through time: one program for each run and ROWS of its examples."""
    assert isinstance(cell, Elman)
    runs, batch, hidden = trace.steps[0].after[0].shape
    settings = {
        "PHI": phi_of(cell),
        "LATE": late is not None,
        "ROWS": ROWS,
        "COLUMNS": width(hidden),
        "PRECISION": language.PRECISION,
    }
    kernel[runs, triton.cdiv(batch, ROWS)](*tensors, **settings, num_warps=WARPS, **more)


def states(x: Tensor, weights: Layer, cell: Cell, trace: Trace, late: Tensor | None = None) -> None:
    """recurrence.states."""
    U, W, b = (runs_first(t, 2) for t in weights)
    x, h = runs_first(x, 3).flatten(1, 2), runs_first(trace.s[0], 3)
    T, (batch, hidden), inputs = len(trace.steps), h.shape[-2:], U.shape[-2]
    numbers = T, batch, inputs, hidden, x.stride(0), W.stride(0), h.stride(0)
    _launch(_forward, cell, trace, late, x, U, b, W, h, late, *numbers, INPUTS=width(inputs))


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
