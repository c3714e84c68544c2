"""Our own files, the source of truth: one directory a run, complete up to the last row whatever kills the process.

    run.json        status, config, provenance; replaced atomically
    steps.jsonl     one line a row: step and scalars (Python's json: NaN, Infinity); "T" where the row's true length is not run.json's T;
                    its checksum
    timesteps.f32   one block a row: (series, layer, t) float32, little-endian; t = 1..T of the row
    checkpoint.pt   where a run that was killed goes on; gone when the run has ended
    contributions/  <step>.npy: the lecture's double sum at a row that measured it, see probes.contributions; each replaced atomically

A row's block is written before its line, both unbuffered: the line says that the row is whole. The writer holds a lock on the directory
itself while it lives, so a run that says "running" and is not locked was killed. A run that goes on keeps every row: those that it
measures again are not written twice. All of them hold checksums, see `checked`.
"""

import errno
import fcntl
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from rnn_lab.recording import Row, RunInfo, checked

log = logging.getLogger("rnn_lab")

FINISHED = ("completed", "diverged")  # a divergence is a result, too
CHECKPOINT = "checkpoint.pt"
DESCRIPTORS = 3  # that a run holds while it is trained: its directory's lock and two files
SHAPE = ("series", "layers", "T")  # what of run.json says how large a row's block is


class Locked(RuntimeError):
    """Another process works in this directory."""


def lock(directory: Path) -> int:
    """An exclusive lock on a directory, held until the returned descriptor is closed or the process ends. Raises Locked.

    Readers probe the lock for an instant, hence a few tries.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    for attempt in range(5):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            time.sleep(0.02 * (attempt + 1))
    os.close(descriptor)
    raise Locked(f"{directory}: another process is working here; wait for it or choose another sweep=NAME")


def is_locked(directory: Path) -> bool:
    """Whether somebody works in a directory. On a file system without locks: True, run.json is then all there is to know."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)  # releases
    return False


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replaces a file atomically. Raises OSError, which names the file."""
    _replace(path, checked.dumps(content).encode())


def write_array(path: Path, array: np.ndarray) -> None:
    """Replaces a .npy file atomically; its directory is made. Raises OSError, which names the file."""
    path.parent.mkdir(exist_ok=True)
    _replace(path, checked.array_bytes(array))


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}")  # the same one after a kill: nothing is left lying about
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:  # a full disk does not say whose file it had no room for
        raise type(error)(error.errno, error.strerror, str(path)) from None


def read_run(directory: Path) -> dict[str, Any] | None:
    """run.json, or None if there is none that can be read: then the run has not begun as far as anyone can tell."""
    try:
        content = checked.loads((directory / "run.json").read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def finished_run(directory: Path) -> dict[str, Any] | None:
    """run.json of a run that has ended with a result; None if it has to be trained."""
    record = read_run(directory)
    return record if record is not None and record.get("status") in FINISHED else None


@dataclass(frozen=True)
class Recorded:
    """One whole row of the files: its step and true length, its line, and where line and block begin."""

    step: int
    T: int
    line: bytes
    line_at: int
    block_at: int


def whole_rows(directory: Path, shape: dict[str, Any]) -> list[Recorded]:
    """The rows that are there as they were written, up to the first that is torn or damaged. shape: series, layers and T, as run.json
    has them. Cost: that of reading the files.
    """
    lines = directory / "steps.jsonl"
    if not (lines.exists() and (directory / "timesteps.f32").exists()):
        return []
    found: list[Recorded] = []
    line_at, block_at, first = 0, 0, checked_from(read_run(directory))
    with open(directory / "timesteps.f32", "rb") as blocks:
        for line in lines.read_bytes().splitlines(keepends=True):
            try:
                row = checked.parse(line)
                step, T = int(row["step"]), int(row.get("T", shape["T"]))
                size = 4 * len(shape["series"]) * shape["layers"] * T
                block = blocks.read(size)
                checked.check_row(row, line, block, needed=len(found) >= first)
                if any(name.startswith("contributions/") for name in row):
                    checked.array(contributions_file(directory, step).read_bytes())
            except (ValueError, LookupError, TypeError, AttributeError, FileNotFoundError):
                break
            if not line.endswith(b"\n") or len(block) < size:
                break
            found.append(Recorded(step, T, line, line_at, block_at))
            line_at, block_at = line_at + len(line), block_at + size
    return found


def checked_from(record: dict[str, Any] | None) -> float:
    """The row from which on a run's rows must have checksums; infinite for one that an earlier version recorded."""
    return 0 if record is None else record.get("checked_from", math.inf)


