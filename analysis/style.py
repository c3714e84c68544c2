"""The look of all figures, and how they are saved."""

import json
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

COLUMN, MIDDLE, PAGE = 3.25, 5.5, 6.75  # widths in inches: one column, one and a half, a whole page
INK, FAINT = "0.15", "0.55"
HALO = withStroke(linewidth=1.5, foreground="white")  # keeps a label readable on a line
DASHES = ("solid", (0, (4, 1.5)), (0, (1, 1.2)), (0, (4, 1.2, 1, 1.2)), (0, (8, 1.5)), (0, (2, 3)))

# log10 of: the root of the smallest positive float32 (a subnormal), that float32, the largest float32.
FLOAT32 = {
    "float32:\nsquares are 0": np.log10(2.0**-149) / 2,
    "float32:\nentries are 0": np.log10(2.0**-149),
    "float32:\noverflow": np.log10(3.4028235e38),
}

RC = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib, hence the same bytes on every machine
    "mathtext.fontset": "dejavusans",
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "figure.titlesize": 8,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.1,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # TrueType, which journals ask for and which stays editable
    "ps.fonttype": 42,
    "svg.fonttype": "path",  # looks alike without the font
    "svg.hashsalt": "rnn_lab",  # else its ids are random
}


def subplots(rows: int, columns: int, width: float, height: float, **kwargs: Any) -> tuple[Figure, np.ndarray]:
    """A figure in the house style with a (rows, columns) array of axes, always two-dimensional."""
    sns.set_theme(context="paper", style="ticks", rc=RC)
    fig, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **kwargs)
    sns.despine(fig)
    return fig, axes


def sequential(labels: Sequence[Any]) -> dict[Any, Any]:
    """A colour for each of some ordered labels, dark to light: told apart in grey and by the colour-blind."""
    shades = np.linspace(0.0, 0.82, len(labels)) if len(labels) > 1 else [0.3]
    return {
        label: tuple(map(float, plt.get_cmap("viridis")(shade))) for label, shade in zip(labels, shades, strict=True)
    }


def short(init: object) -> str:
    return str(init).removeprefix("pascanu_").replace("_", " ")


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> np.ndarray:
    """The positions, moved as little as it takes to lie `gap` apart within [low, high]; their order is kept."""
    order = np.argsort(positions, kind="stable")
    gap = min(gap, (high - low) / max(len(order) - 1, 1))
    steps = gap * np.arange(len(order))
    # Least squares under an order: subtract the steps, and the closest non-decreasing sequence is that of pooled means.
    blocks: list[list[float]] = []
    for value in np.asarray(positions, float)[order] - steps:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [[(a * n + b * m) / (n + m), n + m]]
    pooled = np.concatenate([np.full(int(n), value) for value, n in blocks]) if blocks else np.empty(0)
    placed = np.empty(len(order))
    placed[order] = np.clip(pooled, low, max(high - steps[-1], low) if len(order) else low) + steps
    return placed


def limits(values: pd.DataFrame, least: float = 0.3) -> tuple[float, float]:
    """The range of all finite values with a little air, `least` of it; never empty."""
    array = values.to_numpy(float)
    finite = array[np.isfinite(array)]
    low, high = (finite.min(), finite.max()) if len(finite) else (-1.0, 1.0)
    air = max(0.06 * (high - low), least)
    return low - air, high + air


def label_ends(ax: Axes, ends: dict[str, tuple[float, float, Any]], left: float = 1) -> None:
    """Names curves (label -> x, y of its left end, colour) in the room left of t = 1 (`left`), apart from one another."""
    low, high = ax.get_ylim()
    edge = left - 0.03 * (ax.get_xlim()[1] - ax.get_xlim()[0])
    placed = spread([y for _, y, _ in ends.values()], 0.075 * (high - low), low, high)
    for (label, (x, y, colour)), at in zip(ends.items(), placed, strict=True):
        leader = {"arrowstyle": "-", "lw": 0.4, "color": colour, "shrinkA": 0, "shrinkB": 0, "relpos": (1, 0.5)}
        ax.annotate(label, (x, y), (edge, at), ha="right", va="center", fontsize=6, color=colour, arrowprops=leader,
                    path_effects=[HALO])  # fmt: skip


def rule(ax: Axes, y: float, name: str = "") -> None:
    """A thin horizontal line across the panel, named beside its right end."""
    ax.axhline(y, color=FAINT, lw=0.7, ls=(0, (1, 1.5)), zorder=1)
    ax.annotate(
        name, (1, y), (3, 0), ("axes fraction", "data"), "offset points", va="center", fontsize=5.5, color="0.35"
    )


