"""Mini-batches ahead of time: while a GPU trains on one block the next is drawn, for hundreds of runs by several processes.

Which process draws changes nothing: a run's generator goes where its mini-batches are drawn, and comes back.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnn_lab.tasks import Task

BLOCK = 16  # mini-batches drawn at a time; a constant, so that a run's draws do not depend on the program it is in
FEW = 64  # runs that one process draws for as fast as a GPU trains on them, or nearly so

Rng = np.random.Generator


class Recipe(NamedTuple):
    """What is drawn. numbers: the dtype of inputs and targets that are numbers."""

    task: Task
    batch_size: int
    numbers: np.dtype

    def draw(self, rng: Rng) -> tuple[NDArray, NDArray, NDArray]:
        """A run's next block: x (BLOCK, T, batch, ...), y (BLOCK, L, batch, ...) and how many of the T steps each mini-batch sits out."""
        lengths = self.task.lengths(rng, BLOCK)
        late = np.zeros(BLOCK, np.int64) if lengths is None else self.task.steps - lengths
        x, y = (
            z.astype(self.numbers, copy=False) if z.dtype.kind == "f" else z
            for z in self.task.draw(rng, BLOCK, self.batch_size, lengths)
        )
        return x, y, late

    def draw_all(self, rngs: Sequence[Rng]) -> list[NDArray]:
        """The same of every run, stacked."""
        return [np.stack(z) for z in zip(*map(self.draw, rngs), strict=True)]


class Drawers:
    """Processes that draw, a share of the runs each, into memory that they share with this one."""

    def __init__(self, recipe: Recipe, like: list[NDArray]):
        """like: a block of all runs."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["rnn_lab.drawing"])
        shared = [(context.RawArray("b", z.nbytes), z.dtype, z.shape) for z in like]
        self._block, self._number = _arrays(shared), max(1, len(os.sched_getaffinity(0)) - 2)
        self._pool = ProcessPoolExecutor(self._number, context, _begin, (recipe, shared))

    def draw_all(self, rngs: Sequence[Rng]) -> list[NDArray]:
        """The next block of every run, in memory that the next call overwrites."""
        shares = np.array_split(np.arange(len(rngs)), self._number)
        states = [[rngs[run].bit_generator.state for run in share] for share in shares]
        for share, after in zip(shares, self._pool.map(_draw, shares, states), strict=True):
            for run, state in zip(share, after, strict=True):
                rngs[run].bit_generator.state = state
        return self._block


def can_have_processes() -> bool:
    """A worker of the engine `processes` cannot."""
    return not multiprocessing.current_process().daemon


def _arrays(shared: list[tuple[Any, np.dtype, tuple[int, ...]]]) -> list[NDArray]:
    return [np.frombuffer(memory, dtype).reshape(shape) for memory, dtype, shape in shared]


class _Own:
    """Of a process that draws: what, where to, and generators to take on the states of runs."""

    recipe: Recipe
    block: list[NDArray]
    rngs: list[Rng]


def _begin(recipe: Recipe, shared: list[tuple[Any, np.dtype, tuple[int, ...]]]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal
    _Own.recipe, _Own.block, _Own.rngs = recipe, _arrays(shared), []
    threading.Thread(target=_end_with_the_other, daemon=True).start()


def _end_with_the_other() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    wait([parent.sentinel])
    os._exit(0)


def _draw(share: NDArray, states: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fills the runs' places in the block; the generators' states after that."""
    while len(_Own.rngs) < len(share):
        _Own.rngs.append(np.random.default_rng(0))
    for run, rng, state in zip(share, _Own.rngs, states, strict=False):
        rng.bit_generator.state = state
        for place, drawn in zip(_Own.block, _Own.recipe.draw(rng), strict=True):
            place[run] = drawn
    return [rng.bit_generator.state for rng in _Own.rngs[: len(share)]]
