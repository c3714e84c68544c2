"""The same numbers give the same files: each figure's command twice, in processes that hash differently. And what the files hold."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import train

ROOT = Path(__file__).parents[1]
KINDS = ["csv", "csv-metadata.json", "pdf", "png", "svg"]
TINY = [
    "task.length=12",
    "model.hidden=4",
    "training.batch_size=4",
    "training.log_every=2",
    "eval.sequences=20",
    "tracker=none",
]
PROBES = [
    "probe.contributions_every=2",
    "probe.memory_every=2",
    "probe.lyapunov_every=2",
    "probe.smoothness_every=2",
    "eval.every=2",
]
SWEEP = ["model.activation=sigmoid,tanh", "init.scale=0.5,4", "seed=0,1", "training.updates=4", "clip=norm"]
GRID = ["init.scale=1,2,3", "init.input_std=0.1,1,2", "training.updates=0"]
SPECTRA = ["--g", "1", "3", "--hidden", "6", "--steps", "40", "--transient", "5", "--lags", "1", "5"]

FIGURES = {
    "gradient_flow": ["runs/all"],
    "gradient_curves": ["runs/all"],
    "training_curves": ["runs/all"],
    "clipping": ["runs/all"],
    "contributions": ["runs/all"],
    "memory": ["runs/all"],
    "success_rate": ["runs/all"],
    "remedies": ["runs/all", "--where", "model.activation=tanh"],
    "phase_diagram": ["runs/grid"],
    "lyapunov": ["runs/lyapunov"],
    "bifurcation": [],
    "error_surface": [],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("figures")
    for name, arguments in (("all", [*PROBES, *SWEEP]), ("grid", GRID)):
        ended = train("-m", f"sweep={name}", *TINY, *arguments, cwd=path)
        assert ended.status == 0, ended.err
    run("experiments/lyapunov.py", *SPECTRA, folder=path)
    return path


def run(script: str, *arguments: str, folder: Path, seed: int = 1) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(seed)}
    subprocess.run(
        [sys.executable, str(ROOT / script), *arguments], cwd=folder, env=environment, check=True, capture_output=True
    )


def test_every_figure_is_here():
    """A script that defines `draw` is a figure."""
    scripts = [path for folder in ("analysis", "experiments") for path in (ROOT / folder).glob("*.py")]
    assert {
        path.stem for path in scripts if re.search(r"^def draw\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    } == set(FIGURES)


@pytest.mark.slow
@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_drawn_twice_is_the_same_to_the_byte(figure, folder, tmp_path):
    script = f"{'analysis' if FIGURES[figure] else 'experiments'}/{figure}.py"
    for seed in (1, 2):
        run(script, *FIGURES[figure], "--out", str(tmp_path / str(seed)), folder=folder, seed=seed)
    files = {seed: sorted((tmp_path / str(seed)).iterdir()) for seed in (1, 2)}
    assert [path.name for path in files[1]] == [f"{figure}.{kind}" for kind in KINDS]
    for first, again in zip(files[1], files[2], strict=True):
        assert first.read_bytes() == again.read_bytes(), first.name
    pdf = (tmp_path / "1" / f"{figure}.pdf").read_bytes()
    fonts = set(re.findall(rb"/Subtype /(Type3|CIDFontType2|TrueType|Type1)\b", pdf))
    assert fonts <= {b"CIDFontType2", b"TrueType"}  # embedded as TrueType, nothing else
    assert b"/FontFile2" in pdf
    [width] = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) [\d.]+ \]", pdf)
    assert float(width) / 72 in (3.25, 5.5, 6.75)
