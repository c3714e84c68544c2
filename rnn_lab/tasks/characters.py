"""Characters of a text, the next one or one further ahead (P13, section 4.2)."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rnn_lab.losses import softmax_cross_entropy
from rnn_lab.tasks.streams import Streams


class Characters(Streams):
    """Which character comes `ahead` = 1 (or 5, ...) steps later?

    The text: see rnn_lab.corpora.text. Inputs and outputs one-hot: the characters of the training part, and one symbol for any other.
    Softmax cross entropy at every step, in nats: divided by ln 2 it is bits a character. The error is the fraction
    of characters that are wrong.

    Worked example, ahead = 1, a mini-batch of 2 streams of 4 steps of a training part "In the beginning", the first one from its 1st place:
        input   I n _ t   b e g i
        target  n _ t h   e g i n     the next mini-batch begins with "he b" and "nnin"

    Baselines: frequencies p(y) = (n_y + 1) / (n + symbols) counted in the training part; and pairs that lie `ahead` apart, smoothed by
    those: p(y | x) = (n_xy + p(y)) / (n_x + 1).
    """

    loss = staticmethod(softmax_cross_entropy)

    def as_numbers(self, x: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
        return x, y.astype(np.int64)

    def wrong_steps(self, o: Tensor, y: Tensor) -> Tensor:
        return o.argmax(-1) != y

    def counted(self, part: NDArray) -> tuple[float, float, float, float]:
        train, size = self.corpus.train.astype(int), self.inputs
        p = (np.bincount(train, minlength=size) + 1) / (len(train) + size)
        pairs = np.bincount(train[: -self.ahead] * size + train[self.ahead :], minlength=size**2).reshape(size, size)
        given = (pairs + p) / (pairs.sum(1, keepdims=True) + 1)
        x, y = part[: -self.ahead], part[self.ahead :]
        loss, loss_given = -np.log(p[y]).mean(), -np.log(given[x, y]).mean()
        shares = np.bincount(y, minlength=size) / len(y)
        return float(loss), float(1 - shares[p.argmax()]), float(1 - shares.max()), float(loss_given)
