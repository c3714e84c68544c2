"""For the tests of the wandb mirror: runs with awkward numbers, trainers in processes of their own, and what must be equal in the end."""

import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from wandb_server import KEY

from rnn_lab import results
from rnn_lab.recording import Row, RunInfo, checked, wandb
from rnn_lab.recording.store import StoreSink

HERE = Path(__file__).resolve().parent
SCALES = (0.5, 1.0, 1.5)
SERIES = ["dE_dh/log10_norm", "delta/log10_norm", "h/norm"]
T, LAYERS = 40, 2
DESCRIBE = {
    **{"series": SERIES, "layers": LAYERS, "T": T, "baseline": {"loss": 1.4}, "command": "python train.py seed=3"},
    "git": {"commit": "c0ffee" * 6 + "c0ff", "dirty": False},
}
WANDB = Path(sys.executable).with_name("wandb")


def run_info(sweep: Path, scale: float) -> RunInfo:
    run_id = f"{int(scale * 10):010x}"
    config = {"init": {"name": "gaussian", "scale": scale}, "task": {"name": "temporal_order", "length": T}, "seed": 3}
    name = f"tanh-scale{scale}-L{T}-norm-seed3-{run_id}"
    return RunInfo(run_id, sweep.name, sweep / run_id, config, name, ["lab", "tanh"])


def made_rows(scale: float, steps: Iterable[int] = range(0, 60, 5), T: int = T, layers: int = LAYERS) -> list[Row]:
    """Rows such as a run leaves, with a vanished, an infinite and an undefined one among them."""
    rng = np.random.default_rng(int(scale * 10))
    rows = []
    for k, step in enumerate(steps):
        lag = np.arange(T - 1, -1, -1)
        norms = rng.normal(0, 0.2, (layers, T)) - 2 - lag * (1.4 - scale)
        scalars = {"train/loss": rng.normal() / 3, "grad/norm": 10 ** rng.normal(), "W/rho": scale, "dE_dh/slope": -0.1}
        if k == 2:
            norms[0, :5] = -np.inf
            scalars["grad/norm"] = 0.0
        if k == 3:
            norms[-1, :5], norms[-1, 5] = np.inf, np.nan
            scalars |= {"train/loss": math.nan, "grad/norm": math.inf, "dE_dh/slope": -math.inf}
        values = (norms, norms - 0.3, np.abs(norms))
        rows.append(Row(step, scalars, {n: v.astype(np.float32) for n, v in zip(SERIES, values, strict=True)}))
    return rows


def opened(sweep: Path, scale: float, mode: str = "offline", series: str = "dE_dh", T: int = T) -> StoreSink:
    """As a trainer does it: our own store first, then the mirror is told."""
    info = run_info(sweep, scale)
    info.directory.mkdir(parents=True, exist_ok=True)
    store = StoreSink(info, DESCRIBE | {"T": T})
    wandb.mirror(info.directory, mode, "rnn_lab", series)
    return store


def record(sweep: Path, scale: float, status: str = "completed", **how: Any) -> None:
    """A whole run, all at once."""
    store = opened(sweep, scale, **how)
    for row in made_rows(scale):
        store.log(row)
    store.finish(status, {})


def trainer(sweep: Path, code: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen:
    """A process that runs `code` with `sweep` and this module's names at hand, and no wandb variable but the key."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    env |= {"PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}", "WANDB_API_KEY": KEY, "HOME": str(sweep.parent)}
    head = f"import logging\nfrom wandb_runs import *\nlogging.basicConfig()\nsweep = Path({str(sweep)!r})\n"
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", head + code],
        env=env | dict(environment or {}),
        **{"cwd": sweep.parent, "stdin": pipe, "stdout": pipe, "stderr": pipe, "text": True},
    )


def ended(process: subprocess.Popen, timeout: float = 60) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def said(process: subprocess.Popen) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen) -> None:
    """Lets a trainer go on that waits for a line."""
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def child(pid: int, name: str) -> int:
    """The child of `pid` whose program has this name."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for found in map(int, children.read_text().split()):
                if name in Path(f"/proc/{found}/cmdline").read_bytes().decode():
                    return found
        time.sleep(0.02)
    raise AssertionError(f"process {pid} has no {name}")


def mirror_of(pid: int) -> int:
    return child(pid, "recording.wandb.process")


def core_of(pid: int) -> int:
    """The wandb-core that works for the trainer `pid`."""
    return child(mirror_of(pid), "wandb-core")


def wait_until_gone(pid: int, timeout: float = 25) -> None:
    deadline = time.monotonic() + timeout
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)


def same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def under_our_names(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of wandb's without what stands before the names of the first charts."""
    return {re.sub(r"^Main/\d_", "", key): value for key, value in row.items()}


def assert_rows_are_the_frames(rows: list[dict[str, Any]], frames: results.Results, run_id: str) -> None:
    """Every row that our store holds, once, in order, with equal scalars; what was not measured is not there."""
    steps = frames.steps[frames.steps["run_id"] == run_id]
    assert [row["_step"] for row in rows] == steps["step"].tolist()
    lines = (
        (Path(path_of(frames, run_id)) / "steps.jsonl").read_text().splitlines()[: len(steps)]
    )  # the next may be torn
    measured = [json.loads(line) for line in lines]
    for row, (_, expected), own in zip(map(under_our_names, rows), steps.iterrows(), measured, strict=True):
        names = {n for n in row if not n.startswith(("_", "through_time", "dE_dh_at"))}
        assert names == set(own) - {"step", "T", checked.KEY}
        for name in names:
            assert same(float(row[name]), expected[name]), (row["_step"], name)


def assert_table_is_the_frame(file: Path, frames: results.Results, run_id: str, series: list[str]) -> None:
    """The exact norms: bit by bit, -inf and nan too."""
    table = json.loads(file.read_text())
    frame = frames.timesteps[frames.timesteps["run_id"] == run_id]
    assert table["columns"] == ["step", "layer", "t", *series]
    cells = np.array(table["data"], dtype=np.float64)
    assert np.array_equal(cells[:, :3].astype(int), frame[["step", "layer", "t"]].to_numpy())
    assert np.array_equal(cells[:, 3:].astype(np.float32), frame[series].to_numpy(), equal_nan=True)


def path_of(frames: results.Results, run_id: str) -> str:
    return frames.runs.set_index("run_id")["path"][run_id]


def bytes_under(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_no_key(folder: Path, *texts: str) -> None:
    assert not [path for path, data in bytes_under(folder).items() if KEY.encode() in data]
    assert not [text for text in texts if KEY in text]
