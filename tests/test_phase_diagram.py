"""The phase diagram of simulated wide nets: its table, what is drawn of it, and that theory's critical line runs through the zeros."""

import importlib
import runpy
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from commands import end, start
from hydra.core.override_parser.overrides_parser import OverridesParser
from oracle import make_config

from rnn_lab import theory, training
from rnn_lab.config import run_id
from rnn_lab.results import ResultsError, load
from rnn_lab.runner import Job, run_program

sys.path.append(str(Path(__file__).parents[1]))
phase_diagram = importlib.import_module("analysis.phase_diagram")

GAINS, STDS = (0.5, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5), (0.1, 0.3, 0.6, 1.0)


def write_runs(sweep: Path, points, **values) -> None:
    base = {"training.updates": 0, "task.length": 40, "training.batch_size": 4, "tracker.name": "none"}
    configs = [make_config(base | values | {"init.scale": g, "init.input_std": std, "seed": s}) for g, std, s in points]
    jobs = [Job(config, sweep / run_id(config), {}) for config in configs]
    for job in jobs:
        job.directory.mkdir(parents=True)
    for first in range(0, len(jobs), 16):
        outcomes = run_program(jobs[first : first + 16], SimpleNamespace(advance=lambda *counts: None), 1e9)
        assert {outcome.status for outcome in outcomes} == {"completed"}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """8 x 4 points, two seeds each, H = 256."""
    path = tmp_path_factory.mktemp("runs") / "phases"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Training, "_spectrum", lambda self: {})  # eigenvalues would take most of the time
        write_runs(path, product(GAINS, STDS, (0, 1)), **{"model.hidden": 256})
    return path


@pytest.fixture(autouse=True)
def _no_figures_left():
    yield
    plt.close("all")


def test_the_table_holds_measurement_and_theory_at_each_point(sweep):
    results = load(sweep)
    table = phase_diagram.table(results)
    assert len(table) == len(GAINS) * len(STDS)
    assert set(table["seeds"]) == {2}
    point = table[(table["g"] == 1.4) & np.isclose(table["inputs"], 0.36)].iloc[0]
    rows = results.steps[results.steps["run_id"].isin(point["run_ids"].split())]
    np.testing.assert_allclose(point["slope"], rows["dE_dh/slope"].mean())
    q = theory.second_moments("tanh", 1.4, np.full(40, 0.36))
    np.testing.assert_allclose(point["theory_slope"], theory.slope("tanh", 1.4, q), rtol=1e-5)
    np.testing.assert_allclose(point["difference"], point["slope"] - point["theory_slope"])


def test_the_critical_line_runs_through_the_zeros_of_the_measured_slope(sweep):
    table = phase_diagram.table(load(sweep))
    assert table["difference"].abs().max() < 0.03
    for _, row in table.groupby("inputs"):
        measured = np.interp(0, row["slope"], row["g"])
        assert abs(measured - row["critical_g"].iloc[0]) < 0.12
    assert table["critical_g"].max() - table["critical_g"].min() > 0.5  # a constant would not do


def test_what_is_drawn_is_the_table(sweep):
    table = phase_diagram.table(load(sweep))
    fig = phase_diagram.draw(table)
    panels = {ax.get_title(): ax for ax in fig.axes if ax.get_title()}
    assert list(panels) == ["tanh, measured", "tanh, mean-field theory", "tanh, measured $-$ theory"]
    critical = table.drop_duplicates("inputs").sort_values("inputs")
    for ax, column in zip(panels.values(), ("slope", "theory_slope", "difference"), strict=True):
        mesh, contour = ax.collections
        drawn = np.asarray(mesh.get_array()).reshape(len(STDS), len(GAINS))
        np.testing.assert_array_equal(drawn, table.pivot(index="inputs", columns="g", values=column))
        assert mesh.norm(0.0) == 0.5  # white is a gradient that keeps its size
        zeros = np.array(sorted(contour.get_paths()[0].vertices, key=lambda vertex: vertex[1]))
        at = np.interp(critical["inputs"], zeros[:, 1], zeros[:, 0])
        np.testing.assert_allclose(at, critical["critical_g"], atol=0.12)
        [line] = ax.lines
        np.testing.assert_array_equal(line.get_xdata(), critical["critical_g"])
        np.testing.assert_array_equal(line.get_ydata(), critical["inputs"])
        assert ax.get_yscale() == "log"
    measured, predicted = list(panels.values())[:2]
    assert measured.collections[0].norm is predicted.collections[0].norm
    assert "256 units, length 40, seeds a point: 2" in " ".join(fig.get_supxlabel().split())


