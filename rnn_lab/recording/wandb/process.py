"""The process that records runs in wandb, started by the trainer: orders (a JSON line a run) come in, warnings (a line each) go out.

    python -m rnn_lab.recording.wandb.process PATIENCE

It ends when its orders have ended and all runs are recorded, or PATIENCE seconds after the former, with a warning that says what is left.
"""

import contextlib
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path

from rnn_lab.recording.descriptors import room
from rnn_lab.recording.wandb.client import load
from rnn_lab.recording.wandb.mirror import Mirror, Order, remedy, teardown

TICK, LAST_TICK = 0.2, 0.02  # seconds between two looks at the runs while the trainer lives, and when it has ended
DESCRIPTORS = (
    4  # a run: wandb-core holds three and, without them, loses rows and says nothing; this process holds three, too
)


def _give_out(mirror: Mirror, orders: "queue.SimpleQueue[str | None]", patience: float) -> None:
    """When the time is up: says what is left, and ends everything, whatever hangs."""
    time.sleep(patience)
    left = mirror.unfinished()
    with contextlib.suppress(queue.Empty):
        while line := orders.get_nowait():  # nobody has had the time to look at these
            left.append(Order(**json.loads(line)))
    if left:
        text = f"{len(left)} runs not recorded or not sent {patience:g} s after the end"
        mirror.warn("unfinished", f"{text}; {remedy(left)}")
    for children in Path("/proc/self/task").glob("*/children"):
        for core in children.read_text().split():
            os.kill(int(core), signal.SIGKILL)  # wandb-core may hang
    os._exit(0)


def main() -> None:
    """Mirrors until it is told to end or, with nobody left to tell it, until it has nothing more to do."""
    patience = float(sys.argv[1])
    warnings = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what wandb prints is no warning of ours
    for ending in (
        signal.SIGTERM,
        signal.SIGHUP,
    ):  # a batch system sends it to everybody; the trainer's end is what counts
        signal.signal(ending, signal.SIG_IGN)
    os.nice(10)  # training goes first
    logging.disable(logging.INFO)  # of wandb's own, each line of which it would offer to the log of every open run
    sys.modules["wandb.sdk.launch"] = None  # type: ignore[assignment]  # half a second of imports, for queued jobs
    mirror = Mirror(warnings, room(DESCRIPTORS))
    orders: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            orders.put(line)
        orders.put(None)
        if patience < threading.TIMEOUT_MAX:
            _give_out(mirror, orders, patience)

    threading.Thread(target=read, daemon=True).start()
    load()
    trainer_gone, busy = False, True
    while not trainer_gone or mirror.unfinished():
        with contextlib.suppress(queue.Empty):
            while (line := orders.get(timeout=0 if busy else LAST_TICK if trainer_gone else TICK)) is not None:
                mirror.order(Order(**json.loads(line)))
            trainer_gone = True
        busy = mirror.advance(trainer_gone)
    teardown()


if __name__ == "__main__":
    main()
