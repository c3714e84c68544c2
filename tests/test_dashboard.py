"""experiments/dashboard.py with the real client: what it writes, what it sends to a server on 127.0.0.1; both name what we record."""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from commands import ENVIRONMENT
from test_results import write_run
from wandb_runs import LAYERS, assert_no_key, made_rows
from wandb_server import Server

from rnn_lab.recording.wandb.payload import payload, table

PROGRAM = Path(__file__).resolve().parents[1] / "experiments" / "dashboard.py"
ROW = made_rows(1.0, steps=[0])[0]
needed = pytest.mark.skipif(find_spec("wandb_workspaces") is None, reason="needs pip install '.[dashboards]'")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two initial scales, two clips, two layers; evaluated once."""
    for number in range(4):
        lines = [{"step": 0, "train/loss": 1.0, "train/error": 0.5, "grad/norm": 2.0, "grad/norm_clipped": 1.0,
                  "grad/clipped_fraction": 1.0, "dE_dh/slope": -0.1, "eval/error": 0.5}]  # fmt: skip
        config = {"init": {"scale": (0.5, 2.0)[number % 2]}, "clip": {"name": ("none", "norm")[number // 2]}}
        config |= {"tracker": {"name": "wandb", "project": "ours"}, "seed": 0, "sweep": "s"}
        write_run(tmp_path / "s", f"{number:010x}", lines, layers=LAYERS, T=40, config=config)
    return tmp_path / "s"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    found = Server(tmp_path / "server")
    found.start()
    yield found
    found.kill()


def dashboard(*arguments: object, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = ENVIRONMENT | {"HOME": str(home), "PYTHONPATH": str(PROGRAM.parents[1])} | environment
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, timeout=120)


def panels(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Their settings, by title."""
    sections = spec["section"]["panelBankConfig"]["sections"]
    found = [panel["config"] | {"kind": panel["viewType"]} for section in sections for panel in section["panels"]]
    return {panel.get("chartTitle", panel.get("panelDefId")): panel for panel in found}


def recorded() -> set[str]:
    """The keys of a row that has everything."""
    row = ROW.scalars | dict.fromkeys(("train/error", "grad/norm_clipped", "grad/clipped_fraction", "eval/error"), 0.0)
    return set(payload(type(ROW)(0, row, ROW.timesteps), ["dE_dh/log10_norm"]))


@needed
def test_without_a_key_it_is_written_beside_the_sweep(sweep, tmp_path):
    ended = dashboard(sweep, home=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "wandb login" in ended.stdout
    spec = json.loads((sweep / "workspace.json").read_text())
    found = panels(spec)

    through_time = found["ENTITY/rnn-lab-gradient-through-time"]
    columns, _ = table([ROW], ["dE_dh/log10_norm"])
    fields = through_time["fieldSettings"]
    assert set(fields.values()) == set(columns)
    chart = json.loads((sweep / "rnn-lab-gradient-through-time.vega.json").read_text())
    asked = {encoding["field"] for encoding in chart["encoding"].values()}
    assert asked == {*(f"${{field:{name}}}" for name in fields), "name"}
    for layer in (1, 2):
        [key] = found[f"log10 norm of dE/dh_t + 46, layer {layer}: open one run"]["metrics"]
        assert payload(ROW, ["dE_dh/log10_norm"])[key]["_type"] == "histogram"

    scatter = found["Slope against initial scale"]
    assert (scatter["xAxis"], scatter["yAxis"]) == ("config:init.value.scale", "summary:dE_dh/slope")
    norms = found["Gradient norm before and after clipping"]
    assert [key.rpartition("grad/")[2] for key in norms["metrics"]] == ["norm", "norm_clipped"]
    assert norms["yLogScale"] is True
    assert found["Fraction of updates clipped"]["yAxisMax"] == 1
    assert found["Loss, and the trivial baseline"]["expressions"][0].endswith(" + 1.386")  # of write_run
    assert found["Error, and the trivial baseline"]["expressions"][0].endswith(" + 0.75")
    axes = [column["accessor"] for column in found["init.scale, clip.name"]["columns"]]
    assert axes[:2] == ["config:init.value.scale", "config:clip.value.name"]
    assert axes[2:] == [f"summary:{name}" for name in ("dE_dh/slope", "grad/norm", "train/loss", "eval/error")]

    drawn = {key for panel in found.values() for key in panel.get("metrics", ())}
    assert drawn <= recorded(), "what nobody records"
    assert "eval/loss" not in drawn  # these runs have none
    [runs] = spec["section"]["runSets"]
    assert [(f["key"]["name"], f["value"]) for f in runs["filters"]["filters"]] == [("group", "s")]


@needed
@pytest.mark.slow
def test_with_a_key_the_server_gets_the_same(sweep, server, tmp_path):
    assert dashboard(sweep, home=tmp_path).returncode == 0
    ended = dashboard(sweep, home=tmp_path, **server.environment)
    assert ended.returncode == 0, ended.stderr
    told = [json.loads(line) for line in (server.folder / "log.jsonl").read_text().splitlines()]
    [chart], [view] = ([event[kind] for event in told if kind in event] for kind in ("chart", "view"))
    assert f"{chart['entity']}/{chart['chartName']}" == "lab/rnn-lab-gradient-through-time"
    assert json.loads(chart["spec"]) == json.loads((sweep / "rnn-lab-gradient-through-time.vega.json").read_text())
    assert (view["entityName"], view["projectName"]) == ("lab", "ours")
    assert view["displayName"] == "s: gradient flow"
    ours = json.dumps(panels(json.loads((sweep / "workspace.json").read_text())))
    assert panels(json.loads(view["spec"])) == json.loads(ours.replace("ENTITY/", "lab/"))
    assert ended.stdout.strip() == f"{server.url}/lab/ours?nw={view['name'].split('-')[1]}"
    assert_no_key(sweep, ended.stdout, ended.stderr)


@needed
@pytest.mark.slow
def test_a_mistake_is_one_line_and_writes_nothing(sweep, server, tmp_path):
    write_run(tmp_path / "t", "b" * 10, config={"tracker": {"project": "theirs"}})
    before = sorted(sweep.rglob("*"))
    refused = server.environment
    server.mode("401")
    for arguments, environment, complaint in (
        ([tmp_path / "none"], {}, "no such directory"),
        ([tmp_path / "t"], {}, "nothing is recorded"),
        ([sweep], refused, "401"),
    ):
        ended = dashboard(*arguments, home=tmp_path, **environment)
        assert ended.returncode == 2, ended.stderr
        assert len(ended.stderr.strip().splitlines()) == 1
        assert complaint in ended.stderr
        assert_no_key(sweep, ended.stderr)
    assert sorted(sweep.rglob("*")) == before


def test_without_the_extra_one_line_says_what_to_install(sweep, tmp_path):
    code = "import sys, importlib.util as u; f = u.find_spec; "
    code += "u.find_spec = lambda name, *rest: None if name == 'wandb_workspaces' else f(name, *rest); "
    code += f"import runpy; sys.argv = ['dashboard.py', {str(sweep)!r}]; runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
    env = ENVIRONMENT | {"PYTHONPATH": str(PROGRAM.parents[1])}
    ended = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (
        2,
        "dashboard.py: needs wandb-workspaces: pip install '.[dashboards]'\n",
    )
