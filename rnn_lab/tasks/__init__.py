"""Tasks: each knows how to sample itself, its sizes, its loss, when an example counts as wrong, and its trivial baseline."""

from rnn_lab.tasks.addition import Addition
from rnn_lab.tasks.base import Baseline, Task
from rnn_lab.tasks.copying import Copying
from rnn_lab.tasks.memorization import Memorization
from rnn_lab.tasks.multiplication import Multiplication
from rnn_lab.tasks.random_permutation import RandomPermutation
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

__all__ = [
    "TASKS",
    "Addition",
    "Baseline",
    "Copying",
    "Memorization",
    "Multiplication",
    "RandomPermutation",
    "Task",
    "TemporalOrder",
    "TemporalOrder3Bit",
]
