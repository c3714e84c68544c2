"""What does clipping do to the gradient, update by update?

The gradient's norm before and after the clip, the fraction of updates clipped, the cosine between applied and raw
gradient, the effective learning rate lr ||g applied|| / ||g raw||, the entries that are not finite, and, where it was
measured (probe.smoothness_every), the local smoothness of the loss against the gradient's norm (Zhang et al. 2020).
Columns: activations, and what else was varied (the clip, say); colour: init scale; one sequence length. Lines are means
over seeds (geometric for norms and rates), bands reach from the smallest to the largest.
"""

import argparse

import cli
import grouping
import numpy as np
import pandas as pd
import style
from grouping import GROUP
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from rnn_lab.results import Results, ResultsError

# Row of the figure -> its label, the metrics drawn in it (a solid line, then a dashed one), and whether its axis is a logarithm.
ROWS = {
    "norm": ("gradient norm\n$\\Vert g\\Vert$, all parameters", ("grad/norm", "grad/norm_clipped"), True),
    "fraction": ("fraction of\nupdates clipped", ("grad/clipped_fraction",), False),
    "cosine": ("cosine of applied\nand raw gradient", ("grad/cosine",), False),
    "rate": ("effective learning\nrate", ("effective_lr",), True),
    "nonfinite": ("entries not finite", ("grad/nonfinite",), False),
}
SMOOTHNESS = "grad/smoothness"
MOST_COLUMNS = 6
MOST_POINTS = 400  # of one run in the scatter


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--length", type=int, help="the sequence length to draw (default: the longest)")


def table(results: Results, length: int | None = None) -> pd.DataFrame:
    """The curves and the points: a row for each metric and record of each group of runs that differ in their seed alone.

    panel, length, init, variant   the group (grouping.groups); of several lengths, one is drawn
    row, metric, step              "smoothness" rows are points of single runs, the others means over seeds
    mean, low, high, seeds         of the finite values, the mean of norms and rates being geometric; how many they are
    norm                           of a smoothness point: the gradient's norm at this record
    others                         lengths that were given and are not drawn
    runs ... run_ids               grouping.tally
    """
    named, loaded, lengths = grouping.of_one_length(results, length)
    length = int(named["length"].iloc[0])
    drawn = grouping.once(named, results.steps)
    steps = results.steps.merge(results.runs[["run_id", "optimizer.lr"]], on="run_id").merge(drawn, on="run_id")
    with np.errstate(divide="ignore", invalid="ignore"):
        steps["effective_lr"] = steps["optimizer.lr"] * steps["grad/norm_clipped"] / steps["grad/norm"]
    parts = [curve(steps, row, metric, log) for row, (_, metrics, log) in ROWS.items() for metric in metrics]
    parts.append(points(steps))
    frame = pd.concat([part for part in parts if len(part)], ignore_index=True)
    if not frame.loc[frame["row"].eq("nonfinite"), "high"].gt(0).any():
        frame = frame[frame["row"].ne("nonfinite")]
    frame = frame.merge(grouping.tally(named, drawn, loaded), on=GROUP)
    frame["others"] = " ".join(str(other) for other in lengths if other != length) or "-"
    first = [*GROUP, "row", "metric", "step"]
    return frame[first + [name for name in frame if name not in first]].sort_values(first, ignore_index=True)


def curve(steps: pd.DataFrame, row: str, metric: str, log: bool) -> pd.DataFrame:
    with np.errstate(divide="ignore"):
        steps = steps.assign(value=np.log10(steps[metric]) if log else steps[metric])
    found = grouping.summarise(steps, [*GROUP, "step"], "value")
    found[["mean", "low", "high"]] = found[["mean", "low", "high"]].transform(lambda c: 10.0**c if log else c)
    return found[found["seeds"] > 0].drop(columns=["zeros", "missing"]).assign(row=row, metric=metric)


