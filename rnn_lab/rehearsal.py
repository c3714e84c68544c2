"""hydra.launcher.dry_run=true: what a command would do and what it would take. Nothing is written.

Minutes and megabytes are measured where they can be: the first program of each shape trains a few updates, and other programs of that shape
take as much a run. Under another engine than serial it does so in as many processes as would share this machine, with a worker's threads.
What recording, Hydra and wandb take was measured once, on 2 cores.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from rnn_lab.config import Config, static_key
from rnn_lab.evaluation import evaluations
from rnn_lab.executors.work import use
from rnn_lab.jobs import Task, plan
from rnn_lab.options import Options, cores
from rnn_lab.recording.store import finished_run, read_run
from rnn_lab.training import Training

JOB_SECONDS, ROW_SECONDS, WANDB_ROW_SECONDS = 0.03, 0.0002, 0.002
JOB_BYTES, LINE_BYTES, WANDB_ROW_BYTES = 20_000, 700, 3_500


@dataclass(frozen=True)
class Cost:
    """What one run of a shape takes. seconds: of an update, of one that is recorded, of an evaluation.  row: bytes of a row's series."""

    update: float
    recorded: float
    evaluation: float
    row: int

    def seconds(self, config: Config, step: int) -> float:
        rows, updates = _rows(config, step), config.training.updates - step
        evaluations = 0 if config.eval.every is None else updates // config.eval.every + 1
        track = WANDB_ROW_SECONDS if config.tracker.name == "wandb" else 0.0
        return (
            JOB_SECONDS
            + updates * self.update
            + rows * (self.recorded - self.update + ROW_SECONDS + track)
            + evaluations * self.evaluation
        )

    def bytes(self, config: Config, step: int) -> int:
        track = WANDB_ROW_BYTES if config.tracker.name == "wandb" else 0
        return JOB_BYTES + _rows(config, step) * (self.row + LINE_BYTES + track)


def _rows(config: Config, step: int) -> int:
    return (config.training.updates - step) // config.training.log_every + 1


def measure(configs: list[Config]) -> Cost:
    """Trains a program for six updates and evaluates it once, where it would be evaluated; a run's share of that."""
    first, runs = configs[0], len(configs)
    brief = replace(first.training, updates=6, log_every=2)
    training = Training([replace(config, training=brief, eval=replace(config.eval, every=None)) for config in configs])
    seconds: dict[bool, list[float]] = {True: [], False: []}
    row = 0
    while not training.done:
        recorded, began = training.step % 2 == 0, time.perf_counter()
        for snapshot in training.advance():
            row = max(row, sum(series[0].nbytes for series in snapshot.timesteps.values()))
        seconds[recorded].append((time.perf_counter() - began) / runs)
    evaluation, began = 0.0, time.perf_counter()
    if first.eval.every is not None:
        evaluations(training.theta, training.net, training.task, training.eval_roots, 0, first)
        evaluation = (time.perf_counter() - began) / runs
    recorded = min(seconds[True][1:] or seconds[True])  # the first one takes longer
    return Cost(min(seconds[False] or [recorded]), recorded, evaluation, row)


@contextmanager
def _measuring(options: Options, programs: int) -> Iterator[Callable[[list[Config]], Cost]]:
    """`measure` as the engine would train: the slowest of the workers that are at it at the same time."""
    workers = min(options.at_once, programs, cores())
    if options.engine == "serial" or not workers:
        yield measure
        return
    with multiprocessing.get_context("forkserver").Pool(workers, use, (options.threads,)) as pool:
        yield lambda configs: max(pool.map(measure, [configs] * workers, chunksize=1), key=lambda cost: cost.update)


def rehearse(tasks: Sequence[Task], options: Options, jobs: int) -> None:
    """Prints the jobs, what becomes of each, the programs, and what they are expected to take."""
    todo = [task for task in tasks if not finished_run(task.directory)]
    planned, steps, programs = plan(todo, options)
    fates = dict(zip((job.directory for job in planned), steps, strict=True))
    for task in tasks:
        print(f"  {_fate(task, fates.get(task.directory)):<24}  {task.directory}  {' '.join(task.overrides)}".rstrip())
    print(f"{jobs} jobs, {len(tasks)} runs, {len(tasks) - len(todo)} of them finished before")
    costs: dict[tuple, Cost] = {}
    seconds, size = 0.0, 0
    with _measuring(options, len(programs)) as measured:
        for number, program in enumerate(programs, start=1):
            config, step = planned[program[0]].config, steps[program[0]]
            key = static_key(replace(config, training=replace(config.training, updates=0)))
            if key not in costs:
                costs[key] = measured([planned[index].config for index in program])
            cost = costs[key]
            own = len(program) * cost.seconds(config, step)
            print(
                f"  program {number}: {len(program)} runs, updates {step} to {config.training.updates}, {_duration(own)}"
            )
            seconds, size = seconds + own, size + len(program) * cost.bytes(config, step)
    seconds /= max(1, min(options.at_once, len(programs)))
    print(
        f"about {_duration(seconds)} and {size / 1e6:.1f} MB expected, measured on a few updates; nothing was written"
    )


def _fate(task: Task, step: int | None) -> str:
    """What becomes of a run: step is where it would start, None: it is finished."""
    record = read_run(task.directory) or {}
    if step is None:
        return f"skip ({record['status']})"
    if step:
        return f"resume from step {step}"
    return {"failed": "retry (failed)", "running": "again (killed)", "killed": "again (killed)"}.get(
        record.get("status", ""), "train"
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} minutes"
