"""What is measured at each step of one layer of one run (probes.adjoints, probes.states, probes.summands), in the sweep that trains."""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# (Numba's stubs describe neither its decorators' options nor what its intrinsics take.)

import math

from rnn_lab.kernels import cells
from rnn_lab.kernels.cells import LSTM
from rnn_lab.kernels.scaling import LOG10_2, log10_rms, norm_and_exponent, scale, square_norm, with_exponent
from rnn_lab.kernels.tiles import PAD, ROWS, pointer, product
from rnn_lab.kernels.vectors import add_by_symbol, copy, fill, inner, sum_of_squares

# of every (layer, t); a gated cell has gates/saturation in the place of phi_prime/mean, and only the LSTM the last
SERIES = range(7)
DE_DH, DELTA, H, OPENNESS, DW, DU, DE_DC = SERIES


@inner
def state_series(cell, phi, late, shape, gates, h, h_norm, openness):
    """h/norm, and phi_prime/mean or, of a gated cell, gates/saturation, at each t (probes.states, probes.gates)."""
    batch, width, hidden = shape.batch, shape.width, shape.hidden
    stride, counted = (shape.T + 1) * batch * width, 3 if cell.kind == LSTM else 2
    for t in range(late):
        h_norm[t], openness[t] = 0.0, math.nan  # no gates there
    for t in range(late + 1, shape.T + 1):
        square, total = 0.0, 0.0
        for m in range(t * batch, (t + 1) * batch):
            square += sum_of_squares(pointer(h, m * width), hidden)
            if cell.blocks > 1:
                total += cells.saturated(cell, pointer(gates, m * width), stride, hidden) / counted
            else:
                total += cells.phi_prime_sum(pointer(gates, m * width), phi, hidden)
        h_norm[t - 1] = math.sqrt(square / batch)
        openness[t - 1] = total / (batch * hidden)


@inner
def nothing_before(late, series, place, curve):
    """No adjoint reaches the steps that a run sits out: log10 norms are -inf there."""
    for t in range(late):
        curve[t] = -math.inf
        for n in (DE_DH, DELTA, DW, DU, DE_DC):
            series[n * place + t] = -math.inf


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
def one_scale(cell, shape, delta, stride, memory):
    """(delta_t of all examples with one exponent, its stride, that exponent): `delta` itself if they have one, else memory.step."""
    batch, width, s, k, e = shape.batch, shape.width, memory.s_delta, memory.k_delta, memory.e
    most, some = 0, False
    for n in range(batch):
        if s[n] != 0 and (not some or k[n] + e[n] > most):
            most, some = k[n] + e[n], True
    D, stride = with_exponent(most, delta, e, cell.deltas, stride, batch, width, memory.step)
    return D, stride, most


@inner
def step_series(cell, shape, inputs, before, delta, stride, t, memory, series, place):
    """log10 of the norms of delta_t, h_{t-1}^T delta_t and x_t^T delta_t, from mantissas (probes.adjoints, probes.summands)."""
    batch, width, hidden = shape.batch, shape.width, shape.hidden
    N, rows, S = cell.gates * width, -(-hidden // ROWS) * ROWS, memory.S
    for n in range(batch):
        memory.s_delta[n], memory.k_delta[n] = square_norm(pointer(delta, n * width), cell.gates, hidden, stride)
    series[DELTA * place] = log10_rms(memory.s_delta, memory.k_delta, memory.e, batch) + math.log10(batch)
    D, stride, most = one_scale(cell, shape, delta, stride, memory)
    h, k = mantissas(before, batch, hidden, width, memory.left)
    for gate in range(cell.gates):
        own = pointer(D, (cell.first_W + gate) * stride)
        product(h, 1, width, own, width, pointer(S, gate * width), N, rows, width, batch, False)
    series[DW * place] = log10_summand(S, hidden, cell.gates, hidden, width, k + most)
    k = 0
    if inputs.one_hot:
        fill(S, 0, inputs.size * N)
        add_by_symbol(shape, inputs, t, batch, D, stride, cell.gates, S)
    else:
        x_t = pointer(inputs.x, (t - 1) * batch * inputs.stride)
        x_t, k = mantissas(x_t, batch, inputs.size, inputs.stride, memory.left)
        for gate in range(cell.gates):
            own, to = pointer(D, gate * stride), pointer(S, gate * width)
            product(x_t, 1, inputs.stride, own, width, to, N, inputs.size, width, batch, False)
    series[DU * place] = log10_summand(S, inputs.size, cell.gates, hidden, width, k + most)
