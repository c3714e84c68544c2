"""A finished sweep in two Parquet files, which load in a fraction of the time that its runs' own files take.

    steps.parquet       a row a record: run_id, step, T (its true length; 0 where nothing was recorded through time), scalars
    timesteps.parquet   a row a record, layer and t: run_id, step, layer, t, lag, series

Both name the runs that they hold, in the order of their rows, in the metadata key rnn_lab, and for each the sizes and times of the files
that it was read from, and checksums of its numbers. They are a copy and never a second truth: a run whose files have changed since is
read from these, and so are all if a Parquet file is damaged.
"""

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rnn_lab.recording import checked
from rnn_lab.recording.runs import INDEX, ResultsError, Run, read_info, read_run
from rnn_lab.recording.store import SHAPE

STEPS, TIMESTEPS = "steps.parquet", "timesteps.parquet"
SOURCES = ("steps.jsonl", "timesteps.f32")
GROUP_ROWS = 1 << 18  # at least so many rows, of whole runs, make a row group: what is read at once
KEY = "rnn_lab"


class Damaged(ValueError):
    """A Parquet file that is not what `collect` wrote; the message is one line that names it."""


def index_columns(run: Run) -> dict[str, np.ndarray]:
    """step, layer, t, lag (int32) of each value of a series."""
    layers = run.info["layers"]
    lengths = np.repeat(run.lengths, layers)  # of each record and layer
    first = np.repeat((np.cumsum(lengths) - lengths).astype(np.int32), lengths)
    t = np.arange(1, lengths.sum() + 1, dtype=np.int32) - first
    step = np.repeat(run.scalars["step"][: len(run.lengths)].astype(np.int32), run.lengths * layers)
    layer = np.repeat(np.tile(np.arange(1, layers + 1, dtype=np.int32), len(run.lengths)), lengths)
    return {"step": step, "layer": layer, "t": t, "lag": np.repeat(lengths.astype(np.int32), lengths) - t}


# -------------------------------------------------------------------------------------------------------------- writing


def collect(sweep: Path) -> None:
    """Writes both files for all runs of a sweep that have ended; nothing if they are there and hold just these.

    Raises OSError and, on a run that cannot be read, ResultsError. Costs what reading the runs costs; holds their scalars and one
    row group in memory.
    """
    infos = {file.parent: read_info(file.parent) for file in sorted(sweep.glob("[!.]*/run.json"))}
    ended = {directory: info for directory, info in infos.items() if info["status"] not in ("running", "killed")}
    stamps = {directory.name: _stamp(directory) for directory in ended}  # taken before the files are read
    if not ended or _held(sweep) == stamps:
        return
    steps, timesteps = (sweep / f".{name}" for name in (STEPS, TIMESTEPS))
    try:
        _write(steps, timesteps, ended, stamps)
        os.replace(steps, sweep / STEPS)
        os.replace(timesteps, sweep / TIMESTEPS)
    finally:
        for file in (steps, timesteps):
            file.unlink(missing_ok=True)


def _stamp(directory: Path) -> list[list[int] | None]:
    """Size and time of a run's files; None for one that is missing or out of reach."""

    def stamp(file: Path) -> list[int] | None:
        try:
            stat = file.stat()
        except OSError:
            return None
        return [stat.st_size, stat.st_mtime_ns]

    return [stamp(directory / name) for name in SOURCES]


def _held(sweep: Path) -> dict[str, Any]:
    """The stamps of the runs that are collected, by the name of their directory; none where a file is damaged."""
    try:
        tables = _tables(sweep)
        return {name: entry["files"] for name, entry in tables[0].runs.items()} if tables else {}
    except Damaged:
        return {}


