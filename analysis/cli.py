"""The command line that figures and the page share: python analysis/<figure>.py RUNS... [--out DIR] [--where KEY=VALUE].

And that of figures of equations, which need no runs: python experiments/<figure>.py [--out DIR].
"""

import argparse
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import grouping
import pandas as pd
import style
from matplotlib.figure import Figure

from rnn_lab import results


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:  # one line, as everywhere in the lab
        self.exit(2, f"{self.prog}: {message}\n")


def recorded(
    parser: Parser, paths: Sequence[Path], conditions: Sequence[str]
) -> tuple[results.Results, dict[str, str]]:
    """The runs that `load` finds, and where they came from."""
    loaded = load(parser, paths, conditions)
    return loaded, results.provenance(loaded.runs)


def main(
    name: str,
    table: Callable[..., pd.DataFrame],
    draw: Callable[[pd.DataFrame], Figure],
    options: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    argv: Sequence[str] | None = None,
    read: Callable[[Parser, Sequence[Path], Sequence[str]], tuple[Any, dict[str, str]]] = recorded,
) -> int:
    """Loads, tabulates, draws, saves, prints what was written. Returns the exit status: 2 if there is nothing to draw.

    `options` adds arguments, which reach `table` under their own names; `draw` sees nothing but the table. `read` gives what `table`
    takes, and says where it came from.
    """
    parser = of_runs(name, sys.modules[table.__module__].__doc__)
    parser.add_argument("--out", type=Path, help="default: figures/ under the first sweep given, else ./figures")
    options(parser)
    args = vars(parser.parse_args(argv))
    paths, out, conditions = args.pop("runs"), args.pop("out"), args.pop("where")

    def write() -> list[Path]:
        loaded, provenance = read(parser, paths, conditions)
        frame = table(loaded, **args)
        directory = out or Path(*sweeps(paths)[:1]) / "figures"
        return style.save(draw(frame), frame, directory, name, provenance)

    return status(parser, write)


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
    parser = _parser(name, sys.modules[table.__module__].__doc__)
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

    return status(parser, write)


def of_runs(name: str, about: str | None) -> Parser:
    """A command line with RUNS... and --where."""
    parser = _parser(name, about)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="run and sweep directories")
    parser.add_argument(
        "--where", action="append", default=[], metavar="KEY=VALUE", help="only such runs: clip.name=none"
    )
    return parser


def _parser(name: str, about: str | None) -> Parser:
    return Parser(prog=f"{name}.py", description=about, formatter_class=argparse.RawDescriptionHelpFormatter)


def load(parser: Parser, paths: Sequence[Path], conditions: Sequence[str]) -> results.Results:
    """The runs that meet the conditions; what `results.load` warns of is told in one line each."""
    with warnings.catch_warnings(record=True, action="always") as caught:
        loaded = results.load(paths)
    for warning in caught:
        print(f"{parser.prog}: {warning.message}", file=sys.stderr)
    return grouping.where(loaded, conditions)


def sweeps(paths: Sequence[Path]) -> list[Path]:
    """Those of the paths that are no single runs."""
    return [path for path in paths if not (path / "run.json").exists()]


def status(parser: Parser, write: Callable[[], list[Path]]) -> int:
    """The exit status; prints what was written, or in one line why not: then it is 2."""
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
