"""How chaotic is a net, and how many directions of its state grow?

Columns: net (the activation, or the cell of others than Elman) and drive. From above: all Lyapunov exponents, colour: recurrent gain g;
ln(singular values) / lag of products of so many Jacobians, at one gain, which tend to them; and against g the first exponent with
mean-field theory, the Kaplan-Yorke dimension and the entropy rate, both over the size N of the state.
Draws what experiments/lyapunov.py wrote; RUNS are its directories.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cli
import grouping
import numpy as np
import pandas as pd
import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rnn_lab import results, theory
from rnn_lab.results import ResultsError

NET = ["net", "cell", "activation", "drive", "updates", "init", "g", "input_std", "task", "hidden", "layers", "seed"]
PANEL = ["net", "drive"]
REAL_INPUTS = ("addition", "multiplication")  # ||x_t||^2 is not 1
LABELS = {
    "spectrum": "exponent (nats a step)",
    "finite": "over finite lags",
    "first": r"first exponent $\lambda_1$",
    "dimension": "dimension / $N$",
    "entropy": "entropy rate / $N$",
}


class Spectra(NamedTuple):
    """What experiments/lyapunov.py wrote: a row for each exponent, and for each singular value and lag."""

    exponents: pd.DataFrame
    products: pd.DataFrame


def read(_: cli.Parser, paths: Sequence[Path], conditions: Sequence[str]) -> tuple[Spectra, dict[str, str]]:
    """Everything under these directories that meets the conditions of --where, and where it came from."""
    frames: dict[str, list[pd.DataFrame]] = {"spectra.csv": [], "singular_values.csv": []}
    origins = []
    for path in paths:
        for name, found in frames.items():
            if not (path / name).is_file():
                raise ResultsError(f"{path}: no {name} here; expected a directory of experiments/lyapunov.py")
            found.append(pd.read_csv(path / name))
        origins.append(json.loads((path / "experiment.json").read_text()))
    exponents, products = (
        results.select(pd.concat(parts, ignore_index=True), conditions, NET).drop_duplicates([*NET, *key])
        for parts, key in zip(frames.values(), (["index"], ["lag", "index"]), strict=True)
    )
    others = [
        key
        for key in NET
        if key not in (*PANEL, "cell", "activation", "updates", "g", "seed", "input_std")
        and exponents[key].nunique() > 1
    ]
    if exponents.groupby("drive")["input_std"].nunique().max() > 1:
        others.append("input_std")
    if others:
        raise ResultsError(f"the nets differ in {', '.join(others)} too: choose by --where KEY=VALUE")
    return Spectra(exponents, products), results.provenance(pd.json_normalize(origins))


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--at", type=float, metavar="G", help="gain of the row of finite lags (default: the middle one)"
    )


def table(spectra: Spectra, at: float | None = None) -> pd.DataFrame:
    """The curves; x is (index - 1/2) / N or g.

    net, drive             the column
    kind                   spectrum, finite, first, dimension, entropy, or theory: 0.5 ln chi(q*), mean field's first exponent
    g, lag, x              lag: of the singular values; missing elsewhere
    mean, low, high, nets  over seeds, where finite; nats a step (dimension and entropy: over N); nets: how many are finite
    error                  of one net, from blocks of time: root mean square over seeds (dimension and entropy: over N)
    """
    frame, products = (rows.assign(size=rows.groupby(PANEL)["index"].transform("max")) for rows in spectra)
    gains = np.sort(frame["g"].unique())
    at = gains[len(gains) // 2] if at is None else at
    if at not in gains:
        raise ResultsError(f"--at {at:g}: no such gain; they are {', '.join(f'{g:g}' for g in gains)}")
    nets = frame[frame["index"] == 1].assign(x=lambda rows: rows["g"])
    parts = [
        curves(frame.assign(x=(frame["index"] - 0.5) / frame["size"]), "spectrum", "exponent", "error"),
        curves(products[products["g"] == at].assign(x=(products["index"] - 0.5) / products["size"]), "finite", "rate"),
        curves(nets, "first", "exponent", "error"),
        curves(per_unit(nets, "kaplan_yorke"), "dimension", "kaplan_yorke", "kaplan_yorke_error"),
        curves(per_unit(nets, "entropy"), "entropy", "entropy", "entropy_error"),
        predicted(frame),
    ]
    columns = [*PANEL, "kind", "g", "lag", "x", "mean", "low", "high", "nets", "error"]
    found = pd.concat([part for part in parts if len(part)], ignore_index=True)[columns]
    return found.assign(hidden=frame["hidden"].iloc[0], layers=frame["layers"].iloc[0])


def per_unit(nets: pd.DataFrame, name: str) -> pd.DataFrame:
    N = nets["size"]
    return nets.assign(**{name: nets[name] / N, f"{name}_error": nets[f"{name}_error"] / N})


def curves(rows: pd.DataFrame, kind: str, column: str, error: str | None = None) -> pd.DataFrame:
    rows = rows.assign(lag=rows.get("lag", 0))
    keys = [*PANEL, "g", "lag", "x"]
    found = grouping.summarise(rows, keys, column).rename(columns={"seeds": "nets"})
    square = (rows[error] ** 2 if error else rows["x"] * np.nan).groupby([rows[key] for key in keys], sort=False)
    return found.assign(kind=kind, error=np.sqrt(square.mean().to_numpy()))


def predicted(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean field's first exponent at a constant input second moment, where it applies: untrained, one layer, Gaussian W, one-hot inputs."""
    parts = []
    for (net, drive), own in frame.groupby(PANEL):
        first = own.iloc[0]
        known = (
            first["updates"] == 0 and first["cell"] == "elman" and first["layers"] == 1 and first["init"] == "gaussian"
        )
        if known and (drive == "autonomous" or first["task"] not in REAL_INPUTS):
            g = np.linspace(own["g"].min(), own["g"].max(), 300)
            with np.errstate(divide="ignore"):
                chi = theory.chi(
                    first["activation"], g, theory.fixed_point(first["activation"], g, first["input_std"] ** 2)
                )
                parts.append(
                    pd.DataFrame({"g": g, "x": g, "mean": np.log(chi) / 2}).assign(net=str(net), drive=str(drive))
                )
    empty = pd.DataFrame(columns=[*PANEL, "g", "x", "mean"])
    return (pd.concat(parts, ignore_index=True) if parts else empty).assign(
        kind="theory", lag=0, low=np.nan, high=np.nan, nets=0, error=np.nan
    )


