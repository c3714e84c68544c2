"""experiments/status.py: what a sweep's files say about it, whoever writes them."""

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import SMALL, train

from rnn_lab.recording.status import NoSweep, status
from rnn_lab.recording.store import lock, read_run

SCRIPT = Path(__file__).parents[1] / "experiments" / "status.py"
HYDRAS = "task:\n  length: 10\ntraining:\n  batch_size: 3\n  updates: 40\neval:\n  updates: 7\n"


def make_run(
    sweep: Path, name: str, state: str | None, step: int = 0, error: str | None = None, resumed: tuple = ()
) -> Path:
    """A run of 40 updates as the store leaves it; state None: Hydra has made its directory, and nobody has trained it."""
    run = sweep / name
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "config.yaml").write_text(HYDRAS)
    if state:
        record = {"status": state, "error": error, "resumed": list(resumed), "config": {"training": {"updates": 40}}}
        (run / "run.json").write_text(json.dumps(record))
        (run / "steps.jsonl").write_text(
            "".join(f'{{"step": {s}, "x": NaN}}\n' for s in range(0, step + 1, 2)) + '{"st'
        )
    return run


def asked(*paths: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, paths)], capture_output=True, text=True, check=False)


def test_every_state_is_counted_and_so_are_the_updates(tmp_path):
    """Two runs say "running": one has a writer, who was resumed at step 10 ten seconds ago; the other one's is dead."""
    make_run(tmp_path, "a", "completed", 40)
    make_run(tmp_path, "b", "diverged", 6)
    make_run(tmp_path, "c", "failed", 0, "OSError: no space")
    living = make_run(tmp_path, "d", "running", 30, resumed=(4, 10))
    make_run(tmp_path, "e", "running", 12)
    make_run(tmp_path, "f", None)
    (tmp_path / "wandb").mkdir()
    then = time.time() - 10
    os.utime(living / "run.json", (then, then))
    held = lock(living)
    now = status(tmp_path)
    assert now.runs == {"completed": 1, "diverged": 1, "failed": 1, "running": 1, "killed": 2}
    assert (now.done, now.updates) == (40 + 40 + 0 + 30 + 12 + 0, 6 * 40)
    assert now.rate == pytest.approx(20 / 10, rel=0.2)
    assert now.failures == [(tmp_path / "c", "OSError: no space")]

    launching = lock(tmp_path)  # what has not run yet is then going to
    assert status(tmp_path).runs == {"completed": 1, "diverged": 1, "failed": 1, "running": 1, "waiting": 2}
    os.close(launching)
    os.close(held)
    assert status(tmp_path).runs["killed"] == 3


def test_looking_disturbs_nobody(tmp_path):
    """A reader never keeps a writer from its lock."""
    run = make_run(tmp_path, "a", "running", 2)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    status(tmp_path)
    descriptor = os.open(run, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_a_sweep_that_ran(tmp_path):
    assert train("-m", *SMALL, "seed=0,1", cwd=tmp_path).status == 0
    sweep = tmp_path / "runs" / "default"
    now = status(sweep)
    assert now.runs == {"completed": 2}
    assert (now.done, now.updates, now.alive) == (6, 6, False)
    [one] = [run for run in sweep.glob("*/") if told_seed(run) == 1]
    assert status(one).runs == {"completed": 1}
    head, row, *notes = asked(sweep).stdout.splitlines()
    assert len(notes) == any((read_run(run) or {})["git"]["dirty"] for run in sweep.glob("*/"))
    assert head.split() == [
        "sweep",
        "runs",
        "completed",
        "diverged",
        "running",
        "waiting",
        "failed",
        "killed",
        "updates",
        "rate",
        "left",
    ]
    assert row.split()[:9] == [str(sweep), "2", "2", "0", "0", "0", "0", "0", "100"]


def told_seed(run: Path) -> int:
    return json.loads((run / "run.json").read_text())["config"]["seed"]


@pytest.mark.parametrize("what", ["nothing", "a file", "an empty folder", "a folder of sweeps"])
def test_what_is_no_sweep_is_one_line(tmp_path, what):
    path = tmp_path / "path"
    match what:
        case "a file":
            path.touch()
        case "an empty folder":
            path.mkdir()
        case "a folder of sweeps":
            make_run(path / "sweep", "a", "completed")
    with pytest.raises(NoSweep, match=str(path)):
        status(path)
    ended = asked(path)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert str(path) in ended.stderr
