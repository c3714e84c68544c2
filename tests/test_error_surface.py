"""The error surface of one unit: its gradient against autograd, differences and 60 digits; where its wall is; what the figure holds."""

import importlib
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import mpmath
import numpy as np
import pandas as pd
import pytest
import torch
from commands import end, start

from rnn_lab import error_surface as surface
from rnn_lab.one_unit import PHI, bias, critical

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))
figure = importlib.import_module("experiments.error_surface")

POINTS = [
    (3.8, -1.7),
    (4.1, -2.06),
    (4.5, -2.2),
    (5.0, -2.612),
    (5.5, -2.2),
    (6.0, -3.3),
    (0.0, 0.4),
    (-3.0, 1.0),
    (2.0, 3.0),
]


@pytest.fixture(autouse=True)
def _no_figures_left():
    yield
    plt.close("all")


def final(w, b, exp=np.exp):
    """x_50, as the paper writes it."""
    x = b * 0 + 0.5
    for _ in range(50):
        x = w / (1 + exp(-x)) + b
    return x


def paper(w, b, exp=np.exp):
    return (1 / (1 + exp(-final(w, b, exp))) - 0.7) ** 2


# -------------------------------------------------------------------------------------------------------------------- error, gradient


@pytest.mark.parametrize(("w", "b"), POINTS)
def test_error_and_gradient_are_those_of_the_papers_recursion_by_autograd(w, b):
    w_, b_ = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (w, b))
    E = paper(w_, b_, torch.exp)
    expected = torch.autograd.grad(E, (w_, b_))
    found = surface.gradient(w, surface.distance(w, b))
    np.testing.assert_allclose(found, [E.item(), *(g.item() for g in expected)], rtol=1e-9)
    assert float(surface.error(w, surface.distance(w, b))) == found[0]


@pytest.mark.parametrize(("w", "b"), POINTS)
def test_gradient_is_that_of_central_differences(w, b):
    h = 1e-6
    differences = [(paper(w + h, b) - paper(w - h, b)) / (2 * h), (paper(w, b + h) - paper(w, b - h)) / (2 * h)]
    np.testing.assert_allclose(surface.gradient(w, surface.distance(w, b))[1:], differences, rtol=2e-4, atol=1e-9)


@pytest.mark.parametrize(("w", "d"), [(6.0, -1.57e-8), (9.0, 3e-17), (12.0, -1e-22), (12.0, 1e-30)])
def test_in_the_wall_the_gradient_is_right_where_float64_has_no_b(w, d):
    """Against the recursion in 60 digits, at b = x_0 - w sigmoid(x_0) + d."""
    with mpmath.workdps(60):
        w_ = mpmath.mpf(w)
        b = mpmath.mpf(1) / 2 - w_ / (1 + mpmath.exp(-mpmath.mpf(1) / 2)) + mpmath.mpf(d)
        h = mpmath.mpf(10) ** -45
        one, half = mpmath.mpf(1), mpmath.mpf(7) / 10

        def E(w, b):
            return (one / (1 + mpmath.exp(-final(w, b, mpmath.exp))) - half) ** 2

        expected = [E(w_, b), (E(w_ + h, b) - E(w_ - h, b)) / (2 * h), (E(w_, b + h) - E(w_, b - h)) / (2 * h)]
        np.testing.assert_allclose(surface.gradient(w, d), [float(value) for value in expected], rtol=1e-9)


def test_points_are_independent_of_their_neighbours():
    w, b = np.array(POINTS).T
    together = surface.gradient(w, surface.distance(w, b))
    for n, point in enumerate(POINTS):
        alone = surface.gradient(point[0], surface.distance(*point))
        np.testing.assert_allclose([part[n] for part in together], alone, rtol=1e-12)


@pytest.mark.parametrize("w", [3.0, 4.0, 1 / PHI["logistic"].slope(0.5), 5.0, 8.0, 12.0, 1e5])
def test_gradient_on_the_line_in_closed_form(w):
    E, *g = surface.gradient(w, 0.0)
    assert pytest.approx((1 / (1 + np.exp(-0.5)) - 0.7) ** 2) == E
    assert surface.log10_norm_on_line(w) == pytest.approx(np.log10(np.hypot(*g)), abs=1e-9)
    rate = w * np.exp(-0.5) / (1 + np.exp(-0.5)) ** 2
    if abs(rate - 1) > 1e-3:
        assert surface.sensitivity(w) == pytest.approx((rate**50 - 1) / (rate - 1))