def draw(frame: pd.DataFrame) -> Figure:
    panels = list(
        frame[PANEL].drop_duplicates().sort_values(PANEL, ascending=[False, True]).itertuples(index=False, name=None)
    )
    width = {1: style.COLUMN, 2: style.MIDDLE}.get(len(panels), style.PAGE)
    fig, axes = style.subplots(
        len(LABELS), len(panels), width, 8.6, sharey="row", height_ratios=[1.4, 1.4, 1, 0.8, 0.8]
    )
    gains = sorted(frame.loc[frame["kind"] == "spectrum", "g"].unique())
    lags = sorted(frame.loc[frame["kind"] == "finite", "lag"].unique())
    by_gain, by_lag = style.sequential(gains), dict(zip(lags, style.DASHES[::-1][-len(lags) :], strict=False))
    at = frame.loc[frame["kind"] == "finite", "g"].iloc[0]
    for column, (net, drive) in zip(axes.T, panels, strict=True):
        own = frame[(frame["net"] == net) & (frame["drive"] == drive)]
        own = {str(kind): part for kind, part in own.groupby("kind")}
        column[0].set_title(f"{net}\n{drive}" if len(panels) > 4 else f"{net}, {drive}")
        ordered(column[0], own["spectrum"], "g", by_gain)
        finite(column[1], own, at, by_lag, by_gain[at])
        against_gain(column[2:], own)
    for row, label in zip(axes, LABELS.values(), strict=True):
        row[0].set_ylabel(label)
    for row, kind in zip(axes, LABELS, strict=True):
        limits(row, frame[frame["kind"] == kind], kind)
    fig.align_ylabels(axes[:, 0])
    handles = [Line2D([], [], color=by_gain[g], label=f"$g$ = {g:g}") for g in gains]
    handles += [Line2D([], [], color=by_gain[at], ls=by_lag[lag], label=f"lag {lag:g}") for lag in lags]
    if frame["kind"].eq("theory").any():
        handles += [Line2D([], [], color=style.INK, lw=0.9, ls=(0, (1, 1.3)), label="mean field")]
    style.legend(fig, handles)
    style.caption(fig, caption(frame, at))
    return fig


