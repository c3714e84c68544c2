"""The typed configuration: every key, its default, what it allows, and whether it may differ between the runs of one program.

Hydra composes conf/ into these dataclasses; `problems` says in one line each what is wrong with a config; `run_id` names a run after what
determines it. No torch here: `--help`, completion and bad input must answer at once.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from operator import attrgetter
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


class ConfigError(ValueError):
    """Bad input. Each line of the message names a key, its value and what is allowed."""


class Rule(NamedTuple):
    """What a key allows: a predicate, and the words for it."""

    holds: Callable[[Any], bool]
    words: str


def one_of(*options: str) -> Rule:
    """These words and no others."""
    return Rule(lambda v: v in options, "one of " + ", ".join(options))


def at_least(least: int) -> Rule:
    """Whole numbers from `least` on."""
    return Rule(lambda v: v >= least, f"a whole number >= {least}")


POSITIVE = Rule(lambda v: math.isfinite(v) and v > 0, "a finite number > 0")
NOT_NEGATIVE = Rule(lambda v: math.isfinite(v) and v >= 0, "a finite number >= 0")
YES_OR_NO = Rule(lambda v: isinstance(v, bool), "true or false")
DECAY = Rule(lambda v: 0 <= v < 1, "a number >= 0 and < 1")
SEED = Rule(lambda v: 0 <= v < 2**63, "a whole number from 0 to 2^63 - 1")
SWEEP = Rule(
    lambda v: re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", v) is not None,
    "letters, digits, . _ - (not first a dot), at most 100",
)


def or_null(rule: Rule) -> Rule:
    """The rule, or null."""
    return Rule(lambda v: v is None or rule.holds(v), f"null or {rule.words}")


RANGE = or_null(Rule(lambda v: len(v) == 2 and 1 <= v[0] <= v[1], "[a,b], whole numbers 1 <= a <= b"))
LENGTHS = or_null(Rule(lambda v: 0 < len(v) == len(set(v)) and min(v) >= 1, "a list of different whole numbers >= 1"))
RECALL_TASKS = ("memorization", "copying")  # those that have positions and values
LAST_STEP_TASKS = ("temporal_order", "temporal_order_3bit", "addition", "multiplication", "random_permutation")
CORPUS_TASKS = ("characters", "music")  # natural data
TASK_NAMES = (*LAST_STEP_TASKS, *RECALL_TASKS, *CORPUS_TASKS)
POINTWISE_CELLS = ("elman", "leaky")  # those with one activation phi, which model.activation chooses
MODELS_WITH_A_KERNEL = (*POINTWISE_CELLS, "lstm", "gru")
CELL_NAMES = [*POINTWISE_CELLS, "lstm", "gru"]  # and users' own, see app.register_cell


class CellName(Rule):
    """One of CELL_NAMES as they are when it is asked."""

    words = property(lambda self: "one of " + ", ".join(CELL_NAMES))  # type: ignore[assignment]


def static(default: Any, rule: Rule) -> Any:
    """A field that must be equal in all runs of one program: shapes and what selects code."""
    return field(default=default, metadata={"rule": rule, "static": True})


def per_run(default: Any, rule: Rule) -> Any:
    """A field in which the runs of one program may differ."""
    return field(default=default, metadata={"rule": rule, "static": False})


@dataclass
class Task:
    """task: what is learned. length: L of the recipe, in steps.  length_range: (a, b), L drawn for each update.  positions, values: of the
    recall tasks.  reduction: of the loss over the steps.
    """

    name: str = static("temporal_order", one_of(*TASK_NAMES))
    length: int = static(100, at_least(1))
    length_range: list[int] | None = static(None, RANGE)  # noqa: RUF009
    positions: int = static(5, at_least(1))
    values: int = static(2, Rule(lambda v: 2 <= v <= 254, "a whole number from 2 to 254"))  # symbols are bytes
    path: str | None = static(None, or_null(Rule(lambda v: v != "", "the path of a text file")))
    ahead: int = static(1, at_least(1))
    reduction: str = static("mean", one_of("mean", "sum"))


@dataclass
class Model:
    """model: the net. hidden: units a layer.  leak: a of a leaky unit, 1 for the plain one."""

    name: str = static("elman", CellName(lambda v: v in CELL_NAMES, ""))
    hidden: int = static(50, at_least(1))
    layers: int = static(1, at_least(1))
    activation: str = static("tanh", one_of("sigmoid", "tanh", "relu", "linear"))
    leak: float = per_run(1.0, Rule(lambda v: 0 < v <= 1, "a number > 0 and <= 1"))


@dataclass
class Init:
    """init: the distribution of W, U, V and of the gates' biases. scale: of W, see `vectorize.recurrent_matrix`.  std: W's own, instead."""

    name: str = per_run("gaussian", one_of("gaussian", "orthogonal", "identity", "sparse"))
    scale: float = per_run(1.0, NOT_NEGATIVE)
    std: float | None = per_run(None, or_null(NOT_NEGATIVE))
    input_scale: float = per_run(1.0, NOT_NEGATIVE)
    input_std: float | None = per_run(None, or_null(NOT_NEGATIVE))
    output_scale: float = per_run(1.0, NOT_NEGATIVE)
    output_std: float | None = per_run(None, or_null(NOT_NEGATIVE))
    links: int = per_run(15, at_least(1))
    forget_bias: float = per_run(1.0, Rule(math.isfinite, "a finite number"))
    chrono: float | None = per_run(None, or_null(Rule(lambda v: 2 <= v < math.inf, "a finite number >= 2")))


@dataclass
class Clip:
    """clip: what is done to the gradient before the update, see `clipping`."""

    name: str = static("none", one_of("none", "norm", "value", "agc", "autoclip"))
    threshold: float = per_run(1.0, POSITIVE)
    factor: float = per_run(0.01, POSITIVE)
    percentile: float = per_run(10.0, Rule(lambda v: 0 <= v <= 100, "a number from 0 to 100"))


@dataclass
class Regularizer:
    """regularizer: what is added to dE/dW before the clip. alpha: its weight."""

    name: str = static("none", one_of("none", "omega"))
    alpha: float = per_run(4.0, NOT_NEGATIVE)
    decay: str = static("none", one_of("none", "epoch"))


@dataclass
class Flossing:
    """flossing: steps on the Lyapunov exponents, see `flossing`. window: time steps.  every: updates; null: before the first alone."""

    name: str = static("none", one_of("none", "before"))
    steps: int = static(100, at_least(1))
    exponents: int = static(10, at_least(1))
    window: int = static(50, at_least(1))
    lr: float = per_run(0.003, NOT_NEGATIVE)
    every: int | None = static(None, or_null(at_least(1)))


@dataclass
class Optimizer:
    """optimizer: the update rule, see `optimizers`, with PyTorch's meaning of each key."""

    name: str = static("sgd", one_of("sgd", "momentum", "rmsprop", "adam"))
    lr: float = per_run(0.01, NOT_NEGATIVE)
    momentum: float = per_run(0.9, DECAY)
    decay: float = per_run(0.99, DECAY)
    beta1: float = per_run(0.9, DECAY)
    beta2: float = per_run(0.999, DECAY)
    epsilon: float = per_run(1e-8, POSITIVE)


