"""Which runs are to be recorded, which are being recorded, and what happens when that goes wrong.

A run whose trainer is gone is recorded to its last row. A wandb-core that was killed is started again, and its runs are recorded anew.
"""

import contextlib
import os
import shlex
import threading
from pathlib import Path
from typing import NamedTuple, TextIO

from rnn_lab.recording.store import Locked
from rnn_lab.recording.wandb.client import Recording

RESTARTS = 3


class Order(NamedTuple):
    """A run to record: its directory, and how (see `rnn_lab.recording.wandb.mirror`)."""

    directory: str
    mode: str
    project: str
    series: str


class Closing(threading.Thread):
    """The end of a wandb run: it waits for the server, so it has a thread."""

    def __init__(self, recording: Recording):
        super().__init__(daemon=True)
        self.recording = recording
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.recording.close()
        except Exception as error:
            self.error = error


class Mirror:
    """All runs that were ordered: waiting, open, closing. Raises nothing: what goes wrong is told once, in a line."""

    def __init__(self, warnings: TextIO, room: int):
        self.waiting: list[Order] = []
        self.open: dict[Order, Recording] = {}
        self.closing: dict[Order, Closing] = {}
        self._warnings, self._warned = warnings, set[str]()
        self._room = room  # how many runs can be open at once
        self._restarts = 0  # of wandb-core
        self._offline = False  # the server could not be reached: later runs are recorded offline
        self._spoiled = False  # wandb-core still holds the id of a run that it could not open

    def warn(self, kind: str, text: str) -> None:
        """Tells the trainer, if it still lives, a line; once of each kind."""
        if kind not in self._warned:
            self._warned.add(kind)
            with contextlib.suppress(OSError):
                print("wandb:", *text.split(), file=self._warnings, flush=True)

    def unfinished(self) -> list[Order]:
        return [*self.open, *self.closing, *self.waiting]

    def order(self, order: Order) -> None:
        """A run begins. If it began before (its program broke, and it is trained alone now), that recording is given up."""
        for old in self.unfinished():
            if old.directory == order.directory:
                self._give_up(old)
        self.waiting.append(order)

    def advance(self, trainer_gone: bool) -> bool:
        """A look at every run; whether rows were recorded."""
        self._open_waiting()
        busy = False
        for order, recording in list(self.open.items()):
            if order not in self.open:  # wandb-core died under another one
                continue
            try:
                rows = recording.advance(hurry=trainer_gone)
                busy |= rows > 0
                if rows == 0 and (trainer_gone or recording.ended):
                    recording.conclude()
                    self.closing[order] = Closing(self.open.pop(order))
            except Exception as error:
                self._failed(order, "stopped recording", error)
        for order, closing in list(self.closing.items()):
            if not closing.is_alive() and order in self.closing:
                if closing.error:
                    self._failed(order, "could not finish", closing.error)
                else:
                    del self.closing[order]
        return busy

    def _open_waiting(self) -> None:
        if self._spoiled and not (self.open or self.closing):
            teardown()
            self._spoiled = False
        for order in [] if self._spoiled else list(self.waiting):
            if len(self.open) + len(self.closing) >= self._room:
                text = f"file descriptors (`ulimit -Hn`) for {self._room} runs at once; the others follow when those have ended"
                return self.warn("descriptors", text)
            mode = "offline" if self._offline else order.mode
            try:
                self.open[order] = Recording(Path(order.directory), mode, order.project, order.series)
                self.waiting.remove(order)
            except Locked:  # by the mirror of a killed trainer, which ends soon
                continue
            except Exception as error:
                if mode == "offline" or _core_died(error):
                    return self._failed(order, "could not start", error)
                self._offline = self._spoiled = True
                return self.warn("online", f"no connection ({_describe(error)}); recording offline instead")

    def _failed(self, order: Order, what: str, error: Exception) -> None:
        if _core_died(error) and self._restarts < RESTARTS:
            self._restarts += 1
            self.warn("core", f"wandb-core died ({_describe(error)}); recording its runs anew from our own store")
            self.waiting = self.unfinished()
            for recording in [*self.open.values(), *(closing.recording for closing in self.closing.values())]:
                recording.release()
            self.open, self.closing = {}, {}
            return teardown()
        self.warn(type(error).__name__, f"{what} ({_describe(error)}); {remedy([order])}")
        self._give_up(order)

    def _give_up(self, order: Order) -> None:
        if order in self.waiting:
            self.waiting.remove(order)
        closing = self.closing.pop(order, None)
        recording = closing.recording if closing else self.open.pop(order, None)
        if recording:
            recording.abandon()


def _core_died(error: Exception) -> bool:
    return isinstance(error, ConnectionError) or type(error).__name__ == "MailboxClosedError"


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200] if str(error) else type(error).__name__


def remedy(orders: list[Order]) -> str:
    """What to do about runs that are not recorded."""
    sweeps = dict.fromkeys(os.path.relpath(Path(order.directory).parent) for order in orders)
    return f"our own store has every row: python experiments/wandb_rebuild.py {shlex.join(sweeps)}"


def teardown() -> None:
    """Lets go of a wandb-core that died or has no runs: the next run starts a new one."""
    import wandb

    with contextlib.suppress(Exception):
        wandb.teardown()
