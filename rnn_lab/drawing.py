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


def packed(rng: Rng) -> NDArray:
    """The state of a PCG64 generator as six uint64."""
    state = rng.bit_generator.state
    numbers = (*divmod(state["state"]["state"], 2**64), *divmod(state["state"]["inc"], 2**64))
    return np.array([*numbers, state["has_uint32"], state["uinteger"]], np.uint64)


def unpacked(state: NDArray) -> dict[str, Any]:
    """The same as NumPy has it."""
    high, low, inc_high, inc_low, has_uint32, uinteger = map(int, state)
    numbers = {"state": high * 2**64 + low, "inc": inc_high * 2**64 + inc_low}
    return {"bit_generator": "PCG64", "state": numbers, "has_uint32": has_uint32, "uinteger": uinteger}


class Recipe(NamedTuple):
    """What is drawn. numbers: the dtype of inputs and targets that are numbers."""

    task: Task
    batch_size: int
    numbers: np.dtype

    def draw(self, rng: Rng) -> tuple[NDArray, NDArray, NDArray]:
        """A run's next block: x (BLOCK, T, batch, ...), y (BLOCK, L, batch, ...) and how many of the T steps each mini-batch sits out."""
        lengths = self.task.lengths(rng, BLOCK)
        late = np.zeros(BLOCK, np.int64) if lengths is None else self.task.steps - lengths
        x, y = map(self.typed, self.task.draw(rng, BLOCK, self.batch_size, lengths))
        return x, y, late

    def typed(self, z: NDArray) -> NDArray:
        """Numbers in the program's dtype, symbols and classes as they are."""
        return z.astype(self.numbers, copy=False) if z.dtype.kind == "f" else z

    def draw_all(self, rngs: Sequence[Rng]) -> list[NDArray]:
        """The same of every run, stacked."""
        return [np.stack(z) for z in zip(*map(self.draw, rngs), strict=True)]


class Drawers:
    """Processes that draw, a share of the runs each, into memory that they share with this one."""

    def __init__(self, recipe: Recipe, like: list[NDArray], states: NDArray):
        """like: a block of all runs.  states: of their generators, `packed`."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["rnn_lab.drawing"])
        shared = [(context.RawArray("b", z.nbytes), z.dtype, z.shape) for z in (*like, states)]
        *self._block, self.states = _arrays(shared)
        self.states[:] = states
        number = max(1, len(os.sched_getaffinity(0)) - 2)
        self._shares = np.array_split(np.arange(len(states)), number)
        self._pool = ProcessPoolExecutor(number, context, _begin, (recipe, shared))

    def draw_all(self) -> list[NDArray]:
        """The next block of every run, in memory that the next call overwrites; `states` go on."""
        list(self._pool.map(_draw, self._shares))
        return self._block


def can_have_processes() -> bool:
    """A worker of the engine `processes` cannot."""
    return not multiprocessing.current_process().daemon


def _arrays(shared: list[tuple[Any, np.dtype, tuple[int, ...]]]) -> list[NDArray]:
    return [np.frombuffer(memory, dtype).reshape(shape) for memory, dtype, shape in shared]


class _Own:
    """Of a process that draws: what, where to, and a generator to take on the states of runs."""

    recipe: Recipe
    block: list[NDArray]
    states: NDArray
    rng: Rng


def _begin(recipe: Recipe, shared: list[tuple[Any, np.dtype, tuple[int, ...]]]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal
    _Own.recipe, _Own.rng, (*_Own.block, _Own.states) = recipe, np.random.default_rng(0), _arrays(shared)
    threading.Thread(target=_end_with_the_other, daemon=True).start()


def _end_with_the_other() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    wait([parent.sentinel])
    os._exit(0)


def _draw(share: NDArray) -> None:
    """Fills the runs' places in the block, and moves their states."""
    for run in share:
        _Own.rng.bit_generator.state = unpacked(_Own.states[run])
        for place, drawn in zip(_Own.block, _Own.recipe.draw(_Own.rng), strict=True):
            place[run] = drawn
        _Own.states[run] = packed(_Own.rng)
