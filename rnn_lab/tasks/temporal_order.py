"""Temporal order (P13, section 4.1; after task 6a of Hochreiter & Schmidhuber 1997)."""

import math

import numpy as np
from numpy.typing import NDArray

from rnn_lab.losses import softmax_cross_entropy
from rnn_lab.tasks.base import Baseline, Task, per_batch

DISTRACTORS, A, B = 4, 4, 5  # symbols 0..3 are the distractors c d e f


def distractors(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray:
    """rng.integers(4, size=shape, dtype=np.uint8), draw for draw, in a third of the time: two bits of each of its bytes."""
    return (np.frombuffer(rng.bytes(math.prod(shape)), np.uint8) >> 6).reshape(shape)


class TemporalOrder(Task):
    """Two symbols, each A or B, in a stream of distractors: in which order did they come?

    Six one-hot symbols. Steps are filled uniformly with the four distractors; the first A/B stands at w + randint(w), the second at
    5L//10 + randint(w), w = L // 10 (0-based). The class is v0 + 2 v1 with v = 0 for A, 1 for B: AA 0, BA 1, AB 2, BB 3.
    Softmax cross entropy at the last step; solved when less than 1 % of fresh sequences are wrong.

    Worked example, L = 10 (so w = 1, positions 1 and 5):  c A d d f B c e c d  ->  AB, class 2.

    Trivial baseline: the four classes are equally likely, so the best constant prediction is uniform: loss -log(1/4) = ln 4 nats, error 3/4
    (no constant errs less).
    """

    shortest = 10
    inputs, outputs = 6, 4
    loss = staticmethod(softmax_cross_entropy)
    baseline = Baseline(loss=math.log(4), error=0.75, smallest_error=0.75)

    def draw(
        self, rng: np.random.Generator, batches: int, batch_size: int, lengths: NDArray | None = None
    ) -> tuple[NDArray, NDArray]:
        L = per_batch(lengths, self.steps)
        w, late = L // 10, self.steps - L
        symbols = distractors(rng, (batches, self.steps, batch_size))
        first, second = (
            late + w + rng.integers(w, size=(batches, 1, batch_size)),
            late + 5 * L // 10 + rng.integers(w, size=(batches, 1, batch_size)),
        )
        v0, v1 = rng.integers(2, size=(2, batches, 1, batch_size))
        np.put_along_axis(symbols, first, (A + v0).astype(np.uint8), axis=1)
        np.put_along_axis(symbols, second, (A + v1).astype(np.uint8), axis=1)
        return symbols, v0 + 2 * v1
