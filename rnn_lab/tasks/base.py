"""What a task is."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rnn_lab.losses import Loss, before_start


class Baseline(NamedTuple):
    """What a predictor that ignores its input reaches: loss and error of the loss-optimal constant (nats, mean over the loss's steps).

    smallest_error: the smallest error that any constant reaches; another constant than the loss-optimal one may err less.
    A constant is the same for every sequence; where every step has a loss it may depend on t.
    """

    loss: float
    error: float
    smallest_error: float


class Task(ABC):
    """A distribution over labelled sequences of length L (`task.length`), or of an L drawn for each mini-batch from `length`..`longest`.

    inputs, outputs: sizes of x_t and o_t.  steps: T, of the longest sequence.  loss_steps: how many of the last ones carry a loss, 1 or T.
    The *true length* l of a mini-batch may be shorter than T: its sequences then fill the last l of T steps (right-aligned), and what
    stands in the T - l steps before is never seen, since the state is held at 0 there.
    """

    shortest: ClassVar[int]  # smallest length that the recipe allows
    options: ClassVar[tuple[str, ...]] = ()  # further keys of the config group that the constructor takes
    solved_below: ClassVar[float] = 0.01  # an error below it counts as solved
    symbols: ClassVar[bool] = True  # inputs are one-hot
    carries_state: ClassVar[bool] = (
        False  # a mini-batch begins with the state that the one before it ended with; see Streams
    )
    inputs: int
    outputs: int
    loss_steps: int = 1
    loss: Loss
    baseline: Baseline

    def __init__(self, length: int, longest: int | None = None):
        self.length, self.longest = length, longest or length
        self.steps = self.true_length(self.longest)

    def true_length(self, L: Any) -> Any:
        """The number of steps (the largest, where it varies) of sequences of task length L, a number or an array."""
        return L

    def lengths(self, rng: np.random.Generator, batches: int) -> NDArray | None:
        """The true length l of each mini-batch, (batches,), drawn before its sequences; None: T for all, and nothing is drawn."""
        if self.length == self.longest:
            return None
        return self.true_length(self.draw_L(rng, batches))

    def draw_L(self, rng: np.random.Generator, batches: int) -> NDArray:
        """L of each mini-batch, uniform on length..longest; nothing is drawn where they are equal."""
        if self.length == self.longest:
            return np.full(batches, self.length)
        return rng.integers(self.length, self.longest + 1, size=batches)

    @abstractmethod
    def draw(
        self, rng: np.random.Generator, batches: int, batch_size: int, lengths: NDArray | None = None
    ) -> tuple[NDArray, NDArray]:
        """x, the symbols of one-hot inputs (batches, T, batch) as uint8 or numbers (batches, T, batch, inputs) as float32, and the
        targets y (batches, loss_steps, batch[, outputs]).

        lengths: the true length of each mini-batch; None: T.
        """

    def sample(
        self, rng: np.random.Generator, batches: int, batch_size: int, lengths: NDArray | None = None
    ) -> tuple[NDArray, NDArray]:
        """The same with x as the net sees it, (batches, T, batch, inputs): symbols one-hot, as uint8."""
        x, y = self.draw(rng, batches, batch_size, lengths)
        return (np.eye(self.inputs, dtype=np.uint8)[x] if x.dtype == np.uint8 else x), y

    def baseline_of(self, reduction: str) -> Any:
        """The baseline, or a tuple with its fields and more, with losses reduced over the steps like the objective: "mean" or "sum"."""
        return self.baseline

    def wrong(self, o: Tensor, y: Tensor, late: Tensor | None = None) -> Tensor:
        """Which examples are wrong, (*runs, batch): those whose largest output is another class, at any step that carries a loss.

        o: (*runs, loss_steps, batch, outputs), y: targets.  late: how many of the steps come before each run's own first, (*runs,).
        """
        wrong = o.argmax(-1) != y
        if late is not None and self.loss_steps > 1:
            wrong &= ~before_start(late, self.loss_steps)
        return wrong.any(-2)


def per_batch(lengths: NDArray | None, steps: int) -> int | NDArray:
    """The true lengths in a shape to compute positions with: T itself, or (batches, 1, 1)."""
    return steps if lengths is None else lengths[:, None, None]
