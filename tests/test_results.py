"""Run directories written here by the documented format, byte by byte, and what `load` must make of them."""

import fcntl
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rnn_lab import results
from rnn_lab.recording import runs
from rnn_lab.results import ResultsError, load


def write_run(
    sweep: Path, run_id: str = "a000000000", rows=(), blocks=None, series=("dE_dh/log10_norm",), layers=1, T=4, **info
):
    """A run directory with these lines; `blocks` (record, series, layer, t) are counted up from 0 unless given."""
    path = sweep / run_id
    path.mkdir(parents=True)
    if blocks is None:
        blocks = np.arange(len(rows) * len(series) * layers * T).reshape(len(rows), len(series), layers, T)
    (path / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    np.asarray(blocks, "<f4").tofile(path / "timesteps.f32")
    config = {"sweep": sweep.name, "seed": 0, "task": {"name": "temporal_order", "length": 10}, "init": {"std": None}}
    head = {
        "format": 1,
        "run_id": run_id,
        "sweep": sweep.name,
        "status": "completed",
        "diverged_at": None,
        "error": None,
    }
    shape = {"series": list(series), "layers": layers, "T": T, "baseline": {"loss": 1.386, "error": 0.75}}
    origin = {"command": "train.py", "git": {"commit": "abc", "dirty": True}, "versions": {"torch": "2.13.0"}}
    (path / "run.json").write_text(json.dumps(head | {"config": config} | shape | origin | info))
    return path


@contextmanager
def locked(path: Path):
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield
    os.close(descriptor)


ROOT = Path(__file__).parents[1]
ROWS = [{"step": 0, "train/loss": 2.0, "W/rho": 0.5}, {"step": 10, "train/loss": 1.0, "grad/norm": float("inf")}]


def test_timesteps_hold_the_written_numbers_whatever_the_shape(tmp_path):
    two = ("dE_dh/log10_norm", "h/norm")
    write_run(tmp_path, "a", ROWS, series=two, layers=2, T=3)
    write_run(tmp_path, "b", ROWS[:1], T=2)
    frame = load(tmp_path).timesteps
    assert list(frame) == ["run_id", "step", "layer", "t", "lag", *two]
    a = frame[frame["run_id"] == "a"]
    assert a["step"].tolist() == [0] * 6 + [10] * 6
    assert a["layer"].tolist() == [1, 1, 1, 2, 2, 2] * 2
    assert a["t"].tolist() == [1, 2, 3] * 4
    assert a["lag"].tolist() == [2, 1, 0] * 4
    # written in the order record, series, layer, t
    assert a["dE_dh/log10_norm"].tolist() == [*range(0, 6), *range(12, 18)]
    assert a["h/norm"].tolist() == [*range(6, 12), *range(18, 24)]
    b = frame[frame["run_id"] == "b"]
    assert b[["t", "lag", "dE_dh/log10_norm"]].values.tolist() == [[1, 1, 0], [2, 0, 1]]
    assert b["h/norm"].isna().all()


def test_non_finite_numbers_survive(tmp_path):
    write_run(tmp_path, rows=ROWS[1:], T=3, blocks=[[[[-np.inf, np.nan, 1e-3]]]])
    loaded = load(tmp_path)
    values = loaded.timesteps["dE_dh/log10_norm"]
    assert np.isneginf(values[0])
    assert np.isnan(values[1])
    assert np.isposinf(loaded.steps["grad/norm"][0])


def test_steps_have_every_metric_of_the_contract_and_any_other(tmp_path):
    write_run(tmp_path, rows=[*ROWS, {"step": 20, "mine": 3, "W/rho": None}])
    steps = load(tmp_path).steps
    assert list(steps) == ["run_id", "step", *results.METRICS, "mine"]
    assert steps["step"].tolist() == [0, 10, 20]
    np.testing.assert_array_equal(steps["train/loss"], [2.0, 1.0, np.nan])
    np.testing.assert_array_equal(steps["W/rho"], [0.5, np.nan, np.nan])
    np.testing.assert_array_equal(steps["mine"], [np.nan, np.nan, 3.0])
    assert all(steps[name].dtype == float for name in (*results.METRICS, "mine"))


def test_runs_tell_config_last_values_and_origin(tmp_path):
    config = {"seed": 1, "task": {"length_range": [50, 200]}, "clip": {"name": "norm"}, "init": {"std": None}}
    write_run(tmp_path / "first", "a", ROWS, config=config, status="diverged", diverged_at=10)
    write_run(tmp_path / "first", "b", ROWS[:1], T=7)
    loaded = load(tmp_path / "first")
    runs = loaded.runs.set_index("run_id")
    assert list(loaded.runs)[:4] == ["run_id", "sweep", "status", "diverged_at"]
    assert runs["status"].to_dict() == {"a": "diverged", "b": "completed"}
    assert runs.loc["a", "diverged_at"] == 10
    assert np.isnan(runs.loc["b", "diverged_at"])  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert runs.loc["a", "task.length_range"] == (50, 200)
    assert runs.loc["a", "clip.name"] == "norm"
    assert runs.loc["b", "task.length"] == 10
    assert runs["init.std"].isna().all()
    assert runs["T"].tolist() == [4, 7]
    assert runs["train/loss"].tolist() == [1.0, 2.0]  # the last value
    assert runs.loc["a", "W/rho"] == 0.5  # the last that is not missing
    assert runs["baseline/loss"].tolist() == [1.386, 1.386]
    assert runs.loc["a", "path"] == str(tmp_path / "first" / "a")
    assert runs.loc["a", "git.commit"] == "abc"
    assert {"seed", "task.length_range", "clip.name", "task.length"} <= set(loaded.config)
    assert not {"train/loss", "git.commit", "T", "status"} & set(loaded.config)


def test_frames_join_on_run_id(tmp_path):
    for run_id in "abc":
        write_run(tmp_path, run_id, ROWS)
    loaded = load(tmp_path)
    joined = loaded.timesteps.merge(loaded.runs, on="run_id")
    assert len(joined) == len(loaded.timesteps) == 3 * 2 * 4
    assert joined.groupby(["run_id", "step"]).size().tolist() == [4] * 6


def test_a_run_that_has_just_started_has_its_row_and_typed_frames(tmp_path):
    path = write_run(tmp_path)
    (path / "steps.jsonl").unlink()
    (path / "timesteps.f32").unlink()
    alone = load(path)
    assert alone.runs["run_id"].tolist() == ["a000000000"]
    assert alone.runs["train/loss"].isna().all()
    write_run(tmp_path, "b", ROWS)
    full = load(tmp_path)
    assert len(full.runs) == 2
    for name in ("steps", "timesteps"):
        assert getattr(alone, name).empty
        assert getattr(alone, name).dtypes.to_dict() == getattr(full, name).dtypes.to_dict()


# -- what a killed writer leaves


@pytest.mark.parametrize("tail", ['{"step": 20, "train/lo', '{"step": 20', "{", "\0\0\0"])
def test_a_torn_last_line_and_its_block_are_skipped(tmp_path, tail):
    path = write_run(tmp_path, rows=ROWS, blocks=np.arange(12).reshape(3, 1, 1, 4))
    with (path / "steps.jsonl").open("a") as file:
        file.write(tail)
    loaded = load(path)
    assert loaded.steps["step"].tolist() == [0, 10]
    assert loaded.timesteps["dE_dh/log10_norm"].tolist() == list(range(8))


def test_a_line_without_its_whole_block_ends_the_readable_part(tmp_path):
    path = write_run(tmp_path, rows=ROWS)
    with (path / "timesteps.f32").open("r+b") as file:
        file.truncate(4 * 4 + 7)
    loaded = load(path)
    assert loaded.steps["step"].tolist() == [0]
    assert loaded.timesteps["dE_dh/log10_norm"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "line", ["{torn", "[1, 2]", '{"train/loss": 1}', '{"step": 1.5}', '{"step": 1, "train/loss": "low"}', ""]
)
def test_a_foreign_line_before_the_last_is_named(tmp_path, line):
    path = write_run(tmp_path, rows=ROWS)
    lines = (path / "steps.jsonl").read_text().splitlines()
    (path / "steps.jsonl").write_text("\n".join([lines[0], line, lines[1]]) + "\n")
    with pytest.raises(ResultsError, match=r"a000000000/steps\.jsonl:2: not a record"):
        load(path)


def test_running_is_said_only_while_the_lock_is_held(tmp_path):
    path = write_run(tmp_path, rows=ROWS, status="running")
    with locked(path):
        assert load(path).runs["status"].item() == "running"
    assert load(path).runs["status"].item() == "killed"
    with locked(path):  # loading has left no lock behind
        pass


def test_a_run_that_finishes_while_it_is_read_is_not_called_killed(tmp_path, monkeypatch):
    path = write_run(tmp_path, rows=ROWS, status="running")

    def finishes(directory):
        info = json.loads((path / "run.json").read_text())
        (path / "run.json").write_text(json.dumps(info | {"status": "completed"}))
        return False

    monkeypatch.setattr(runs, "is_locked", finishes)
    assert load(path).runs["status"].item() == "completed"


def test_a_finished_run_is_what_it_says_even_while_somebody_holds_the_lock(tmp_path):
    path = write_run(tmp_path, rows=ROWS, status="failed")
    with locked(path):
        assert load(path).runs["status"].item() == "failed"


# -- which runs


def test_other_things_in_a_sweep_are_no_runs(tmp_path):
    write_run(tmp_path, "a", ROWS)
    write_run(tmp_path, ".hidden", ROWS)
    for name in ("wandb", "figures", "not_started"):
        (tmp_path / name).mkdir()
    (tmp_path / "sweep.log").write_text("")
    assert load(tmp_path).runs["run_id"].tolist() == ["a"]


def test_a_run_given_twice_appears_once(tmp_path):
    path = write_run(tmp_path / "s", "a", ROWS)
    write_run(tmp_path / "s", "b", ROWS)
    (tmp_path / "link").symlink_to(tmp_path / "s")
    loaded = load([path, str(tmp_path / "s"), tmp_path / "link", path])
    assert sorted(loaded.runs["run_id"]) == ["a", "b"]
    assert len(loaded.steps) == 4


def test_one_id_in_two_sweeps_is_said_and_the_longer_record_wins(tmp_path):
    write_run(tmp_path / "killed", "a", ROWS[:1])
    write_run(tmp_path / "whole", "a", ROWS)
    with pytest.warns(UserWarning, match=r"run a is in .*killed/a and in .*whole/a: using .*whole/a"):
        loaded = load([tmp_path / "killed", tmp_path / "whole"])
    assert loaded.runs["sweep"].tolist() == ["whole"]
    assert len(loaded.steps) == 2


# -- errors: one line that names the path


def test_paths_without_runs(tmp_path):
    (tmp_path / "runs" / "empty").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    write_run(tmp_path / "runs" / "demo", rows=ROWS)
    for path, message in {
        "nowhere": "nowhere: no such directory",
        "file": "file: not a directory",
        "runs/empty": r"runs/empty: no runs here \(expected run.json",
        "runs": r"runs: no runs here .*it holds sweeps, name them: .*runs/demo",
    }.items():
        with pytest.raises(ResultsError, match=message) as error:
            load([tmp_path / path])
        assert "\n" not in str(error.value)
    with pytest.raises(ResultsError, match="no runs given"):
        load([])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable as JSON"),
        ("[]", "not a run.json of format 1"),
        ('{"format": 2}', "format 1 .found 2"),
        ('{"format": 1, "run_id": "a", "status": "completed", "config": {}, "series": [], "T": 3}', "unusable: layers"),
        (
            '{"format": 1, "run_id": "a", "status": "happy", "config": {}, "series": [], "layers": 1, "T": 3}',
            "unusable: status",
        ),
    ],
)
def test_a_foreign_run_json_is_named(tmp_path, content, message):
    path = write_run(tmp_path)
    (path / "run.json").write_text(content)
    with pytest.raises(ResultsError, match=rf"a000000000/run\.json: .*{message}") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


