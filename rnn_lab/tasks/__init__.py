"""Tasks: each knows how to sample itself, its sizes, its loss, when an example counts as wrong, and its trivial baseline."""

from rnn_lab.tasks.base import Baseline, Task
from rnn_lab.tasks.temporal_order import TemporalOrder

TASKS: dict[str, type[Task]] = {"temporal_order": TemporalOrder}

__all__ = ["TASKS", "Baseline", "Task", "TemporalOrder"]
