"""Outputs, losses and where the adjoints begin, for one run (bptt.forward, losses, bptt.output_gradients).

Outputs and errors are (L, batch, wide), each row padded from `outputs` to `wide` entries.
"""

# pyright: reportCallIssue=false, reportArgumentType=false
# (Numba's stubs describe neither its decorators' options nor what its intrinsics take.)

import math

from rnn_lab.kernels.tiles import number, pointer, product
from rnn_lab.kernels.vectors import add, fill, inner, times

NUMBERS, CLASSES, KEYS = LOSSES = range(3)  # squared error, softmax cross entropy, Bernoulli cross entropy


@inner
def softmax_cross_entropy(o, y, classes, d):
    """E_t of one example and dE_t/do_t = yhat_t - y_t."""
    s, largest = number(o, 0), o[0]
    for c in range(1, classes):
        largest = o[c] if o[c] > largest else largest
    for c in range(classes):
        s += math.exp(o[c] - largest)
    log_s = math.log(s)
    for c in range(classes):
        d[c] = math.exp(o[c] - largest - log_s)
    d[y] -= number(d, 1)
    return log_s - (o[y] - largest)


@inner
def squared_error(o, y, outputs, d):
    """The sum of (o_t - y_t)^2 of one example, and dE_t/do_t = 2 (o_t - y_t)."""
    total = 0.0
    for c in range(outputs):
        residual = o[c] - y[c]
        total += residual * residual
        d[c] = number(d, 2) * residual
    return total


@inner
def bernoulli_cross_entropy(o, y, outputs, d):
    """The sum of log(1 + e^o) - y o of one example, and dE_t/do_t = 1 / (1 + e^-o) - y."""
    total = 0.0
    for c in range(outputs):
        e = math.exp(-abs(o[c]))
        total += math.log1p(e) + (o[c] if o[c] > 0 else 0.0) - y[c] * o[c]
        d[c] = number(d, 1 / (1 + e) if o[c] > 0 else e / (1 + e)) - y[c]
    return total


@inner
def outputs(shape, h, V, c, padded_o, o):
    """o_t = h_t V + c of the last L steps, h: of these; `o` without padding."""
    rows, wide = shape.L * shape.batch, shape.wide
    product(h, shape.width, 1, V, wide, padded_o, wide, rows, wide, shape.hidden, False)
    for n in range(rows):
        own, to = pointer(padded_o, n * wide), pointer(o, n * shape.outputs)
        for k in range(shape.outputs):
            own[k] += c[k]
            to[k] = own[k]


@inner
def objective(shape, o, labels, targets, loss, weight, late, dE_do):
    """The objective and its gradient at the outputs; loss: one of LOSSES. Steps that a run sits out carry no loss."""
    E, first, wide = 0.0, max(0, late - (shape.T - shape.L)) * shape.batch, shape.wide
    fill(dE_do, 0, first * wide)
    for n in range(first, shape.L * shape.batch):
        own, d = pointer(o, n * wide), pointer(dE_do, n * wide)
        if loss == CLASSES:
            E += softmax_cross_entropy(own, labels[n], shape.outputs, d)
        elif loss == KEYS:
            E += bernoulli_cross_entropy(own, pointer(targets, n * shape.outputs), shape.outputs, d)
        else:
            E += squared_error(own, pointer(targets, n * shape.outputs), shape.outputs, d)
    times(dE_do, weight, shape.L * shape.batch * wide)
    return weight * E


@inner
def output_gradients(shape, h, dE_do, VT, padded_dV, dV, dc, immediate):
    """dE/dV = sum_t h_t^T dE/do_t, dE/dc, and what the last layer's states get: immediate_t = dE/do_t V^T. VT: (outputs, width)."""
    rows, wide, width = shape.L * shape.batch, shape.wide, shape.width
    product(h, 1, width, dE_do, wide, padded_dV, wide, shape.hidden, wide, rows, False)
    for j in range(shape.hidden):
        for k in range(shape.outputs):
            dV[j * shape.outputs + k] = padded_dV[j * wide + k]
    fill(dc, 0, shape.outputs)
    for n in range(rows):
        add(pointer(dE_do, n * wide), dc, shape.outputs)
    product(dE_do, wide, 1, VT, width, immediate, width, rows, width, shape.outputs, False)
