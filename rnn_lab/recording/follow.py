"""Reads a run's directory while it is written: each look yields the rows that are whole since the last one."""

import fcntl
import os
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from rnn_lab.recording import Row, checked
from rnn_lab.recording.store import Locked, read_run


class Follower:
    """The rows of one run from the first on. One follower a run: it holds a lock on steps.jsonl until it is closed.

    Raises Locked where another process follows, and OSError or ValueError where there is no run.
    """

    def __init__(self, directory: Path):
        record = read_run(directory)
        if record is None:
            raise ValueError(f"{directory}: no run here")
        self.directory = directory
        self._record, self._seen = record, (0, 0)
        self._series, self._layers, self._T = record["series"], record["layers"], record["T"]
        self._steps = open(directory / "steps.jsonl", "r+b", buffering=0)  # noqa: SIM115  (r+: NFS locks no others)
        try:
            fcntl.flock(self._steps, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._blocks = open(directory / "timesteps.f32", "rb")  # noqa: SIM115
        except BlockingIOError as error:
            self._steps.close()
            raise Locked(f"{directory}: another process mirrors this run") from error
        self._lines: deque[bytes] = deque()
        self._torn = b""

    def record(self) -> dict[str, Any]:
        """run.json as it is now. No row comes after a final status: look at this first, then at the rows."""
        stat = (self.directory / "run.json").stat()
        if (
            stat.st_ino,
            stat.st_mtime_ns,
        ) != self._seen:  # clocks are coarse, but a file that is replaced has another inode
            self._record, self._seen = read_run(self.directory) or self._record, (stat.st_ino, stat.st_mtime_ns)
        return dict(self._record)

    def rows(self, most: int) -> list[Row]:
        """The next rows, at most so many; none where the writer has written no more. Raises ValueError on foreign bytes."""
        while len(self._lines) < most and (chunk := os.read(self._steps.fileno(), 1 << 16)):
            *whole, self._torn = (self._torn + chunk).split(b"\n")
            self._lines.extend(whole)
        return [self._row(self._lines.popleft()) for _ in range(min(most, len(self._lines)))]

    def _row(self, line: bytes) -> Row:
        scalars = checked.parse(line)
        step, T = scalars.pop("step"), scalars.pop("T", self._T)
        shape = (len(self._series), self._layers, T)
        content = self._blocks.read(4 * shape[0] * shape[1] * T)
        try:
            checked.check_row(scalars, line + b"\n", content, needed=False)
        except checked.Damaged as error:
            raise ValueError(f"{self.directory}: the row of step {step} is damaged ({error})") from error
        block = np.frombuffer(content, "<f4").reshape(shape)
        return Row(step, scalars, dict(zip(self._series, block, strict=True)))

    def rewind(self) -> None:
        """Back to the first row."""
        self._steps.seek(0)
        self._blocks.seek(0)
        self._lines.clear()
        self._torn = b""

    def close(self) -> None:
        """Lets go of the run."""
        self._steps.close()
        self._blocks.close()
