"""Natural data read as parallel streams, the state carried over from mini-batch to mini-batch (P13, section 4.2)."""

from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rnn_lab.corpora import Corpus
from rnn_lab.tasks.base import Task

STREAMS = 20  # through a part of the corpus that is evaluated


class CorpusBaseline(NamedTuple):
    """Baseline of the validation part, by two predictors that have only counted the training part.

    loss, error: of the one that ignores its input (the symbols' or keys' frequencies).  smallest_error: of any constant.
    given_last_loss: of the one that knows the symbol (each key's state) at hand, `ahead` steps before the target: bigrams for ahead = 1.
    test_loss, given_last_test_loss: theirs on the test part. Losses in nats a step.
    """

    loss: float
    error: float
    smallest_error: float
    test_loss: float
    given_last_loss: float
    given_last_test_loss: float


class Streams(Task):
    """What comes `ahead` steps later? The target of step t is y_t = x_{t+ahead}; every step has a loss.

    Training: the training part, n long, is read in a circle by `batch_size` streams that begin n / batch_size apart. A mini-batch is the
    next `length` steps of each of them, and the state that one ends with is the one that the next begins with; gradients end at its first
    step. It begins at a place that the run's seed chooses; an epoch is over when n steps have been read. Since a stream goes on where the
    next one began, there is no jump but the one from the end of the part to its beginning.
    Evaluation: a whole part, once, by STREAMS streams from h_0 = 0, the state carried over; the mean over all steps (of STREAMS (n - ahead)
    // STREAMS).
    What reads a mini-batch once more (probe.smoothness_every, lyapunov_every and memory_every; flossing) does so from h_0 = 0.
    The error is the fraction of steps that are wrong.
    """

    shortest = 1
    carries_state = True

    def __init__(self, corpus: Corpus, length: int, ahead: int = 1):
        super().__init__(length)
        self.corpus, self.ahead = corpus, ahead
        self.inputs = self.outputs = corpus.size
        self.loss_steps = self.steps

    @abstractmethod
    def as_numbers(self, x: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
        """Symbols or frames (uint8) in the types that x and y of a mini-batch have."""

    @abstractmethod
    def wrong_steps(self, o: Tensor, y: Tensor) -> Tensor:
        """Which steps are wrong: (..., outputs) and targets -> (...), bool."""

    @abstractmethod
    def counted(self, part: NDArray) -> tuple[float, float, float, float]:
        """Of predictors that have counted the training part, on another: loss and error of the one that ignores its input, the smallest
        error of any constant, and the loss of the one that knows the symbol (each key's state) at hand.
        """

    @cached_property
    def _baseline(self) -> CorpusBaseline:
        (loss, error, smallest, given), (test_loss, _, _, given_test) = map(self.counted, self.corpus[1:3])
        return CorpusBaseline(loss, error, smallest, test_loss, given, given_test)

    def baseline_of(self, reduction: str) -> CorpusBaseline:
        found, steps = self._baseline, self.steps if reduction == "sum" else 1
        return found._replace(**{key: x * steps for key, x in found._asdict().items() if key.endswith("loss")})

    def wrong(self, o: Tensor, y: Tensor, late: Tensor | None = None) -> Tensor:
        """The fraction of its steps that each stream has wrong, (*runs, batch), float64."""
        return self.wrong_steps(o, y).double().mean(-2)

    def few(self, batch_size: int) -> str | None:
        """What the corpus has too few of for mini-batches of this size; None: enough of all."""
        needed = {"train": batch_size * self.length, "valid": STREAMS + self.ahead, "test": STREAMS + self.ahead}
        for part, least in needed.items():
            if (n := len(getattr(self.corpus, part))) < least:
                return f"its {part} part has {n} steps, and needs {least}"
        return None

    def start(self, rng: np.random.Generator) -> int:
        """Where a run's first stream begins."""
        return int(rng.integers(len(self.corpus.train)))

    def epoch(self, step: int, batch_size: int) -> int:
        """In which epoch, 1, 2 ..., mini-batch step + 1 begins."""
        return 1 + step * batch_size * self.length // len(self.corpus.train)

    def read(self, start: int, first: int, batches: int, batch_size: int) -> tuple[NDArray, NDArray]:
        """Mini-batches first, first + 1, ... (0-based) of a run: x and y as `draw` gives them."""
        n, T = len(self.corpus.train), self.length
        streams = start + np.arange(batch_size) * n // batch_size
        times = (np.arange(first, first + batches)[:, None] * T + np.arange(T))[..., None]
        x, y = (self.corpus.train[(times + streams + later) % n] for later in (0, self.ahead))
        return self.as_numbers(x, y)

    def draw(
        self, rng: np.random.Generator, batches: int, batch_size: int, lengths: NDArray | None = None
    ) -> tuple[NDArray, NDArray]:
        """The first mini-batches from a new place."""
        return self.read(self.start(rng), 0, batches, batch_size)

    def chunks(self, part: NDArray) -> Iterator[tuple[NDArray, NDArray, int]]:
        """A part of the corpus for evaluation: x and y, (T, STREAMS[, keys]), and how many of the T steps there are; behind them: zeros."""
        steps = (len(part) - self.ahead) // STREAMS
        x, y = (part[later : later + STREAMS * steps].reshape(STREAMS, steps, -1) for later in (0, self.ahead))
        for first in range(0, steps, self.length):
            count = min(self.length, steps - first)
            padded = np.zeros((2, self.length, STREAMS, x.shape[-1]), part.dtype)
            padded[:, :count] = [z[:, first : first + count].swapaxes(0, 1) for z in (x, y)]
            yield *self.as_numbers(*padded.reshape(2, self.length, STREAMS, *part.shape[1:])), count
