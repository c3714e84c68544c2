"""phi of one number in a form that LLVM turns into vector code when it stands in a loop: no calls, no branches.

exp(x) = 2^n (1 + p), n = round(x / ln 2) and p = expm1(x - n ln 2) from its Taylor series, to the last place of each type. tanh and
sigmoid come out within about three units in the last place, are exactly 1 (and phi' = 0) where they round to it, and NaN where a is.
"""

# pyright: reportCallIssue=false, reportArgumentType=false
# (Numba's stubs describe neither its decorators' options nor what its intrinsics take.)

import math

import numpy as np
from numba import types
from numba.extending import overload, register_jitable

SIGMOID, TANH, RELU, LINEAR = range(4)
PHI = {"sigmoid": SIGMOID, "tanh": TANH, "relu": RELU, "linear": LINEAR}

# No reassoc, arcp, nnan or ninf: a number's result depends on nothing but the number, and divergence is data.
JIT = {"fastmath": {"contract"}, "error_model": "numpy"}


@register_jitable(**JIT)
def _series_single(r):
    s = r * r
    q = (np.float32(1 / 5040) * r + np.float32(1 / 720)) * s + (np.float32(1 / 120) * r + np.float32(1 / 24))
    return r + s * (q * s + (np.float32(1 / 6) * r + np.float32(0.5)))


@register_jitable(**JIT)
def _series_double(r):
    q = (1 / 6227020800 * r + 1 / 479001600) * r + 1 / 39916800
    q = (((q * r + 1 / 3628800) * r + 1 / 362880) * r + 1 / 40320) * r + 1 / 5040
    q = (((q * r + 1 / 720) * r + 1 / 120) * r + 1 / 24) * r + 1 / 6
    return r + r * r * (q * r + 0.5)


def _functions(real, whole, mantissa, bias, series, ln2_high, ln2_low):
    """(tanh, sigmoid) for one type. bias + 1 is the exponent of infinity, ln2_high + ln2_low is ln 2."""
    log2_e, one, two, large = real(1 / math.log(2)), real(1), real(2), real(40)
    infinite = real((bias + 0.7) * math.log(2))  # rounds to n = bias + 1: exp is infinite
    rounds = real(
        1.5 * 2.0**mantissa + bias
    )  # so large that a number added to it becomes whole: its last bits are n + bias
    shift, high, low = whole(mantissa), real(ln2_high), real(ln2_low)

    @register_jitable(**JIT)
    def exp_parts(x, most):
        """(p, 2^n) of exp(min(x, most)), x >= 0."""
        x = most if x > most else x  # NaN stays
        biased = real(x * log2_e + rounds)
        n = biased - rounds
        return series((x - n * high) - n * low), whole(biased.view(whole) << shift).view(real)

    def tanh(a):
        size = abs(a)
        p, scale = exp_parts(size + size, large)
        m = scale * p + (scale - one)  # expm1(2 |a|)
        t = m / (m + two)
        return -t if a < 0 else t

    def sigmoid(a):
        p, scale = exp_parts(abs(a), infinite)
        r = one / (one + scale * (one + p))
        return r if a < 0 else one - r

    return tanh, sigmoid


_single = _functions(np.float32, np.int32, 23, 127, _series_single, 0.693145751953125, 1.428606765330187e-06)
_double = _functions(np.float64, np.int64, 52, 1023, _series_double, 0.6931471803691238, 1.9082149292705877e-10)


def tanh(a):
    """tanh |a| = m / (m + 2) with m = expm1(2 |a|)."""


def sigmoid(a):
    """1 / (1 + exp(-a)): r = 1 / (1 + exp |a|) or 1 - r."""


@overload(tanh, jit_options=JIT)
def _tanh(a):
    return (_single if a == types.float32 else _double)[0]


@overload(sigmoid, jit_options=JIT)
def _sigmoid(a):
    return (_single if a == types.float32 else _double)[1]
