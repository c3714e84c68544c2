"""What a task is."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rnn_lab.losses import Loss


class Baseline(NamedTuple):
    """What a predictor that ignores its input reaches: loss and error of the loss-optimal constant (nats, mean over the loss's steps)."""

    loss: float
    error: float


class Task(ABC):
    """A distribution over labelled sequences.

    inputs, outputs: sizes of x_t and o_t.  steps: T.  loss_steps: L, how many of the last steps carry a loss (1 or T).
    """

    shortest: ClassVar[int]  # smallest length that the recipe allows
    solved_below: ClassVar[float] = 0.01  # an error below it counts as solved
    inputs: int
    outputs: int
    steps: int
    loss_steps: int
    loss: Loss
    baseline: Baseline

    @abstractmethod
    def __init__(self, length: int): ...

    @abstractmethod
    def sample(self, rng: np.random.Generator, batches: int, batch_size: int) -> tuple[NDArray, NDArray]:
        """x (batches, T, batch, inputs), one-hot as uint8 or real as float32, and the targets y (batches, L, batch[, outputs])."""

    @abstractmethod
    def wrong(self, o: Tensor, y: Tensor) -> Tensor:
        """Which examples are wrong, (*runs, batch), from outputs (*runs, L, batch, outputs) and targets."""
