"""The mean-field prediction beside a measured gradient: its line, its numbers, and whether it lies inside their spread."""

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import style
from grouping import GROUP
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea, VPacker

from rnn_lab.theory import LAGS

BOTTOM, WIDTH, ROW = 0.11, 0.4, 0.09  # of the table of slopes: in panels' heights and widths; a row's height in inches
COLUMNS = ["slope", "slope_low", "slope_high", "theory_slope", "theory_inside"]


def compare(steps: pd.DataFrame, drawn: pd.DataFrame) -> pd.DataFrame:
    """For each group: its mean slope and the slope that theory gives, decades a step; from one record of each run drawn.

    slope, slope_low, slope_high   dE_dh/slope: mean over seeds and its 95 % t-interval (NaN for a single seed)
    theory_slope, theory_inside    theory/slope (NaN: none applies); whether it lies in the interval (NaN: cannot be said)
    """
    rows = drawn.merge(steps[["run_id", "dE_dh/slope", "theory/slope"]], on="run_id")
    rows = rows[np.isfinite(rows["dE_dh/slope"]) | rows["dE_dh/slope"].isna()]
    spread = rows.groupby(GROUP)["dE_dh/slope"].agg(["mean", "sem", "count"])
    half = spread["sem"] * spread["count"].map(t_quantile)
    found = pd.DataFrame(
        {"slope": spread["mean"], "slope_low": spread["mean"] - half, "slope_high": spread["mean"] + half}
    )
    found["theory_slope"] = rows.groupby(GROUP)["theory/slope"].mean()
    known = found[["slope_low", "theory_slope"]].notna().all(axis=1)
    inside = found["theory_slope"].between(found["slope_low"], found["slope_high"])
    found["theory_inside"] = inside.astype(object).where(known, np.nan)
    return found.reset_index()


@cache
def t_quantile(seeds: int) -> float:
    """Student's t with seeds - 1 degrees of freedom at 97.5 %; NaN for fewer than two. (t = sqrt(n) tan(angle): a bounded integral.)"""
    n = seeds - 1
    if n < 1:
        return float("nan")
    edges = np.linspace(-np.pi / 2, np.pi / 2, 200_001)
    density = np.cos((edges[1:] + edges[:-1]) / 2) ** (n - 1)
    cumulative = np.concatenate([[0], np.cumsum(density)]) / density.sum()
    return float(np.sqrt(n) * np.tan(np.interp(0.975, cumulative, edges)))


def dark(colour: object) -> tuple[float, ...]:
    """The colour of a prediction, over the curve that it is about."""
    return tuple(0.45 * c for c in to_rgb(colour))  # type: ignore[arg-type]


def line(ax: Axes, curve: pd.DataFrame, colour: object) -> None:
    """The predicted slope from the measured norm at lag 0, over the lags that it is compared on."""
    slope, start = curve["theory_slope"].iloc[0], curve.loc[curve["lag"] == 0, "mean"]
    if np.isfinite(slope) and start.notna().any():
        fitted = curve[curve["lag"] < LAGS]
        ax.plot(
            fitted["t"], start.iloc[0] + slope * fitted["lag"], color=dark(colour), lw=0.9, ls=(0, (1, 1.3)), zorder=3
        )


def floor(ax: Axes, curves: pd.DataFrame, low: float, high: float, inches: float) -> float:
    """How low an axis from `low` to `high`, so many inches high, has to begin for the table of `numbers` to lie below all curves."""
    rows = 1 + len(_predicted(curves))
    if rows == 1 or not _below(curves.loc[curves["lag"] == 0, "mean"].mean(), low, high):
        return low
    share = min(BOTTOM + ROW * rows / inches, 0.75)
    left, right = ax.get_xlim()
    beside = curves.loc[curves["t"] >= right - WIDTH * (right - left), ["low", "mean"]].to_numpy(float)
    beside = beside[np.isfinite(beside)]
    return min(low, (float(beside.min()) - share * high) / (1 - share)) if beside.size else low


def _predicted(curves: pd.DataFrame) -> pd.DataFrame:
    """A row for each group that theory speaks of."""
    return curves.drop_duplicates(GROUP).dropna(subset=["theory_slope"])


def _below(start: float, low: float, high: float) -> bool:
    """Whether the table stands below the level that all curves come from, where there is more room."""
    return start - low >= high - start


def numbers(ax: Axes, curves: pd.DataFrame, colours: dict[str, Any], start: float) -> None:
    """A table of slopes, measured and predicted, in the emptier corner at the right, where all curves come from the level `start`."""
    groups = _predicted(curves).set_index("init")
    if groups.empty:
        return
    cells = [("measured", "theory", style.INK)]
    for init in (name for name in colours if name in groups.index):
        for group in groups.loc[[init]].to_dict("records"):
            half = f" ± {group['slope_high'] - group['slope']:.2f}" if np.isfinite(group["slope_high"]) else ""
            star = "*" if str(group["theory_inside"]) == "False" else " "  # from a csv it may be text
            cells.append((signed(group["slope"]) + half, signed(group["theory_slope"]) + star, colours[init]))

    def column(which: int) -> VPacker:
        texts: list[Artist] = [TextArea(row[which], textprops={"size": 5, "color": row[2]}) for row in cells]
        return VPacker(children=texts, pad=0, sep=1, align="right")

    low, high = ax.get_ylim()
    corner, y = ("lower right", BOTTOM) if _below(start, low, high) else ("upper right", 0.9)
    table = HPacker(children=[column(0), column(1)], pad=0, sep=4)
    box = AnchoredOffsetbox(
        corner, child=table, pad=0.15, borderpad=0, bbox_to_anchor=(0.985, y), bbox_transform=ax.transAxes
    )
    box.patch.set(facecolor="white", alpha=0.8, linewidth=0)  # readable on a curve
    ax.add_artist(box)


def signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def sentences(frame: pd.DataFrame) -> list[str]:
    groups = _predicted(frame)
    if groups.empty:
        return []
    known = groups.loc[groups["theory_inside"].notna(), "theory_inside"].astype(str).eq("True")
    inside = f"; theory lies inside for {known.sum()} of {len(known)} (*: outside)" if len(known) else ""
    return [
        f"Dotted: mean-field theory of wide random nets, over the lags compared (up to {LAGS - 1}). Numbers: slope in decades a "
        f"step, mean{' ± 95 % t-interval' if len(known) else ''} over seeds{inside}."
    ]
