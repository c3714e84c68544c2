"""How long does the state remember, and how long does the gradient?

Against the lag T - t: how much a small perturbation of h_t still moves h_T (memory/log10_gain, dashed) and the total gradient dE/dh_t
(solid), both relative to lag 0. One is the other's transpose: the first averages over all directions of a perturbation, the second
follows the one direction that the loss asks for. Below: their half-lives, from the slopes of those curves. Bars: 95 % over seeds (thick)
and from the residuals of the fits (thin). Draws runs with probe.memory_every.
"""

import argparse

import cli
import gradient_flow
import grouping
import half_life
import numpy as np
import pandas as pd
import style
from grouping import GROUP
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rnn_lab.results import Results, ResultsError
from rnn_lab.theory import LAGS

KINDS = {"gradient": "dE_dh/log10_norm", "state": "memory/log10_gain"}
NAMES = {"gradient": r"gradient $\Vert\partial E/\partial h_t\Vert$", "state": r"state, $h_t \to h_T$"}
DASHES = {"gradient": style.DASHES[0], "state": style.DASHES[1]}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--step", default=0, type=gradient_flow.record, help="0 (default: untrained), a later record, or last"
    )
    parser.add_argument("--layer", type=int, help="1 = nearest the input (default: the top layer)")


def table(results: Results, step: int | str = 0, layer: int | None = None) -> pd.DataFrame:
    """The curves: a row for each kind ("gradient", "state") and lag of each group of runs that differ in their seed alone.

    panel, length, init, variant, step, records, layer   as in gradient_flow
    kind, lag, t, mean, low, high, seeds        log10, relative to lag 0; mean, smallest and largest over the seeds where it is finite
    half_life, direction                        log10(2) / |mean slope|, time steps; vanishing or exploding towards the past
    seeds_low, seeds_high, fit_low, fit_high    95 % intervals of half_life: over seeds; from a fit's residuals (median over seeds)
    runs ... run_ids                            grouping.tally
    """
    rows = results.timesteps
    if KINDS["state"] not in rows:
        raise ResultsError("no memory/log10_gain in these runs: train them with probe.memory_every=N")
    top = rows.groupby("run_id")["layer"].transform("max")
    rows = rows[rows["layer"] == (top if layer is None else layer)]
    recorded = rows[rows[KINDS["state"]].notna()]
    at = (
        recorded.groupby("run_id")["step"].max()
        if step == "last"
        else recorded.groupby("run_id")["step"].min() * 0 + step
    )
    rows = recorded[recorded["step"] == recorded["run_id"].map(at)]
    if rows.empty:
        raise ResultsError(f"nothing to draw: no run has its memory at step {step}, layer {layer or 'top'}")
    named = grouping.groups(results, grouping.AFTER_UPDATES if step == 0 else ())
    named = named[named["run_id"].isin(rows["run_id"])]
    drawn = grouping.once(named, results.steps)
    rows = rows.merge(drawn, on="run_id").sort_values("lag", kind="stable")
    found = [_kind(rows.assign(value=relative(rows, column)), kind) for kind, column in KINDS.items()]
    curves = pd.concat(found).merge(grouping.tally(named, drawn, len(results.runs)), on=GROUP)
    curves.insert(4, "step", -1 if step == "last" else step)
    curves.insert(5, "records", grouping.between(rows["step"]))
    return curves.sort_values([*GROUP, "kind", "lag"], ignore_index=True)


def relative(rows: pd.DataFrame, column: str) -> pd.Series:
    """log10 norms minus that at lag 0 of the same run."""
    start = rows[rows["lag"] == 0].set_index("run_id")[column]
    with np.errstate(invalid="ignore"):
        return rows[column] - rows["run_id"].map(start)


