"""The multiplication problem (P13, section 4.1; after Hochreiter & Schmidhuber 1997, experiment 5)."""

import math

from numpy.typing import NDArray

from rnn_lab.tasks.addition import Addition
from rnn_lab.tasks.base import Baseline


def _below(p: float) -> float:
    """P(ab <= p) = p - p ln p for a, b uniform on [0, 1]."""
    return p - p * math.log(p)


class Multiplication(Addition):
    """Two of many numbers are marked: what is their product?

    As addition (true length l = L + randint(L // 10), value and mark, marks at randint(l//10) and l//10 + randint(4l//10), squared error at
    the last true step, wrong if (o - y)^2 > .04), but the target is a b.

    Worked example, L = l = 10 (so p0 = 0 and p1 is one of 1..4):
        value  .8 .3 .4 .9 .1 .5 .7 .2 .6 .3
        mark    1  0  1  0  0  0  0  0  0  0   ->  .8 * .4 = .32

    Trivial baseline: the squared error's best constant is the mean, 1/4, and its loss the variance, (1/3)^2 - 1/16 = 7/144. The product has
    the distribution F(p) = p - p ln p on [0, 1]; the constant 1/4 is right on [.05, .45], so it errs with 1 - F(.45) + F(.05) = .3905.
    The density, -ln p, falls with p, so the constant that errs least has its window of width .4 at 0: the constant .2 errs with
    1 - F(.4) = .2335, less than the loss-optimal one.
    """

    baseline = Baseline(loss=7 / 144, error=1 - _below(0.45) + _below(0.05), smallest_error=1 - _below(0.4))

    def target(self, a: NDArray, b: NDArray) -> NDArray:
        return a * b
