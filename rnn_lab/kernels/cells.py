"""What tells one cell from another: one step forward and one step back, between the products with W and U.

A step's memory is `blocks` blocks (batch, width), `stride` entries apart, since a gate of all steps lies together. Forward they take
x_t U + b and h_{t-1} W and end as what the way back needs; on the way back they become delta. Gated cells keep the gates there in the
order of the columns of U and W, except the GRU, whose blocks are n, r, z and u = h_{t-1} W_n: U's part is then the first three (n r z),
W's the last three (r z u). The LSTM's fifth is tanh(c_t).
`late`, scaled adjoints, layers, norms: the loops in recursion.py, the same for all cells.
"""

# pyright: reportCallIssue=false, reportArgumentType=false
# (Numba's stubs describe neither its decorators' options nor what its intrinsics take.)

import math
from typing import NamedTuple

import numpy as np

from rnn_lab.kernels.functions import RELU, SIGMOID, TANH, sigmoid, tanh
from rnn_lab.kernels.loops import each
from rnn_lab.kernels.tiles import number, pointer
from rnn_lab.kernels.vectors import in_any_order, inner, times

ELMAN, LEAKY, LSTM, GRU = range(4)
each_tanh, each_sigmoid = each(tanh), each(sigmoid)


class Cell(NamedTuple):
    """gates: column blocks of U and W.  blocks: of a step's memory, deltas: those that become delta; first_W: W's first.  shift: of U's
    gates.  states: h, an LSTM's c.
    """

    kind: int
    gates: int = 1
    blocks: int = 1
    deltas: int = 1
    first_W: int = 0
    shift: int = 0
    states: int = 1


CELLS = {
    "elman": Cell(ELMAN),
    "leaky": Cell(LEAKY),
    "lstm": Cell(LSTM, gates=4, blocks=5, deltas=4, states=2),
    "gru": Cell(GRU, gates=3, blocks=4, deltas=4, first_W=1, shift=1),
}


@inner
def activate(a, phi, size):
    """phi(a) in place."""
    zero = number(a, 0)
    if phi == TANH:
        each_tanh(a, a, size)
    elif phi == SIGMOID:
        each_sigmoid(a, a, size)
    elif phi == RELU:
        for j in range(size):
            a[j] = a[j] if not a[j] < 0 else zero


@inner
def times_phi_prime(d, value, phi, delta, size):
    """delta = phi'(a) * dE/dh, phi' from the value phi(a)."""
    zero, one = number(d, 0), number(d, 1)
    if phi == TANH:
        for j in range(size):
            delta[j] = d[j] * (one - value[j] * value[j])
    elif phi == SIGMOID:
        for j in range(size):
            delta[j] = d[j] * (one - value[j]) * value[j]
    elif phi == RELU:
        for j in range(size):
            delta[j] = d[j] if not value[j] <= 0 else zero
    else:
        for j in range(size):
            delta[j] = d[j]


@inner
def forward(cell, phi, leak, gates, stride, h, c, size):
    """h_t (and c_t) from what the products left in `gates`, all of one step t, `size` entries; the Elman cell's gates are h itself."""
    if cell.kind == ELMAN:
        activate(h, phi, size)
    elif cell.kind == LEAKY:
        activate(gates, phi, size)
        leaky_state(leak, gates, pointer(h, -size), h, size)
    elif cell.kind == LSTM:
        lstm_forward(gates, stride, pointer(c, -size), c, h, size)
    else:
        gru_forward(gates, stride, pointer(h, -size), h, size)


@inner
def backward(cell, phi, leak, d, gates, delta, stride, h, c, size):
    """delta_t from the total dE/dh_t and dE/dc_t in d, (states, size); all of one step t. d becomes what h_{t-1} and c_{t-1} get past W
    (of the Elman cell nothing: it is left as it is). `delta` holds a gated cell's gates, `stride` entries apart, and becomes its delta.
    """
    if cell.kind == ELMAN:
        times_phi_prime(d, h, phi, delta, size)
    elif cell.kind == LEAKY:
        times_phi_prime(d, gates, phi, delta, size)
        times(delta, leak, size)
        times(d, 1 - leak, size)
    elif cell.kind == LSTM:
        lstm_backward(delta, stride, pointer(c, -size), h, d, pointer(d, size), size)
    else:
        gru_backward(delta, stride, pointer(h, -size), d, size)


@inner
def leaky_state(leak, value, before, h, size):
    """h_t = (1 - a) h_{t-1} + a phi(a_t)."""
    a, rest = number(h, leak), number(h, 1 - leak)
    for j in range(size):
        h[j] = rest * before[j] + a * value[j]


