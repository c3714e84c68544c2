"""Up to which length does each method learn the task? (Pascanu et al., Figure 7)

The share of seeds that solved it (an evaluation with less than 1 % of fresh sequences wrong) against sequence length; one panel an
initialisation, one curve a method: MSGD, MSGD-C (norm clipping), MSGD-CR (norm clipping and Omega). Bars: 95 % Wilson intervals.
A run that diverged did not solve it; one that failed, was killed or still runs is not counted.
"""

import cli
import grouping
import numpy as np
import pandas as pd
import style
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from rnn_lab.results import Results, ResultsError

METHODS = {("none", "none"): "MSGD", ("norm", "none"): "MSGD-C", ("norm", "omega"): "MSGD-CR"}
MARKS = ("o", "s", "^", "D", "v", "P")
SOLVED = 0.01  # an error below it
CELL = ["panel", "method", "length"]


def wilson(successes: NDArray, trials: NDArray, z: float = 1.959964) -> tuple[NDArray, NDArray]:
    """The interval of a binomial share that the score test does not refuse, 95 % for z = 1.96 (Wilson 1927)."""
    share, spread = successes / trials, z**2 / trials
    centre = (share + spread / 2) / (1 + spread)
    half = np.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def table(results: Results) -> pd.DataFrame:
    """One row a point: panel (initialisation), method, length, and of its seeds

    seeds, solved, diverged, share    how many ended, solved the task, diverged; solved / seeds, with its interval low..high
    updates                           the median, over the seeds that solved it, of the updates that it took
    unfinished                        runs that are not counted, since they did not end
    dirty, versions                   runs trained by code with uncommitted changes; versions of the code, of all points
    task, most_updates                what was to be solved, and within how many updates
    """
    runs = results.runs.reset_index(drop=True)
    evaluated = results.steps.dropna(subset=["eval/error"])
    if evaluated.empty:
        raise ResultsError("nothing to draw: no run was evaluated (eval.every)")
    ended = runs["status"].isin(grouping.ENDED)
    first = evaluated[evaluated["eval/error"] < SOLVED].groupby("run_id")["step"].min()
    named = grouping.groups(results, ("clip.", "regularizer."))
    panel = named["init"].where(runs["preset"].ne("none"), named["panel"] + ", " + named["init"])
    frame = named.assign(
        method=[METHODS.get(pair, " + ".join(pair)) for pair in zip(runs["clip.name"], runs["regularizer.name"], strict=True)],
        panel=panel.where(named["variant"].eq("-"), panel + ", " + named["variant"]),
        updates=named["run_id"].map(first),
        seeds=ended,
        diverged=runs["status"].eq("diverged"),
        unfinished=~ended,
        task=runs["task.name"],
        most_updates=runs["training.updates"].astype(int),
    )  # fmt: skip
    frame = frame.assign(solved=frame["updates"].notna() & ended, updates=frame["updates"].where(ended))
    found = frame.groupby(CELL, sort=False).agg(
        seeds=("seeds", "sum"), solved=("solved", "sum"), diverged=("diverged", "sum"), unfinished=("unfinished", "sum"),
        dirty=("dirty", "sum"), updates=("updates", "median"), task=("task", lambda c: " ".join(sorted(set(c)))),
        most_updates=("most_updates", "max"), run_ids=("run_id", " ".join),
    ).reset_index()  # fmt: skip
    if found["task"].nunique() > 1 or " " in found["task"].iloc[0]:
        raise ResultsError("the runs differ in task.name too: choose one by --where task.name=...")
    if frame.duplicated([*CELL, "seed"]).any():
        raise ResultsError("several runs share initialisation, method, length and seed: choose by --where KEY=VALUE")
    found.insert(5, "share", found["solved"] / found["seeds"].where(found["seeds"] > 0))
    low, high = wilson(found["solved"].to_numpy(float), found["seeds"].where(found["seeds"] > 0).to_numpy(float))
    return found.assign(low=low, high=high, versions=frame["code"].nunique()).sort_values(CELL, ignore_index=True)


def draw(frame: pd.DataFrame) -> Figure:
    panels = sorted(frame["panel"].unique(), key=lambda p: ("sigmoid" not in p, "smart" in p, p))
    methods = sorted(frame["method"].unique(), key=lambda m: (len(m), m))
    colours, lengths = style.sequential(methods), sorted(frame["length"].unique())
    fig, axes = style.subplots(1, len(panels), style.PAGE if len(panels) > 2 else style.MIDDLE, 2.3, sharey=True)
    shift = 0.012 * (lengths[-1] - lengths[0] or 1)  # curves that coincide stay visible
    for ax, panel in zip(axes[0], panels, strict=True):
        for place, method in enumerate(methods):
            points = frame[(frame["panel"] == panel) & (frame["method"] == method)].dropna(subset=["share"])
            x, share = points["length"] + shift * (place - (len(methods) - 1) / 2), points["share"]
            bars = np.maximum([share - points["low"], points["high"] - share], 0)
            ax.errorbar(x, share, bars, color=colours[method], marker=MARKS[place % len(MARKS)], ms=3.5, lw=1.1,
                        elinewidth=0.7, capsize=1.5, ls=style.DASHES[place % len(style.DASHES)])  # fmt: skip
        ax.set(title=style.short(panel), xlabel="sequence length", xticks=lengths, ylim=(-0.04, 1.04))
    axes[0, 0].set_ylabel("share of seeds that solved it")
    style.legend(fig, [Line2D([], [], color=colours[m], marker=MARKS[n % len(MARKS)], ms=3.5, label=m,
                              ls=style.DASHES[n % len(style.DASHES)]) for n, m in enumerate(methods)])  # fmt: skip
    style.caption(fig, caption(frame))
    return fig


def caption(frame: pd.DataFrame) -> list[str]:
    updates = " to ".join(f"{n:,}" for n in sorted({frame["most_updates"].min(), frame["most_updates"].max()}))
    lines = [f"{frame['task'].iloc[0].replace('_', ' ').capitalize()}, at most {updates} updates,"]
    lines += [f"{grouping.between(frame['seeds'])} seeds a point; bars: 95 % Wilson intervals."]
    if frame["diverged"].any():
        lines.append(f"{frame['diverged'].sum()} of {frame['seeds'].sum()} runs diverged, and count as not solved.")
    if frame["unfinished"].any():
        lines.append(f"{frame['unfinished'].sum()} runs have not ended and are not counted.")
    runs = int(frame["seeds"].sum() + frame["unfinished"].sum())
    return lines + grouping.code_notes(runs, int(frame["dirty"].sum()), int(frame["versions"].iloc[0]))


if __name__ == "__main__":
    raise SystemExit(cli.main("success_rate", table, draw))
