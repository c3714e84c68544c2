"""Noiseless memorisation (P13, section 4.1; after Martens & Sutskever 2011)."""

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnn_lab.losses import softmax_cross_entropy
from rnn_lab.tasks.base import Baseline, Task


class Memorization(Task):
    """A pattern, a long blank, a cue: give the pattern back.

    `positions` symbols of `values`, then T = `task.length` blanks, then the recall of `positions` steps: T + 2 positions steps in all.
    One-hot inputs: the values, blank, cue. The cue stands at 0-based step T + positions, where the first recalled symbol is already due;
    the input is blank after it. One-hot outputs: the values, blank; the target is blank before the recall. Softmax cross entropy at every
    step; an example is wrong if any of its steps is; solved when less than 1 % are.
    5-bit: positions=5, values=2; a batch of 32 is all 32 patterns (a larger one holds all of them as often as they fit, the rest of it
    is drawn at random). 20-bit: positions=10, values=5, patterns drawn at random.

    Worked example, positions = 3, values = 2, T = 4 (- blank, ! cue):
        input   0 1 1 - - - - ! - -
        target  - - - - - - - 0 1 1

    Trivial baseline: the constant (over patterns) may know the time, so the blanks are free and each recalled symbol costs ln values:
    loss positions ln(values) / (T + 2 positions) nats, the mean over the steps. It is wrong unless it guesses the whole pattern:
    1 - values^-positions, 31/32 for 5-bit (no constant errs less).
    """

    shortest = 1
    options = ("positions", "values")
    loss = staticmethod(softmax_cross_entropy)
    cue_before_recall = 0  # steps from the cue to the first recalled symbol

    def __init__(self, length: int, longest: int | None = None, positions: int = 5, values: int = 2):
        self.positions, self.values = positions, values
        super().__init__(length, longest)
        self.inputs, self.outputs, self.loss_steps = values + 2, values + 1, self.steps
        steps = [self.true_length(L) for L in range(self.length, self.longest + 1)]
        error = 1 - values**-positions
        self.baseline = Baseline(sum(positions * math.log(values) / n for n in steps) / len(steps), error, error)

    def true_length(self, L: Any) -> Any:
        return L + 2 * self.positions

    def baseline_of(self, reduction: str) -> Baseline:
        total = self.positions * math.log(self.values)
        return self.baseline._replace(loss=total) if reduction == "sum" else self.baseline

    def patterns(self, rng: np.random.Generator, batches: int, batch_size: int) -> NDArray:
        """(batches, positions, batch): every pattern as often as all of them fit into a mini-batch, the rest of it at random."""
        drawn = rng.integers(self.values, size=(batches, self.positions, batch_size))
        number = self.values**self.positions
        if copies := batch_size // number:
            every = np.array(list(itertools.product(range(self.values), repeat=self.positions)))
            drawn[..., : copies * number] = np.tile(every, (copies, 1)).T
        return drawn

    def draw(
        self, rng: np.random.Generator, batches: int, batch_size: int, lengths: NDArray | None = None
    ) -> tuple[NDArray, NDArray]:
        T, blank, cue = self.steps, self.values, self.values + 1
        pattern, recall = self.patterns(rng, batches, batch_size), T - self.positions
        x = np.full((batches, T, batch_size), blank, dtype=np.uint8)
        late = np.zeros(batches, int) if lengths is None else T - lengths
        np.put_along_axis(x, late[:, None, None] + np.arange(self.positions)[:, None], pattern, axis=1)
        x[:, recall - self.cue_before_recall] = cue
        y = np.full((batches, T, batch_size), blank)
        y[:, recall:] = pattern
        return x, y