def float32_lines(row: Sequence[Axes]) -> None:
    """Marks, in axes of log10 norms that share their y, what float32 cannot hold; named beside the last of them."""
    low, high = row[0].get_ylim()
    inside = {name: y for name, y in FLOAT32.items() if low < y < high}
    placed = spread(list(inside.values()), 0.13 * (high - low), low, high)
    for (name, y), at in zip(inside.items(), placed, strict=True):
        for ax in row:
            ax.axhline(y, color=FAINT, lw=0.6, ls=(0, (3, 2)), zorder=1)
        row[-1].annotate(name, (1, at), (3, 0), ("axes fraction", "data"), textcoords="offset points",
                         va="center", fontsize=5.5, color="0.35")  # fmt: skip


def time_axes(column: Sequence[Axes], T: int, room: float) -> None:
    """x of axes above one another: t = 1..T, the lag on top, `room` (of the width) at the left."""
    ticks = [int(t) for t in MaxNLocator(5, steps=[1, 2, 5, 10], integer=True).tick_values(1, T) if 1 < t <= T]
    span = max(T - 1, 1)
    column[0].set_xlim(1 - span * room / (1 - room), T + 0.01 * span)
    column[0].set_xticks([1, *ticks])
    lag = column[0].secondary_xaxis("top", functions=(lambda t: T - np.asarray(t), lambda lag: T - np.asarray(lag)))
    lag.set_xticks([0, *(T - t for t in ticks if t < T)])
    lag.set_xlabel("lag $T - t$", labelpad=2)
    column[-1].set_xlabel("time step $t$ (loss at the right end)")


def legend(fig: Figure, handles: Sequence[Line2D], columns: int | None = None) -> None:
    """Samples of lines above everything, in rows of `columns` (default: by the figure's width); nothing if there are none."""
    if handles:
        fig.legend(
            handles=list(handles),
            loc="outside upper center",
            ncols=columns or min(len(handles), int(1.1 * fig.get_figwidth())),
            frameon=False,
        )


def caption(fig: Figure, sentences: Sequence[str]) -> None:
    """Small text below everything, wrapped to the figure's width. Formulas are not broken, and count as long as they look."""
    formulas: list[str] = []

    def stand_in(found: re.Match[str]) -> str:
        formulas.append(found[0])
        return "\0" * max(len(re.sub(r"\\[a-zA-Z]+|\\.", "x", found[0])) - 2 - found[0].count("{") * 2, 1)

    words = re.sub(r"\$[^$]+\$", stand_in, " ".join(sentences))
    wrapped = textwrap.fill(words, int(fig.get_figwidth() * 23), break_long_words=False)
    wrapped = re.sub("\0+", lambda _: formulas.pop(0), wrapped)
    fig.supxlabel(wrapped, x=0.01, ha="left", fontsize=5.5, color="0.35", linespacing=1.3)


def save(fig: Figure, frame: pd.DataFrame, out_dir: Path, name: str, provenance: dict[str, str]) -> list[Path]:
    """Writes <name>.pdf, .png, .svg and .csv (the numbers drawn) and returns their paths.

    The same numbers give the same bytes: no date is written. Where they came from is in the metadata of the pdf, the png
    and the svg; the csv has no comment lines, so that every reader reads it: it carries the ids of its runs as a column, and all else
    stands beside it in <name>.csv-metadata.json, where the W3C's "CSV on the Web" looks for it.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = [out_dir / f"{name}.{kind}" for kind in ("pdf", "png", "svg", "csv")]
    origin = {key: value for key, value in provenance.items() if value}
    told = "; ".join(f"{key}: {value}" for key, value in origin.items() if key != "runs")
    pdf = {"Title": name, "Subject": told, "Keywords": origin.get("runs", ""), "CreationDate": None}
    fig.draw_without_rendering()  # lays it out,
    fig.set_layout_engine("none")  # once for all
    # The layout's solver computes the last digits of a place now this way, now that way
    for ax in fig.axes:
        ax.set_position(np.round(ax.get_position(original=True).bounds, 6).tolist(), which="original")
    fig.savefig(paths[0], metadata=pdf)
    fig.savefig(paths[1], metadata={"Title": name} | {f"rnn_lab {key}": value for key, value in origin.items()})
    svg = {"Title": name, "Description": told, "Keywords": origin.get("runs", "").split(), "Date": None}
    fig.savefig(paths[2], metadata=svg)
    frame.to_csv(paths[3], index=False)
    about = json.dumps({"url": paths[3].name} | origin, indent=1)
    paths[3].with_name(f"{paths[3].name}-metadata.json").write_text(about + "\n", encoding="utf-8")
    plt.close(fig)
    return paths
