"""A whole mini-batch, run by run: states, loss, adjoints, gradients, norms through time. What Python calls and Numba's cache keeps."""

# pyright: reportCallIssue=false, reportArgumentType=false
# (Numba's stubs describe neither its decorators' options nor what its intrinsics take.)

import inspect
import zlib
from typing import Any, NamedTuple

import numba as nb
from numpy.typing import NDArray

from rnn_lab.kernels import cells, functions, heads, loops, memory, recursion, scaling, series, tiles, vectors
from rnn_lab.kernels.functions import JIT
from rnn_lab.kernels.memory import pointers
from rnn_lab.kernels.series import OPENNESS, H, nothing_before, state_series
from rnn_lab.kernels.tiles import number, pointer
from rnn_lab.kernels.vectors import add, copy, fill, inner, padded, unpadded


class Data(NamedTuple):
    """Blocks of mini-batches, (R, blocks, ...): symbols (T, batch) or numbers (T, batch, inputs); labels (L, batch) or targets
    (L, batch, outputs). Of each pair one is empty. loss: one of heads.LOSSES.
    """

    symbols: NDArray
    numbers: NDArray
    labels: NDArray
    targets: NDArray
    loss: int


class PerRun(NamedTuple):
    """(R,) each: steps sat out, weight of one example's E_t, factor of d+Omega/dW (0: none), leak."""

    late: NDArray
    weight: NDArray
    alpha: NDArray
    leak: NDArray


class Results(NamedTuple):
    """objective (R,), o (R, L, batch, outputs), series (R, SERIES, layers, T), curve (R, T): log10 ||dE_T/dh_t||, top layer; omega (R,)."""

    objective: NDArray
    o: NDArray
    series: NDArray
    curve: NDArray
    omega: NDArray


class Carried(NamedTuple):
    """States that mini-batches begin and end with, (R, layers, states, batch, width), h before c; both empty where they begin with 0.

    For one layer of one run: pointers, and whether they are `on`.
    """

    before: Any
    after: Any
    on: Any = True


class Inputs(NamedTuple):
    """Of one layer: symbols, or numbers x whose rows (t, example) begin `stride` entries apart; `size` of them each."""

    one_hot: Any
    symbols: Any
    x: Any
    stride: Any
    size: Any


@inner
def inputs_of(layer, shape, symbols, one_hot, numbers, h):
    """What layer `layer` reads: the task's symbols or numbers, or the states of the layer below."""
    if layer == 0:
        return Inputs(one_hot, symbols, numbers, shape.inputs, shape.inputs)
    size = shape.batch * shape.width
    return Inputs(False, symbols, pointer(h, ((layer - 1) * (shape.T + 1) + 1) * size), shape.width, shape.hidden)


@inner
def forward(cell, phi, leak, late, shape, theta, at, layer, inputs, carried, m):
    """One layer's states."""
    width, hidden, sequence = shape.width, shape.hidden, (shape.T + 1) * shape.batch * shape.width
    N = cell.gates * width
    U, W, b = pointer(theta, at[3 * layer]), pointer(theta, at[3 * layer + 1]), pointer(theta, at[3 * layer + 2])
    padded(U, inputs.size, hidden, cell.gates, cell.shift, False, m.U, width)
    padded(b, 1, hidden, cell.gates, cell.shift, False, m.bias, width)
    padded(W, hidden, hidden, cell.gates, 0, False, m.W, width)
    if inputs.one_hot:
        for symbol in range(inputs.size):
            add(m.bias, pointer(m.U, symbol * N), N)
    h, c = pointer(m.h, layer * sequence), pointer(m.c, layer * sequence)
    gates = pointer(m.gates, layer * sequence * cell.blocks)
    skip = layer * cell.states * shape.batch * width
    own = Carried(pointer(carried.before, skip), pointer(carried.after, skip), carried.on)
    recursion.states(cell, phi, leak, late, shape, inputs, m.U, m.bias, m.W, gates, h, c, own)


