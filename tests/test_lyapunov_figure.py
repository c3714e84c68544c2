"""experiments/lyapunov.py and the figures of exponents and of memory: files, contents, and what is refused."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from commands import train
from oracle import make_config

from rnn_lab import theory
from rnn_lab.config import run_id
from rnn_lab.results import ResultsError, load
from rnn_lab.runner import Job, run_program

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))
lyapunov = importlib.import_module("analysis.lyapunov")
memory = importlib.import_module("analysis.memory")
experiment = importlib.import_module("experiments.lyapunov")

SMALL = [
    "--hidden",
    "16",
    "--steps",
    "200",
    "--transient",
    "50",
    "--seeds",
    "2",
    "--lags",
    "1",
    "40",
    "--g",
    "0.5",
    "3",
]


@pytest.fixture(scope="module")
def spectra(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("spectra")
    assert experiment.main([*SMALL, "--activation", "tanh", "--out", str(out)]) == 0
    return out


@pytest.fixture(autouse=True)
def _no_figures_left():
    yield
    plt.close("all")


def test_the_experiment_writes_every_exponent_of_every_net(spectra):
    frame, products = (pd.read_csv(spectra / name) for name in ("spectra.csv", "singular_values.csv"))
    assert len(frame) == 2 * 2 * 2 * 16  # drives, gains, seeds, units
    assert len(products) == 2 * 2 * 2 * 16  # drives, gains, lags, units; seed 0
    for _, net in frame.groupby(["drive", "g", "seed"]):
        assert net["exponent"].is_monotonic_decreasing
        np.testing.assert_allclose(net["entropy"], net["exponent"].clip(lower=0).sum())
    quiet = frame[(frame["g"] == 0.5) & (frame["drive"] == "autonomous")]
    assert (quiet["exponent"] < 0).all()
    assert (quiet["kaplan_yorke"] == 0).all()
    origin = json.loads((spectra / "experiment.json").read_text())
    assert origin["settings"]["hidden"] == 16
    assert {"command", "versions", "git"} <= set(origin)


def test_exponents_and_singular_values_are_of_one_trajectory(spectra):
    """Their sums over all directions are ln|det| over steps that overlap; at rest the Jacobian is constant."""
    frame, products = (pd.read_csv(spectra / name) for name in ("spectra.csv", "singular_values.csv"))
    for drive, close in (("autonomous", 1e-3), ("driven", 1.0)):
        own = frame[(frame["drive"] == drive) & (frame["g"] == 0.5) & (frame["seed"] == 0)]
        rates = products[(products["drive"] == drive) & (products["g"] == 0.5) & (products["lag"] == 40)]
        assert rates["rate"].sum() == pytest.approx(own["exponent"].sum(), abs=close)


def test_a_net_does_not_depend_on_its_neighbours(spectra, tmp_path):
    alone = [
        *SMALL[:-3],
        "--g",
        "3",
        "--seeds",
        "1",
        "--activation",
        "tanh",
        "--drive",
        "driven",
        "--out",
        str(tmp_path),
    ]
    assert experiment.main(alone) == 0
    frame, one = pd.read_csv(spectra / "spectra.csv"), pd.read_csv(tmp_path / "spectra.csv")
    same = frame[(frame["drive"] == "driven") & (frame["g"] == 3) & (frame["seed"] == 0)]
    np.testing.assert_allclose(one["exponent"], same["exponent"], atol=1e-6)


@pytest.mark.slow
def test_the_net_of_a_run_before_and_after_its_training(tmp_path):
    """A linear net's Jacobian is W: its first exponent is ln rho(W), which the run has recorded."""
    net = ["model.activation=linear", "model.hidden=16", "task.length=20", "init.scale=0.9"]
    how = ["optimizer.lr=0.05", "clip=norm", "training.updates=30", "training.log_every=30", "tracker=none"]
    assert train(*net, *how, cwd=tmp_path).status == 0
    [run] = (tmp_path / "runs" / "default").glob("*/run.json")
    arguments = ["--run", str(run.parent), "--steps", "600", "--transient", "50", "--lags", "1", "--out", str(tmp_path)]
    assert experiment.main(arguments) == 0
    frame = pd.read_csv(tmp_path / "spectra.csv")
    assert set(frame["net"]) == {"linear, 0 updates", "linear, 30 updates"}
    first = frame[frame["index"] == 1].pivot(index="updates", columns="drive", values="exponent")
    rho = load(run.parent).steps.set_index("step")["W/rho"]
    for drive in ("autonomous", "driven"):
        np.testing.assert_allclose(first[drive], np.log(rho[[0, 30]]), atol=0.01)
    assert abs(np.log(rho[30] / rho[0])) > 0.02
    assert (
        lyapunov.cli.main("lyapunov", lyapunov.table, lyapunov.draw, lyapunov.options, [str(tmp_path)], lyapunov.read)
        == 0
    )
    drawn = pd.read_csv(tmp_path / "figures" / "lyapunov.csv")
    assert set(drawn.loc[drawn["kind"] == "theory", "net"]) == {"linear, 0 updates"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--g", "-1"], "--g -1.0: must be a finite number >= 0"),
        (["--g", "nan"], "--g nan: must be"),
        (["--activation", "tan"], "--activation tan: must be one of sigmoid"),
        (["--hidden", "0"], "--hidden 0: must be a whole number >= 1"),
        (["--steps", "3"], "--steps 3: must be a whole number >= 20"),
        (["--lags", "0"], "--lags 0: must be whole numbers from 1"),
        (["--lags", "2000"], "--lags 2000: must be"),
        (["--task", "addition"], "--task addition: its sequences differ in length"),
        (["--task", "nope"], "--task nope: must be one of"),
        (["--length", "3"], "--length 3: temporal_order needs at least 10"),
    ],
)
def test_what_is_refused_is_said_in_one_line(arguments, says, tmp_path, capsys):
    with pytest.raises(SystemExit) as leaving:
        experiment.main([*arguments, "--out", str(tmp_path / "new")])
    assert leaving.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert says in line
    assert not (tmp_path / "new").exists()