def _write(steps: Path, timesteps: Path, infos: dict[Path, dict[str, Any]], stamps: dict[str, Any]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    series = dict.fromkeys(name for info in infos.values() for name in info["series"])
    index = {"run_id": pa.string()} | dict.fromkeys(INDEX, pa.int32())
    schema = _schema(index | dict.fromkeys(series, pa.float32()))
    options: dict[str, Any] = {"use_dictionary": list(index), "write_statistics": list(index)}
    # The series are noise to a compressor: it would save a tenth of the bytes.
    packed: dict[str, Any] = {"compression": {name: "zstd" if name in index else "none" for name in schema.names}}
    runs, entries = [], {}
    with parquet.ParquetWriter(timesteps, schema, **packed, **options) as writer:
        for group in _groups(infos):
            writer.write_table(_table(schema, map(_through_time, group.values()), np.float32("nan")))
            for name, run in group.items():
                rows = [len(run.scalars["step"]), int(run.lengths.sum()) * run.info["layers"]]
                entries[name] = {"files": stamps[name], "rows": rows, "scalars": list(run.scalars)}
                entries[name]["shape"] = _shape(run.info)
                entries[name]["crc"] = [
                    _checksum(run.lengths, *run.scalars.values()),
                    _checksum(*run.series().values()),
                ]
                runs.append(replace(run, series=dict))  # lets go of them
        writer.add_key_value_metadata(_metadata(schema, entries))
    scalars = dict.fromkeys((name for run in runs for name in run.scalars if name != "step"), pa.float64())
    schema = _schema({"run_id": pa.string(), "step": pa.int64(), "T": pa.int32()} | scalars)
    records = _table(schema, map(_records, runs), np.nan).replace_schema_metadata(_metadata(schema, entries))
    parquet.write_table(records, steps, compression="zstd", row_group_size=max(1, len(records)), **options)


def _metadata(schema: Any, runs: dict[str, Any]) -> dict[str, str]:
    return {KEY: json.dumps({"columns": schema.names, "runs": runs})}


def _groups(infos: dict[Path, dict[str, Any]]) -> Iterator[dict[str, Run]]:
    group, rows = {}, 0
    for directory, info in infos.items():
        try:
            run = group[directory.name] = read_run(directory, info)
        except ResultsError:
            if info["status"] != "failed":  # one that failed may have failed for its files
                raise
            continue
        rows += int(run.lengths.sum()) * info["layers"]
        if rows >= GROUP_ROWS:
            yield group
            group, rows = {}, 0
    if group:
        yield group


def _through_time(run: Run) -> dict[str, Any]:
    return {"run_id": run.info["run_id"]} | index_columns(run) | run.series()


def _records(run: Run) -> dict[str, Any]:
    lengths = run.lengths if len(run.lengths) else np.zeros(len(run.scalars["step"]), int)
    return {"run_id": run.info["run_id"], "T": lengths} | run.scalars


def _schema(types: dict[str, Any]) -> Any:
    """Nothing is null: so a column is read as it lies in the file."""
    import pyarrow as pa

    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in types.items()])


def _table(schema: Any, parts: Iterable[dict[str, Any]], missing: np.floating | float) -> Any:
    """One table of the columns of several runs; `missing` where a run has no such column."""
    import pyarrow as pa

    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    for part in parts:
        for name, column in columns.items():
            column.append(_chunk(part.get(name, missing), len(part["step"]), schema.field(name).type))
    return pa.table([pa.chunked_array(columns[field.name], field.type) for field in schema], schema=schema)


def _chunk(values: Any, rows: int, kind: Any) -> Any:
    """So many values, or so often a value. Not by pa.array, which imports pandas: half a second at the end of every sweep."""
    import pyarrow as pa

    if isinstance(values, str):
        text = values.encode()
        buffers: list[Any] = [len(text) * np.arange(rows + 1, dtype=np.int32), text * rows]
    elif isinstance(values, np.ndarray):
        buffers = [np.ascontiguousarray(values, kind.to_pandas_dtype())]
    else:
        buffers = [np.full(rows, values, kind.to_pandas_dtype())]
    return pa.Array.from_buffers(kind, rows, [None, *map(pa.py_buffer, buffers)])


# -------------------------------------------------------------------------------------------------------------- reading


def read_collected(sweep: Path, infos: Mapping[Path, dict[str, Any]]) -> dict[Path, Run]:
    """Those of these runs of a sweep, told by directory, that its Parquet files hold as they are now.

    Their series are read when asked for, a row group at a time: ask in the order of the directories' names. Raises Damaged, and so may
    the reading of series.
    """
    tables = _tables(sweep)
    if tables is None:
        return {}
    steps, timesteps = tables

    def holds(directory: Path, info: dict[str, Any]) -> bool:
        entry = steps.runs.get(directory.name, {})
        return entry.get("files") == _stamp(directory) and entry.get("shape") == _shape(info)

    held = {directory: info for directory, info in infos.items() if holds(directory, info)}
    return {directory: _run(directory.name, info, steps, timesteps) for directory, info in held.items()}


