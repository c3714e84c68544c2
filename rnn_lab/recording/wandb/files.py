"""The files that wandb leaves in <sweep>/wandb: their names, how many rows they hold, and the commands that open and upload them."""

import json
import re
import shlex
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from rnn_lab.recording.runs import ResultsError

LONGEST_ID = 64
FILE_HEADER, BLOCK = 7, 32768
CHUNK = struct.Struct("<IHB")  # crc32 of type and payload, length, type
PADDING, FULL, FIRST, _, LAST = range(5)


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
    """How many history rows a .wandb file holds, in a millisecond or two: 0 for a missing file. Raises ResultsError."""
    return sum(map(_is_row, records(file))) if file.exists() else 0


def records(file: Path) -> Iterator[bytes]:
    """The protobuf records of a .wandb file, which is a LevelDB log: 7 bytes of header, then blocks of 32 KiB of chunks, each a whole
    record or a part of one. Checked; a torn last one is skipped. Raises ResultsError.
    """
    data = file.read_bytes()
    if not data.startswith(b":W&B"):
        raise ResultsError(f"{file}: not a .wandb file")
    at, record = FILE_HEADER, b""
    while at + CHUNK.size <= len(data):
        room = BLOCK - at % BLOCK
        crc, length, kind = CHUNK.unpack_from(data, at) if room >= CHUNK.size else (0, 0, PADDING)
        if kind == PADDING:
            at += room
            continue
        payload = data[at + CHUNK.size : at + CHUNK.size + length]
        if len(payload) < length:
            return
        if zlib.crc32(payload, zlib.crc32(bytes([kind]))) != crc:
            raise ResultsError(f"{file}: damaged at byte {at}")
        record = payload if kind in (FULL, FIRST) else record + payload
        if kind in (FULL, LAST):
            yield record
        at += CHUNK.size + length


def _is_row(record: bytes) -> bool:
    """Whether it has a field 2, history; so that nobody must import wandb, nor parse the row, to count it."""
    at = 0
    while at < len(record):
        key, at = _varint(record, at)
        if key >> 3 == 2:
            return True
        if key & 7 == 0:  # a number
            _, at = _varint(record, at)
        elif key & 7 == 2:  # bytes of a length
            length, at = _varint(record, at)
            at += length
        else:  # eight bytes, or four
            at += 8 if key & 7 == 1 else 4
    return False


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and where it ends."""
    value = shift = 0
    while data[at] & 0x80:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1
