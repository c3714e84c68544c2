"""Every experiment of conf/experiment: a question, sound jobs, and a first job that trains."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import train
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from rnn_lab import results
from rnn_lab.corpora import chorales

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = sorted((ROOT / "conf" / "experiment").glob("*.yaml"))
if not chorales.installed():
    EXPERIMENTS = [experiment for experiment in EXPERIMENTS if not experiment.stem.startswith("music")]


def content(experiment: Path) -> dict[str, Any]:
    """The experiment as written."""
    plain = OmegaConf.to_container(OmegaConf.load(experiment))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def values(swept: object) -> list[str]:
    """The values that a key takes: "a,b" or "range(3)"."""
    override = OverridesParser.create().parse_override(f"key={swept}")
    return list(override.sweep_string_iterator()) if override.is_sweep_override() else [str(swept)]


def sweep_of(experiment: Path) -> dict[str, list[str]]:
    return {
        key: values(v) for key, v in content(experiment).get("hydra", {}).get("sweeper", {}).get("params", {}).items()
    }


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda p: p.stem)
def test_an_experiment_is_a_short_yaml_with_a_question_and_its_own_sweep(experiment):
    lines = experiment.read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith("# Question: ")
    assert len(lines) <= 30
    assert content(experiment)["sweep"] == experiment.stem
    if sweep_of(experiment):
        assert content(experiment)["hydra"]["mode"] == "MULTIRUN", "a forgotten -m should do no harm"


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda p: p.stem)
@pytest.mark.slow
def test_the_first_job_trains_two_steps(experiment, tmp_path):
    first = [f"{key}={choices[0]}" for key, choices in sweep_of(experiment).items()]
    overrides = ["training.updates=2", "training.log_every=1", "tracker=none"]
    ended = train(f"experiment={experiment.stem}", *first, *overrides, cwd=tmp_path)
    said = [line for line in ended.err.splitlines() if not line.startswith("training 1 runs:")]  # of what takes long
    assert (ended.status, said) == (0, [])
    loaded = results.load(tmp_path / "runs" / experiment.stem)
    assert loaded.runs["status"].item() == "completed"
    assert list(loaded.steps["step"]) == [0, 1, 2]


LARGE = ("_hours", "_paper", "phase_diagram")
LONG = [pytest.param(p, marks=pytest.mark.long) if p.stem.endswith(LARGE) else p for p in EXPERIMENTS]
SLOW = [pytest.param(p, marks=pytest.mark.slow) if p.stem.endswith(("_hours", "_paper")) else p for p in EXPERIMENTS]


@pytest.mark.parametrize("experiment", SLOW, ids=lambda p: p.stem)
def test_every_job_is_sound(experiment, tmp_path):
    """An engine that does not exist is the only thing that is wrong with any of its jobs."""
    ended = train(f"experiment={experiment.stem}", "hydra.launcher.engine=warp", cwd=tmp_path)
    assert (ended.status, ended.out) == (2, "")
    assert [line.split("=")[0] for line in ended.err.splitlines()] == ["hydra.launcher.engine"]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", LONG, ids=lambda p: p.stem)
def test_every_job_probes_its_untrained_net(experiment, tmp_path):
    ended = train(f"experiment={experiment.stem}", "training.updates=0", "tracker=none", cwd=tmp_path)
    assert ended.status == 0, ended.err
    runs = results.load(tmp_path / "runs" / experiment.stem).runs
    assert set(runs["status"]) == {"completed"}
    assert len(runs) == len(set(distinct(sweep_of(experiment))))


def distinct(sweep: dict[str, list[str]]) -> Iterator[tuple[tuple[str, str], ...]]:
    """Its jobs; an LSTM is the same run whatever model.activation says."""
    for choices in itertools.product(*sweep.values()):
        job = dict(zip(sweep, choices, strict=True))
        if job.get("model") in ("lstm", "gru"):
            job.pop("model.activation", None)
        yield tuple(job.items())


def test_the_main_sweep_fits_the_demo():
    """At most about 96 jobs of at most 100 time steps and 100 updates: five minutes on two cores."""
    sweep = sweep_of(ROOT / "conf" / "experiment" / "vanishing_exploding.yaml")
    assert len(list(itertools.product(*sweep.values()))) <= 96
    assert max(map(int, sweep["task.length"])) <= 100
    assert content(ROOT / "conf" / "experiment" / "vanishing_exploding.yaml")["training"]["updates"] <= 100
    assert {"task.length", "model.activation", "init.scale", "clip", "seed"} <= set(sweep)
    assert {"sigmoid", "tanh"} <= set(sweep["model.activation"])
