"""The configuration: what it allows, what it defaults to, and what identifies a run."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from rnn_lab import app
from rnn_lab.config import (
    Config,
    ConfigError,
    container,
    leaves,
    problems,
    run_id,
    run_name,
    static_key,
    typed,
)
from rnn_lab.vectorize import programs

CONF = Path(__file__).resolve().parents[1] / "conf"
GROUPS = [f.name for f in fields(Config) if (CONF / f.name).is_dir() and f.name != "preset"]


@pytest.fixture(autouse=True, scope="module")
def hydra() -> Iterator[None]:
    app.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(*overrides: str) -> Config:
    return typed(compose("config", list(overrides)))


def with_leaf(key: str, value: Any, **others: Any) -> Config:
    """The default config but for `key` and what `others` say (a dot is written __)."""
    config = Config()
    for name, new in {**{other.replace("__", "."): v for other, v in others.items()}, key: value}.items():
        *parents, last = name.split(".")
        node: Any = config
        for parent in parents:
            node = getattr(node, parent)
        assert hasattr(node, last)
        setattr(node, last, new)
    return config


# -------------------- the contract


CONTRACT = {
    "sweep": "default",
    "seed": 0,
    "preset": "none",
    "task.name": "temporal_order",
    "task.length": 100,
    "task.reduction": "mean",
    "model.name": "elman",
    "model.hidden": 50,
    "model.layers": 1,
    "model.activation": "tanh",
    "init.name": "gaussian",
    "init.scale": 1,
    "init.std": None,
    "init.input_scale": 1,
    "init.input_std": None,
    "init.output_scale": 1,
    "init.output_std": None,
    "init.links": 15,
    "init.forget_bias": 1,
    "init.chrono": None,
    "model.leak": 1,
    "clip.name": "none",
    "clip.threshold": 1,
    "optimizer.name": "sgd",
    "optimizer.lr": 0.01,
    "training.updates": 1000,
    "training.batch_size": 20,
    "training.log_every": 10,
    "training.dtype": "float32",
    "training.device": "cpu",
    "eval.every": None,
    "eval.sequences": 10000,
    "probe.spectrum_every": None,
    "tracker.name": "wandb",
    "tracker.mode": "offline",
}


def test_keys_and_defaults_are_the_contracts():
    """Names that other people's scripts rely on."""
    defaults = {leaf.key: leaf.value for leaf in leaves(composed())}
    assert {key: defaults.get(key, "no such key") for key in CONTRACT} == CONTRACT
    assert composed() == Config()
    assert problems(Config()) == []


@pytest.mark.parametrize(
    ("key", "allowed"),
    {
        "task": ["temporal_order"],
        "model": ["elman", "leaky", "lstm", "gru"],
        "model.activation": ["sigmoid", "tanh", "relu", "linear"],
        "init": ["gaussian", "orthogonal", "identity", "sparse"],
        "clip": ["none", "norm", "value"],
        "optimizer": ["sgd"],
        "tracker": ["wandb", "none"],
        "tracker.mode": ["offline", "online", "disabled"],
        "task.reduction": ["mean", "sum"],
        "training.dtype": ["float32", "float64"],
    }.items(),
)
def test_options_are_the_contracts(key, allowed):
    for option in allowed:
        config = composed(f"{key}={option}")
        leaf = key if "." in key else f"{key}.name"
        assert {found.key: found.value for found in leaves(config)}[leaf] == option
        assert problems(config, [f"{key}={option}"]) == []


# -------------------- conf/


RECIPES = {  # option files that hold the sizes of a recipe besides its name
    "copying": {"positions", "values"},
    "memorization_20bit": {"positions", "values"},
    "characters": {"length"},
}


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_has_one_file_for_each_option(group):
    rule = next(leaf.rule for leaf in leaves(Config()) if leaf.key == f"{group}.name")
    files = {p.stem for p in (CONF / group).glob("*.yaml")}
    assert files - {"memorization_20bit"} == set(rule.words.removeprefix("one of ").split(", "))


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_file_only_names_its_option(group):
    """The defaults of the other keys have one home, rnn_lab/config.py."""
    for file in (CONF / group).glob("*.yaml"):
        content = OmegaConf.to_container(OmegaConf.load(file))
        if file.stem in RECIPES:
            assert set(content) == {"name"} | RECIPES[file.stem]
        else:
            assert content == {"name": file.stem}


