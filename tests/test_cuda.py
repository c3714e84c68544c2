"""On a GPU: the same numbers as on a CPU, whatever is trained, measured or recorded."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from commands import SMALL, train
from oracle import make_config

from rnn_lab import cells, checkpoints, engines, recurrence, results
from rnn_lab.activations import ACTIVATIONS
from rnn_lab.config import Config, run_id
from rnn_lab.training import Snapshot, Training

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
    pytest.mark.filterwarnings("default"),  # what PyTorch says of its own libraries
]

BASE = {
    "task.length": 12, "model.hidden": 7, "training.batch_size": 5, "training.updates": 6, "training.log_every": 2,
    "training.dtype": "float64", "training.kernel": "reference", "tracker.name": "none", "optimizer.lr": 0.1,
}  # fmt: skip


class AntiSymmetric:
    def step(self, z, s, W):
        return s + 0.1 * torch.tanh(z + s @ (W - W.mT))


CASES: dict[str, dict[str, Any]] = {
    **{f"elman, {phi}": {"model.activation": phi, "model.layers": 2} for phi in ACTIVATIONS},
    "leaky": {"model.name": "leaky", "model.leak": 0.3},
    "lstm": {"model.name": "lstm", "model.layers": 2},
    "gru": {"model.name": "gru", "model.layers": 2},
    "a cell of one's own": {"model.name": "antisymmetric"},
    **{f"clip={clip}": {"clip.name": clip, "clip.threshold": 0.05} for clip in ("norm", "value", "agc", "autoclip")},
    **{f"optimizer={name}": {"optimizer.name": name} for name in ("momentum", "rmsprop", "adam")},
    "omega": {"regularizer.name": "omega", "model.layers": 2},
    "leaky, omega": {"regularizer.name": "omega", "model.name": "leaky", "model.leak": 0.3},
    "addition, right-aligned": {"task.name": "addition", "task.length": 30},
    "multiplication of a range": {"task.name": "multiplication", "task.length_range": [10, 40], "model.name": "gru"},
    "temporal order of a range": {"task.length_range": [10, 20]},
    "3-bit temporal order": {"task.name": "temporal_order_3bit", "init.name": "orthogonal"},
    "random permutation": {"task.name": "random_permutation", "init.name": "sparse"},
    "memorization, every step": {"task.name": "memorization", "model.layers": 2},
    "memorization of a range, lstm": {"task.name": "memorization", "task.length_range": [3, 9], "model.name": "lstm"},
    "copying, sum": {"task.name": "copying", "task.reduction": "sum"},
    "truncation": {"training.truncation": 4},
    "truncation, every step": {"training.truncation": 4, "task.name": "memorization", "model.name": "lstm"},
    "spectrum": {"probe.spectrum_every": 1, "model.layers": 2},
    "smoothness": {"probe.smoothness_every": 2},
    "contributions": {"probe.contributions_every": 2, "task.name": "memorization", "task.length": 3},
    "contributions, gru": {"probe.contributions_every": 2, "model.name": "gru"},
    "lyapunov": {"probe.lyapunov_every": 2, "model.layers": 2},
    "lyapunov, lstm": {"probe.lyapunov_every": 2, "model.name": "lstm"},
    "memory": {"probe.memory_every": 2, "model.layers": 2},
    "flossing": {"flossing.name": "before", "flossing.every": 4, "flossing.steps": 3, "flossing.exponents": 2},
    "evaluation": {"eval.every": 2, "eval.sequences": 150, "eval.lengths": [10, 15]},
    "stops when solved": {
        "eval.every": 2, "eval.sequences": 100, "training.stop_when_solved": True, "task.name": "addition", "training.updates": 40,
    },
    "diverges": {"model.activation": "linear", "init.scale": 2.0, "optimizer.lr": 1e4, "task.length": 40, "training.updates": 12},
    "at initialisation": {"training.updates": 0},
}  # fmt: skip


def configs(values: dict[str, Any], runs: int = 3) -> list[Config]:
    found = []
    for seed in range(runs):
        config = make_config(BASE | values)
        config.seed, config.optimizer.lr = seed, config.optimizer.lr / (1 + seed)
        found.append(config)
    return found


def on_the_gpu(given: list[Config]) -> list[Config]:
    return [replace(c, training=replace(c.training, device="cuda", kernel="auto")) for c in given]


def rows(training: Training) -> list[Snapshot]:
    found = []
    while not training.done:
        found += training.advance()
    return found


@pytest.fixture
def own_cell(monkeypatch):
    monkeypatch.setitem(cells.OWN, "antisymmetric", AntiSymmetric)


@pytest.mark.parametrize("case", CASES)
def test_it_trains_as_on_a_cpu(case, own_cell):
    """Every scalar and series of every row, float64; float32 in the store, hence 1e-5 there."""
    given = configs(CASES[case])
    expected, found = rows(Training(given)), rows(Training(on_the_gpu(given)))
    assert [row.step for row in found] == [row.step for row in expected]
    for ours, theirs in zip(found, expected, strict=True):
        for name in ("runs", "diverged", "solved", "late"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        assert ours.scalars.keys() == theirs.scalars.keys()
        active = theirs.runs & ~theirs.diverged  # in which order a sum overflows is nobody's concern
        for name, values in theirs.scalars.items():
            tolerance = {"rtol": 1e-6, "atol": 1e-8}
            if name == "contributions/residual":  # rounding itself
                tolerance = {"rtol": 0.0, "atol": 1e-12}
            np.testing.assert_allclose(ours.scalars[name][active], values[active], err_msg=name, **tolerance)
        for name, series in theirs.timesteps.items():
            np.testing.assert_allclose(ours.timesteps[name][active], series[active], 1e-4, 1e-5, err_msg=name)
        if theirs.contributions is not None:
            assert ours.contributions is not None
            np.testing.assert_allclose(ours.contributions[active], theirs.contributions[active], 1e-4, 1e-5)


@pytest.mark.parametrize("values", [{}, {"task.name": "addition", "task.length": 30}, {"model.name": "lstm"}], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_run_goes_on_bit_for_bit(values, dtype, tmp_path):
    """From a checkpoint's file, as far as the generators, and AutoClip's and Adam's memory."""
    given = on_the_gpu(configs(values | {"clip.name": "autoclip", "optimizer.name": "adam", "training.dtype": dtype}))
    undisturbed, training = rows(Training(given)), Training(given)
    for _ in range(3):
        list(training.advance())
    states = []
    for config, state in zip(given, training.state(), strict=True):
        checkpoints.save(tmp_path, run_id(config), state, {"rows": 0})
        states.append(torch.load(tmp_path / "checkpoint.pt", map_location="cpu", weights_only=True)["state"])
    resumed = Training(given)
    resumed.restore(states)
    for ours, theirs in zip(rows(resumed), [row for row in undisturbed if row.step >= 3], strict=True):
        for name, value in theirs.scalars.items():
            np.testing.assert_allclose(ours.scalars[name], value, 1e-12, err_msg=name)


