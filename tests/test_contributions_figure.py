"""The figure of the double sum: its table is what the runs recorded, and what is drawn is the table."""

import importlib
import json
import sys
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from rnn_lab import results
from rnn_lab.recording.store import write_array

sys.path.append(str(Path(__file__).parents[1]))
contributions = importlib.import_module("analysis.contributions")

T, LAYERS = 6, 2
SLOPES = {("sigmoid", 1.0): -20.0, ("sigmoid", 4.0): -0.5, ("tanh", 1.0): -0.25, ("tanh", 4.0): 0.5}


def write_run(sweep: Path, activation: str, scale: float, seed: int, losses: int = T, recorded: bool = True) -> None:
    """A run whose pairs lie on a slope: log10 norm = slope (t - k) + seed + 10 p + layer, W's at k = 1 exactly 0."""
    directory = sweep / f"{len(list(sweep.glob('*'))):010x}"
    directory.mkdir(parents=True)
    config = {
        "seed": seed,
        "preset": "none",
        "task": {"length": 4},
        "model": {"name": "elman", "activation": activation},
        "init": {"name": "gaussian", "scale": scale, "std": None},
        "clip": {"name": "norm" if seed == 2 else "none"},
    }
    info = {"format": 1, "run_id": directory.name, "sweep": sweep.name, "status": "completed", "config": config}
    info |= {"series": [], "layers": LAYERS, "T": T}
    (directory / "run.json").write_text(json.dumps(info))
    (directory / "steps.jsonl").write_text('{"step": 0}\n')
    if not recorded:
        return
    p, layer, row, column = np.indices((3, LAYERS, losses + 4, T)).astype(float)
    lag = np.where(row < losses, T - losses + row - column, T - 1 - column)
    found = SLOPES[activation, scale] * lag + seed + 10 * p + layer + 100 * np.maximum(row - losses + 1, 0)
    found[(row < losses) & (lag < 0)] = np.nan
    found[:, :, losses, : T - losses] = np.nan
    found[0, :, :losses, 0] = found[0, :, losses + 1, 0] = -np.inf
    write_array(directory / "contributions" / "0.npy", found.astype("<f4"))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "pairs"
    for (activation, scale), seed in product(SLOPES, range(2)):
        write_run(path, activation, scale, seed)
    return path


@pytest.fixture(autouse=True)
def _no_figures_left():
    yield
    plt.close("all")


@pytest.mark.parametrize(("parameter", "layer"), [("W", 1), ("U", 2)])
def test_the_table_is_the_mean_over_seeds_of_what_was_recorded(sweep, parameter, layer):
    table = contributions.table(results.load(sweep), parameter, layer)
    offset = 0.5 + 10 * "WUb".index(parameter) + layer - 1
    for (activation, scale), slope in SLOPES.items():
        own = table[table["panel"].eq(activation) & table["init"].eq(f"scale {scale:g}")].set_index("kind")
        pairs = own.loc["pair"]
        assert len(pairs) == T * (T + 1) // 2
        assert (pairs["lag"] == pairs["t"] - pairs["k"]).all()
        zeros = (pairs["k"] == 1) & (parameter == "W")
        assert (pairs["seeds"] == np.where(zeros, 0, 2)).all()
        expected = (slope * pairs["lag"]).mask(zeros)
        np.testing.assert_allclose(pairs["log10_norm"], expected + offset, rtol=1e-6)
        np.testing.assert_allclose(pairs["relative"], expected, atol=1e-5)
        np.testing.assert_array_equal(own.loc["by lag", "lag"], np.arange(T))
        np.testing.assert_allclose(own.loc["by lag", "log10_norm"], slope * np.arange(T) + offset + 300, rtol=1e-6)
        np.testing.assert_allclose(own.loc["beyond", "share"], 10.0 ** (slope * np.arange(T)), rtol=1e-3)
        by_k = own.loc["by k"].set_index("k")["log10_norm"]
        np.testing.assert_allclose(by_k.loc[2:], slope * (T - by_k.index[1:]) + offset + 200, rtol=1e-6)
        by_t = own.loc["by t"].set_index("t")["log10_norm"]
        np.testing.assert_allclose(by_t, slope * (T - by_t.index) + offset + 100, rtol=1e-6)


def test_what_is_drawn_is_the_table(sweep):
    table = contributions.table(results.load(sweep))
    fig = contributions.draw(table)
    titles = [ax.get_title() for ax in fig.axes]
    for panel, init in product(("sigmoid", "tanh"), ("scale 1", "scale 4")):
        above = fig.axes[titles.index(f"{panel}, {init}")]
        below = fig.axes[fig.axes.index(above) + 3]
        own = table[table["panel"].eq(panel) & table["init"].eq(init)]
        for line, kind in zip(above.lines, ("by k", "by t"), strict=True):
            np.testing.assert_array_equal(line.get_ydata(), own.loc[own["kind"].eq(kind), "log10_norm"])
        [mesh] = below.collections
        grid = own[own["kind"].eq("pair")].pivot(index="t", columns="k", values="relative")
        drawn = np.ma.filled(np.ma.asarray(mesh.get_array()).reshape(T, T).astype(float), np.nan)
        np.testing.assert_array_equal(drawn, grid)
        assert mesh.norm(0.0) == 0.5  # white: as large as the pairs of lag 0
        assert mesh.norm.vmax == contributions.DECADES
    assert "from 1e-80 to 1e2" in " ".join(fig.get_supxlabel().split())


def test_a_loss_at_the_last_step_is_one_row(tmp_path):
    for seed in range(2):
        write_run(tmp_path / "last", "tanh", 1.0, seed, losses=1)
    table = contributions.table(results.load(tmp_path / "last"))
    assert set(table.loc[table["kind"].eq("pair"), "t"]) == {T}
    contributions.draw(table)


def test_before_the_first_update_a_clip_makes_no_group_of_its_own(tmp_path):
    for seed in (0, 2):
        write_run(tmp_path / "clips", "tanh", 1.0, seed)
    assert set(contributions.table(results.load(tmp_path / "clips"))["variant"]) == {"-"}


def test_the_command_writes_what_can_be_drawn_again(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(contributions.style.RC, "savefig.dpi", 50)
    argv = [str(sweep), "--out", str(tmp_path), "--parameter", "b"]
    main = contributions.cli.main
    assert main("contributions", contributions.table, contributions.draw, contributions.options, argv=argv) == 0
    assert capsys.readouterr().out.split() == [
        str(tmp_path / f"contributions.{k}") for k in ("pdf", "png", "svg", "csv")
    ]
    contributions.draw(pd.read_csv(tmp_path / "contributions.csv"))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"layer": 3}, r"--layer 3: .* has layers 1 to 2"),
        ({"step": 7}, "at step 7; they are at 0"),
        ({"length": 9}, "are 4"),
    ],
)
def test_what_is_not_there_is_said(sweep, choice, message):
    with pytest.raises(results.ResultsError, match=message):
        contributions.table(results.load(sweep), **choice)


def test_runs_that_recorded_no_pairs_are_named(tmp_path):
    write_run(tmp_path / "without", "tanh", 1.0, 0, recorded=False)
    with pytest.raises(results.ResultsError, match=r"no contributions \(probe\.contributions_every\)"):
        contributions.table(results.load(tmp_path / "without"))