def test_the_main_file_sets_no_default():
    content = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"))
    assert isinstance(content, dict)
    assert set(content) == {"defaults", "hydra"}


PRESETS = {  # science.md's, as numbers
    "pascanu_sigmoid": {"model.activation": "sigmoid", "init.name": "gaussian", "init.std": 0.01}
    | {"init.input_std": 0.01, "init.output_std": 0.01},
    "pascanu_basic_tanh": {"model.activation": "tanh", "init.name": "gaussian", "init.std": 0.1}
    | {"init.input_std": 0.1, "init.output_std": 0.1},
    "pascanu_smart_tanh": {"model.activation": "tanh", "init.name": "sparse", "init.std": None, "init.scale": 0.95}
    | {"init.links": 15, "init.input_std": 0.01, "init.output_std": 0.01},
}


@pytest.mark.parametrize("preset", sorted({"none", *PRESETS, *(p.stem for p in (CONF / "preset").glob("*.yaml"))}))
def test_a_preset_sets_activation_and_init_and_nothing_else(preset):
    default = {leaf.key: leaf.value for leaf in leaves(Config())}
    config = composed(f"preset={preset}")
    assert {leaf.key: leaf.value for leaf in leaves(config)} == default | PRESETS.get(preset, {}) | {"preset": preset}
    assert problems(config, [f"preset={preset}"]) == []


# -------------------- identity


def test_a_run_is_the_same_in_any_spelling():
    spellings = [
        ["init.scale=1", "optimizer.lr=0.001", "clip=norm", "clip.threshold=2"],
        ["clip.threshold=2.0", "clip=norm", "optimizer.lr=1e-3", "init.scale=1.0"],
        ["clip=norm", "clip.threshold=0.2e1", "optimizer.lr=.001"],
        ["++clip.threshold=2", "clip.name=norm", "optimizer.lr=1.0e-03", "seed=0", "task=temporal_order"],
        ["clip.threshold=5", "clip.threshold=2", "clip=norm", "optimizer.lr=0.0010"],
    ]
    assert len({run_id(composed(*spelling)) for spelling in spellings}) == 1


def test_every_order_of_overrides_is_the_same_run():
    overrides = ["preset=pascanu_smart_tanh", "clip=value", "seed=3"]
    assert len({run_id(composed(*order)) for order in itertools.permutations(overrides)}) == 1


def test_a_run_id_is_ten_hex_digits_that_end_the_readable_name():
    for config in (Config(), composed("preset=pascanu_sigmoid"), composed("init.std=0.1")):
        assert len(run_id(config)) == 10
        assert int(run_id(config), 16) >= 0
        assert run_name(config).endswith(run_id(config))


