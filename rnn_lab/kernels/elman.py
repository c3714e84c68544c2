"""A whole mini-batch of the Elman net, run by run: states, loss, adjoints, gradients, norms through time; one equation, one function.

The equations, names and shapes are those of cells.elman and bptt for one run; rows of all work arrays are padded to `width` entries.
The adjoint is always carried with one binary exponent an example (scaled.py), moved only when a vector's norm leaves [2^-20, 2^20].
Scaling by powers of two is exact, so nothing depends on when that happens, nor on whether somebody measures.
"""

# pyright: reportCallIssue=false, reportArgumentType=false
# (Numba's stubs describe neither its decorators' options nor what its intrinsics take.)

import inspect
import math
import zlib

import numba as nb
import numpy as np

from rnn_lab.kernels import functions, tiles
from rnn_lab.kernels.functions import JIT, RELU, SIGMOID, TANH, sigmoid, tanh
from rnn_lab.kernels.tiles import PAD, ROWS, pointer, product, squares

LOG10_2 = math.log10(2)
SMALL, LARGE = 2.0**-40, 2.0**40  # of squared norms
IN_CACHE = 60  # rows of states and adjoints that share the L1 cache

inner = nb.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **JIT)  # not called from Python: compiles faster


@inner
def copy(source, to):
    """Vectors; a slice assignment would drag in the formatting of its error message, ten seconds to compile."""
    for j in range(to.size):
        to[j] = source[j]


@inner
def times(v, factor):
    factor = v.dtype.type(factor)
    for j in range(v.size):
        v[j] *= factor


@inner
def padded(M, rows, columns, transposed, out):
    """out[:, :columns] = M or its transpose, M a flat (rows, columns)."""
    for r in range(rows):
        for c in range(columns):
            if transposed:
                out[c, r] = M[r * columns + c]
            else:
                out[r, c] = M[r * columns + c]


@inner
def activate(a, phi):
    """h = phi(a) in place."""
    if phi == TANH:
        for j in range(a.size):
            a[j] = tanh(a[j])
    elif phi == SIGMOID:
        for j in range(a.size):
            a[j] = sigmoid(a[j])
    elif phi == RELU:
        for j in range(a.size):
            a[j] = a[j] if not a[j] < 0 else a.dtype.type(0)


@inner
def times_phi_prime(d, h, phi, delta):
    """delta = phi'(a) * dE/dh, phi' from h."""
    one = d.dtype.type(1)
    if phi == TANH:
        for j in range(d.size):
            delta[j] = d[j] * (one - h[j] * h[j])
    elif phi == SIGMOID:
        for j in range(d.size):
            delta[j] = d[j] * (one - h[j]) * h[j]
    elif phi == RELU:
        for j in range(d.size):
            delta[j] = d[j] if not h[j] <= 0 else d.dtype.type(0)
    else:
        for j in range(d.size):
            delta[j] = d[j]


@inner
def symbol_inputs(symbols, U, b, hidden, h, Ub):
    """What layer 1 is given for one-hot x, symbols (T, batch): x_t U + b, into h[t], t = 1..T. Ub (inputs, width) is scratch."""
    for s in range(Ub.shape[0]):
        for j in range(hidden):
            Ub[s, j] = U[s * hidden + j] + b[j]
    for t in range(symbols.shape[0]):
        for n in range(symbols.shape[1]):
            copy(Ub[symbols[t, n]], h[t + 1, n])


@inner
def dense_inputs(x, offset, inputs, U, b, hidden, h, padded_U):
    """x_t U + b into h[t], t = 1..T; row (t, example) of x begins `inputs` entries behind the one before, the first at `offset`; for
    layers above the first x is the padded h of the layer below.
    """
    T, batch, width = h.shape[0] - 1, h.shape[1], h.shape[2]
    stride = width if offset > 0 else inputs
    padded(U, inputs, hidden, False, padded_U)
    product(x, offset, stride, 1, padded_U, 0, width, h, batch * width, width, T * batch, width, inputs)
    add_bias(h, b, hidden)


@inner
def add_bias(h, b, hidden):
    for t in range(1, h.shape[0]):
        for n in range(h.shape[1]):
            for j in range(hidden):
                h[t, n, j] += b[j]


