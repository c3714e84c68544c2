"""Our own files: what was logged is there, whatever ends the process."""

import fcntl
import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnn_lab import results
from rnn_lab.config import Config, container, run_id
from rnn_lab.recording import Row, RunInfo, checked
from rnn_lab.recording.store import Locked, StoreSink, lock, read_run, write_json

LAYERS, T = 2, 5
SERIES = ["dE_dh/log10_norm", "delta/log10_norm", "h/norm", "phi_prime/mean"]
DESCRIBE: dict[str, Any] = {"series": SERIES, "layers": LAYERS, "T": T, "baseline": {"loss": 1.386, "error": 0.75}}


def opened(directory: Path) -> StoreSink:
    directory.mkdir(parents=True, exist_ok=True)
    config = Config()
    return StoreSink(RunInfo(run_id(config), "s", directory, container(config), "name", ["tag"]), DESCRIBE)


def row(step: int) -> Row:
    """A row whose every number says where it belongs."""
    block = step * 1000 + np.arange(LAYERS * T, dtype=np.float32).reshape(LAYERS, T)
    return Row(step, {"train/loss": step + 0.5}, {name: block + 100 * k for k, name in enumerate(SERIES)})


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which has logged 50 rows in tmp_path/run and goes on living."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_store import *
sink = opened(Path("run"))
for step in range(50):
    sink.log(row(step))