def points(steps: pd.DataFrame) -> pd.DataFrame:
    measured = steps[np.isfinite(steps[SMOOTHNESS]) & steps[SMOOTHNESS].gt(0) & np.isfinite(steps["grad/norm"])]
    number = measured.groupby("run_id").cumcount()
    every = (measured.groupby("run_id")["step"].transform("size") // MOST_POINTS).clip(lower=1)
    kept = measured[number % every == 0]
    return kept[[*GROUP, "step"]].assign(
        row="smoothness", metric=SMOOTHNESS, mean=kept[SMOOTHNESS], norm=kept["grad/norm"], seeds=1
    )


def draw(frame: pd.DataFrame) -> Figure:
    columns = sorted(
        {(panel, variant) for panel, variant in zip(frame["panel"], frame["variant"], strict=True)},
        key=lambda column: (column[0], "none" not in column[1], column[1]),
    )
    if len(columns) > MOST_COLUMNS:
        raise ResultsError(f"{len(columns)} columns do not fit a page: choose with --where model.activation=..., say")
    rows = [row for row in (*ROWS, "smoothness") if frame["row"].eq(row).any()]
    width = {1: style.COLUMN, 2: style.MIDDLE}.get(len(columns), style.PAGE)
    heights = [1.5 if row == "norm" else 1.7 if row == "smoothness" else 1.0 for row in rows]
    fig, axes = style.subplots(len(rows), len(columns), width, 0.9 + sum(heights), sharey="row", height_ratios=heights)
    inits = grouping.in_order(frame["init"])
    colours = style.sequential(inits)
    for axes_row, row in zip(axes, rows, strict=True):
        part = frame[frame["row"] == row]
        for ax, (panel, variant) in zip(axes_row, columns, strict=True):
            own = part[(part["panel"] == panel) & (part["variant"] == variant)]
            if row == "smoothness":
                scatter(ax, own, part, colours)
            else:
                lines(ax, own, part, row, colours)
                last = row == [r for r in rows if r != "smoothness"][-1]
                ax.set_xlim(left=0, right=frame["step"].max())
                ax.set_xlabel("updates" if last else "")
                ax.tick_params(labelbottom=last)
            if row == rows[0]:
                ax.set_title(panel if variant == "-" else f"{panel}, {variant}")
        axes_row[0].set_ylabel("local smoothness\n" + r"$\Vert\Delta g\Vert\,/\,\Vert\Delta\theta\Vert$"
                               if row == "smoothness" else ROWS[row][0])  # fmt: skip
    fig.align_ylabels(axes[:, 0])
    handles = [Line2D([], [], color=colours[init], label=style.short(init)) for init in inits] if len(inits) > 1 else []
    handles += [Line2D([], [], color=style.INK, label="before the clip"),
                Line2D([], [], color=style.INK, ls=style.DASHES[1], label="after")]  # fmt: skip
    style.legend(fig, handles)
    style.caption(fig, caption(frame, inits))
    return fig


def lines(ax: Axes, own: pd.DataFrame, part: pd.DataFrame, row: str, colours: dict) -> None:
    _, metrics, log = ROWS[row]
    if log:
        ax.set_yscale("log")
        ax.minorticks_off()
        positive = part[["low", "high"]].where(part[["low", "high"]] > 0)
        low, high = style.limits(positive.transform(np.log10), least=0.15)
        ax.set_ylim(10.0**low, 10.0**high)
    else:
        most = part["high"].max()
        least = min(part["low"].min(), 0) if row == "cosine" else 0
        ax.set_ylim(least - 0.05, max(most, 1) * 1.08)
    for (init, metric), curve in own.groupby(["init", "metric"]):
        if metric == "grad/norm_clipped" and np.allclose(curve["mean"], reference(own, init, curve)):
            continue  # the same curve again would say nothing
        after = metrics.index(metric)
        ax.fill_between(curve["step"], curve["low"], curve["high"], color=colours[init], alpha=0.2, lw=0)
        ax.plot(curve["step"], curve["mean"], color=colours[init], ls=style.DASHES[after], zorder=3 + after)


def reference(own: pd.DataFrame, init: object, curve: pd.DataFrame) -> pd.Series:
    raw = own[(own["init"] == init) & (own["metric"] == "grad/norm")].set_index("step")["mean"]
    return raw.reindex(curve["step"]).to_numpy()


def scatter(ax: Axes, own: pd.DataFrame, part: pd.DataFrame, colours: dict) -> None:
    """Points of all seeds, and where they lie in a log-log sense: the slope of their least-squares line."""
    ax.set(xscale="log", yscale="log", xlabel=r"$\Vert g\Vert$ before the clip")
    for axis, values in (("x", part["norm"]), ("y", part["mean"])):
        low, high = style.limits(values.to_frame().transform(np.log10), least=0.1)
        getattr(ax, f"set_{axis}lim")(10.0**low, 10.0**high)
    for scale in (ax.xaxis, ax.yaxis):
        scale.set_major_locator(LogLocator(numticks=5))
    ax.minorticks_off()
    for init, dots in own.groupby("init"):
        ax.plot(
            dots["norm"],
            dots["mean"],
            ls="",
            marker="o",
            ms=1.6,
            mew=0,
            alpha=0.45,
            color=colours[init],
            rasterized=True,
        )
    x, y = np.log10(own["norm"].to_numpy()), np.log10(own["mean"].to_numpy())
    if len(own) > 2 and np.ptp(x) > 0:
        slope = np.polyfit(x, y, 1)[0]
        correlation = np.corrcoef(x, y)[0, 1]
        text = ax.text(
            0.04, 0.95, f"slope {slope:.2f}\n$r$ = {correlation:.2f}", transform=ax.transAxes, va="top", fontsize=6
        )
        text.set_path_effects([style.HALO])


def caption(frame: pd.DataFrame, inits: list) -> list[str]:
    means = frame[frame["row"].ne("smoothness")]
    seeds, others = grouping.between(means["seeds"]), frame["others"].iloc[0]
    lines = [f"Sequence length {frame['length'].iloc[0]}" + (f", {style.short(inits[0])}." if len(inits) == 1 else ".")]
    lines += [f"Not drawn: length {others} (--length)."] if others != "-" else []
    lines += [f"Line: mean over seeds ({seeds}), geometric for norms and rates; band: smallest to largest.",
              "Effective learning rate: lr times the norm after the clip over the norm before."]  # fmt: skip
    if frame["row"].eq("smoothness").any():
        lines.append(
            "Local smoothness: change of the gradient over the last update, on one mini-batch, per change of the parameters "
            "(Zhang et al. 2020); a point a record and seed; slope of log10 on log10."
        )
    if not frame["row"].eq("nonfinite").any():
        lines.append("No entry of any gradient was inf or NaN.")
    return lines + grouping.status_notes(frame)


if __name__ == "__main__":
    raise SystemExit(cli.main("clipping", table, draw, options))
