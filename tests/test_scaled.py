"""(mantissa, exponent) numbers against exact arithmetic: Python's ldexp, and whole numbers of any size."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from rnn_lab.scaled import Scaled, add_, ldexp_, log10_rms_norm, normalise_, power_of_two, scaled, value

DTYPES = [torch.float32, torch.float64]
SMALLEST = {torch.float32: -149, torch.float64: -1074}  # log2 of the smallest subnormal


def spread(dtype: torch.dtype, rows: int, columns: int, low: int, high: int, seed: int = 0) -> Tensor:
    """Vectors of random sign and digits whose entries lie within a factor 16, around 2**low to 2**high."""
    rng = np.random.default_rng(seed)
    digits, place = (
        rng.uniform(-1, 1, (rows, columns)),
        rng.integers(low, high, (rows, 1)) + rng.integers(0, 4, (rows, columns)),
    )
    return torch.from_numpy(np.ldexp(digits, place)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_powers_of_two_are_exact(dtype):
    bias = {torch.float32: 127, torch.float64: 1023}[dtype]
    k = torch.arange(1 - bias, bias + 1)
    assert power_of_two(k, dtype).tolist() == [math.ldexp(1, int(i)) for i in k]


def test_ldexp_rounds_once():
    """float32 results, subnormal and infinite ones too, are those of float64, which holds them all, rounded once."""
    x = spread(torch.float32, 4000, 5, -40, 3)
    k = torch.from_numpy(np.random.default_rng(1).integers(-190, 200, 4000)).int()
    with np.errstate(over="ignore"):
        expected = np.ldexp(x.double().numpy(), k.numpy()[:, None]).astype(np.float32)
    assert np.isinf(expected).any()
    assert (np.abs(expected[expected != 0]) < 2.0**-126).any()
    np.testing.assert_array_equal(ldexp_(x.clone(), k), expected)


def test_ldexp_of_an_exponent_far_outside_the_range_is_zero_or_infinite():
    for dtype in DTYPES:
        x = torch.ones(2, 3, dtype=dtype)
        assert ldexp_(x, torch.tensor([-(10**9), 10**9], dtype=torch.int32)).tolist() == [[0] * 3, [math.inf] * 3]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scaled_copy_is_the_same_number(dtype):
    """Exactly, from the largest number to the smallest subnormal; its largest entry is in [1, 4)."""
    low = SMALLEST[dtype]
    x = spread(dtype, 500, 7, low + 4, -low // 2)
    x[0], x[1] = 2.0**low, torch.finfo(dtype).max
    s = scaled(x)
    assert torch.equal(value(s), x)
    largest = s.mantissa.abs().amax(-1)
    assert ((largest >= 1) & (largest < 4)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_normalising_moves_the_scale_and_nothing_else(dtype):
    x = Scaled(spread(dtype, 300, 4, -60, 60), torch.arange(-1500, 1500, 10, dtype=torch.int32))
    before = [
        [Fraction(m) * Fraction(2) ** int(e) for m in row]
        for row, e in zip(x.mantissa.tolist(), x.exponent, strict=True)
    ]
    normalise_(x)
    after = [
        [Fraction(m) * Fraction(2) ** int(e) for m in row]
        for row, e in zip(x.mantissa.tolist(), x.exponent, strict=True)
    ]
    assert before == after


def test_zero_infinite_and_nan_stay_what_they_are():
    x = torch.tensor([[0.0, 0.0], [math.inf, 0.0], [-math.inf, 1.0], [math.nan, 1.0]])
    s = scaled(x)
    for _ in range(20):  # one a time step
        normalise_(s)
    found = value(s)
    assert found[0].tolist() == [0, 0]
    assert found[1:3, 0].tolist() == [math.inf, -math.inf]
    assert found[3, 0].isnan()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("apart", [0, 1, 30, 300, 5000], ids=lambda bits: f"2^{bits} apart")
def test_sums_are_correct_to_rounding(apart, dtype):
    """Against rational arithmetic, for summands of equal and of very different size, far outside any float's range."""
    rng, rows = np.random.default_rng(2), 60
    x, y = scaled(spread(dtype, rows, 4, -3, 3)), scaled(spread(dtype, rows, 4, -3, 3, seed=1))
    x.exponent += torch.from_numpy(rng.integers(-3000, 3000, rows)).int()
    y.exponent.copy_(x.exponent + torch.from_numpy(rng.choice([-apart, apart], rows)))

    def exact(s: Scaled) -> list[list[Fraction]]:
        return [
            [Fraction(m) * Fraction(2) ** int(e) for m in row]
            for row, e in zip(s.mantissa.tolist(), s.exponent, strict=True)
        ]

    truth = [[a + b for a, b in zip(p, q, strict=True)] for p, q in zip(exact(x), exact(y), strict=True)]
    size = [max(map(abs, p + q)) for p, q in zip(exact(x), exact(y), strict=True)]
    found, eps = exact(add_(x, y)), Fraction(torch.finfo(dtype).eps)
    for ours, expected, scale in zip(found, truth, size, strict=True):
        assert all(abs(a - b) <= eps * scale for a, b in zip(ours, expected, strict=True))
    assert (x.mantissa.abs().amax(-1) < 4).all()


