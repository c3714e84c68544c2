"""Reads .wandb transaction logs back, for tests: what the real client wrote, not what we meant to write."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 32768
HEADER = 7  # of the file, and of every chunk: crc32 (4), length (2), type (1)
PADDING, FULL, FIRST, MIDDLE, LAST = range(5)


@dataclass
class RunFile:
    """One run as its .wandb file tells it; `exit_code` is None where the run was never finished."""

    path: Path = Path()
    id: str = ""
    name: str = ""
    project: str = ""
    group: str = ""
    job_type: str = ""
    notes: str = ""
    commit: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None

    def row(self, step: int) -> dict[str, Any]:
        (found,) = [row for row in self.rows if row["_step"] == step]
        return found


def chunks(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, payload) of every whole chunk of a LevelDB log; a torn tail ends it."""
    at = HEADER
    while at + HEADER <= len(data):
        room = BLOCK - at % BLOCK
        if room < HEADER:
            at += room
            continue
        _crc, length, kind = struct.unpack_from("<IHB", data, at)
        if kind == PADDING:
            at += room
            continue
        payload = data[at + HEADER : at + HEADER + length]
        if len(payload) < length:
            return
        yield kind, payload
        at += HEADER + length


def records(path: Path) -> Iterator[Any]:
    """The protobuf records of a file, in order."""
    from wandb.proto import wandb_internal_pb2

    proto: Any = wandb_internal_pb2  # made at import, so that type checkers see nothing in it
    data = path.read_bytes()
    if not data.startswith(b":W&B"):
        raise ValueError(f"{path} is not a .wandb file")
    buffer = b""
    for kind, payload in chunks(data):
        buffer = payload if kind in (FULL, FIRST) else buffer + payload
        if kind in (FULL, LAST):
            record = proto.Record()
            record.ParseFromString(buffer)
            yield record


def read_run(path: Path) -> RunFile:
    """A whole file. Nested keys are joined by dots ("through_time/dE_dh/layer1.values")."""
    run = RunFile(path)
    for record in records(path):
        match record.WhichOneof("record_type"):
            case "run":
                r = record.run
                run.id, run.name, run.project, run.group = r.run_id, r.display_name, r.project, r.run_group
                run.job_type, run.tags, run.notes, run.commit = r.job_type, list(r.tags), r.notes, r.git.commit
                run.config |= {item.key: json.loads(item.value_json) for item in r.config.update}
            case "history":
                run.rows.append({_key(item): json.loads(item.value_json) for item in record.history.item})
            case "config":
                run.config |= {item.key: json.loads(item.value_json) for item in record.config.update}
            case "summary":
                run.summary |= {_key(item): json.loads(item.value_json) for item in record.summary.update}
            case "exit":
                run.exit_code = record.exit.exit_code
    run.config.pop("_wandb", None)
    return run


def read_sweep(sweep_dir: Path) -> dict[str, RunFile]:
    """Every run in a sweep's wandb folder, by wandb id; two files of one id are an error."""
    runs = [read_run(path) for path in sorted(sweep_dir.glob("wandb/*run-*/*.wandb"))]
    by_id = {run.id: run for run in runs}
    if len(by_id) < len(runs):
        raise ValueError(f"two files for one id in {sweep_dir}: {[run.id for run in runs]}")
    return by_id


def _key(item: Any) -> str:
    return ".".join(item.nested_key) or item.key
