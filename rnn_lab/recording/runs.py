"""Reads one run's directory as `store` wrote it, whatever the writer's end has left of it. NumPy only."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rnn_lab.recording import checked
from rnn_lab.recording.store import FINISHED, checked_from, contributions_file, is_locked

STATUSES = ("completed", "failed", "diverged", "running", "killed")
FORMAT = 1
NUMBERS = {int, float, bool, type(None)}


class ResultsError(ValueError):
    """What was asked for is not there or cannot be read; the message is one line that names the path."""


@dataclass(frozen=True)
class Run:
    """What is recorded of one run, however it was stored.

    info      the content of run.json
    scalars   "step" (int64) and every other scalar (float64, NaN where not measured), each (record,)
    lengths   (record,), the true length of each; empty where nothing was recorded through time
    series    gives each, (record x layer x t,) float32, flat, t over a record's own length; a call may be what reads them
    """

    info: dict[str, Any]
    scalars: dict[str, np.ndarray]
    lengths: np.ndarray
    series: Callable[[], dict[str, np.ndarray]]


def read_run(path: Path, info: dict[str, Any]) -> Run:
    """The whole records of a directory. A torn last one is skipped where its writer was killed or still lives; raises ResultsError,
    which names the file, on foreign bytes, on a wrong checksum, and if a record of a run that has ended with a result is not there.
    """
    lines, file = path / "steps.jsonl", path / "timesteps.f32"
    try:
        rows, texts = _read_rows(lines)  # before the blocks: a record's block is written before its line
        values = np.fromfile(file, "<f4") if file.exists() else None
        _check(path, info, rows, texts, values)
        run = assemble(info, rows, values)
    except OSError as error:
        raise ResultsError(f"{error.filename or path}: {error.strerror or error}") from error
    expected, there = info.get("rows") or 0, len(run.scalars["step"])
    if info["status"] in FINISHED and (there < expected or (expected and values is None)):
        cut = lines if len(rows) < expected else file
        raise ResultsError(f"{cut}: cut off ({there if values is not None else 0} of {expected} records are there)")
    return run


def damage(path: Path) -> str | None:
    """What is wrong with the files of a run, in a line that names the file; None if all are whole. Cost: that of reading them."""
    try:
        run = read_run(path, read_info(path))
        sums = [values for name, values in run.scalars.items() if name.startswith("contributions/")]
        measured = ~np.isnan(sums).all(axis=0) if sums else np.zeros(len(run.scalars["step"]), bool)
        for step in run.scalars["step"][measured]:
            read_array(contributions_file(path, step))
    except ResultsError as error:
        return str(error)
    return None


def read_array(file: Path) -> np.ndarray:
    """What `store.write_array` wrote. Raises ResultsError."""
    try:
        return checked.array(file.read_bytes())
    except checked.Damaged as error:
        raise ResultsError(f"{file}: damaged ({error})") from error
    except OSError as error:
        raise ResultsError(f"{file}: {error.strerror or error}") from error


def _check(
    path: Path, info: dict[str, Any], rows: list[dict[str, float]], texts: list[bytes], values: np.ndarray | None
) -> None:
    """Takes the checksums out of the rows and holds each row to its own, but for one whose block is not there (yet, or any longer)."""
    blocks = (np.empty(0, "<f4") if values is None else values).view(np.uint8)
    end, first, size = 0, checked_from(info), 4 * len(info["series"]) * info["layers"]
    for number, (row, text) in enumerate(zip(rows, texts, strict=True)):
        start = end
        try:
            length: Any = row.get("T", info["T"])
            end += size * int(length)
            if end > len(blocks):
                row.pop(checked.KEY, None)
            else:
                checked.check_row(row, text, blocks[start:end], needed=number >= first)
        except (ValueError, TypeError, OverflowError):
            named = f"{path / 'steps.jsonl'}:{number + 1}, or bytes {start} to {end} of {path / 'timesteps.f32'}"
            raise ResultsError(f"{named}: damaged (the checksum is wrong)") from None


def assemble(info: dict[str, Any], rows: Sequence[dict[str, float]], values: np.ndarray | None) -> Run:
    """A run from the three things that its files hold.

    rows: step and scalars of each record, with "T" where its true length is not info's.  values: the series of all records in
    the order record, series, layer, t; what is beyond the last whole record, of either, is left out. None: none were kept.
    """
    lengths = np.array([row.get("T", info["T"]) for row in rows], dtype=int)
    sizes = (len(info["series"]), info["layers"])
    series: dict[str, np.ndarray] = {}
    if values is None or 0 in (*sizes, info["T"]):
        lengths = lengths[:0]
    else:
        ends = np.cumsum(lengths) * sizes[0] * sizes[1]
        whole = int(np.searchsorted(ends, len(values), side="right"))
        rows, lengths, ends = rows[:whole], lengths[:whole], ends[:whole]
        series = dict(zip(info["series"], _by_series(values[: ends[-1] if whole else 0], ends, sizes[0]), strict=True))
    names = dict.fromkeys(name for row in rows for name in row if name not in ("step", "T"))
    scalars = {name: np.array([row.get(name, np.nan) for row in rows], dtype=float) for name in names}
    return Run(
        info, {"step": np.array([row["step"] for row in rows], dtype=np.int64)} | scalars, lengths, lambda: series
    )


def _by_series(values: np.ndarray, ends: np.ndarray, series: int) -> list[np.ndarray]:
    """From (record, series, layer x t), flat, to a flat array for each series."""
    if len(ends) == 0 or (np.diff(ends) == ends[0]).all():
        blocks = values.reshape(len(ends), series, -1 if len(ends) else 0)
        return [blocks[:, index].ravel() for index in range(series)]
    records = [block.reshape(series, -1) for block in np.split(values, ends[:-1])]
    return [np.concatenate([record[index] for record in records]) for index in range(series)]


def read_info(path: Path) -> dict[str, Any]:
    """run.json of a run directory, with the status that holds now: "running" only while a writer lives. Raises ResultsError."""
    try:
        info = _checked(path / "run.json")
        if info["status"] == "running" and not is_locked(path):
            info = _checked(path / "run.json")  # it may have finished between our two looks
            if info["status"] == "running":
                info["status"] = "killed"
    except OSError as error:
        raise ResultsError(f"{error.filename or path}: {error.strerror or error}") from error
    return info


def _checked(file: Path) -> dict[str, Any]:
    try:
        info = checked.loads(file.read_bytes())
    except checked.Damaged as error:
        raise ResultsError(f"{file}: damaged ({error})") from error
    except ValueError as error:
        raise ResultsError(f"{file}: not readable as JSON ({error})") from error
    return check_info(info, str(file))


def check_info(info: Any, file: str) -> dict[str, Any]:
    """`info`, if it is the content of a run.json; raises ResultsError if it is not."""
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        found = info.get("format") if isinstance(info, dict) else type(info).__name__
        raise ResultsError(f"{file}: not a run.json of format {FORMAT} (found {found!r})")
    kinds = {"run_id": str, "status": str, "config": dict, "series": list, "layers": int, "T": int}
    wrong = [key for key, kind in kinds.items() if not isinstance(info.get(key), kind)]
    if wrong or info["status"] not in STATUSES:
        raise ResultsError(f"{file}: missing or unusable: {', '.join(wrong) or 'status'}")
    return info


def _read_rows(file: Path) -> tuple[list[dict[str, float]], list[bytes]]:
    """The rows, and their lines."""
    if not file.exists():
        return [], []
    content = file.read_bytes()
    lines = content.removesuffix(b"\n").split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line.decode())
        except ValueError as error:
            if number == len(lines) and (not line or not content.endswith(b"\n")):
                break  # the writer died inside its last line, or has not finished it
            raise ResultsError(f"{file}:{number}: not a record (not readable as JSON)") from error
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise ResultsError(f"{file}:{number}: not a record (expected an object with an integer step)")
        if not NUMBERS.issuperset(map(type, row.values())):
            raise ResultsError(f"{file}:{number}: not a record (a value is not a number)")
        rows.append(row)
    return rows, [line + b"\n" for line in lines[: len(rows)]]
