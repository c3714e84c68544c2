"""Which remedy helps, and what does it cost?

One row a remedy, on one task: the gradient's half-life in time steps (log10(2) / |dE_dh/slope|: how far back until it has halved, or,
where it explodes, doubled), the final error, and the time of an update. Small marks are seeds, bars their means (geometric for half-life).
"""

import cli
import grouping
import numpy as np
import pandas as pd
import style
from half_life import half_life
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rnn_lab.results import Results, ResultsError

# What counts as a remedy: a key, its value where there is none, and how a figure calls the others.
PARTS = (
    ("model.name", "elman", "{}"),
    ("init.name", "gaussian", "{} init"),
    ("clip.name", "none", "clip {}"),
    ("regularizer.name", "none", "{}"),
    ("flossing.name", "none", "flossed {}"),
    ("training.truncation", "null", "truncated at {}"),
    ("optimizer.name", "sgd", "{}"),
)
SETTINGS = ("model.leak", "init.", "clip.", "regularizer.", "flossing.", "training.truncation", "optimizer.")
COLOUR, DIED = style.sequential([0, 1, 2])[1], "#b2182b"
PANELS = {
    "half_life": "gradient half-life (time steps)",
    "error": "final error (fraction wrong)",
    "cost": "time of an update and run (ms)",
}


def table(results: Results) -> pd.DataFrame:
    """One row a run.

    remedy, order, rank    what differs from plain SGD on the Elman net, and its place from the top
    half_life, direction   log10(2) / |slope| time steps, of the top layer's dE/dh_t at the last finite record; vanishing or exploding
    half_life_before       the same at step 0
    error, measured_on     the last eval/error, or train/error where there was no evaluation;  baseline: of the best trivial predictor
    cost                   milliseconds: CPU time (on a GPU: wall time) of the run's program over its updates and its number of runs
    updates                at the last record;  code, dirty: as in grouping.groups;  loaded: how many runs were given
    """
    runs = results.runs.reset_index(drop=True)
    runs = runs[runs["run_id"].isin(results.steps["run_id"])].reset_index(drop=True)
    if runs.empty:
        raise ResultsError("nothing to draw: no run has a record")
    varied = [key for key in results.config if not key.startswith((*grouping.IGNORED, *SETTINGS)) and key != "model.name"
              and runs[key].map(grouping.text).nunique() > 1]  # fmt: skip
    if varied:
        raise ResultsError(f"the runs differ in {', '.join(varied)} too: choose one task and net by --where KEY=VALUE")
    steps = results.steps.sort_values("step", kind="stable")
    slopes = steps[np.isfinite(steps["dE_dh/slope"])].groupby("run_id")["dE_dh/slope"].agg(["first", "last"])
    slope, before = (runs["run_id"].map(slopes[which]) for which in ("last", "first"))
    done = runs["run_id"].map(steps.groupby("run_id")["step"].max())
    evaluated = runs["eval/error"].notna()
    named = runs[["run_id"]].merge(grouping.origins(results.runs), on="run_id")
    frame = runs[["run_id", "seed", "status", "task.name", "task.length"]].assign(
        half_life=half_life(slope),
        half_life_before=half_life(before),
        direction=np.where(slope > 0, "exploding", "vanishing"),
        error=runs["eval/error"].where(evaluated, runs["train/error"]),
        measured_on=np.where(evaluated, "fresh sequences", "a mini-batch"),
        baseline=runs.get("baseline/error", np.nan),
        cost=cost(runs, done),
        updates=done,
        code=named["code"],
        dirty=named["dirty"],
        loaded=len(results.runs),
    )
    frame = frame.join(remedies(runs, results.config))
    furthest = frame.assign(ended=frame["status"].isin(grouping.ENDED)).sort_values(
        ["ended", "updates"], ascending=False, kind="stable"
    )
    frame = frame.loc[
        frame.index.isin(furthest.drop_duplicates(["remedy", "seed"]).index)
    ]  # the same run, recorded otherwise
    order = frame.assign(parts=frame["rank"].str.len()).sort_values(["parts", "rank", "remedy"])["remedy"].unique()
    frame["order"] = frame["remedy"].map({remedy: n for n, remedy in enumerate(order)})
    first = ["remedy", "order", "run_id", "seed"]
    return frame[first + [name for name in frame if name not in first]].sort_values(
        ["order", "seed"], ignore_index=True
    )


