"""The memory that kernels work in: one thread's, whatever runs it computes."""

# pyright: reportCallIssue=false, reportArgumentType=false
# (Numba's stubs describe neither its decorators' options nor what its intrinsics take.)

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnn_lab.kernels import recursion
from rnn_lab.kernels.cells import ELMAN, Cell
from rnn_lab.kernels.tiles import PAD, ROWS, pointer
from rnn_lab.kernels.vectors import inner


class Shape(NamedTuple):
    """Of a program. L: steps that carry a loss.  width, wide: hidden and outputs, padded."""

    layers: int
    T: int
    L: int
    batch: int
    inputs: int
    hidden: int
    outputs: int
    width: int
    wide: int


class Memory(NamedTuple):
    """One thread's, whatever runs it computes. Arrays here, pointers in the kernels. Padding is 0 wherever it is read."""

    h: Any  # (layers, T + 1, batch, width)
    c: Any  # the same, or empty
    gates: Any  # (layers, blocks, T + 1, batch, width); Elman: h
    delta: Any  # gated cells: gates; else a block of steps, (steps, batch, width)
    given: Any  # (L or T, batch, width), immediate_t
    U: Any  # (inputs or hidden, gates width)
    bias: Any  # (gates width,)
    W: Any  # (hidden, gates width)
    WT: Any  # (gates hidden, width)
    UT: Any  # the same, of layers above the first
    dU: Any  # as U, bias, W: sums on their way
    db: Any
    dW: Any
    S: Any  # as dU or dW: one step's summand
    omega_W: Any  # (hidden, width)
    V: Any  # (hidden, wide)
    VT: Any  # (outputs, width)
    dV: Any  # as V
    o: Any  # (L, batch, wide)
    dE_do: Any  # (L, batch, wide)
    d: Any  # (2, batch, width), dE/dh_t and dE/dc_t of one step
    step: Any  # (blocks, steps, batch, width), a copy of a block of steps
    left: Any  # (batch, width or inputs)
    exponents: Any  # (steps, batch), of a block of steps
    given_e: Any  # (T, batch)
    e: Any  # (batch,)
    k: Any  # (2, batch)
    k_delta: Any  # (batch,)
    s: Any  # (2, batch)
    s_delta: Any  # (batch,)
    sums: Any  # (2,), Omega's


def shape_of(layers: int, T: int, L: int, batch: int, inputs: int, hidden: int, outputs: int) -> Shape:
    """The sizes of a net and its mini-batch, units and outputs padded to whole vectors."""
    return Shape(layers, T, L, batch, inputs, hidden, outputs, -(-hidden // PAD) * PAD, -(-outputs // PAD) * PAD)


def new_memory(cell: Cell, shape: Shape, dtype: np.dtype) -> Memory:
    """layers T B H numbers for an Elman net, 2 layers T B H leaky, 7 and 5 layers T B H for LSTM and GRU, H padded; L B H more, or
    T B H if there are several layers.
    """
    layers, T, L, batch, inputs, hidden, outputs, width, wide = shape
    N, rows = cell.gates * width, -(-hidden // ROWS) * ROWS
    sequence, block = (layers, T + 1, batch), recursion.steps_in_cache.py_func(batch) * batch

    def zeros(*sizes: int) -> NDArray:
        return np.zeros(sizes, dtype)

    def integers(*sizes: int) -> NDArray:
        return np.zeros(sizes, np.int64)

    h = zeros(*sequence, width)
    gates = h if cell.kind == ELMAN else zeros(*sequence, cell.blocks * width)
    return Memory(
        h=h.ravel(),
        c=zeros(*sequence, width if cell.states > 1 else 0).ravel(),
        gates=gates.ravel(),
        delta=gates.ravel() if cell.blocks > 1 else zeros(block * width),
        given=zeros((T if layers > 1 else L) * batch * width),
        U=zeros(max(inputs, rows) * N),
        bias=zeros(N),
        W=zeros(hidden * N),
        WT=zeros(cell.gates * hidden * width),
        UT=zeros(cell.gates * hidden * width),
        dU=zeros(max(inputs, rows) * N),
        db=zeros(N),
        dW=zeros(rows * N),
        S=zeros(max(inputs, rows) * N),
        omega_W=zeros(rows * width),
        V=zeros(hidden * wide),
        VT=zeros(outputs * width),
        dV=zeros(hidden * wide),
        o=zeros(L * batch * wide),
        dE_do=zeros(L * batch * wide),
        d=zeros(2 * batch * width),
        step=zeros(block * cell.blocks * width),
        left=zeros(batch * max(width, inputs)),
        exponents=integers(block),
        given_e=integers(T * batch),
        e=integers(batch),
        k=integers(2 * batch),
        k_delta=integers(batch),
        s=np.zeros(2 * batch),
        s_delta=np.zeros(batch),
        sums=np.zeros(2),
    )


@inner
def pointers(m):
    """The same buffers as bare addresses, for what compiles faster without arrays."""
    return Memory(
        pointer(m.h, 0), pointer(m.c, 0), pointer(m.gates, 0), pointer(m.delta, 0), pointer(m.given, 0),
        pointer(m.U, 0), pointer(m.bias, 0), pointer(m.W, 0), pointer(m.WT, 0), pointer(m.UT, 0),
        pointer(m.dU, 0), pointer(m.db, 0), pointer(m.dW, 0), pointer(m.S, 0), pointer(m.omega_W, 0),
        pointer(m.V, 0), pointer(m.VT, 0), pointer(m.dV, 0), pointer(m.o, 0), pointer(m.dE_do, 0), pointer(m.d, 0),
        pointer(m.step, 0), pointer(m.left, 0), pointer(m.exponents, 0), pointer(m.given_e, 0), pointer(m.e, 0),
        pointer(m.k, 0), pointer(m.k_delta, 0), pointer(m.s, 0), pointer(m.s_delta, 0), pointer(m.sums, 0),
    )  # fmt: skip
