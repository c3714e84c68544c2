"""Where does a one-unit RNN settle, and which small change of its bias makes it settle elsewhere? (P13, Figure 3)

    python experiments/bifurcation.py [--w 5] [--activation logistic|tanh] [--out DIR]

Draws the asymptotic states x of x <- w phi(x) + b over b, and the two ways in which a small change of b changes them by a lot:
past a fold the attractor is gone (filled circles); or the boundary between two basins, which is the unstable branch, sweeps over the
state (open circles). A large change from a small one is a large gradient. w < 0 has flips instead of folds, and between them a cycle of
period 2.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

sys.path.append(str(Path(__file__).parents[1]))
from analysis.cli import style, without_runs
from rnn_lab.one_unit import PHI, Phi, bias, critical, cycle, fixed_points, multiplier
from rnn_lab.provenance import provenance

LARGEST = 1e9  # of |w|: float64 then still has the folds to 1e-7
POINTS = 201  # of each stretch of a branch
COLUMNS = ["activation", "w", "b", "x", "kind", "multiplier", "to_x"]


def table(w: float = 5.0, activation: str | None = None) -> pd.DataFrame:
    """Everything drawn, a row a point; x is the pre-activation, the state of the paper.

    activation, w, b, x
    kind          stable, unstable: fixed points, x = w phi(x) + b. The unstable ones between two folds are the boundary of the basins.
                  fold, flip: fixed points of multiplier exactly 1, -1, where a branch turns back, or gives its stability to a cycle
                  cycle: a point of the attracting cycle of period 2
                  fold_crossing, boundary_crossing: the paper's two events: two rows each, the state before and after a small change of b
                  flow: a state on its way (arrows)
    multiplier    w phi'(x)
    to_x          crossings: the attractor that the state goes to; flow: the next state; else x itself (cycle: the other point)
    """
    parts = [
        _rows(name, w, kind, *points)
        for name in ([activation] if activation else list(PHI))
        for kind, points in _kinds(PHI[name], w)
    ]
    return pd.concat(parts, ignore_index=True)[COLUMNS]


def _rows(activation: str, w: float, kind: str, b: Any, x: Any, to_x: Any) -> pd.DataFrame:
    frame = pd.DataFrame({"b": b, "x": x, "to_x": to_x}, dtype=float)
    return frame.assign(activation=activation, w=w, kind=kind, multiplier=multiplier(PHI[activation], w, frame["x"]))


def _kinds(phi: Phi, w: float) -> Iterator[tuple[str, tuple[Any, Any, Any]]]:
    """(kind, (b, x, to_x)) of all that is drawn for one activation."""
    low, high = window(phi, w)
    turns = critical(phi, w, math.copysign(1, w))
    ends = np.concatenate([fixed_points(phi, w, low)[:1], turns, fixed_points(phi, w, high)[-1:]])
    for start, end in pairwise(ends):
        x = between(start, end)
        yield "unstable" if start in turns[:1] else "stable", (bias(phi, w, x), x, x)
    b_turns = bias(phi, w, turns)
    yield "fold" if w > 0 else "flip", (b_turns, turns, turns)
    if w < 0 and len(turns):
        b = between(*b_turns)
        lows, highs = np.transpose([cycle(phi, w, at) for at in b])
        yield "cycle", (np.append(b, b), np.append(lows, highs), np.append(highs, lows))
    if w > 0 and len(turns):
        yield from crossings(phi, w)
    if w >= 0:  # a map that falls overshoots: no flow
        b, x = np.meshgrid(np.linspace(low, high, 12)[1:-1], np.linspace(ends[0], ends[-1], 11)[1:-1])
        yield "flow", (b.ravel(), x.ravel(), (w * phi(x) + b).ravel())


def between(start: float, end: float) -> np.ndarray:
    """Points inside an interval, dense at its ends: there the curves turn."""
    return (start + end) / 2 - (end - start) / 2 * np.cos(np.linspace(0, np.pi, POINTS + 2)[1:-1])


def window(phi: Phi, w: float) -> tuple[float, float]:
    """The range of b drawn: around what happens, if anything happens."""
    middle = float(bias(phi, w, 0))  # b - middle is odd in x
    turns = critical(phi, w, math.copysign(1, w))
    half = 1.6 * abs(bias(phi, w, turns[0]) - middle) if len(turns) else bias(phi, w, 2 / phi.rate) - middle
    return float(middle - half), float(middle + half)


def crossings(phi: Phi, w: float) -> Iterator[tuple[str, tuple[Any, Any, Any]]]:
    """The two events of the paper's figure: a decrease of b by the same amount at two places."""
    high_fold, low_fold = bias(phi, w, critical(phi, w, 1))  # of b; the upper attractor ends at the lower one
    step = 0.3 * (high_fold - low_fold)
    before, after = low_fold + step / 2, low_fold - step / 2
    upper, lower = fixed_points(phi, w, before)[-1], fixed_points(phi, w, after)[0]
    yield "fold_crossing", ((before, after), (upper, upper), (upper, lower))
    middle = (low_fold + high_fold) / 2
    before, after = middle + step / 2, middle - step / 2
    state = fixed_points(phi, w, middle)[1]
    to = fixed_points(phi, w, before)[-1], fixed_points(phi, w, after)[0]
    yield "boundary_crossing", ((before, after), (state, state), to)


