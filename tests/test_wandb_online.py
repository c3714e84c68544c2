"""The mirror and `wandb sync` against a backend on 127.0.0.1, in a process of its own: what arrives is what our store holds, once.

The client is the real one, so is its retrying; the server can fail, die and come back. No packet leaves this machine, the key is a fake.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from commands import end, start  # noqa: E402
from wandb_file import read_sweep  # noqa: E402
from wandb_runs import (  # noqa: E402
    SERIES,
    WANDB,
    assert_no_key,
    assert_rows_are_the_frames,
    assert_table_is_the_frame,
    core_of,
    ended,
    mirror_of,
    said,
    tell,
    trainer,
    wait_until_gone,
)
from wandb_server import Server  # noqa: E402

from rnn_lab import results  # noqa: E402

RUNS = """
stores = [opened(sweep, scale, "online") for scale in SCALES]
for scale, store in zip(SCALES, stores):
    for row in made_rows(scale)[:6]:
        store.log(row)
print("open", flush=True)
sys.stdin.readline()
for scale, store in zip(SCALES, stores):
    for row in made_rows(scale)[6:]:
        store.log(row)
    store.finish("completed", {})
print("ended", flush=True)
start = time.monotonic()
wandb.close()
print(time.monotonic() - start)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    found = Server(tmp_path / "server")
    found.start()
    yield found
    found.kill()


def assert_all_is_there(server: Server, sweep: Path, count: int, columns: list[str] = SERIES[:1]) -> None:
    """Every row of every run at the server, once; of runs with a result the exact table and our own file; and no key anywhere."""
    frames, runs = results.load(sweep), server.runs()
    assert len(runs) == len(frames.runs) == count
    for run in runs.values():
        run_id = run.config["lab"]["run_id"]
        assert_rows_are_the_frames(run.history, frames, run_id)
        status = frames.runs.set_index("run_id")["status"][run_id]
        assert run.exit_code == (0 if status in ("completed", "diverged") else 1)
        if run.exit_code == 0:
            table = run.files[run.summary["timesteps"]["path"]]
            assert_table_is_the_frame(table, frames, run_id, columns)
            assert run.files["timesteps.f32"].read_bytes() == (sweep / run_id / "timesteps.f32").read_bytes()
    assert_no_key(sweep)


def sync(server: Server, sweep: Path) -> None:
    """What a user does later."""
    directories = sorted(path.parent for path in sweep.glob("wandb/offline-run-*/*.wandb"))
    assert directories
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    env |= server.environment | {"HOME": str(sweep.parent)}
    subprocess.run(
        [WANDB, "sync", *directories], env=env, cwd=sweep.parent, check=True, capture_output=True, timeout=120
    )
    assert_no_key(sweep.parent)


def rebuild(sweep: Path) -> None:
    code = "wandb.rebuild(sorted(path.parent for path in sweep.glob('*/run.json')))"
    assert ended(trainer(sweep, code), 120) == (0, "", "")


def until(server: Server, rows: int) -> None:
    """Until so many rows have arrived."""
    deadline = time.monotonic() + 60
    while sum(len(run.rows) for run in server.runs().values()) < rows:
        assert time.monotonic() < deadline, "nothing arrives"
        time.sleep(0.05)


def online(server: Server, sweep: Path, code: str = RUNS) -> subprocess.Popen:
    return trainer(sweep, code, server.environment)


@pytest.mark.slow
def test_online(server: Server, tmp_path: Path) -> None:
    """Live: the first rows are there while the runs go on."""
    sweep = tmp_path / "main"
    process = online(server, sweep)
    assert said(process) == "open"
    until(server, 18)
    tell(process)
    code, out, err = ended(process)
    assert (code, err) == (0, "")
    assert_all_is_there(server, sweep, 3)
    assert_no_key(sweep, out, err)
    for run in server.runs().values():
        assert (run.bucket["groupName"], run.bucket["jobType"]) == ("main", "train")
        assert run.bucket["tags"] == ["lab", "tanh"]
        assert run.bucket["commit"].startswith("c0ffee")
        assert run.summary["dE_dh/half_life"] == pytest.approx(3.0103)
    assert len(list(sweep.glob("wandb/*/*.synced"))) == 3  # nobody needs to send them again


