"""The files that wandb leaves in <sweep>/wandb: their names, how many rows they hold, and the commands that open and upload them."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

LONGEST_ID = 64


def wandb_id(name: str, run_id: str) -> str:
    """The readable name in safe characters, cut to 64 of them, with the whole run id at its end."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", name.removesuffix(run_id))
    readable = readable[: LONGEST_ID - len(run_id) - 1].strip("-")
    return f"{readable}-{run_id}" if readable else run_id


def recordings(folder: Path, identity: str) -> list[Path]:
    """The directories in <sweep>/wandb that hold this wandb run, online or offline."""
    ours = re.compile(rf"(offline-)?run-\d{{8}}_\d{{6}}-{re.escape(identity)}")
    return sorted(found for found in folder.glob(f"*run-*-{identity}") if ours.fullmatch(found.name))


def wandb_files(folder: Path) -> Iterator[Path]:
    """The .wandb files in the directory of a run, in the folder `wandb` of a sweep, or in that of a sweep."""
    for pattern in ("*.wandb", "*run-*/*.wandb", "wandb/*run-*/*.wandb"):
        yield from sorted(folder.glob(pattern))


def discard(folder: Path, identity: str) -> None:
    """Removes what was recorded of a run before. It is recorded whole again, and two files of one id would mix when synced."""
    for old in recordings(folder, identity):
        shutil.rmtree(old, ignore_errors=True)


def mark_synced(file: Path) -> None:
    """As `wandb sync` does: everything in this .wandb file is at the server."""
    file.with_name(f"{file.name}.synced").touch()


def errors_in(log: Path) -> list[str]:
    """What wandb-core gave up on, from its own log of a run: an expired key, say, of which `finish` tells nothing. Not what it retries."""
    if not log.exists():
        return []
    lines = map(json.loads, log.read_text().splitlines())
    return [line["msg"].split(" url=")[0] for line in lines if line["level"].startswith("ERROR")]


def dashboard_commands(sweep_dir: Path | str, executable: str = "wandb") -> list[str]:
    """The shell commands that open and upload what a sweep recorded; none where there is nothing to show."""
    folder = Path(sweep_dir, "wandb")
    commands = []
    if any(folder.glob("*run-*/*.wandb")):
        commands.append(f"{executable} leet {shlex.quote(str(folder))}")
    if any(folder.glob("offline-run-*/*.wandb")):
        commands.append(f"{executable} sync {shlex.quote(str(folder))}/offline-run-*")
    return commands


def rows_in(file: Path) -> int:
    """How many history rows a .wandb file holds, in about a millisecond: 0 for a missing file.

    The file is a LevelDB log of protobuf records: 7 bytes of header, then blocks of 32 KiB of chunks (crc 4, length 2,
    type 1, payload); type 1 is a whole record, 2 the first part of one, 3 and 4 the rest. A row is a record that holds
    field number 2.
    """
    data = file.read_bytes() if file.exists() else b""
    rows, at, is_row = 0, 7, False
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if left < 7 or kind == 0:  # padding up to the next block
            at += left
            continue
        end = at + 7 + length
        if end > len(data):  # torn
            break
        if kind in (1, 2):
            field_at = at + 7
            if data[field_at] == 0x08:  # field 1, the record's number: a varint before the field that we look for
                field_at += 1
                while data[field_at] & 0x80:
                    field_at += 1
                field_at += 1
            is_row = data[field_at] == 0x12
        rows += is_row and kind in (1, 4)
        at = end
    return rows