# --------------------------------------------------------------------------------------------------------------------------- drawing

LOOKS = {"stable": {"lw": 1.6, "color": style.INK}, "unstable": {"lw": 1.1, "color": style.INK, "ls": (0, (4, 2))},
         "cycle": {"lw": 1.6, "color": "#0072B2", "ls": (0, (1, 0.8))}}  # fmt: skip
MOVES = {"fold_crossing": ("#D55E00", "#D55E00"), "boundary_crossing": ("#0072B2", "white")}  # edge, face
NAMES = {
    "stable": "stable fixed point",
    "unstable": "unstable fixed point",
    "cycle": "stable cycle of period 2",
    "fold_crossing": "state passes a fold",
    "boundary_crossing": "boundary passes the state",
}


def draw(frame: pd.DataFrame) -> Figure:
    activations = list(frame["activation"].unique())
    width = style.PAGE if len(activations) > 1 else style.COLUMN
    fig, axes = style.subplots(1, len(activations), width, 2.8 if len(activations) > 1 else 3.2)
    for ax, activation in zip(axes[0], activations, strict=True):
        panel(ax, frame[frame["activation"] == activation])
        ax.set_title(f"{activation}, $w = {frame['w'].iloc[0]:g}$")
        ax.set_xlabel("bias $b$")
    axes[0, 0].set_ylabel("state $x$ (pre-activation)")
    kinds = [kind for kind in NAMES if kind in set(frame["kind"])]
    samples = [
        Line2D([], [], label=NAMES[kind], **LOOKS[kind]) if kind in LOOKS else
        Line2D([], [], ls="", marker="o", ms=4, mec=MOVES[kind][0], mfc=MOVES[kind][1], label=NAMES[kind])
        for kind in kinds
    ]  # fmt: skip
    style.legend(fig, samples, 2 if len(activations) == 1 else None)
    style.caption(fig, caption(frame))
    return fig


def panel(ax: Axes, part: pd.DataFrame) -> None:
    turns = part[part["kind"].isin(["fold", "flip"])]
    for kind in ("stable", "unstable"):
        branch = part[part["kind"] == kind]
        stretches = np.searchsorted(turns["x"].to_numpy(), branch["x"].to_numpy())  # below, between, above the turns
        for stretch in np.unique(stretches):
            ends = turns.iloc[max(stretch - 1, 0) : stretch + 1]
            joined = pd.concat([branch[stretches == stretch], ends]).sort_values("x")
            ax.plot(joined["b"], joined["x"], **LOOKS[kind], zorder=3)
    ring = part[part["kind"] == "cycle"]
    for _, points in ring.groupby(ring["x"] > ring["to_x"]):
        ax.plot(points["b"], points["x"], **LOOKS["cycle"], zorder=3)
    mark(ax, turns)
    for kind in MOVES:
        move(ax, part[part["kind"] == kind])
    flow(ax, part[part["kind"] == "flow"])


