"""Through time and back, one layer of one run: the loops that are the same for every cell (bptt, cells, probes, regularizers).

t = 1..T as in the equations: row 0 of h and c is the state before the sequence, row 0 of all else is unused. Rows are padded to `width`
entries. A run that sits out `late` steps begins at late + 1; nothing is read or written before, but for its state, 0.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# (Numba's stubs describe neither its decorators' options nor what its intrinsics take.)

import math

from rnn_lab.kernels import cells
from rnn_lab.kernels.cells import GRU, LEAKY, LSTM
from rnn_lab.kernels.loops import add_row, copy_row
from rnn_lab.kernels.scaling import add_immediate, log10_rms, normalise, square_norm, with_exponent
from rnn_lab.kernels.series import DE_DC, step_series
from rnn_lab.kernels.tiles import ROWS, pointer, product
from rnn_lab.kernels.vectors import add_by_symbol, copy, fill, inner

IN_CACHE = 60  # rows of a block of states and adjoints that share the L1 cache
TINY = 1e-20  # regularizers.TINY


@inner
def states(cell, phi, leak, late, shape, inputs, U, bias, W, gates, h, c, carried):
    """h_t for all t, from 0; or from `carried.before`, and the last one to `carried.after`: h, then c, (batch, width) each."""
    size = shape.batch * shape.width
    stride = (shape.T + 1) * size
    fill(h, 0, (late + 1) * size)
    if cell.states > 1:
        fill(c, 0, (late + 1) * size)
    if carried.on:
        copy(carried.before, h, size)
        if cell.states > 1:
            copy(pointer(carried.before, size), c, size)
    for t in range(late + 1, shape.T + 1):
        z, h_t = pointer(gates, t * size), pointer(h, t * size)
        from_inputs(cell, shape, inputs, t, U, bias, z, stride)
        from_past(cell, shape, pointer(h_t, -size), W, z, stride)
        cells.forward(cell, phi, leak, z, stride, h_t, pointer(c, t * size), size)
    if carried.on:
        copy(pointer(h, shape.T * size), carried.after, size)
        if cell.states > 1:
            copy(pointer(c, shape.T * size), pointer(carried.after, size), size)


@inner
def from_inputs(cell, shape, inputs, t, U, bias, z, stride):
    """The gates z = x_t U + b. Of one-hot inputs U has b in it."""
    batch, width, N, x_t = shape.batch, shape.width, cell.gates * shape.width, (t - 1) * shape.batch
    for gate in range(cell.gates):
        own = pointer(z, gate * stride)
        for n in range(batch):
            row = pointer(U, inputs.symbols[x_t + n] * N) if inputs.one_hot else bias
            copy_row(pointer(row, gate * width), pointer(own, n * width), width)
        if not inputs.one_hot:
            x, part = pointer(inputs.x, x_t * inputs.stride), pointer(U, gate * width)
            product(x, inputs.stride, 1, part, N, own, width, batch, width, inputs.size, True)


@inner
def from_past(cell, shape, before, W, z, stride):
    """z += h_{t-1} W; the GRU's last block is of W alone."""
    batch, width, N = shape.batch, shape.width, cell.gates * shape.width
    for gate in range(cell.gates):
        block, part = cell.first_W + gate, pointer(W, gate * width)
        own = pointer(z, block * stride)
        product(before, width, 1, part, N, own, width, batch, width, shape.hidden, block < cell.gates)


@inner
def send_back(cell, shape, delta, stride, WT, d):
    """What reaches h_{t-1} through W: d = delta_t W^T, added to what cells.backward left there if the cell has another way back."""
    width, past = shape.width, cell.kind == LEAKY or cell.kind == GRU
    for gate in range(cell.gates):
        own, part = pointer(delta, (cell.first_W + gate) * stride), pointer(WT, gate * shape.hidden * width)
        product(own, width, 1, part, width, d, width, shape.batch, width, shape.hidden, past or gate > 0)


