"""How does the gradient change on its way back through time?

log10 of the gradient's norm at every time step, at one record. Rows: activations; columns: sequence lengths; colour:
init scale. Lines are means of the log10 over seeds, bands reach from the smallest to the largest seed. Dashed lines
mark where a float32 program that squares entries, or keeps them, would read 0. Dotted: what mean-field theory predicts for
an untrained Gaussian net, with the measured slopes and the predicted ones in the panel's corner.
"""

import argparse

import cli
import grouping
import numpy as np
import overlay
import pandas as pd
import style
from grouping import GROUP
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rnn_lab.results import Results, ResultsError

SYMBOL = {
    "dE_dh": r"$\Vert\partial E/\partial h_t\Vert$",
    "delta": r"$\Vert\delta_t\Vert$, $\delta_t = \partial E/\partial a_t$",
}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quantity", choices=SYMBOL, default="dE_dh", help="dE_dh (default), or delta = dE/da; total")
    parser.add_argument(
        "--step", default=0, type=record, help="0 (default: the untrained net), a later record, or last"
    )
    parser.add_argument("--layer", type=int, help="1 = nearest the input (default: the top layer)")


def record(given: str) -> int | str:
    return given if given == "last" else int(given)


def table(results: Results, quantity: str = "dE_dh", step: int | str = 0, layer: int | None = None) -> pd.DataFrame:
    """The curves: a row for each t of each group of runs that differ in their seed alone.

    panel, length, init, variant   the group (grouping.groups)
    quantity, step, layer          what is drawn; step -1 is each run's last record
    records                        the steps of these records, "40 to 400"
    t, lag (T - t)                 time step, counted from the input and from the loss
    mean, low, high, seeds         of the finite log10 norms, and how many they are
    zeros, missing                 how many were -inf (an exact 0), or +inf or NaN: left out of the mean
    slope ... theory_inside        overlay.compare, for dE_dh of the top layer
    runs ... run_ids               grouping.tally
    """
    rows, column = results.timesteps, f"{quantity}/log10_norm"
    if column not in rows:
        raise ResultsError(f"no {column} in these runs; they hold {', '.join(rows.columns[5:]) or 'no series'}")
    rows = rows[rows["step"] == (rows.groupby("run_id")["step"].transform("max") if step == "last" else step)]
    rows = rows[rows["layer"] == (layer or rows.groupby("run_id")["layer"].transform("max"))]
    if rows.empty:
        raise ResultsError(f"nothing to draw: no run has a record at step {step}, layer {layer or 'top'}")
    named = grouping.groups(results, grouping.AFTER_UPDATES if step == 0 else ())
    named = named[named["run_id"].isin(rows["run_id"])]
    # Runs that differ in what has not acted yet have one and the same curve; twice it would count as two seeds.
    drawn = grouping.once(named, results.steps)
    curves = grouping.summarise(rows.merge(drawn, on="run_id"), [*GROUP, "layer", "lag"], column)
    curves["t"] = curves.groupby(GROUP)["lag"].transform("max") + 1 - curves["lag"]
    curves = curves.merge(grouping.tally(named, drawn, len(results.runs)), on=GROUP)
    curves = curves.assign(
        quantity=quantity, step=-1 if step == "last" else step, records=grouping.between(rows["step"])
    )
    if quantity == "dE_dh" and layer is None:
        records = results.steps.merge(rows[["run_id", "step"]].drop_duplicates())
        curves = curves.merge(overlay.compare(records, drawn), on=GROUP)
    else:
        curves[overlay.COLUMNS] = np.nan
    first = [*GROUP, "quantity", "step", "layer", "t", "lag"]
    return curves[first + [name for name in curves if name not in first]].sort_values([*GROUP, "t"], ignore_index=True)


