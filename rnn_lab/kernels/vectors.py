"""What all kernel code shares: how it is compiled, and loops over flat memory.

Kernels work on pointers (p[j], pointer(p, offset)): no bounds, no reference counts, and a third of the time to compile.
"""

# pyright: reportCallIssue=false, reportArgumentType=false
# (Numba's stubs describe neither its decorators' options nor what its intrinsics take.)

import numba as nb
import numpy as np

from rnn_lab.kernels.functions import JIT
from rnn_lab.kernels.loops import add_row
from rnn_lab.kernels.tiles import apart, number, pointer

inner = nb.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **JIT)  # not called from Python: compiles faster

in_any_order = nb.njit(  # for long sums in float64, which LLVM may then add up in vectors
    no_cpython_wrapper=True, no_cfunc_wrapper=True, fastmath={"contract", "reassoc"}, error_model="numpy"
)


@inner
def copy(source, to, size):
    """to = source."""
    for j in range(size):
        to[j] = source[j]


@inner
def fill(v, value, size):
    """v = value."""
    value = number(v, value)
    for j in range(size):
        v[j] = value


@inner
def times(v, factor, size):
    """v *= factor."""
    factor = number(v, factor)
    for j in range(size):
        v[j] *= factor


@inner
def add(v, to, size):
    """to += v."""
    for j in range(size):
        to[j] += v[j]


@inner
def add_by_symbol(shape, inputs, t, rows, delta, stride, gates, total):
    """total[symbol] += delta of every example that reads this symbol, `rows` of them from step t on; delta's gates are `stride` apart."""
    for gate in range(gates):
        for m in range(rows):
            to = inputs.symbols[(t - 1) * shape.batch + m] * gates + gate
            add_row(pointer(delta, gate * stride + m * shape.width), pointer(total, to * shape.width), shape.width)


@in_any_order
def sum_of_squares(v, size):
    """||v||^2, summed in float64."""
    total = 0.0
    for j in range(size):
        total += np.float64(v[j]) * np.float64(v[j])
    return total


@inner
def _padded(M, rows, hidden, gates, shift, transposed, out, width):
    for r in range(rows):
        for g in range(gates):
            source, block = pointer(M, (r * gates + g) * hidden), (g + shift) % gates
            if transposed:
                for j in range(hidden):
                    out[(block * hidden + j) * width + r] = source[j]
            else:
                copy(source, pointer(out, (r * gates + block) * width), hidden)


@inner
def _unpadded(M, rows, hidden, gates, shift, width, out):
    for r in range(rows):
        for g in range(gates):
            source = pointer(M, (r * gates + (g + shift) % gates) * width)
            copy(source, pointer(out, (r * gates + g) * hidden), hidden)


_call_padded, _call_unpadded = apart(_padded), apart(_unpadded)


@inner
def padded(M, rows, hidden, gates, shift, transposed, out, width):
    """out = M or its transpose, M (rows, gates * hidden). Each block of `hidden` columns, moved `shift` blocks on, gets `width` of them;
    transposed, (gates * hidden, width), each row does.
    """
    _call_padded((M, rows, hidden, gates, shift, transposed, out, width))


@inner
def unpadded(M, rows, hidden, gates, shift, width, out):
    """The way back: out = M without the padding, (rows, gates * hidden)."""
    _call_unpadded((M, rows, hidden, gates, shift, width, out))