@inner
def states(W, phi, late, h):
    """h_t = phi(given_t + h_{t-1} W), where h[t] holds given_t so far; h_t = 0 up to t = late (cells.elman.states)."""
    T, batch, width = h.shape[0] - 1, h.shape[1], h.shape[2]
    step = batch * width
    flat = h.reshape(-1)
    h[: late + 1] = 0
    for t in range(late + 1, T + 1):
        product(h, (t - 1) * step, width, 1, W, 0, width, h, t * step, width, batch, width, W.shape[0], True)
        activate(flat[t * step : (t + 1) * step], phi)


@inner
def softmax_cross_entropy(o, y, dE_do):
    """E summed over classes' batch and steps, and dE_t/do_t = yhat_t - y_t. o, dE_do: (L, batch, classes); y: (L, batch)."""
    total = 0.0
    for t in range(o.shape[0]):
        for n in range(o.shape[1]):
            o_t, d, s = o[t, n], dE_do[t, n], o.dtype.type(0)
            largest = o_t[0]
            for c in range(1, o_t.size):
                largest = o_t[c] if o_t[c] > largest else largest
            for c in range(o_t.size):
                s += math.exp(o_t[c] - largest)
            log_s = math.log(s)
            for c in range(o_t.size):
                d[c] = math.exp(o_t[c] - largest - log_s)
            d[y[t, n]] -= 1
            total += log_s - (o_t[y[t, n]] - largest)
    return total


@inner
def squared_error(o, y, dE_do):
    """The sum of (o_t - y_t)^2, and dE_t/do_t = 2 (o_t - y_t)."""
    total = 0.0
    for t in range(o.shape[0]):
        for n in range(o.shape[1]):
            for c in range(o.shape[2]):
                residual = o[t, n, c] - y[t, n, c]
                total += residual * residual
                dE_do[t, n, c] = 2 * residual
    return total


@inner
def outputs(h, V, c, hidden, o):
    """o_t = h_t V + c of the last L steps."""
    first = h.shape[0] - o.shape[0]
    O = o.shape[2]  # noqa: E741
    for t in range(o.shape[0]):
        for n in range(o.shape[1]):
            for k in range(O):
                o[t, n, k] = c[k]
            for j in range(hidden):
                v = h[first + t, n, j]
                for k in range(O):
                    o[t, n, k] += v * V[j * O + k]


@inner
def output_gradients(h, dE_do, V, hidden, dV, dc, immediate):
    """dE/dV = sum_t h_t^T dE/do_t, dE/dc, and what the last layer's states get from them: immediate_t = dE/do_t V^T."""
    first = h.shape[0] - dE_do.shape[0]
    O = dE_do.shape[2]  # noqa: E741
    dV[:] = 0
    dc[:] = 0
    for t in range(dE_do.shape[0]):
        for n in range(dE_do.shape[1]):
            e = dE_do[t, n]
            for k in range(O):
                dc[k] += e[k]
            for j in range(hidden):
                total = e.dtype.type(0)
                for k in range(O):
                    dV[j * O + k] += h[first + t, n, j] * e[k]
                    total += e[k] * V[j * O + k]
                immediate[t, n, j] = total


@inner
def norm_and_exponent(v):
    """(s, k) with sum of v^2 = s 4^k, s in [1, 4 len) in float64; zero, NaN and inf as they are with k = 0."""
    largest = 0.0
    for j in range(v.size):
        size = abs(np.float64(v[j]))
        if not size <= largest:
            largest = size
        if size != size:
            return math.nan, 0
    if largest == 0 or math.isinf(largest):
        return largest, 0
    k = math.frexp(largest)[1] - 1
    s = 0.0
    for j in range(v.size):
        scaled = math.ldexp(np.float64(v[j]), -k)
        s += scaled * scaled
    return s, k


@inner
def scale(v, k):
    """v *= 2^k, rounding once."""
    if -1000 < k < 1000:
        factor = math.ldexp(1.0, k)
        for j in range(v.size):
            v[j] = np.float64(v[j]) * factor
    else:
        for j in range(v.size):
            v[j] = math.ldexp(np.float64(v[j]), k)