@dataclass
class Training:
    """training: how long and on what. updates, log_every: in updates.  truncation: K of truncated BPTT in steps; null: full."""

    updates: int = static(1000, at_least(0))
    batch_size: int = static(20, at_least(1))
    log_every: int = static(10, at_least(1))
    dtype: str = static("float32", one_of("float32", "float64"))
    device: str = static("cpu", Rule(lambda v: re.fullmatch(r"cpu|cuda(:\d+)?", v) is not None, "cpu, cuda or cuda:N"))
    truncation: int | None = static(None, or_null(at_least(1)))
    kernel: str = static("auto", one_of("auto", "reference", "numba"))
    stop_when_solved: bool = static(False, YES_OR_NO)


@dataclass
class Eval:
    """eval: on fresh sequences. every: updates between two; null: never.  lengths: others than the one trained on."""

    every: int | None = static(None, or_null(at_least(1)))
    sequences: int = static(10000, at_least(1))
    lengths: list[int] | None = static(None, LENGTHS)  # noqa: RUF009


@dataclass
class Probe:
    """probe: what costs more than an update, and so has a cadence of its own, in updates; null: `spectrum_every` max(100, log_every), the
    others never.
    """

    spectrum_every: int | None = static(None, or_null(at_least(1)))
    smoothness_every: int | None = static(None, or_null(at_least(1)))
    contributions_every: int | None = static(None, or_null(at_least(1)))
    contributions_lag: int | None = static(None, or_null(at_least(0)))
    lyapunov_every: int | None = static(None, or_null(at_least(1)))
    memory_every: int | None = static(None, or_null(at_least(1)))