OTHER = {  # another legal value of each key, and what must stand beside it for it to have an effect
    "seed": 1,
    "preset": "pascanu_sigmoid",
    "task.length": 101,
    "task.reduction": "sum",
    "model.hidden": 51,
    "model.layers": 2,
    "model.activation": "relu",
    "init.name": "orthogonal",
    "init.scale": 1.5,
    "init.std": 0.1,
    "init.input_scale": 1.5,
    "init.input_std": 0.1,
    "init.output_scale": 1.5,
    "init.output_std": 0.1,
    "init.links": (14, {"init__name": "sparse"}),
    "init.forget_bias": (2.0, {"model__name": "lstm"}),
    "init.chrono": (50.0, {"model__name": "gru"}),
    "model.name": "lstm",
    "model.leak": (0.5, {"model__name": "leaky"}),
    "clip.name": "norm",
    "clip.threshold": (2.0, {"clip__name": "norm"}),
    "clip.factor": (0.02, {"clip__name": "agc"}),
    "clip.percentile": (20.0, {"clip__name": "autoclip"}),
    "regularizer.name": "omega",
    "regularizer.alpha": (2.0, {"regularizer__name": "omega"}),
    "regularizer.decay": ("epoch", {"regularizer__name": "omega", "task__name": "characters"}),
    "flossing.name": "before",
    "flossing.steps": (10, {"flossing__name": "before"}),
    "flossing.exponents": (3, {"flossing__name": "before"}),
    "flossing.window": (20, {"flossing__name": "before"}),
    "flossing.lr": (0.01, {"flossing__name": "before"}),
    "flossing.every": (100, {"flossing__name": "before"}),
    "optimizer.name": "adam",
    "optimizer.lr": 0.02,
    "optimizer.momentum": (0.8, {"optimizer__name": "momentum"}),
    "optimizer.decay": (0.8, {"optimizer__name": "rmsprop"}),
    "optimizer.beta1": (0.8, {"optimizer__name": "adam"}),
    "optimizer.beta2": (0.8, {"optimizer__name": "adam"}),
    "optimizer.epsilon": (1e-7, {"optimizer__name": "adam"}),
    "task.name": "addition",
    "task.length_range": [50, 60],
    "task.positions": (6, {"task__name": "memorization"}),
    "task.values": (3, {"task__name": "memorization"}),
    "task.path": ("a.txt", {"task__name": "characters"}),
    "task.ahead": (5, {"task__name": "characters"}),
    "training.updates": 1001,
    "training.batch_size": 21,
    "training.log_every": 11,
    "training.dtype": "float64",
    "training.device": "cuda",
    "eval.every": 5,
    "eval.sequences": (99, {"eval__every": 5}),
    "eval.lengths": ([30], {"eval__every": 5}),
    "training.truncation": 10,
    "training.stop_when_solved": True,
    "training.kernel": "numba",
    "probe.spectrum_every": 7,
    "probe.smoothness_every": 7,
    "probe.contributions_every": 7,
    "probe.contributions_lag": (7, {"probe__contributions_every": 7}),
    "probe.lyapunov_every": 7,
    "probe.memory_every": 7,
}
LABELS = {
    "sweep": "other",
    "tracker.name": "none",
    "tracker.mode": "online",
    "tracker.project": "other",
    "tracker.series": "all",
}


def test_the_tables_below_know_every_key():
    assert {leaf.key for leaf in leaves(Config())} == {*OTHER, *LABELS}


@pytest.mark.parametrize("key", sorted(OTHER))
def test_every_key_that_has_an_effect_makes_another_run(key):
    value, beside = OTHER[key] if isinstance(OTHER.get(key), tuple) else (OTHER.get(key, "a later one"), {})
    default = next(leaf.value for leaf in leaves(Config()) if leaf.key == key)
    assert run_id(with_leaf(key, value, **beside)) != run_id(with_leaf(key, default, **beside))


WITHOUT_EFFECT = {
    **{key: (value, {}) for key, value in LABELS.items()},
    "clip.threshold": (2.0, {"clip__name": "none"}),
    "clip.factor": (0.02, {"clip__name": "norm"}),
    "clip.percentile": (20.0, {"clip__name": "agc"}),
    "regularizer.alpha": (2.0, {"regularizer__name": "none"}),
    "regularizer.decay": ("epoch", {"regularizer__name": "none", "task__name": "characters"}),
    "task.path": ("a.txt", {"task__name": "music"}),
    "task.ahead": (5, {"task__name": "temporal_order"}),
    "flossing.steps": (10, {"flossing__name": "none"}),
    "flossing.exponents": (3, {"flossing__name": "none"}),
    "flossing.window": (20, {"flossing__name": "none"}),
    "flossing.lr": (0.01, {"flossing__name": "none"}),
    "flossing.every": (100, {"flossing__name": "none"}),
    "optimizer.momentum": (0.8, {"optimizer__name": "adam"}),
    "optimizer.decay": (0.8, {"optimizer__name": "sgd"}),
    "optimizer.beta1": (0.8, {"optimizer__name": "momentum"}),
    "task.positions": (6, {"task__name": "addition"}),
    "task.values": (3, {"task__name": "temporal_order"}),
    "init.links": (3, {"init__name": "gaussian"}),
    "init.forget_bias": (2.0, {"model__name": "gru"}),
    "init.chrono": (50.0, {"model__name": "leaky"}),
    "model.leak": (0.5, {"model__name": "elman"}),
    "model.activation": ("relu", {"model__name": "lstm"}),
    "init.scale": (2.0, {"init__std": 0.1}),
    "init.input_scale": (2.0, {"init__input_std": 0.1}),
    "init.output_scale": (2.0, {"init__output_std": 0.1}),
    "eval.sequences": (7, {"eval__every": None}),
    "probe.contributions_lag": (7, {"probe__contributions_every": None}),
}


