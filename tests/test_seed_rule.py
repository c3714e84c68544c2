"""The seed rule: same seed and shapes, same draws, whatever else differs; no two seeds, and no two streams of one, ever share a number."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from commands import SMALL, TRAIN, end, start
from oracle import make_config

from rnn_lab import vectorize
from rnn_lab.training import Training

BASE = {"seed": 4, "task.length": 10, "model.hidden": 6, "training.batch_size": 3, "training.updates": 40}
# What shall not move the data; those of SAME_NET not the initial parameters either.
SAME_NET: dict[str, dict[str, object]] = {
    "learning rate": {"optimizer.lr": 0.3},
    "optimizer": {"optimizer.name": "adam"},
    "clip": {"clip.name": "autoclip"},
    "Omega": {"regularizer.name": "omega"},
    "evaluation": {"eval.every": 1, "eval.sequences": 30},
    "cadences": {
        "training.log_every": 3,
        "probe.spectrum_every": 1,
        "probe.smoothness_every": 2,
        "probe.memory_every": 2,
    },
    "double sum": {"probe.contributions_every": 2},
    "truncation": {"training.truncation": 4},
    "more updates": {"training.updates": 500},
    "activation": {"model.activation": "relu"},
    "reduction": {"task.reduction": "sum"},
}
OTHER_NET: dict[str, dict[str, object]] = {
    "scale": {"init.scale": 3.0},
    "initialisation": {"init.name": "orthogonal"},
    "cell": {"model.name": "gru"},
    "size": {"model.hidden": 9, "model.layers": 2},
    "float64": {"training.dtype": "float64"},
}
BATCHES = vectorize.BLOCK + 5  # beyond a block


def drawn(values: dict[str, object], company: tuple[int, ...] = ()) -> tuple[np.ndarray, list[np.ndarray]]:
    """Initial parameters and the mini-batches of a run, which may share its program with others."""
    configs = [make_config(BASE | values), *(make_config(BASE | values | {"seed": seed}) for seed in company)]
    training, batches = Training(configs), []
    theta = training.theta.flat[0].numpy().copy()
    for _ in range(min(BATCHES, 35)):
        list(training.advance())
        batches += [part[0].double().numpy().copy() for part in training.batches.tensors()]
    return theta, batches


@pytest.fixture(scope="module")
def base() -> tuple[np.ndarray, list[np.ndarray]]:
    return drawn({})


@pytest.mark.parametrize("what", [*SAME_NET, *OTHER_NET])
def test_the_same_seed_draws_the_same_whatever_else_differs(base, what):
    theta, batches = drawn(SAME_NET.get(what) or OTHER_NET[what])
    for mine, theirs in zip(batches, base[1], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    if what in SAME_NET:
        np.testing.assert_array_equal(theta, base[0])


def test_the_company_changes_no_draw_and_another_seed_changes_all(base):
    theta, batches = drawn({}, company=(0, 5, 17))
    np.testing.assert_array_equal(theta, base[0])
    other_theta, other = drawn({"seed": 5})
    for mine, theirs, others in zip(batches, base[1], other, strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert not np.array_equal(mine, others)
    assert not np.isin(other_theta[other_theta != 0], theta).any()


def streams(seed: int) -> list[np.random.Generator]:
    """Every generator that a run of this seed may use: parameters, data, flossing, evaluations."""
    init, train, root = vectorize.streams(seed)
    keys = [(0,), (1,), (10,), (10, 0), (10, 100), (10, 200), (100,), (2**31,)]
    evaluations = [vectorize.evaluation_rng(root, *key) for key in keys]
    return [*init.spawn(2), init, train, *(vectorize.flossing_rng(seed, step) for step in (0, 1, 10)), *evaluations]


def test_no_two_streams_share_a_number():
    """64-bit draws, 100 of each stream of 200 seeds, large ones among them: a stream that ran into another would repeat some. (By chance
    two of 300,000 are equal once in 400 million such tests.)
    """
    seeds = [*range(150), *(2**k + offset for k in (31, 32, 33, 62) for offset in range(-6, 6))]
    numbers = [rng.integers(2**64, size=100, dtype=np.uint64) for seed in seeds for rng in streams(seed)]
    found = np.concatenate(numbers)
    assert len(np.unique(found)) == len(found) > 290_000


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["reference", "numba"])
def test_a_run_is_bitwise_repeatable_on_one_machine(tmp_path, kernel):
    """In processes of their own, alone or in company, whatever the environment says about threads."""
    files = []
    for n, more in enumerate((["seed=2"], ["-m", "seed=0,1,2"], ["seed=2"])):
        folder = tmp_path / str(n)
        folder.mkdir()
        arguments = [*more, *SMALL, "model.hidden=50", "training.batch_size=20", f"training.kernel={kernel}"]
        process = start(*arguments, cwd=folder, script=TRAIN, environment={"OMP_NUM_THREADS": str(1 + n % 2)})
        assert end(process, timeout=1800).status == 0
        [run] = [path for path in folder.glob("runs/default/*") if '"seed": 2' in _text(path)]
        files.append([(run / name).read_bytes() for name in ("steps.jsonl", "timesteps.f32")])
    assert all(one == other for one, other in pairwise(files))


def _text(path) -> str:
    return (path / "run.json").read_text() if (path / "run.json").exists() else ""


def test_one_thread_whoever_trains():
    """With more, PyTorch splits long sums by their number."""
    torch.set_num_threads(2)
    try:
        Training([make_config(BASE)])
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)
