"""The page as a person meets it, in a headless Chromium: clicked, sorted, filtered, slid, and its numbers read against the frames."""

import importlib
import re
import shutil
import sys
from pathlib import Path

import browser
import numpy as np
import pandas as pd
import pytest
from test_report import NASTY
from test_results import locked, write_run
from wandb_runs import ended, trainer

from rnn_lab.results import Results, load

sys.path.append(str(Path(__file__).parents[1]))
report = importlib.import_module("analysis.report")

pytestmark = [pytest.mark.browser, pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium here")]

T = 30
SERIES = ("dE_dh/log10_norm", "delta/log10_norm", "h/norm")


def write_sweep(path: Path) -> Path:
    """12 runs of two scales, clips and three seeds: one diverged, one failed before it began, one killed, one longer; one has zeros."""
    rng = np.random.default_rng(0)
    for number in range(12):
        scale, clip, seed = (0.5, 2.0)[number % 2], ("none", "norm")[number // 2 % 2], number // 4
        records, length = {3: 5, 4: 0, 5: 7}.get(number, 11), 40 if number == 6 else T
        rows = []
        for step in range(0, 10 * records, 10):
            row = {"train/loss": rng.random(), "train/error": rng.random(), "grad/norm": 10 ** rng.normal(0, 9)}
            row |= {
                "grad/norm_clipped": 0.5,
                "grad/clipped_fraction": rng.random(),
                "dE_dh/slope": rng.normal(scale - 1, 0.1),
            }
            rows.append({"step": step} | row | ({"eval/error": rng.random()} if step % 50 == 0 else {}))
        lag = np.arange(length)[::-1]
        blocks = (scale - 1) * lag + rng.normal(0, 2, (records, len(SERIES), 1, length))
        if number == 3:
            rows[-1] |= {"train/loss": np.nan, "grad/norm": np.inf}
        if number == 7:
            blocks[5:, 0, 0, :8] = -np.inf
        config = {"seed": seed, "init": {"scale": scale}, "clip": {"name": clip}, "task": {"length": 10}}
        status = {3: "diverged", 4: "failed", 5: "running"}.get(number, "completed")
        ends = {"status": status, "diverged_at": 40 if number == 3 else None, "error": NASTY if number == 4 else None}
        write_run(path, f"{number:010x}", rows, blocks, SERIES, T=length, config=config, **ends)
    return path


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser.chromium(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Results]:
    path = write_sweep(tmp_path_factory.mktemp("runs") / "demo")
    with locked(path / "0000000005"):
        loaded = load(path)
        assert report.main([str(path)]) == 0
    return path / "report.html", loaded


@pytest.fixture
def page(tab, made):
    """The page, just opened; in the end it must not have complained of anything, nor asked for anything but itself."""
    with opened(tab, made[0]) as it:
        yield it


class opened:
    """A page that has been drawn; what it complains of or asks for is an error when it is left."""

    def __init__(self, tab: browser.Tab, file: Path, **how) -> None:
        self.tab, self.file, self.how = tab, file, how

    def __enter__(self) -> browser.Tab:
        self.tab.requests.clear()
        self.tab.complaints.clear()
        self.tab.open(self.file, **self.how)
        settle(self.tab)
        return self.tab

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self.tab.run("1")
            assert self.tab.complaints == []
            assert self.tab.requests == [self.file.resolve().as_uri()]
            assert self.tab.run("window.hacked") is None


def settle(tab: browser.Tab) -> None:
    """Until what the last click asked for is drawn."""
    tab.wait("document.querySelector('#through-time')?.getAttribute('aria-busy') === 'false'")
    tab.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def select(tab: browser.Tab, words: str) -> list[str]:
    """Filters, selects the first 8 of what is left; returns their ids in the order of their numbers."""
    tab.run("document.querySelector('#filter').value = ''")
    tab.click("#filter")
    tab.type(words)
    tab.click("#first")
    settle(tab)
    return tab.run("selected().map(({run}) => run.id)")


def same(text: str, value: float) -> bool:
    """Whether a number on the page is this one, to the digits that are shown: five, or all of a whole number."""
    if not np.isfinite(value):
        return text == {"nan": "–", "inf": "∞", "-inf": "−∞"}[str(float(value))]
    return float(text) in (float(f"{value:.5g}"), value)


def rows(tab: browser.Tab) -> list[list[str]]:
    shown = "[...document.querySelectorAll('#runs tbody tr:not([hidden])')]"
    return tab.run(f"{shown}.map(row => [...row.cells].map(cell => cell.textContent))")


def heads(tab: browser.Tab) -> list[str]:
    return tab.all("#runs thead th")


def tip(tab: browser.Tab, chart: str) -> list[str]:
    return tab.all(f"{chart} .tip:not([hidden]) div")


def norms(loaded: Results, run_id: str, step: int) -> pd.Series:
    """dE_dh/log10_norm by t."""
    rows = loaded.timesteps
    return rows[(rows["run_id"] == run_id) & (rows["step"] == step)].set_index("t")["dE_dh/log10_norm"]


def near(text: str, curve: pd.Series, t: int) -> bool:
    """Whether a number on the page is the curve's at t: within half a level, and half a unit of its last digit."""
    decimals = len(text.partition(".")[2])
    return abs(float(text) - curve[t]) <= np.ptp(curve) / 504 + 0.5 * 10.0**-decimals + 1e-6


# -- the table


def test_the_table_is_the_frame(page, made):
    columns = {name: name for name in ("init.scale", "clip.name", "seed", "status")}
    columns |= {"diverged at": "diverged_at", "eval error": "eval/error", "train error": "train/error"}
    columns |= {"train loss": "train/loss", "slope": "dE_dh/slope", "message": "error"}
    names, runs = heads(page), made[1].runs.set_index("run_id")
    assert {"half-life", "run", *columns} <= set(names)
    assert len(rows(page)) == 12
    for row in rows(page):
        cells = dict(zip(names, row, strict=True))
        run = runs.loc[cells["run"]]
        for name, key in columns.items():
            if isinstance(run[key], str):
                assert cells[name] == run[key]
            elif key != "error":
                assert same(cells[name], run[key]), (name, cells[name], run[key])
        assert same(cells["half-life"], np.log10(2) / abs(run["dE_dh/slope"]))
    assert set(runs["status"]) == {"completed", "diverged", "failed", "running"}
    assert page.all("#tally")[0] == "12 runs: 9 completed, 1 diverged, 1 failed, 1 running"


@pytest.mark.parametrize(
    ("name", "key"), [("train loss", "train/loss"), ("diverged at", "diverged_at"), ("status", "status")]
)
def test_a_click_on_a_column_sorts_and_another_turns_round(page, made, name, key):
    column = heads(page).index(name) + 1
    for ascending, state in ((True, "ascending"), (False, "descending"), (True, "ascending")):
        page.click(f"#runs thead th:nth-child({column}) button")
        expected = made[1].runs[key].sort_values(ascending=ascending, na_position="last", kind="stable")
        for row, value in zip(rows(page), expected, strict=True):
            assert row[column - 1] == value if isinstance(value, str) else same(row[column - 1], value)
        assert page.all(f"#runs thead th:nth-child({column})", "ariaSort") == [state]
    assert len(page.all("[aria-sort]")) == 1


@pytest.mark.parametrize(
    ("words", "query"),
    [
        ("", "index >= 0"),
        ("scale>=2", "scale >= 2"),
        ("scale=0.50 clip=norm", "scale == 0.5 and clip == 'norm'"),
        ("error<0.5 seed!=0", "error < 0.5 and seed != 0"),
        ("RUNNING", "status == 'running'"),
        ("status=failed hacked=1", "status == 'failed'"),
        ("diverged_at>0", "status == 'diverged'"),
        ("0000000007", "run_id == '0000000007'"),
        ("scale>5", "index < 0"),
    ],
)
def test_the_filter_keeps_the_rows_for_which_every_word_holds(page, made, words, query):
    page.click("#filter")
    page.type(words)
    names = {"init.scale": "scale", "clip.name": "clip", "eval/error": "error"}
    kept = made[1].runs.drop(columns="error").rename(columns=names).query(query)["run_id"]
    assert {row[-1] for row in rows(page)} == set(kept)
    told = f"{len(kept)} of 12 runs" if len(kept) else "no run matches"
    assert page.all("#shown") == [told]


def test_eight_runs_are_selected_at_most_and_keep_their_numbers(page):
    ids = select(page, "")
    assert len(ids) == 8
    assert len(page.all("#runs input:disabled")) == 4
    page.click("#selected li:nth-child(3) button")
    settle(page)
    assert page.all("#selected .key") == list("1245678")
    assert len(page.all("#runs input:disabled")) == 0
    page.click("#clear")
    settle(page)
    assert page.all("#curves") == ["Select runs in the table above."]
    page.click("#runs tbody tr:nth-child(2) td:nth-child(3)")  # anywhere in the row
    settle(page)
    assert len(page.all("#selected li")) == 1


# -- through time


def test_the_slider_moves_through_the_records_and_the_curves_are_the_frames(page, made):
    (run_id,) = select(page, "0000000001")
    page.focus("#step")
    for key, step in (("ArrowRight", 10), ("ArrowRight", 20), ("End", 100), ("Home", 0)):
        page.press(key)
        assert page.all("#update") == [str(step)]
        curve = norms(made[1], run_id, step)
        for share in (0.1, 0.5, 0.9):
            page.point("#curves .u-over", share)
            head, value = tip(page, "#curves")
            t = int(head.removeprefix("t = "))
            assert abs(t - (1 - 0.03 * (T - 1) + share * (T - 1) * 1.06)) <= 0.51
            assert near(value[1:], curve, t)
    assert float(re.findall(r"at most ([\d.e-]+) decades", page.all("#time-note")[0])[0]) == (
        pytest.approx(np.ptp(norms(made[1], run_id, 0)) / 504, rel=0.06)
    )


def test_arrow_keys_read_the_curves_against_t_and_against_the_lag(page, made):
    ids = select(page, "0000000006")
    curve = norms(made[1], ids[0], 0)
    page.focus("#curves")
    for keys, t in ((["Home"], 1), (["ArrowRight"], 2), (["End"], 40), (["ArrowLeft"], 39)):
        page.press(*keys)
        head, value = tip(page, "#curves")
        assert head == f"t = {t}"
        assert near(value[1:], curve, t)
    page.choose("#axis", "lag")
    settle(page)
    page.focus("#curves")
    for keys, lag in ((["Home"], 39), (["ArrowRight"], 38), (["End"], 0)):
        page.press(*keys)
        head, value = tip(page, "#curves")
        assert head == f"lag {lag}"
        assert near(value[1:], curve, 40 - lag)


def test_runs_that_ended_earlier_show_their_last_record_and_say_so(page, made):
    ids = select(page, "seed=0 norm")
    page.focus("#step")
    page.press("End")
    assert page.all("#update") == ["100"]
    diverged = ids.index("0000000003") + 1
    assert f"the last before it: run {diverged} at 40." in page.all("#time-note")[0]
    page.point("#curves .u-over", 0.5)
    head, *values = tip(page, "#curves")
    curve = norms(made[1], "0000000003", 40)
    (value,) = [value[1:] for value in values if value.startswith(str(diverged))]
    assert near(value, curve, int(head[4:]))


def test_an_exact_zero_is_told(page):
    select(page, "0000000007")
    page.focus("#step")
    page.press("End")
    page.point("#curves .u-over", 0.1)
    assert tip(page, "#curves")[1] == "1−∞"
    assert "Triangles: an exact zero." in page.all("#time-note")[0]


def test_a_heatmap_reads_and_sets_the_update(page, made):
    (run_id,) = select(page, "0000000001")
    for x, y in ((0.05, 0.95), (0.5, 0.5), (0.99, 0.02)):
        page.click(".heat", x, y)
        step = int(page.all("#update")[0])
        assert step == int(100 * (1 - y) // 10 * 10)
        read = page.all("#heatmaps .dash")[0]
        t = int(x * T) + 1
        curve = norms(made[1], run_id, step)
        assert read.startswith(f"update {step}, t = {t}: ")
        assert near(read.split(": ")[1], curve, t)


def test_play_goes_to_the_end_and_stops(page):
    page.click("#play")
    assert page.all("#play") == ["Pause"]
    page.wait("document.querySelector('#play').textContent === 'Play'")
    assert page.run("document.querySelector('#step').value === document.querySelector('#step').max")


# -- against updates


@pytest.mark.parametrize(
    ("figure", "metrics"),
    [
        (1, {"mini-batch": "train/loss"}),
        (2, {"mini-batch": "train/error", "fresh": "eval/error"}),
        (3, {"before": "grad/norm", "after": "grad/norm_clipped"}),
        (4, {"": "grad/clipped_fraction"}),
        (5, {"": "dE_dh/slope"}),
    ],
)
def test_training_curves_are_the_frames(page, made, figure, metrics):
    ids = select(page, "seed=0 norm")
    steps = made[1].steps.set_index(["run_id", "step"])
    chart = f"#training figure:nth-child({figure}) .chart"
    page.focus(chart)
    for count, key in enumerate(["Home"] + ["ArrowRight"] * 5):
        page.press(key)
        head, *values = tip(page, chart)
        assert head == f"update {10 * count}"
        expected = []
        for slot, run_id in enumerate(ids, start=1):
            for word, metric in metrics.items():
                value = steps[metric].get((run_id, 10 * count), np.nan)
                if not np.isnan(value):
                    expected.append((str(slot), word, value))
        assert len(values) == len(expected)
        for shown, (slot, word, value) in zip(values, expected, strict=True):
            assert shown.startswith(slot + word)
            assert same(shown.removeprefix(slot + word).strip(), value), (shown, value)


def test_the_reader_chooses_any_other_metric(page, made):
    (run_id,) = select(page, "0000000001")
    page.choose("#metric", "h/norm, mean over t, layer 1")
    page.focus("#training figure:nth-child(5) .chart")
    page.press("End")
    rows = made[1].timesteps
    mean = rows[(rows["run_id"] == run_id) & (rows["step"] == 100)]["h/norm"].mean()
    assert float(tip(page, "#training figure:nth-child(5)")[1][1:]) == pytest.approx(mean, rel=6e-5)


# -- everybody, everywhere


def test_dark_and_light_follow_the_system_and_the_button(tab, made):
    for dark in (False, True):
        with opened(tab, made[0], dark=dark) as page:
            paper = "getComputedStyle(document.body).backgroundColor"
            before = page.run(paper)
            assert before == ("rgb(22, 24, 29)" if dark else "rgb(255, 255, 255)")
            page.click("#theme")
            settle(page)
            assert page.run(paper) == ("rgb(255, 255, 255)" if dark else "rgb(22, 24, 29)")


def test_a_phone_scrolls_in_one_direction(tab, made):
    with opened(tab, made[0], width=360, height=780) as page:
        select(page, "norm")
        assert page.run("document.documentElement.scrollWidth") <= 360
        inside = page.all(
            "main :is(section, figure, .chart, canvas, select, button, input)",
            "closest('.scroll') !== null || e.getBoundingClientRect().right <= 360",
        )
        assert all(inside)
        assert page.all("#curves canvas", "clientWidth")[0] > 300
        page.resize(780, 360)  # turned round
        page.wait("document.querySelector('#curves canvas').getBoundingClientRect().width > 600")


def test_the_keyboard_reaches_everything_and_sees_where_it_is(page):
    page.run("document.activeElement.blur()")
    reached = []
    for _ in range(60):
        page.press("Tab")
        reached.append(page.run("(e => e.id || e.className || e.type || e.tagName)(document.activeElement)"))
        if reached[-1] == "skip":
            assert page.all(".skip", "offsetLeft")[0] >= 0
    assert {
        "skip",
        "theme",
        "filter",
        "first",
        "clear",
        "scroll",
        "checkbox",
        "series",
        "axis",
        "play",
        "step",
        "curves",
        "chart",
        "metric",
    } <= set(reached)
    for control in (
        "#filter",
        "#first",
        "#runs input",
        "#runs thead button",
        "#series",
        "#play",
        "#step",
        "#curves",
        "#metric",
    ):
        page.focus(control)
        assert page.all(":focus", "ownerDocument.defaultView.getComputedStyle(e).outlineStyle") == ["solid"], control
    page.focus("#runs tbody tr:nth-child(4) input")
    before = page.run("document.activeElement.checked")
    page.press(" ")
    settle(page)
    assert page.run("document.activeElement.checked") is not before
    page.focus("#runs thead th:nth-child(2) button")
    page.press("Enter")
    assert page.all("#runs thead th:nth-child(2)", "ariaSort") == ["ascending"]


def test_everything_has_a_name(page):
    """What a screen reader says of each control, picture and region, as Chromium computes it."""
    page.send("Accessibility.enable")
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    roles = {
        "button",
        "checkbox",
        "textbox",
        "searchbox",
        "combobox",
        "slider",
        "image",
        "img",
        "region",
        "columnheader",
        "link",
    }
    named = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    assert {"button", "checkbox", "searchbox", "combobox", "slider", "columnheader"} <= {role for role, _ in named}
    assert [role for role, name in named if role in roles and not name.strip()] == []
    page.send("Accessibility.disable")
    assert "".join(page.all("h1, h2, h3", "tagName")).startswith("H1H2H2H3H2")
    ids = page.all("[id]", "id")
    assert len(ids) == len(set(ids))


# -- whatever it is given


def odd_runs(path: Path) -> dict[str, list[Path]]:
    """Sweeps that are unlike the usual one."""
    rows = [{"step": step, "train/loss": 1.0} for step in (0, 5, 9)]
    one = write_run(path / "one", "a", rows[:1], T=1)
    write_run(path / "empty", "b", status="failed", error="no memory")
    for layers in (1, 2, 3):
        write_run(path / "deep", f"c{layers}", rows, layers=layers, config={"model": {"layers": layers}})
    blocks = np.full((3, 1, 1, 4), np.nan)
    write_run(path / "gone", "d", [{"step": s, "train/loss": np.inf, "grad/norm": 0.0} for s in (0, 5, 9)], blocks)
    ragged = write_run(path / "ragged", "e", [{"step": 0}, {"step": 1, "T": 2}], np.zeros((0,)), T=4)
    np.arange(6, dtype="<f4").tofile(ragged / "timesteps.f32")
    return {
        "one run, one record, one step": [one],
        "nothing recorded": [path / "empty"],
        "layers": [path / "deep"],
        "nothing finite": [path / "gone"],
        "lengths": [path / "ragged"],
        "several sweeps": [path / "deep", path / "gone", path / "one"],
    }


def test_odd_runs_are_shown_without_a_complaint(tab, tmp_path):
    for name, paths in odd_runs(tmp_path).items():
        out = tmp_path / "odd.html"
        assert report.main([*map(str, paths), "--out", str(out)]) == 0
        with opened(tab, out) as page:
            assert rows(page), name
            select(page, "")
            page.click("#theme")
            settle(page)
            if name == "nothing recorded":
                assert "recorded nothing" in page.all("#curves")[0]
            if name == "layers":
                assert page.all("#layer option", "value") == ["top", "1", "2", "3"]
                for layer, shown in (("top", 3), ("1", 3), ("2", 2), ("3", 1)):
                    page.choose("#layer", layer)
                    settle(page)
                    assert len(page.all(".heat")) == shown
            if name == "lengths":
                page.focus("#step")
                page.press("End")
                page.focus("#curves")
                page.press("Home")
                assert tip(page, "#curves") == ["t = 1", "14.000"]  # run 1, whose second record holds 4, 5


def test_a_run_that_says_script_runs_nothing(page):
    page.click("#filter")
    page.type("status=failed")
    (row,) = rows(page)
    assert NASTY in row
    assert len(page.all("script")) == 2


# -- where it comes from

RECORDED = """
for scale, status in zip(SCALES, ("completed", "diverged", "completed")):
    store = opened(sweep, scale, mode="disabled")
    for row in made_rows(scale):
        store.log(row)
    store.finish(status, {}, diverged_at=55 if status == "diverged" else None)
wandb.rebuild(sorted(path.parent for path in sweep.glob("*/run.json")))  # takes its time
"""


def test_the_page_of_wandb_files_alone_shows_the_same_numbers(tab, tmp_path):
    """Of runs with a result: through the real client into .wandb files, and from those, elsewhere, onto a page."""
    (tmp_path / "runs").mkdir()
    sweep, copy = tmp_path / "runs" / "s", tmp_path / "copy" / "wandb"
    assert ended(trainer(sweep, RECORDED), 120) == (0, "", "")
    shutil.copytree(sweep / "wandb", copy)
    loaded = load(sweep)
    shutil.rmtree(sweep / "wandb")
    pages = {source: tmp_path / f"{source.name}.html" for source in (sweep, copy)}
    for source, file in pages.items():
        assert report.main([str(source), "--out", str(file)]) == 0
    shown = []
    for file in pages.values():
        with opened(tab, file) as page:
            told = [heads(page), rows(page), page.all("#tally")]
            for run_id in ("0000000005", "000000000a", "000000000f"):
                select(page, run_id)
                page.focus("#step")
                page.press("End")
                page.focus("#curves")
                page.press("Home")
                told.append(tip(page, "#curves"))
                last = loaded.timesteps.query(f"run_id == '{run_id}' and layer == 2 and step == 55").set_index("t")
                assert told[-1][0] == "t = 1"
                assert near(told[-1][1][1:], last["dE_dh/log10_norm"], 1)
            shown.append(told)
    assert shown[0] == shown[1]
    assert [row[-1] for row in shown[1][1]] == ["0000000005", "000000000a", "000000000f"]
