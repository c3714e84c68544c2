"""The command line that the figures share: python analysis/<figure>.py RUNS... [--out DIR] [--where CONDITION].

And that of figures of equations, which need no runs: python experiments/<figure>.py [--out DIR].
"""

import argparse
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
import style
from matplotlib.figure import Figure

from rnn_lab import results


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:  # one line, as everywhere in the lab
        self.exit(2, f"{self.prog}: {message}\n")


def main(
    name: str,
    table: Callable[..., pd.DataFrame],
    draw: Callable[[pd.DataFrame], Figure],
    options: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    argv: Sequence[str] | None = None,
) -> int:
    """Loads, tabulates, draws, saves, prints what was written. Returns the exit status: 2 if there is nothing to draw.

    `options` adds arguments, which reach `table` under their own names; `draw` sees nothing but the table.
    """
    parser = _parser(name, table)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="run and sweep directories")
    parser.add_argument("--out", type=Path, help="default: figures/ under the first sweep given, else ./figures")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="CONDITION",
        help="only such runs: clip.name=none, or an expression: \"model.activation == 'tanh' and init.scale > 1\"",
    )
    options(parser)
    args = vars(parser.parse_args(argv))
    paths, out, conditions = args.pop("runs"), args.pop("out"), args.pop("where")

    def write() -> list[Path]:
        with warnings.catch_warnings(record=True, action="always") as caught:
            loaded = results.load(paths, where=conditions)
        for warning in caught:
            print(f"{parser.prog}: {warning.message}", file=sys.stderr)
        frame = table(loaded, **args)
        sweeps = [path for path in paths if not (path / "run.json").exists()]
        directory = out or Path(*sweeps[:1]) / "figures"
        return style.save(draw(frame), frame, directory, name, results.provenance(loaded.runs))

    return _report(parser, write)


def without_runs(
    name: str,
    table: Callable[..., pd.DataFrame],
    draw: Callable[[pd.DataFrame], Figure],
    provenance: dict[str, Any],
    options: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    argv: Sequence[str] | None = None,
) -> int:
    """As `main`, for a figure that is computed from its options alone; provenance: of rnn_lab.provenance.

    The command that goes into the files leaves out --out: the same numbers give the same bytes everywhere.
    """
    parser = _parser(name, table)
    parser.add_argument("--out", type=Path, default=Path("figures"), help="default: ./figures")
    options(parser)
    args = vars(parser.parse_args(argv))
    out = args.pop("out")
    given = [f"--{key}={value}" for key, value in args.items() if value != parser.get_default(key)]
    origin = provenance | {"command": shlex.join(["python", f"experiments/{name}.py", *given])}

    def write() -> list[Path]:
        out.mkdir(parents=True, exist_ok=True)  # complains before the work
        frame = table(**args)
        return style.save(draw(frame), frame, out, name, results.provenance(pd.json_normalize(origin)))

    return _report(parser, write)


def _parser(name: str, table: Callable[..., pd.DataFrame]) -> Parser:
    about = sys.modules[table.__module__].__doc__
    return Parser(prog=f"{name}.py", description=about, formatter_class=argparse.RawDescriptionHelpFormatter)


def _report(parser: Parser, write: Callable[[], list[Path]]) -> int:
    """Prints what was written, or in one line why not."""
    try:
        for path in write():
            print(path)
    except results.ResultsError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{parser.prog}: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0
