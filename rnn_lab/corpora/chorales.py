"""Bach's chorales as piano rolls, from the corpus that the PyPI package music21 brings along (extra `[music]`).

The scores of four parts, at sounding pitch, without repeats, sampled at eighth notes: a key is down in a frame if a note sounds at its
beginning. 88 keys, the lowest A (MIDI 21) first. Pieces follow one another by BWV number, one silent frame after each. A piece belongs to
a part of the corpus by the whole number of its BWV: it ends in 8: validation; in 9: test; else training. So no cantata is in two parts.

Licence: music21's code is BSD. Of its corpus music21/corpus/license.txt says that the music is out of copyright in the United States
to the best of their knowledge, and that the encodings are distributed with the encoders' permission, some with restrictions on
commercial use. Hence nothing of it is in this repository: it is read from the user's own installation.
"""

import importlib.util
import os
import re
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnn_lab.corpora.base import Corpus

KEYS, LOWEST = 88, 21
FRAMES_A_QUARTER = 2
PARTS = 4


def installed() -> bool:
    """Whether music21 is there; asked without importing it."""
    return importlib.util.find_spec("music21") is not None


@cache
def corpus() -> Corpus:
    """Parsing all scores takes minutes, once: the rolls are kept in the user's cache directory, or not, where that cannot be written."""
    file = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "rnn_lab")
    file /= f"chorales-music21-{version('music21')}.npz"
    try:
        with np.load(file) as kept:
            names, lengths, rolls = kept["names"], kept["lengths"], np.unpackbits(kept["rolls"], axis=1)[:, :KEYS]
    except (OSError, ValueError, KeyError):
        print("reading Bach's chorales, once for this machine: some minutes", file=sys.stderr, flush=True)
        pieces = _parsed()
        names, lengths = np.array(list(pieces)), np.array([len(roll) for roll in pieces.values()])
        rolls = np.concatenate(list(pieces.values()))
        _keep(file, names, lengths, np.packbits(rolls, axis=1))
    return of_pieces(dict(zip(map(str, names), np.split(rolls, np.cumsum(lengths)[:-1]), strict=True)))


def of_pieces(pieces: dict[str, NDArray]) -> Corpus:
    """The corpus of rolls (frames, keys) by name, "bwv10.7"."""
    parts: dict[str, list[NDArray]] = {"train": [], "valid": [], "test": []}
    for name in sorted(pieces, key=lambda name: (bwv(name), name)):
        last = bwv(name) % 10
        part = parts["valid" if last == 8 else "test" if last == 9 else "train"]
        part += [pieces[name], np.zeros((1, KEYS), np.uint8)]
    train, valid, test = (np.concatenate([np.zeros((0, KEYS), np.uint8), *own]) for own in parts.values())
    about: dict[str, str | int] = {"pieces": len(pieces), "frames": len(train) + len(valid) + len(test)}
    return Corpus(train, valid, test, KEYS, about | {"frames_a_quarter": FRAMES_A_QUARTER})


def bwv(name: str) -> int:
    """The whole number of a name like bwv10.7 or bwv36.4-2."""
    found = re.search(r"\d+", name)
    assert found is not None, name
    return int(found[0])


def roll(score: Any) -> NDArray:
    """The frames (n, keys) of a music21 score."""
    score = score.toSoundingPitch()
    frames = np.zeros((int(np.ceil(score.highestTime * FRAMES_A_QUARTER)), KEYS), np.uint8)
    for note in score.flatten().notes:
        start, end = note.offset * FRAMES_A_QUARTER, (note.offset + note.quarterLength) * FRAMES_A_QUARTER
        for pitch in note.pitches:
            if 0 <= pitch.midi - LOWEST < KEYS:
                frames[int(np.ceil(start)) : int(np.ceil(end)), pitch.midi - LOWEST] = 1
    return frames


def _parsed() -> dict[str, NDArray]:
    from music21 import converter, corpus  # pyright: ignore[reportMissingImports]

    files = sorted(Path(str(file)) for file in corpus.getComposer("bach"))
    scores = ((file.stem, converter.parse(file, forceSource=True)) for file in files if re.match(r"bwv\d", file.stem))
    return {name: roll(score) for name, score in scores if len(score.parts) == PARTS}  # pyright: ignore[reportAttributeAccessIssue]


def _keep(file: Path, names: NDArray, lengths: NDArray, rolls: NDArray) -> None:
    """Atomically, so that two processes may do so at once."""
    temporary = file.with_name(f".{os.getpid()}-{file.name}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(temporary, names=names, lengths=lengths, rolls=rolls)
        os.replace(temporary, file)
    except OSError as error:
        print(f"{file}: not kept ({error.strerror}); the next process reads the scores again", file=sys.stderr)
