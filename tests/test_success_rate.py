"""The table behind analysis/success_rate.py, on frames whose answer is known; and that it draws."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rnn_lab.results import METRICS, Results, ResultsError

sys.path.append(str(Path(__file__).parents[1]))
success_rate = importlib.import_module("analysis.success_rate")

LEAVES = {"task.name": "temporal_order", "task.length": 10, "model.name": "elman", "model.activation": "sigmoid", "init.name": "gaussian",
          "init.scale": 1.0, "init.std": 0.01, "preset": "pascanu_sigmoid", "clip.name": "none", "clip.threshold": 1.0,
          "regularizer.name": "none", "training.updates": 1000, "training.stop_when_solved": True, "seed": 0}  # fmt: skip


def frames(*runs: tuple[dict, str, list[float]]) -> Results:
    """Each run: what differs, its status, its evaluation errors at steps 0, 100, 200 ..."""
    table = pd.DataFrame(
        [LEAVES | differs | {"run_id": f"r{n}", "status": s} for n, (differs, s, _) in enumerate(runs)]
    )
    rows = [
        {"run_id": f"r{n}", "step": 100 * k, "eval/error": e}
        for n, (*_, errors) in enumerate(runs)
        for k, e in enumerate(errors)
    ]
    steps = pd.DataFrame(rows).reindex(columns=["run_id", "step", *METRICS])
    return Results(table, steps, pd.DataFrame(), tuple(LEAVES))


def test_solved_is_below_one_per_cent_once_and_what_has_not_ended_is_not_counted():
    clipped = {"clip.name": "norm"}
    found = success_rate.table(
        frames(
            ({}, "completed", [0.75, 0.5, 0.01]),
            ({"seed": 1}, "completed", [0.75, 0.009]),
            ({"seed": 2}, "diverged", [0.75]),
            ({"seed": 3}, "killed", [0.75, 0.001]),
            (clipped | {"regularizer.name": "omega"}, "completed", [0.7, 0.2, 0.1, 0.0]),
            (clipped, "completed", [0.7]),
        )
    ).set_index("method")
    assert list(found.index) == ["MSGD", "MSGD-C", "MSGD-CR"]
    plain = found.loc["MSGD"]
    assert (plain["seeds"], plain["solved"], plain["diverged"], plain["unfinished"]) == (3, 1, 1, 1)
    assert plain["share"] == pytest.approx(1 / 3)
    assert plain["updates"] == 100
    assert found.loc["MSGD-CR", "updates"] == 300
    assert found.loc["MSGD-C", "share"] == 0


def test_wilson_intervals_are_those_of_the_literature():
    """Newcombe 1998, table I: 81/263 -> .2553 .3662; 15/148 -> .0624 .1605; 0/20 -> 0 .1611; 1/29 -> .0061 .1718."""
    low, high = success_rate.wilson(np.array([81, 15, 0, 1]), np.array([263, 148, 20, 29]))
    np.testing.assert_allclose(low, [0.2553, 0.0624, 0, 0.0061], atol=5e-5)
    np.testing.assert_allclose(high, [0.3662, 0.1605, 0.1611, 0.1718], atol=5e-5)


@pytest.mark.parametrize("k", [0, 1, 4, 5])
def test_wilson_bounds_are_the_shares_that_lie_z_standard_errors_away(k):
    low, high = success_rate.wilson(np.array([k]), np.array([5]))
    for p in (low[0], high[0]):
        if 0 < p < 1:
            assert abs(k / 5 - p) / np.sqrt(p * (1 - p) / 5) == pytest.approx(1.959964, rel=1e-6)


def test_it_refuses_what_it_would_have_to_mix():
    solved = ([0.75, 0.0],)
    with pytest.raises(ResultsError, match=r"task\.name"):
        success_rate.table(
            frames(({}, "completed", *solved), ({"task.name": "addition", "task.length": 20}, "completed", *solved))
        )
    with pytest.raises(ResultsError, match="share"):
        success_rate.table(frames(({}, "completed", *solved), ({"training.updates": 7}, "completed", *solved)))
    with pytest.raises(ResultsError, match="evaluated"):
        success_rate.table(frames(({}, "completed", [np.nan])))


def test_each_initialisation_has_a_panel_and_each_method_a_curve():
    runs = [
        ({"preset": preset, "clip.name": clip, "task.length": length, "seed": seed}, "completed", [0.75, 0.5 if length > 10 else 0.0])
        for preset in ("pascanu_sigmoid", "pascanu_smart_tanh") for clip in ("none", "norm") for length in (10, 20) for seed in range(3)
    ]  # fmt: skip
    fig = success_rate.draw(success_rate.table(frames(*runs)))
    assert [ax.get_title() for ax in fig.axes] == ["sigmoid", "smart tanh"]
    for ax in fig.axes:
        assert [list(container[0].get_ydata()) for container in ax.containers] == [[1.0, 0.0], [1.0, 0.0]]
