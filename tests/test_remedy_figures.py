"""The tables behind analysis/remedies.py and analysis/clipping.py, on frames whose answer is known; and that both draw."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rnn_lab.results import METRICS, Results, ResultsError

sys.path.append(str(Path(__file__).parents[1]))
clipping = importlib.import_module("analysis.clipping")
remedies = importlib.import_module("analysis.remedies")

LEAVES = {"task.name": "temporal_order", "task.length": 30, "model.name": "elman", "model.activation": "tanh", "init.name": "gaussian",
          "init.scale": 1.5, "clip.name": "none", "clip.threshold": 1.0, "regularizer.name": "none", "optimizer.name": "sgd",
          "optimizer.lr": 0.1, "training.device": "cpu", "training.truncation": None, "seed": 0}  # fmt: skip


def frames(*variants: dict) -> Results:
    """Each variant with two seeds and three records; slope -log10(2) / 5, so the half-life is 5 steps."""
    runs = [LEAVES | v | {"seed": s} for v in variants for s in (0, 1)]
    table = pd.DataFrame(runs).assign(
        run_id=[f"r{n}" for n in range(len(runs))], sweep="s", status="completed", diverged_at=np.nan, seconds=60.0, cpu_seconds=30.0,
        program_runs=5.0,
    )  # fmt: skip
    table["baseline/error"], table["eval/error"], table["train/error"] = 0.75, 0.1, 0.2
    steps = pd.DataFrame([{"run_id": run, "step": step} for run in table["run_id"] for step in (0, 500, 1000)])
    steps = steps.reindex(columns=["run_id", "step", *METRICS])
    steps["dE_dh/slope"], steps["grad/norm"], steps["grad/norm_clipped"] = -np.log10(2) / 5, 4.0, 1.0
    steps["grad/clipped_fraction"], steps["grad/cosine"], steps["grad/nonfinite"] = 1.0, 1.0, 0.0
    steps["grad/smoothness"] = np.where(steps["step"] > 0, 1.0 + steps["step"], np.nan)
    steps["grad/norm"] *= 1 + steps["step"] / 1000
    return Results(table, steps, pd.DataFrame(), tuple(LEAVES))


def test_remedies_are_named_by_what_differs_from_the_plain_net_and_ordered_plain_first():
    found = remedies.table(
        frames(
            {"clip.name": "norm", "regularizer.name": "omega"},
            {"training.truncation": 10},
            {"optimizer.name": "adam"},
            {"clip.name": "norm"},
            {"init.name": "orthogonal"},
            {},
        )
    )
    names = list(dict.fromkeys(found["remedy"]))
    assert names == ["none", "orthogonal init", "clip norm", "truncated at 10", "adam", "clip norm + omega"]
    assert found["half_life"].unique() == pytest.approx(5)
    assert set(found["error"]) == {0.1}
    assert found["cost"].unique() == pytest.approx(1e3 * 30 / 1000 / 5)


def test_settings_of_one_remedy_are_told_apart():
    found = remedies.table(frames({"clip.name": "norm"}, {"clip.name": "norm", "clip.threshold": 2.0}, {}))
    assert list(dict.fromkeys(found["remedy"])) == ["none", "clip norm (threshold 1)", "clip norm (threshold 2)"]


def test_one_task_only():
    with pytest.raises(ResultsError, match=r"task\.length"):
        remedies.table(frames({}, {"task.length": 50}))


def test_the_observatory_has_the_effective_rate_and_the_points():
    found = clipping.table(frames({"clip.name": "norm"}, {}))
    rate = found[(found["row"] == "rate") & (found["variant"] == "clip norm")].sort_values("step")
    np.testing.assert_allclose(rate["mean"], 0.1 / 4 / np.array([1, 1.5, 2]))
    points = found[found["row"] == "smoothness"]
    assert len(points) == 4 * 2
    assert set(points["mean"]) == {501.0, 1001.0}
    assert "nonfinite" not in set(found["row"])


def test_what_is_not_finite_gets_a_row_of_its_own():
    results = frames({})
    results.steps.loc[2, ["grad/nonfinite", "grad/norm"]] = [17.0, np.inf]
    found = clipping.table(results)
    assert found.loc[(found["row"] == "nonfinite") & (found["step"] == 1000), "high"].item() == 17


@pytest.mark.parametrize("figure", [clipping, remedies])
def test_it_draws(figure):
    results = frames({"clip.name": "norm"}, {})
    results.runs.loc[0, "status"] = "diverged"
    figure.draw(figure.table(results)).draw_without_rendering()
