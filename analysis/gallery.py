"""Small copies of figures for the README's gallery: python analysis/gallery.py FIGURE.png... [--out analysis/gallery]

At most 60 kB each, so that a clone stays small.
"""

import argparse
import io
import itertools
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

LARGEST = 60_000  # bytes
WIDTHS = range(1100, 400, -50)  # pixels
COLOURS = (250, 120, 40)  # the fewer, the fewer bytes


def shrink(image: Image.Image, largest: int = LARGEST) -> bytes:
    """The widest PNG, of the most colours, that takes at most so many bytes. The same picture gives the same bytes."""
    found = b""
    for width, colours in itertools.product(WIDTHS, COLOURS):
        small = image.convert("RGB").resize(
            (width, round(width * image.height / image.width)), Image.Resampling.LANCZOS
        )
        file = io.BytesIO()
        small.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(file, "png", optimize=True)
        found = file.getvalue()
        if len(found) <= largest:
            break
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="+", type=Path, metavar="FIGURE.png")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "gallery")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for path in args.figures:
        with Image.open(path) as image:
            found = shrink(image)
        (args.out / path.name).write_bytes(found)
        print(f"{args.out / path.name}: {len(found) / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
