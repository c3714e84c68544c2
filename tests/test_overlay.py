"""Theory drawn over measurement in gradient_flow: the numbers in the table, the line, the interval."""

import importlib
import io
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from rnn_lab.results import load

sys.path.append(str(Path(__file__).parents[1]))
gradient_flow = importlib.import_module("analysis.gradient_flow")
overlay = gradient_flow.overlay

LENGTH = 80
MEASURED, PREDICTED = {0.5: (-0.31, -0.29, -0.30), 4.0: (0.20, 0.21, 0.22)}, {0.5: -0.302, 4.0: 0.3}


@pytest.fixture
def sweep(tmp_path) -> Path:
    """Two scales, three seeds: straight curves; theory is right about the smaller scale and wrong about the other."""
    for scale, slopes in MEASURED.items():
        for seed, slope in enumerate(slopes):
            config = {
                "seed": seed, "preset": "none", "task": {"name": "temporal_order", "length": LENGTH}, "clip": {"name": "none"},
                "model": {"name": "elman", "activation": "tanh", "layers": 2}, "init": {"name": "gaussian", "scale": scale},
            }  # fmt: skip
            run = tmp_path / f"{len(list(tmp_path.iterdir())):010x}"
            run.mkdir()
            info = {"format": 1, "run_id": run.name, "sweep": "s", "status": "completed", "config": config, "layers": 2}
            (run / "run.json").write_text(
                json.dumps(info | {"T": LENGTH, "series": ["dE_dh/log10_norm", "delta/log10_norm"]})
            )
            rows = [
                {"step": 0, "dE_dh/slope": slope, "theory/slope": PREDICTED[scale]},
                {"step": 9, "dE_dh/slope": slope},
            ]
            (run / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            curve = slope * np.arange(LENGTH)[::-1] - 2
            np.broadcast_to(curve, (2, 2, 2, LENGTH)).astype("<f4").tofile(run / "timesteps.f32")
    yield tmp_path
    plt.close("all")


def by_scale(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop_duplicates("init").set_index("init")


def test_the_table_says_whether_theory_lies_in_the_interval(sweep):
    found = by_scale(gradient_flow.table(load(sweep)))
    half = 4.302653 * 0.01 / 3**0.5  # Student's t, two degrees of freedom
    np.testing.assert_allclose(found["slope"], [-0.30, 0.21])
    np.testing.assert_allclose(found["slope_low"], [-0.30 - half, 0.21 - half], rtol=1e-5)
    np.testing.assert_allclose(found["slope_high"], [-0.30 + half, 0.21 + half], rtol=1e-5)
    assert found["theory_slope"].tolist() == [-0.302, 0.3]
    assert found["theory_inside"].tolist() == [True, False]


def test_quantiles_are_students():
    for seeds, expected in {2: 12.7062, 3: 4.30265, 5: 2.77645, 11: 2.22814, 31: 2.04227, 1001: 1.96234}.items():
        np.testing.assert_allclose(overlay.t_quantile(seeds), expected, rtol=1e-5)
    assert np.isnan(overlay.t_quantile(1))


def test_the_line_starts_at_the_measured_norm_and_covers_the_lags_compared(sweep):
    table = gradient_flow.table(load(sweep))
    again = pd.read_csv(io.StringIO(table.to_csv(index=False)))  # a figure is a function of its csv
    for frame in (table, again):
        ax = gradient_flow.draw(frame).axes[0]
        dotted = [line for line in ax.lines if line.get_linestyle() == ":" or line.get_linewidth() == 0.9]
        assert len(dotted) == 2
        for line, slope in zip(dotted, PREDICTED.values(), strict=True):
            lag = LENGTH - line.get_xdata()
            assert sorted(lag) == list(range(60))
            np.testing.assert_allclose(line.get_ydata(), -2 + slope * lag, atol=1e-5)
        words = [text.get_text() for text in ax.findobj(plt.Text)]
        assert {"measured", "theory", "\N{MINUS SIGN}0.30 ± 0.02", "+0.30*"} <= set(words)
    caption = " ".join(gradient_flow.draw(table).get_supxlabel().split())
    assert "theory lies inside for 1 of 2 (*: outside)" in caption


def test_theory_is_drawn_only_over_what_it_predicts(sweep):
    for options in ({"step": 9}, {"step": "last"}, {"quantity": "delta"}, {"layer": 1}):
        table = gradient_flow.table(load(sweep), **options)
        assert table["theory_slope"].isna().all()
        fig = gradient_flow.draw(table)
        assert not [line for line in fig.axes[0].lines if line.get_linewidth() == 0.9]
        assert "theory" not in fig.get_supxlabel()
    assert by_scale(gradient_flow.table(load(sweep), step=9))["slope"].notna().all()


def test_a_single_seed_has_no_interval(sweep):
    runs = sorted(path for path in sweep.iterdir())
    table = gradient_flow.table(load([runs[0], runs[3]]))
    assert table["slope_low"].isna().all()
    assert table["theory_inside"].isna().all()
    fig = gradient_flow.draw(table)
    words = {text.get_text() for text in fig.axes[0].findobj(plt.Text)}
    assert {"\N{MINUS SIGN}0.31", "+0.20"} <= words
    assert "theory lies" not in fig.get_supxlabel()


def test_the_table_covers_no_curve(sweep):
    frame = gradient_flow.table(load(sweep))
    growing = frame[frame["init"] == frame["init"].iloc[-1]]
    frame = pd.concat([frame, *(growing.assign(init=f"scale {n}") for n in (5, 6, 7))], ignore_index=True)
    figure = gradient_flow.draw(frame)
    figure.canvas.draw()
    [ax] = figure.axes
    [box] = [artist for artist in ax.artists if isinstance(artist, overlay.AnchoredOffsetbox)]
    table = box.get_window_extent()
    for column in ("mean", "low"):
        inside = [table.contains(*ax.transData.transform(point)) for point in frame[["t", column]].to_numpy()]
        assert not any(inside)