@inner
def is_zero(v):
    for j in range(v.size):  # noqa: SIM110, which Numba compiles badly
        if v[j] != 0:
            return False
    return True


@inner
def add_immediate(d, e, immediate, f):
    """(d, 2^e) += (immediate, 2^f), by rows; the smaller is shifted, a zero vector has no say (scaled.add_)."""
    for n in range(d.shape[0]):
        a, b = d[n], immediate[n]
        if e[n] != f[n]:
            if is_zero(a):
                e[n] = f[n]
            elif is_zero(b):
                continue
            elif e[n] < f[n]:
                scale(a, e[n] - f[n])
                e[n] = f[n]
            else:
                scale(b, f[n] - e[n])
        for j in range(a.size):
            a[j] += b[j]


@inner
def log10_rms(s, e):
    """log10 of the root mean square of the norms sqrt(s) 2^e (scaled.log10_rms_norm): -inf if all are 0, never over- or underflowing."""
    most, any_left = 0, False
    for n in range(s.size):
        if s[n] != 0 and (not any_left or e[n] > most):
            most, any_left = e[n], True
    total = 0.0
    for n in range(s.size):
        if e[n] == most or not math.isfinite(s[n]):
            total += s[n]
        elif s[n] != 0:
            total += math.ldexp(s[n], 2 * (e[n] - most))
    return 0.5 * math.log10(total / s.size) + most * LOG10_2 if total != 0 else -math.inf


@inner
def adjoints(immediate, f, h, WT, phi, late, d, s, e, delta, exponents, measure, log10_dE_dh, log10_delta):
    """dE/dh_t = immediate_t + delta_{t+1} W^T and delta_t = phi'(a_t) dE/dh_t, last step first (cells.elman.scaled_deltas).

    Fills the mantissas delta (T, batch, width) and their exponents (T, batch); at each t the two norms' logarithms if they are measured.
    immediate (L, batch, width) with exponents f is used up; d, s, e are scratch.
    """
    T, L, batch, width, hidden = delta.shape[0], immediate.shape[0], delta.shape[1], delta.shape[2], WT.shape[0]
    step, to_norm = batch * width, math.log10(batch)
    flat, h_flat, delta_flat = d.reshape(-1), h.reshape(-1), delta.reshape(-1)
    if late > 0:
        delta[:late] = 0
        exponents[:late] = 0
        if measure:
            log10_dE_dh[:late] = -math.inf
            log10_delta[:late] = -math.inf
    for t in range(T - 1, late - 1, -1):
        if t == T - 1:
            copy(immediate[L - 1].reshape(-1), flat)
            copy(f[L - 1], e)
        else:
            product(delta, (t + 1) * step, width, 1, WT, 0, width, d, 0, width, batch, width, WT.shape[0])
            if t >= T - L:
                add_immediate(d, e, immediate[t - (T - L)], f[t - (T - L)])
        for n in range(batch):
            s[n] = squares(pointer(d, n * width), width)
            if not SMALL < s[n] < LARGE:
                s[n], k = norm_and_exponent(d[n, :hidden])
                if k != 0:
                    scale(d[n], -k)
                    e[n] += k
            exponents[t, n] = e[n]
        if measure:
            log10_dE_dh[t] = log10_rms(s, e) + to_norm
        delta_t = delta_flat[t * step : (t + 1) * step]
        times_phi_prime(flat, h_flat[(t + 1) * step : (t + 2) * step], phi, delta_t)
        if measure:
            for n in range(batch):
                s[n] = squares(pointer(delta, t * step + n * width), width)
                if not SMALL < s[n] < LARGE:
                    s[n], k = norm_and_exponent(delta[t, n, :hidden])
                    e[n] += k
            log10_delta[t] = log10_rms(s, e) + to_norm
            copy(exponents[t], e)


@inner
def plain(delta, exponents):
    """Mantissas -> plain floats, with whatever they under- or overflow to."""
    for t in range(delta.shape[0]):
        for n in range(delta.shape[1]):
            if exponents[t, n] != 0:
                scale(delta[t, n], exponents[t, n])