def test_a_sweep_is_recorded_as_on_a_cpu(tmp_path):
    sweep = ("-m", "seed=0,1", "init.scale=1,2", "training.dtype=float64", "eval.every=3", *SMALL)
    for device in ("cpu", "cuda"):
        ended = train(*sweep, f"training.device={device}", f"sweep={device}", cwd=tmp_path)
        assert ended.status == 0, ended.err
    there, here = (results.load(tmp_path / "runs" / device) for device in ("cuda", "cpu"))
    assert there.runs["status"].tolist() == ["completed"] * 4
    columns = ["seed", "init.scale", "train/loss", "eval/error", "grad/norm", "W/rho", "dE_dh/slope"]
    ours, theirs = (found.runs[columns].sort_values(columns[:2]).to_numpy(float) for found in (there, here))
    np.testing.assert_allclose(ours, theirs, 1e-6)


@pytest.mark.parametrize("engine", ["processes"])
def test_programs_in_processes_of_their_own(engine, tmp_path):
    ended = train(
        "-m",
        "seed=0,1,2",
        "training.device=cuda",
        f"hydra.launcher.engine={engine}",
        "hydra.launcher.workers=2",
        *SMALL,
        cwd=tmp_path,
    )
    assert ended.status == 0, ended.err
    assert results.load(tmp_path / "runs" / "default").runs["status"].tolist() == ["completed"] * 3


def test_a_gpu_of_another_number_is_refused(tmp_path):
    ended = train("training.device=cuda:63", *SMALL, cwd=tmp_path)
    assert ended.status == 2
    assert ended.err.startswith("training.device=cuda:63: ")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("values", [{}, {"model.layers": 2, "task.name": "addition", "task.length": 30}], ids=str)
def test_a_program_with_the_fused_loops_trains_as_in_float64(values):
    sizes = {"model.hidden": 50, "training.batch_size": 20, "task.length": 40, "clip.name": "norm"} | values
    exact = rows(Training(configs(sizes)))
    training = Training(on_the_gpu(configs(sizes | {"training.dtype": "float32"})))
    assert training.net.loops is not recurrence
    assert isinstance(training.engine, engines.Captured)
    for ours, theirs in zip(rows(training), exact, strict=True):
        for name in ("train/loss", "grad/norm", "dE_dh/slope", "omega"):
            np.testing.assert_allclose(ours.scalars[name], theirs.scalars[name], 2e-3, 1e-5, err_msg=name)
