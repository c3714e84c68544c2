"""One file that needs nothing else, in which no word of a run is anything but a word."""

import base64
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from test_results import write_run

from rnn_lab.results import METRICS, load

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))
report = importlib.import_module("analysis.report")
OWN = [report.PAGE / name for name in report.SCRIPTS if not name.startswith("uplot")]

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
ROWS = [{"step": step, "train/loss": 1.5 - step / 100, "dE_dh/slope": -0.1} for step in (0, 10, 20)]
NASTY = "</script><script>hacked=1</script><img src=x onerror=hacked=1> <!-- &amp; ${hacked=1} \u2028 \U0001f60a"


class Elements(HTMLParser):
    """Every element of a document: (tag, attributes, text)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict, str]] = []
        self.open = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs), ""))
        self.open = True

    def handle_data(self, data):
        if self.found and self.open:
            tag, attributes, text = self.found.pop()
            self.found.append((tag, attributes, text + data))

    def handle_endtag(self, tag):
        self.open = False

    def all(self, tag: str) -> list[tuple[dict, str]]:
        return [(attributes, text) for found, attributes, text in self.found if found == tag]


def data_of(text: str) -> dict:
    """The embedded JSON, in which no character can end or open an element."""
    (data,) = [
        text for attributes, text in Elements(text).all("script") if attributes.get("type") == "application/json"
    ]
    assert not set("<>&") & set(data)
    return json.loads(data)


@pytest.fixture
def sweep(tmp_path) -> Path:
    for seed in range(3):
        write_run(tmp_path / "demo", f"{seed:010x}", ROWS, config={"seed": seed})
    return tmp_path / "demo"


# -- nothing gets out, nothing gets in


def test_what_a_run_says_is_data_and_never_markup(tmp_path):
    config = {"seed": 0, "task": {NASTY: NASTY}}
    for name, seed in (("a", 0), ("b", NASTY)):
        words = {"name": NASTY, "command": NASTY, "error": NASTY, "status": "failed"}
        path = write_run(tmp_path / "s", name, ROWS, config=config | {"seed": seed}, **words)
        info = json.loads((path / "run.json").read_text())
        (path / "run.json").write_text(json.dumps(info | {"sweep": NASTY, "git": {"commit": NASTY}}))
    text = report.page(load(tmp_path / "s"), [])
    clean = report.page(load(write_run(tmp_path / "t", "a", ROWS)), [])
    assert [tag for tag, _, _ in Elements(text).found] == [tag for tag, _, _ in Elements(clean).found]
    assert Elements(text).all("title")[0][1] == NASTY
    data = data_of(text)
    assert NASTY in data["runs"][0]["cells"]
    assert data["runs"][1]["label"].endswith(NASTY)
    assert data["config"][f"task.{NASTY}"] == NASTY
    assert NASTY in data["origin"]["commands"]


def test_our_scripts_make_text_and_no_markup():
    for path in OWN:
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function", path.read_text()
        )


def test_the_policy_admits_this_script_and_this_style_alone(sweep):
    elements = Elements(report.page(load(sweep), []))
    (policy,) = [a["content"] for a, _ in elements.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    for rule, tag in (("script-src", "script"), ("style-src", "style")):
        (content,) = [text for attributes, text in elements.all(tag) if "type" not in attributes]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert all(a.get(link, "#").startswith(("#", "data:")) for _, a, _ in elements.found for link in ("src", "href"))


def test_the_chart_library_keeps_its_licence(sweep):
    text = report.page(load(sweep), [])
    assert "The MIT License (MIT)" in text
    assert "Leon Sorokin" in text


# -- colours


def lab(linear: np.ndarray) -> np.ndarray:
    """CIELAB of linear sRGB, D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x = linear @ to_xyz.T / [0.9505, 1.0, 1.089]
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=-1)


# Machado, Oliveira & Fernandes 2009, severity 1, on linear sRGB.
VISION = {
    "normal": np.eye(3),
    "protan": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deutan": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]),
    "tritan": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]]),
}  # fmt: skip


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("vision", VISION)
def test_runs_are_told_apart_by_everybody_and_from_the_paper(vision, theme):
    css = (report.PAGE / "page.css").read_text()
    pairs = (
        dict(re.findall(r"--([\w-]+): light-dark\(#(\w+), #", css)),
        dict(re.findall(r"--([\w-]+): .*, #(\w+)\)", css)),
    )
    colours = [pairs[theme][f"run-{n}"] for n in range(1, 9)] + [pairs[theme]["paper"]]
    srgb = np.array([[int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)] for colour in colours])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = lab(np.clip(linear @ VISION[vision].T, 0, 1))
    apart = np.linalg.norm(seen[:, None] - seen, axis=-1) + 1e3 * np.eye(9)
    assert apart.min() > 25
    luminance = linear @ [0.2126, 0.7152, 0.0722] + 0.05
    contrast = luminance / luminance[-1]
    assert (np.maximum(contrast, 1 / contrast)[:-1] >= 3).all()  # WCAG 2.1, 1.4.11


