"""Signals that end a process wait for the end of the update at hand, so that a run can be saved whole."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)  # Slurm's end, Ctrl-C, submitit's preemption and time limit


@contextmanager
def deferred() -> Iterator[list[int]]:
    """Inside, the first of SIGNALS is only noted, in the list that is yielded; at the end it does what it did before.

    A second one is not held back. Ignored signals stay ignored; outside the main thread nothing can be deferred.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    handlers = {number: h for number, h in handlers.items() if h not in (signal.SIG_IGN, None)}  # None: set from C

    def note(number: int, _: object) -> None:
        noted.append(number)
        if len(noted) > 1:
            restore()
            signal.raise_signal(number)

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    for number in handlers:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        restore()
        if len(noted) == 1:
            signal.raise_signal(noted[0])