@inner
def backward(cell, phi, leak, late, shape, theta, grad, at, layer, inputs, m, measure, alpha, series, curve):
    """One layer's adjoints and gradients, from m.given, which then is the layer below's; returns Omega."""
    T, L, width, hidden, top = shape.T, shape.L, shape.width, shape.hidden, layer == shape.layers - 1
    size, steps, place = shape.batch * width, L if top else T, shape.layers * T
    h, c = pointer(m.h, layer * (T + 1) * size), pointer(m.c, layer * (T + 1) * size)
    gates = pointer(m.gates, layer * (T + 1) * size * cell.blocks)
    delta = pointer(gates, (late + 1) * size) if cell.blocks > 1 else m.delta
    dU, dW, db = pointer(grad, at[3 * layer]), pointer(grad, at[3 * layer + 1]), pointer(grad, at[3 * layer + 2])
    own, above = pointer(series, layer * T), measure and top and L > 1
    padded(pointer(theta, at[3 * layer + 1]), hidden, hidden, cell.gates, 0, True, m.WT, width)
    if layer > 0:
        padded(pointer(theta, at[3 * layer]), hidden, hidden, cell.gates, cell.shift, True, m.UT, width)
    if measure:
        state_series(cell, phi, late, shape, gates, h, pointer(own, H * place), pointer(own, OPENNESS * place))
        nothing_before(late, own, place, curve)
    omega = 0.0
    for alone in range(1 if above else 0, -1, -1):  # E_T's curve first: the other sweep uses up its memory
        omega = recursion.adjoints(
            cell, phi, leak, late, shape, steps, alone > 0, inputs, layer > 0, h, c, gates, m.step if alone > 0 else delta, m,
            measure, alpha != 0, curve if alone > 0 else own, own, place,
        )  # fmt: skip
    if measure and top and L == 1:
        copy(own, curve, T)
    unpadded(m.dW, hidden, hidden, cell.gates, 0, width, dW)
    unpadded(m.dU, inputs.size, hidden, cell.gates, cell.shift, width, dU)
    if inputs.one_hot:
        for symbol in range(inputs.size):
            add(pointer(m.dU, symbol * cell.gates * width), m.db, cell.gates * width)
    unpadded(m.db, 1, hidden, cell.gates, cell.shift, width, db)
    if alpha != 0:
        add_omega_gradient(m.omega_W, shape, 4 * alpha / max(m.sums[1], 1.0), dW)
    return omega


@inner
def add_omega_gradient(total, shape, factor, dW):
    """dW += factor total, of a padded total."""
    factor = number(dW, factor)
    for i in range(shape.hidden):
        for j in range(shape.hidden):
            dW[i * shape.hidden + j] += factor * total[i * shape.width + j]


@inner
def run(cell, phi, leak, late, weight, alpha, shape, theta, grad, at, data, carried, measure, m, results):
    """One run: returns its objective and Omega. data: symbols, one_hot, numbers, labels, targets, loss; results: o, series, curve."""
    symbols, one_hot, numbers, labels, targets, loss = data
    o, series, curve = results
    for layer in range(shape.layers):
        inputs = inputs_of(layer, shape, symbols, one_hot, numbers, m.h)
        forward(cell, phi, leak, late, shape, theta, at, layer, inputs, carried, m)
    size, last = shape.batch * shape.width, shape.layers * (shape.T + 1) - shape.L
    h, V, c = pointer(m.h, last * size), pointer(theta, at[3 * shape.layers]), pointer(theta, at[3 * shape.layers + 1])
    padded(V, shape.hidden, shape.outputs, 1, 0, False, m.V, shape.wide)
    padded(V, shape.hidden, shape.outputs, 1, 0, True, m.VT, shape.width)
    heads.outputs(shape, h, m.V, c, m.o, o)
    objective = heads.objective(shape, m.o, labels, targets, loss, weight, late, m.dE_do)
    dV, dc = pointer(grad, at[3 * shape.layers]), pointer(grad, at[3 * shape.layers + 1])
    heads.output_gradients(shape, h, m.dE_do, m.VT, m.dV, dV, dc, m.given)
    fill(m.given_e, 0, shape.L * shape.batch)
    omega = 0.0
    for layer in range(shape.layers - 1, -1, -1):
        inputs = inputs_of(layer, shape, symbols, one_hot, numbers, m.h)
        omega += backward(
            cell, phi, leak, late, shape, theta, grad, at, layer, inputs, m, measure, alpha, series, curve
        )
    return objective, omega


def _program(sources: int):
    @nb.njit(cache=True, nogil=True, **JIT)
    def program(start, stop, cell, phi, shape, theta, grads, at, k, data, carried, per_run, measure, work, results):
        """Runs start..stop of a program, one after another, on mini-batch k of their blocks. Several threads may do this at once, each
        with memory (`work`) of its own. theta, grads (R, P); at: where U W b ... V c begin.
        """
        _ = sources  # a closure's variables are part of its cache's key
        one_hot, m = data.symbols.size > 0, pointers(work)
        for r in range(start, stop):
            of_run = (
                pointer(data.symbols[r, k], 0), one_hot, pointer(data.numbers[r, k], 0),
                pointer(data.labels[r, k], 0), pointer(data.targets[r, k], 0), data.loss,
            )  # fmt: skip
            states = Carried(pointer(carried.before[r], 0), pointer(carried.after[r], 0), carried.before.size > 0)
            into = pointer(results.o[r], 0), pointer(results.series[r], 0), pointer(results.curve[r], 0)
            results.objective[r], results.omega[r] = run(
                cell, phi, per_run.leak[r], per_run.late[r], per_run.weight[r], per_run.alpha[r], shape,
                pointer(theta[r], 0), pointer(grads[r], 0), pointer(at, 0), of_run, states, measure, m, into,
            )  # fmt: skip

    return program


# Numba looks at this file alone to see whether what it has cached is out of date.
SOURCES = (cells, functions, heads, loops, memory, recursion, scaling, series, tiles, vectors)
program = _program(zlib.crc32("".join(map(inspect.getsource, SOURCES)).encode()))