@dataclass
class Tracker:
    """tracker: where the record is mirrored; nothing here changes a number. series: those through time that are drawn."""

    name: str = per_run("wandb", one_of("wandb", "none"))
    mode: str = per_run("offline", one_of("offline", "online", "disabled"))
    project: str = per_run(
        "rnn_lab", Rule(lambda v: re.fullmatch(r"[A-Za-z0-9._-]{1,128}", v) is not None, "letters, digits, . _ -")
    )
    series: str = per_run("dE_dh", one_of("dE_dh", "all"))


@dataclass
class Config:
    """All that determines a run, and its label `sweep`."""

    sweep: str = per_run("default", SWEEP)
    seed: int = per_run(0, SEED)
    preset: str = per_run("none", Rule(lambda v: re.fullmatch(r"\w+", v) is not None, "a preset of conf/preset"))
    task: Task = field(default_factory=Task)
    model: Model = field(default_factory=Model)
    init: Init = field(default_factory=Init)
    clip: Clip = field(default_factory=Clip)
    regularizer: Regularizer = field(default_factory=Regularizer)
    flossing: Flossing = field(default_factory=Flossing)
    optimizer: Optimizer = field(default_factory=Optimizer)
    training: Training = field(default_factory=Training)
    eval: Eval = field(default_factory=Eval)
    probe: Probe = field(default_factory=Probe)
    tracker: Tracker = field(default_factory=Tracker)


# Of each of these a config takes one.
GROUPS = {f.name for f in fields(Config) if is_dataclass(f.type)} | {"preset", "method"}


class Leaf(NamedTuple):
    """One key of a config: "clip.threshold", its value, its rule, and whether it is static."""

    key: str
    value: Any
    rule: Rule
    static: bool


@cache
def _keys(kind: Any) -> list[tuple[str, Rule, bool]]:
    """Of a dataclass of the config, in the order of their definition: each with its rule, and whether it is static."""
    found = []
    for f in fields(kind):
        if is_dataclass(f.type):
            found += [(f"{f.name}.{key}", rule, static) for key, rule, static in _keys(f.type)]
        else:
            found.append((f.name, f.metadata["rule"], f.metadata["static"]))
    return found


def leaves(node: Any) -> Iterator[Leaf]:
    """All keys of a config, in the order of their definition."""
    for key, rule, static in _keys(type(node)):
        yield Leaf(key, attrgetter(key)(node), rule, static)


def typed(composed: DictConfig) -> Config:
    """A composed job config as a Config. Hydra's own node is left out; composition has checked types against the schema, and all keys
    but those that were added by +key=value. Raises ConfigError.
    """

    def build(cls: Any, content: dict[str, Any], prefix: str = "") -> Any:
        unknown = set(content) - {f.name for f in fields(cls)}
        if unknown:
            raise ConfigError("\n".join(f"{prefix}{key}: no such key" for key in sorted(unknown)))
        groups = {f.name: f.type for f in fields(cls) if is_dataclass(f.type)}
        return cls(**content | {name: build(kind, content[name], f"{prefix}{name}.") for name, kind in groups.items()})

    return build(Config, {str(key): _plain(composed[key]) for key in composed if key != "hydra"})


