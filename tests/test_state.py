"""A run that goes on from its state, wherever that was taken, is the run that was never interrupted, bit for bit."""

import numpy as np
import pytest
from oracle import make_config

from rnn_lab.training import Snapshot, Training

CASES = [
    {"clip.name": "norm", "clip.threshold": 0.1},
    {"clip.name": "autoclip", "clip.percentile": 30.0, "optimizer.name": "momentum"},
    {"optimizer.name": "adam", "optimizer.lr": 0.003, "regularizer.name": "omega"},
    {"optimizer.name": "rmsprop", "clip.name": "agc", "model.layers": 2},
    {"task.name": "addition", "task.length": 20, "optimizer.name": "sgd"},  # runs of different true length
    {"task.length_range": [10, 14], "training.truncation": 4},
    {"probe.smoothness_every": 3, "eval.every": 7, "eval.sequences": 100, "training.dtype": "float64"},
]


def configs(case: dict, seeds: tuple[int, ...]):
    common = {"task.length": 10, "model.hidden": 50, "training.updates": 40, "training.log_every": 4}
    return [make_config(common | case | {"seed": seed}) for seed in seeds]


def rest_of(training: Training) -> list[Snapshot]:
    found = []
    while not training.done:
        found += list(training.advance())
    return found


def rows(snapshots: list[Snapshot], run: int) -> list[tuple]:
    """A run's rows as bytes."""
    return [
        (s.step, s.late[run], *((name, v[run].tobytes()) for name, v in (s.scalars | s.timesteps).items()))
        for s in snapshots
        if s.runs[run]
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda c: next(iter(c.values())) if c else "")
@pytest.mark.parametrize("stop", [1, 15, 16, 17, 39])
def test_a_run_goes_on_from_its_state_in_any_program(case, stop):
    """Also where a block of mini-batches ends, and with other neighbours than before."""
    whole = rows(rest_of(Training(configs(case, (5,)))), 0)
    begun = Training(configs(case, (4, 5)))
    before = [s for _ in range(stop) for s in begun.advance()]
    resumed = Training(configs(case, (5,)))
    resumed.restore([begun.state()[1]])
    assert rows(before, 1) + rows(rest_of(resumed), 0) == whole
    assert whole[-1][0] == 40


@pytest.mark.parametrize("case", CASES, ids=lambda c: next(iter(c.values())) if c else "")
def test_some_runs_of_a_program_go_on_without_the_others(case):
    begun = Training(configs(case, (3, 4, 5)))
    before = [s for _ in range(18) for s in begun.advance()]
    after = rest_of(begun.part([2, 0]))
    for was, now, seed in ((0, 1, 3), (2, 0, 5)):
        assert rows(before, was) + rows(after, now) == rows(rest_of(Training(configs(case, (seed,)))), 0)


def test_a_state_is_a_copy_and_what_is_taken_after_it_does_not_change_it():
    training = Training(configs({"optimizer.name": "adam"}, (0,)))
    list(training.advance())
    [state] = training.state()
    theta = state["tensors"][0].clone()
    rest_of(training)
    assert np.array_equal(state["tensors"][0].numpy(), theta.numpy())
    assert not np.array_equal(training.theta.flat[0].numpy(), theta.numpy())
