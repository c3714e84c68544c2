"""How far a sweep is, read from its files alone: whoever trains it, here or elsewhere, is not asked."""

import re
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnn_lab.recording import checked
from rnn_lab.recording.store import is_locked, read_run

TAIL = 16_384  # bytes of steps.jsonl that surely hold its last line


@dataclass(frozen=True)
class Status:
    """A sweep at one moment.

    runs: how many in each state, one of results.STATUSES or "waiting".  done, updates: summed over the runs.  rate: updates a second of the
    runs that train, since they began.  failures: directory and error.  when: the clock, in seconds.  resumed, dirty: how many runs went on
    from a checkpoint, and how many were trained by code with uncommitted changes.
    """

    runs: Counter[str]
    done: int
    updates: int
    rate: float
    failures: list[tuple[Path, str]]
    when: float
    resumed: int = 0
    dirty: int = 0

    @property
    def alive(self) -> bool:
        return self.runs["running"] > 0 or self.runs["waiting"] > 0


class NoSweep(ValueError):
    """A path that holds no runs; the message is one line that names it."""


def status(sweep: Path) -> Status:
    """Cost: about 0.2 ms a run."""
    if not sweep.is_dir():
        raise NoSweep(f"{sweep}: no such directory")
    directories = [sweep] if _is_run(sweep) else [path for path in sorted(sweep.iterdir()) if _is_run(path)]
    if not directories:
        raise NoSweep(f"{sweep}: not a sweep (expected run directories in it)")
    launching = is_locked(sweep)
    states, failures = Counter[str](), []
    done, updates, resumed, dirty, rate, now = 0, 0, 0, 0, 0.0, time.time()
    for directory in directories:
        record = read_run(directory)
        state = _state(directory, record, launching)
        states[state] += 1
        resumed += bool((record or {}).get("resumed"))
        dirty += any(origin.get("dirty") for origin in _origins(record or {}))
        own = _updates(directory, record)
        if state == "failed" and record:
            failures.append((directory, record.get("error")))
        step = own if state in ("completed", "diverged") else last_step(directory) if record else 0
        done, updates = done + step, updates + own
        if state == "running" and record:
            since = max(
                now - (directory / "run.json").stat().st_mtime, 1e-3
            )  # written when the run began or was resumed
            rate += (step - (record.get("resumed") or [0])[-1]) / since
    return Status(states, done, updates, rate, failures, now, resumed, dirty)


def _is_run(path: Path) -> bool:
    return (path / "run.json").is_file() or (path / ".hydra").is_dir()


def _origins(record: dict[str, Any]) -> list[dict[str, Any]]:
    earlier = record.get("earlier_git")
    return [
        git for git in (record.get("git"), *(earlier if isinstance(earlier, list) else [])) if isinstance(git, dict)
    ]


def _state(directory: Path, record: dict[str, Any] | None, launching: bool) -> str:
    """launching: somebody works on the sweep, and will come to what is waiting."""
    if record is None:
        return "waiting" if launching else "killed"
    state = str(record.get("status"))
    if state == "running" and not is_locked(directory):
        state = str((read_run(directory) or record).get("status"))  # it may have ended between our two looks
        state = "killed" if state == "running" else state
    return "waiting" if launching and state == "killed" else state


def _updates(directory: Path, record: dict[str, Any] | None) -> int:
    """training.updates of a run; from Hydra's file, as text, before there is a record: YAML takes 5 ms a run."""
    with suppress(LookupError, TypeError, ValueError):
        if record is not None:
            return int(record["config"]["training"]["updates"])
    file = directory / ".hydra" / "config.yaml"
    found = (
        re.search(r"^training:\n(?:  .*\n)*?  updates: (\d+)$", file.read_text(errors="replace"), re.M)
        if file.is_file()
        else None
    )
    return int(found[1]) if found else 0


def last_step(directory: Path) -> int:
    """The step of the last whole row; 0 if there is none."""
    file = directory / "steps.jsonl"
    if not file.is_file():
        return 0
    with open(file, "rb") as rows:
        rows.seek(max(0, file.stat().st_size - TAIL))
        lines = rows.read().split(b"\n")[:-1]
    try:
        return int(checked.parse(lines[-1])["step"]) if lines else 0
    except (ValueError, LookupError, TypeError):
        return 0