@pytest.mark.parametrize("key", WITHOUT_EFFECT)
def test_a_key_without_effect_makes_no_other_run(key):
    value, beside = WITHOUT_EFFECT[key]
    default = next(leaf.value for leaf in leaves(Config()) if leaf.key == key)
    one, other = with_leaf(key, default, **beside), with_leaf(key, value, **beside)
    assert one != other
    assert run_id(one) == run_id(other)
    assert static_key(one) == static_key(other)


@pytest.mark.parametrize("model", ["lstm", "gru", "somebodys_own"])
def test_an_activation_is_of_elman_and_leaky_alone(model):
    one, other = (with_leaf("model.activation", phi, model__name=model) for phi in ("tanh", "sigmoid"))
    assert run_id(one) == run_id(other)


def test_new_cells_and_their_keys_renamed_no_run():
    """Ids of runs made before there was another cell."""
    assert run_id(Config()) == "dbcaba2243"
    assert run_id(composed("preset=pascanu_smart_tanh", "seed=3")) == "04d00740f8"


@pytest.mark.parametrize("init", ["orthogonal", "identity"])
def test_links_are_of_sparse_alone(init):
    assert run_id(with_leaf("init.links", 3, init__name=init)) == run_id(with_leaf("init.name", init))


# -------------------- programs

PER_RUN = {"seed", "preset", "init.name", "init.scale", "init.std", "init.input_scale", "init.input_std"} | {
    "init.output_scale",
    "init.output_std",
    "init.links",
    "init.forget_bias",
    "init.chrono",
    "model.leak",
    "clip.threshold",
    "clip.factor",
    "clip.percentile",
    "regularizer.alpha",
    "flossing.lr",
    "optimizer.lr",
    "optimizer.momentum",
    "optimizer.decay",
    "optimizer.beta1",
    "optimizer.beta2",
    "optimizer.epsilon",
}


@pytest.mark.parametrize("key", OTHER)
def test_runs_train_together_unless_shapes_or_code_differ(key):
    value, beside = OTHER[key] if isinstance(OTHER[key], tuple) else (OTHER[key], {})
    default = next(leaf.value for leaf in leaves(Config()) if leaf.key == key)
    together = static_key(with_leaf(key, value, **beside)) == static_key(with_leaf(key, default, **beside))
    assert together == (key in PER_RUN)


def test_programs_group_in_order_of_the_first_member_and_hold_max_runs():
    lengths = [10, 20, 10, 10, 20, 10]
    configs = [with_leaf("task.length", length, seed=seed) for seed, length in enumerate(lengths)]
    assert programs(configs, 64) == [[0, 2, 3, 5], [1, 4]]
    assert programs(configs, 2) == [[0, 2], [3, 5], [1, 4]]
    assert sorted(itertools.chain(*programs(configs, 1))) == list(range(6))


