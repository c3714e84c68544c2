"""The state of one run between two updates, in its directory: what the same command goes on from after a kill.

checkpoint.pt is a plain torch file of tensors, numbers and containers, read by `torch.load(..., weights_only=True)`: one that somebody else
wrote can be wrong, but it cannot run code. It says whose state it is and holds a checksum, and it is replaced atomically.
"""

import functools
import hashlib
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnn_lab.recording.store import CHECKPOINT, SHAPE, read_run, whole_rows

log = logging.getLogger("rnn_lab")
warn = functools.cache(log.warning)  # once a process: driver and program both look

FORMAT = 1


class Beginning(NamedTuple):
    """Where a run starts. state: of Training, None at the beginning.  since: what the store knew then, None where nothing is to be kept."""

    state: dict[str, Any] | None
    since: dict[str, Any] | None

    @property
    def step(self) -> int:
        return self.state["step"] if self.state else 0


AFRESH = Beginning(None, None)


def save(directory: Path, run_id: str, state: dict[str, Any], since: dict[str, Any]) -> None:
    """Replaces a run's checkpoint. Raises OSError. Cost: a millisecond, and 32 bytes an update where AutoClip remembers them all."""
    content = {"format": FORMAT, "run_id": run_id, "state": state, "since": since}
    temporary = directory / f".{CHECKPOINT}"
    try:
        torch.save(content | {"checksum": _checksum(content)}, temporary)
    except RuntimeError as error:  # torch's own for a full disk
        raise OSError(str(error)) from error
    os.replace(temporary, directory / CHECKPOINT)


def beginning(directory: Path, run_id: str, shape: dict[str, Any]) -> Beginning:
    """Where the run of this directory starts: from its checkpoint if it was killed, else from the beginning. Rows that a killed run has
    recorded are kept in either case.

    shape: series, layers and T of its record now. A checkpoint that cannot be used is told in one warning, and not used.
    """
    record = read_run(directory)
    if record is None and not (directory / "run.json").exists():
        return AFRESH
    if record is not None and not record.get("goes_on", record.get("status") in ("running", "killed")):
        return AFRESH
    if record is not None and any(record.get(key) != shape[key] for key in SHAPE):
        return AFRESH  # written by other code: the rows don't go together
    file = directory / CHECKPOINT
    if not file.exists():
        return Beginning(None, {})
    try:
        content = _load(file, run_id)
        if content["since"]["rows"] > len(whole_rows(directory, shape)):
            raise ValueError("rows recorded before it are missing")
    except Exception as error:  # whatever garbage makes of the unpickler
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        warn(f"{file}: not usable ({reason}); the run starts from the beginning")
        return Beginning(None, {})
    return Beginning(content["state"], content["since"])


def _load(file: Path, run_id: str) -> dict[str, Any]:
    content = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"not a checkpoint of format {FORMAT}")
    if content.pop("checksum", None) != _checksum(content):
        raise ValueError("its checksum is wrong")
    if content["run_id"] != run_id:
        raise ValueError(f"it is of run {content['run_id']}")
    return content


def _checksum(content: dict[str, Any]) -> str:
    """SHA-256 over every number of a nested content."""

    def plain(node: Any) -> Any:
        match node:
            case Tensor():
                numbers = node.cpu().contiguous().numpy()
                return str(node.dtype), numbers.shape, hashlib.sha256(numbers.tobytes()).hexdigest()
            case dict():
                return [(key, plain(value)) for key, value in sorted(node.items())]
            case list() | tuple():
                return [plain(value) for value in node]
            case _:
                return node

    return hashlib.sha256(repr(plain(content)).encode()).hexdigest()