def mark(ax: Axes, turns: pd.DataFrame) -> None:
    """Squares on the folds or flips, and their b on top of the panel."""
    low, high = ax.get_xlim()
    digits = int(np.clip(4 - math.floor(math.log10(high - low)), 4, 12))
    top = ax.get_ylim()[1]
    ax.vlines(turns["b"], turns["x"], top, color=style.FAINT, lw=0.6, ls=(0, (1, 1.5)), zorder=2)
    ax.set_ylim(top=top)
    ax.plot(turns["b"], turns["x"], ls="", marker="s", ms=3.5, color=style.INK, zorder=4)
    axis = ax.secondary_xaxis("top")
    axis.set_xticks(turns["b"], [f"{turn.kind} ${turn.b:.{digits}f}$" for turn in turns.itertuples()])
    axis.spines["top"].set_visible(False)


def move(ax: Axes, event: pd.DataFrame) -> None:
    """The change of b, from one circle to the other, and where the state goes from each."""
    if event.empty:
        return
    edge, face = MOVES[event["kind"].iloc[0]]
    (start, end), (x, _), to = event["b"], event["x"], event["to_x"]
    looks = {"arrowstyle": "-|>", "mutation_scale": 6, "color": edge, "shrinkA": 2.5, "shrinkB": 2.5}
    ax.annotate("", (end, x), (start, x), arrowprops=looks | {"lw": 1.0}, zorder=5)
    for b, goal in zip((start, end), to, strict=True):
        if abs(goal - x) > 1e-9 * (1 + abs(x)):
            ax.annotate("", (b, goal), (b, x), arrowprops=looks | {"lw": 0.8, "ls": (0, (3, 1.5))}, zorder=5)
    ax.plot([start, end], [x, x], ls="", marker="o", ms=4, mec=edge, mfc=face, zorder=6)


def flow(ax: Axes, arrows: pd.DataFrame) -> None:
    """Which way the state moves; the length says nothing."""
    direction = np.sign(arrows["to_x"] - arrows["x"])
    ax.quiver(arrows["b"], arrows["x"], 0 * direction, direction, color="0.75", units="inches", scale_units="inches",
              scale=10, width=0.008, headwidth=5, pivot="mid", zorder=1)  # fmt: skip


def caption(frame: pd.DataFrame) -> list[str]:
    kinds = set(frame["kind"])
    lines = [r"Asymptotic states of $x \leftarrow w\,\phi(x) + b$; fixed points are exact, $b = x - w\,\phi(x)$."]
    if "fold" in kinds:
        lines += ["Between the folds there are two attractors, and the unstable branch is the boundary of their basins.",
                  "Coloured: a small decrease of $b$ (solid arrow) and where the state goes then (dashed arrows)."]  # fmt: skip
    if "cycle" in kinds:
        lines += ["Between the flips the state ends up alternating between the two points of the cycle."]
    if not kinds & {"fold", "flip"}:
        lines += ["One attractor for every $b$: folds need $w$ above 4 (logistic) or 1 (tanh)."]
    return lines + (["Grey: which way the state moves."] if "flow" in kinds else [])


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--w",
        type=weight,
        default=5.0,
        metavar="W",
        help="the recurrent weight, default 5 (a negative power of ten as --w=-1e3)",
    )
    parser.add_argument("--activation", choices=list(PHI), help="default: both")


def weight(text: str) -> float:
    try:
        w = float(text)
    except ValueError:
        w = math.nan
    if not abs(w) <= LARGEST:
        raise argparse.ArgumentTypeError(f"{text}: must be a number between -{LARGEST:g} and {LARGEST:g}")
    return w


if __name__ == "__main__":
    raise SystemExit(without_runs("bifurcation", table, draw, provenance(), options))
