"""The figure of vanishing and exploding curves, on runs that were really trained: what is drawn is recorded, and theory is theory."""

import importlib
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from commands import train

from rnn_lab import results

sys.path.append(str(Path(__file__).parents[1]))
gradient_curves = importlib.import_module("analysis.gradient_curves")

TINY = ["model.hidden=8", "training.batch_size=4", "training.updates=4", "training.log_every=4", "clip=norm"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("curves")
    swept = ["model=elman,gru", "model.activation=sigmoid,tanh", "init.scale=0.5,4", "task.length=20,40", "seed=0,1"]
    ended = train("-m", *swept, *TINY, "tracker=none", cwd=folder)
    assert ended.status == 0, ended.err
    return folder / "runs" / "default"


@pytest.fixture(scope="module")
def table(sweep) -> pd.DataFrame:
    return gradient_curves.table(results.load(sweep))


@pytest.fixture(autouse=True)
def _no_figures_left():
    yield
    plt.close("all")


def test_curves_are_those_recorded_relative_to_the_last_step(sweep, table):
    """Both records; a gated cell is one net whatever model.activation says."""
    loaded = results.load(sweep)
    runs = loaded.runs[
        (loaded.runs["model.name"] == "gru") & (loaded.runs["init.scale"] == 4) & (loaded.runs["task.length"] == 20)
    ]
    assert len(runs) == 2
    for step in (0, 4):
        rows = loaded.timesteps[(loaded.timesteps["step"] == step) & loaded.timesteps["run_id"].isin(runs["run_id"])]
        mean = rows.groupby("lag")["dE_dh/log10_norm"].mean()
        own = table[
            (table["panel"] == "GRU") & (table["init"] == "scale 4") & (table["length"] == 20) & (table["step"] == step)
        ]
        own = own.set_index("lag")["relative"].sort_index()
        np.testing.assert_allclose(own, mean - mean[0], atol=1e-6)
    assert set(table["panel"]) == {"sigmoid", "tanh", "GRU"}


def test_no_curve_passes_its_bound(table):
    """Pascanu et al.'s theorem, before and after training; of gated cells it says nothing."""
    bounded = table[table["bound"].notna()]
    assert set(bounded["panel"]) == {"sigmoid", "tanh"}
    assert set(bounded["step"]) == {0, 4}
    # the group's bound is the geometric mean of the seeds', so the mean of the curves is below the mean of the bounds
    assert (bounded["relative"] <= bounded["bound"] + 1e-6).all()
    gamma = {"sigmoid": 0.25, "tanh": 1.0}
    assert (bounded["eta"] > bounded["panel"].map(gamma) * 0.3).all()
    np.testing.assert_allclose(bounded["bound"], bounded["lag"] * np.log10(bounded["eta"]))


def test_what_is_drawn_is_the_table(table):
    fig = gradient_curves.draw(table)
    axes = np.array(fig.axes).reshape(2, 3)
    assert [ax.get_title() for ax in axes[0]] == ["sigmoid", "tanh", "GRU"]
    for row, step in zip(axes, (0, 4), strict=True):
        assert ("untrained" if step == 0 else "after 4 updates") in row[0].get_ylabel()
        for ax, panel in zip(row, ("sigmoid", "tanh", "GRU"), strict=True):
            own = table[(table["panel"] == panel) & (table["step"] == step)].sort_values("lag")
            named = {line.get_label(): line for line in ax.lines}
            for init in ("scale 0.5", "scale 4"):
                curve = own[(own["init"] == init) & (own["length"] == 40)]
                np.testing.assert_array_equal(named[init].get_xdata(), -curve["lag"])
                np.testing.assert_array_equal(named[init].get_ydata(), curve["relative"])
                drawn = [line.get_ydata() for line in ax.lines]
                bound = curve["bound"].to_numpy()
                assert np.isnan(bound).all() or any(np.array_equal(y, bound) for y in drawn)
                predicted = (curve["theory_slope"] * curve["lag"]).to_numpy()
                assert np.isnan(predicted).all() or any(np.array_equal(y, predicted) for y in drawn)
            assert {"0.5", "4"} <= {text.get_text() for text in ax.texts}
    untrained = table[table["step"].eq(0) & table["panel"].eq("tanh")]
    assert untrained["theory_slope"].notna().all()
    assert table.loc[table["step"].eq(4), "theory_slope"].isna().all()
    [legend] = fig.legends
    assert [text.get_text() for text in legend.get_texts()][:2] == ["length 40", "length 20"]


def test_what_differs_is_never_averaged_over_silently(sweep):
    with pytest.raises(results.ResultsError, match="no run has a record at step 3"):
        gradient_curves.table(results.load(sweep), step=3)
