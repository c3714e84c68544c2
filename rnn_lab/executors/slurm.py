"""Programs as the tasks of a Slurm job array, by submitit. The command that submitted them waits; their logs are in <sweep>/slurm.

A program that is preempted or reaches its time limit gets SIGUSR2: `runner.run_program` saves it, then submitit's own handler queues it
again. Whatever else ends a task (scancel, a node that dies, memory) loses that program back to its last checkpoint.
"""

import itertools
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import submitit  # pyright: ignore[reportMissingImports]
from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError  # pyright: ignore[reportMissingImports]
from submitit.helpers import Checkpointable  # pyright: ignore[reportMissingImports]

from rnn_lab.cells import OWN
from rnn_lab.config import ConfigError
from rnn_lab.executors.work import Watch, recorded, train
from rnn_lab.options import Options
from rnn_lab.recording.progress import Progress
from rnn_lab.runner import Job, Outcome

PAUSE = 1.0  # seconds between two looks at the results; Slurm itself is asked every tenth time
GRACE = 10.0  # seconds for a result to arrive through the file system after its task has ended
PATIENCE = 60.0  # seconds for cancelled tasks to save their runs
UNDER_WAY = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED"}
UNDER_WAY |= {"RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}


class Program(Checkpointable):
    """`work.train`, which submitit queues again with the same arguments: it goes on from the checkpoints."""

    def __call__(self, jobs: list[Job], checkpoint_seconds: float, cores: int, own: dict[str, type]) -> list[Outcome]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # comes with SIGUSR2, and must not cut short what that begins
        return train(jobs, checkpoint_seconds, cores, own)


def run(programs: Sequence[list[Job]], options: Options, progress: Progress) -> list[list[Outcome]]:
    """Trains the programs as tasks of a job array; the outcomes of each, in its jobs' order."""
    folder = programs[0][0].directory.parent.absolute() / "slurm"
    folder.mkdir(parents=True, exist_ok=True)
    cancel({path.name.removesuffix("_submitted.pkl") for path in folder.glob("*_submitted.pkl")}, "nobody waits for")
    watch = Watch(programs, progress)
    tasks = _submit(programs, options, folder)
    try:
        return _wait(tasks, programs, watch)
    except BaseException:
        cancel({task.job_id for task in tasks}, "interrupted, so")
        raise
    finally:
        for task in tasks:
            task.paths.submitted_pickle.unlink(missing_ok=True)


def _submit(programs: Sequence[list[Job]], options: Options, folder: Path) -> list[submitit.Job]:
    """Raises ConfigError for what Slurm refuses."""
    asked = options.slurm
    executor = submitit.SlurmExecutor(folder, max_num_timeout=asked.requeues)
    executor.update_parameters(
        job_name="rnn_lab",
        partition=asked.partition,
        account=asked.account,
        qos=asked.qos,
        constraint=asked.constraint,
        time=asked.minutes,
        cpus_per_task=asked.cpus,
        gpus_per_node=asked.gpus or None,
        mem=f"{math.ceil(1024 * asked.memory)}M",
        signal_delay_s=min(90, 30 * asked.minutes),
        array_parallelism=options.workers or len(programs),
    )
    numbers = [options.checkpoint_seconds] * len(programs), [asked.cpus] * len(programs), [dict(OWN)] * len(programs)
    try:
        return executor.map_array(Program(), programs, *numbers)
    except (FailedJobError, FailedSubmissionError) as error:
        refusal = [line for line in str(error).splitlines() if "error:" in line] or [str(error)]
        raise ConfigError(f"hydra.launcher.slurm: {refusal[0].strip()}") from None


def _wait(tasks: list[submitit.Job], programs: Sequence[list[Job]], watch: Watch) -> list[list[Outcome]]:
    """Until every task has left its result or is gone."""
    outcomes: dict[int, list[Outcome]] = {}
    gone: dict[int, float] = {}  # when it was first missed
    for look in itertools.count():
        waiting = [index for index in range(len(tasks)) if index not in outcomes]
        states = _states(tasks[index].job_id for index in waiting) if look % 10 == 0 else None
        for index in waiting:
            task = tasks[index]
            if task.paths.result_pickle.exists():
                outcomes[index] = _result(task, programs[index])
            elif states is not None and states.get(task.job_id) not in UNDER_WAY:
                state = states.get(task.job_id, "no longer known")
                if time.monotonic() - gone.setdefault(index, time.monotonic()) > GRACE:
                    outcomes[index] = _lost(programs[index], f"its Slurm job {task.job_id} is {state.lower()}")
            elif states is not None:
                gone.pop(index, None)
            if index in outcomes:
                watch.ended(index, outcomes[index])
        if len(outcomes) == len(tasks):
            return [outcomes[index] for index in range(len(tasks))]
        watch.look(index for index in waiting if index not in outcomes)
        time.sleep(PAUSE)
    raise AssertionError


def _result(task: submitit.Job, program: list[Job]) -> list[Outcome]:
    try:
        return task.result()
    except (FailedJobError, UncompletedJobError) as error:
        last = str(error).strip().splitlines()[-1]
        return _lost(program, f"its Slurm job {task.job_id} failed: {last}")


def _lost(program: list[Job], how: str) -> list[Outcome]:
    return [recorded(job, how) for job in program]


def _states(ids: Iterable[str]) -> dict[str, str] | None:
    """What Slurm says about tasks, by their ids; None if it does not answer, as while its controller is restarted."""
    jobs = ",".join(sorted({task.split("_")[0] for task in ids}))
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T", f"--jobs={jobs}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode and "Invalid job id" not in answer.stderr:
        return None
    return dict(line.split() for line in answer.stdout.splitlines())


def cancel(tasks: set[str], why: str) -> None:
    """Ends the tasks of these ids that still wait or run, and says so; those that run save their runs first."""
    jobs = sorted({task.split("_")[0] for task in tasks})

    def under_way() -> set[str]:
        return {task for task, state in (_states(jobs) or {}).items() if state in UNDER_WAY} if jobs else set()

    if not (left := under_way()):
        return
    print(f"Slurm: {why} {len(left)} tasks of job {', '.join(jobs)}: cancelled", file=sys.stderr)
    subprocess.run(["scancel", "--state=PENDING", *jobs], check=False)
    subprocess.run(["scancel", "--signal=INT", "--state=RUNNING", *jobs], check=False)
    try:
        _until(lambda: not under_way())
    finally:
        subprocess.run(["scancel", *jobs], check=False)
        _until(lambda: not under_way())


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds() and time.monotonic() < end:
        time.sleep(PAUSE)
