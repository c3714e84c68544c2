"""Figures are functions of a table: what is drawn is the table, the table is the runs, and the files carry both."""

import importlib
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rnn_lab.results import ResultsError, load

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))
gradient_flow = importlib.import_module("analysis.gradient_flow")
training_curves = importlib.import_module("analysis.training_curves")
style, grouping = gradient_flow.style, gradient_flow.grouping

SLOPES = {("sigmoid", 0.5): -1.2, ("sigmoid", 4.0): -0.2, ("tanh", 0.5): -0.4, ("tanh", 4.0): 0.46}
STEPS = (0, 10, 20)
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}


def write_run(
    sweep: Path, activation="tanh", scale=4.0, length=100, clip="none", seed=0, diverged_at=None, layers=1, **more
):
    """A run whose curve is a line of SLOPES, shifted by seed / 10 and, after updates, by clipping."""
    config = {
        "seed": seed,
        "preset": "none",
        "task": {"name": "temporal_order", "length": length},
        "model": {"name": "elman", "activation": activation, "layers": layers},
        "init": {"name": "gaussian", "scale": scale, "std": None},
        "clip": {"name": clip, "threshold": 1.0},
        "training": {"updates": 20},
    }
    for key, value in more.get("config", {}).items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    run_id = more.get("run_id") or f"{len(list(sweep.glob('*'))):010x}"
    (sweep / run_id).mkdir(parents=True)
    steps = [step for step in STEPS if diverged_at is None or step <= diverged_at]
    lag = np.arange(length)[::-1]
    blocks, lines = [], []
    for step in steps:
        curve = SLOPES.get((activation, scale), -0.1) * lag + seed / 10 + (step / 10 if clip == "norm" else 0)
        blocks.append([[curve + layer for layer in range(layers)], [curve - 100 + layer for layer in range(layers)]])
        norm = np.inf if step == diverged_at else 10.0 ** (seed + 1)
        after = min(norm, 1.0) if clip == "norm" else norm
        loss = np.nan if step == diverged_at else 1.0 + seed + step
        lines.append(
            {"step": step, "train/loss": loss, "train/error": 0.5, "grad/norm": norm, "grad/norm_clipped": after}
        )
    lines = [line | more.get("metrics", {}) for line in lines]
    np.asarray(more.get("blocks", blocks), "<f4").tofile(sweep / run_id / "timesteps.f32")
    (sweep / run_id / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    status = more.get("status", "completed" if diverged_at is None else "diverged")
    info = {
        "format": 1,
        "run_id": run_id,
        "sweep": sweep.name,
        "status": status,
        "diverged_at": diverged_at,
        "config": config,
    }
    shape = {"series": ["dE_dh/log10_norm", "delta/log10_norm"], "layers": layers, "T": length}
    origin = {
        "command": "train.py -m",
        "git": {"commit": "abc", "dirty": True},
        "baseline": {"loss": 1.386, "error": 0.75},
    }
    (sweep / run_id / "run.json").write_text(json.dumps(info | shape | origin))
    return sweep / run_id


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """{sigmoid, tanh} x 2 scales x 2 lengths x 2 clips x 3 seeds = 48 runs; tanh at 4, 100 diverge at once."""
    path = tmp_path_factory.mktemp("runs") / "demo"
    for (activation, scale), length, clip, seed in product(SLOPES, (50, 100), ("none", "norm"), range(3)):
        burst = (activation, scale, length) == ("tanh", 4.0, 100)
        write_run(path, activation, scale, length, clip, seed, 0 if burst else None)
    return path


@pytest.fixture(scope="module")
def drawn(sweep, tmp_path_factory) -> Path:
    """Both figures as a user makes them: by two scripts, in processes of their own."""
    out = tmp_path_factory.mktemp("out")
    for name in ("gradient_flow", "training_curves"):
        script = [sys.executable, str(ROOT / "analysis" / f"{name}.py"), str(sweep), "--out", str(out)]
        done = subprocess.run(script, capture_output=True, text=True, env=ENVIRONMENT)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [str(out / f"{name}.{kind}") for kind in ("pdf", "png", "svg", "csv")]
    return out


@pytest.fixture(autouse=True)
def _no_figures_left():
    yield
    plt.close("all")


def panels(fig) -> dict:
    return {ax.get_title(): ax for ax in fig.axes if ax.get_title()}


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def levels(ax) -> list[float]:
    """Where horizontal lines cross the whole panel."""
    return [float(line.get_ydata()[0]) for line in ax.lines if list(line.get_xdata()) == [0, 1]]


def caption(fig) -> str:
    return " ".join(fig.get_supxlabel().split())


# -- gradient_flow


def test_the_table_is_the_mean_over_seeds_and_clipping_makes_no_second_sample_of_the_untrained_net(sweep):
    table = gradient_flow.table(load(sweep))
    curve = table[(table["panel"] == "tanh") & (table["length"] == 50) & (table["init"] == "scale 4")]
    assert curve["t"].tolist() == list(range(1, 51))
    assert curve["lag"].tolist() == list(range(49, -1, -1))
    np.testing.assert_allclose(curve["mean"], 0.46 * curve["lag"] + 0.1, atol=1e-5)
    np.testing.assert_allclose(curve["high"] - curve["low"], 0.2, atol=1e-5)
    assert set(curve["seeds"]) == {3}
    assert set(curve["runs"]) == {6}
    assert set(curve["variant"]) == {"-"}


def test_lines_bands_and_labels_are_those_of_the_csv(drawn):
    table = pd.read_csv(drawn / "gradient_flow.csv")
    shown = panels(gradient_flow.draw(table))
    assert list(shown) == [f"{a}, length {n}" for a in ("sigmoid", "tanh") for n in (50, 100)]
    for title, ax in shown.items():
        panel, length = title.split(", length ")
        part = table[(table["panel"] == panel) & (table["length"] == int(length))]
        lines = {line.get_label(): line for line in ax.lines if line.get_label().startswith("scale")}
        assert set(lines) == set(part["init"]) == {"scale 0.5", "scale 4"}
        assert {"scale 0.5", "scale 4"} <= set(texts(ax))
        colours = {label: line.get_color() for label, line in lines.items()}
        assert len(set(colours.values())) == 2
        for init, curve in part.groupby("init"):
            np.testing.assert_array_equal(lines[init].get_xdata(), curve["t"])
            np.testing.assert_array_equal(lines[init].get_ydata(), curve["mean"])
        low, high = ax.get_ylim()
        assert low < part["low"].min()
        assert part["high"].max() < high
        assert len(ax.collections) == 3  # two bands and the level of a gradient that keeps its size


def test_float32_limits_are_marked_where_they_are_in_sight(drawn):
    shown = panels(gradient_flow.draw(pd.read_csv(drawn / "gradient_flow.csv")))
    squares, entries, overflow = np.log10(3.7e-23), np.log10(1.4e-45), np.log10(3.4e38)
    np.testing.assert_allclose(levels(shown["sigmoid, length 50"]), [squares, entries], atol=0.01)
    np.testing.assert_allclose(levels(shown["sigmoid, length 100"]), [squares, entries], atol=0.01)
    np.testing.assert_allclose(levels(shown["tanh, length 100"]), [squares, overflow], atol=0.01)  # -40 to +46
    assert {"float32:\nsquares are 0", "float32:\nentries are 0"} <= set(texts(shown["sigmoid, length 100"]))
    assert "float32:\noverflow" in texts(shown["tanh, length 100"])


def test_directions_are_named_only_where_there_are_any(drawn):
    shown = panels(gradient_flow.draw(pd.read_csv(drawn / "gradient_flow.csv")))
    assert "vanishing" in texts(shown["sigmoid, length 100"])
    assert "exploding" not in texts(shown["sigmoid, length 100"])
    assert {"vanishing", "exploding"} <= set(texts(shown["tanh, length 100"]))


def test_the_axis_says_which_derivative_and_that_it_is_total(sweep):
    for quantity, symbol in {"dE_dh": r"\partial h_t", "delta": r"\partial a_t"}.items():
        table = gradient_flow.table(load(sweep), quantity=quantity)
        label = gradient_flow.draw(table).axes[0].get_ylabel()
        assert symbol in label
        assert "(total)" in label
        assert (table["mean"].min() < -150) == (quantity == "delta")


def test_diverged_and_missing_runs_are_stated(sweep):
    assert "6 of 48 runs diverged" in caption(gradient_flow.draw(gradient_flow.table(load(sweep))))
    later = caption(gradient_flow.draw(gradient_flow.table(load(sweep), step=20)))
    assert "6 of 48 runs given have no such record" in later
    assert "after 20 updates" in later


def test_after_updates_clipping_makes_lines_of_its_own(sweep):
    table = gradient_flow.table(load(sweep), step="last")
    assert set(table["variant"]) == {"clip none", "clip norm"}
    assert set(table["seeds"]) == {3}
    start = table[(table["panel"] == "sigmoid") & (table["lag"] == 0)].groupby("variant")["mean"].mean()
    np.testing.assert_allclose(start[["clip none", "clip norm"]], [0.1, 2.1], atol=1e-5)
    fig = gradient_flow.draw(table)
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["clip none", "clip norm"]
    styles = {line.get_linestyle() for line in panels(fig)["sigmoid, length 50"].lines if line.get_label() == "scale 4"}
    assert len(styles) == 2


def test_exact_zeros_and_nan_are_counted_and_left_out(tmp_path):
    holes = np.zeros((3, 2, 1, 4), np.float32)
    holes[0, 0, 0] = [-np.inf, -np.inf, np.nan, -1]
    write_run(tmp_path, length=4, seed=0, blocks=holes)
    write_run(tmp_path, length=4, seed=1, blocks=np.where(np.arange(4) == 0, -np.inf, -3 + np.zeros_like(holes)))
    table = gradient_flow.table(load(tmp_path))
    np.testing.assert_array_equal(table["mean"], [np.nan, -3, -3, -2])
    assert table["zeros"].tolist() == [2, 1, 0, 0]
    assert table["missing"].tolist() == [0, 0, 1, 0]
    fig = gradient_flow.draw(table)
    assert "an exact 0 in some seed (3 values)" in caption(fig)
    assert "1 values are not finite" in caption(fig)
    marks = next(line for line in fig.axes[0].lines if line.get_marker() == 7)
    assert list(marks.get_xdata()) == [1, 2]


def test_the_top_layer_is_drawn_unless_another_is_asked_for(tmp_path):
    write_run(tmp_path, layers=3)
    assert gradient_flow.table(load(tmp_path))["mean"].iloc[-1] == 2
    assert gradient_flow.table(load(tmp_path), layer=1)["mean"].iloc[-1] == 0
    with pytest.raises(ResultsError, match="layer 4"):
        gradient_flow.table(load(tmp_path), layer=4)


def test_a_single_run_a_std_and_a_preset_have_their_names(tmp_path):
    path = write_run(tmp_path / "a")
    assert list(panels(gradient_flow.draw(gradient_flow.table(load(path))))) == ["tanh, length 100"]
    write_run(tmp_path / "b", config={"init": {"std": 0.01, "scale": None}})
    write_run(tmp_path / "b", config={"preset": "pascanu_smart_tanh"})
    write_run(tmp_path / "b", config={"model": {"name": "lstm"}})
    table = gradient_flow.table(load(tmp_path / "b"))
    assert set(zip(table["panel"], table["init"], strict=True)) == {
        ("tanh", "std 0.01"), ("tanh", "pascanu_smart_tanh"), ("LSTM", "scale 4"),
    }  # fmt: skip


def test_what_differs_is_never_averaged_over_silently(tmp_path):
    for hidden in (10, 20):
        write_run(tmp_path, config={"model": {"hidden": hidden}})
    assert set(gradient_flow.table(load(tmp_path))["variant"]) == {"hidden 10", "hidden 20"}
    for hidden in range(30, 90, 10):
        write_run(tmp_path, config={"model": {"hidden": hidden}})
    with pytest.raises(ResultsError, match=r"the runs differ in model\.hidden too \(8 variants\)"):
        gradient_flow.table(load(tmp_path))
    chosen = load(tmp_path, where="model.hidden=20.0")
    assert len(chosen.runs) == 1
    assert set(gradient_flow.table(chosen)["variant"]) == {"-"}


def test_cadences_and_the_like_make_no_second_sample(tmp_path):
    write_run(tmp_path)
    write_run(tmp_path, config={"training": {"updates": 30, "kernel": "numba"}, "sweep": "x"})
    for step in (0, 20):
        table = gradient_flow.table(load(tmp_path), step=step)
        assert set(table["seeds"]) == {1}
        assert set(table["variant"]) == {"-"}


# -- training_curves


def test_training_curves_are_those_of_the_csv(drawn):
    table = pd.read_csv(drawn / "training_curves.csv")
    assert set(table["length"]) == {100}
    fig = training_curves.draw(table)
    axes = np.array(fig.axes).reshape(3, 4)
    titles = [f"{a}, clip {c}" for a in ("sigmoid", "tanh") for c in ("none", "norm")]
    assert [ax.get_title() for ax in axes[0]] == titles
    for row, name in zip(axes, ("loss", "error", "gradient"), strict=True):
        for ax, title in zip(row, titles, strict=True):
            panel, variant = title.split(", ")
            part = table[(table["panel"] == panel) & (table["variant"] == variant) & (table["row"] == name)]
            expected = [list(c["mean"]) for _, c in part[part["kind"] == "mean"].groupby(["init", "metric"])]
            assert [list(line.get_ydata()) for line in ax.lines if line.get_label().startswith("scale")] == expected
            assert levels(ax) == {"loss": [1.386], "error": [0.75], "gradient": []}[name]
    assert axes[2, 0].get_yscale() == "log"
    assert "Not drawn: length 50" in caption(fig)
    assert "6 of 24 runs diverged" in caption(fig)


def test_training_curves_average_over_seeds_norms_geometrically(sweep):
    table = training_curves.table(load(sweep), length=50)
    part = table[(table["panel"] == "tanh") & (table["variant"] == "clip norm") & (table["init"] == "scale 4")]
    by_metric = {metric: curve.set_index("step") for metric, curve in part.groupby("metric")}
    assert by_metric["train/loss"]["mean"].to_dict() == {0: 2.0, 10: 12.0, 20: 22.0}
    np.testing.assert_allclose(by_metric["grad/norm"]["mean"], 100.0)  # of 10, 100, 1000
    np.testing.assert_allclose(by_metric["grad/norm"][["low", "high"]], [[10.0, 1000.0]] * 3)
    np.testing.assert_allclose(by_metric["grad/norm_clipped"]["mean"], 1.0)
    assert set(part["seeds"]) == {3}
    unclipped = table[table["variant"] == "clip none"]
    assert "grad/norm_clipped" not in set(unclipped["metric"])  # the same curve again would say nothing


def test_a_diverged_run_ends_in_a_cross(tmp_path):
    write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1, diverged_at=20)
    write_run(tmp_path, seed=2, diverged_at=0)
    table = training_curves.table(load(tmp_path))
    loss = table[(table["row"] == "loss") & (table["kind"] == "mean")].set_index("step")
    assert loss["mean"].to_dict() == {0: 1.5, 10: 11.5, 20: 21.0}
    assert loss["seeds"].to_dict() == {0: 2, 10: 2, 20: 1}
    ax = training_curves.draw(table).axes[0]
    crosses = next(line for line in ax.lines if line.get_marker() == "x")
    top = ax.get_ylim()[1]
    assert top < 5  # 2.5 times the baseline, and not the 21 of the run that grows
    assert list(zip(crosses.get_xdata(), crosses.get_ydata(), strict=True)) == [(0, top), (20, top)]


