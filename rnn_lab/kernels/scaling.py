"""Vectors of any size: mantissas with one binary exponent an example, as in rnn_lab.scaled, for one run's memory.

Exponents are moved only when a vector's norm leaves [2^-20, 2^20]. Scaling by powers of two is exact, so nothing depends on when.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# (Numba's stubs describe neither its decorators' options nor what its intrinsics take.)

import math

import numpy as np

from rnn_lab.kernels.loops import add_row, squares
from rnn_lab.kernels.tiles import PAD, apart, pointer
from rnn_lab.kernels.vectors import copy, inner

LOG10_2 = math.log10(2)
SMALL, LARGE = 2.0**-40, 2.0**40  # of squared norms


@inner
def _norm_and_exponent(v, blocks, hidden, stride):
    largest = 0.0
    for block in range(blocks):
        for j in range(block * stride, block * stride + hidden):
            size = abs(np.float64(v[j]))
            if not size <= largest:
                largest = size
            if size != size:
                return math.nan, 0
    if largest == 0 or math.isinf(largest):
        return largest, 0
    k = math.frexp(largest)[1] - 1
    s = 0.0
    for block in range(blocks):
        for j in range(block * stride, block * stride + hidden):
            scaled = math.ldexp(np.float64(v[j]), -k)
            s += scaled * scaled
    return s, k


_call_norm_and_exponent = apart(_norm_and_exponent)


@inner
def norm_and_exponent(v, blocks, hidden, stride):
    """`square_norm` whatever the size: s in [1, 4 blocks hidden) in float64; zero, NaN and inf as they are with k = 0."""
    return _call_norm_and_exponent((v, blocks, hidden, stride))


@inner
def square_norm(v, blocks, hidden, stride):
    """(s, k): the sum of squares is s 4^k. v: `blocks` blocks of `hidden` entries, `stride` apart, padded with zeros to whole vectors."""
    s, width = 0.0, -(-hidden // PAD) * PAD
    for block in range(blocks):  # each a chain of additions of its own: the processor overlaps them
        s += squares(pointer(v, block * stride), width)
    if SMALL < s < LARGE:
        return s, 0
    return norm_and_exponent(v, blocks, hidden, stride)


@inner
def _scale(v, k, size):
    if -1000 < k < 1000:
        factor = math.ldexp(1.0, k)
        for j in range(size):
            v[j] = np.float64(v[j]) * factor
    else:
        for j in range(size):
            v[j] = math.ldexp(np.float64(v[j]), k)


_call_scale = apart(_scale)


@inner
def scale(v, k, size):
    """v *= 2^k, rounding once."""
    _call_scale((v, k, size))


@inner
def with_exponent(most, v, e, blocks, stride, rows, width, to):
    """(v whose rows all have the exponent `most`, where before row m had e[m]; its stride): v itself if they had, else in `to`.

    v: `blocks` blocks of `rows` rows, `stride` apart.
    """
    same = True
    for m in range(rows):
        same = same and e[m] == most
    if same:
        return v, stride
    for block in range(blocks):
        own = pointer(to, block * rows * width)
        copy(pointer(v, block * stride), own, rows * width)
        for m in range(rows):
            if e[m] != most:
                scale(pointer(own, m * width), e[m] - most, width)
    return to, rows * width


@inner
def is_zero(v, size):
    """Whether all `size` entries are 0."""
    for j in range(size):  # noqa: SIM110, which Numba compiles badly
        if v[j] != 0:
            return False
    return True


@inner
def normalise(d, blocks, batch, hidden, width, e, s, k):
    """Moves each example's scale into e if it must be; leaves the square norms of `d` in s 4^k, times 4^e.

    d: (blocks, batch, width), whose rows of one example share e; s, k: (blocks, batch).
    """
    for n in range(batch):
        top, some = 0, False
        for row in range(n, blocks * batch, batch):
            s[row], k[row] = square_norm(pointer(d, row * width), 1, hidden, width)
            if s[row] != 0 and (not some or k[row] > top):
                top, some = k[row], True
        if top != 0:
            e[n] += top
            for row in range(n, blocks * batch, batch):
                scale(pointer(d, row * width), -top, width)
                k[row] -= top


@inner
def align(d, blocks, batch, width, n, e, immediate, f):
    """One exponent for example n of d (2^e) and its immediate (2^f): the larger; the other is shifted, zeros have no say."""
    if is_zero(immediate, width):
        return
    nothing = True
    for row in range(n, blocks * batch, batch):
        nothing = nothing and is_zero(pointer(d, row * width), width)
    if nothing:
        e[n] = f
    elif e[n] < f:
        for row in range(n, blocks * batch, batch):
            scale(pointer(d, row * width), e[n] - f, width)
        e[n] = f
    else:
        scale(immediate, f - e[n], width)


@inner
def add_immediate(d, blocks, batch, width, e, immediate, f):
    """(d, 2^e) += (immediate, 2^f), by examples, to the first block of d."""
    for n in range(batch):
        own = pointer(immediate, n * width)
        if e[n] != f[n]:
            align(d, blocks, batch, width, n, e, own, f[n])
        add_row(own, pointer(d, n * width), width)


@inner
def _log10_rms(s, k, e, batch):
    most, some = 0, False
    for n in range(batch):
        if s[n] != 0 and (not some or k[n] + e[n] > most):
            most, some = k[n] + e[n], True
    total = 0.0
    for n in range(batch):
        if k[n] + e[n] == most or not math.isfinite(s[n]):
            total += s[n]
        elif s[n] != 0:
            total += math.ldexp(s[n], 2 * (k[n] + e[n] - most))
    return 0.5 * math.log10(total / batch) + most * LOG10_2 if total != 0 else -math.inf


_call_log10_rms = apart(_log10_rms)


@inner
def log10_rms(s, k, e, batch):
    """log10 of the root mean square of sqrt(s) 2^(k + e) (scaled.log10_rms_norm): -inf if all are 0, never over- or underflowing."""
    return _call_log10_rms((s, k, e, batch))
