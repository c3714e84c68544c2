"""Any text as a sequence of characters.

Its first 90 % are for training, the next 5 % for validation, the last 5 % for the test. The vocabulary is that of the training part (its
255 most frequent characters, where there are more), and one symbol more, the last, for all that isn't in it.
"""

import hashlib
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rnn_lab.corpora.base import Corpus, CorpusError

TRAIN, VALID = 0.9, 0.05
MOST = 255  # symbols are bytes, and one of them is the unknown


@cache
def corpus(path: str | None) -> Corpus:
    """The characters of a UTF-8 file; None: `python_topics`. Raises CorpusError. Read once a process."""
    return of_text(python_topics() if path is None else _read(path), "pydoc_data.topics" if path is None else path)


def of_text(text: str, name: str) -> Corpus:
    """The corpus of a text. Cost: 0.2 s a million characters."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    ends = [int(TRAIN * len(codes)), int((TRAIN + VALID) * len(codes))]
    counted = Counter(text[: ends[0]])
    vocabulary = sorted(sorted(counted, key=lambda c: (-counted[c], c))[:MOST])
    known = np.array([ord(c) for c in vocabulary], np.uint32)
    about = {
        "text": name,
        "characters": len(codes),
        "vocabulary": len(known) + 1,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    train, valid, test = (_symbols(part, known) for part in np.split(codes, ends))
    return Corpus(train, valid, test, len(known) + 1, about)


def _symbols(codes: NDArray, known: NDArray) -> NDArray:
    """The place of each character in the vocabulary, which is sorted; behind its end for one that isn't in it."""
    if not len(known):
        return np.zeros(len(codes), np.uint8)
    places = np.searchsorted(known, codes)
    found = known[np.minimum(places, len(known) - 1)] == codes
    return np.where(found, places, len(known)).astype(np.uint8)


def python_topics() -> str:
    """Python's reference manual as `help()` shows it, about half a million characters of English, which every CPython brings along
    (pydoc_data.topics, PSF licence). It differs from version to version of Python: a run's record has its checksum.
    """
    from pydoc_data import topics

    return "\n".join(text for _, text in sorted(topics.topics.items()))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(f"not a UTF-8 text (byte {error.start}: {error.reason})") from error
    except OSError as error:
        raise CorpusError(error.strerror or str(error)) from error