def test_evaluation_is_drawn_where_there_is_any(tmp_path):
    write_run(tmp_path, metrics={"eval/error": 0.25, "eval/loss": 0.5})
    table = training_curves.table(load(tmp_path))
    fig = training_curves.draw(table)
    assert [0.25] * 3 in [list(line.get_ydata()) for line in fig.axes[1].lines]
    assert "on fresh sequences" in [text.get_text() for text in fig.legends[0].get_texts()]


# -- files and the command line


def test_the_same_runs_give_the_same_bytes(sweep, drawn, tmp_path, capsys):
    for module in (gradient_flow, training_curves):
        name = module.__name__.rpartition(".")[2]
        assert (
            module.cli.main(name, module.table, module.draw, module.options, [str(sweep), "--out", str(tmp_path)]) == 0
        )
        for kind in ("pdf", "png", "svg", "csv", "csv-metadata.json"):
            assert (tmp_path / f"{name}.{kind}").read_bytes() == (drawn / f"{name}.{kind}").read_bytes(), (name, kind)
    assert capsys.readouterr().err == ""


def test_files_carry_their_runs_and_no_date(drawn):
    ids = " ".join(f"{run:010x}" for run in range(48))
    for name in ("gradient_flow", "training_curves"):
        with Image.open(drawn / f"{name}.png") as image:
            info = image.info
        assert info["rnn_lab runs"] == ids
        assert info["rnn_lab commands"] == "train.py -m"
        assert info["rnn_lab commits"] == "abc (dirty)"
        pdf = (drawn / f"{name}.pdf").read_bytes()
        assert b"CreationDate" not in pdf
        assert ids[:21].encode() in pdf
        assert b"/FontFile2" in pdf  # TrueType
        assert "run_ids" in pd.read_csv(drawn / f"{name}.csv")
        about = json.loads((drawn / f"{name}.csv-metadata.json").read_text())
        assert about.pop("url") == f"{name}.csv"
        assert about == {key.removeprefix("rnn_lab "): text for key, text in info.items() if key.startswith("rnn_lab ")}