# -------------------- what is refused


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("sweep", "", "letters"),
        ("sweep", "a/b", "letters"),
        ("sweep", "..", "not first a dot"),
        ("sweep", ".hidden", "not first a dot"),
        ("sweep", "a b", "letters"),
        ("sweep", "a\n", "letters"),
        ("sweep", "a" * 101, "at most 100"),
        ("seed", -1, "from 0"),
        ("seed", 2**63, "to 2^63 - 1"),
        ("task.name", "nope", "temporal_order"),
        ("task.length", 0, ">= 1"),
        ("task.reduction", "max", "mean, sum"),
        ("task.path", "", "the path of a text file"),
        ("task.ahead", 0, ">= 1"),
        ("regularizer.decay", "1/t", "none, epoch"),
        ("model.name", "lstn", "elman, leaky, lstm, gru"),
        ("model.leak", 0.0, "> 0 and <= 1"),
        ("model.leak", 1.1, "> 0 and <= 1"),
        ("model.leak", float("nan"), "> 0 and <= 1"),
        ("init.forget_bias", float("inf"), "a finite number"),
        ("init.chrono", 1.9, "null or a finite number >= 2"),
        ("init.chrono", float("nan"), ">= 2"),
        ("model.hidden", 0, ">= 1"),
        ("model.layers", 0, ">= 1"),
        ("model.activation", "tan", "sigmoid, tanh, relu, linear"),
        ("init.name", "xavier", "gaussian, orthogonal, identity, sparse"),
        ("init.scale", -1.0, ">= 0"),
        ("init.scale", float("inf"), "finite"),
        ("init.std", float("nan"), "null or a finite"),
        ("init.input_std", -0.1, ">= 0"),
        ("init.output_scale", float("nan"), "finite"),
        ("init.links", 0, ">= 1"),
        ("clip.name", "clamp", "none, norm, value"),
        ("clip.threshold", 0.0, "> 0"),
        ("clip.threshold", float("inf"), "finite"),
        ("optimizer.name", "sdg", "sgd"),
        ("optimizer.lr", float("nan"), "finite"),
        ("optimizer.lr", -0.1, ">= 0"),
        ("training.updates", -1, ">= 0"),
        ("training.batch_size", 0, ">= 1"),
        ("training.log_every", 0, ">= 1"),
        ("training.dtype", "float16", "float32, float64"),
        ("training.device", "gpu", "cpu, cuda or cuda:N"),
        ("eval.every", 0, "null or"),
        ("eval.sequences", 0, ">= 1"),
        ("probe.spectrum_every", -5, "null or"),
        ("probe.contributions_every", 0, "null or a whole number >= 1"),
        ("probe.contributions_lag", -1, "null or a whole number >= 0"),
        ("tracker.name", "tensorboard", "wandb, none"),
        ("tracker.mode", "dryrun", "offline, online, disabled"),
        ("tracker.project", "a/b", "letters"),
        ("tracker.series", "h", "dE_dh, all"),
    ],
)
def test_a_value_out_of_range_is_refused_in_one_line(key, value, allowed):
    [line] = problems(with_leaf(key, value))
    assert line.startswith(f"{key}=")
    assert allowed in line
    assert "\n" not in line.replace(str(value), "")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sweep", "A-b_c.9"),
        ("seed", 2**63 - 1),
        ("init.scale", 0.0),
        ("optimizer.lr", 0.0),
        ("training.updates", 0),
        ("eval.every", 1),
        ("task.length", 10),
        ("clip.threshold", 1e-300),
    ],
)
def test_the_limits_themselves_are_allowed(key, value):
    assert problems(with_leaf(key, value)) == []


def test_all_problems_are_told_at_once():
    found = problems(with_leaf("seed", -1, clip__threshold=0.0, training__batch_size=0))
    assert [line.split("=")[0] for line in found] == ["seed", "clip.threshold", "training.batch_size"]


def test_a_length_too_short_names_the_smallest_that_works():
    [line] = problems(with_leaf("task.length", 9))
    assert line.startswith("task.length=9: ")
    assert line.endswith(" 10")
    assert problems(with_leaf("task.length", 10)) == []