@inner
def gate(gates, stride, n):
    """Block n of a step's memory."""
    return pointer(gates, n * stride)


@inner
def lstm_forward(gates, stride, before, c, h, size):
    """c_t = f c_{t-1} + i g, h_t = o tanh(c_t)."""
    i, f, g, o = gates, gate(gates, stride, 1), gate(gates, stride, 2), gate(gates, stride, 3)
    tanh_c = gate(gates, stride, 4)
    each_sigmoid(i, i, size)
    each_sigmoid(f, f, size)
    each_tanh(g, g, size)
    each_sigmoid(o, o, size)
    for j in range(size):
        c[j] = f[j] * before[j] + i[j] * g[j]
    each_tanh(c, tanh_c, size)
    for j in range(size):
        h[j] = o[j] * tanh_c[j]


@inner
def lstm_through_output(d, gates, stride, size):
    """The part of dE/dc_t that comes through h_t: d_c += dE/dh_t * o * (1 - tanh(c_t)^2)."""
    one, d_c, o, tanh_c = number(d, 1), pointer(d, size), gate(gates, stride, 3), gate(gates, stride, 4)
    for j in range(size):
        d_c[j] += d[j] * o[j] * (one - tanh_c[j] * tanh_c[j])


@inner
def lstm_backward(gates, stride, before, h, d_h, d_c, size):
    """Gates -> delta; d_c -> what c_{t-1} gets, d_c f."""
    one = number(h, 1)
    i, f, g, o = gates, gate(gates, stride, 1), gate(gates, stride, 2), gate(gates, stride, 3)
    for j in range(size):
        o[j] = d_h[j] * h[j] * (one - o[j])  # tanh(c) o = h
    for j in range(size):
        i_j, g_j = i[j], g[j]
        i[j] = d_c[j] * g_j * i_j * (one - i_j)
        g[j] = d_c[j] * i_j * (one - g_j * g_j)
    for j in range(size):
        f_j = f[j]
        f[j] = d_c[j] * before[j] * f_j * (one - f_j)
        d_c[j] = d_c[j] * f_j


@inner
def gru_forward(gates, stride, before, h, size):
    """n = tanh(x_t U_n + b_n + r * (h_{t-1} W_n)), h_t = (1 - z) n + z h_{t-1}: reset after the product, as in cuDNN and torch.nn.GRU."""
    one = number(h, 1)
    n, r, z, u = gates, gate(gates, stride, 1), gate(gates, stride, 2), gate(gates, stride, 3)
    each_sigmoid(r, r, size)
    each_sigmoid(z, z, size)
    for j in range(size):
        n[j] += r[j] * u[j]
    each_tanh(n, n, size)
    for j in range(size):
        h[j] = (one - z[j]) * n[j] + z[j] * before[j]


@inner
def gru_backward(gates, stride, before, d, size):
    """n, r, z -> delta of x_t U + b; r, z, u -> delta of h_{t-1} W; d -> what h_{t-1} gets past W, d z."""
    one = number(d, 1)
    n, r, z, u = gates, gate(gates, stride, 1), gate(gates, stride, 2), gate(gates, stride, 3)
    for j in range(size):
        n_j, z_j = n[j], z[j]
        z[j] = d[j] * (before[j] - n_j) * z_j * (one - z_j)
        n[j] = d[j] * (one - z_j) * (one - n_j * n_j)
        d[j] = d[j] * z_j
    for j in range(size):
        r_j = r[j]
        r[j] = n[j] * u[j] * r_j * (one - r_j)
        u[j] = n[j] * r_j


@inner
def saturated(cell, gates, stride, hidden):
    """How many of an example's gate entries are below .1 or above .9, i f o of the LSTM, r z of the GRU; NaN if one is."""
    count = 0.0
    for block in range(4):
        if (cell.kind == LSTM and block == 2) or (cell.kind == GRU and (block == 0 or block == 3)):
            continue
        for j in range(block * stride, block * stride + hidden):
            if not 0.1 <= gates[j] <= 0.9:
                count += 1.0 if gates[j] == gates[j] else math.nan
    return count


@in_any_order
def phi_prime_sum(value, phi, size):
    """The sum of phi'(a) over a vector of values phi(a), float64."""
    one, total = number(value, 1), 0.0
    if phi == TANH:
        for j in range(size):
            total += np.float64(one - value[j] * value[j])
    elif phi == SIGMOID:
        for j in range(size):
            total += np.float64(value[j] * (one - value[j]))
    elif phi == RELU:
        for j in range(size):
            total += np.float64(value[j]) if value[j] != value[j] else (1.0 if value[j] > 0 else 0.0)
    else:
        for j in range(size):
            total += np.float64(value[j]) if value[j] != value[j] else 1.0
    return total