def test_it_runs_as_a_program(tmp_path):
    (tmp_path / "file").touch()
    command = [sys.executable, str(ROOT / "experiments" / "lyapunov.py"), "--out", str(tmp_path / "file")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)


def test_the_figure_draws_what_was_measured_and_what_theory_says(spectra, tmp_path, monkeypatch):
    monkeypatch.setitem(lyapunov.style.RC, "savefig.dpi", 50)
    arguments = [str(spectra), "--at", "3", "--out", str(tmp_path)]
    assert lyapunov.cli.main("lyapunov", lyapunov.table, lyapunov.draw, lyapunov.options, arguments, lyapunov.read) == 0
    kinds = ["csv", "csv-metadata.json", "pdf", "png", "svg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"lyapunov.{kind}" for kind in kinds]
    table = pd.read_csv(tmp_path / "lyapunov.csv")
    raw = pd.read_csv(spectra / "spectra.csv")
    first = table[(table["kind"] == "first") & (table["drive"] == "driven") & (table["g"] == 3)].iloc[0]
    seeds = raw[(raw["drive"] == "driven") & (raw["g"] == 3) & (raw["index"] == 1)]["exponent"]
    assert (first["mean"], first["low"], first["high"]) == pytest.approx((seeds.mean(), seeds.min(), seeds.max()))
    line = table[(table["kind"] == "theory") & (table["drive"] == "driven")]
    expected = 0.5 * np.log(theory.chi("tanh", 3.0, theory.fixed_point("tanh", 3.0, 1.0)))
    assert line["mean"].iloc[-1] == pytest.approx(expected)
    fig = lyapunov.draw(table)
    [drawn] = [ax for ax in fig.axes if ax.get_title() == "tanh, driven"]
    spectrum = table[(table["kind"] == "spectrum") & (table["drive"] == "driven") & (table["g"] == 3)]
    assert any(np.array_equal(line.get_ydata(), spectrum["mean"]) for line in drawn.lines)


def test_what_cannot_be_drawn_is_said(spectra, tmp_path):
    with pytest.raises(ResultsError, match=r"no spectra\.csv"):
        lyapunov.read(lyapunov.cli.Parser(), [tmp_path], [])
    loaded, _ = lyapunov.read(lyapunov.cli.Parser(), [spectra], ["drive=driven"])
    assert set(loaded.exponents["drive"]) == {"driven"}
    with pytest.raises(ResultsError, match=r"--at 7: no such gain; they are 0\.5, 3"):
        lyapunov.table(loaded, 7)
    with pytest.raises(ResultsError, match="no such run"):
        lyapunov.read(lyapunov.cli.Parser(), [spectra], ["g=9"])


# -------------------- memory


@pytest.fixture(scope="module")
def remembered(tmp_path_factory) -> Path:
    sweep = tmp_path_factory.mktemp("runs") / "memory"
    base = {
        "training.updates": 2,
        "probe.memory_every": 2,
        "training.log_every": 1,
        "task.length": 30,
        "tracker.name": "none",
    }
    values = base | {"model.activation": "linear", "optimizer.lr": 0.0, "model.hidden": 20, "training.batch_size": 4}
    configs = [make_config(values | {"init.scale": g, "seed": s}) for g in (0.5, 2.0) for s in range(3)]
    jobs = [Job(config, sweep / run_id(config), {}) for config in configs]
    for job in jobs:
        job.directory.mkdir(parents=True)
    assert {o.status for o in run_program(jobs, SimpleNamespace(advance=lambda *counts: None), 1e9)} == {"completed"}
    return sweep


def test_half_lives_of_gradient_and_state_lie_beside_each_other(remembered):
    """Gaussian W of 20 units: both change by about log10(g) a step."""
    table = memory.table(load(remembered))
    ends = table.drop_duplicates(["init", "kind"]).set_index(["init", "kind"])
    for init, direction, g in (("scale 0.5", "vanishing", 0.5), ("scale 2", "exploding", 2.0)):
        for kind in ("gradient", "state"):
            row = ends.loc[(init, kind)]
            assert row["direction"] == direction
            assert row["half_life"] == pytest.approx(np.log10(2) / abs(np.log10(g)), rel=0.4)
            assert row["seeds_low"] < row["half_life"] < row["seeds_high"]
            assert row["fit_low"] < row["fit_high"]
    results = load(remembered)
    one = results.timesteps[(results.timesteps["step"] == 0) & (results.timesteps["lag"] == 29)]
    found = table[(table["kind"] == "state") & (table["lag"] == 29)]
    lowest = one["memory/log10_gain"].min()
    assert found["low"].min() == pytest.approx(lowest, rel=1e-5)  # relative to lag 0, where it is 0


def test_a_later_record_is_one_that_has_a_memory(remembered):
    assert set(memory.table(load(remembered), "last")["step"]) == {-1}
    with pytest.raises(ResultsError, match="no run has its memory at step 1, layer top"):
        memory.table(load(remembered), 1)


def test_the_memory_figure_is_its_table(remembered, tmp_path, monkeypatch):
    monkeypatch.setitem(memory.style.RC, "savefig.dpi", 50)
    assert (
        memory.cli.main("memory", memory.table, memory.draw, memory.options, [str(remembered), "--out", str(tmp_path)])
        == 0
    )
    table = pd.read_csv(tmp_path / "memory.csv")
    curves, lives = memory.draw(table).axes[:2]
    state = table[(table["kind"] == "state") & (table["init"] == "scale 2")]
    assert any(np.array_equal(line.get_ydata(), state["mean"]) for line in curves.lines)
    drawn = [float(line.get_xdata()[0]) for line in lives.lines if len(line.get_xdata()) == 1]
    assert sorted(drawn) == pytest.approx(sorted(table.drop_duplicates(["init", "kind"])["half_life"]))


def test_runs_without_memory_are_refused(remembered):
    results = load(remembered)
    without = results.timesteps.drop(columns="memory/log10_gain")
    with pytest.raises(ResultsError, match=r"probe\.memory_every"):
        memory.table(results.__class__(results.runs, results.steps, without, results.config))