# --------------------------------------------------------------------------------------------------------------------------- the wall


@pytest.mark.parametrize("w", [4.02, 4.2, 4.25, 4.26, 4.6, 5.0, 7.0, 12.0])
def test_on_either_side_of_the_wall_the_state_ends_at_another_attractor(w):
    """Below it on the lower branch, above it on the upper one."""
    lower_end, upper_start = critical(PHI["logistic"], w, 1)
    for b, ends_low in ((surface.wall(w) - 1e-4, True), (surface.wall(w) + 1e-4, False)):
        x = 0.5
        for _ in range(20_000):
            x = w / (1 + np.exp(-x)) + b
        assert w / (1 + np.exp(-x)) + b == pytest.approx(x, abs=1e-9)
        assert x < lower_end if ends_low else x > upper_start


@pytest.mark.parametrize("w", [-2.0, 0.0, 3.0, 4.0])
def test_no_wall_where_there_is_one_attractor(w):
    assert np.isnan(surface.wall(w))


def test_the_two_parts_of_the_wall_meet():
    """At the w for which the fold is at x_0 itself."""
    w = 1 / PHI["logistic"].slope(0.5)
    assert w == pytest.approx(4.2553, abs=1e-4)
    assert surface.wall(w - 1e-9) == pytest.approx(surface.wall(w + 1e-9), abs=1e-8)
    assert surface.wall(w) == pytest.approx(bias(PHI["logistic"], w, 0.5))


@pytest.mark.parametrize("w", [3.6, 4.1, 4.5, 5.0, 6.0, 8.0, 12.0])
def test_the_crest_is_the_largest_gradient_and_lies_in_the_wall(w):
    d = surface.crest(w)
    width = 1 / surface.sensitivity(w)
    top = surface.log10_norm(w, d)
    fine = surface.log10_norm(w, np.linspace(-60, 60, 120_001) * width)
    coarse = surface.log10_norm(w, np.linspace(-1, 1, 2001))
    assert top >= fine.max() - 1e-9
    assert top >= coarse.max() - 1e-9
    if w > 4.3:
        assert abs(d) < 2 * width
        assert 0 < top - surface.log10_norm_on_line(w) < 1.3


def test_a_grid_does_not_see_the_crest():
    """At w = 8 every b of a grid of 2,000 points sees less than 1e-13 of the gradient in the wall."""
    b = np.linspace(-5, -4, 2000)
    assert surface.log10_norm(8.0, surface.crest(8.0)) > surface.log10_norm(8.0, surface.distance(8.0, b)).max() + 13


# -------------------------------------------------------------------------------------------------------------------------- descent


def test_a_step_is_minus_lr_times_the_gradient_cut_to_the_threshold():
    for b, clips in ((-2.2, False), (-2.6123, True)):
        g = np.array(surface.gradient(5.0, surface.distance(5.0, b))[1:])
        norm = np.hypot(*g)
        assert (norm > 1) == clips
        start_, after = surface.descend(5.0, b, 0.1, 1, 1.0)
        np.testing.assert_array_equal(start_, [5.0, b])
        np.testing.assert_allclose(after, start_ - 0.1 * g / max(norm, 1))
        np.testing.assert_allclose(surface.descend(5.0, b, 0.1, 1)[1], start_ - 0.1 * g)


def test_clipping_keeps_the_path_that_otherwise_leaves_at_the_wall():
    args = (*figure.START, figure.LR, figure.STEPS)
    free, clipped = surface.descend(*args), surface.descend(*args, figure.THRESHOLD)
    lengths = [np.hypot(*np.diff(path, axis=0).T) for path in (free, clipped)]
    first = int((lengths[0] > figure.LR * figure.THRESHOLD * (1 + 1e-9)).argmax())
    np.testing.assert_array_equal(free[: first + 1], clipped[: first + 1])  # the same up to the first clip
    assert first > 50
    assert lengths[0].max() > 3
    assert abs(free[first, 1] - surface.wall(free[first, 0])) < 0.05  # it happens at the wall
    assert lengths[1].max() <= figure.LR * figure.THRESHOLD * (1 + 1e-9)
    inside = [np.all((path > [3.8, -3.3]) & (path < [5.8, -1.5])) for path in (free, clipped)]
    assert inside == [False, True]
    best = [paper(*path[first:].T).min() for path in (free, clipped)]
    assert best[1] < 0.01 < best[0]  # the clipped path is chaotic along the wall: over starts 1e-9 apart, at most 0.003


