"""What a corpus is."""

from typing import NamedTuple

from numpy.typing import NDArray


class CorpusError(ValueError):
    """A corpus that cannot be read; the message is one line."""


class Corpus(NamedTuple):
    """One long sequence a part, all uint8: symbols (n,), or frames of keys that are down or not (n, keys).

    size: how many symbols or keys there are.  about: what a run's record says of it (plain texts and numbers).
    """

    train: NDArray
    valid: NDArray
    test: NDArray
    size: int
    about: dict[str, str | int]
