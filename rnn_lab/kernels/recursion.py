"""Through time and back, one layer of one run: the loops that are the same for every cell (bptt, cells, probes, regularizers).

t = 1..T as in the equations: row 0 of h and c is the state before the sequence, row 0 of all else is unused. Rows are padded to `width`
entries. A run that sits out `late` steps begins at late + 1; nothing is read or written before, but for its state, 0.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# (Numba's stubs describe neither its decorators' options nor what its intrinsics take.)

import math

from rnn_lab.kernels import cells
from rnn_lab.kernels.cells import GRU, LEAKY, LSTM
from rnn_lab.kernels.scaling import LOG10_2, add_immediate, log10_rms, norm_and_exponent, normalise, scale, square_norm
from rnn_lab.kernels.tiles import PAD, ROWS, pointer, product
from rnn_lab.kernels.vectors import add, copy, fill, inner, sum_of_squares, unpadded

IN_CACHE = 60  # rows of a block of states and adjoints that share the L1 cache
TINY = 1e-20  # regularizers.TINY


@inner
def states(cell, phi, leak, late, shape, inputs, U, bias, W, gates, h, c):
    """h_t for all t."""
    batch, width, size = shape.batch, shape.width, shape.batch * shape.width
    row, N = cell.blocks * width, cell.gates * width
    fill(h, 0, (late + 1) * size)
    if cell.states > 1:
        fill(c, 0, (late + 1) * size)
    for t in range(late + 1, shape.T + 1):
        z = pointer(gates, t * batch * row)
        for n in range(batch):
            given = pointer(U, inputs.symbols[(t - 1) * batch + n] * N) if inputs.one_hot else bias
            copy(given, pointer(z, n * row), N)
            if cell.first_W > 0:
                fill(pointer(z, n * row + N), 0, row - N)
        if not inputs.one_hot:
            x_t = pointer(inputs.x, (t - 1) * batch * inputs.stride)
            product(x_t, inputs.stride, 1, U, N, z, row, batch, N, inputs.size, True)
        before, own = pointer(h, (t - 1) * size), pointer(z, cell.first_W * width)
        product(before, width, 1, W, N, own, row, batch, N, shape.hidden, True)
        cells.forward(cell, phi, leak, z, pointer(h, t * size), pointer(c, t * size), batch, width)


@inner
def send_back(cell, shape, delta, WT, d):
    """What reaches h_{t-1} through W: d = delta_t W^T, added to what cells.backward left there if the cell has another way back."""
    width, past = shape.width, cell.kind == LEAKY or cell.kind == GRU
    for gate in range(cell.gates):
        own, part = pointer(delta, (cell.first_W + gate) * width), pointer(WT, gate * shape.hidden * width)
        product(own, cell.blocks * width, 1, part, width, d, width, shape.batch, width, shape.hidden, past or gate > 0)


@inner
def adjoints(
    cell,
    phi,
    leak,
    late,
    shape,
    steps,
    alone,
    h,
    c,
    gates,
    delta,
    memory,
    measure,
    regularised,
    dE_dh,
    log10_delta,
    dE_dc,
):
    """dE/dh_t (and dE/dc_t) and delta_t, last step first (bptt, cells: scaled adjoints); returns Omega if it is measured or regularised.

    memory.given: immediate_t of the last `steps` steps, used up.  alone: of E_T only; nothing but log10 ||dE_dh|| is kept, and `delta` is
    the memory of one step.  Fills the mantissas `delta` and memory.exponents, and memory.omega_W (`omega_step`).
    """
    T, batch, width, hidden = shape.T, shape.batch, shape.width, shape.hidden
    size, row, to_norm = batch * width, cell.blocks * width, math.log10(batch)
    step = 0 if alone else batch * row
    d, e, s, k = memory.d, memory.e, memory.s, memory.k
    omega, sums = (measure or regularised) and cell.blocks == 1 and not alone, memory.sums
    fill(sums, 0, 2)
    if regularised:
        fill(memory.omega_W, 0, -(-hidden // ROWS) * ROWS * width)
    if measure:
        for t in range(late):
            dE_dh[t], log10_delta[t], dE_dc[t] = -math.inf, -math.inf, -math.inf
    for t in range(T, late, -1):
        z, h_t, c_t = pointer(gates, t * batch * row), pointer(h, t * size), pointer(c, t * size)
        l = t - 1 - (T - steps)  # noqa: E741
        if t == T:
            copy(pointer(memory.given, l * size), d, size)
            fill(pointer(d, size), 0, size)
            copy(pointer(memory.given_e, l * batch), e, batch)
        else:
            send_back(cell, shape, pointer(delta, (t + 1) * step), memory.WT, d)
            if omega:
                omega_step(shape, pointer(delta, (t + 1) * step), regularised, memory)
            if l >= 0 and not alone:
                given = pointer(memory.given, l * size)
                add_immediate(d, cell.states, batch, width, e, given, pointer(memory.given_e, l * batch))
        if cell.kind == LSTM:
            cells.lstm_through_output(d, z, c_t, batch, width)
        normalise(d, cell.states, batch, hidden, width, e, s, k)
        if measure:
            dE_dh[t - 1] = log10_rms(s, k, e, batch) + to_norm
            if cell.kind == LSTM:
                dE_dc[t - 1] = log10_rms(pointer(s, batch), pointer(k, batch), e, batch) + to_norm
        if not alone:
            copy(e, pointer(memory.exponents, t * batch), batch)
        elif cell.blocks > 1:
            copy(z, delta, batch * row)
        own = pointer(delta, t * step)
        cells.backward(cell, phi, leak, d, z, own, h_t, c_t, batch, width)
        if measure and not alone:
            for n in range(batch):
                memory.s_delta[n], memory.k_delta[n] = square_norm(pointer(own, n * row), cell.gates, hidden, width)
            log10_delta[t - 1] = log10_rms(memory.s_delta, memory.k_delta, e, batch) + to_norm
    if omega and late < T:
        send_back(cell, shape, pointer(delta, (late + 1) * step), memory.WT, d)
        omega_step(shape, pointer(delta, (late + 1) * step), regularised, memory)
    return sums[0] / max(sums[1], 1.0)


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
def plain(cell, late, shape, delta, exponents):
    """Mantissas -> plain floats, with whatever they under- or overflow to."""
    row = cell.blocks * shape.width
    for m in range((late + 1) * shape.batch, (shape.T + 1) * shape.batch):
        if exponents[m] != 0:
            scale(pointer(delta, m * row), exponents[m], row)


@inner
def recurrent_gradient(cell, late, shape, h, delta, total, dW):
    """dE/dW = sum_t h_{t-1}^T delta_t (the GRU's delta of h_{t-1} W)."""
    batch, width, hidden = shape.batch, shape.width, shape.hidden
    row, N, rows = cell.blocks * width, cell.gates * width, -(-hidden // ROWS) * ROWS
    steps = max(1, IN_CACHE // (batch * cell.blocks))
    fill(total, 0, rows * N)
    for t in range(late + 1, shape.T + 1, steps):
        K, own = min(steps, shape.T + 1 - t) * batch, pointer(delta, t * batch * row + cell.first_W * width)
        product(pointer(h, (t - 1) * batch * width), 1, width, own, row, total, N, rows, N, K, True)
    unpadded(total, hidden, hidden, cell.gates, 0, width, dW)


@inner
def input_gradients(cell, late, shape, inputs, delta, total, dU, db):
    """dE/dU = sum_t x_t^T delta_t and dE/db = sum_t delta_t."""
    batch, width, hidden = shape.batch, shape.width, shape.hidden
    row, N, stride = cell.blocks * width, cell.gates * width, inputs.stride
    fill(total, 0, inputs.size * N)
    if inputs.one_hot:
        for t in range(late + 1, shape.T + 1):
            add_by_symbol(inputs, t, batch, pointer(delta, t * batch * row), row, N, total)
    else:
        steps = max(1, IN_CACHE // (batch * cell.blocks))
        for t in range(late + 1, shape.T + 1, steps):
            K, own = min(steps, shape.T + 1 - t) * batch, pointer(delta, t * batch * row)
            product(pointer(inputs.x, (t - 1) * batch * stride), 1, stride, own, row, total, N, inputs.size, N, K, True)
    unpadded(total, inputs.size, hidden, cell.gates, cell.shift, width, dU)
    if inputs.one_hot:
        for symbol in range(1, inputs.size):
            add(pointer(total, symbol * N), total, N)
    else:
        fill(total, 0, N)
        for m in range((late + 1) * batch, (shape.T + 1) * batch):
            add(pointer(delta, m * row), total, N)
    unpadded(total, 1, hidden, cell.gates, cell.shift, width, db)


@inner
def add_by_symbol(inputs, t, batch, delta, row, N, total):
    """total[symbol] += delta_t of every example that reads this symbol."""
    for n in range(batch):
        add(pointer(delta, n * row), pointer(total, inputs.symbols[(t - 1) * batch + n] * N), N)


@inner
def state_series(cell, phi, shape, gates, h, h_norm, openness):
    """h/norm, and phi_prime/mean or, of a gated cell, gates/saturation, at each t (probes.states, probes.gates)."""
    batch, width, hidden = shape.batch, shape.width, shape.hidden
    row, counted = cell.blocks * width, 3 if cell.kind == LSTM else 2
    for t in range(1, shape.T + 1):
        square, total = 0.0, 0.0
        for m in range(t * batch, (t + 1) * batch):
            square += sum_of_squares(pointer(h, m * width), hidden)
            if cell.blocks > 1:
                total += cells.saturated(cell, pointer(gates, m * row), hidden, width) / counted
            else:
                total += cells.phi_prime_sum(pointer(gates, m * row), phi, hidden)
        h_norm[t - 1] = math.sqrt(square / batch)
        openness[t - 1] = total / (batch * hidden)


@inner
def mantissas(v, rows, columns, stride, to):
    """(where `rows` rows, `stride` apart, lie without their common scale 2^k, k): in v itself if they need none, else in `to`."""
    norm = square_norm(v, rows, columns, stride) if stride % PAD == 0 else norm_and_exponent(v, rows, columns, stride)
    k = norm[1]
    if k == 0:
        return v, k
    for n in range(rows):
        copy(pointer(v, n * stride), pointer(to, n * stride), columns)
        scale(pointer(to, n * stride), -k, columns)
    return to, k


@inner
def log10_summand(S, rows, gates, hidden, width, k):
    """log10 of the Frobenius norm of S 2^k."""
    s, own = square_norm(S, rows * gates, hidden, width)
    return 0.5 * math.log10(s) + (own + k) * LOG10_2 if s != 0 else -math.inf


@inner
def one_scale(cell, shape, delta, exponents, memory):
    """A copy in memory.step of all examples' delta_t with one exponent, which it returns."""
    batch, width, row = shape.batch, shape.width, cell.blocks * shape.width
    most, some = 0, False
    for n in range(batch):
        s, own = square_norm(pointer(delta, n * row), cell.blocks, shape.hidden, width)
        if s != 0 and (not some or own + exponents[n] > most):
            most, some = own + exponents[n], True
    copy(delta, memory.step, batch * row)
    for n in range(batch):
        if exponents[n] != most:
            scale(pointer(memory.step, n * row), exponents[n] - most, row)
    return most


@inner
def summand_series(cell, late, shape, inputs, h, delta, memory, log10_dW, log10_dU):
    """log10 of ||h_{t-1}^T delta_t|| and ||x_t^T delta_t|| at each t, from mantissas (probes.summands): the products themselves."""
    batch, width, hidden = shape.batch, shape.width, shape.hidden
    row, N, rows, D, S = cell.blocks * width, cell.gates * width, -(-hidden // ROWS) * ROWS, memory.step, memory.total
    for t in range(late):
        log10_dW[t], log10_dU[t] = -math.inf, -math.inf
    for t in range(late + 1, shape.T + 1):
        own = pointer(delta, t * batch * row)
        most = one_scale(cell, shape, own, pointer(memory.exponents, t * batch), memory)
        before, k = mantissas(pointer(h, (t - 1) * batch * width), batch, hidden, width, memory.left)
        product(before, 1, width, pointer(D, cell.first_W * width), row, S, N, rows, N, batch, False)
        log10_dW[t - 1] = log10_summand(S, hidden, cell.gates, hidden, width, k + most)
        if inputs.one_hot:
            fill(S, 0, inputs.size * N)
            add_by_symbol(inputs, t, batch, D, row, N, S)
            k = 0
        else:
            x_t = pointer(inputs.x, (t - 1) * batch * inputs.stride)
            x_t, k = mantissas(x_t, batch, inputs.size, inputs.stride, memory.left)
            product(x_t, 1, inputs.stride, D, row, S, N, inputs.size, N, batch, False)
        log10_dU[t - 1] = log10_summand(S, inputs.size, cell.gates, hidden, width, k + most)