def _plain(value: Any) -> Any:
    """Without OmegaConf: a group node by node takes four times as long."""
    return OmegaConf.to_container(value, resolve=True, throw_on_missing=True) if OmegaConf.is_config(value) else value


def problems(config: Config, overrides: list[str] | None = None) -> list[str]:
    """What is wrong, one line each; empty if nothing is. `overrides`: the command line's, for rules about what may stand beside what."""
    found = [
        f"{leaf.key}={shown(leaf.value)}: must be {leaf.rule.words}"
        for leaf in leaves(config)
        if not leaf.rule.holds(leaf.value)
    ]
    found = found or [
        f"{leaf.key}={shown(leaf.value)}: must be less than 2^63"
        for leaf in leaves(config)
        if _largest(leaf.value) >= 2**63
    ]
    several = [o for o in overrides or [] if "=[" in o and o.split("=")[0] in GROUPS]
    found += [f"{shown(o)}: takes one name; several make a sweep, with -m and without brackets" for o in several]
    if found:
        return found
    from rnn_lab.tasks import OF_CORPORA, TASKS  # imports torch

    task, shortest, init = config.task, (TASKS | OF_CORPORA)[config.task.name].shortest, config.init
    if task.length_range is None and task.length < shortest:
        found.append(f"task.length={task.length}: {task.name} needs at least {shortest}")
    for key, lengths in (("task.length_range", task.length_range), ("eval.lengths", config.eval.lengths)):
        if lengths is not None and min(lengths) < shortest:
            found.append(f"{key}={shown(lengths)}: {task.name} needs at least {shortest}")
    if task.name in CORPUS_TASKS:
        found += _problems_of_corpus(config)
    elif config.regularizer.decay == "epoch":
        found.append(f"regularizer.decay=epoch: {task.name} has no epochs; use task=characters or music")
    given = {o.lstrip("+").split("=", 1)[0] for o in overrides or []}
    if task.length_range is not None and "task.length" in given:
        found.append(f"task.length={task.length} and task.length_range={shown(task.length_range)}: give one of the two")
    for std, scale in (("std", "scale"), ("input_std", "input_scale"), ("output_std", "output_scale")):
        if getattr(init, std) is not None and (getattr(init, scale) != 1 or {f"init.{std}", f"init.{scale}"} <= given):
            found.append(
                f"init.{std}={getattr(init, std)} and init.{scale}={getattr(init, scale)}: give one of the two"
            )
    if init.chrono is not None and (init.forget_bias != 1 or {"init.chrono", "init.forget_bias"} <= given):
        found.append(f"init.chrono={init.chrono} and init.forget_bias={init.forget_bias}: give one of the two")
    twice = sorted(given & {"init", "init.name", "model.activation"}) if config.preset != "none" else []
    found += [f"preset={config.preset} sets {key}: give one of the two" for key in twice]
    if init.std is not None and init.name != "gaussian" and not twice:  # else the std is the preset's
        found.append(f"init.std={init.std}: only init=gaussian has a std (init.scale is the gain or, for sparse, rho)")
    if config.regularizer.name == "omega" and config.training.truncation is not None:
        found.append(f"training.truncation={config.training.truncation}: regularizer=omega needs full BPTT, null")
    if config.regularizer.name == "omega" and config.model.name not in POINTWISE_CELLS:
        found.append(f"regularizer=omega: not with model={config.model.name}; use regularizer=none")
    if config.training.stop_when_solved and config.eval.every is None:
        found.append("training.stop_when_solved=True: needs eval.every, the updates between two evaluations")
    units, exponents = config.model.hidden * config.model.layers, config.flossing.exponents
    if config.flossing.name != "none" and exponents > units:
        found.append(f"flossing.exponents={exponents}: a net of {units} units has only so many")
    if config.training.kernel == "numba":
        from rnn_lab import kernels

        if (key := without_kernel(config)) is not None:
            found.append(f"training.kernel=numba: not with {key}; use training.kernel=reference")
        if not kernels.installed():
            found.append("training.kernel=numba: Numba is not installed; use training.kernel=reference")
    if config.training.device.startswith("cuda"):
        import torch

        number, count = int(config.training.device.partition(":")[2] or 0), torch.cuda.device_count()
        if not torch.cuda.is_available():
            found.append(f"training.device={config.training.device}: no GPU here, use cpu")
        elif number >= count:
            found.append(f"training.device={config.training.device}: must be cuda:0 to cuda:{count - 1}, or cpu")
    return found


