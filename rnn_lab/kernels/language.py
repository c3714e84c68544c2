"""What Triton's kernels are made of: phi, matrices on the chip, vectors with exponents (activations and scaled, in Triton's language)."""

# pyright: reportMissingImports=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false, reportIndexIssue=false
# (What stands in a kernel is Triton's language, not Python.)

import triton
import triton.language as tl
from triton.backends.nvidia.compiler import CUDAOptions

from rnn_lab.activations import ACTIVATIONS
from rnn_lab.cells import Elman

# A product on the tensor cores: each float as the sum of three of 8 bits, and the six of their products that float32 can tell from 0. After
# 100 steps its error is 1.4 times that of float32 products, which take two to six times as long; older versions of Triton do not have it.
PRECISION = "bf16x6" if "bf16x6" in CUDAOptions.allowed_dot_input_precisions else "ieee"
SIGMOID, TANH, RELU, LINEAR = (tl.constexpr(number) for number in range(4))
PHI = {"sigmoid": SIGMOID, "tanh": TANH, "relu": RELU, "linear": LINEAR}
NOTHING = tl.constexpr(-(2**30))  # the exponent of a zero vector


@triton.jit
def tanh(a):
    """Where |a| < .55 from a polynomial (least squares; within 1.3 units in the last place), else 1 - 2 / (1 + exp |2 a|)."""
    square, size = a * a, tl.abs(a)
    series = ((0.0164108146 * square - 0.0526556037) * square + 0.1332042218) * square - 0.3333292902
    far = 1 - 2 / (1 + tl.exp(2 * size))
    return tl.where(size < 0.55, a + a * (square * series), tl.where(a < 0, -far, far))


@triton.jit
def sigmoid(a):
    """1 / (1 + exp(-a)); the product -a log2 e is carried in two parts, for exp's relative error grows with its argument."""
    x = -a
    high = x * 1.44269504
    low = tl.fma(x, 1.44269504, -high) + x * 1.9259629e-8
    near = tl.where(tl.abs(high) < 200, low * 0.693147181, 0.0)
    return 1 / (1 + tl.exp2(high) * (1 + near))


@triton.jit
def phi(a, PHI: tl.constexpr):
    """phi(a), of the activation of that number."""
    if PHI == SIGMOID:
        return sigmoid(a)
    if PHI == TANH:
        return tanh(a)
    if PHI == RELU:
        return tl.where(a < 0, 0.0, a)
    return a


@triton.jit
def times_prime(d, h, PHI: tl.constexpr):
    """phi'(a) d, from h = phi(a)."""
    if PHI == SIGMOID:
        return d * (h * (1 - h))
    if PHI == TANH:
        return d * (1 - h * h)
    if PHI == RELU:
        return tl.where(h <= 0, 0.0, d)
    return d


@triton.jit
def matrix(M, rows, columns, run_size, TRANSPOSED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The run's matrix (rows, columns), or its transposed, with zeros around it."""
    k, j = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    place = j * columns + k if TRANSPOSED else k * columns + j
    inside = (k < columns) & (j < rows) if TRANSPOSED else (k < rows) & (j < columns)
    return tl.load(M + tl.program_id(0).to(tl.int64) * run_size + place, mask=inside, other=0.0)


@triton.jit
def examples(batch, hidden, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Of this program: its rows, where each of its vectors stands in (batch, hidden), and which of these places there are."""
    n, j = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)[None, :]
    return n, n[:, None] * hidden + j, (n[:, None] < batch) & (j < hidden)


@triton.jit
def two_to(k):
    """2^k for whole k from -126 to 127."""
    return ((k + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def scale(d, k):
    """d 2^k, row by row (scaled.ldexp_)."""
    last = tl.minimum(tl.maximum(k, -126), 127)
    rest = tl.minimum(tl.maximum(k - last, -126), 127)
    return d * two_to(rest)[:, None] * two_to(last)[:, None]


@triton.jit
def normalise(d, e):
    """scaled.normalise_: d's rows end in [1, 4), what they lost is in e."""
    largest = tl.max(tl.abs(d), axis=1)
    k = tl.minimum(tl.maximum((largest.to(tl.int32, bitcast=True) >> 23) - 127, -126), 126)
    return d * two_to(-k)[:, None], e + k


@triton.jit
def add(d, e, g, g_e):
    """scaled.add_: the smaller is shifted to the larger's exponent; a zero vector has no say in it."""
    own = tl.where(tl.max((d != 0).to(tl.int32), axis=1) > 0, e, NOTHING)
    other = tl.where(tl.max((g != 0).to(tl.int32), axis=1) > 0, g_e, NOTHING)
    exponent = tl.maximum(own, other)
    total = scale(d, e - exponent) + scale(g, g_e - exponent)
    return normalise(total, tl.where(exponent == NOTHING, 0, exponent))


def phi_of(cell: Elman) -> tl.constexpr:
    """Which phi, as kernels are told."""
    return next(PHI[name] for name, phi in ACTIVATIONS.items() if phi is cell.phi)


def width(size: int) -> int:
    """Of what holds so many numbers on the chip."""
    return max(16, triton.next_power_of_2(size))