def contributions_file(directory: Path, step: int) -> Path:
    """Where a row that measured the double sum has it; such a row has scalars "contributions/..."."""
    return directory / "contributions" / f"{step}.npy"


def reopen(directory: Path) -> None:
    """A finished run whose files are damaged counts as killed: the next command keeps what is whole and makes the rest anew."""
    if record := read_run(directory):
        write_json(directory / "run.json", record | {"status": "killed", "goes_on": True})


class StoreSink:
    """Writes one run's directory. `describe`: what else run.json holds (baseline, series, layers, T, command, versions, git, ...).

    step: where the run starts.  since: what `progress` said there, {} if there was no checkpoint; None: nothing recorded is kept.
    Raises OSError, after having noted in run.json, if it can, that the run failed; and Locked.
    """

    def __init__(self, info: RunInfo, describe: dict[str, Any], step: int = 0, since: dict[str, Any] | None = None):
        before = since or {}
        self._directory = info.directory
        self._lock = lock(info.directory)
        self._shape: dict[str, Any] = {key: describe[key] for key in SHAPE}
        self._began = time.monotonic() - before.get("seconds", 0.0)
        self._cpu_began = time.process_time() - before.get("cpu_seconds", 0.0)
        self._content: dict[str, Any] = {
            "format": 1,
            "run_id": info.run_id,
            "sweep": info.sweep,
            "name": info.name,
            "tags": info.tags,
            "status": "running",
            "diverged_at": None,
            "error": None,
            "config": info.config,
            "started": before.get("started", _now()),
            "finished": None,
            "goes_on": True,  # whether the same command starts from the checkpoint and keeps the rows
            "rows": None,  # how many there are, once it has ended
            "earlier_git": _distinct([*before.get("earlier_git", []), before.get("git"), describe.get("git")])[:-1],
            "resumed": [*before.get("resumed", []), *([step] if step else [])],  # the steps that it went on from
            "seconds": None,  # of all that led to the result, whatever was killed in between
            "cpu_seconds": None,  # of the whole process: as `seconds`, shared by the runs of a program
            **describe,
        }
        try:
            rows = [] if since is None else whole_rows(info.directory, self._shape)
            if since is None:
                shutil.rmtree(info.directory / "contributions", ignore_errors=True)
            unchecked = next((n for n, row in enumerate(rows) if checked.bare(row.line) != row.line), len(rows))
            self._content["checked_from"] = unchecked
            self._before = [row for row in rows if row.step < step]
            self._again = [row for row in rows if row.step >= step]  # will be measured again
            self._rows = len(self._before)
            self._steps = FileIO(info.directory / "steps.jsonl", "a")
            self._timesteps = FileIO(info.directory / "timesteps.f32", "a")
            self._cut(rows[-1] if rows else None)
            write_json(self._directory / "run.json", self._content)
        except OSError as error:
            with suppress(OSError):
                self._end("failed", f"{type(error).__name__}: {error}")
            raise

    def _cut(self, last: Recorded | None) -> None:
        """Leaves nothing behind this row."""
        self._steps.truncate(last.line_at + len(last.line) if last else 0)
        self._timesteps.truncate(last.block_at + self._block_size(last.T) if last else 0)

    def _block_size(self, T: int) -> int:
        return 4 * len(self._shape["series"]) * self._shape["layers"] * T

    def recorded(self) -> Iterator[Row]:
        """The rows that were recorded before the step at which the run goes on."""
        series, layers = self._shape["series"], self._shape["layers"]
        with open(self._directory / "timesteps.f32", "rb") as blocks:
            for row in self._before:
                scalars = {
                    key: value for key, value in json.loads(row.line).items() if key not in ("step", "T", checked.KEY)
                }
                blocks.seek(row.block_at)
                block = np.frombuffer(blocks.read(self._block_size(row.T)), "<f4").reshape(-1, layers, row.T)
                yield Row(row.step, scalars, dict(zip(series, block, strict=True)))

    def log(self, row: Row) -> None:
        """Writes a row, unless it is there already. From a row on that differs from what was recorded, all is recorded anew."""
        block = np.stack([row.timesteps[name] for name in self._shape["series"]]).astype("<f4")
        length = block.shape[-1]
        own_length = {} if length == self._shape["T"] else {"T": length}
        line = checked.line({"step": row.step, **own_length, **row.scalars}, block.tobytes())
        self._rows += 1
        if self._again:
            there = self._again.pop(0)
            if there.line in (line, checked.bare(line)):
                return
            log.warning("%s: differs from step %d on from what was recorded there; replaced", self._directory, row.step)
            self._steps.truncate(there.line_at)
            self._timesteps.truncate(there.block_at)
            self._again = []
        _write(self._timesteps, block.tobytes())
        if row.contributions is not None:
            write_array(contributions_file(self._directory, row.step), row.contributions.astype("<f4"))
        _write(self._steps, line)

    def progress(self) -> dict[str, Any]:
        """What a checkpoint holds of the record, so that it can go on."""
        kept = {key: self._content.get(key) for key in ("started", "resumed", "git", "earlier_git")}
        return kept | {"rows": self._rows, **self._seconds()}

    def _seconds(self) -> dict[str, float]:
        return {
            "seconds": round(time.monotonic() - self._began, 3),
            "cpu_seconds": round(time.process_time() - self._cpu_began, 3),
        }

    def finish(
        self,
        status: str,
        summary: dict[str, float],
        diverged_at: int | None = None,
        error: str | None = None,
        goes_on: bool = False,
    ) -> None:
        """Says how the run ended and lets go of its directory. Only a run that goes on keeps its checkpoint: one that was killed, or
        that failed for no reason of its own.
        """
        self._steps.close()
        self._timesteps.close()
        self._content["goes_on"] = goes_on or status == "killed"
        self._content |= {"diverged_at": diverged_at, "summary": summary, "rows": self._rows}
        self._end(status, error)

    def _end(self, status: str, error: str | None) -> None:
        self._content |= {"status": status, "error": error, "finished": _now(), **self._seconds()}
        try:
            write_json(self._directory / "run.json", self._content)
            if not self._content["goes_on"]:
                discard_checkpoint(self._directory)
        finally:
            os.close(self._lock)


def _write(file: FileIO, content: bytes) -> None:
    """All of it, or OSError: a disk that has room for a part takes that part and says so only in a number."""
    while written := file.write(content):
        if written == len(content):
            return
        content = content[written:]
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)


def discard_checkpoint(directory: Path) -> None:
    """A run that has ended needs none, nor one that was being written when somebody killed it."""
    for name in (CHECKPOINT, f".{CHECKPOINT}"):
        (directory / name).unlink(missing_ok=True)


def _distinct(origins: list[dict[str, Any] | None]) -> list[dict[str, Any]]:
    """Those that there are, the last one last, each once."""
    kept = [origin for origin in reversed(origins) if origin is not None]
    return [origin for n, origin in enumerate(kept) if origin not in kept[:n]][::-1]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
