"""The Optuna sweeper with our launcher: several jobs at a time, and what a run returns is minimised. Needs the extra [optuna]."""

import importlib.util

import pytest
from commands import TINY, end, start
from omegaconf import OmegaConf

from rnn_lab import results

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("optuna") is None, reason="Optuna is not installed: pip install '.[optuna]'"
    ),
]

EXPERIMENT = """# @package _global_
# Question: which learning rate?
defaults:
  - override /hydra/sweeper: optuna
sweep: tuned
model: {activation: linear}
hydra:
  mode: MULTIRUN
  sweeper:
    n_trials: 8
    n_jobs: 4
    sampler: {seed: 1}
    params:
      optimizer.lr: tag(log, interval(1e-6, 1e6))
      seed: choice(1, 2)
"""


def test_an_experiment_may_be_an_optuna_study(tmp_path):
    """Runs that diverge are the worst of all, and no failures; each batch of jobs is one program."""
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "tuned.yaml").write_text(EXPERIMENT)
    ended = end(start("--config-dir", "conf", "experiment=tuned", *TINY, "tracker=none", cwd=tmp_path))
    assert ended.status == 0, ended.err
    runs = results.load(tmp_path / "runs" / "tuned").runs
    assert set(runs["status"]) == {"completed", "diverged"}
    assert set(runs["program_runs"]) == {4}
    best = OmegaConf.load(tmp_path / "runs" / "tuned" / "optimization_results.yaml")
    least = runs[runs["status"] == "completed"].sort_values("train/loss").iloc[0]
    assert best.best_value == pytest.approx(least["train/loss"])
    assert best.best_params["optimizer.lr"] == pytest.approx(least["optimizer.lr"])


def test_a_dry_run_shows_the_first_batch_and_leaves_nothing(tmp_path):
    optuna = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=8", "hydra.sweeper.n_jobs=4"]
    rates = "optimizer.lr=tag(log, interval(0.001, 1))"
    ended = end(start("-m", *optuna, *TINY, rates, "hydra.launcher.dry_run=true", cwd=tmp_path))
    assert ended.status == 0, ended.err
    assert "4 runs, updates 0 to 3" in ended.out
    assert list(tmp_path.iterdir()) == []