def test_a_figure_is_a_function_of_its_csv(drawn, tmp_path):
    for module, name in ((gradient_flow, "gradient_flow"), (training_curves, "training_curves")):
        table = pd.read_csv(drawn / f"{name}.csv")
        _, again, *_ = style.save(module.draw(table), table, tmp_path, name, {})
        np.testing.assert_array_equal(plt.imread(drawn / f"{name}.png"), plt.imread(again))


def test_files_go_to_the_first_sweep_given(sweep, tmp_path, monkeypatch, capsys):
    run = write_run(tmp_path / "one")
    monkeypatch.setitem(style.RC, "savefig.dpi", 50)
    monkeypatch.chdir(tmp_path)
    for paths, out in (([run], "figures"), ([run, tmp_path / "one"], str(tmp_path / "one" / "figures"))):
        assert gradient_flow.cli.main("f", gradient_flow.table, gradient_flow.draw, argv=[*map(str, paths)]) == 0
        assert capsys.readouterr().out.split() == [
            str(Path(out) / f"f.{kind}") for kind in ("pdf", "png", "svg", "csv")
        ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such directory"),
        ([".", "--where", "clip.name=value"], "clip.name is none"),
        ([".", "--where", "clip=none"], "no key 'clip'"),
        (
            [".", "--where", "model.activation == 'gelu' and seed > 0"],
            "where model.activation == 'gelu' and seed > 0: no such",
        ),
        ([".", "--where", "open('x', 'w')"], "is not understood"),
        (["wandb:lab"], "expected wandb:ENTITY/PROJECT"),
        ([".", "--step", "7"], "no run has a record at step 7"),
        ([".", "--step", "soon"], "soon"),
        ([".", "--quantity", "gradient"], "gradient"),
        ([], "RUNS"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    write_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    try:
        status = gradient_flow.cli.main(
            "gradient_flow", gradient_flow.table, gradient_flow.draw, gradient_flow.options, arguments
        )
    except SystemExit as leaving:
        status = leaving.code
    said = capsys.readouterr()
    assert status == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("gradient_flow.py: ")
    assert message in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["0000000000"]


def test_figures_need_no_torch():
    code = "import sys; sys.path.insert(0, 'analysis'); import gradient_flow, training_curves; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=ENVIRONMENT
    )
    assert not {"torch", "wandb", "hydra"} & set(done.stdout.split())


# -- layout helpers


def test_labels_are_spread_apart_in_order_and_within_bounds():
    np.testing.assert_allclose(style.spread([0.0, 5.0, 9.0], 1.0, 0, 10), [0, 5, 9])  # nothing to do
    np.testing.assert_allclose(style.spread([5.0, 5.0], 1.0, 0, 10), [4.5, 5.5])
    np.testing.assert_allclose(style.spread([9.9, 0.1, 9.8], 1.0, 0, 10), [10, 0.1, 9])
    crowded = style.spread(list(np.linspace(4, 5, 30)), 1.0, 0, 10)
    assert crowded.min() >= -1e-9
    assert crowded.max() <= 10 + 1e-9
    assert (np.diff(crowded) > 0).all()


def test_scales_are_told_apart_in_grey():
    for n in range(2, 9):
        grey = np.array([np.dot(rgb[:3], (0.2126, 0.7152, 0.0722)) for rgb in style.sequential(range(n)).values()])
        assert (np.diff(grey) > 0.05).all()
