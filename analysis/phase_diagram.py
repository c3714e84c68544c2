"""Where does an untrained net lose its gradient, and where does it blow it up?

The slope of log10 of the gradient's norm through time over the recurrent gain g (W_ij ~ N(0, g^2 / H)) and what the input
adds to a pre-activation's second moment. Rows: activations. Left: measured. Middle: mean-field theory. Right: the
difference. Solid line: where the measured slope is 0. Dashed: the critical line chi = 1 of theory.
Draws sweeps over init.scale (or init.std) and init.input_std, on tasks of one-hot symbols.
"""

import cli
import grouping
import numpy as np
import pandas as pd
import style
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from rnn_lab import theory
from rnn_lab.results import Results, ResultsError

REAL_INPUTS = ("addition", "multiplication")  # ||x_t||^2 is not 1
SWEPT = ("init.scale", "init.std", "init.input_std", "model.activation")
MAPS = {"slope": "measured", "theory_slope": "mean-field theory", "difference": "measured $-$ theory"}


def table(results: Results) -> pd.DataFrame:
    """A row for each point of each activation's grid, at the first record (untrained nets).

    activation, g, inputs         g = std of W times sqrt(hidden); inputs = std_U^2 ||x_t||^2
    slope, seeds                  dE_dh/slope, decades a step: mean over the seeds where it is finite, and how many those are
    theory_slope, difference      theory/slope, and the measured one minus it
    critical_g                    the g of chi = 1 at these inputs
    hidden, length, run_ids       of the nets; which runs
    drawn, loaded                 how many runs the map shows, and how many were given
    dirty, versions               runs trained by code with uncommitted changes; versions of the code
    """
    runs = results.runs[results.runs["init.name"].eq("gaussian") & results.runs["model.name"].eq("elman")]
    if runs.empty:
        raise ResultsError("nothing to draw: no Elman net with init=gaussian")
    if runs["init.input_std"].isna().any() or runs["task.name"].isin(REAL_INPUTS).any():
        raise ResultsError("the input's second moment must be known: give init.input_std, on a task of one-hot symbols")
    ignored = (*SWEPT, *grouping.IGNORED, *grouping.AFTER_UPDATES)
    others = [
        key for key in results.config if not key.startswith(ignored) and runs[key].map(grouping.text).nunique() > 1
    ]
    if others:
        raise ResultsError(f"the runs differ in {', '.join(others)} too: choose by --where KEY=VALUE")
    runs = runs.assign(
        activation=runs["model.activation"],
        g=(runs["init.std"].astype(float) * np.sqrt(runs["model.hidden"])).fillna(runs["init.scale"]).round(9),
        inputs=runs["init.input_std"].astype(float) ** 2,
    )
    steps = results.steps.loc[results.steps["step"] == 0, ["run_id", "dE_dh/slope", "theory/slope"]]
    keys = ["activation", "g", "inputs"]
    drawn = runs[["run_id", "seed", *keys]].drop_duplicates([*keys, "seed"]).merge(steps, on="run_id")
    if drawn.empty:
        raise ResultsError("nothing to draw: no run has a record at step 0")
    drawn["dE_dh/slope"] = drawn["dE_dh/slope"].where(np.isfinite(drawn["dE_dh/slope"]))
    columns = {"slope": ("dE_dh/slope", "mean"), "seeds": ("dE_dh/slope", "count"),
               "theory_slope": ("theory/slope", "mean"), "run_ids": ("run_id", " ".join)}  # fmt: skip
    frame = drawn.groupby(keys).agg(**columns).reset_index()
    for activation, part in frame.groupby("activation"):
        if part["g"].nunique() < 2 or part["inputs"].nunique() < 2:
            raise ResultsError(f"{activation}: a map needs at least two values of init.scale and two of init.input_std")
        frame.loc[part.index, "critical_g"] = theory.critical_g(str(activation), part["inputs"].to_numpy())
    frame["difference"] = frame["slope"] - frame["theory_slope"]
    origins = grouping.origins(results.runs)
    origins = origins[origins["run_id"].isin(drawn["run_id"])]
    frame["drawn"], frame["loaded"] = len(drawn), len(results.runs)
    frame["dirty"], frame["versions"] = int(origins["dirty"].sum()), origins["code"].nunique()
    frame["hidden"], frame["length"] = runs["model.hidden"].iloc[0], runs["task.length"].iloc[0]
    return frame[[name for name in frame if name != "run_ids"] + ["run_ids"]]