# ---------------------------------------------------------------------------------------------------------------------- the figure


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return figure.table()


def test_the_table_is_the_paper_at_every_point(table):
    assert set(table["kind"]) == {"surface", "map", "clipped", "unclipped", "wall", "along"}
    apart = table[~table["kind"].isin(["surface", "along"]) | (table["distance"].abs() > 1e-2)]  # b alone says it
    plain = apart[apart["kind"] != "wall"]
    np.testing.assert_allclose(plain["loss"], paper(plain["w"].to_numpy(), plain["b"].to_numpy()), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(table["log10_norm"], np.log10(np.hypot(table["dE_dw"], table["dE_db"])))
    np.testing.assert_allclose(table["b"], table["distance"] + 0.5 - table["w"] / (1 + np.exp(-0.5)))


def test_the_surface_has_points_in_the_wall(table):
    """At each w > 4.3 the loss takes values between those of the plateaus, among them nearly the smallest there is: 0."""
    for w, part in table[(table["kind"] == "surface") & (table["w"] > 4.3)].groupby("w"):
        np.testing.assert_array_equal(np.argsort(part["distance"]), np.arange(len(part)))
        near = part[(part["distance"] * surface.sensitivity(w)).abs() < 13]
        assert near["loss"].min() < 0.01
        assert near["loss"].between(0.1, 0.3).sum() >= 3


def test_what_is_drawn_is_the_table(table):
    fig = figure.draw(table)
    plan, profile = (
        next(ax for ax in fig.axes if ax.get_title() == title) for title in ("its gradient on a grid", "along the wall")
    )
    parts = dict(iter(table.groupby("kind")))
    [mesh] = [c for c in plan.collections if c.get_array() is not None]
    drawn = np.asarray(mesh.get_array()).ravel()
    np.testing.assert_array_equal(drawn, parts["map"].sort_values(["b", "w"])["log10_norm"])
    wall = plan.lines[0].get_xydata()
    np.testing.assert_array_equal(wall, parts["wall"][["w", "b"]])
    lines = {len(line.get_xdata()): line.get_xydata() for line in plan.lines[1:]}
    np.testing.assert_array_equal(lines[figure.STEPS + 1], parts["clipped"][["w", "b"]])
    [cut] = [xy for number, xy in lines.items() if 2 < number < figure.STEPS]
    np.testing.assert_array_equal(cut[:-1], parts["unclipped"][["w", "b"]].iloc[: len(cut) - 1])
    assert cut[-1, 1] == pytest.approx(figure.B[1])  # it leaves by the upper edge, straight to where it goes
    step = parts["unclipped"][["w", "b"]].diff().iloc[len(cut) - 1].to_numpy()
    np.testing.assert_allclose(cut[-1] - cut[-2], step * ((cut[-1] - cut[-2])[1] / step[1]))
    columns = ["log10_norm", "log10_norm_on_line", "log10_norm_grid", "log10_width", "log10_spacing"]
    for line, column in zip(profile.lines, columns, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), parts["along"][column])


def test_the_command_writes_three_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(figure.style.RC, "savefig.dpi", 50)
    monkeypatch.setattr(figure, "GRID", 21)
    monkeypatch.setattr(figure, "ALONG", np.linspace(4, 8, 5))
    assert figure.without_runs("error_surface", figure.table, figure.draw, {}, argv=["--out", str(tmp_path)]) == 0
    written = [tmp_path / f"error_surface.{kind}" for kind in ("pdf", "png", "svg", "csv")]
    assert capsys.readouterr().out.split() == [str(path) for path in written]
    again = pd.read_csv(written[-1])
    pd.testing.assert_frame_equal(again, figure.table(), check_exact=True)
    figure.draw(again)


def test_the_script_itself_refuses_in_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    script = ROOT / "experiments" / "error_surface.py"
    assert end(start("--out", "file", cwd=tmp_path, script=script)) == (2, "", "error_surface.py: file: File exists\n")
    status, out, err = end(start("--w", "5", cwd=tmp_path, script=script))
    assert (status, out, err) == (2, "", "error_surface.py: unrecognized arguments: --w 5\n")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
