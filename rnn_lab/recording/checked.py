"""Checksums in the store's own files, so that a flipped bit or a file that was cut is known where it is read.

    a line of steps.jsonl     ends with "crc": CRC-32 of the row's block in timesteps.f32 and of the line without it
    run.json                  ends with "crc": of its content without it, as compact JSON
    contributions/<step>.npy  four bytes behind the array, which other readers don't look at: of all before them

What has no checksum was written by an earlier version of the lab (or by hand) and is taken as it is.
"""

import io
import json
import zlib
from typing import Any

import numpy as np

KEY = "crc"
_MARK = f', "{KEY}": '.encode()


class Damaged(ValueError):
    """The content is not what was written."""


def line(row: dict[str, float], block: bytes) -> bytes:
    """A row's line, checksum and all."""
    text = json.dumps(row).encode()
    return text[:-1] + _MARK + b"%d}\n" % zlib.crc32(text, zlib.crc32(block))


def bare(line: bytes) -> bytes:
    """The line as it is without a checksum."""
    text, found, _ = line.rpartition(_MARK)
    return text + b"}\n" if found else line


def check_row(row: dict[str, float], line: bytes, block: Any, needed: bool) -> None:
    """Takes the checksum out of a row, which `line` says in JSON. Raises Damaged if it is wrong, or not there and needed."""
    crc = row.pop(KEY, None)
    if (needed and crc is None) or (crc is not None and zlib.crc32(bare(line)[:-1], zlib.crc32(block)) != crc):
        raise Damaged("its checksum is wrong")


def parse(text: str | bytes) -> Any:
    """JSON. Raises ValueError, for what is nested beyond reason too."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def dumps(content: dict[str, Any]) -> str:
    """An object as JSON, with a checksum."""
    return json.dumps(content | {KEY: _crc(content)}, indent=1)


def loads(text: bytes) -> Any:
    """What `dumps` wrote, or any other JSON. Raises ValueError."""
    content = parse(text)
    if isinstance(content, dict) and KEY in content and content.pop(KEY) != _crc(content):
        raise Damaged(f'its checksum is wrong; if it was edited, remove "{KEY}" from it')
    return content


def _crc(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content).encode())  # without indent: ten times as fast


def array_bytes(array: np.ndarray) -> bytes:
    """A .npy file, with a checksum."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue() + zlib.crc32(file.getvalue()).to_bytes(4, "little")


def array(content: bytes) -> np.ndarray:
    """The array in a .npy file. Raises Damaged."""
    file = io.BytesIO(content)
    whole = zlib.crc32(content[:-4]) == int.from_bytes(content[-4:], "little")
    try:
        found = np.load(file)
    except Exception as error:  # whatever garbage makes of numpy's reader
        raise Damaged(f"not an array ({' '.join(str(error).split())[:100]})") from error
    if not whole and file.tell() != len(content):
        raise Damaged("its checksum is wrong")
    return found