def _largest(value: Any) -> int:
    """Of the whole numbers in a value; 0 where there are none."""
    return max((v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int)), default=0)


def least_bytes(config: Config) -> int:
    """What training one run takes at least, a lower bound: its states, or those of one sequence of an evaluation, and its weights."""
    model, task, number = config.model, config.task, 4 if config.training.dtype == "float32" else 8
    units, extra = model.hidden * model.layers, 2 * task.positions if task.name in RECALL_TASKS else 0
    trained = ((task.length_range or [task.length])[-1] + extra) * config.training.batch_size
    states = max(trained, *(length + extra for length in config.eval.lengths or []), 0)
    tensors = 4096 * model.layers  # Python's and PyTorch's own objects
    return 2 * number * units * (states + model.hidden) + tensors


def _problems_of_corpus(config: Config) -> list[str]:
    """What natural data is asked for and cannot do or be, one line each. Reads it."""
    from rnn_lab import corpora
    from rnn_lab.tasks import of_corpus

    task = config.task
    for key, value in (("task.length_range", task.length_range), ("eval.lengths", config.eval.lengths)):
        if value is not None:
            return [f"{key}={shown(value)}: not with task={task.name}, whose task.length is where gradients end"]
    if task.name == "music" and not corpora.chorales.installed():
        return ["task=music: music21, which has the scores, is not installed; pip install '.[music]'"]
    source = f"task.path={shown(task.path)}" if task.name == "characters" else "task=music"
    try:
        few = of_corpus(task.name, task.path, task.length, task.ahead).few(config.training.batch_size)
    except corpora.CorpusError as error:
        return [f"{source}: {error}"]
    sizes = f"task.length={task.length}, task.ahead={task.ahead} and training.batch_size={config.training.batch_size}"
    return [f"{source}: too short for {sizes}: {few}"] if few else []


def without_kernel(config: Config) -> str | None:
    """The key and value, if any, for which there is no fused kernel; the reference in PyTorch trains everything."""
    training = config.training
    if config.model.name not in MODELS_WITH_A_KERNEL:
        return f"model={config.model.name}"
    if training.device != "cpu":
        return f"training.device={training.device}"
    return None if training.truncation is None else f"training.truncation={training.truncation}"


def shown(value: Any) -> str:
    """A value as one writes it on the command line, in printable characters."""
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    plain = str(value)
    return "null" if value is None else plain if plain and plain.isprintable() else repr(value)


