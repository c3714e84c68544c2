"""Our own files, the source of truth: one directory a run, complete up to the last row whatever kills the process.

    run.json        status, config, provenance; replaced atomically
    steps.jsonl     one line a row: step and scalars (Python's json: NaN, Infinity); "T" where the row's true length is not run.json's T
    timesteps.f32   one block a row: (series, layer, t) float32, little-endian; t = 1..T of the row
    contributions/  <step>.npy: the lecture's double sum at a row that measured it, see probes.contributions; each replaced atomically

A row's block is written before its line, both unbuffered: the line says that the row is whole. The writer holds a lock on the directory
itself while it lives, so a run that says "running" and is not locked was killed.
"""

import fcntl
import json
import os
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from rnn_lab.recording import Row, RunInfo

FINISHED = ("completed", "diverged")  # a divergence is a result, too


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


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replaces a file atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1))
    os.replace(temporary, path)


def write_array(path: Path, array: np.ndarray) -> None:
    """Replaces a .npy file atomically; its directory is made."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    with open(temporary, "wb") as file:
        np.save(file, array)
    os.replace(temporary, path)


def read_run(directory: Path) -> dict[str, Any] | None:
    """run.json, or None if there is none that can be read: then the run has not begun as far as anyone can tell."""
    try:
        content = json.loads((directory / "run.json").read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def finished_run(directory: Path) -> dict[str, Any] | None:
    """run.json of a run that has ended with a result; None if it has to be trained."""
    record = read_run(directory)
    return record if record is not None and record.get("status") in FINISHED else None


class StoreSink:
    """Writes one run's directory. `describe`: what else run.json holds (baseline, series, layers, T, command, versions, git, ...)."""

    def __init__(self, info: RunInfo, describe: dict[str, Any]):
        self._directory = info.directory
        self._lock = lock(info.directory)
        self._series: list[str] = describe["series"]
        self._T: int = describe["T"]
        self._began = time.monotonic()
        self._cpu_began = time.process_time()
        self._content: dict[str, Any] = {
            "format": 1,
            "run_id": info.run_id,
            "sweep": info.sweep,
            "name": info.name,
            "status": "running",
            "diverged_at": None,
            "error": None,
            "config": info.config,
            "started": _now(),
            "finished": None,
            "seconds": None,
            "cpu_seconds": None,  # of the whole process: as `seconds`, shared by the runs of a program
            **describe,
        }
        shutil.rmtree(info.directory / "contributions", ignore_errors=True)
        self._steps = open(info.directory / "steps.jsonl", "wb", buffering=0)  # noqa: SIM115
        self._timesteps = open(info.directory / "timesteps.f32", "wb", buffering=0)  # noqa: SIM115
        write_json(self._directory / "run.json", self._content)

    def log(self, row: Row) -> None:
        block = np.stack([row.timesteps[name] for name in self._series]).astype("<f4")
        T = block.shape[-1]
        own_length = {} if T == self._T else {"T": T}
        self._timesteps.write(block.tobytes())
        if row.contributions is not None:
            write_array(self._directory / "contributions" / f"{row.step}.npy", row.contributions.astype("<f4"))
        self._steps.write((json.dumps({"step": row.step, **own_length, **row.scalars}) + "\n").encode())

    def finish(
        self, status: str, summary: dict[str, float], diverged_at: int | None = None, error: str | None = None
    ) -> None:
        """Says how the run ended and lets go of its directory."""
        self._steps.close()
        self._timesteps.close()
        self._content |= {"status": status, "diverged_at": diverged_at, "error": error, "summary": summary}
        self._content |= {"finished": _now(), "seconds": round(time.monotonic() - self._began, 3)}
        self._content["cpu_seconds"] = round(time.process_time() - self._cpu_began, 3)
        try:
            write_json(self._directory / "run.json", self._content)
        finally:
            os.close(self._lock)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
