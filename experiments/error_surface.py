"""Why does clipping the gradient help? The error surface of one unit after 50 steps has a wall in it. (P13, Figure 6)

    python experiments/error_surface.py [--out DIR]

x_t = w sigmoid(x_{t-1}) + b, x_0 = .5, E = (sigmoid(x_50) - .7)^2 over (w, b): the surface with gradient descent from one start, with and
without clipping the norm; the map of log10 of the gradient's norm, with the wall where theory puts it; and the gradient sampled along the
wall, where no grid finds it. Gradients are exact (BPTT in float64).
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

sys.path.append(str(Path(__file__).parents[1]))
from analysis.cli import style, without_runs
from rnn_lab import error_surface as surface
from rnn_lab.provenance import provenance

W, B = (3.8, 5.8), (-3.3, -1.5)  # of the surface and the map
GRID = 151  # points each way of the map
ACROSS = np.sinh(np.linspace(-3.2, 3.2, 81))  # in widths of the wall: the surface's points within it
ALONG = np.linspace(3.6, 12, 169)  # of w, along the wall
START, LR, STEPS, THRESHOLD = (5.5, -2.2), 0.1, 200, 1.0


def table() -> pd.DataFrame:
    """Everything drawn, a row a point of (w, b).

    kind          surface     a mesh that follows the wall, with points in it at each w: a regular one shows stairs
                  map         a regular grid
                  clipped, unclipped    gradient descent after `step` updates
                  wall        where theory (T -> inf) puts it
                  along       at each w the point of the largest gradient over all b, which lies in the wall
    w, b, distance        b = distance + x_0 - w sigmoid(x_0); in the wall the distance says what b, in float64, cannot
    loss, dE_dw, dE_db, log10_norm        E and its gradient there, and log10 of the gradient's norm
    along only:   log10_norm_on_line      at distance 0, in closed form
                  log10_norm_grid         the largest over b, at this w, on a grid as fine as the map's
                  log10_width             of the wall, in b: 1 / (dx_50 / db) at distance 0
                  log10_spacing           of float64 at this b
    """
    w, b = np.meshgrid(np.linspace(*W, GRID), np.linspace(*B, GRID), indexing="ij")
    parts = [mesh(), rows("map", w, surface.distance(w, b))]
    for kind, threshold in (("unclipped", np.inf), ("clipped", THRESHOLD)):
        w, b = surface.descend(*START, LR, STEPS, threshold).T
        parts.append(rows(kind, w, surface.distance(w, b)).assign(step=np.arange(STEPS + 1)))
    w = np.linspace(4, W[1], 161)[1:]
    parts += [rows("wall", w, surface.distance(w, [surface.wall(at) for at in w])), along()]
    return pd.concat(parts, ignore_index=True)


def rows(kind: str, w: np.ndarray, distance: np.ndarray) -> pd.DataFrame:
    """E and its gradient at points of the plane."""
    w, distance = (np.ravel(values) for values in np.broadcast_arrays(w, distance))
    E, dE_dw, dE_db = surface.gradient(w, distance)
    return pd.DataFrame({"kind": kind, "w": w, "b": surface.line(w) + distance, "distance": distance, "loss": E,
                         "dE_dw": dE_dw, "dE_db": dE_db, "log10_norm": surface.log10_norm(w, distance)})  # fmt: skip


def mesh() -> pd.DataFrame:
    """For each w: b evenly from the lower edge to the wall, through it, and on to the upper edge."""
    w = np.linspace(*W, 57)[:, None]
    low, high = (surface.distance(w, edge) for edge in B)
    width = np.minimum(1 / surface.sensitivity(w), 0.02)  # below w = 4 there is no wall
    share = np.linspace(0, 1, 24)
    first, last = width * ACROSS[0], width * ACROSS[-1]
    return rows(
        "surface", w, np.hstack([low + share[:-1] * (first - low), width * ACROSS, last + share[1:] * (high - last)])
    )


def along() -> pd.DataFrame:
    d = np.array([surface.crest(w) for w in ALONG])
    w, step = ALONG[:, None], (B[1] - B[0]) / (GRID - 1)
    row = np.round((surface.line(w) - B[0]) / step) + np.arange(-60, 61)  # of the map, which may end before
    return rows("along", ALONG, d).assign(
        log10_norm_on_line=surface.log10_norm_on_line(ALONG),
        log10_norm_grid=surface.log10_norm(w, surface.distance(w, B[0] + row * step)).max(1),
        log10_width=-np.log10(surface.sensitivity(ALONG)),
        log10_spacing=np.log10(np.abs(np.spacing(surface.line(ALONG)))),
    )


# --------------------------------------------------------------------------------------------------------------------------- drawing

PATHS = {"unclipped": {"color": "#FF7F2A", "lw": 1.1}, "clipped": {"color": "white", "lw": 0.7}}
WALL = {"color": style.INK, "lw": 1.0, "ls": (0, (4, 2))}
OUTLINE = [withStroke(linewidth=1.7, foreground="black")]


def draw(frame: pd.DataFrame) -> Figure:
    fig, axes = style.subplots(1, 3, style.PAGE, 2.8, width_ratios=[1.25, 1.15, 0.95])
    place = axes[0, 0].get_subplotspec()
    axes[0, 0].remove()
    parts = {str(kind): part for kind, part in frame.groupby("kind")}
    relief(fig.add_subplot(place, projection="3d", computed_zorder=False), parts)
    plan(fig, axes[0, 1], parts)
    profile(axes[0, 2], parts["along"])
    samples = [Line2D([], [], path_effects=OUTLINE, label=f"descent, {kind}", **PATHS[kind]) for kind in PATHS]
    style.legend(fig, [*samples, Line2D([], [], label="wall, in theory", **WALL)])
    style.caption(fig, caption(frame))
    return fig


def inside(path: pd.DataFrame) -> pd.DataFrame:
    """The path up to where it leaves the map; its last point is on the edge."""
    out = ~(path["w"].between(*W) & path["b"].between(*B)).to_numpy()
    if not out.any():
        return path
    first = int(out.argmax())
    a, z = path.iloc[first - 1], path.iloc[first]
    share = min((edge - a[key]) / (z[key] - a[key]) for key, limits in (("w", W), ("b", B)) for edge in limits
                if (edge - a[key]) / (z[key] - a[key]) > 0)  # fmt: skip
    leaving = {key: a[key] + share * (z[key] - a[key]) for key in ("w", "b", "loss")}
    return pd.concat([path.iloc[:first], pd.DataFrame([leaving])], ignore_index=True)


def relief(ax: Any, parts: dict[str, pd.DataFrame]) -> None:
    net = parts["surface"]
    w, b, loss = (net[key].to_numpy().reshape(net["w"].nunique(), -1) for key in ("w", "b", "loss"))
    ax.plot_surface(
        w, b, loss, rcount=200, ccount=200, cmap="viridis", lw=0, antialiased=False, zorder=1
    ).set_rasterized(True)
    for kind, looks in PATHS.items():
        path = inside(parts[kind])
        drawn = (
            {**looks, "lw": 1.1} if kind == "unclipped" else {**looks, "lw": 0.25, "marker": "o", "ms": 1.3, "mew": 0}
        )
        ax.plot(
            path["w"], path["b"], path["loss"], path_effects=OUTLINE if kind == "unclipped" else None, zorder=3, **drawn
        )
    ax.set(xlim=W, ylim=B, zlim=(0, 0.45), xticks=(4, 5), yticks=(-3, -2), zticks=(0, 0.2, 0.4))
    ax.tick_params(pad=-3)
    for axis, label in zip((ax.xaxis, ax.yaxis, ax.zaxis), ("$w$", "$b$", ""), strict=True):
        axis.set_label_text(label)
        axis.labelpad = -8
        axis.pane.set_visible(False)
    ax.set_title("error $E$")
    ax.grid(False)
    ax.view_init(elev=35, azim=108)
    ax.set_box_aspect((1, 1, 0.8), zoom=1.2)


def plan(fig: Figure, ax: Axes, parts: dict[str, pd.DataFrame]) -> None:
    grid = parts["map"].pivot(index="b", columns="w", values="log10_norm")
    image = ax.pcolormesh(
        grid.columns, grid.index, grid, cmap="viridis", vmin=-3, vmax=1, shading="nearest", rasterized=True
    )
    fig.colorbar(image, ax=ax, label=r"$\log_{10} \Vert \nabla E \Vert$", extend="both", pad=0.02, aspect=22)
    ax.plot(parts["wall"]["w"], parts["wall"]["b"], **WALL, zorder=2)
    for kind, looks in PATHS.items():
        path = inside(parts[kind])
        ax.plot(path["w"], path["b"], path_effects=OUTLINE, zorder=3, **looks)
    ax.plot(*START, marker="o", ms=4, mec="black", mfc="white", zorder=4)
    ax.set(xlabel="$w$", ylabel="$b$", xlim=W, ylim=B, title="its gradient on a grid")


def profile(ax: Axes, along: pd.DataFrame) -> None:
    """Curves by column, each named beside it (where, in data; alignment)."""
    curves = {
        "log10_norm": ("$\\Vert \\nabla E \\Vert$\nlargest over $b$", (7.9, 20), "right", style.INK, "solid"),
        "log10_norm_on_line": ("at the wall,\nclosed form", (8.4, 7.2), "left", "#0072B2", style.DASHES[1]),
        "log10_norm_grid": ("largest on a grid", (7.0, 1.0), "left", "#D55E00", "solid"),
        "log10_width": ("width of\nthe wall in $b$", (7.5, -8), "left", style.INK, style.DASHES[2]),
        "log10_spacing": ("spacing of\nfloat64 at $b$", (3.8, -20), "left", "0.45", style.DASHES[4]),
    }
    for column, (name, at, side, colour, dashes) in curves.items():
        ax.plot(along["w"], along[column], color=colour, ls=dashes)
        ax.annotate(name, at, ha=side, va="center", color=colour, fontsize=6, path_effects=[style.HALO])
    ax.set(
        xlabel="$w$", ylabel=r"$\log_{10}$", title="along the wall", yticks=range(-20, 21, 10), xticks=range(4, 13, 2)
    )


def caption(frame: pd.DataFrame) -> list[str]:
    ends = {kind: frame[frame["kind"] == kind].iloc[-50:] for kind in PATHS}  # along the wall E jumps from step to step
    where = [
        f"{kind} ends at $w$ = {end['w'].iloc[-1]:.1f}, $b$ = ${end['b'].iloc[-1]:.1f}$ with $E$ = {end['loss'].median():.3f}"
        for kind, end in ends.items()
    ]
    return [
        r"$x_t = w\,\sigma(x_{t-1}) + b$, $x_0 = 0.5$, $E = (\sigma(x_{50}) - 0.7)^2$.",
        f"Gradient descent with lr {LR}, {STEPS} steps: {where[0]}; {where[1]} (threshold {THRESHOLD:g}; median of the last 50).",
        "Where the two lower curves have crossed, the wall lies between two neighbouring float64 $b$.",
    ]


if __name__ == "__main__":
    raise SystemExit(without_runs("error_surface", table, draw, provenance()))
