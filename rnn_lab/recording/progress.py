"""How far a sweep is, on one line of the terminal; every few seconds a line where there is no terminal."""

import sys
import time


class Progress:
    """Counts updates over all runs of a sweep and shows the share done, the rate and the time left."""

    def __init__(self, runs: int, updates: int):
        self.runs, self.total, self.done, self.diverged = runs, updates, 0, 0
        self._began = self._shown = time.monotonic()
        self._every = 0.2 if sys.stderr.isatty() else 10.0

    def advance(self, updates: int, diverged: int = 0) -> None:
        """So many more updates are done, over all runs; so many runs have diverged."""
        self.done, self.diverged = min(self.total, self.done + updates), self.diverged + diverged
        if time.monotonic() - self._shown >= self._every:
            self._show("\r" if sys.stderr.isatty() else "", "" if sys.stderr.isatty() else "\n")

    def finish(self) -> None:
        """Ends the line."""
        if sys.stderr.isatty():
            self._show("\r", "\n")

    def _show(self, start: str, end: str) -> None:
        self._shown = time.monotonic()
        seconds = self._shown - self._began
        rate = self.done / seconds if seconds > 0 else 0.0
        left = f"{(self.total - self.done) / rate:.0f} s left" if rate > 0 else ""
        share = 100 * self.done // max(self.total, 1)
        line = f"training {self.runs} runs: {share:3d} %  {rate:,.0f} updates/s  {self.diverged} diverged  {left}"
        sys.stderr.write(f"{start}{line:<78}{end}")
        sys.stderr.flush()


class Silent(Progress):
    """Shows nothing."""

    def advance(self, updates: int, diverged: int = 0) -> None:
        pass

    def finish(self) -> None:
        pass
