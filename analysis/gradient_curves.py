"""How does the gradient vanish and explode with the lag, cell by cell, before and during training?

log10 of the norm of the total gradient dE/dh_t relative to that at the last step, against t - T. Columns: activations and gated cells;
rows: before the first update, and at a later record; colour: init scale; lines: the longest sequences, circles: shorter ones. Dashed:
Pascanu's bound eta^lag, which no curve may exceed if the loss is at the last step; dotted: the mean-field slope.
"""

import argparse
from collections.abc import Sequence

import cli
import gradient_flow
import grouping
import numpy as np
import overlay
import pandas as pd
import style
from grouping import GROUP
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rnn_lab import theory
from rnn_lab.results import Results, ResultsError

BOUND = (0, (5, 2))
MARKS = ("o", "s", "^", "D")  # of shorter sequences
MOST_COLUMNS = 5


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--step", type=int, help="the record of the lower row (default: the last that any run has)")


def table(results: Results, step: int | None = None) -> pd.DataFrame:
    """The curves of both records: the rows of gradient_flow.table, with `relative`, mean, low and high minus the mean at lag 0, and

    eta    gamma sigma_max(W) of the group at this record, geometric mean over seeds; missing where the theorem says nothing
    bound  log10 of eta^lag
    """
    last = results.steps["step"].max() if step is None else step
    frame = pd.concat([_record(results, at) for at in dict.fromkeys([0, int(last)])], ignore_index=True)
    if frame["variant"].nunique() > 1:
        raise ResultsError(
            f"the runs differ in {', '.join(grouping.in_order(frame['variant']))}: choose by --where KEY=VALUE"
        )
    return frame


def _record(results: Results, step: int) -> pd.DataFrame:
    curves = gradient_flow.table(results, step=step)
    start = curves[curves["lag"] == 0].set_index(GROUP)["mean"].rename("start")
    curves = curves.join(start, on=GROUP)
    relative = curves[["mean", "low", "high"]].sub(curves.pop("start"), axis=0)
    curves[["relative", "relative_low", "relative_high"]] = relative
    runs = grouping.groups(results, grouping.AFTER_UPDATES if step == 0 else ())
    known = results.steps[results.steps["step"] == step].merge(runs, on="run_id")
    log_eta = known["theory/eta"].map(np.log)
    eta = log_eta.groupby([known[key] for key in GROUP]).mean().map(np.exp).rename("eta")
    curves = curves.join(eta, on=GROUP)
    bound = pd.Series(theory.log10_bound(curves["eta"], curves["lag"]), curves.index)
    return curves.assign(bound=bound.where(curves["eta"].notna()))


def draw(frame: pd.DataFrame) -> Figure:
    panels = sorted(frame["panel"].unique(), key=lambda panel: (panel in grouping.GATED.values(), panel))
    if len(panels) > MOST_COLUMNS:
        raise ResultsError(f"{len(panels)} columns do not fit a page: choose with --where model.name=..., say")
    steps, lengths, inits = (
        sorted(frame["step"].unique()),
        sorted(frame["length"].unique())[::-1],
        grouping.in_order(frame["init"]),
    )
    colours = style.sequential(inits)
    width = {1: style.COLUMN, 2: style.MIDDLE}.get(len(panels), style.PAGE)
    fig, axes = style.subplots(len(steps), len(panels), width, 1.0 + 1.75 * len(steps), sharex=True, sharey="col")
    for column, panel in zip(axes.T, panels, strict=True):
        own = frame[frame["panel"] == panel]
        low, high = style.limits(own[["relative_low", "relative_high"]])
        column[0].set(title=panel, ylim=(low, high))
        for ax, step in zip(column, steps, strict=True):
            curves(ax, own[own["step"] == step], lengths, colours)
    axes[0, 0].set_xlim(1 - lengths[0] - 0.27 * lengths[0], 0)
    for ax, step in zip(axes[:, 0], steps, strict=True):
        when = "untrained" if step == 0 else f"after {step} updates"
        ax.set_ylabel(
            f"{when}\n" + r"$\log_{10}\, \Vert\partial E/\partial h_t\Vert\,/\,\Vert\partial E/\partial h_T\Vert$"
        )
    for ax in axes[-1]:
        ax.set_xlabel("$t - T$ (the loss is at 0)")
    style.legend(fig, handles(frame, lengths))
    style.caption(fig, caption(frame, lengths))
    return fig


def curves(ax: Axes, own: pd.DataFrame, lengths: Sequence[int], colours: dict) -> None:
    """Measured curves over the bounds and predicted slopes; each scale is named where its longest curve ends."""
    ax.axhline(0, color=style.INK, lw=0.5, zorder=1)
    ends = {}
    for (init, length), curve in own.sort_values("lag").groupby(["init", "length"]):
        t, colour = -curve["lag"], colours[init]
        if length != lengths[0]:
            ax.plot(t[::7], curve["relative"][::7], ls="", marker=MARKS[lengths.index(length) - 1], ms=2.2, mew=0.6, mec=colour,
                    mfc="white", zorder=4)  # fmt: skip
            continue
        ax.fill_between(t, curve["relative_low"], curve["relative_high"], color=colour, alpha=0.25, lw=0)
        ax.plot(t, curve["relative"], color=colour, lw=1.2, label=init)
        ax.plot(t, curve["bound"], color=colour, lw=0.7, ls=BOUND, zorder=2)
        predicted = curve["theory_slope"] * curve["lag"]
        ax.plot(t, predicted, color=overlay.dark(colour), lw=0.9, ls=(0, (1, 1.3)), zorder=3)
        measured = curve[curve["relative"].notna()]
        if len(measured):
            ends[style.short(init).removeprefix("scale ")] = (
                -measured["lag"].iloc[-1],
                measured["relative"].iloc[-1],
                colour,
            )
    style.label_ends(ax, ends, left=1 - lengths[0])


def handles(frame: pd.DataFrame, lengths: Sequence[int]) -> list[Line2D]:
    found = [Line2D([], [], color=style.INK, lw=1.2, label=f"length {lengths[0]}")]
    found += [
        Line2D([], [], ls="", marker=mark, ms=2.2, mew=0.6, mec=style.INK, mfc="white", label=f"length {length}")
        for mark, length in zip(MARKS, lengths[1:], strict=False)
    ]
    if frame["bound"].notna().any():
        found.append(Line2D([], [], color=style.INK, lw=0.7, ls=BOUND, label=r"bound $\eta^{T-t}$"))
    if frame["theory_slope"].notna().any():
        found.append(Line2D([], [], color=style.INK, lw=0.9, ls=(0, (1, 1.3)), label="mean-field slope"))
    return found


def caption(frame: pd.DataFrame, lengths: Sequence[int]) -> list[str]:
    seeds = grouping.between(frame[["seeds", "zeros", "missing"]].sum(axis=1))
    lines = [
        f"Total gradient, root mean square over the batch. Means of log10 over seeds ({seeds}), bands: smallest to largest. "
        r"$\eta = \gamma\,\sigma_{\max}(W)$ (Pascanu et al. 2013); mean field: wide nets of random weights, the slope over lags up "
        f"to {theory.LAGS - 1}, drawn on. Numbers at the left ends: init scale."
    ]
    zeros = int(frame["zeros"].sum())
    lines += [f"{zeros} values are an exact 0 and not drawn."] if zeros else []
    for step, record in frame.groupby("step"):
        notes = grouping.status_notes(record)
        lines += [f"Step {step}: {' '.join(notes)}"] if step and notes else []
    return lines


if __name__ == "__main__":
    raise SystemExit(cli.main("gradient_curves", table, draw, options))