def test_sync_of_an_offline_sweep(server: Server, tmp_path: Path) -> None:
    sweep = tmp_path / "main"
    code = """
for scale, status in zip(SCALES, ("completed", "diverged", "failed")):
    record(sweep, scale, status, series="all")
wandb.close()
"""
    assert ended(trainer(sweep, code)) == (0, "", "")
    sync(server, sweep)
    assert_all_is_there(server, sweep, 3, SERIES)


@pytest.mark.slow
def test_a_run_that_was_synced_and_goes_on_has_every_step_once(server: Server, tmp_path: Path) -> None:
    sweep = tmp_path / "main"
    code = """
store = opened(sweep, 1.0)
for row in made_rows(1.0)[:5]:
    store.log(row)
store.finish("killed", {})
wandb.close()
"""
    assert ended(trainer(sweep, code)) == (0, "", "")
    sync(server, sweep)
    assert_all_is_there(server, sweep, 1)
    assert ended(trainer(sweep, "record(sweep, 1.0)\nwandb.close()")) == (0, "", "")
    assert len(list(sweep.glob("wandb/*/*.wandb"))) == 1
    sync(server, sweep)
    assert_all_is_there(server, sweep, 1)


@pytest.mark.slow
@pytest.mark.parametrize("failure", ["500", "gone"])
def test_server_fails_for_a_while(server: Server, tmp_path: Path, failure: str) -> None:
    sweep = tmp_path / "main"
    process = online(server, sweep)
    assert said(process) == "open"
    until(server, 18)
    server.kill() if failure == "gone" else server.mode(failure)
    tell(process)
    assert said(process) == "ended"
    time.sleep(3)
    server.start() if failure == "gone" else server.mode("ok")
    code, _, err = ended(process)
    assert (code, err) == (0, "")
    assert_all_is_there(server, sweep, 3)


@pytest.mark.slow
@pytest.mark.parametrize("failure", ["500", "401", "gone"])
def test_server_fails_for_ever(server: Server, tmp_path: Path, failure: str) -> None:
    """In mid-run: one line of warning, an end in time, and what a user does later brings everything."""
    sweep = tmp_path / "main"
    process = online(server, sweep, "wandb.PATIENCE = 3.0\n" + RUNS)
    assert said(process) == "open"
    until(server, 18)
    mirror, core = mirror_of(process.pid), core_of(process.pid)
    server.kill() if failure == "gone" else server.mode(failure)
    tell(process)
    code, out, err = ended(process)
    assert code == 0
    assert float(out.split()[1]) < 6
    assert len(err.splitlines()) == 1, err
    assert "wandb_rebuild.py main" in err
    assert_no_key(sweep, out, err)
    wait_until_gone(mirror)
    wait_until_gone(core)
    server.start() if failure == "gone" else server.mode("ok")
    rebuild(sweep)
    assert len(read_sweep(sweep)) == 3
    sync(server, sweep)
    assert_all_is_there(server, sweep, 3)


@pytest.mark.slow
@pytest.mark.parametrize("failure", ["500", "401", "gone"])
def test_no_server_at_the_start_means_offline(server: Server, tmp_path: Path, failure: str) -> None:
    sweep = tmp_path / "main"
    server.kill() if failure == "gone" else server.mode(failure)
    process = online(server, sweep, "wandb.PATIENCE = 60.0\n" + RUNS)
    assert said(process) == "open"
    tell(process)
    code, _, err = ended(process, 90)
    assert code == 0
    assert len(err.splitlines()) == 1, err
    assert err.startswith("WARNING:rnn_lab:wandb: no connection")
    assert len(list(sweep.glob("wandb/offline-run-*"))) == len(read_sweep(sweep)) == 3
    server.start() if failure == "gone" else server.mode("ok")
    sync(server, sweep)
    assert_all_is_there(server, sweep, 3)