def draw(frame: pd.DataFrame) -> Figure:
    panels, lengths, inits, variants = (grouping.in_order(frame[key]) for key in GROUP)
    width = {1: style.COLUMN, 2: style.MIDDLE}.get(len(lengths), style.PAGE)
    fig, axes = style.subplots(len(panels), len(lengths), width, 1.1 + 1.65 * len(panels), sharex="col", sharey="row")
    colours, dashes = style.sequential(inits), dict(zip(variants, style.DASHES, strict=False))
    room = 0.07 + 0.048 * max(len(style.short(init)) for init in inits) * len(lengths) / (
        width - 1.1
    )  # inches a letter over inches a panel
    for column, length in zip(axes.T, lengths, strict=True):
        style.time_axes(column, int(frame.loc[frame["length"] == length, "t"].max()), room)
    for row, panel in zip(axes, panels, strict=True):
        of_row = frame[frame["panel"] == panel]
        low, high = style.limits(of_row[["low", "high"]])
        inches = 1.65 - 0.6 / len(panels)  # a panel's height, without titles and caption
        low = min(
            overlay.floor(ax, of_row[of_row["length"] == length], low, high, inches)
            for ax, length in zip(row, lengths, strict=True)
        )
        for ax, length in zip(row, lengths, strict=True):
            curves = of_row[of_row["length"] == length]
            ax.set(ylim=(low, high), title=f"{panel}, length {length}")
            for (init, variant), curve in curves.groupby(["init", "variant"]):
                line(ax, curve, colours[init], dashes[variant])
                overlay.line(ax, curve, colours[init])
            if len(curves):
                start = curves.loc[curves["lag"] == 0, "mean"].mean()
                directions(ax, start)
                overlay.numbers(ax, curves, colours, start)
                left = curves[curves["mean"].notna()].sort_values("t").drop_duplicates(["init", "variant"])
                ends = left.groupby("init")[["t", "mean"]].mean()
                style.label_ends(ax, {style.short(init): (*end, colours[init]) for init, end in ends.iterrows()})
        style.float32_lines(row)
        row[0].set_ylabel(rf"$\log_{{10}}$ {SYMBOL[frame['quantity'].iloc[0]]} (total)")
    if len(variants) > 1:
        style.legend(fig, [Line2D([], [], color=style.INK, ls=dashes[variant], label=variant) for variant in variants])
    style.caption(fig, caption(frame))
    return fig


def line(ax: Axes, curve: pd.DataFrame, colour: object, dashes: object) -> None:
    ax.fill_between(curve["t"], curve["low"], curve["high"], color=colour, alpha=0.25, lw=0)
    ax.plot(curve["t"], curve["mean"], color=colour, ls=dashes, label=curve["init"].iloc[0])
    zeros = curve.loc[curve["zeros"] > 0, "t"]
    zeros = zeros[:: max(len(zeros) // 25, 1)]
    ax.plot(zeros, np.full(len(zeros), 0.02), ls="", marker=7, ms=2.5, color=colour, transform=ax.get_xaxis_transform())


def directions(ax: Axes, start: float) -> None:
    """The level of a gradient that keeps its size, and what it means to leave it."""
    ax.hlines(start, 1, ax.get_xlim()[1], color=style.INK, lw=0.5, zorder=1)
    low, high = ax.get_ylim()
    for word, room, y in (("exploding", high - start, 0.92), ("vanishing", start - low, 0.04)):
        if room > 0.25 * (high - low):
            text = ax.text(0.98, y, word, style="italic", transform=ax.transAxes, ha="right", color=style.FAINT)
            text.set_path_effects([style.HALO])


def caption(frame: pd.DataFrame) -> list[str]:
    """What a reader must know to trust the picture."""
    step, zeros, missing = frame["step"].iloc[0], frame["zeros"].sum(), frame["missing"].sum()
    when = {0: "before the first update", -1: f"at each run's last record (step {frame['records'].iloc[0]})"}.get(
        step, f"after {step} updates"
    )
    seeds = grouping.between(frame[["seeds", "zeros", "missing"]].sum(axis=1))
    lines = [
        f"Norm of the total gradient at each time step (root mean square over the batch), {when}. "
        f"Line: mean of the log10 over seeds ({seeds}); band: smallest to largest. "
        "Horizontal line: a gradient that keeps its size."
    ]
    lines += overlay.sentences(frame)
    lines += [f"Triangles: an exact 0 in some seed ({zeros} values), left out of the mean."] if zeros else []
    lines += [f"{missing} values are not finite and left out of the mean."] if missing else []
    return lines + grouping.status_notes(frame)


if __name__ == "__main__":
    raise SystemExit(cli.main("gradient_flow", table, draw, options))