def remedies(runs: pd.DataFrame, config: tuple[str, ...]) -> pd.DataFrame:
    """remedy: "clip norm + omega"; settings follow where one remedy was tried with several: "clip norm (threshold 2)".
    rank: the places of its parts in PARTS, "23"; "" is no remedy.
    """
    label = pd.Series("", index=runs.index)
    rank = label.copy()
    for n, (key, without, words) in enumerate(PARTS):
        if key in runs:
            value = runs[key].map(grouping.text)
            label += (" + " + value.map(words.format)).where(value.ne(without), "")
            rank += value.ne(without).map({True: str(n), False: ""})
    label = label.str.removeprefix(" + ").replace("", "none")
    names, named = {key for key, _, _ in PARTS}, label.copy()
    for key in config:
        value = runs[key].map(grouping.text)
        if key.startswith(SETTINGS) and key not in names:
            several = value.groupby(named).transform("nunique") > 1
            label += (" (" + key.rpartition(".")[2] + " " + value + ")").where(several, "")
    return pd.DataFrame({"remedy": label, "rank": rank})


def cost(runs: pd.DataFrame, updates: pd.Series) -> pd.Series:
    """CPU time, since another program on the machine changes it least; it says nothing of what runs on a GPU."""
    seconds = runs["cpu_seconds"].where(runs["training.device"].eq("cpu"), runs["seconds"])
    return 1e3 * seconds / (updates.where(updates > 0) * runs["program_runs"])


def draw(frame: pd.DataFrame) -> Figure:
    labels = frame.drop_duplicates("order").set_index("order")["remedy"]
    fig, axes = style.subplots(1, len(PANELS), style.PAGE, 1.15 + 0.19 * len(labels), sharey=True)
    for ax, (quantity, label) in zip(axes[0], PANELS.items(), strict=True):
        ax.set_xlabel(label)
        marks(ax, frame, quantity)
    half, error, cost = axes[0]
    half.set(yticks=labels.index, yticklabels=labels, ylim=(len(labels) - 0.5, -0.5))
    spread = pd.concat([frame[name] for name in ("half_life", "half_life_before")])
    half.set_xscale("log")
    half.minorticks_off()
    low, high = style.limits(spread.to_frame().transform(np.log10), least=0.1)
    half.set_xlim(10.0**low, 10.0**high)
    half.axvline(frame["task.length"].iloc[0], color=style.FAINT, lw=0.7, ls=(0, (1, 1.5)), zorder=1)
    half.annotate("length", (frame["task.length"].iloc[0], 1), (0, 2), ("data", "axes fraction"), "offset points",
                  ha="center", fontsize=5.5, color="0.35")  # fmt: skip
    error.set_xlim(-0.03, 1.03)
    for level in frame["baseline"].dropna().unique():
        error.axvline(level, color=style.FAINT, lw=0.7, ls=(0, (1, 1.5)), zorder=1)
        error.annotate("trivial", (level, 1), (0, 2), ("data", "axes fraction"), "offset points", ha="center",
                       fontsize=5.5, color="0.35")  # fmt: skip
    costs(cost, frame)
    for ax in axes[0]:
        ax.grid(axis="y", color="0.93", lw=0.5)
        ax.set_axisbelow(True)
        ax.tick_params(axis="y", length=0)
    style.legend(fig, handles(frame))
    style.caption(fig, caption(frame))
    return fig