print("logged", flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "logged\n"
        yield process
        process.kill()


def status(directory: Path) -> str:
    return results.load(directory).runs["status"].item()


def test_a_row_is_one_block_and_one_line(tmp_path):
    """Block (series, layer, t), float32, little-endian; the line is Python's json: NaN and infinities survive."""
    sink = opened(tmp_path)
    sink.log(row(0))
    sink.log(Row(10, {"train/loss": math.nan, "grad/norm": math.inf, "W/rho": -math.inf}, row(10).timesteps))
    sink.finish("completed", {"train/loss": 0.5})
    blocks = np.fromfile(tmp_path / "timesteps.f32", "<f4").reshape(2, len(SERIES), LAYERS, T)
    for n, step in enumerate((0, 10)):
        for k, name in enumerate(SERIES):
            np.testing.assert_array_equal(blocks[n, k], row(step).timesteps[name])
    lines, content = (tmp_path / "steps.jsonl").read_bytes().splitlines(), (tmp_path / "timesteps.f32").read_bytes()
    first, second = map(json.loads, lines)
    text = b'{"step": 0, "train/loss": 0.5}'
    crc = zlib.crc32(content[: len(content) // 2])
    assert first == {"step": 0, "train/loss": 0.5, "crc": zlib.crc32(text, crc)}
    assert second["step"] == 10
    assert math.isnan(second["train/loss"])
    assert (second["grad/norm"], second["W/rho"]) == (math.inf, -math.inf)


def test_run_json_says_what_ran_and_how_it_ended(tmp_path):
    sink = opened(tmp_path)
    content = read_run(tmp_path)
    assert content is not None
    assert content["status"] == "running"
    assert content["finished"] is None
    assert content["run_id"] == run_id(Config())
    assert content["config"] == container(Config())
    assert {key: content[key] for key in DESCRIBE} == DESCRIBE
    sink.finish("diverged", {"train/loss": math.nan}, diverged_at=7)
    content = read_run(tmp_path)
    assert content is not None
    assert (content["status"], content["diverged_at"], content["error"]) == ("diverged", 7, None)
    assert content["seconds"] >= 0
    assert content["started"] <= content["finished"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.json", "steps.jsonl", "timesteps.f32"]


def test_a_run_that_starts_again_starts_from_nothing(tmp_path):
    for steps in (range(5), range(7, 9)):
        sink = opened(tmp_path)
        for step in steps:
            sink.log(row(step))
        sink.finish("failed", {}, error="x")
    assert list(results.load(tmp_path).steps["step"]) == [7, 8]


def test_rows_survive_kill_9_and_the_lock_does_not(writer, tmp_path):
    """Every row that `log` returned from is there; the run reads as running while its writer lives, then as killed."""
    run = tmp_path / "run"
    assert status(run) == "running"
    with pytest.raises(Locked, match=str(run)):
        opened(run)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    loaded = results.load(run)
    assert loaded.runs["status"].item() == "killed"
    assert list(loaded.steps["step"]) == list(range(50))
    assert list(loaded.steps["train/loss"]) == [s + 0.5 for s in range(50)]
    assert len(loaded.timesteps) == 50 * LAYERS * T
    os.close(lock(run))


@pytest.mark.parametrize("file", ["steps.jsonl", "timesteps.f32"])
def test_a_torn_tail_costs_its_own_row_only(tmp_path, file):
    """Whatever number of bytes a crash leaves, the rows that are whole are read."""
    sink = opened(tmp_path)
    ends = {"steps.jsonl": [0], "timesteps.f32": [0]}
    for step in range(3):
        sink.log(row(step))
        for name, sizes in ends.items():
            sizes.append((tmp_path / name).stat().st_size)
    sink.finish("killed", {})
    whole = (tmp_path / file).read_bytes()
    newline = file == "steps.jsonl"  # a line is whole without it
    for size in range(ends[file][1] + 1, len(whole) + 1, 7):
        (tmp_path / file).write_bytes(whole[:size])
        rows = sum(size >= stop - newline for stop in ends[file][1:])
        assert list(results.load(tmp_path).steps["step"]) == list(range(rows)), size


def test_run_json_is_whole_whenever_it_is_read(tmp_path):
    """Readers poll it while it is rewritten."""
    path, stop = tmp_path / "run.json", threading.Event()
    write_json(path, {"n": 0, "padding": "x" * 100_000})

    def rewrite() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            write_json(path, {"n": n, "padding": "x" * 100_000})

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        seen = []
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            content = read_run(tmp_path)
            assert content is not None
            seen.append(content["n"])
    finally:
        stop.set()
        writer.join()
    assert seen == sorted(seen)
    assert len(set(seen)) > 5
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_a_failed_rewrite_leaves_what_was_there(tmp_path):
    write_json(tmp_path / "run.json", {"status": "running"})
    with pytest.raises(TypeError):
        write_json(tmp_path / "run.json", {"status": object()})
    assert read_run(tmp_path) == {"status": "running"}
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "\x00"])
def test_a_run_json_that_cannot_be_read_is_no_run(tmp_path, content):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    assert read_run(tmp_path) is None
    assert read_run(tmp_path / "missing") is None


def test_a_lock_is_one_holders_until_it_is_closed(tmp_path):
    held = lock(tmp_path)
    with pytest.raises(Locked) as refused:
        lock(tmp_path)
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)
    os.close(held)
    os.close(lock(tmp_path))


def test_a_reader_that_probes_the_lock_is_not_in_the_writers_way(tmp_path):
    """`results.load` takes the lock for an instant to see whether a writer lives; a run that starts then just waits."""
    probe = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(probe, fcntl.LOCK_SH)
    threading.Timer(0.05, os.close, [probe]).start()
    os.close(lock(tmp_path))


def test_finishing_lets_go_of_the_directory(tmp_path):
    opened(tmp_path).finish("completed", {})
    assert status(tmp_path) == "completed"
    os.close(lock(tmp_path))


# -------------------- a run that goes on


def files(directory: Path) -> tuple[bytes, bytes]:
    return (directory / "steps.jsonl").read_bytes(), (directory / "timesteps.f32").read_bytes()


def reopened(directory: Path, step: int, since: dict[str, Any] | None) -> StoreSink:
    config = Config()
    return StoreSink(RunInfo(run_id(config), "s", directory, container(config), "name", ["tag"]), DESCRIBE, step, since)


@pytest.fixture
def four_rows(tmp_path: Path) -> tuple[Path, dict[str, Any], tuple[bytes, bytes]]:
    """A killed run with rows at 0..3, what its store knew when there were two of them, and its files."""
    sink = opened(tmp_path)
    since: dict[str, Any] = {}
    for step in range(4):
        sink.log(row(step))
        since = sink.progress() if step == 1 else since
    sink.finish("killed", {})
    return tmp_path, since, files(tmp_path)


@pytest.mark.parametrize(
    "torn", [(b"", b""), (b'{"step": 4, "tra', b"1234"), (b"", b"1" * 500), (b'{"step": 4}\n', b"")]
)
def test_rows_are_neither_lost_nor_doubled_and_what_was_torn_off_is_cut(four_rows, torn):
    directory, since, whole = four_rows
    for name, tail in zip(("steps.jsonl", "timesteps.f32"), torn, strict=True):
        with open(directory / name, "ab") as file:
            file.write(tail)
    sink = reopened(directory, 2, since)
    assert files(directory) == whole
    for step in (2, 3):
        sink.log(row(step))
        assert files(directory) == whole
    sink.log(row(4))
    sink.finish("completed", {})
    undisturbed = opened(directory / "undisturbed")
    for step in range(5):
        undisturbed.log(row(step))
    undisturbed.finish("completed", {})
    assert files(directory) == files(directory / "undisturbed")


def test_rows_before_the_step_are_there_to_be_told_again(four_rows):
    directory, since, _ = four_rows
    sink = reopened(directory, 2, since)
    told = list(sink.recorded())
    sink.finish("killed", {})
    assert [r.step for r in told] == [0, 1]
    for r in told:
        assert r.scalars == row(r.step).scalars
        for name in SERIES:
            np.testing.assert_array_equal(r.timesteps[name], row(r.step).timesteps[name])


def test_what_differs_from_what_was_recorded_replaces_it_from_there_on(four_rows, caplog):
    directory, since, _ = four_rows
    sink = reopened(directory, 2, since)
    sink.log(row(2))
    sink.log(Row(3, {"train/loss": -1.0}, row(3).timesteps))
    sink.finish("completed", {})
    steps = results.load(directory).steps
    assert list(steps["step"]) == [0, 1, 2, 3]
    assert steps["train/loss"].iloc[-1] == -1
    assert "step 3" in caplog.text


def test_a_failed_run_keeps_nothing(four_rows):
    directory, _, _ = four_rows
    reopened(directory, 0, None).finish("killed", {})
    assert files(directory) == (b"", b"")


def test_seconds_add_up_and_the_record_says_where_it_went_on(four_rows):
    directory, since, _ = four_rows
    sink = reopened(directory, 2, since | {"seconds": 1000.0, "cpu_seconds": 500.0, "started": "long ago"})
    again = sink.progress()
    sink.finish("killed", {})
    reopened(directory, 3, again).finish("completed", {})
    record = read_run(directory)
    assert record is not None
    assert record["resumed"] == [2, 3]
    assert record["started"] == "long ago"
    assert 1000 <= record["seconds"] < 1100
    assert 500 <= record["cpu_seconds"] < 600


def test_a_store_that_cannot_be_opened_leaves_the_record_of_a_failure(tmp_path):
    (tmp_path / "steps.jsonl").mkdir()
    with pytest.raises(IsADirectoryError):
        opened(tmp_path)
    record = read_run(tmp_path)
    assert record is not None
    assert record["status"] == "failed"
    assert "IsADirectoryError" in record["error"]
    os.close(lock(tmp_path))


def test_a_disk_without_room_is_told_by_the_files_name_and_harms_nothing(tmp_path):
    path = tmp_path / "run.json"
    write_json(path, {"n": 0})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        with pytest.raises(OSError, match="File too large") as told:
            write_json(path, {"n": "x" * 1000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert told.value.filename == str(path)
    assert checked.loads(path.read_bytes())["n"] == 0


def test_a_row_that_the_disk_takes_a_part_of_is_no_row(tmp_path):
    """The system takes what there is room for and says so only in a number. Whoever logs is told, and the rows before are whole."""
    sink = opened(tmp_path)
    sink.log(row(0))
    block = (tmp_path / "timesteps.f32").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (block + block // 2, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            sink.log(row(10))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    sink.finish("failed", {}, error="the disk is full")
    assert list(results.load(tmp_path).steps["step"]) == [0]
