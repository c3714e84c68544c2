"""Does it learn, and what does clipping do meanwhile?

Loss, error and the gradient's norm before and after clipping against updates; with probe.lyapunov_every also the driven net's first
Lyapunov exponent, with the gradient's own rate, its Kaplan-Yorke dimension and entropy rate. Columns: activations, and whatever else was
varied (clipping, say); colour: init scale; one sequence length. Lines are means over seeds (geometric for norms), bands reach from the
smallest to the largest seed. Dotted: what the best trivial predictor of the task gets.
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

from rnn_lab.results import Results, ResultsError

RATE = "dE_dh/rate"  # dE_dh/slope in nats, at the records that have exponents

# Row of the figure -> its label and the metrics drawn in it: a solid line, then a dashed one. A row without a value is left out.
ROWS = {
    "loss": ("loss $E$", ("train/loss", "eval/loss")),
    "error": ("error (fraction wrong)", ("train/error", "eval/error")),
    "gradient": (r"$\Vert\partial E/\partial\theta\Vert$, all parameters", ("grad/norm", "grad/norm_clipped")),
    "exponent": ("first exponent $\\lambda_1$\n(nats a step)", ("lyapunov/max", RATE)),
    "dimension": ("Kaplan-Yorke\ndimension", ("lyapunov/kaplan_yorke",)),
    "entropy": ("entropy rate\n(nats a step)", ("lyapunov/entropy",)),
}
DASHED = {
    "eval/error": "on fresh sequences",
    "grad/norm_clipped": "after clipping",
    RATE: "rate of $\\partial E/\\partial h_t$ towards the past",
}
MOST_COLUMNS = 6


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--length", type=int, help="the sequence length to draw (default: the longest)")


def table(results: Results, length: int | None = None) -> pd.DataFrame:
    """The curves: a row for each metric and record of each group of runs that differ in their seed alone.

    panel, length, init, variant   the group (grouping.groups); of several lengths, one is drawn
    row, metric, kind, step        "mean" is over the seeds; "diverged" is one run's last finite value (NaN: none), at
                                   the step where it diverged
    mean, low, high, seeds         of the finite values, the mean of norms being geometric; how many they are
    baseline                       loss or error of the best trivial predictor
    others                         lengths that were given and are not drawn
    runs ... run_ids               grouping.tally
    """
    named, loaded, lengths = grouping.of_one_length(results, length)
    length = int(named["length"].iloc[0])
    drawn = grouping.once(named, results.steps)
    steps = results.steps.merge(drawn, on="run_id").sort_values("step", kind="stable")
    steps[RATE] = np.log(10) * steps["dE_dh/slope"].where(steps["lyapunov/max"].notna())
    ends = results.runs[["run_id", "diverged_at"]].dropna().merge(drawn, on="run_id")
    parts = []
    for row, (_, metrics) in ROWS.items():
        for metric in metrics:
            parts.append(means(steps, metric).assign(row=row, metric=metric, kind="mean"))
        if not sum(map(len, parts[-len(metrics) :])):
            continue
        finite = steps[np.isfinite(steps[metrics[0]])].groupby("run_id")[metrics[0]].last()
        marks = ends[GROUP].assign(step=ends["diverged_at"].astype(int), mean=ends["run_id"].map(finite))
        parts.append(marks.assign(row=row, metric=metrics[0], kind="diverged"))
    frame = pd.concat([part for part in parts if len(part)], ignore_index=True)
    frame = frame.merge(baselines(results, drawn), how="left", on=[*GROUP, "row"])
    frame = frame.merge(grouping.tally(named, drawn, loaded), on=GROUP)
    frame["others"] = " ".join(str(other) for other in lengths if other != length) or "-"
    first = [*GROUP, "row", "metric", "kind", "step"]
    return frame[first + [name for name in frame if name not in first]].sort_values(first, ignore_index=True)


def means(steps: pd.DataFrame, metric: str) -> pd.DataFrame:
    if metric == "grad/norm_clipped":  # where clipping never did anything, the same curve again would say nothing
        acted = steps[metric].lt(steps["grad/norm"]).groupby([steps[key] for key in GROUP]).transform("any")
        steps = steps[acted]
    geometric = metric.startswith("grad/")
    with np.errstate(divide="ignore"):
        steps = steps.assign(value=np.log10(steps[metric]) if geometric else steps[metric])
    curves = grouping.summarise(steps, [*GROUP, "step"], "value")
    curves[["mean", "low", "high"]] = curves[["mean", "low", "high"]].transform(lambda c: 10.0**c if geometric else c)
    return curves[curves["seeds"] > 0].drop(columns=["zeros", "missing"])


def baselines(results: Results, drawn: pd.DataFrame) -> pd.DataFrame:
    runs = results.runs.merge(drawn[["run_id", *GROUP]], on="run_id")
    names = {f"baseline/{row}": row for row in ROWS if f"baseline/{row}" in runs}
    wide = runs.groupby(GROUP)[list(names)].mean().rename(columns=names)
    return wide.melt(ignore_index=False, var_name="row", value_name="baseline").reset_index()


def draw(frame: pd.DataFrame) -> Figure:
    columns = sorted({(panel, variant) for panel, variant in zip(frame["panel"], frame["variant"], strict=True)})
    if len(columns) > MOST_COLUMNS:
        raise ResultsError(f"{len(columns)} columns do not fit a page: choose with --where model.activation=..., say")
    width = {1: style.COLUMN, 2: style.MIDDLE}.get(len(columns), style.PAGE)
    rows = {row: ROWS[row] for row in ROWS if frame["row"].eq(row).any()}
    fig, axes = style.subplots(len(rows), len(columns), width, 1.0 + 1.4 * len(rows), sharex=True, sharey="row")
    inits = grouping.in_order(frame["init"])
    colours = style.sequential(inits)
    for axes_row, (row, (label, metrics)) in zip(axes, rows.items(), strict=True):
        part = frame[frame["row"] == row]
        limits(axes_row[0], part)
        axes_row[0].set_ylabel(label)
        for ax, (panel, variant) in zip(axes_row, columns, strict=True):
            curves = part[(part["panel"] == panel) & (part["variant"] == variant)]
            for (init, metric, kind), curve in curves.groupby(["init", "metric", "kind"]):
                if kind == "mean":
                    line(ax, curve, colours[init], style.DASHES[metrics.index(metric)])
                else:
                    cross(ax, curve, colours[init])
            for level in curves["baseline"].dropna().unique():
                style.rule(ax, level, "trivial" if ax is axes_row[-1] else "")
            if row == "loss":
                ax.set_title(panel if variant == "-" else f"{panel}, {variant}")
            if row == "exponent":
                ax.axhline(0, color=style.INK, lw=0.5, zorder=1)
            if row == list(rows)[-1]:
                ax.set_xlabel("updates")
    handles = [Line2D([], [], color=colours[init], label=style.short(init)) for init in inits]
    handles += [Line2D([], [], color=style.INK, ls=style.DASHES[1], label=name)
                for metric, name in DASHED.items() if frame["metric"].eq(metric).any()]  # fmt: skip
    style.legend(fig, handles)
    style.caption(fig, caption(frame))
    return fig


def limits(ax: Axes, part: pd.DataFrame) -> None:
    """Norms on a log scale; losses up to 2.5 times the baseline, so that one exploding run hides no other."""
    values = part[["low", "high", "baseline"]]
    match part["row"].iloc[0]:
        case "error":
            ax.set_ylim(-0.03, 1.03)
        case "loss":
            ax.set_ylim(style.limits(values.clip(upper=2.5 * part["baseline"].max()), least=0.05))
        case "gradient":
            ax.set_yscale("log")
            low, high = style.limits(values.where(values > 0).transform(np.log10))
            ax.set_ylim(10.0**low, 10.0**high)
        case _:
            ax.set_ylim(style.limits(values, least=0.02))


def line(ax: Axes, curve: pd.DataFrame, colour: object, dashes: object) -> None:
    ax.fill_between(curve["step"], curve["low"], curve["high"], color=colour, alpha=0.2, lw=0)
    ax.plot(curve["step"], curve["mean"], color=colour, ls=dashes, label=curve["init"].iloc[0])


def cross(ax: Axes, ends: pd.DataFrame, colour: object) -> None:
    """A diverged run ends here; at the panel's upper edge if it never had a finite value, or one beyond the edge."""
    y = ends["mean"].fillna(np.inf).clip(*ax.get_ylim())
    ax.plot(ends["step"], y, ls="", marker="x", ms=4, mew=1, color=colour, clip_on=False, zorder=5)


def caption(frame: pd.DataFrame) -> list[str]:
    seeds, others = grouping.between(frame["seeds"].dropna()), frame["others"].iloc[0]
    lines = [f"Sequence length {frame['length'].iloc[0]}."]
    lines += [f"Not drawn: length {others} (--length)."] if others != "-" else []
    lines += [f"Line: mean over seeds ({seeds}), geometric for norms; band: smallest to largest."]
    lines += ["Dotted: the best trivial predictor."] if frame["baseline"].notna().any() else []
    if frame["kind"].eq("diverged").any():
        lines.append("Crosses: where one seed diverged; the mean goes on over the others.")
    return lines + grouping.status_notes(frame)


if __name__ == "__main__":
    raise SystemExit(cli.main("training_curves", table, draw, options))