# -- the rest


def test_provenance_names_runs_commands_commits_and_versions(tmp_path):
    write_run(tmp_path, "b", command="train.py -m x")
    write_run(
        tmp_path, "a", git={"commit": "", "dirty": False}, command="python /home/me/lab/experiments/train.py seed=1"
    )
    write_run(tmp_path, "c", git={"commit": "def", "dirty": False}, versions={"torch": "2.14.0"})
    told = results.provenance(load(tmp_path).runs)
    assert told == {
        "runs": "a b c",
        "sweeps": tmp_path.name,
        "commands": "python experiments/train.py seed=1; train.py -m x; train.py",
        "commits": "abc (dirty); def",
        "versions": "torch 2.13.0/2.14.0",
    }


def test_a_demo_sized_sweep_loads_in_a_second(tmp_path):
    series = [f"s{i}" for i in range(4)]
    rows = [{"step": step, **dict.fromkeys(results.METRICS, 1.0)} for step in range(0, 101, 10)]
    for run in range(96):
        write_run(tmp_path, f"{run:010x}", rows, series=series, T=100)
    start = time.perf_counter()
    loaded = load(tmp_path)
    assert time.perf_counter() - start < 1
    assert len(loaded.timesteps) == 96 * 11 * 100


def test_loading_needs_neither_torch_nor_wandb_nor_hydra(tmp_path):
    path = write_run(tmp_path, rows=ROWS)
    code = f"import sys; from rnn_lab.results import load; load({str(path)!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"torch", "wandb", "hydra", "matplotlib"} & set(done.stdout.split())
    assert "pandas" in done.stdout.split()


def test_empty_and_full_frames_are_plain_frames(tmp_path):
    write_run(tmp_path, rows=ROWS)
    loaded = load(str(tmp_path))
    for frame in (loaded.runs, loaded.steps, loaded.timesteps):
        assert isinstance(frame, pd.DataFrame)
        assert frame.index.equals(pd.RangeIndex(len(frame)))
        assert pd.api.types.is_string_dtype(frame["run_id"])
