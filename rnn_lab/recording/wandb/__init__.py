"""Weights & Biases as a mirror of our own store: one wandb run a run, all runs of a sweep in the folder <sweep>/wandb.

Training never talks to wandb. A process of its own (process.py) follows the run directories that it is told of and hands their rows to
wandb. So nothing that happens there (a dead server, a wandb-core that hangs or is killed, a full disk) slows or stops training, no row
waits in memory, a killed trainer's rows arrive all the same, and a run is repaired by the code that recorded it: from its first row on.

Here is the trainer's side. Only the mirror imports `wandb`.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from multiprocessing import util
from pathlib import Path
from queue import SimpleQueue

from rnn_lab.recording.store import Locked, lock, read_run

logger = logging.getLogger("rnn_lab")

PATIENCE = 20.0  # seconds that the mirror may take for what is left when the trainer ends
GRACE = 5.0  # more until it is killed, should it hang itself
STORE = "our own store has every row, and can rebuild the rest"


class Mirror:
    """The process. Nothing here blocks, not even a full pipe, and nothing raises but the start (OSError)."""

    def __init__(self, patience: float):
        path = os.pathsep.join(filter(None, (str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rnn_lab.recording.wandb.process", str(patience)],
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what wandb prints; what matters of it comes as a warning
            process_group=0,  # Ctrl-C is for the trainer: its last rows are still to be recorded
        )
        self._given_up = False
        self._orders: SimpleQueue[str | None] = SimpleQueue()
        threading.Thread(target=self._order, name="wandb-orders", daemon=True).start()
        self._listener = threading.Thread(target=self._listen, name="wandb-warnings", daemon=True)
        self._listener.start()

    def follow(self, directory: Path, mode: str, project: str, series: str) -> None:
        order = {"directory": str(directory.resolve()), "mode": mode, "project": project, "series": series}
        self._orders.put(json.dumps(order))

    def close(self, timeout: float | None) -> None:
        """Waits until everything is recorded; kills the process after `timeout` seconds."""
        self._orders.put(None)
        self._listener.join(timeout)
        if self._listener.is_alive():
            self._given_up = True
            logger.warning("wandb: its process was killed, since it hung; %s", STORE)
            self._process.send_signal(signal.SIGKILL)
            self._listener.join(1.0)

    def _order(self) -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            while (order := self._orders.get()) is not None:
                pipe.write(f"{order}\n".encode())
                pipe.flush()

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            logger.warning("%s", line.decode().rstrip())
        status = self._process.wait()
        if status and not self._given_up:
            logger.warning("wandb: its process %s; %s", "was killed" if status < 0 else f"failed ({status})", STORE)


_mirror: Mirror | None = None


def prepare() -> None:
    """Starts the process before it is needed: what it imports first takes as long as what training imports first. Raises nothing."""
    global _mirror
    if _mirror is None:
        try:
            _mirror = Mirror(PATIENCE)
            util.Finalize(None, close, exitpriority=0)  # at the end of any process, multiprocessing's workers too
        except OSError as error:
            logger.warning("wandb: could not start (%s); our own store has every row", error)


def mirror(directory: Path, mode: str, project: str, series: str) -> None:
    """Has a run recorded whose store is open in `directory`, from its first row to its end. Returns at once and raises nothing.

    mode: offline (files, to be synced later), online (offline where the server can't be reached), disabled.
    series: whose norms through time are drawn and tabled, "dE_dh" or "all". An earlier recording of this run is replaced.
    """
    if mode == "disabled":
        return
    prepare()
    if _mirror is not None:
        _mirror.follow(directory, mode, project, series)


def close() -> None:
    """Waits until all runs are recorded, PATIENCE + GRACE seconds at most; a warning says what is not."""
    global _mirror
    ended, _mirror = _mirror, None
    if ended is not None:
        ended.close(PATIENCE + GRACE)


def rebuild(directories: Iterable[Path]) -> None:
    """Records runs anew from our store, as offline wandb runs, however long it takes; what was recorded before is replaced.

    A run that is being trained or mirrored at the moment is told and left alone.
    """
    own = Mirror(patience=float("inf"))
    for directory in directories:
        try:
            os.close(lock(directory))
            tracker = (read_run(directory) or {}).get("config", {}).get("tracker", {})
            own.follow(directory, "offline", tracker.get("project", "rnn_lab"), tracker.get("series", "dE_dh"))
        except Locked as error:
            logger.warning("wandb: %s", error)
    own.close(None)
