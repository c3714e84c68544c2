"""How far a sweep is, on one line of the terminal; every few seconds a line where there is no terminal."""

import sys
import time
from collections.abc import Collection, Iterator
from typing import TypeVar

Item = TypeVar("Item")
PATIENCE = 2.0  # seconds that something may take without a word


class Progress:
    """Counts updates over all runs of a sweep and shows the share done, the rate and the time left."""

    def __init__(self, runs: int, updates: int):
        self.runs, self.total, self.done, self.diverged = runs, updates, 0, 0
        self._began = self._shown = time.monotonic()
        self._every = _every()

    def advance(self, updates: int, diverged: int = 0) -> None:
        """So many more updates are done, over all runs; so many runs have diverged."""
        self.done, self.diverged = min(self.total, self.done + updates), self.diverged + diverged
        if time.monotonic() - self._shown >= self._every:
            self._show()

    def finish(self) -> None:
        """Ends the line."""
        if sys.stderr.isatty():
            self._show(last=True)

    def _show(self, last: bool = False) -> None:
        self._shown = time.monotonic()
        seconds = self._shown - self._began
        rate = self.done / seconds if seconds > 0 else 0.0
        left = f"{(self.total - self.done) / rate:.0f} s left" if rate > 0 else ""
        share = 100 * self.done // max(self.total, 1)
        _say(f"training {self.runs} runs: {share:3d} %  {rate:,.0f} updates/s  {self.diverged} diverged  {left}", last)


class Silent(Progress):
    """Shows nothing."""

    def advance(self, updates: int, diverged: int = 0) -> None:
        pass

    def finish(self) -> None:
        pass


def told(items: Collection[Item], doing: str) -> Iterator[Item]:
    """The items; says how many are done where that takes long. doing: "composing", say."""
    shown, said, every = time.monotonic(), False, max(PATIENCE, _every())
    for done, item in enumerate(items):
        if time.monotonic() - shown >= every:
            shown, said, every = time.monotonic(), True, _every()
            _say(f"{doing}: {done:,} of {len(items):,}", last=False)
        yield item
    if said and sys.stderr.isatty():
        _say(f"{doing}: {len(items):,} of {len(items):,}", last=True)


def _every() -> float:
    """Seconds between two words."""
    return 0.2 if sys.stderr.isatty() else 10.0


def _say(line: str, last: bool) -> None:
    """In the place of the line before, on a terminal."""
    start, end = ("\r", "\n" if last else "") if sys.stderr.isatty() else ("", "\n")
    sys.stderr.write(f"{start}{line:<78}{end}")
    sys.stderr.flush()
