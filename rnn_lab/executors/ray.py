"""Programs as Ray tasks: on this machine alone, or on a cluster that runs (hydra.launcher.ray.address)."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rnn_lab import interrupts
from rnn_lab.cells import OWN
from rnn_lab.executors.work import Watch, recorded, train
from rnn_lab.options import Options, cores
from rnn_lab.recording.progress import Progress
from rnn_lab.runner import Job, Outcome

PATIENCE = 30.0  # seconds for cancelled tasks to save their runs


def run(programs: Sequence[list[Job]], options: Options, progress: Progress) -> list[list[Outcome]]:
    """Trains the programs as tasks; the outcomes of each, in its jobs' order."""
    ray = _connected(options)
    watch, outcomes = Watch(programs, progress), dict[int, list[Outcome]]()
    asked, waiting, working = options.ray, list(range(len(programs)))[::-1], dict[Any, int]()
    task = ray.remote(num_cpus=asked.cpus, num_gpus=asked.gpus, max_retries=0)(_train)
    here, own = Path.cwd(), dict(OWN)
    # noted, not raised: a handler must not raise inside Ray
    with interrupts.deferred() as interrupted, _cancelled_at_the_end(ray, working):
        while (waiting or working) and not interrupted:
            while waiting and (options.workers is None or len(working) < options.workers):
                index = waiting.pop()
                working[task.remote(here, programs[index], options.checkpoint_seconds, asked.cpus, own)] = index
            for ended in ray.wait(list(working), timeout=0.5)[0]:
                index = working.pop(ended)
                try:
                    outcomes[index] = ray.get(ended)
                except ray.exceptions.RayError as error:
                    how = " ".join(str(error).split())[:200]
                    outcomes[index] = [recorded(job, f"{type(error).__name__}: {how}") for job in programs[index]]
                watch.ended(index, outcomes[index])
            watch.look(working.values())
    return [outcomes[index] for index in range(len(programs))]


def _train(here: Path, *arguments: Any) -> list[Outcome]:
    """What a worker does, in the driver's directory."""
    os.chdir(here)
    return train(*arguments)


def _connected(options: Options) -> Any:
    """The module, connected. One of this machine alone listens on the loopback interface only: Ray wants to be told before its import."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is told to anyone
    address, alone = options.ray.address, {}
    if address is None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        needed = (options.workers or cores()) * options.ray.cpus
        alone = {"num_cpus": needed, "_node_ip_address": "127.0.0.1", "include_dashboard": False}
    import ray

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    ray.init(address=address or "local", logging_level="ERROR", **alone)  # type: ignore[arg-type]
    for number, handler in handlers.items():  # Ray puts in its own
        signal.signal(number, handler)
    return ray


@contextmanager
def _cancelled_at_the_end(ray: Any, working: dict[Any, int]) -> Iterator[None]:
    """Lets the tasks that are left save their runs, and leaves: a cluster of this machine alone ends."""
    try:
        yield
        for task in working:
            ray.cancel(task)  # as Ctrl-C
        if working:
            ray.wait(list(working), num_returns=len(working), timeout=PATIENCE)
    finally:
        ray.shutdown()
