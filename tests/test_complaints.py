"""Errors of Hydra and OmegaConf become one line that names key, value and what is allowed; our own bugs keep their traceback."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from rnn_lab import app
from rnn_lab.complaints import complaint
from rnn_lab.config import ConfigError, typed
from rnn_lab.recording.store import Locked

TASKS = ["addition", "characters", "copying", "memorization", "memorization_20bit", "multiplication", "music"]
TASKS += ["random_permutation", "temporal_order", "temporal_order_3bit"]
CONF = Path(__file__).resolve().parents[1] / "conf"


@pytest.fixture(autouse=True, scope="module")
def hydra() -> Iterator[None]:
    app.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def answer(*overrides: str) -> str:
    """What the user is told about these overrides."""
    with pytest.raises(Exception) as raised:  # noqa: PT011
        typed(compose("config", list(overrides)))
    return complaint(raised.value, list(overrides))


@pytest.mark.parametrize(
    ("overrides", "line"),
    {
        "clip.treshold=2": "clip.treshold: no such key; did you mean clip.threshold?",
        "clp=norm": "clp: no such key; did you mean clip?",
        "training.bach_size=3": "training.bach_size: no such key; did you mean training.batch_size?",
        "zzzzzz=3": "zzzzzz: no such key",
        "+foo=3": "foo: no such key",
        "task=adding": "task=adding: must be one of " + ", ".join(TASKS),
        "clip=clamp": "clip=clamp: must be one of agc, autoclip, none, norm, value",
        "preset=pascanu": "preset=pascanu: must be one of none, pascanu_basic_tanh, pascanu_sigmoid, pascanu_smart_tanh",
        "task.length=long": "task.length=long: must be a whole number >= 1",
        "task.length=10.5": "task.length=10.5: must be a whole number >= 1",
        "task.length=": "task.length=: must be a whole number >= 1",
        "task.length=null": "task.length=null: must be a whole number >= 1",
        "init.std=wide": "init.std=wide: must be null or a finite number >= 0",
        "optimizer.lr=fast": "optimizer.lr=fast: must be a finite number >= 0",
        "model.activation=null": "model.activation=null: must be one of sigmoid, tanh, relu, linear",
        "seed=???": "seed=???: must be a whole number from 0 to 2^63 - 1",
        "clip.threshold=${nothing}": "clip.threshold=${nothing}: must be a finite number > 0",
        "task=null": "task=null: a group takes the name of one of its options",
        "model=3": "model=3: a group takes the name of one of its options",
        "preset=[null]": "preset=[null]: a group takes the name of one of its options",
        "seed='a\nb'": "seed=\"'a\\nb'\": must be a whole number from 0 to 2^63 - 1",
        "seed='\x1b[31m'": "seed=\"'\\x1b[31m'\": must be a whole number from 0 to 2^63 - 1",
        "seed='a\nb',2": "\"seed='a\\nb',2\": several values make a sweep; add -m",
        "seed=1,2": "seed=1,2: several values make a sweep; add -m",
        "clip=none,norm": "clip=none,norm: several values make a sweep; add -m",
    }.items(),
)
def test_one_line_names_key_value_and_what_is_allowed(overrides, line):
    assert answer("training.updates=5", overrides, "model.hidden=4") == line


@pytest.mark.parametrize("broken", ["seed=[1", "seed", "a b=3", "task=[a,b]", "+task.length=20", "~nothing"])
def test_whatever_hydra_says_is_one_line(broken):
    line = answer(broken)
    assert line
    assert "\n" not in line
    assert "Traceback" not in line


def test_the_last_of_two_values_is_the_one_named():
    assert answer("seed=1", "seed=one").startswith("seed=one: ")


def test_our_own_errors_are_told_as_they_are():
    assert complaint(ConfigError("a=1: wrong\nb=2: wrong")) == "a=1: wrong\nb=2: wrong"
    assert complaint(Locked("runs/x: another process is working here")) == "runs/x: another process is working here"


def test_a_bug_keeps_its_traceback():
    for bug in ("[].pop()", "int('x')", "{}['x']"):
        with pytest.raises((LookupError, ValueError)) as raised:
            exec(bug)
        assert complaint(raised.value).startswith("Traceback")
