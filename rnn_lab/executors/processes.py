"""Programs in processes of their own on this machine, a few at a time, each with a single thread.

Each program gets a fresh process, forked off a server that has imported torch once: it starts in milliseconds, and one that is killed takes
nothing with it.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NamedTuple

from rnn_lab.executors.work import Watch, recorded, train
from rnn_lab.options import Options
from rnn_lab.recording.progress import Progress
from rnn_lab.runner import Job, Outcome

PATIENCE = 60  # seconds until a worker that was asked to end has to


class Worker(NamedTuple):
    """A process, the program that it trains, and the pipe through which it tells the outcomes."""

    process: BaseProcess
    index: int
    pipe: Connection

    def outcomes(self, program: list[Job]) -> list[Outcome]:
        """What it told, or what the records say if it died before."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):  # OSError: killed in the middle of the message
            self.process.join()
            code = self.process.exitcode or 0
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
            return [recorded(job, f"its worker was {how}" if code < 0 else f"its worker {how}") for job in program]
        finally:
            self.pipe.close()


def run(programs: Sequence[list[Job]], options: Options, progress: Progress) -> list[list[Outcome]]:
    """Trains the programs, options.at_once of them at a time; the outcomes of each, in its jobs' order."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rnn_lab.app", "rnn_lab.executors.processes"])
    watch, outcomes = Watch(programs, progress), dict[int, list[Outcome]]()
    waiting, working = list(range(len(programs)))[::-1], dict[Connection, Worker]()
    try:
        while waiting or working:
            while waiting and len(working) < options.at_once:
                index = waiting.pop()
                here, there = context.Pipe(duplex=False)
                arguments = (there, programs[index], options.checkpoint_seconds)
                process = context.Process(target=_work, args=arguments, daemon=True)
                try:
                    process.start()
                except (EOFError, OSError) as error:  # it was killed before it had read this, or its server was
                    outcomes[index] = [recorded(job, f"its worker did not start ({error})") for job in programs[index]]
                    watch.ended(index, outcomes[index])
                    here.close()
                else:
                    working[here] = Worker(process, index, here)
                finally:
                    there.close()
            for pipe in wait(list(working), timeout=0.5):
                worker = working.pop(pipe)  # type: ignore[arg-type]
                outcomes[worker.index] = worker.outcomes(programs[worker.index])
                watch.ended(worker.index, outcomes[worker.index])
            watch.look(worker.index for worker in working.values())
    finally:
        _end([worker.process for worker in working.values()])
    return [outcomes[index] for index in range(len(programs))]


def _work(pipe: Connection, program: list[Job], checkpoint_seconds: float) -> None:
    """All that a worker does."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches every process of the terminal; the driver says what is to be done
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    threading.Thread(target=_follow_the_driver, daemon=True).start()
    pipe.send(train(program, checkpoint_seconds))


def _follow_the_driver() -> None:
    """Ends this worker, saved, when the driver is gone without a word."""
    driver = multiprocessing.parent_process()
    assert driver
    wait([driver.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _end(processes: Iterable[BaseProcess]) -> None:
    """Lets workers save their runs and end; whoever does not is killed."""
    processes, until = list(processes), time.monotonic() + PATIENCE
    try:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.join()