def _shape(info: dict[str, Any]) -> list[Any]:
    return [info[key] for key in SHAPE]


def _tables(sweep: Path) -> "tuple[_Table, _Table] | None":
    """Both files; None if one is not there. Raises Damaged."""
    if not ((sweep / STEPS).is_file() and (sweep / TIMESTEPS).is_file()):
        return None
    steps, timesteps = _Table(sweep / STEPS, 0), _Table(sweep / TIMESTEPS, 1)
    if steps.runs != timesteps.runs:
        raise Damaged(f"{timesteps.path}: not of one collection with {STEPS}")
    return steps, timesteps


class _Table:
    """One of the files. runs: of each that it holds, what `collect` wrote into the metadata. which: its place in "rows"."""

    def __init__(self, path: Path, which: int):
        self.path = path
        with self._read_safely():
            from pyarrow import parquet

            self._file = parquet.ParquetFile(path)
            about = checked.parse(self._file.metadata.metadata[KEY.encode()])
            self.runs: dict[str, Any] = about["runs"]
            rows = [entry["rows"][which] for entry in self.runs.values()]
            self._stops = dict(zip(self.runs, np.cumsum(rows).tolist(), strict=True))
            self._rows = dict(zip(self.runs, rows, strict=True))
            groups = [self._file.metadata.row_group(g).num_rows for g in range(self._file.num_row_groups)]
            self._ends = np.cumsum(groups)
            if self._file.schema_arrow.names != about["columns"] or sum(rows) != sum(groups):
                raise ValueError("its columns or rows are not those that it names")
        self._names = [name for name in self._file.schema_arrow.names if name not in ("run_id", *INDEX[1:])]
        self._group, self._columns = -1, dict[str, np.ndarray]()  # the last that was read

    def columns(self, run: str) -> dict[str, np.ndarray]:
        """All columns of a run but run_id and those of `index_columns`."""
        stop, rows = self._stops[run], self._rows[run]
        if rows == 0:
            return dict.fromkeys(self._names, np.empty(0))
        group = int(np.searchsorted(self._ends, stop))
        if group != self._group:
            with self._read_safely():
                table = self._file.read_row_group(group, columns=self._names)
                self._columns = {name: _array(table.column(name)) for name in self._names}
                self._group = group
        behind = int(self._ends[group]) - stop  # rows of the runs after this one
        size = len(self._columns[self._names[0]])
        return {name: column[size - behind - rows : size - behind] for name, column in self._columns.items()}

    def check(self, crc: int, *columns: np.ndarray) -> None:
        """Raises Damaged if these columns are not those of which `collect` took this checksum."""
        if _checksum(*columns) != crc:
            raise Damaged(f"{self.path}: damaged (a checksum is wrong)")

    @contextmanager
    def _read_safely(self) -> Iterator[None]:
        """Whatever goes wrong is Damaged."""
        from pyarrow import ArrowException

        try:
            yield
        except (ArrowException, OSError, ValueError, LookupError, TypeError, MemoryError, OverflowError) as error:
            raise Damaged(f"{self.path}: damaged ({' '.join(str(error).split())[:200]})") from error


def _run(name: str, info: dict[str, Any], steps: _Table, timesteps: _Table) -> Run:
    columns, entry = steps.columns(name), steps.runs[name]
    lengths = columns["T"].astype(int)
    timed = lengths if lengths.any() else lengths[:0]
    scalars = {key: columns[key] for key in entry["scalars"]}
    steps.check(entry["crc"][0], timed, *scalars.values())

    def series() -> dict[str, np.ndarray]:
        own = timesteps.columns(name)
        found = {key: own[key] for key in info["series"]} if len(timed) else {}
        timesteps.check(entry["crc"][1], *found.values())
        return found

    return Run(info, scalars, timed, series)


def _checksum(*columns: np.ndarray) -> int:
    """Of the numbers themselves: Parquet's own checksums cover its pages, but not where it says that they lie."""
    crc = 0
    for column in columns:
        crc = zlib.crc32(np.ascontiguousarray(column).data, crc)
    return crc


def _array(column: Any) -> np.ndarray:
    chunks = [chunk.to_numpy() for chunk in column.chunks]
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
