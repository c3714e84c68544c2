"""Drawing ahead: in whatever process, the same numbers."""

import numpy as np
import pytest
import torch

from rnn_lab import vectorize
from rnn_lab.drawing import Drawers, packed, unpacked
from rnn_lab.tasks import TASKS, Task
from rnn_lab.tasks.temporal_order import distractors
from rnn_lab.vectorize import MiniBatches


def mini_batches(task: Task, runs: int = 5) -> MiniBatches:
    return MiniBatches(task, [vectorize.streams(seed)[1] for seed in range(runs)], 4, torch.float32, "cpu")


@pytest.mark.parametrize("used", [0, 1, 2])
def test_distractors_are_numpys_own_draws(used):
    """And leave the generator where those leave it, half a word included."""
    ours, theirs = np.random.default_rng(3), np.random.default_rng(3)
    for rng in (ours, theirs):
        rng.integers(9, size=used)
    for shape in ((16, 10, 7), (3,), (5, 1)):
        np.testing.assert_array_equal(distractors(ours, shape), theirs.integers(4, size=shape, dtype=np.uint8))
        assert ours.bit_generator.state == theirs.bit_generator.state


def test_a_generator_packed_is_itself():
    rng = np.random.default_rng(7)
    rng.integers(5, size=3, dtype=np.uint8)
    assert rng.bit_generator.state["has_uint32"]
    assert unpacked(packed(rng)) == rng.bit_generator.state


@pytest.mark.slow  # starts processes
@pytest.mark.parametrize("task", [TASKS["temporal_order"](20), TASKS["addition"](20, 40)], ids=["symbols", "numbers"])
def test_processes_draw_what_this_one_draws(task):
    """Inputs, targets, true lengths, and where the generators stand afterwards, from one block to the next."""
    here, there = mini_batches(task), mini_batches(task)
    here.advance()
    block = there._recipe.draw_all(there._rngs)
    drawers = Drawers(there._recipe, block, there._here())
    for _ in range(3):
        here._next_block()
        x, y, late = drawers.draw_all()
        np.testing.assert_array_equal(x, here.x)
        np.testing.assert_array_equal(y, here.y)
        np.testing.assert_array_equal(late, here._late)
        np.testing.assert_array_equal(drawers.states, here._here())