def ordered(ax: Axes, part: pd.DataFrame, key: str, colours: dict) -> None:
    ax.axhline(0, color=style.INK, lw=0.5, zorder=1)
    for value, curve in part.groupby(key):
        ax.fill_between(curve["x"], curve["low"], curve["high"], color=colours[value], alpha=0.2, lw=0)
        ax.plot(curve["x"], curve["mean"], color=colours[value], lw=1)
    ax.set(xlim=(0, 1), xlabel="$i \\,/\\, N$")


def finite(ax: Axes, own: dict[str, pd.DataFrame], at: float, dashes: dict, colour: object) -> None:
    """Singular values over each lag, and the exponents that they tend to."""
    ordered(ax, own["spectrum"][own["spectrum"]["g"] == at], "g", {at: style.FAINT})
    for lag, curve in own["finite"].groupby("lag"):
        ax.plot(curve["x"], curve["mean"], color=colour, ls=dashes[lag], lw=1)


def against_gain(column: Sequence[Axes], own: dict[str, pd.DataFrame]) -> None:
    for ax, kind in zip(column, ("first", "dimension", "entropy"), strict=True):
        curve = own[kind]
        ax.vlines(curve["x"], curve["low"], curve["high"], color=style.INK, lw=0.8)
        ax.plot(curve["x"], curve["mean"], ls="", marker="o", ms=2.8, mew=0, color=style.INK)
    column[0].axhline(0, color=style.INK, lw=0.5, zorder=1)
    if "theory" in own:
        column[0].plot(own["theory"]["x"], own["theory"]["mean"], color=style.INK, lw=0.9, ls=(0, (1, 1.3)))
    column[-1].set_xlabel("recurrent gain $g$")


def limits(row: Sequence[Axes], part: pd.DataFrame, kind: str) -> None:
    """The bulk: a few exponents of saturated or switched-off units lie far below it."""
    if kind in ("spectrum", "finite"):
        finite = part.loc[np.isfinite(part["mean"]), "mean"]
        low, high = float(np.quantile(finite, 0.02)), float(finite.max())
        row[0].set_ylim(max(low, high - 12) - 0.3, high + 0.3)
    else:
        row[0].set_ylim(*style.limits(part[["low", "high"]], least=0.003))


def caption(frame: pd.DataFrame, at: float) -> list[str]:
    first = frame.iloc[0]
    nets = grouping.between(frame.loc[frame["kind"] == "first", "nets"])
    untrained = "" if frame["net"].str.endswith("updates").any() else "Untrained nets, "
    errors = frame[frame["kind"].isin(["first", "dimension", "entropy"])].groupby("kind")["error"].max()
    lines = [
        f"{untrained}{first['hidden']} units, layers: {first['layers']}; $i$: number of the exponent, $N$: size of the state; "
        f"nets a point: {nets}; lines and dots: means, bands and bars: smallest to largest.",
        f"Second row: $g$ = {at:g}, seed 0; grey: the exponents. Autonomous: from a random state, without input.",
        f"Largest standard error of one net over time: first exponent {errors['first']:.2g}, dimension / $N$ {errors['dimension']:.2g}, "
        f"entropy rate / $N$ {errors['entropy']:.2g}.",
    ]
    if frame["kind"].eq("theory").any():
        lines.append(
            "Dotted: mean-field theory of the first exponent, for wide nets; without input and at $g < 1$ (sigmoid: at a fixed point) "
            r"the rate of a single net is ln $\rho$ of its own Jacobian."
        )
    lost = int(frame.loc[frame["kind"] == "spectrum", "nets"].eq(0).sum())
    return lines + ([f"{lost} exponents are minus infinity (lost directions) and not drawn."] if lost else [])


if __name__ == "__main__":
    raise SystemExit(cli.main("lyapunov", table, draw, options, read=read))