def test_a_zero_vector_has_no_say_in_a_sum():
    """Whatever its exponent: 0 * 2**3000 + 2**-3000 is 2**-3000."""
    for own, other in ((3000, -3000), (-3000, 3000), (0, 0)):
        zero = Scaled(torch.zeros(1, 2), torch.tensor([own], dtype=torch.int32))
        one = Scaled(torch.ones(1, 2), torch.tensor([other], dtype=torch.int32))
        left = add_(Scaled(zero.mantissa.clone(), zero.exponent.clone()), one)
        right = add_(Scaled(one.mantissa.clone(), one.exponent.clone()), zero)
        for s in (left, right):
            assert s.mantissa.tolist() == [[1, 1]]
            assert s.exponent.tolist() == [other]
    both = add_(
        Scaled(torch.zeros(1, 2), torch.tensor([-9], dtype=torch.int32)),
        Scaled(torch.zeros(1, 2), torch.tensor([7], dtype=torch.int32)),
    )
    assert value(both).tolist() == [[0, 0]]
    assert log10_rms_norm(both) == -math.inf


def log10(q: Fraction) -> float:
    return math.log10(q.numerator) - math.log10(q.denominator)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exponent", [0, -6000, 6000])
def test_log10_rms_norm_at_any_size(exponent, dtype):
    """log10 sqrt(mean over the batch of ||x||^2), in rational arithmetic."""
    x = Scaled(spread(dtype, 6, 4, -3, 3), exponent + torch.tensor([0, 1, -2, 40, -3000, 41], dtype=torch.int32))
    squares = [
        sum(Fraction(m) ** 2 for m in row) * Fraction(4) ** int(e)
        for row, e in zip(x.mantissa.tolist(), x.exponent, strict=True)
    ]
    truth = 0.5 * log10(sum(squares, Fraction(0)) / 6)
    assert log10_rms_norm(x).item() == pytest.approx(truth, abs=1e-11)


def test_log10_rms_norm_of_plain_numbers_is_the_textbook_formula(runs):
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((*runs, 5, 3, 4)))
    expected = x.square().sum(-1).mean(-1).sqrt().log10()
    torch.testing.assert_close(log10_rms_norm(scaled(x)), expected)


def test_log10_rms_norm_of_zero_is_minus_infinity_and_of_infinity_infinity():
    def of(*rows: list[float]) -> float:
        return log10_rms_norm(scaled(torch.tensor(rows, dtype=torch.float32))).item()

    assert of([0, 0], [0, 0]) == -math.inf
    assert of([3, 4], [0, 0]) == pytest.approx(math.log10(5 / math.sqrt(2)))  # one example's zero is not the batch's
    assert of([math.inf, 0], [1, 0]) == math.inf
    assert math.isnan(of([math.nan, 0], [1, 0]))
    assert math.isnan(of([math.nan, 0], [math.inf, 0]))


@pytest.mark.parametrize(("dtype", "entry"), [(torch.float32, 1e-37), (torch.float64, 1e-300)])
def test_log10_rms_norm_of_a_mantissa_whose_squares_do_not_fit(dtype, entry):
    """delta's mantissa is dE/dh's times phi', and phi' of saturated sigmoid units may be as small as the dtype goes."""
    x = Scaled(torch.full((1, 4), entry, dtype=dtype), torch.tensor([-1000], dtype=torch.int32))
    assert log10_rms_norm(x).item() == pytest.approx(math.log10(2 * entry) - 1000 * math.log10(2), abs=1e-7)