# -- size


def test_too_much_is_thinned_and_says_so(sweep, monkeypatch):
    loaded = load(sweep)
    whole = report.page(loaded, [])
    assert data_of(whole)["every"] == 1
    monkeypatch.setattr(report, "MOST_BYTES", len(whole.encode()) - 1)
    thinned = data_of(report.fitting(loaded, []))
    assert thinned["every"] == 2
    assert thinned["runs"][0]["steps"] == [0, 20]
    monkeypatch.setattr(report, "MOST_BYTES", 1)  # never reached: the last page is returned
    assert data_of(report.fitting(loaded, []))["runs"][0]["steps"] == [0, 20]


@pytest.mark.slow
def test_200_runs_of_100_records_of_100_steps_fit_15_megabytes_whole(tmp_path):
    rng = np.random.default_rng(0)
    series = [f"{name}/log10_norm" for name in ("dE_dh", "delta", "dW", "dU")] + ["h/norm", "phi_prime/mean"]
    for run in range(200):
        rows = [{"step": step} | dict(zip(METRICS, rng.normal(size=len(METRICS)), strict=True)) for step in range(100)]
        blocks = rng.normal(-0.5, 0.3, (100, len(series), 1, 100)).cumsum(-1)  # rougher than any net's
        write_run(tmp_path, f"{run:010x}", rows, blocks, series, T=100, config={"seed": run})
    text = report.fitting(load(tmp_path), [])
    assert len(text.encode()) < 15e6
    data = data_of(text)
    assert data["every"] == 1
    assert sum(len(run["steps"]) for run in data["runs"]) == 20_000


# -- the command


def test_it_writes_one_file_and_says_where(sweep, monkeypatch, capsys, tmp_path):
    (sweep / "figures").mkdir()
    picture = base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
    )
    (sweep / "figures" / "gradient_flow.png").write_bytes(picture)
    assert report.main([str(sweep), "--out", str(tmp_path / "new" / "page.html")]) == 0
    assert report.main([str(sweep), "--where", "seed=1"]) == 0
    monkeypatch.chdir(tmp_path)
    assert report.main([str(sweep / "0000000000")]) == 0
    out = capsys.readouterr()
    assert out.out.split() == [str(tmp_path / "new" / "page.html"), str(sweep / "report.html"), "report.html"]
    assert out.err == ""
    whole, chosen, single = (data_of(Path(path).read_text()) for path in out.out.split())
    assert [len(page["runs"]) for page in (whole, chosen, single)] == [3, 1, 1]
    (figure,) = whole["figures"]
    assert figure["name"] == "demo/gradient_flow"
    assert base64.b64decode(figure["source"].partition(",")[2]) == picture
    assert single["figures"] == []
    assert whole["origin"]["commands"] == "train.py"
    assert whole["origin"]["commits"] == "abc (dirty)"
    assert whole["origin"]["versions"] == "torch 2.13.0"


def test_a_page_tells_no_path_of_this_machine(sweep):
    assert str(sweep.parent) not in report.page(load(sweep), [])


def test_the_same_runs_give_the_same_bytes(sweep, tmp_path):
    pages = []
    for seed in ("1", "2"):
        out = tmp_path / f"{seed}.html"
        command = [sys.executable, str(ROOT / "analysis" / "report.py"), str(sweep), "--out", str(out)]
        subprocess.run(command, check=True, env=ENVIRONMENT | {"PYTHONHASHSEED": seed})
        pages.append(out.read_bytes())
    assert pages[0] == pages[1]


def test_a_page_needs_no_torch():
    code = "import sys; sys.path.insert(0, 'analysis'); import report; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)
    assert "report" in done.stdout.split()
    assert not {"torch", "wandb", "hydra"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such directory"),
        (["demo", "--where", "seed=9"], "seed is 0 or 1 or 2"),
        (["demo", "--out", "demo"], "demo: Is a directory"),
        ([], "RUNS"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(sweep, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(sweep.parent)
    before = sorted(sweep.parent.rglob("*"))
    try:
        status = report.main(arguments)
    except SystemExit as leaving:
        status = leaving.code
    said = capsys.readouterr()
    assert (status, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith("report.py: ")
    assert message in said.err
    assert sorted(sweep.parent.rglob("*")) == before
