"""Tasks: each knows how to sample itself, its sizes, its loss, when an example counts as wrong, and its trivial baseline."""

from functools import cache

from rnn_lab.corpora import chorales, text
from rnn_lab.tasks.addition import Addition
from rnn_lab.tasks.base import Baseline, Task
from rnn_lab.tasks.characters import Characters
from rnn_lab.tasks.copying import Copying
from rnn_lab.tasks.memorization import Memorization
from rnn_lab.tasks.multiplication import Multiplication
from rnn_lab.tasks.music import Music
from rnn_lab.tasks.random_permutation import RandomPermutation
from rnn_lab.tasks.streams import Streams
from rnn_lab.tasks.temporal_order import TemporalOrder
from rnn_lab.tasks.temporal_order_3bit import TemporalOrder3Bit

TASKS: dict[str, type[Task]] = {
    "temporal_order": TemporalOrder,
    "temporal_order_3bit": TemporalOrder3Bit,
    "addition": Addition,
    "multiplication": Multiplication,
    "random_permutation": RandomPermutation,
    "memorization": Memorization,
    "copying": Copying,
}
OF_CORPORA: dict[str, type[Streams]] = {"characters": Characters, "music": Music}


@cache
def of_corpus(name: str, path: str | None, length: int, ahead: int) -> Streams:
    """A task of OF_CORPORA; its corpus is read once a process. path: of a text, None: the default one. Raises CorpusError."""
    return OF_CORPORA[name](chorales.corpus() if name == "music" else text.corpus(path), length, ahead)


__all__ = [
    "OF_CORPORA",
    "TASKS",
    "Addition",
    "Baseline",
    "Characters",
    "Copying",
    "Memorization",
    "Multiplication",
    "Music",
    "RandomPermutation",
    "Streams",
    "Task",
    "TemporalOrder",
    "TemporalOrder3Bit",
    "of_corpus",
]
