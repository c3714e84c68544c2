"""hydra.launcher.engine=processes: the same numbers from processes of their own, whoever is killed. (slurm, ray: files of their own.)"""

import multiprocessing
import os
import signal
import struct
from dataclasses import replace

import pytest
from commands import end, start, train
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
from oracle import make_config

from rnn_lab import results
from rnn_lab.executors import processes
from rnn_lab.executors.work import train as train_program
from rnn_lab.options import Options
from rnn_lab.recording.progress import Silent
from rnn_lab.recording.store import read_run
from rnn_lab.runner import Job

PROCESSES = ["hydra.launcher.engine=processes", "hydra.launcher.workers=2"]


@pytest.mark.slow
def test_a_killed_worker_loses_its_own_program_only(tmp_path):
    """The others end as they would; the table says who killed it; the same command finishes it from its checkpoint."""
    often = [*PROCESSES, "hydra.launcher.checkpoint_seconds=0.1"]
    with start(*THREE, *often, cwd=tmp_path) as process:
        until(lambda: under_way(tmp_path))
        [worker] = {trainer(run) for run in long_runs(tmp_path)}
        assert worker != process.pid
        os.kill(worker, signal.SIGKILL)
        ended = end(process)
    assert ended.status == 1
    assert statuses(tmp_path) == [(20, "completed")] * 2 + [(21, "completed")] * 2 + [(LONG, "killed")] * 2
    lines = [line for line in ended.err.splitlines() if line.startswith("  killed")]
    assert len(lines) == 2
    assert all("its worker was killed by SIGKILL" in line for line in lines)
    assert "Traceback" not in ended.err
    lost = long_runs(tmp_path)
    finished_as_if_undisturbed(tmp_path, *often)
    assert all((read_run(run) or {})["resumed"] for run in lost)


def test_a_program_that_begins_again_leaves_alone_what_it_has_finished(tmp_path):
    """As after preemption, where some runs of the program had diverged before: they are told by their records."""
    config = make_config({"task.length": 10, "model.hidden": 4, "training.updates": 3, "tracker.name": "none"})
    jobs = [Job(replace(config, seed=seed), tmp_path / str(seed), {}) for seed in (0, 1)]
    for job in jobs:
        job.directory.mkdir()
    [first] = train_program(jobs[:1], 30.0)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "0").iterdir()}
    outcomes = train_program(jobs, 30.0)
    assert [outcome.status for outcome in outcomes] == ["completed"] * 2
    assert outcomes[0].summary == first.summary
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "0").iterdir()} == before


def test_a_worker_killed_in_the_middle_of_its_message_is_a_killed_worker(tmp_path):
    """It said that 100 bytes would come, and 3 of them came."""
    job = Job(make_config({"tracker.name": "none"}), tmp_path, {})
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=os.kill, args=(os.getpid(), 0))
    process.start()
    os.write(there.fileno(), struct.pack("!i", 100) + b"abc")
    there.close()
    [outcome] = processes.Worker(process, 0, here).outcomes([job])
    assert (outcome.status, "its worker" in (outcome.error or "")) == ("killed", True)


def test_a_worker_killed_before_it_has_read_what_to_do_loses_its_own_program_only(tmp_path, monkeypatch):
    """The first of two."""
    config = make_config({"task.length": 10, "model.hidden": 4, "training.updates": 3, "tracker.name": "none"})
    jobs = [Job(replace(config, seed=seed), tmp_path / str(seed), {}) for seed in (0, 1)]
    for job in jobs:
        job.directory.mkdir()
    start_worker, starts = multiprocessing.process.BaseProcess.start, []

    def first_fails(process):
        starts.append(process)
        if len(starts) == 1:
            raise BrokenPipeError("Broken pipe")
        start_worker(process)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", first_fails)
    [[lost], [kept]] = processes.run([jobs[:1], jobs[1:]], Options(engine="processes", workers=1), Silent(2, 0))
    assert (lost.status, lost.error) == ("killed", "its worker did not start (Broken pipe)")
    assert kept.status == "completed"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nobody_lives_on_when_the_driver_ends(tmp_path, number):
    """Workers save their runs first, even if the driver was killed without a word. SIGINT reaches all, as from a terminal."""
    with start(*THREE, *PROCESSES, cwd=tmp_path, environment={"LAUNCHED_FOR": str(tmp_path)}) as process:
        until(lambda: under_way(tmp_path))
        for pid in marked(tmp_path) if number == signal.SIGINT else [process.pid]:
            os.kill(pid, number)
        ended = end(process)
        until(lambda: not marked(tmp_path), seconds=30)
    assert ended.status == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in ended.err
    saved = long_runs(tmp_path)
    assert all((run / "checkpoint.pt").exists() for run in saved)
    assert [(read_run(run) or {})["status"] for run in saved] == ["killed"] * 2
    finished_as_if_undisturbed(tmp_path, *PROCESSES)
    assert all((read_run(run) or {})["resumed"] for run in saved)


@pytest.mark.slow
def test_every_worker_gets_its_share_and_the_numbers_are_the_same(tmp_path):
    """12 runs that are one program in one process are two for two workers."""
    ended = train(*ALIGNED, *PROCESSES, cwd=tmp_path)
    assert ended.status == 0, ended.err
    assert "12 completed" in ended.out
    assert set(results.load(tmp_path / "runs" / "default").runs["program_runs"]) == {6}
    assert recorded(tmp_path) == undisturbed(ALIGNED, tmp_path / "alone")


@pytest.mark.slow
def test_a_users_own_cell_reaches_the_workers(tmp_path):
    trains_an_own_cell(tmp_path, *PROCESSES)


def test_where_the_system_does_not_say_which_cores_it_gives(monkeypatch):
    """macOS."""
    monkeypatch.delattr(os, "sched_getaffinity")
    assert Options(engine="processes").at_once == os.cpu_count()
