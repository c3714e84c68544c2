"""The addition problem (P13, section 4.1; after Hochreiter & Schmidhuber 1997, experiment 4)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rnn_lab.losses import squared_error
from rnn_lab.tasks.base import Baseline, Task, per_batch


class Addition(Task):
    """Two of many numbers are marked: what is their mean?

    The true length is l = L + randint(w), w = L // 10, drawn once for each run and mini-batch. Two inputs a step: a value, uniform on
    [0, 1], and a mark, 1 at the two steps p0 = randint(l//10) and p1 = l//10 + randint(4l//10) (0-based), 0 elsewhere. The target is
    (a + b)/2 with a, b the marked values. Squared error at the last true step; an example is wrong if (o - y)^2 > .04; solved when less
    than 1 % of fresh sequences are wrong.

    Worked example, L = l = 10 (so p0 = 0 and p1 is one of 1..4):
        value  .8 .3 .4 .9 .1 .5 .7 .2 .6 .3
        mark    1  0  1  0  0  0  0  0  0  0   ->  (.8 + .4)/2 = .6

    Trivial baseline: the squared error's best constant is the mean, 1/2, and its loss the variance, (1/12 + 1/12)/4 = 1/24. It is wrong if
    |a + b - 1| > .4; a + b has the triangular density 1 - |s - 1| on [0, 2], so the error is 2 (.6^2 / 2) = .36. That density is symmetric
    and falls on both sides, so no other constant errs less.
    """

    shortest = 10
    symbols = False
    inputs, outputs = 2, 1
    loss = staticmethod(squared_error)
    baseline = Baseline(loss=1 / 24, error=0.36, smallest_error=0.36)
    tolerance = 0.04  # of the squared error

    def true_length(self, L: Any) -> Any:
        return L + L // 10 - 1

    def lengths(self, rng: np.random.Generator, batches: int) -> NDArray:
        L = self.draw_L(rng, batches)
        return L + rng.integers(L // 10)

    def target(self, a: NDArray, b: NDArray) -> NDArray:
        return (a + b) / 2

    def draw(
        self, rng: np.random.Generator, batches: int, batch_size: int, lengths: NDArray | None = None
    ) -> tuple[NDArray, NDArray]:
        l = per_batch(lengths, self.steps)  # noqa: E741
        late, one = self.steps - l, (batches, 1, batch_size)
        values = rng.random((batches, self.steps, batch_size), dtype=np.float32)
        first = late + rng.integers(l // 10, size=one)
        second = late + l // 10 + rng.integers(4 * l // 10, size=one)
        marks = np.zeros_like(values)
        np.put_along_axis(marks, first, 1, axis=1)
        np.put_along_axis(marks, second, 1, axis=1)
        a, b = (np.take_along_axis(values, place, axis=1) for place in (first, second))
        return np.stack([values, marks], axis=-1), self.target(a, b)[..., None]

    def wrong(self, o: Tensor, y: Tensor, late: Tensor | None = None) -> Tensor:
        """Which examples miss their target by more than the tolerance, NaN included."""
        return ~((o - y).square() <= self.tolerance).all(-1).all(-2)
