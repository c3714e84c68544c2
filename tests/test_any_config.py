"""Any config at all: it trains with autograd's gradients, or diverges and says so, or is refused in one line before anything is written.

The values are drawn from pools of usual, extreme and wrong ones, sorted by each key's own rule: a new key is drawn from here on.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import some, train
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from kernel_oracle import omega_of
from oracle import backpropagate, truncated, weights

from rnn_lab import app, results
from rnn_lab.complaints import complaint
from rnn_lab.config import Config, Leaf, leaves, typed
from rnn_lab.jobs import Task, check, run_directory, train_jobs
from rnn_lab.options import Options
from rnn_lab.parameters import Parameters
from rnn_lab.training import Training

CONF = Path(__file__).resolve().parents[1] / "conf"
GROUPS = {
    folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in CONF.iterdir() if folder.is_dir()
}
LEAVES = list(leaves(Config()))

# Small, so that an example takes milliseconds; what is drawn comes after it and replaces it.
SMALL = ["task.length=10", "model.hidden=3", "training.batch_size=2", "training.log_every=1", "eval.sequences=3"]
SMALL += ["flossing.steps=2", "flossing.exponents=2", "training.kernel=reference"]  # compiled ones where they are drawn
LAST = ["training.updates=2", "tracker=none", "sweep=any"]
SIZES = [1, 2, 3, 5, 8, 10, 13, 17]
NUMBERS = [0.0, 1e-30, 1e-8, 0.1, 0.5, 0.999, 1.0, 1.5, 2.0, 10.0, 100.0, 1e6, 1e30]
LISTS = [[1, 1], [5, 9], [10, 13], [12], [17]]
HUGE = [2**31, 2**45, 2**63 - 1, 2**63, 10**22, 10**400]
WRONG = [
    "nan",
    "-inf",
    "-1",
    "-0.0",
    "0",
    "1.5",
    "1e400",
    "null",
    "''",
    "x",
    "true",
    "???",
    "1_000",
    "0x10",
    '"a b"',
    "a\\=b",
]
WRONG += [
    "[]",
    "[1]",
    "[2,1]",
    "[0,5]",
    "[a,b]",
    "[null,null]",
    "[1.5,2]",
    "[[1]]",
    "{}",
    "{a:1}",
    "${nothing}",
    "${seed}",
    "é",
]
WRONG += [
    "'\\n'",
    "'a\nb'",
    "'\x1b[31m'",
    "../x",
    "<b>",
    "!!python/none",
    "&a",
    "*a",
    "${oc.env:HOME}",
    "${run_id:}",
    "x" * 300,
]
FIXED = ("training.updates", "tracker.name", "sweep", "training.device", "tracker.mode")  # LAST, or another program's

quick = settings(
    max_examples=int(os.environ.get("EXAMPLES", 6)),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
thorough = settings(quick, max_examples=400, derandomize=False, print_blob=True)


def allowed(leaf: Leaf, value: Any) -> bool:
    """Whether a value of the pools is one of this key's."""
    if isinstance(leaf.value, float) != isinstance(value, float):
        return leaf.value is None and not isinstance(value, float) and _holds(leaf, value)
    return _holds(leaf, value)


def _holds(leaf: Leaf, value: Any) -> bool:
    try:
        return bool(leaf.rule.holds(value))
    except (TypeError, OverflowError):
        return False


def written(value: Any) -> str:
    """As it is typed."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")


def legal_values(leaf: Leaf) -> list[str]:
    names = leaf.rule.words.removeprefix("one of ").split(", ") if leaf.rule.words.startswith("one of ") else []
    pool = [*SIZES, *NUMBERS, *LISTS, None, True, False]
    return names or [written(value) for value in pool if allowed(leaf, value)]


LEGAL = {leaf.key: values for leaf in LEAVES if leaf.key not in FIXED and (values := legal_values(leaf))}
options = st.lists(st.sampled_from([f"{group}={name}" for group in GROUPS if group not in ("hydra", "experiment", "method", "tracker")
                                    for name in GROUPS[group]]), max_size=4)  # fmt: skip
overrides = st.lists(
    st.sampled_from([f"{key}={value}" for key, values in LEGAL.items() for value in values]), max_size=6
)
mistakes = st.lists(
    st.builds(
        "{}={}".format, st.sampled_from([leaf.key for leaf in LEAVES]), st.sampled_from([*WRONG, *map(str, HUGE)])
    ),
    min_size=1,
    max_size=3,
)


@pytest.fixture(autouse=True, scope="module")
def hydra() -> Iterator[None]:
    app.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@pytest.fixture(autouse=True)
def elsewhere() -> Iterator[Path]:
    """An empty current directory."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        yield Path(folder)


