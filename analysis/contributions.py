"""Which pairs of a loss at step t and a use of the weights at step k make up the gradient?

The lecture's double sum dE/dW = sum over t and k <= t, one summand a pair: log10 of each summand's Frobenius norm over k and
t, above it the norms of the sums over t (for each k) and over k (for each t), and at the right, for all initialisations, the
norms of the sums by lag t - k and the share of the gradient that lies beyond a lag. Rows: activations; columns: init
scales. Needs probe.contributions_every. Means over seeds of log10 norms; one sequence length, one layer, one record.
"""

import argparse

import cli
import grouping
import numpy as np
import pandas as pd
import style
from grouping import GROUP
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import CenteredNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rnn_lab.results import Contributions, Results, ResultsError, contributions

MOST_COLUMNS = 4
DECADES = 12  # of the colour scale, both ways
NO_PAIR = "0.88"
SUMS = {"by k": ("over $t$, for each $k$", "solid"), "by t": ("over $k$, for each $t$", style.DASHES[1])}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parameter", choices=("W", "U", "b"), default="W", help="whose gradient (default: W)")
    parser.add_argument("--layer", type=int, default=1, help="1 (the default) is nearest the input")
    parser.add_argument("--step", type=int, default=0, help="the record: updates done (default: 0, the untrained net)")
    parser.add_argument("--length", type=int, help="the sequence length to draw (default: the longest)")


def table(
    results: Results, parameter: str = "W", layer: int = 1, step: int = 0, length: int | None = None
) -> pd.DataFrame:
    """A row for each pair, and for each sum over pairs, of each group of runs that differ in their seed alone.

    panel, length, init, variant   the group (grouping.groups); variants in what acts through updates only are one at step 0
    kind       pair; by t; by k; by lag; beyond (all pairs of at least that lag)
    t, k, lag  where it has them
    log10_norm, seeds   mean over the seeds where it is finite, and how many those are
    relative   of "pair": log10_norm minus the group's mean at lag 0, which is what is drawn
    share      of "beyond": the mean over seeds of its norm as a fraction of the whole sum's
    parameter, layer, step, T; others: lengths that were given and are not drawn; runs ... run_ids (grouping.tally)
    """
    named, loaded, lengths = grouping.of_one_length(results, length)
    if step == 0:
        named = grouping.groups(results, grouping.AFTER_UPDATES).merge(named[["run_id"]], on="run_id")
    drawn = grouping.once(named, results.steps).merge(results.runs[["run_id", "path"]], on="run_id")
    parts = []
    for _, run in drawn.iterrows():
        found = contributions(run["path"], step)
        if not 1 <= layer <= len(found.by_k["W"]):
            raise ResultsError(f"--layer {layer}: {run['path']} has layers 1 to {len(found.by_k['W'])}")
        parts.append(one_run(found, parameter, layer - 1).assign(**{name: run[name] for name in GROUP}))
    values = pd.concat(parts, ignore_index=True)
    by = [*GROUP, "kind", "t", "k", "lag"]
    finite = values.assign(log10_norm=values["log10_norm"].where(np.isfinite(values["log10_norm"])))
    mean = finite.groupby(by, sort=False, dropna=False).agg(
        log10_norm=("log10_norm", "mean"), seeds=("log10_norm", "count"), share=("share", "mean")
    )
    frame = mean.reset_index()
    lag_0 = frame[frame["kind"].eq("pair") & frame["lag"].eq(0)].groupby(GROUP)["log10_norm"].mean().rename("lag_0")
    frame = frame.merge(lag_0.reset_index(), on=GROUP)
    relative = (frame["log10_norm"] - frame.pop("lag_0")).where(frame["kind"].eq("pair"))
    frame.insert(frame.columns.get_loc("log10_norm") + 1, "relative", relative)
    frame = frame.assign(parameter=parameter, layer=layer, step=step, T=int(frame["k"].max()))
    frame["others"] = " ".join(str(other) for other in lengths if other != frame["length"].iloc[0]) or "-"
    return frame.merge(grouping.tally(named, drawn, loaded), on=GROUP)


def one_run(found: Contributions, parameter: str, layer: int) -> pd.DataFrame:
    """The pairs and sums of one run in the table's columns."""
    pairs = found.log10_norm[parameter][layer].astype(float)
    losses, T = pairs.shape
    t, k = np.indices(pairs.shape)
    t, k = t + T - losses + 1, k + 1
    there, lag = k <= t, np.arange(T)
    beyond = found.beyond[parameter][layer].astype(float)
    with np.errstate(invalid="ignore"):
        share = 10 ** (beyond - beyond[0])
    return pd.concat(
        [
            pd.DataFrame(
                {"kind": "pair", "t": t[there], "k": k[there], "lag": (t - k)[there], "log10_norm": pairs[there]}
            ),
            pd.DataFrame({"kind": "by t", "t": lag + 1, "log10_norm": found.by_t[parameter][layer]}),
            pd.DataFrame({"kind": "by k", "k": lag + 1, "log10_norm": found.by_k[parameter][layer]}),
            pd.DataFrame({"kind": "by lag", "lag": lag, "log10_norm": found.by_lag[parameter][layer]}),
            pd.DataFrame({"kind": "beyond", "lag": lag, "log10_norm": beyond, "share": share}),
        ],
        ignore_index=True,
    ).assign(share=lambda frame: frame["share"].astype(float))


