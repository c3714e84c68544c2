"""A W&B dashboard of a sweep, as code: what the gradient does through time and over updates, and against what was swept.

    python experiments/dashboard.py SWEEP [--entity ENTITY]        e.g. runs/vanishing_exploding        (pip install '.[dashboards]')

With an API key (`wandb login`, or WANDB_API_KEY) it is saved online, as a workspace of the sweep's project, and its address is printed;
once more, and there is a second one. Without a key it is written beside the sweep: workspace.json and, for the heatmap, a .vega.json.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import wandb

sys.path.append(str(Path(__file__).parents[1]))
from analysis.cli import Parser
from analysis.embedding import axes
from rnn_lab import results
from rnn_lab.recording.wandb.payload import CURVE, KEYS, LAGS
from rnn_lab.results import Results, ResultsError

HEATMAP = "rnn-lab-gradient-through-time"
INSTALL = "needs wandb-workspaces: pip install '.[dashboards]'"
OUTCOMES = ("dE_dh/slope", "grad/norm", "train/loss", "eval/error")  # where parallel coordinates end


def heatmap() -> dict[str, Any]:
    """Vega-Lite for the table that each run ends with: updates x time steps, colour log10 of the norm, a row of pictures a run.

    W&B draws a histogram's history (`through_time/...`) as a heatmap too, but only on the page of one run.
    """
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"name": "wandb"},
        "mark": "rect",
        "encoding": {
            "x": {"field": "${field:x}", "type": "ordinal", "title": "update", "axis": {"labelOverlap": True}},
            "y": {"field": "${field:y}", "type": "ordinal", "sort": "descending", "title": "time step t",
                  "axis": {"labelOverlap": True}},
            "color": {"field": "${field:color}", "type": "quantitative", "title": "log10 norm of dE/dh_t",
                      "scale": {"scheme": "viridis"}},
            "row": {"field": "${field:row}", "title": "layer"},
            "column": {"field": "name", "title": None},
        },
    }  # fmt: skip


def workspace(loaded: Results, entity: str) -> Any:
    """The dashboard. Loss and error come with what a predictor that ignores its input has, as a line. Raises ResultsError."""
    import wandb_workspaces.reports.v2 as wr  # pyright: ignore[reportMissingImports]
    import wandb_workspaces.workspaces as ws  # pyright: ignore[reportMissingImports]

    runs, measured = loaded.runs, set(loaded.steps.columns[loaded.steps.notna().any()])
    if not measured - {"run_id", "step"}:
        raise ResultsError("nothing is recorded yet")
    sweep, project = _only(runs, "sweep"), _only(runs, "tracker.project")
    swept = axes(loaded)
    scale = "init.std" if "init.std" in swept else "init.scale"
    layers = range(1, int(runs["layers"].max()) + 1)
    T = int(runs["T"].max())

    def line(title: str, *names: str, baseline: str | None = None, **how: Any) -> Any:
        keys: Any = [KEYS.get(name, name) for name in names if name in measured or name not in results.METRICS]
        levels = sorted(set(runs[baseline].dropna())) if keys and baseline in runs else []
        constants = [f"0 * ${{{keys[0]}}} + {level:.6g}" for level in levels]
        return wr.LinePlot(title=title, y=keys, custom_expressions=constants or None, **how)

    through_time = wr.CustomChart(
        query={"summaryTable": {"tableKey": "timesteps"}},
        chart_name=f"{entity}/{HEATMAP}",
        chart_fields={"x": "step", "y": "t", "color": CURVE, "row": "layer"},
    )
    columns = [wr.Config(key) for key in swept] + [wr.SummaryMetric(name) for name in OUTCOMES if name in measured]
    flow = [
        through_time,
        *(line(f"log10 norm of dE/dh_t + 46, layer {k}: open one run", f"through_time/dE_dh/layer{k}") for k in layers),
        line("log10 norm of dE/dh_t at some lags", *(f"dE_dh_at/lag_{lag:04d}" for lag in LAGS if lag < T), "dE_dh_at/t_1"),
        wr.ScatterPlot(title="Slope against initial scale", x=wr.Config(scale), y=wr.SummaryMetric("dE_dh/slope")),
        line("Slope (decades a step; negative: vanishing)", "dE_dh/slope"),
    ]  # fmt: skip
    clipping = [
        line("Gradient norm before and after clipping", "grad/norm", "grad/norm_clipped", log_y=True),
        line("Fraction of updates clipped", "grad/clipped_fraction", range_y=(0.0, 1.0)),
    ]
    learning = [
        line("Loss, and the trivial baseline", "train/loss", "eval/loss", baseline="baseline/loss"),
        line("Error, and the trivial baseline", "train/error", "eval/error", baseline="baseline/error"),
    ]
    parallel = wr.ParallelCoordinatesPlot(
        title=", ".join(swept),
        columns=[wr.ParallelCoordinatesPlotColumn(c) for c in columns],  # pyright: ignore[reportPrivateImportUsage]
    )
    named = {"Gradient through time": flow, "Clipping": clipping, "Learning": learning, "What was swept": [parallel]}
    return ws.Workspace(
        name=f"{sweep}: gradient flow",
        entity=entity,
        project=project,
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in named.items()],
        settings=ws.WorkspaceSettings(x_axis="Step", max_runs=50),
        runset_settings=ws.RunsetSettings(filters=f"Metric('Group') == '{sweep}'"),
    )


def _only(runs: Any, column: str) -> str:
    """What all runs share. Raises ResultsError."""
    found = runs[column].dropna().unique() if column in runs else []
    if len(found) != 1:
        raise ResultsError(f"{column} of these runs: {', '.join(map(str, found)) or 'none'}; a dashboard is of one")
    return str(found[0])


def has_key() -> bool:
    """Whether wandb would find an API key without asking."""
    from requests.utils import get_netrc_auth

    return bool(os.environ.get("WANDB_API_KEY") or get_netrc_auth(wandb.Settings().base_url))


def save(loaded: Results, entity: str | None) -> str:
    """Saves it online; its address."""
    api = wandb.Api()
    entity = entity or api.default_entity
    if not entity:
        raise ResultsError("no W&B entity: say --entity NAME")
    try:
        api.create_custom_chart(entity, HEATMAP, "Gradient through time", "vega2", "private", heatmap())
    except wandb.Error as error:  # an older dashboard may have made it
        print(f"dashboard.py: {entity}/{HEATMAP} was not made ({' '.join(str(error).split())})", file=sys.stderr)
    return workspace(loaded, entity).save().url


def write(loaded: Results, entity: str | None, folder: Path) -> list[Path]:
    """Writes what `save` would send."""
    view = workspace(loaded, entity or "ENTITY")._to_model()  # pyright: ignore[reportPrivateUsage]
    files = {
        "workspace.json": json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True)),
        f"{HEATMAP}.vega.json": heatmap(),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return [folder / name for name in files]


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="dashboard.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, metavar="SWEEP", help="a sweep's directory: runs/<sweep>")
    parser.add_argument("--entity", help="W&B user or team; default: the key's own")
    args = parser.parse_args(argv)
    if find_spec("wandb_workspaces") is None:
        parser.error(INSTALL)
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # else wandb tells another server of its errors, too
    try:
        loaded = results.load(args.sweep)
        if has_key():
            print(save(loaded, args.entity))
        else:
            print(*write(loaded, args.entity, args.sweep), sep="\n")
            print(
                "Without an API key nothing was sent: `wandb login`, then the same command saves the dashboard online."
            )
    except (ResultsError, wandb.Error, OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