def looked_at(arguments: list[str]) -> tuple[Config | None, list[str]]:
    """The config of a command line, as train.py has it, or None and the lines in which it was refused."""
    config = None
    try:
        composed = compose("config", arguments, return_hydra_config=True)
        config = typed(composed)
        found = check(composed, config, sweeping=False)
    except Exception as error:
        found = complaint(error, arguments).splitlines()
    for line in found:
        assert line.isprintable(), line
        assert "Traceback" not in line
        assert any(argument.split("=")[0] in line for argument in arguments), line
    assert not os.listdir()
    return (None if found else config), found


def trained(config: Config) -> tuple[str, results.Results]:
    """Status and frames of a run that went through train.py's own door."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        run_directory(config).mkdir(parents=True)
        [outcome] = train_jobs([Task(config, run_directory(config), [])], Options())
        assert outcome.status in ("completed", "diverged"), outcome.error
        return outcome.status, results.load(run_directory(config))


def recorded_properly(config: Config, status: str, frames: results.Results) -> None:
    """Every row that is due is there, and every norm through time is a number."""
    assert frames.runs["status"].tolist() == [status]
    last = int(frames.steps["step"].max())
    assert last == 2 or status == "diverged" or config.training.stop_when_solved
    logs = [
        name for name in frames.timesteps if "log10" in name and not name.startswith("memory/")
    ]  # has its own cadence
    values = frames.timesteps[logs].to_numpy(float)
    if np.isfinite(frames.timesteps["h/norm"]).all():
        assert (values < np.inf).all(), "a log norm that is no number, of a forward pass that is"


def compare(training: Training, step: int) -> None:
    """The gradients of the mini-batch at hand with autograd's, as far as rounding lets any two programs agree."""
    config = training.first
    training.batches.advance()
    training.engine.gradients(measure=step == 0)
    found = weights(training.engine.grads, (0,))
    x, y = (z[0] for z in training.batches.tensors())
    late = 0 if training.batches.late is None else int(training.batches.late[0])
    x, y = x[late:], y[late if len(y) == len(x) else 0 :]
    draw = torch.Generator().manual_seed(0)
    truths = [oracle(config, training, rounded(training.theta, size, draw), x, y) for size in (0, 4, 4)]
    for name, truth in truths[0].items():
        if torch.isfinite(truth).all():
            scatter = torch.stack([(other[name] - truth).abs() for other in truths]).max().item()
            atol = 1e-10 * truth.abs().max().item() + 100 * scatter
            torch.testing.assert_close(found[name], truth, rtol=0, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


def rounded(theta: Parameters, size: float, draw: torch.Generator) -> dict[str, torch.Tensor]:
    """The weights, changed in their last digits."""
    eps = size * torch.finfo(torch.float64).eps
    return {k: w * (1 + eps * torch.randn(w.shape, generator=draw)) for k, w in weights(theta, (0,)).items()}


def oracle(config: Config, training: Training, w: dict, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    model, reduction = config.model, config.task.reduction
    loss = "cross entropy" if y.dtype == torch.int64 else "squared error"
    if config.training.truncation is not None:
        return truncated(w, x, y, model.activation, loss, reduction, model.name, model.leak, config.training.truncation)
    truth = backpropagate(w, x, y, model.activation, loss, reduction, model.name, model.leak)
    if config.regularizer.name == "omega":
        leak = model.leak if model.name == "leaky" else 1.0
        for layer, (d, delta) in enumerate(zip(truth.dE_dh, truth.delta, strict=True), start=1):
            own = w[f"W{layer}"].clone().requires_grad_()
            value = config.regularizer.alpha * omega_of(own, list(d), list(delta), leak)
            if value.requires_grad:
                truth.grads[f"W{layer}"] += torch.autograd.grad(value, own)[0]
    return truth.grads


def trains_or_is_refused(arguments: list[str]) -> None:
    config, _ = looked_at(arguments)
    if config is None:
        return
    recorded_properly(config, *trained(config))
    training = Training([replace(config, training=replace(config.training, dtype="float64"))])
    compare(training, 0)
    training = Training(training.configs)
    list(training.advance())
    # What begins with a carried state is compared in test_streams.py
    if not training.done and not training.task.carries_state:
        compare(training, 1)


@quick
@given(options, overrides)
def test_a_config_of_legal_values_trains_like_autograd_or_is_refused(options, overrides):
    trains_or_is_refused([*SMALL, *options, *overrides, *LAST])


@pytest.mark.slow
@pytest.mark.long
@thorough
@given(options, overrides)
def test_many_configs_of_legal_values(options, overrides):
    trains_or_is_refused([*SMALL, *options, *overrides, *LAST])


@quick
@given(overrides, mistakes)
def test_a_config_of_wrong_values_is_refused_in_lines_that_name_a_key(overrides, mistakes):
    looked_at([*SMALL, *LAST, *overrides, *mistakes])


@pytest.mark.slow
@pytest.mark.long
@thorough
@given(options, overrides, mistakes)
def test_many_configs_of_wrong_values(options, overrides, mistakes):
    looked_at([*SMALL, *LAST, *options, *overrides, *mistakes])


@settings(quick, max_examples=2)
@given(overrides, mistakes, st.booleans())
@pytest.mark.slow
def test_the_command_line_refuses_the_same_in_the_same_words(overrides, mistakes, sweeping):
    arguments = [*SMALL, *LAST, *overrides, *mistakes]
    config, lines = looked_at(arguments)
    assume(config is None)
    assume(not sweeping or not any("," in argument for argument in arguments))  # several values, for -m
    ended = train(*["-m"] * sweeping, *arguments, cwd=Path.cwd())
    assert (ended.status, ended.out, ended.err.splitlines()) == (2, "", lines)
    assert not os.listdir()


SHORTEST = {
    "temporal_order": 10,
    "temporal_order_3bit": 10,
    "addition": 10,
    "multiplication": 10,
    "random_permutation": 1,
}
SHORTEST |= {"memorization": 1, "copying": 1}


@pytest.mark.parametrize("task", some(SHORTEST, 4))
def test_the_smallest_net_at_the_shortest_length(task):
    """B = 1, H = 1; a step shorter is refused."""
    smallest = [f"task={task}", "training.batch_size=1", "model.hidden=1", "task.positions=1", *LAST]
    trains_or_is_refused([*smallest, f"task.length={SHORTEST[task]}"])
    config, [line] = looked_at([*smallest, f"task.length={SHORTEST[task] - 1}"])
    assert config is None
    assert line.startswith(f"task.length={SHORTEST[task] - 1}: ")


EXTREMES = {
    "nothing at all": ["init.scale=0", "init.input_scale=0", "init.output_scale=0"],
    "relu x 1e6": ["model.activation=relu", "init.scale=1e6"],
    "identity x 1e6, linear, deep": ["model.activation=linear", "init=identity", "init.scale=1e6", "model.layers=8"],
    "no learning": ["optimizer.lr=0"],
    "all threshold": ["clip=norm", "clip.threshold=1e-30"],
    "no threshold": ["clip=norm", "clip.threshold=1e30"],
    "cut to 1e30": ["clip=value", "clip.threshold=1e30", "optimizer.lr=1e6"],
    "deep": ["model.layers=8", "model=lstm"],
    "a leak of next to nothing": ["model=leaky", "model.leak=1e-30"],
    "weights beyond float32": ["init.scale=1e39"],
    "weights of the smallest number": ["init.std=1e-45", "init.input_std=5e-324"],
    "steps beyond float32": ["optimizer=adam", "optimizer.lr=1e38", "optimizer.epsilon=1e-300"],
    "alpha 1e30": ["regularizer=omega", "regularizer.alpha=1e30"],
    "two values, one position": ["task=copying", "task.positions=1", "task.values=2"],
    "254 values": ["task=memorization", "task.values=254"],
    "an evaluation of one sequence": ["eval.every=1", "eval.sequences=1", "eval.lengths=[10,500]"],
    "one exponent": ["flossing=before", "flossing.exponents=1", "flossing.window=1", "flossing.lr=1e30"],
}


@pytest.mark.parametrize("dtype", some(["float32", "float64"], 2))
@pytest.mark.parametrize("extreme", some(EXTREMES, 9))
def test_extreme_and_legal(extreme, dtype):
    arguments = [*SMALL, *EXTREMES[extreme], *LAST, f"training.dtype={dtype}"]
    assert looked_at(arguments)[1] == []
    trains_or_is_refused(arguments)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["reference", "numba"])
def test_ten_thousand_steps(kernel):
    config, _ = looked_at([*SMALL, *LAST, "task.length=10000", f"training.kernel={kernel}"])
    assert config is not None
    recorded_properly(config, *trained(config))


@pytest.mark.parametrize(
    "key", some(["task.length", "model.hidden", "model.layers", "training.batch_size", "task.positions"], 3)
)
def test_what_no_machine_holds_is_refused_and_not_tried(key):
    config, [line] = looked_at(["task=memorization", f"{key}={2**45}"])
    assert config is None
    assert f"{key}={2**45}" in line
    assert "GB" in line
