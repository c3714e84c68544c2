"""A collected sweep loads as the runs' own files do, bit for bit; and where it doesn't fit them any more, they count."""

import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyarrow.parquet import ParquetFile
from test_results import write_run

from rnn_lab.recording import collected
from rnn_lab.recording.collected import STEPS, TIMESTEPS, collect
from rnn_lab.results import Results, load

BOTH = (STEPS, TIMESTEPS)
TWO = ("dE_dh/log10_norm", "h/norm")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Runs as different as they may be: in length, layers, series, metrics; without records; without time steps."""
    folder = tmp_path / "sweep"
    odd = [-np.inf, np.nan, np.inf, 1e-45]
    rows = [
        {"step": 0, "train/loss": float("nan"), "W/rho": float("inf")},
        {"step": 10, "train/loss": 0.1, "mine": 3.0},
    ]
    write_run(folder, "a", rows, np.reshape([*odd, 1, 2, 3, 4], (2, 1, 1, 4)))
    write_run(folder, "b", rows[:1], series=TWO, layers=2, T=3, status="diverged", diverged_at=0)
    write_run(folder, "c", [rows[0], {**rows[1], "T": 2}, {"step": 20, "T": 5}], np.arange(11), T=4)
    write_run(folder, "d", [], T=7, status="failed")
    write_run(folder, "e", rows, series=(), layers=0, T=0)
    write_run(folder, "f", rows[1:], T=2)
    return folder


def assert_equal(one: Results, other: Results) -> None:
    for name in ("runs", "steps", "timesteps"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name), check_exact=True)
    assert one.config == other.config


def spoil(path: Path) -> None:
    """Overwrites a run's records, unnoticeably: to be seen by who reads them."""
    for name in ("steps.jsonl", "timesteps.f32"):
        stat = (path / name).stat()
        (path / name).write_bytes(b"x" * stat.st_size)
        os.utime(path / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_frames_are_those_of_the_runs_own_files(sweep):
    own = load(sweep)
    collect(sweep)
    for path in sweep.iterdir():
        if path.is_dir():
            spoil(path)
    with warnings.catch_warnings(action="error"):
        assert_equal(load(sweep), own)


def test_other_programs_read_them_as_frames(sweep):
    collect(sweep)
    loaded = load(sweep)
    pd.testing.assert_frame_equal(pd.read_parquet(sweep / TIMESTEPS), loaded.timesteps, check_dtype=False)
    steps = pd.read_parquet(sweep / STEPS)
    pd.testing.assert_frame_equal(steps.drop(columns="T"), loaded.steps[steps.columns.drop("T")], check_dtype=False)
    assert steps.groupby("run_id")["T"].agg(list).to_dict() == {
        "a": [4, 4], "b": [3], "c": [4, 2, 5], "e": [0, 0], "f": [2]
    }  # fmt: skip


def test_a_run_that_changed_since_is_read_from_its_own_files(sweep):
    collect(sweep)
    with (sweep / "a" / "steps.jsonl").open("a") as lines, (sweep / "a" / "timesteps.f32").open("ab") as blocks:
        blocks.write(np.full(4, 7, "<f4").tobytes())
        lines.write('{"step": 20}\n')
    spoil(sweep / "f")
    loaded = load(sweep)
    assert loaded.steps.loc[loaded.steps["run_id"] == "a", "step"].tolist() == [0, 10, 20]
    assert loaded.timesteps.loc[loaded.timesteps["run_id"] == "a", TWO[0]].tolist()[-4:] == [7] * 4
    assert loaded.steps.loc[loaded.steps["run_id"] == "f", "train/loss"].tolist() == [0.1]


def test_the_status_is_always_the_runs_own(sweep):
    collect(sweep)
    info = json.loads((sweep / "a" / "run.json").read_text())
    (sweep / "a" / "run.json").write_text(json.dumps(info | {"status": "running"}))
    assert load(sweep).runs.set_index("run_id")["status"]["a"] == "killed"


def test_a_new_and_a_removed_run(sweep):
    collect(sweep)
    shutil.rmtree(sweep / "b")
    write_run(sweep, "g", [{"step": 5}])
    assert load(sweep).runs["run_id"].tolist() == ["a", "c", "d", "e", "f", "g"]
    assert load(sweep).steps["run_id"].unique().tolist() == ["a", "c", "e", "f", "g"]


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("harm", ["empty", "half", "other", "data", "footer", "tail", "swapped"])
def test_a_damaged_file_is_named_and_the_runs_own_files_are_read(sweep, name, harm):
    own = load(sweep)
    collect(sweep)
    file = sweep / name
    data = bytearray(file.read_bytes())
    column = ParquetFile(file).metadata.row_group(0).column(5 if name == TIMESTEPS else 3)  # a series, a metric
    last = column.data_page_offset + column.total_compressed_size - 1
    where = {"data": last, "footer": data.index(b"columns") + 14, "tail": len(data) - 6}
    if harm == "swapped":  # one of an older collection: an end between the two renamings
        shutil.rmtree(sweep / "a")
        collect(sweep)
        own = load(sweep)
    elif harm in where:
        data[where[harm]] ^= 0x10
    file.write_bytes({"empty": b"", "half": data[: len(data) // 2], "other": b'{"format": 1}\n' * 20}.get(harm, data))
    with pytest.warns(UserWarning, match="parquet") as said:
        loaded = load(sweep)
    [warning] = said
    text = str(warning.message)
    assert "\n" not in text
    assert text.startswith(f"{file if harm != 'swapped' else sweep / TIMESTEPS}: ")
    assert text.endswith("; reading the runs' own files")
    assert warning.filename == __file__
    assert_equal(loaded, own)


@pytest.mark.parametrize("name", BOTH)
def test_no_flipped_bit_changes_a_number(sweep, name):
    """It is noticed, or it lies where it doesn't matter."""
    own = load(sweep)
    collect(sweep)
    data = (sweep / name).read_bytes()
    rng = np.random.default_rng(0)
    for bit in rng.integers(0, 8 * len(data), 60):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        (sweep / name).write_bytes(flipped)
        with warnings.catch_warnings(action="ignore"):
            assert_equal(load(sweep), own)


def test_only_what_has_ended_is_collected(sweep):
    for name, status in (("g", "running"), ("h", "killed")):
        write_run(sweep, name, [{"step": 0}], status=status)
    collect(sweep)
    assert set(pd.read_parquet(sweep / STEPS)["run_id"]) == set("abcef")


def test_collecting_again_writes_only_what_is_new(sweep):
    collect(sweep)
    times = [(sweep / name).stat().st_mtime_ns for name in BOTH]
    collect(sweep)
    assert [(sweep / name).stat().st_mtime_ns for name in BOTH] == times
    write_run(sweep, "g", [{"step": 0}])
    collect(sweep)
    assert "g" in set(pd.read_parquet(sweep / TIMESTEPS)["run_id"])
    (sweep / STEPS).write_bytes(b"damaged")
    collect(sweep)
    with warnings.catch_warnings(action="error"):
        load(sweep)


def test_a_failure_leaves_what_was_there(sweep, monkeypatch):
    collect(sweep)
    before = {path: path.read_bytes() for path in sweep.iterdir() if path.is_file()}
    write_run(sweep, "g", [{"step": 0}, {"step": 1}])
    lines = (sweep / "g" / "steps.jsonl").read_text()
    (sweep / "g" / "steps.jsonl").write_text("foreign\n" + lines)
    with pytest.raises(ValueError, match=r"g/steps\.jsonl:1: not a record"):
        collect(sweep)
    assert {path: path.read_bytes() for path in sweep.iterdir() if path.is_file()} == before


def test_a_sweep_without_ended_runs_has_no_files(tmp_path):
    write_run(tmp_path, "a", [{"step": 0}], status="killed")
    collect(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_is_not_asked_for_is_not_read(sweep, monkeypatch):
    """Neither from the runs' own files nor from the row groups of a Parquet file."""
    monkeypatch.setattr(collected, "GROUP_ROWS", 1)
    wanted = load(sweep, where="run_id in ('b', 'f')")
    collect(sweep)
    data = bytearray((sweep / TIMESTEPS).read_bytes())
    at = data.index(np.array([1, 2, 3, 4], "<f4").tobytes())  # of run a
    data[at] ^= 1
    (sweep / TIMESTEPS).write_bytes(data)
    with warnings.catch_warnings(action="error"):
        assert_equal(load(sweep, where="run_id in ('b', 'f')"), wanted)
    for name in BOTH:
        (sweep / name).unlink()
    spoil(sweep / "a")
    assert_equal(load(sweep, where="run_id in ('b', 'f')"), wanted)
    assert load(sweep, where="run_id == 'a'").steps.empty  # the spoilt one