@pytest.mark.slow
def test_killed_trainer(server: Server, tmp_path: Path) -> None:
    sweep = tmp_path / "main"
    process = online(server, sweep)
    assert said(process) == "open"
    mirror = mirror_of(process.pid)
    process.kill()
    ended(process)
    wait_until_gone(mirror)
    assert_all_is_there(server, sweep, 3)


@pytest.mark.slow
def test_killed_core(server: Server, tmp_path: Path) -> None:
    """The runs are sent anew from their first row, and at the server each line replaces itself."""
    sweep = tmp_path / "main"
    process = online(server, sweep)
    assert said(process) == "open"
    until(server, 18)
    os.kill(core_of(process.pid), signal.SIGKILL)
    tell(process)
    code, _, err = ended(process)
    assert code == 0
    assert len(err.splitlines()) == 1, err
    assert "wandb-core died" in err
    assert_all_is_there(server, sweep, 3)
    assert len(read_sweep(sweep)) == 3


@pytest.mark.slow
def test_sigterm_to_everybody(server: Server, tmp_path: Path) -> None:
    """As a batch system does it, to the real program: what was trained until then arrives, and the run says that it was killed."""
    arguments = ["task.length=10", "model.hidden=4", "training.updates=1000000", "training.kernel=reference"]
    process = start(*arguments, "tracker.mode=online", cwd=tmp_path, environment=server.environment)
    try:
        until(server, 2)
        core, mirror = core_of(process.pid), mirror_of(process.pid)
        for pid in (process.pid, mirror, core):
            os.kill(pid, signal.SIGTERM)
        assert end(process).status == 143
    finally:
        process.kill()
    wait_until_gone(mirror)
    assert_all_is_there(server, tmp_path / "runs" / "default", 1)
    (run,) = server.runs().values()
    assert run.summary["status"] == "killed"


@pytest.mark.slow
def test_200_runs_open_at_once(server: Server, tmp_path: Path) -> None:
    sweep = tmp_path / "many"
    code = """
scales = [k / 10 for k in range(1, 201)]
stores = [opened(sweep, scale, "online") for scale in scales]
rows = {scale: made_rows(scale) for scale in scales}
for k in range(12):
    for scale, store in zip(scales, stores):
        store.log(rows[scale][k])
wandb.PATIENCE = 120.0  # the machine may be slow
for store in stores:
    store.finish("completed", {})
wandb.close()
"""
    assert ended(online(server, sweep, "wandb.PATIENCE = 120.0\n" + code), 240) == (0, "", "")
    assert_all_is_there(server, sweep, 200)


@pytest.mark.slow
def test_the_server_sees_what_it_should(server: Server, tmp_path: Path) -> None:
    """That the other tests can fail: a key that is there is found, and a row that isn't is missed."""
    (tmp_path / "leak").write_text(f"key {server.environment['WANDB_API_KEY']}")
    with pytest.raises(AssertionError):
        assert_no_key(tmp_path)
    (tmp_path / "leak").unlink()
    sweep = tmp_path / "main"
    assert ended(trainer(sweep, "record(sweep, 1.0)\nwandb.close()")) == (0, "", "")
    sync(server, sweep)
    log = server.folder / "log.jsonl"
    content = log.read_text()
    for wrong in (content.replace('\\"_step\\":35', '\\"_step\\":36'), content.replace("NaN", "0.0")):
        assert wrong != content
        log.write_text(wrong)
        with pytest.raises(AssertionError):
            assert_all_is_there(server, sweep, 1)
    assert json.loads(content.splitlines()[0])
