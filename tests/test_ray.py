"""hydra.launcher.engine=ray, on the loopback interface of this machine. Needs the extra [ray]."""

import importlib.util
import os
import re
import signal

import pytest
from commands import end, start
from launched import (
    ALIGNED,
    LONG,
    THREE,
    finished_as_if_undisturbed,
    long_runs,
    marked,
    recorded,
    statuses,
    trainer,
    trains_an_own_cell,
    under_way,
    undisturbed,
    until,
)

from rnn_lab.recording.store import read_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install '.[ray]'"),
]

ENGINE = ["hydra.launcher.engine=ray", "hydra.launcher.workers=2", "hydra.launcher.checkpoint_seconds=0.5"]


def test_tasks_give_the_same_numbers(tmp_path):
    ended = end(start(*ALIGNED, *ENGINE, cwd=tmp_path), timeout=300)
    assert (ended.status, "12 completed" in ended.out) == (0, True), ended.err
    assert recorded(tmp_path) == undisturbed(ALIGNED, tmp_path / "alone")


def test_a_users_own_cell_reaches_the_tasks(tmp_path):
    trains_an_own_cell(tmp_path, *ENGINE)


def listening(pids: list[int]) -> set[str]:
    """The addresses on which these processes accept connections, as /proc/net writes them."""
    inodes = set()
    for pid in pids:
        for descriptor in os.scandir(f"/proc/{pid}/fd"):
            inodes |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(descriptor.path)))
    found = set()
    for table in ("tcp", "tcp6"):
        with open(f"/proc/net/{table}") as lines:
            for line in list(lines)[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in inodes:
                    found.add(fields[1].split(":")[0])
    return found


def test_a_killed_worker_loses_its_own_program_only(tmp_path):
    """Meanwhile nothing listens to anything but this machine."""
    with start(*THREE, *ENGINE, cwd=tmp_path, environment={"LAUNCHED_FOR": str(tmp_path)}) as process:
        until(lambda: under_way(tmp_path))
        [worker] = {trainer(run) for run in long_runs(tmp_path)}
        loopback = {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1 in the two tables
        assert set() < listening(marked(tmp_path)) <= loopback
        os.kill(worker, signal.SIGKILL)
        ended = end(process, timeout=300)
    assert ended.status == 1
    assert statuses(tmp_path) == [(20, "completed")] * 2 + [(21, "completed")] * 2 + [(LONG, "killed")] * 2
    lines = [line for line in ended.err.splitlines() if line.startswith("  killed")]
    assert len(lines) == 2
    assert all("WorkerCrashedError" in line for line in lines)
    finished_as_if_undisturbed(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_tasks_are_saved_and_nobody_lives_on_when_the_driver_ends(tmp_path, number):
    with start(*THREE, *ENGINE, cwd=tmp_path, environment={"LAUNCHED_FOR": str(tmp_path)}) as process:
        until(lambda: under_way(tmp_path))
        process.send_signal(number)
        ended = end(process)
    until(lambda: not marked(tmp_path), seconds=30)
    assert ended.status == 128 + number
    assert "Traceback" not in ended.err
    assert [(read_run(run) or {})["status"] for run in long_runs(tmp_path)] == ["killed"] * 2
    assert all((run / "checkpoint.pt").exists() for run in long_runs(tmp_path))
    finished_as_if_undisturbed(tmp_path)
