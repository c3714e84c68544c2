"""What happened, in lines for people: <sweep>/sweep.log, and each run's own in <run>/train.log."""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from rnn_lab.recording import RunInfo


def note(file: Path, text: str) -> None:
    """Adds one line with the time, whole even where several processes write. A disk that is full costs the line and no more."""
    with suppress(OSError), open(file, "ab", buffering=0) as log:
        log.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z  {text}\n".encode())


def note_run(run: RunInfo, text: str) -> None:
    """The same in a run's log and, under its name, in its sweep's."""
    note(run.directory / "train.log", text)
    note(run.directory.parent / "sweep.log", f"{run.name}  {text}")