@inner
def adjoints(
    cell, phi, leak, late, shape, steps, alone, inputs, below, h, c, gates, delta, memory, measure, regularised, dE_dh, series, place
):  # fmt: skip
    """dE/dh_t (and dE/dc_t), delta_t and what follows from them, last step first (bptt, cells: scaled adjoints); returns Omega if it is
    measured or regularised.

    memory.given: immediate_t of the last `steps` steps, used up; with a layer `below` it ends as that layer's.  alone: of E_T only, nothing
    but log10 ||dE_dh|| is kept.  delta: mantissas of the block of steps at hand (gated cells: in the memory of the gates).
    Fills memory.dW, .dU, .db and .omega_W (`omega_step`); series: of this layer, `place` entries apart.
    """
    T, batch, width, hidden = shape.T, shape.batch, shape.width, shape.hidden
    size, to_norm, gated = batch * width, math.log10(batch), cell.blocks > 1
    block, sequence = steps_in_cache(batch), (T + 1) * size
    ring, stride = (1, size) if alone else ((T, sequence) if gated else (block, size))
    d, e, s, k = memory.d, memory.e, memory.s, memory.k
    omega, sums = (measure or regularised) and not gated and not alone, memory.sums
    fill(sums, 0, 2)
    if not alone:
        clear_sums(cell, shape, inputs, regularised, memory)
    own = delta
    for t in range(T, late, -1):
        z, h_t, c_t = pointer(gates, t * size), pointer(h, t * size), pointer(c, t * size)
        l = t - 1 - (T - steps)  # noqa: E741
        if t == T:
            copy(pointer(memory.given, l * size), d, size)
            fill(pointer(d, size), 0, size)
            copy(pointer(memory.given_e, l * batch), e, batch)
        else:
            send_back(cell, shape, own, stride, memory.WT, d)
            if omega:
                omega_step(shape, own, regularised, memory)
            if l >= 0 and not alone:
                given = pointer(memory.given, l * size)
                add_immediate(d, cell.states, batch, width, e, given, pointer(memory.given_e, l * batch))
        if cell.kind == LSTM:
            cells.lstm_through_output(d, z, sequence, size)
        normalise(d, cell.states, batch, hidden, width, e, s, k)
        if measure:
            dE_dh[t - 1] = log10_rms(s, k, e, batch) + to_norm
        if alone and gated:
            for n in range(cell.deltas):
                copy(pointer(z, n * sequence), pointer(delta, n * stride), size)
        own = pointer(delta, ((t - late - 1) % ring) * size)
        cells.backward(cell, phi, leak, d, z, own, stride, h_t, c_t, size)
        if alone:
            continue
        copy(e, pointer(memory.exponents, ((t - late - 1) % block) * batch), batch)
        if measure:
            if cell.kind == LSTM:
                series[DE_DC * place + t - 1] = log10_rms(pointer(s, batch), pointer(k, batch), e, batch) + to_norm
            step_series(cell, shape, inputs, pointer(h_t, -size), own, stride, t, memory, pointer(series, t - 1), place)
        if (t - late - 1) % block == 0:
            gradients(cell, shape, inputs, below, pointer(h_t, -size), own, stride, t, min(block, T + 1 - t), memory)
    if omega and late < T:
        send_back(cell, shape, own, stride, memory.WT, d)
        omega_step(shape, own, regularised, memory)
    return sums[0] / max(sums[1], 1.0)


@inner
def steps_in_cache(batch):
    """How many time steps of a batch are held between two products."""
    return max(1, IN_CACHE // batch)


@inner
def clear_sums(cell, shape, inputs, regularised, memory):
    """Zeros where gradients are summed."""
    N, rows = cell.gates * shape.width, -(-shape.hidden // ROWS) * ROWS
    fill(memory.dW, 0, rows * N)
    fill(memory.dU, 0, inputs.size * N)
    fill(memory.db, 0, N)
    if regularised:
        fill(memory.omega_W, 0, rows * shape.width)


@inner
def omega_step(shape, delta, regularised, memory):
    """One step's part of Omega and of sum (ratio_t - 1) / ||d_t||^2 (delta_t W^T)^T delta_t (regularizers).

    memory.d holds delta_t W^T; s and e the square norms of what it held before, dE/dh_t, whose exponents are delta_t's too.
    """
    batch, width, s, sums = shape.batch, shape.width, memory.s, memory.sums
    for n in range(batch):
        weight, d = 0.0, pointer(memory.d, n * width)
        if math.ldexp(s[n], 2 * memory.e[n]) >= TINY:
            back, k = square_norm(d, 1, shape.hidden, width)
            excess = math.ldexp(back / s[n], 2 * k) - 1
            sums[0] += excess * excess
            sums[1] += 1
            weight = excess / s[n]
        if regularised:
            to = pointer(memory.left, n * width)
            for j in range(width):
                to[j] = d[j] * weight
    if regularised:
        rows = -(-shape.hidden // ROWS) * ROWS
        product(memory.left, 1, width, delta, width, memory.omega_W, width, rows, width, batch, True)


@inner
def gradients(cell, shape, inputs, below, before, delta, stride, t, steps, memory):
    """Of `steps` steps from t on: dW += h_{t-1}^T delta_t (the GRU's delta of h_{t-1} W), dU += x_t^T delta_t, db += delta_t, as plain
    floats, with whatever they under- or overflow to; and what the layer `below` is given, delta_t U^T, with delta's exponents.
    """
    batch, width, hidden, N = shape.batch, shape.width, shape.hidden, cell.gates * shape.width
    rows, e = steps * batch, memory.exponents
    if below:
        for gate in range(cell.gates):
            own, UT = pointer(delta, gate * stride), pointer(memory.UT, gate * hidden * width)
            to = pointer(memory.given, (t - 1) * batch * width)
            product(own, width, 1, UT, width, to, width, rows, width, hidden, gate > 0)
        copy(e, pointer(memory.given_e, (t - 1) * batch), rows)
    plain, stride = with_exponent(0, delta, e, cell.deltas, stride, rows, width, memory.step)
    size = -(-hidden // ROWS) * ROWS
    for gate in range(cell.gates):
        own, to = pointer(plain, (cell.first_W + gate) * stride), pointer(memory.dW, gate * width)
        product(before, 1, width, own, width, to, N, size, width, rows, True)
    if inputs.one_hot:
        add_by_symbol(shape, inputs, t, rows, plain, stride, cell.gates, memory.dU)
        return
    for gate in range(cell.gates):
        own, to = pointer(plain, gate * stride), pointer(memory.dU, gate * width)
        x_t = pointer(inputs.x, (t - 1) * batch * inputs.stride)
        product(x_t, 1, inputs.stride, own, width, to, N, inputs.size, width, rows, True)
        for m in range(rows):
            add_row(pointer(own, m * width), pointer(memory.db, gate * width), width)