def draw(frame: pd.DataFrame) -> Figure:
    activations = sorted(frame["activation"].unique())
    fig, axes = style.subplots(
        len(activations), 3, style.PAGE, 0.65 + 1.75 * len(activations), sharey=True, sharex="row"
    )
    for row, activation in zip(axes, activations, strict=True):
        part = frame[frame["activation"] == activation]
        slopes, differences = part[["slope", "theory_slope"]].to_numpy(), part["difference"].abs()
        low, high = np.nanmin(slopes), np.nanmax(slopes)
        shared = TwoSlopeNorm(0, min(low, -1e-6), max(high, 1e-6))
        norms: list[Normalize] = [shared, shared, CenteredNorm(0, max(differences.max(), 1e-6))]
        for ax, (column, title), norm in zip(row, MAPS.items(), norms, strict=True):
            image = heatmap(ax, part, column, norm, "PuOr_r" if column == "difference" else "RdBu_r")
            lines(ax, part)
            ax.set_title(f"{activation}, {title}")
            ax.set_xlabel("recurrent gain $g$")
            if column != "slope":
                of_both = column == "theory_slope"
                label = "slope (decades a step)" if of_both else "difference"
                bar = fig.colorbar(image, ax=list(row[:2]) if of_both else ax, label=label, pad=0.02, aspect=18)
                bar.set_ticks([0, *ticks(norm.vmin), *ticks(norm.vmax)])
        row[0].set_ylabel(r"input second moment $\sigma_U^2 \Vert x_t \Vert^2$")
    style.legend(
        fig,
        [
            Line2D([], [], color=style.INK, lw=0.9, label="measured slope 0"),
            Line2D([], [], color=style.INK, lw=0.9, ls=style.DASHES[1], label=r"theory: $\chi = 1$"),
        ],
    )
    style.caption(fig, caption(frame))
    return fig


def heatmap(ax: Axes, part: pd.DataFrame, column: str, norm: Normalize, colours: str):
    grid = part.pivot(index="inputs", columns="g", values=column)
    ax.set_yscale("log")
    ax.minorticks_off()
    mesh = ax.pcolormesh(
        edges(grid.columns.to_numpy()), np.exp(edges(np.log(grid.index.to_numpy()))), grid, norm=norm, cmap=colours
    )
    mesh.set_rasterized(True)  # a pdf viewer draws hairlines between cells
    return mesh


def edges(centres: np.ndarray) -> np.ndarray:
    """The borders of cells around increasing centres."""
    middles = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middles[0]], middles, [2 * centres[-1] - middles[-1]]])


def ticks(end: float | None) -> list[float]:
    """Two or three round numbers from 0 to this end of a colour scale; 0 is left out."""
    return [x for x in MaxNLocator(3).tick_values(0, end) if 0 < x / end <= 1] if end else []


def lines(ax: Axes, part: pd.DataFrame) -> None:
    """Where the measured slope is 0, and where chi is 1."""
    grid = part.pivot(index="inputs", columns="g", values="slope")
    if grid.min().min() < 0 < grid.max().max():
        ax.contour(grid.columns, grid.index, grid, levels=[0.0], colors=[style.INK], linewidths=0.9)
    critical = part.drop_duplicates("inputs").sort_values("inputs")
    limits = ax.get_xlim()
    ax.plot(critical["critical_g"], critical["inputs"], color=style.INK, lw=0.9, ls=style.DASHES[1])
    ax.set_xlim(limits)


def caption(frame: pd.DataFrame) -> list[str]:
    seeds, missing = grouping.between(frame["seeds"]), int(frame["slope"].isna().sum())
    worst, typical = frame["difference"].abs().max(), np.sqrt((frame["difference"] ** 2).mean())
    lines = [
        f"Slope of log10 of the total gradient's norm at $h_t$ on the lag, before the first update, over lags 0 to {theory.LAGS - 1} "
        "at most; blue: vanishing, red: exploding towards the past.",
        f"{frame['hidden'].iloc[0]} units, length {frame['length'].iloc[0]}, seeds a point: {seeds} (the same draws of U and W "
        "everywhere, scaled).",
        f"Measured minus theory: root mean square {typical:.3f}, largest {worst:.3f} decades a step.",
    ]
    lines += [f"{missing} points have no finite slope."] if missing else []
    drawn, loaded, dirty, versions = (int(frame[key].iloc[0]) for key in ("drawn", "loaded", "dirty", "versions"))
    empty = (
        frame.groupby("activation").apply(lambda part: part["g"].nunique() * part["inputs"].nunique() - len(part)).sum()
    )
    lines += [f"White: {empty} points of the grid have no run."] if empty else []
    lines += [
        f"{loaded - drawn} of {loaded} runs given are not drawn: other nets, no record at step 0, or settings and seed of another."
    ] * (loaded > drawn)
    return lines + grouping.code_notes(drawn, dirty, versions)


if __name__ == "__main__":
    raise SystemExit(cli.main("phase_diagram", table, draw))
