"""hydra.launcher.engine=slurm against a real Slurm of this machine alone: see slurm.py. Needs the extra [slurm]."""

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Ended, end, start
from launched import (
    ALIGNED,
    LONG,
    THREE,
    finished_as_if_undisturbed,
    long_runs,
    recorded,
    statuses,
    trainer,
    trains_an_own_cell,
    under_way,
    undisturbed,
    until,
)
from slurm import Slurm, lacking

from rnn_lab.recording.store import read_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.skipif(bool(lacking()), reason=lacking()),
    pytest.mark.skipif(
        importlib.util.find_spec("submitit") is None, reason="submitit is not installed: pip install '.[slurm]'"
    ),
]

ENGINE = ["hydra.launcher.engine=slurm", "hydra.launcher.checkpoint_seconds=0.5"]
ASKED = ["hydra.launcher.slurm.memory=1", "hydra.launcher.slurm.partition=main"]
SHORT = [(20, "completed")] * 2 + [(21, "completed")] * 2  # in the end
ENDLESS = [argument.replace(f",{LONG},", ",1000000,") for argument in THREE]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with Slurm(tmp_path_factory.mktemp("slurm") / "slurm") as running:
        yield running


@pytest.fixture
def environment(slurm: Slurm) -> Iterator[dict[str, str]]:
    yield slurm.environment
    slurm("scancel", "--partition=main")
    until(lambda: not slurm("squeue", "--noheader"))


def task_of(run: Path) -> str:
    """The Slurm task that trains a run: what its process has in its environment."""
    content = Path(f"/proc/{trainer(run)}/environ").read_bytes().split(b"\0")
    told = dict(entry.decode().split("=", 1) for entry in content if b"=" in entry)
    return f"{told['SLURM_ARRAY_JOB_ID']}_{told['SLURM_ARRAY_TASK_ID']}"


def resumed(cwd: Path) -> list[list[int]]:
    return [(read_run(run) or {})["resumed"] for run in long_runs(cwd)]


def finished(environment: dict[str, str], *arguments: str, cwd: Path) -> Ended:
    return end(start(*arguments, cwd=cwd, environment=environment), timeout=400)


def test_an_array_gives_the_same_numbers(tmp_path, environment):
    """12 runs in three tasks, two at a time."""
    asked = [*ENGINE, *ASKED, "hydra.launcher.max_runs=4", "hydra.launcher.workers=2"]
    ended = finished(environment, *ALIGNED, *asked, cwd=tmp_path)
    assert (ended.status, "12 completed" in ended.out) == (0, True), ended.err
    assert recorded(tmp_path) == undisturbed(ALIGNED, tmp_path / "alone")
    assert len(list((tmp_path / "runs" / "default" / "slurm").glob("*_result.pkl"))) == 3


def test_a_users_own_cell_reaches_the_tasks(tmp_path, environment):
    trains_an_own_cell(tmp_path, *ENGINE, *ASKED, environment=environment)


def test_a_cancelled_task_loses_its_own_program_only(tmp_path, environment, slurm):
    """The others end as they would, the table names task and state, and what is left goes on under any engine."""
    with start(*THREE, *ENGINE, *ASKED, cwd=tmp_path, environment=environment) as process:
        until(lambda: under_way(tmp_path))
        task = task_of(long_runs(tmp_path)[0])
        os.kill(trainer(long_runs(tmp_path)[0]), signal.SIGSTOP)  # it must not end in the time that Slurm leaves it
        slurm("scancel", task)
        ended = end(process, timeout=400)
    assert ended.status == 1
    assert statuses(tmp_path) == [*SHORT, *[(LONG, "killed")] * 2]
    lines = [line for line in ended.err.splitlines() if line.startswith("  killed")]
    assert len(lines) == 2
    assert all(f"its Slurm job {task} is cancelled" in line for line in lines)
    assert "Traceback" not in ended.err
    finished_as_if_undisturbed(tmp_path)


def test_a_preempted_task_is_queued_again_and_goes_on_at_the_update_where_it_was(tmp_path, environment, slurm):
    """SIGTERM and SIGUSR2, as Slurm sends them; nobody has to do anything, and no update is trained twice."""
    seldom = [*ENGINE[:1], "hydra.launcher.checkpoint_seconds=1000", *ASKED]
    with start(*THREE, *seldom, cwd=tmp_path, environment=environment) as process:
        until(lambda: under_way(tmp_path))
        runs = long_runs(tmp_path)
        task = task_of(runs[0])
        slurm("scancel", "--signal=TERM", task)
        slurm("scancel", "--signal=USR2", task)
        until(lambda: all((run / "checkpoint.pt").exists() for run in runs))
        ended = end(process, timeout=400)
    assert ended.status == 0, ended.err
    [[step], [same]] = resumed(tmp_path)
    assert step == same > 30
    assert recorded(tmp_path) == undisturbed(THREE, tmp_path / "undisturbed")


def test_a_time_limit_and_the_end_of_the_driver(tmp_path, environment, slurm):
    """A task of two minutes, of which the last is for saving, goes on in the next; Ctrl-C cancels it, saved, in a line that says so."""
    with start(
        *ENDLESS, *ENGINE, *ASKED, "hydra.launcher.slurm.minutes=2", cwd=tmp_path, environment=environment
    ) as process:
        until(lambda: under_way(tmp_path), seconds=300)
        until(lambda: all(resumed(tmp_path)) and statuses(tmp_path)[:4] == SHORT, seconds=300)
        process.send_signal(signal.SIGINT)
        ended = end(process)
    assert ended.status == 130
    assert "interrupted, so 1 tasks" in ended.err
    assert slurm("squeue", "--noheader") == ""
    assert statuses(tmp_path) == [*SHORT, *[(1000000, "killed")] * 2]


def test_what_a_killed_driver_left_is_cancelled_and_gone_on_with_by_the_next_command(tmp_path, environment, slurm):
    with start(*ENDLESS, *ENGINE, *ASKED, cwd=tmp_path, environment=environment) as process:
        until(lambda: under_way(tmp_path) and statuses(tmp_path)[:4] == SHORT)
        process.kill()
        process.communicate()
    before = slurm("squeue", "--noheader", "--format=%F")
    assert before
    with start(*ENDLESS, *ENGINE, *ASKED, cwd=tmp_path, environment=environment) as process:
        until(lambda: all(resumed(tmp_path)))
        assert slurm("squeue", "--noheader", "--format=%F") not in ("", before)
        process.send_signal(signal.SIGTERM)
        ended = end(process)
    assert ended.status == 143
    assert "nobody waits for" in ended.err  # also for those whose runs have ended, while Slurm has not noticed
    assert slurm("squeue", "--noheader") == ""
    assert statuses(tmp_path) == [*SHORT, *[(1000000, "killed")] * 2]


def test_what_slurm_refuses_is_told_in_one_line(tmp_path, environment):
    ended = finished(environment, *THREE, *ENGINE, "hydra.launcher.slurm.partition=nowhere", cwd=tmp_path)
    assert ended.status == 2
    *said, line = ended.err.splitlines()
    assert all(by_sbatch.startswith("sbatch: ") for by_sbatch in said)
    assert line.startswith("hydra.launcher.slurm: ")
    assert "partition" in line
