"""Temporal order of three symbols (P13, section 4.1; after task 6b of Hochreiter & Schmidhuber 1997)."""

import math

import numpy as np
from numpy.typing import NDArray

from rnn_lab.losses import softmax_cross_entropy
from rnn_lab.tasks.base import Baseline, Task, per_batch
from rnn_lab.tasks.temporal_order import A, distractors


class TemporalOrder3Bit(Task):
    """Three symbols, each A or B, in a stream of distractors: in which order did they come?

    Six one-hot symbols. Steps are filled uniformly with the four distractors c d e f; the three A/B stand at w + randint(w),
    3L//10 + randint(w) and 6L//10 + randint(w), w = L // 10 (0-based). The class is v0 + 2 v1 + 4 v2 with v = 0 for A, 1 for B.
    Softmax cross entropy at the last step; solved when less than 1 % of fresh sequences are wrong.

    Worked example, L = 10 (so w = 1, positions 1, 3 and 6):  c B d A f c B e c d  ->  BAB, class 1 + 4 = 5.

    Trivial baseline: the eight classes are equally likely, so the best constant prediction is uniform: loss -log(1/8) = ln 8 nats,
    error 7/8 (no constant errs less).
    """

    shortest = 10
    inputs, outputs = 6, 8
    loss = staticmethod(softmax_cross_entropy)
    baseline = Baseline(loss=math.log(8), error=0.875, smallest_error=0.875)

    def draw(
        self, rng: np.random.Generator, batches: int, batch_size: int, lengths: NDArray | None = None
    ) -> tuple[NDArray, NDArray]:
        L = per_batch(lengths, self.steps)
        w, late = L // 10, self.steps - L
        symbols = distractors(rng, (batches, self.steps, batch_size))
        v = rng.integers(2, size=(3, batches, 1, batch_size))
        for start, bit in zip((w, 3 * L // 10, 6 * L // 10), v, strict=True):
            place = late + start + rng.integers(w, size=(batches, 1, batch_size))
            np.put_along_axis(symbols, place, (A + bit).astype(np.uint8), axis=1)
        return symbols, v[0] + 2 * v[1] + 4 * v[2]