@pytest.mark.parametrize("which", ["", "input_", "output_"])
def test_a_std_and_a_scale_are_not_both_given(which):
    std, scale = f"init.{which}std", f"init.{which}scale"
    both = [f"{std}=0.1", f"{scale}=2"]
    [line] = problems(composed(*both), both)
    assert std in line
    assert scale in line
    default_spelt_out = [f"{std}=0.1", f"{scale}=1"]
    assert len(problems(composed(*default_spelt_out), default_spelt_out)) == 1
    assert problems(composed(f"{std}=0.1"), [f"{std}=0.1"]) == []


def test_only_gaussian_has_a_std():
    for init in ("orthogonal", "identity", "sparse"):
        [line] = problems(composed(f"init={init}", "init.std=0.1"))
        assert line.startswith("init.std=0.1: ")


@pytest.mark.parametrize("beside", ["init=sparse", "init.name=gaussian", "model.activation=relu"])
def test_a_preset_is_refused_beside_what_it_sets(beside):
    overrides = ["preset=pascanu_basic_tanh", beside]
    found = problems(composed(*overrides), overrides)
    assert f"preset=pascanu_basic_tanh sets {beside.split('=')[0]}: give one of the two" in found
    assert problems(composed(beside, "preset=none"), [beside, "preset=none"]) == []


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    [line] = problems(with_leaf("training.device", "cuda:1"))
    assert line == "training.device=cuda:1: no GPU here, use cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    [line] = problems(with_leaf("training.device", "cuda:2"))
    assert line == "training.device=cuda:2: must be cuda:0 to cuda:1, or cpu"
    assert problems(with_leaf("training.device", "cuda:1")) == []


def test_omega_is_of_elman_and_leaky_alone():
    for model in ("elman", "leaky"):
        assert problems(composed("regularizer=omega", f"model={model}")) == []
    for model in ("lstm", "gru"):
        [line] = problems(composed("regularizer=omega", f"model={model}"))
        assert line == f"regularizer=omega: not with model={model}; use regularizer=none"


def test_every_built_in_cell_has_a_kernel():
    pytest.importorskip("numba")
    for model in ("elman", "leaky", "lstm", "gru"):
        assert problems(composed("training.kernel=numba", f"model={model}")) == []
    assert problems(composed("training.kernel=numba", "regularizer=omega")) == []
    [line] = problems(composed("training.kernel=numba", "training.truncation=5"))
    assert line == "training.kernel=numba: not with training.truncation=5; use training.kernel=reference"


def test_a_forget_bias_and_chrono_are_not_both_given():
    for both in (["init.chrono=10", "init.forget_bias=2"], ["init.chrono=10", "init.forget_bias=1"]):
        [line] = problems(composed("model=lstm", *both), both)
        assert line.startswith("init.chrono=10.0 and init.forget_bias=")
    assert problems(composed("model=lstm", "init.chrono=10"), ["init.chrono=10"]) == []


def test_a_name_says_the_cell():
    assert run_name(Config()).startswith("tanh-1-")
    assert run_name(composed("model=leaky", "model.leak=0.1")).startswith("leaky0.1-tanh-1-")
    assert run_name(composed("model=gru", "init.scale=2")).startswith("gru-2-")


@pytest.mark.parametrize("added", ["trainig.lr=1", "task.lenght=20", "foo=1"])
def test_a_key_added_with_a_plus_must_exist(added):
    key = added.split("=")[0]
    with pytest.raises(ConfigError, match=f"^{key.split('.')[0]}.*: no such key"):
        composed(f"+{added}")


# -------------------- containers


def test_a_container_is_plain_and_holds_every_key():
    nested = container(composed("clip=norm"))
    assert nested == json.loads(json.dumps(nested))
    assert nested["clip"] == {"name": "norm", "threshold": 1.0, "factor": 0.01, "percentile": 10.0}
    assert typed(OmegaConf.create(nested)) == composed("clip=norm")
    assert not any(is_dataclass(value) for value in nested.values())
