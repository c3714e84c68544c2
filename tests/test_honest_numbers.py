"""What a number's reader must know about the runs behind it is said: in `.runs`, in the status table, in every figure's caption."""

import errno
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from oracle import make_config
from test_figures import write_run

from rnn_lab import checkpoints, results
from rnn_lab.config import container, run_id
from rnn_lab.recording import Row, RunInfo, store
from rnn_lab.recording.progress import Silent
from rnn_lab.recording.store import StoreSink, read_run
from rnn_lab.runner import Job, run_program

sys.path.append(str(Path(__file__).parents[1]))
grouping = importlib.import_module("analysis.grouping")
training_curves = importlib.import_module("analysis.training_curves")
gradient_flow = importlib.import_module("analysis.gradient_flow")

CLEAN, DIRTY, OTHER = (
    {"commit": commit, "dirty": dirty} for commit, dirty in (("abc", False), ("abc", True), ("def", False))
)
DESCRIBE: dict[str, Any] = {"series": ["h/norm"], "layers": 1, "T": 10}


def row(step: int) -> Row:
    return Row(step, {"train/loss": 1.0}, {"h/norm": np.zeros((1, 10), np.float32)})


def sink(directory: Path, git: dict, step: int = 0, since: dict | None = None) -> StoreSink:
    directory.mkdir(exist_ok=True)
    config = make_config({"training.updates": 40})
    return StoreSink(
        RunInfo(run_id(config), "s", directory, container(config), "n", []), DESCRIBE | {"git": git}, step, since
    )


def flags(directory: Path) -> object:
    return results.load(directory).runs["flags"].item()


@pytest.mark.parametrize(
    ("git", "last", "end", "told"),
    [
        (CLEAN, 40, ("completed",), None),
        (DIRTY, 40, ("completed",), "uncommitted changes"),
        (CLEAN, 20, ("completed",), "stopped at 20 of 40"),
        (CLEAN, 20, ("killed",), "killed at 20 of 40"),
        (CLEAN, 20, ("failed",), "failed at 20 of 40"),
        (DIRTY, 10, ("diverged", 10), "diverged at 10; uncommitted changes"),
    ],
)
def test_a_run_says_how_it_ended_and_by_what_code(tmp_path, git, last, end, told):
    run = sink(tmp_path, git)
    for step in range(0, last + 1, 10):
        run.log(row(step))
    status, *at = end
    run.finish(status, {}, *at)
    found = flags(tmp_path)
    assert found == told or (told is None and pd.isna(found))


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (CLEAN, CLEAN, "resumed 1x"),
        (DIRTY, CLEAN, "resumed 1x; uncommitted changes"),
        (OTHER, CLEAN, "resumed 1x; begun by other code"),
    ],
)
def test_a_run_that_went_on_says_what_code_it_was_begun_by(tmp_path, first, second, told):
    begun = sink(tmp_path, first)
    begun.log(row(0))
    since = begun.progress()
    begun.finish("killed", {})
    resumed = sink(tmp_path, second, 40, since)
    resumed.log(row(40))
    resumed.finish("completed", {})
    assert flags(tmp_path) == told


def notes(folder: Path, module: Any = training_curves, **options: Any) -> str:
    return " ".join(module.caption(module.table(results.load(folder), **options)))


def test_figures_say_what_they_mix(tmp_path):
    """Of four runs one diverged, one was killed, one shares settings and seed with a longer one."""
    for seed in (0, 1):
        write_run(tmp_path, seed=seed)
    write_run(tmp_path, seed=2, diverged_at=10)
    write_run(tmp_path, seed=3, status="killed")
    write_run(tmp_path, seed=0, config={"training": {"updates": 10}}, status="killed")
    told = notes(tmp_path)
    assert "1 of 5 runs diverged" in told
    assert "2 of 5 runs failed, were killed" in told
    assert "1 runs share settings and seed" in told
    assert "5 of 5 runs were trained by code with uncommitted changes" in told
    assert "step 10 to 20" in notes(tmp_path, gradient_flow, step="last")


def test_of_twins_the_one_that_came_furthest_is_drawn(tmp_path):
    write_run(tmp_path, status="killed", run_id="a", diverged_at=10)
    write_run(tmp_path, run_id="b")
    loaded = results.load(tmp_path)
    assert list(grouping.once(grouping.groups(loaded), loaded.steps)["run_id"]) == ["b"]


def test_what_the_machine_did_to_a_run_is_no_reason_to_begin_again(tmp_path, monkeypatch):
    """The disk gets full: the run fails, and goes on from its checkpoint with the rows that it has."""
    config = make_config(
        {
            "task.length": 10,
            "model.hidden": 4,
            "training.batch_size": 3,
            "training.updates": 30,
            "training.log_every": 1,
            "tracker.name": "none",
        }
    )
    job, undisturbed = (Job(config, tmp_path / name, {"git": CLEAN}) for name in ("job", "undisturbed"))
    write, room = store._write, [20]

    def full(file: Any, content: bytes) -> None:
        room[0] -= 1
        if room[0] < 0:
            write(file, content[:5])
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, content)

    for each in (job, undisturbed):
        each.directory.mkdir()
    run_program([undisturbed], Silent(1, 0), 0)
    with monkeypatch.context() as patched:
        patched.setattr(store, "_write", full)
        [outcome] = run_program([job], Silent(1, 0), 0)
    assert (outcome.status, (read_run(job.directory) or {})["status"]) == ("failed", "failed")
    rows = (job.directory / "steps.jsonl").read_bytes().count(b"\n")
    assert (
        checkpoints.beginning(job.directory, run_id(config), {key: job.describe()[key] for key in store.SHAPE}).step > 0
    )
    [outcome] = run_program([job], Silent(1, 0), 0)
    assert outcome.status == "completed"
    assert (read_run(job.directory) or {})["resumed"]
    assert 0 < rows < 31
    for name in ("steps.jsonl", "timesteps.f32"):
        assert (job.directory / name).read_bytes() == (undisturbed.directory / name).read_bytes()