def marks(ax: Axes, frame: pd.DataFrame, quantity: str) -> None:
    """A mark a seed, the seeds of a remedy a little apart from one another, and a bar for their mean."""
    seeds = frame.groupby("order")["seed"]
    rank, size = seeds.cumcount(), seeds.transform("size")
    frame = frame.assign(y=frame["order"] + 0.36 * (rank / (size - 1).clip(lower=1) - 0.5).where(size > 1, 0.0))
    if quantity == "half_life":
        ax.plot(frame["half_life_before"], frame["y"], ls="", marker="|", ms=4, mew=0.6, color=style.FAINT)
    grows = frame["direction"].eq("exploding") & (quantity == "half_life")
    for dots, marker in ((frame[grows], ">"), (frame[~grows], "o")):
        ax.plot(dots[quantity], dots["y"], ls="", marker=marker, ms=3, mew=0, alpha=0.75, color=COLOUR)
    died = frame[frame["status"].eq("diverged")]
    ax.plot(died[quantity], died["y"], ls="", marker="x", ms=4.5, mew=0.9, color=DIED, zorder=5)
    values = frame[quantity].transform(np.log10) if quantity == "half_life" else frame[quantity]
    mean = values.groupby(frame["order"]).mean()
    mean = mean.transform(lambda log: 10.0**log) if quantity == "half_life" else mean
    ax.plot(mean, mean.index, ls="", marker="|", ms=8, mew=1.4, color=style.INK, zorder=4)


def costs(ax: Axes, frame: pd.DataFrame) -> None:
    """From 0; each remedy's cost relative to no remedy (or the cheapest) is named at the right."""
    mean = frame.groupby("order")["cost"].mean()
    if mean.notna().any():
        ax.set_xlim(0, 1.3 * frame["cost"].max())
        for order, value in (mean / unit(frame)).dropna().items():
            ax.annotate(f"{value:.2f}×", (1, order), xycoords=("axes fraction", "data"), ha="right", va="center",
                        fontsize=5.5, color="0.35")  # fmt: skip


def unit(frame: pd.DataFrame) -> float:
    plain = frame.loc[frame["remedy"].eq("none"), "cost"].mean()
    return plain if np.isfinite(plain) else frame.groupby("order")["cost"].mean().min()


def handles(frame: pd.DataFrame) -> list[Line2D]:
    found = [Line2D([], [], ls="", marker="|", ms=8, mew=1.4, color=style.INK, label="mean over seeds"),
             Line2D([], [], ls="", marker="o", ms=3, mew=0, color=COLOUR, label="a seed, last record")]  # fmt: skip
    if frame["direction"].eq("exploding").any():
        found.append(
            Line2D([], [], ls="", marker=">", ms=3, mew=0, color=COLOUR, label="a seed, exploding (time to double)")
        )
    found.append(Line2D([], [], ls="", marker="|", ms=4, mew=0.6, color=style.FAINT, label="before training"))
    if frame["status"].eq("diverged").any():
        found.append(Line2D([], [], ls="", marker="x", ms=4.5, mew=0.9, color=DIED, label="diverged"))
    return found


def caption(frame: pd.DataFrame) -> list[str]:
    task, length, updates = (
        frame["task.name"].iloc[0].replace("_", " "),
        frame["task.length"].iloc[0],
        grouping.between(frame["updates"]),
    )
    seeds = grouping.between(frame.groupby("order")["seed"].count())
    unfinished = int((~frame["status"].isin(grouping.ENDED)).sum())
    absent = int(frame["loaded"].iloc[0]) - len(frame)
    lines = [
        f"{task}, length {length}, {updates} updates, {seeds} seeds a remedy. Half-life: of the total gradient dE/dh on "
        f"its way back, from the slope of its log10 norm. Error: on {' or '.join(sorted(frame['measured_on'].unique()))}. "
        "Time: CPU time of the program (on a GPU: wall time), data, probes and evaluation included, over its updates and runs; "
        f"× is relative to {'no remedy' if frame['remedy'].eq('none').any() else 'the cheapest'}. Bars: means over seeds, "
        "geometric for half-life."
    ]
    lines += [f"{unfinished} runs failed, were killed or are still running."] if unfinished else []
    lines += (
        [f"{absent} runs given are not drawn: no record, or another has their settings and seed."] if absent else []
    )
    return lines + grouping.code_notes(len(frame), int(frame["dirty"].sum()), frame["code"].nunique())


if __name__ == "__main__":
    raise SystemExit(cli.main("remedies", table, draw))