@inner
def recurrent_gradient(h, delta, hidden, total, dW):
    """dE/dW = sum_t h_{t-1}^T delta_t."""
    T, batch, width = delta.shape
    step, rows = batch * width, total.shape[0]  # a multiple of the tiles'; what comes of h's padding is not read
    steps = max(1, IN_CACHE // batch)
    total[:] = 0
    for t in range(0, T, steps):
        K = min(steps, T - t) * batch
        product(h, t * step, 1, width, delta, t * step, width, total, 0, width, rows, width, K, True)
    for i in range(hidden):
        for j in range(hidden):
            dW[i * hidden + j] = total[i, j]


@inner
def symbol_gradients(x, delta, inputs, hidden, total, dU, db):
    """dE/dU = sum_t x_t^T delta_t for one-hot x, and dE/db, which is its sum over symbols."""
    total[:] = 0
    for t in range(delta.shape[0]):
        for n in range(delta.shape[1]):
            row, d = total[x[t, n]], delta[t, n]
            for j in range(d.size):
                row[j] += d[j]
    db[:] = 0
    for s in range(inputs):
        for j in range(hidden):
            dU[s * hidden + j] = total[s, j]
            db[j] += total[s, j]


@inner
def input_gradients(x, offset, stride, delta, inputs, hidden, total, dU, db):
    """dE/dU = sum_t x_t^T delta_t and dE/db = sum_t delta_t; row m of x, (t, example), begins at offset + m stride."""
    T, batch, width = delta.shape
    steps = max(1, IN_CACHE // batch)
    total[:] = 0
    for t in range(0, T, steps):
        K, at = min(steps, T - t) * batch, t * batch
        product(x, offset + at * stride, 1, stride, delta, at * width, width, total, 0, width, inputs, width, K, True)
    for i in range(inputs):
        for j in range(hidden):
            dU[i * hidden + j] = total[i, j]
    row = total[0]
    row[:] = 0
    for t in range(T):
        for n in range(batch):
            for j in range(width):
                row[j] += delta[t, n, j]
    copy(row[:hidden], db)


@nb.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, fastmath={"contract", "reassoc"}, error_model="numpy")
def state_series(h, hidden, phi, h_norm, phi_prime):
    """h/norm and phi_prime/mean at each t (probes.states)."""
    one = h.dtype.type(1)
    for t in range(1, h.shape[0]):
        square, slope = 0.0, 0.0
        for n in range(h.shape[1]):
            row = h[t, n]
            for j in range(hidden):
                square += np.float64(row[j]) * np.float64(row[j])
            if phi == TANH:
                for j in range(hidden):
                    slope += np.float64(one - row[j] * row[j])
            elif phi == SIGMOID:
                for j in range(hidden):
                    slope += np.float64(row[j] * (one - row[j]))
            elif phi == RELU:
                for j in range(hidden):
                    slope += 1.0 if row[j] > 0 else 0.0
            else:
                slope += hidden
        h_norm[t - 1] = math.sqrt(square / h.shape[1])
        phi_prime[t - 1] = slope / (h.shape[1] * hidden)


@inner
def run(theta, grad, at, x, y, late, inputs, hidden, phi, weight, measure, scratch, o, series):
    """One run's mini-batch: returns the objective; fills grad, o (L, batch, outputs) and, if measured, series (4, layers, T).

    theta, grad (P,): flat; `at`: where U W b ... V c begin.  x: (symbols (T, batch), numbers (T, batch, inputs)), one of them empty.
    y: (labels (L, batch), targets (L, batch, outputs)), one of them empty: cross entropy or squared error.  scratch: `new_scratch`.
    """
    h, delta, exponents, given, given_e, work, d, s, e, dE_do = scratch
    symbols, numbers = x
    labels, targets = y
    layers, T, batch, width = h.shape[0], delta.shape[0], delta.shape[1], delta.shape[2]
    L, outputs_ = o.shape[0], o.shape[2]
    for n in range(layers):
        U, W, b = theta[at[3 * n] :], theta[at[3 * n + 1] :], theta[at[3 * n + 2] :]
        if n > 0:
            dense_inputs(h[n - 1].reshape(-1), batch * width, hidden, U, b, hidden, h[n], work[1])
        elif symbols.size > 0:
            symbol_inputs(symbols, U, b, hidden, h[0], work[1, :inputs])
        else:
            dense_inputs(numbers.reshape(-1), 0, inputs, U, b, hidden, h[0], work[1])
        padded(W, hidden, hidden, False, work[0])
        states(work[0, :hidden], phi, late, h[n])
    last = h[layers - 1]
    V, c = theta[at[3 * layers] :], theta[at[3 * layers + 1] :]
    outputs(last, V, c, hidden, o)
    first = max(0, late - (T - L))  # of the steps that carry a loss
    dE_do[:first] = 0
    if labels.size > 0:
        objective = weight * softmax_cross_entropy(o[first:], labels[first:], dE_do[first:])
    else:
        objective = weight * squared_error(o[first:], targets[first:], dE_do[first:])
    times(dE_do.reshape(-1), weight)

    given[:L] = 0
    given_e[:] = 0
    dV, dc = grad[at[3 * layers] :][: hidden * outputs_], grad[at[3 * layers + 1] :][:outputs_]
    output_gradients(last, dE_do, V, hidden, dV, dc, given)
    steps = L
    for n in range(layers - 1, -1, -1):
        padded(theta[at[3 * n + 1] :], hidden, hidden, True, work[0])
        WT, a, b = work[0, :hidden], series[0, n], series[1, n]
        adjoints(given[:steps], given_e, h[n], WT, phi, late, d, s, e, delta, exponents, measure, a, b)
        if n > 0:
            padded(theta[at[3 * n] :], hidden, hidden, True, work[0])
            product(delta, 0, width, 1, work[0], 0, width, given, 0, width, T * batch, width, hidden)
            copy(exponents.reshape(-1), given_e.reshape(-1))
            steps = T
        plain(delta, exponents)
        recurrent_gradient(h[n], delta, hidden, work[2], grad[at[3 * n + 1] :])
        dU, db = grad[at[3 * n] :], grad[at[3 * n + 2] :][:hidden]
        if n > 0:
            input_gradients(h[n - 1].reshape(-1), batch * width, width, delta, hidden, hidden, work[2], dU, db)
        elif symbols.size > 0:
            symbol_gradients(symbols, delta, inputs, hidden, work[2], dU, db)
        else:
            input_gradients(numbers.reshape(-1), 0, inputs, delta, inputs, hidden, work[2], dU, db)
        if measure:
            state_series(h[n], hidden, phi, series[2, n], series[3, n])
    return objective


def _program(sources: int):
    @nb.njit(cache=True, nogil=True, **JIT)
    def program(start, stop, theta, grads, at, symbols, numbers, labels, targets, k, late, inputs, hidden, phi, weight, measure,
                scratch, objective, o, series):  # fmt: skip
        """`run` for runs start..stop of a program, one after another, on mini-batch k of their blocks (R, blocks, ...). Several threads may
        do this at once, each with its own scratch.
        """
        _ = sources  # a closure's variables are part of its cache's key
        for r in range(start, stop):
            x, y = (symbols[r, k], numbers[r, k]), (labels[r, k], targets[r, k])
            objective[r] = run(
                theta[r], grads[r], at, x, y, late[r], inputs, hidden, phi, weight[r], measure, scratch, o[r], series[r]
            )

    return program


# Numba looks at this file alone to see whether what it has cached is out of date.
program = _program(zlib.crc32((inspect.getsource(functions) + inspect.getsource(tiles)).encode()))


def new_scratch(layers, T, L, batch, inputs, hidden, outputs, dtype):
    """Work space of one thread: h, delta and its exponents, immediate and its exponents, matrices, one step's d, s, e, and dE_do.

    Rows are padded; the matrices' padding columns are 0 and stay 0.
    """
    width = -(-hidden // PAD) * PAD
    rows = -(-max(inputs, hidden) // ROWS) * ROWS
    given = T if layers > 1 else L
    return (
        np.zeros((layers, T + 1, batch, width), dtype),
        np.zeros((T, batch, width), dtype),
        np.zeros((T, batch), np.int64),
        np.zeros((given, batch, width), dtype),
        np.zeros((T, batch), np.int64),
        np.zeros((3, rows, width), dtype),
        np.zeros((batch, width), dtype),
        np.zeros(batch),
        np.zeros(batch, np.int64),
        np.zeros((L, batch, outputs), dtype),
    )
