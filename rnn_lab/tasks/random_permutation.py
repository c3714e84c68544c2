"""Random permutation (P13, section 4.1; after task 2b of Hochreiter & Schmidhuber 1997)."""

import math

import numpy as np
from numpy.typing import NDArray

from rnn_lab.losses import softmax_cross_entropy
from rnn_lab.tasks.base import Baseline, Task, per_batch

SYMBOLS, KEYS = 100, 2  # symbols 0 and 1 are the keys, 2..99 the distractors


class RandomPermutation(Task):
    """The last symbol of a sequence is its first, and everything between is noise: predict the last.

    L + 1 symbols of 100, one-hot: the first is 0 or 1, the last is the same, the L - 1 between are uniform on 2..99. The net sees the first
    L; the target is symbol L + 1. Softmax cross entropy over 100 classes at the last step; solved when less than 1 % of fresh sequences
    are wrong.

    Worked example, L = 5:  the sequence is 1 17 80 2 56 1; the net sees 1 17 80 2 56, class 1.

    Trivial baseline: the target is 0 or 1, each with probability 1/2, so the best constant puts 1/2 on each and nothing on the others:
    loss ln 2 nats, error 1/2 (no constant errs less). An untrained net starts near ln 100.
    """

    shortest = 1
    inputs, outputs = SYMBOLS, SYMBOLS
    loss = staticmethod(softmax_cross_entropy)
    baseline = Baseline(loss=math.log(2), error=0.5, smallest_error=0.5)

    def draw(
        self, rng: np.random.Generator, batches: int, batch_size: int, lengths: NDArray | None = None
    ) -> tuple[NDArray, NDArray]:
        symbols = rng.integers(KEYS, SYMBOLS, size=(batches, self.steps, batch_size), dtype=np.uint8)
        key = rng.integers(KEYS, size=(batches, 1, batch_size))
        first = self.steps - per_batch(lengths, self.steps)
        np.put_along_axis(symbols, np.broadcast_to(first, key.shape), key.astype(np.uint8), axis=1)
        return symbols, key