def test_cells_end_half_way_between_their_centres():
    np.testing.assert_allclose(phase_diagram.edges(np.array([1.0, 2.0, 4.0])), [0.5, 1.5, 3.0, 5.0])


def test_the_command_writes_three_files_and_reads_a_std_as_a_gain(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(phase_diagram.style.RC, "savefig.dpi", 50)
    write_runs(tmp_path / "a", product((0.5, 1.0, 2.0), (0.1, 1.0), (0,)), **{"model.hidden": 16})
    status = phase_diagram.cli.main(
        "phase_diagram", phase_diagram.table, phase_diagram.draw, argv=[str(tmp_path / "a"), "--out", str(tmp_path)]
    )
    assert status == 0
    assert capsys.readouterr().out.split() == [
        str(tmp_path / f"phase_diagram.{k}") for k in ("pdf", "png", "svg", "csv")
    ]
    table = pd.read_csv(tmp_path / "phase_diagram.csv")
    assert table["g"].drop_duplicates().tolist() == [0.5, 1.0, 2.0]
    phase_diagram.draw(table)
    results = load(tmp_path / "a")
    results.runs["init.std"] = results.runs["init.scale"] / 4
    results.runs["init.scale"] = 1.0
    assert phase_diagram.table(results)["g"].drop_duplicates().tolist() == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init.input_std": np.nan}, r"give init\.input_std"),
        ({"task.name": "addition"}, "one-hot"),
        ({"init.name": "orthogonal"}, "no Elman net with init=gaussian"),
        ({"task.length": range(6)}, r"differ in task\.length too"),
        ({"init.input_std": 1.0}, "at least two values"),
    ],
)
def test_what_makes_no_map_is_said(tmp_path, change, message):
    write_runs(tmp_path / "a", product((0.5, 1.0, 2.0), (0.1, 1.0), (0,)), **{"model.hidden": 16})
    results = load(tmp_path / "a")
    for key, value in change.items():
        results.runs[key] = value
    with pytest.raises(ResultsError, match=message):
        phase_diagram.table(results)


SCRIPT = Path(__file__).parents[1] / "experiments" / "phase_diagram.py"


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu", "linear"])
def test_the_experiments_gains_lie_on_both_sides_of_the_critical_line(activation):
    """Where theory puts it, for the smallest input."""
    gains = runpy.run_path(str(SCRIPT))["GAINS"][activation]
    override = OverridesParser.create().parse_override(f"g={gains}")
    swept = [float(g) for g in override.sweep_string_iterator()]
    assert len(swept) == 30
    assert min(swept) < theory.critical_g(activation, 0.0316**2) < max(swept)


def test_the_experiment_takes_an_activation_and_overrides(tmp_path):
    """All its jobs are sound: an engine that does not exist is the only thing that is wrong with them."""
    ended = end(start("sigmoid", "hydra.launcher.engine=warp", cwd=tmp_path, script=SCRIPT))
    assert (ended.status, ended.out) == (2, "")
    assert [line.split("=")[0] for line in ended.err.splitlines()] == ["hydra.launcher.engine"]
    ended = end(start("softplus", cwd=tmp_path, script=SCRIPT))
    assert (ended.status, ended.err) == (2, "softplus: must be one of tanh, relu, linear, sigmoid, or key=value\n")
    assert list(tmp_path.iterdir()) == []
