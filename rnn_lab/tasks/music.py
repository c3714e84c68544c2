"""Polyphonic music as piano rolls (P13, section 4.2; after Boulanger-Lewandowski, Bengio & Vincent 2012)."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rnn_lab.losses import bernoulli_cross_entropy
from rnn_lab.tasks.streams import Streams


class Music(Streams):
    """Which of 88 keys are down in the next frame?

    The pieces: see rnn_lab.corpora.chorales. One input and one output a key. Cross entropy of independent Bernoullis, its sum over the
    keys, at every step: the negative log-likelihood a step, in nats. A step is wrong if any key is, where its output says more likely down
    than up. Pieces follow one another with a silent frame between; that and the first chord of a piece are to be predicted, too.

    Worked example, three keys of a chord that moves, frame by frame (ahead = 1):
        input   x.x  x.x  .xx
        target  x.x  .xx  ...

    Baselines: each key's frequency p = (n_down + 1) / (n + 2) in the training part; and its frequency given whether the key itself is down
    now, smoothed by that: (n_now,down + p) / (n_now + 1).
    """

    symbols = False
    loss = staticmethod(bernoulli_cross_entropy)

    def as_numbers(self, x: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
        return x.astype(np.float32), y.astype(np.float32)

    def wrong_steps(self, o: Tensor, y: Tensor) -> Tensor:
        return ((o > 0) != (y > 0)).any(-1)

    def counted(self, part: NDArray) -> tuple[float, float, float, float]:
        before, after = self.corpus.train[: -self.ahead], self.corpus.train[self.ahead :].astype(float)
        p = (after.sum(0) + 1) / (len(after) + 2)
        now = np.stack([before == 0, before == 1]).astype(float)  # (state, n, keys)
        given = ((now * after).sum(1) + p) / (now.sum(1) + 1)
        x, y = part[: -self.ahead], part[self.ahead :]

        def loss(q: NDArray) -> float:
            return float(-np.log(np.where(y == 1, q, 1 - q)).sum(-1).mean())

        right = np.unique(y, axis=0, return_counts=True)[1].max()
        error = (y != (p > 0.5)).any(-1).mean()
        return loss(p), float(error), float(1 - right / len(y)), loss(np.where(x == 1, given[1], given[0]))
