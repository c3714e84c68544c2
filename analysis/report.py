"""A page to share: python analysis/report.py RUNS... [--out report.html] [--where KEY=VALUE].

One HTML file that needs nothing else: no network, no server. A table of the runs to sort and filter; of the selected
runs the gradient through time with a slider over updates, heatmaps, loss, error and clipping; the sweeps' figures; and where
it all came from. The same runs give the same bytes.
"""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

import cli
import embedding

from rnn_lab import results

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("uplot.min.js", "data.js", "table.js", "chart.js", "through_time.js", "training.js", "page.js")
STYLES = ("uplot.min.css", "page.css")
MOST_BYTES = 15_000_000  # beyond it, records are left out


def figures(paths: Sequence[Path]) -> list[dict[str, str]]:
    """The pictures in the figures/ folders of these sweeps."""
    files = [file for path in paths for file in sorted((path / "figures").glob("*.png"))]
    return [{"name": f"{file.parents[1].name}/{file.stem}", "source": "data:image/png;base64," + _base64(file.read_bytes())}
            for file in dict.fromkeys(files)]  # fmt: skip


def page(loaded: results.Results, pictures: list[dict[str, str]], every: int = 1) -> str:
    """The whole document.

    Its policy lets run nothing but this very script and style, by their hashes, and forbids every request.
    """
    script, style = (
        "\n".join((PAGE / name).read_text(encoding="utf-8") for name in names) for names in (SCRIPTS, STYLES)
    )
    origin = {key: text for key, text in results.provenance(loaded.runs).items() if key != "runs"}
    title = origin["sweeps"] or "runs"
    data = embedding.embed(loaded, every) | {"title": title, "origin": origin, "figures": pictures}
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; base-uri 'none'; form-action 'none'"
    template = Template((PAGE / "template.html").read_text(encoding="utf-8"))
    return template.substitute(title=html.escape(title), policy=policy, style=style, script=script, data=_json(data))


def fitting(loaded: results.Results, pictures: list[dict[str, str]]) -> str:
    """The page with as many records as MOST_BYTES have room for: of each run every one, or every second, third ... and the last."""
    longest = int(loaded.steps.groupby("run_id").size().max() or 1) if len(loaded.steps) else 1
    every, text = 1, page(loaded, pictures)
    while len(text.encode()) > MOST_BYTES and every < longest:
        every += max(1, every * (len(text.encode()) - MOST_BYTES) // MOST_BYTES)
        text = page(loaded, pictures, every)
    return text


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _hash(content: str) -> str:
    return f"'sha256-{_base64(hashlib.sha256(content.encode()).digest())}'"


def _json(data: Any) -> str:
    """JSON that can stand in a script element: no letter of it can end the element or begin a comment."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))  # ASCII: U+2028 is escaped too
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.of_runs("report", __doc__)
    parser.add_argument("--out", type=Path, help="default: report.html in the first sweep given, else here")
    args = parser.parse_args(argv)

    def write() -> list[Path]:
        loaded = cli.load(parser, args.runs, args.where)
        sweeps = cli.sweeps(args.runs)
        out = args.out or Path(*sweeps[:1]) / "report.html"
        text = fitting(loaded, figures(sweeps))
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
        return [out]

    return cli.status(parser, write)


if __name__ == "__main__":
    raise SystemExit(main())