def _without_effect(config: Config) -> set[str]:
    """Keys that the chosen options ignore: runs that differ in nothing else are one run."""
    ignored = {leaf.key for leaf in leaves(config) if leaf.key == "sweep" or leaf.key.startswith("tracker.")}
    init, model = config.init, config.model.name
    rules = {
        "clip.threshold": config.clip.name not in ("norm", "value"),
        "clip.factor": config.clip.name != "agc",
        "clip.percentile": config.clip.name != "autoclip",
        "regularizer.name": config.regularizer.name == "none",  # left out where off: what came later renames no old run
        "regularizer.alpha": config.regularizer.name == "none",
        "regularizer.decay": config.regularizer.name == "none" or config.regularizer.decay == "none",
        **{f"flossing.{f.name}": config.flossing.name == "none" for f in fields(Flossing)},
        "optimizer.momentum": config.optimizer.name != "momentum",
        "optimizer.decay": config.optimizer.name != "rmsprop",
        "optimizer.beta1": config.optimizer.name != "adam",
        "optimizer.beta2": config.optimizer.name != "adam",
        "optimizer.epsilon": config.optimizer.name not in ("rmsprop", "adam"),
        "probe.smoothness_every": config.probe.smoothness_every is None,
        "probe.contributions_every": config.probe.contributions_every is None,
        "probe.contributions_lag": config.probe.contributions_every is None or config.probe.contributions_lag is None,
        "probe.lyapunov_every": config.probe.lyapunov_every is None,
        "probe.memory_every": config.probe.memory_every is None,
        "training.truncation": config.training.truncation is None,
        "model.activation": model not in POINTWISE_CELLS,
        "model.leak": model != "leaky",
        "training.stop_when_solved": not config.training.stop_when_solved,
        "init.links": init.name != "sparse",
        "init.forget_bias": model != "lstm" or init.chrono is not None,
        "init.chrono": model not in ("lstm", "gru") or init.chrono is None,
        "init.scale": init.std is not None,
        "init.input_scale": init.input_std is not None,
        "init.output_scale": init.output_std is not None,
        "eval.sequences": config.eval.every is None or config.task.name in CORPUS_TASKS,
        "eval.lengths": config.eval.every is None or config.eval.lengths is None,
        "task.length": config.task.length_range is not None,
        "task.length_range": config.task.length_range is None,
        "task.positions": config.task.name not in RECALL_TASKS,
        "task.values": config.task.name not in RECALL_TASKS,
        "task.path": config.task.name != "characters" or config.task.path is None,
        "task.ahead": config.task.name not in CORPUS_TASKS or config.task.ahead == 1,
    }
    return ignored | {key for key, without_effect in rules.items() if without_effect}


def run_id(config: Config) -> str:
    """Ten hex digits of the SHA-256 of everything that determines the run's numbers; the same with and without -m, in any spelling."""
    ignored = _without_effect(config)
    identity = {leaf.key: leaf.value for leaf in leaves(config) if leaf.key not in ignored}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]


def static_key(config: Config) -> tuple:
    """Runs with equal keys can train as one program. Keys without effect do not keep runs apart."""
    ignored = _without_effect(config)
    used = (leaf for leaf in leaves(config) if leaf.static and leaf.key not in ignored)
    return tuple((leaf.key, tuple(leaf.value) if isinstance(leaf.value, list) else leaf.value) for leaf in used)


def cell_name(config: Config) -> str:
    """The activation of an Elman net, the cell of any other: "tanh", "leaky0.1-tanh", "lstm"."""
    model = config.model
    leak = f"leaky{model.leak:g}-" if model.name == "leaky" else ""
    return leak + model.activation if model.name in POINTWISE_CELLS else model.name


def run_name(config: Config) -> str:
    """A readable name that ends in the run id, for people and dashboards.

    >>> run_name(Config(seed=3)).rpartition("-")[0]
    'tanh-1-L100-none-s3'
    """
    init = config.init
    spread = f"std{init.std:g}" if init.std is not None else f"{init.scale:g}"
    what = f"{cell_name(config)}-{spread}" if config.preset == "none" else config.preset.removeprefix("pascanu_")
    L = "-".join(map(str, config.task.length_range or [config.task.length]))
    return f"{what}-L{L}-{config.clip.name}-s{config.seed}-{run_id(config)}"


def container(config: Config) -> dict[str, Any]:
    """The config as nested plain containers."""
    return asdict(config)


def from_container(content: dict[str, Any]) -> Config:
    """The inverse of `container`, for what a run has stored; keys that came later have their defaults. Raises ConfigError."""
    try:
        config = typed(OmegaConf.merge(OmegaConf.structured(Config()), content))  # pyright: ignore[reportArgumentType]
    except OmegaConfBaseException as error:
        raise ConfigError(" ".join(str(error).split())) from error
    if found := problems(config):
        raise ConfigError("\n".join(found))
    return config
