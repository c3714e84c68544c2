"""The paper's tables from runs: LaTeX (booktabs), Markdown and CSV. Pascanu et al., Table 1 and their text on the pathological tasks.

natural_data         of task=characters and music: the test part's loss of MSGD, MSGD-C (norm clipping) and MSGD-CR (and Omega), each at the
                     evaluation where the validation part's is lowest; mean and, over seeds, standard deviation
pathological_tasks   of the others: how many seeds solved the task, and how many of them solve it at lengths that they were not trained on

Which tables there are follows from the runs given. The CSV holds all that the other two leave out.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import cli
import numpy as np
import pandas as pd
from tabulated import NATURAL, natural_data, order, pathological_tasks

from rnn_lab.results import Results, provenance

Cells = list[list[str]]  # the header first


def natural_cells(frame: pd.DataFrame) -> Cells:
    """A row a data set, a column a method, its chosen setting; beside the two predictors that count."""
    chosen = frame[frame["chosen"]].drop_duplicates(["data", "method"])
    methods = sorted(chosen["method"].unique(), key=lambda m: (len(m), m))
    header = ["data", "unit", "frequencies", "given the last", *methods]
    rows = []
    for (data, unit), own in chosen.groupby(["data", "unit"], sort=False):
        cells = own.set_index("method").apply(
            lambda r: _value(r["test"], r["spread"], r["diverged"], r["seeds"]), axis=1
        )
        first = own.iloc[0]
        rows.append(
            [
                str(data),
                str(unit),
                f"{first['alone']:.2f}",
                f"{first['given_last']:.2f}",
                *(cells.get(m, "") for m in methods),
            ]
        )
    return [header, *rows]


def _value(mean: float, spread: float, diverged: int, seeds: int) -> str:
    around = "" if np.isnan(spread) else f" ± {spread:.2f}"
    return f"{mean:.2f}{around}" + (f" ({diverged} of {seeds} diverged)" if diverged else "")


def pathological_cells(frame: pd.DataFrame) -> Cells:
    """A row a task, method and setting; a column a length: how many seeds solved it, of how many."""
    lengths = list(dict.fromkeys(frame["length"].sort_values(key=order)))
    by = [
        key
        for key in ("task", "method", "setting", "trained_on")
        if key in ("task", "trained_on") or frame[key].nunique() > 1
    ]
    header = [key.replace("_", " ") for key in by] + [
        "solved",
        "updates",
        *(f"at {n}" for n in lengths if n != "trained"),
    ]
    rows = []
    for key, own in frame.groupby(by, sort=False):
        cells = {r["length"]: f"{r['solved']}/{r['seeds']}" for _, r in own.iterrows()}
        first = own.iloc[0]
        took = f"{first['updates']:,.0f}" if first["updates"] == first["updates"] else f"> {first['most_updates']:,.0f}"
        rows.append(
            [*map(str, key), cells.get("trained", ""), took, *(cells.get(n, "") for n in lengths if n != "trained")]
        )
    return [header, *rows]


def markdown(cells: Cells) -> str:
    header, *rows = cells
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def latex(cells: Cells) -> str:
    r"""A tabular for \usepackage{booktabs}."""
    header, *rows = ([_tex(cell) for cell in line] for line in cells)
    body = [
        r"\toprule",
        " & ".join(header) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
    ]
    return "\n".join([rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", *body, r"\end{tabular}"]) + "\n"


def _tex(cell: str) -> str:
    for plain, escaped in (("_", r"\_"), ("%", r"\%"), ("&", r"\&"), (" ± ", r" $\pm$ "), ("> ", "$>$ ")):
        cell = cell.replace(plain, escaped)
    return cell


TABLES = {"natural_data": (natural_data, natural_cells), "pathological_tasks": (pathological_tasks, pathological_cells)}


def write(results: Results, out: Path) -> list[Path]:
    """The tables that these runs make, in three forms each."""
    natural = results.runs["task.name"].isin(NATURAL)
    due = [name for name, there in (("natural_data", natural.any()), ("pathological_tasks", (~natural).any())) if there]
    frames = {name: TABLES[name][0](results) for name in due}
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, frame in frames.items():
        cells, origin = TABLES[name][1](frame), provenance(results.runs)
        note = "; ".join(f"{key}: {value}" for key, value in origin.items() if value and key != "runs")
        for path, content in (
            (out / f"{name}.tex", f"% {note}\n{latex(cells)}"),
            (out / f"{name}.md", f"{markdown(cells)}\n<!-- {note} -->\n"),
            (out / f"{name}.csv", frame.to_csv(index=False)),
        ):
            path.write_text(content, encoding="utf-8")
            written.append(path)
    return written


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.of_runs("tables", sys.modules[main.__module__].__doc__)
    parser.add_argument("--out", type=Path, help="default: figures/ under the first sweep given, else ./figures")
    args = parser.parse_args(argv)
    directory = args.out or Path(*cli.sweeps(args.runs)[:1]) / "figures"
    return cli.status(parser, lambda: write(cli.load(parser, args.runs, args.where), directory))


if __name__ == "__main__":
    raise SystemExit(main())
