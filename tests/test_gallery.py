"""The README's gallery: small pictures, each shown, with the command that draws it."""

import importlib
import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))
gallery = importlib.import_module("analysis.gallery")
README = (ROOT / "README.md").read_text(encoding="utf-8")
PICTURES = sorted((ROOT / "analysis" / "gallery").glob("*.png"))


def test_pictures_are_small():
    sizes = {path.name: path.stat().st_size for path in PICTURES}
    assert max(sizes.values()) <= gallery.LARGEST == 60_000, sizes
    assert sum(sizes.values()) <= 700_000


def test_every_picture_is_in_the_readme_and_every_picture_of_the_readme_is_there():
    shown = set(re.findall(r"!\[[^\]]+\]\((analysis/gallery/[^)]+)\)", README))
    assert shown == {str(path.relative_to(ROOT)) for path in PICTURES}


def test_every_figure_has_a_picture_and_a_command():
    """Of the scripts that draw: those with a `draw` of their own."""
    section = README.split("\n## Figures\n")[1].split("\n## ")[0]
    figures = [path for folder in ("analysis", "experiments") for path in sorted((ROOT / folder).glob("*.py"))]
    for path in (path for path in figures if re.search(r"^def draw\(", path.read_text(encoding="utf-8"), re.MULTILINE)):
        assert f"gallery/{path.stem}.png" in README, path
        assert f"python {path.relative_to(ROOT)}" in section, path


@pytest.mark.slow
def test_the_widest_that_fits_and_always_the_same():
    noise = np.random.default_rng(0).integers(0, 255, (200, 1200, 3), dtype=np.uint8)
    smooth = Image.fromarray(np.tile(np.linspace(0, 255, 2000, dtype=np.uint8), (900, 1)))
    assert Image.open(io.BytesIO(gallery.shrink(smooth))).size == (gallery.WIDTHS[0], round(gallery.WIDTHS[0] * 0.45))
    small = gallery.shrink(Image.fromarray(noise), 100_000)
    assert len(small) <= 100_000
    assert Image.open(io.BytesIO(small)).width < gallery.WIDTHS[0]
    assert small == gallery.shrink(Image.fromarray(noise), 100_000)
