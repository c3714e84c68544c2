"""Fixed points of one unit against closed forms and against iterating the map; what the figure's files hold."""

import importlib
import math
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from commands import end, start
from PIL import Image

from rnn_lab.one_unit import PHI, bias, critical, cycle, fixed_points, multiplier

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))
bifurcation = importlib.import_module("experiments.bifurcation")

ACTIVATIONS = {"logistic": lambda x: 1 / (1 + math.exp(-x)), "tanh": math.tanh}
THRESHOLD = {"logistic": 4.0, "tanh": 1.0}  # the w of the cusp, 1 / sup phi'


@pytest.fixture(params=ACTIVATIONS)
def activation(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _no_figures_left():
    yield
    plt.close("all")


def iterate(activation: str, w: float, b: float, x: float, steps: int) -> float:
    for _ in range(steps):
        x = w * ACTIVATIONS[activation](x) + b
    return x


# -------------------------------------------------------------------------------------------------------------------- the mathematics


@pytest.mark.parametrize("x", [-30.0, -2.0, 0.0, 0.3, 5.0, 30.0])
def test_phi_is_the_textbook_function_and_slope_its_derivative(activation, x):
    phi, f = PHI[activation], ACTIVATIONS[activation]
    assert float(phi(x)) == pytest.approx(f(x), abs=1e-15)
    prime = f(x) * f(-x) if activation == "logistic" else math.cosh(x) ** -2
    assert float(phi.slope(x)) == pytest.approx(prime, rel=1e-13)


def test_far_out_the_slope_is_0_and_nothing_overflows(activation):
    assert PHI[activation].slope([-1e6, 1e6, np.inf]).tolist() == [0, 0, 0]


@pytest.mark.parametrize("u", [-3.0, 0.2, 1e-3])
def test_change_is_a_difference(activation, u):
    phi = PHI[activation]
    assert float(phi.change(0.5, u)) == pytest.approx(float(phi(0.5 + u) - phi(0.5)), rel=1e-11)
    assert float(phi.change(0.5, 1e-200)) == pytest.approx(1e-200 * float(phi.slope(0.5)), rel=1e-13)


@pytest.mark.parametrize("w", [4.000001, 4.3, 5.0, 12.0, 1e4])
def test_folds_of_the_logistic_unit_in_closed_form(w):
    """w s (1 - s) = 1, so s = (1 ± sqrt(1 - 4 / w)) / 2; b = logit(s) - w s."""
    s = (1 + np.array([-1, 1]) * np.sqrt(1 - 4 / w)) / 2
    x = critical(PHI["logistic"], w, 1)
    np.testing.assert_allclose(bias(PHI["logistic"], w, x), np.log(s / (1 - s)) - w * s, rtol=0, atol=1e-8)
    np.testing.assert_allclose(x, np.log(s / (1 - s)), atol=1e-6)


@pytest.mark.parametrize("w", [1.000001, 1.5, 5.0, 1e4])
def test_folds_of_the_tanh_unit_in_closed_form(w):
    """w (1 - tanh^2) = 1, so x = ± artanh(sqrt(1 - 1 / w))."""
    x = np.array([-1, 1]) * np.arctanh(np.sqrt(1 - 1 / w))
    found = critical(PHI["tanh"], w, 1)
    np.testing.assert_allclose(found, x, atol=1e-6)
    np.testing.assert_allclose(bias(PHI["tanh"], w, found), x - w * np.tanh(x), rtol=0, atol=1e-8)


def test_at_a_fold_the_branch_turns_back(activation):
    phi, w = PHI[activation], 5.0
    for x in critical(phi, w, 1):
        assert multiplier(phi, w, x) == pytest.approx(1, abs=1e-12)
        slopes = [float(bias(phi, w, x + h) - bias(phi, w, x)) for h in (-1e-3, 1e-3)]
        assert slopes[0] * slopes[1] > 0  # an extremum of b


@pytest.mark.parametrize("w", [-20.0, -0.5, 0.0, 0.5, 1.0])
def test_no_folds_below_the_critical_weight(activation, w):
    assert len(critical(PHI[activation], w * THRESHOLD[activation], 1)) == 0


@pytest.mark.parametrize("w", [-3.0, 0.0, 0.99, 1.01, 5.0, 100.0])
def test_three_fixed_points_between_the_folds_one_outside(activation, w):
    w *= THRESHOLD[activation]
    phi = PHI[activation]
    folds = np.sort(bias(phi, w, critical(phi, w, 1)))
    inside = [np.linspace(*folds, 9)[1:-1], 3] if len(folds) else [[-1.0, 0.0, 2.0], 1]
    outside = [folds[0] - 1e-6, folds[0] - 5, folds[1] + 1e-6, folds[1] + 5] if len(folds) else []
    for bs, number in (inside, (outside, 1)):
        for b in bs:
            x = fixed_points(phi, w, b)
            assert len(x) == number
            assert (np.diff(x) > 0).all()
            np.testing.assert_allclose(w * phi(x) + b, x, atol=1e-10)


def test_the_cycle_is_where_the_iterated_map_ends(activation):
    w = -2.0 * THRESHOLD[activation]
    phi = PHI[activation]
    flips = bias(phi, w, critical(phi, w, -1))
    for b in np.linspace(*flips, 7)[1:-1]:
        low, high = cycle(phi, w, b)
        x = iterate(activation, w, b, 0.123, 2000)
        assert sorted([x, iterate(activation, w, b, x, 1)]) == pytest.approx([low, high], abs=1e-9)
        assert high - low > 0.1
    for b in (flips[0] - 0.1, flips[1] + 0.1):
        assert len(cycle(phi, w, b)) == 0
        x = iterate(activation, w, b, 0.123, 2000)
        assert iterate(activation, w, b, x, 1) == pytest.approx(x, abs=1e-9)


# ---------------------------------------------------------------------------------------------------------------------- the figure


@pytest.mark.parametrize("w", [5.0, 0.0, -0.5, -9.0, 300.0])
def test_every_row_is_what_its_kind_says(w):
    table = bifurcation.table(w)
    assert list(table) == ["activation", "w", "b", "x", "kind", "multiplier", "to_x"]
    assert set(table["activation"]) == {"logistic", "tanh"}
    for row in table.to_dict("records"):
        f = ACTIVATIONS[row["activation"]]
        image = w * f(row["x"]) + row["b"]
        match row["kind"]:
            case "stable" | "unstable" | "fold" | "flip":
                assert image == pytest.approx(row["x"], abs=1e-10)
                size = abs(row["multiplier"])
                assert {"stable": size < 1, "unstable": size > 1}.get(row["kind"], abs(size - 1) < 1e-12)
            case "cycle":
                assert image == pytest.approx(row["to_x"], abs=1e-9)
                assert image != pytest.approx(row["x"], abs=1e-9)
            case "flow":
                assert image == pytest.approx(row["to_x"], abs=1e-12)
            case _:
                assert iterate(row["activation"], w, row["b"], row["x"], 2000) == pytest.approx(row["to_x"], abs=1e-9)


@pytest.mark.parametrize("w", [5.0, -9.0])
def test_nearby_states_go_to_stable_points_and_leave_unstable_ones(w):
    """The map itself is the judge of stability: after 20 steps, and 200."""
    table = bifurcation.table(w)
    for kind, grows in (("stable", False), ("unstable", True)):
        rows = table[(table["kind"] == kind) & ((table["multiplier"].abs() - 1).abs() > 0.02)]
        assert len(rows) > 100
        for row in rows[::7].to_dict("records"):
            after = abs(iterate(row["activation"], w, row["b"], row["x"] + 1e-8, 40) - row["x"])
            assert (after > 1.5e-8) == grows


def test_the_two_events_are_those_of_the_paper():
    """In the one, the attractor of the state is lost; in the other, both attractors stay and the boundary has passed the state."""
    table = bifurcation.table()
    for activation, part in table.groupby("activation"):
        phi = PHI[activation]
        for kind, left in (("fold_crossing", 1), ("boundary_crossing", 3)):
            before, after = part[part["kind"] == kind].to_dict("records")
            assert before["x"] == after["x"]
            assert len(fixed_points(phi, 5.0, before["b"])) == 3
            assert len(fixed_points(phi, 5.0, after["b"])) == left
            assert before["to_x"] - after["to_x"] > 3
            boundary = fixed_points(phi, 5.0, before["b"])[1]
            assert before["x"] > boundary
        assert after["x"] < fixed_points(phi, 5.0, after["b"])[1]


def test_what_is_drawn_is_the_table():
    table = bifurcation.table(5.0, "logistic")
    ax = bifurcation.draw(table).axes[0]
    solid = [line for line in ax.lines if line.get_linewidth() > 1.5]
    [dashed] = [line for line in ax.lines if line.get_linestyle() == "--"]
    drawn = np.concatenate([line.get_xydata() for line in solid])
    kept = table[table["kind"].isin(["stable", "fold"])]
    assert sorted(map(tuple, drawn)) == sorted(map(tuple, kept[["b", "x"]].to_numpy()))
    assert len(solid) == 2  # the upper and the lower branch are not joined
    assert solid[0].get_ydata().max() < dashed.get_ydata().min() + 1e-12
    assert solid[1].get_ydata().min() > dashed.get_ydata().max() - 1e-12
    [folds] = [axis for axis in ax.child_axes if axis.get_xticks().size]
    np.testing.assert_array_equal(folds.get_xticks(), table.loc[table["kind"] == "fold", "b"])
    assert ax.get_title() == "logistic, $w = 5$"


@pytest.mark.parametrize("w", [0.0, 1e-300, 1.0, 4.0, 4.000001, -4.000001, 1e9, -1e9])
def test_any_weight_is_drawn(w):
    fig = bifurcation.draw(bifurcation.table(w))
    fig.draw_without_rendering()


# ---------------------------------------------------------------------------------------------------------------- the command line

SCRIPT = ROOT / "experiments" / "bifurcation.py"


def main(arguments: list[str]) -> int:
    b = bifurcation
    return b.without_runs("bifurcation", b.table, b.draw, b.provenance(), b.options, arguments)


def test_the_command_writes_three_files_that_say_how_they_were_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(bifurcation.style.RC, "savefig.dpi", 50)
    out = tmp_path / "new" / "folder"
    arguments = ["--w", "6", "--out", str(out)]
    assert main(arguments) == 0
    written = [out / f"bifurcation.{kind}" for kind in ("pdf", "png", "svg", "csv")]
    assert capsys.readouterr().out.split() == [str(path) for path in written]
    before = [path.read_bytes() for path in written]
    told = Image.open(written[1]).text
    assert told["rnn_lab commands"] == "python experiments/bifurcation.py --w=6.0"
    assert "numpy" in told["rnn_lab versions"]
    pd.testing.assert_frame_equal(pd.read_csv(written[-1]), bifurcation.table(6.0), check_exact=True)
    main([*arguments[:-1], str(tmp_path)])
    assert [path.read_bytes() for path in (tmp_path / path.name for path in written)] == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--w", "nan"], "argument --w: nan: must be a number between -1e+09 and 1e+09"),
        (["--w=-inf"], "argument --w: -inf: must be a number between -1e+09 and 1e+09"),
        (["--w", "1e10"], "argument --w: 1e10: must be a number"),
        (["--w", "five"], "argument --w: five: must be a number"),
        (["--activation", "relu"], "argument --activation: invalid choice: 'relu'"),
        (["runs/x"], "unrecognized arguments: runs/x"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    told = capsys.readouterr()
    assert (leaving.value.code, told.out) == (2, "")
    assert said in told.err
    assert told.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["--out", str(tmp_path / "file" / "figures")]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", f"bifurcation.py: {tmp_path}/file/figures: Not a directory\n")


def test_the_script_runs_from_anywhere_without_torch(tmp_path):
    probe = tmp_path / "probe.py"
    probe.write_text(
        "import atexit, runpy, sys\n"
        'atexit.register(lambda: sys.stderr.write(f\'{sorted({"torch", "wandb"} & set(sys.modules))}\'))\n'
        f"sys.argv[0] = {str(SCRIPT)!r}\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    ended = end(start("--help", cwd=tmp_path, script=probe))
    assert (ended.status, ended.err) == (0, "[]")
    for worth in ("--w W", "--activation {logistic,tanh}", "--out OUT", "Figure 3"):
        assert worth in ended.out