def draw(frame: pd.DataFrame) -> Figure:
    rows = list(dict.fromkeys(zip(frame["panel"], frame["variant"], strict=True)))
    inits = grouping.in_order(frame["init"])
    if len(inits) > MOST_COLUMNS or len(rows) > 6:
        raise ResultsError(
            f"{len(inits)} x {len(rows)} panels do not fit a page: choose with --where init.scale=..., say"
        )
    furthest = min(np.ceil(frame["relative"].abs().max()), DECADES)
    norm = CenteredNorm(0, max(furthest, 1))
    fig, axes = style.subplots(2 * len(rows), len(inits) + 1, style.PAGE, 0.9 + 1.95 * len(rows),
                               height_ratios=[0.45, 1] * len(rows), width_ratios=[1] * len(inits) + [1.25])  # fmt: skip
    colours = style.sequential(inits)
    for number, (panel, variant) in enumerate(rows):
        part = frame[(frame["panel"] == panel) & (frame["variant"] == variant)]
        above, below = axes[2 * number], axes[2 * number + 1]
        limits = style.limits(part.loc[part["kind"].isin(SUMS), ["log10_norm"]])
        for ax, map_ax, init in zip(above, below, inits, strict=False):
            own = part[part["init"] == init]
            sums(ax, own, limits)
            heatmap(map_ax, own, norm)
            ax.set_title(f"{panel if variant == '-' else f'{panel}, {variant}'}, {style.short(init)}")
        above[0].set_ylabel(r"$\log_{10}$ norm" + "\nof the sum")
        below[0].set_ylabel("loss at $t$")
        lines(below[-1], part, "by lag", "log10_norm", colours)
        lines(above[-1], part, "beyond", "share", colours)
        above[-1].set_title("share beyond the lag")
        below[-1].set_title(r"$\log_{10}$ norm by lag", pad=3)
    for ax in axes[-1, :-1]:
        ax.set_xlabel("weights used at $k$")
    axes[-1, -1].set_xlabel("lag $t - k$")
    bar = fig.colorbar(ScalarMappable(norm, "RdBu_r"), ax=axes[:, :-1], location="bottom", aspect=50, pad=0.02, shrink=0.7,
                       extend="both")  # fmt: skip
    bar.set_label(f"norm of step $k$'s summand of $dE_t/d{frame['parameter'].iloc[0]}$, decades against those of lag 0")
    handles = [Line2D([], [], color=style.INK, ls=ls, label=name) for name, ls in SUMS.values()]
    style.legend(fig, handles + [Line2D([], [], color=colours[init], label=style.short(init)) for init in inits])
    style.caption(fig, caption(frame, norm))
    return fig


def sums(ax: Axes, own: pd.DataFrame, limits: tuple[float, float]) -> None:
    for kind, (_, dashes) in SUMS.items():
        curve = own[own["kind"] == kind]
        ax.plot(curve[kind[-1]], curve["log10_norm"], color=style.INK, ls=dashes, lw=0.9)
    ax.set_ylim(limits)
    ax.set_xlim(0.5, own["T"].iloc[0] + 0.5)
    ax.tick_params(labelbottom=False)


def heatmap(ax: Axes, own: pd.DataFrame, norm: Normalize) -> None:
    """k to the right, t upwards; grey: exactly 0, or no pair at all."""
    T = own["T"].iloc[0]
    grid = np.full((T, T), np.nan)
    pairs = own[own["kind"] == "pair"]
    grid[pairs["t"].astype(int) - 1, pairs["k"].astype(int) - 1] = pairs["relative"]
    edges = np.arange(T + 1) + 0.5
    ax.pcolormesh(edges, edges, grid, norm=norm, cmap="RdBu_r").set_rasterized(True)
    ax.set_facecolor(NO_PAIR)


def lines(ax: Axes, part: pd.DataFrame, kind: str, column: str, colours: dict) -> None:
    for init, curve in part[part["kind"] == kind].groupby("init", sort=False):
        ax.plot(curve["lag"], curve[column], color=colours[init])
    ax.set_xlim(0, part["T"].iloc[0] - 1)
    if column == "share":
        ax.set_ylim(-0.05, max(1.1, 1.05 * part["share"].max()))


def caption(frame: pd.DataFrame, norm: CenteredNorm) -> list[str]:
    first, parameter = frame.iloc[0], frame["parameter"].iloc[0]
    seeds = grouping.between(frame.groupby(GROUP)["seeds"].max())
    lines = [
        f"Summands of the batch-mean $dE/d{parameter}$, layer {first['layer']}, after {first['step']} updates, {first['T']} steps; "
        f"means over seeds ({seeds}) of log10 Frobenius norms.",
        "By lag: of the sum over all pairs of that lag. "
        "Share: norm of the sum over all pairs of at least that lag over the norm of the whole sum (summands may cancel).",
    ]
    lines += [f"Not drawn: length {first['others']} (--length)."] if first["others"] != "-" else []
    pairs = frame[frame["kind"].eq("pair")]
    if pairs["relative"].abs().max() > norm.halfrange:
        low, high = pairs["log10_norm"].min(), pairs["log10_norm"].max()
        lines.append(f"Beyond the colours' ends: the norms of all pairs drawn reach from 1e{low:.0f} to 1e{high:.0f}.")
    if pairs["log10_norm"].isna().any():
        lines.append("Grey on or above the diagonal: exactly 0, as for W at k = 1, where $h_0 = 0$.")
    return lines + grouping.status_notes(frame)


if __name__ == "__main__":
    raise SystemExit(cli.main("contributions", table, draw, options))