def _kind(rows: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The curves and half-lives of one kind; rows sorted by lag, with their `value`."""
    curves = grouping.summarise(rows, [*GROUP, "layer", "lag"], "value")
    curves["t"] = curves.groupby(GROUP)["lag"].transform("max") + 1 - curves["lag"]
    curves.insert(4, "kind", kind)
    lives = []
    for group, part in rows.groupby(GROUP, sort=False):
        fits = [half_life.fit(run["lag"], run["value"]) for _, run in part.groupby("run_id")]
        overall = half_life.over_seeds([fit.mean for fit in fits])
        seeds, fitted = half_life.interval(overall), np.array([half_life.interval(fit) for fit in fits])
        lives.append((*group, overall.mean, *seeds, *np.median(fitted, axis=0)))
    columns = [*GROUP, "slope", "seeds_low", "seeds_high", "fit_low", "fit_high"]
    found = pd.DataFrame(lives, columns=columns)
    found.insert(4, "half_life", half_life.half_life(found["slope"]))
    found.insert(5, "direction", np.where(found["slope"] > 0, "exploding", "vanishing"))
    return curves.merge(found, on=GROUP)


def draw(frame: pd.DataFrame) -> Figure:
    frame = frame.assign(label=frame["init"].where(frame["variant"].eq("-"), frame["init"] + ", " + frame["variant"]))
    keys = frame[["panel", "length"]].drop_duplicates().sort_values(["panel", "length"]).itertuples(index=False)
    panels = [tuple(key) for key in keys]
    labels = grouping.in_order(frame["label"])
    colours = style.sequential(labels)
    width = {1: style.COLUMN, 2: style.MIDDLE}.get(len(panels), style.PAGE)
    ratios = [1.0, 0.25 + 0.1 * len(labels)]
    fig, axes = style.subplots(
        2, len(panels), width, 1.1 + 1.9 * sum(ratios), height_ratios=ratios, sharex="row", sharey="row"
    )
    for (curves, lives), (panel, length) in zip(axes.T, panels, strict=True):
        part = frame[(frame["panel"] == panel) & (frame["length"] == length)]
        for (label, kind), curve in part.groupby(["label", "kind"]):
            curves.fill_between(curve["lag"], curve["low"], curve["high"], color=colours[label], alpha=0.2, lw=0)
            curves.plot(curve["lag"], curve["mean"], color=colours[label], ls=DASHES[str(kind)])
        curves.axhline(0, color=style.INK, lw=0.5, zorder=1)
        curves.set(title=f"{panel}, length {length}", xlabel="lag $T - t$")
        half_lives(lives, part, labels, colours)
    axes[0, 0].set_ylabel(r"$\log_{10}$ relative to lag 0")
    axes[0, 0].set_ylim(*style.limits(frame[["low", "high"]]))
    axes[1, 0].set(yticks=range(len(labels)), yticklabels=map(style.short, labels), ylim=(len(labels) - 0.5, -0.5))
    low, high = style.limits(frame.drop_duplicates([*GROUP, "kind"])[["half_life"]].transform(np.log10), least=0.25)
    axes[1, 0].set(xscale="log", xlim=(10.0**low, 10.0**high))
    for ax in axes[1]:
        ax.minorticks_off()
    style.legend(fig, handles(frame))
    style.caption(fig, caption(frame))
    return fig


def half_lives(ax: Axes, part: pd.DataFrame, labels: list, colours: dict) -> None:
    """A mark a curve, the two kinds of a group beside each other."""
    ax.set_xlabel("half-life (time steps)")
    ax.tick_params(axis="y", length=0)
    for n, (kind, dy) in enumerate((("gradient", -0.16), ("state", 0.16))):
        for row in part[part["kind"] == kind].drop_duplicates([*GROUP]).to_dict("records"):
            y, colour = labels.index(row["label"]) + dy, colours[row["label"]]
            for name, lw in (("fit", 0.7), ("seeds", 2.2)):
                ends = np.minimum([row[f"{name}_low"], row[f"{name}_high"]], 1e9)  # an open end leaves the panel
                ax.plot(ends, [y, y], color=colour, lw=lw, solid_capstyle="butt", alpha=0.55)
            face = colour if n == 0 else "white"
            marker = ">" if row["direction"] == "exploding" else "o"
            ax.plot(row["half_life"], y, marker=marker, ms=3.5, mew=0.9, mec=colour, mfc=face, zorder=4)


def handles(frame: pd.DataFrame) -> list[Line2D]:
    found = []
    for kind, face in (("gradient", style.INK), ("state", "white")):
        look = {"marker": "o", "ms": 3.5, "mew": 0.9, "mec": style.INK, "mfc": face}
        found.append(Line2D([], [], color=style.INK, ls=DASHES[kind], label=NAMES[kind], **look))
    if frame["direction"].eq("exploding").any():
        found.append(Line2D([], [], ls="", marker=">", ms=3.5, color=style.INK, label="exploding: time to double"))
    return found


def caption(frame: pd.DataFrame) -> list[str]:
    step, seeds = frame["step"].iloc[0], grouping.between(frame["seeds"])
    when = {0: "Before the first update", -1: f"At each run's last such record (step {frame['records'].iloc[0]})"}.get(
        step, f"After {step} updates"
    )
    lines = [
        f"{when}, layer {grouping.between(frame['layer'])}. Lines: means of the log10 over seeds ({seeds}), bands: smallest to largest. "
        "State: root mean square over all directions of the length to which a unit perturbation of $h_t$ has grown in $h_T$. "
        f"Half-life: log10(2) / |slope|, least squares over lags 0 to {LAGS - 1} at most; thick bars: 95 % over seeds, thin: from the "
        "residuals of a fit, which are correlated; a bar that leaves the panel has no upper end."
    ]
    zeros, missing = int(frame["zeros"].sum()), int(frame["missing"].sum())
    lines += [f"{zeros + missing} values are an exact 0 or not finite and left out."] if zeros + missing else []
    return lines + grouping.status_notes(frame)


if __name__ == "__main__":
    raise SystemExit(cli.main("memory", table, draw, options))
