"""A finished sweep in two Parquet files, which load in a fraction of the time that its runs' own files take.

    steps.parquet       a row a record: run_id, step, T (its true length; 0 where nothing was recorded through time), scalars
    timesteps.parquet   a row a record, layer and t: run_id, step, layer, t, lag, series

Both name the runs that they hold, in the order of their rows, in the metadata key rnn_lab, and for each the sizes and times of the files
that it was read from. They are a copy and never a second truth: a run whose files have changed since is read from these, and so are all
if a Parquet file is damaged (its pages carry checksums).
"""

import json
import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rnn_lab.recording.runs import Run, read_info, read_run

STEPS, TIMESTEPS = "steps.parquet", "timesteps.parquet"
SOURCES = ("steps.jsonl", "timesteps.f32")
INDEX = ("step", "layer", "t", "lag")
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
    """Size and time of a run's files; None for one that is missing."""

    def stamp(file: Path) -> list[int] | None:
        try:
            stat = file.stat()
        except FileNotFoundError:
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
    options: dict[str, Any] = {
        "write_page_checksum": True,
        "use_dictionary": list(index),
        "write_statistics": list(index),
    }
    # The series are noise to a compressor: it would save a tenth of the bytes.
    packed: dict[str, Any] = {"compression": {name: "zstd" if name in index else "none" for name in schema.names}}
    runs, entries = [], {}
    with parquet.ParquetWriter(timesteps, schema, **packed, **options) as writer:
        for group in _groups(infos):
            writer.write_table(_table(schema, map(_through_time, group.values()), np.float32("nan")))
            for name, run in group.items():
                rows = [len(run.scalars["step"]), int(run.lengths.sum()) * run.info["layers"]]
                entries[name] = {"files": stamps[name], "rows": rows, "scalars": list(run.scalars)}
                runs.append(replace(run, series={}))
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
        run = group[directory.name] = read_run(directory, info)
        rows += int(run.lengths.sum()) * info["layers"]
        if rows >= GROUP_ROWS:
            yield group
            group, rows = {}, 0
    if group:
        yield group


def _through_time(run: Run) -> dict[str, Any]:
    return {"run_id": run.info["run_id"]} | index_columns(run) | run.series


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
        rows = len(part["step"])
        for name, column in columns.items():
            values = part.get(name, missing)
            column.append(values if isinstance(values, np.ndarray) else pa.repeat(values, rows))
    return pa.table(
        [pa.chunked_array([pa.array(v).cast(field.type) for v in columns[field.name]], field.type) for field in schema],
        schema=schema,
    )


# -------------------------------------------------------------------------------------------------------------- reading


def read_collected(sweep: Path, infos: Mapping[Path, dict[str, Any]]) -> dict[Path, Run]:
    """Those of these runs of a sweep, told by directory, that its Parquet files hold as they are now.

    Warns, and returns none, if a file is damaged. Row groups without such a run are not read.
    """
    try:
        tables = _tables(sweep)
        if tables is None:
            return {}
        held = tables[0].runs
        current = {d.name: d for d in infos if d.name in held and held[d.name]["files"] == _stamp(d)}
        scalars, series = (table.read(list(current)) for table in tables)
        return {
            directory: _run(infos[directory], scalars[name], series[name], held[name]["scalars"])
            for name, directory in current.items()
        }
    except Damaged as damage:
        warnings.warn(f"{damage}; reading the runs' own files", stacklevel=4)
        return {}


def _run(info: dict[str, Any], scalars: dict[str, Any], series: dict[str, Any], names: list[str]) -> Run:
    lengths = scalars["T"].astype(int)
    timed = lengths if lengths.any() else lengths[:0]
    own = {name: series[name] for name in info["series"]} if len(timed) else {}
    return Run(info, {name: scalars[name] for name in names}, timed, own)


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

            self._file = parquet.ParquetFile(path, memory_map=True, page_checksum_verification=True)
            about = json.loads(self._file.metadata.metadata[KEY.encode()])
            self.runs: dict[str, Any] = about["runs"]
            rows = [entry["rows"][which] for entry in self.runs.values()]
            stops = np.cumsum(rows)
            self._ranges = dict(zip(self.runs, zip((stops - rows).tolist(), stops.tolist(), strict=True), strict=True))
            groups = [self._file.metadata.row_group(g).num_rows for g in range(self._file.num_row_groups)]
            self._firsts = np.cumsum([0, *groups])
            if self._file.schema_arrow.names != about["columns"] or sum(rows) != sum(groups):
                raise ValueError("its columns or rows are not those that it names")
            self._columns = [name for name in self._file.schema_arrow.names if name not in ("run_id", *INDEX[1:])]

    def read(self, runs: list[str]) -> dict[str, dict[str, np.ndarray]]:
        """The columns of each of these runs, all but run_id and those of `index_columns`."""
        groups: dict[int, list[str]] = defaultdict(list)
        for name in runs:
            groups[int(np.searchsorted(self._firsts, self._ranges[name][0], side="right")) - 1].append(name)
        found = {}
        with self._read_safely():
            for group, names in groups.items():
                columns = self._read_group(group)
                for name in names:
                    here = slice(*(np.array(self._ranges[name]) - self._firsts[group]))
                    found[name] = {key: column[here] for key, column in columns.items()}
        return found

    def _read_group(self, group: int) -> dict[str, np.ndarray]:
        if group == self._file.num_row_groups:  # of runs without rows, after all others
            return dict.fromkeys(self._columns, np.empty(0))
        table = self._file.read_row_group(group, columns=self._columns)
        chunks = {name: [chunk.to_numpy() for chunk in table.column(name).chunks] for name in self._columns}
        return {name: own[0] if len(own) == 1 else np.concatenate(own) for name, own in chunks.items()}

    @contextmanager
    def _read_safely(self) -> Iterator[None]:
        """Whatever goes wrong is Damaged."""
        from pyarrow import ArrowException

        try:
            yield
        except (ArrowException, OSError, ValueError, LookupError, TypeError, MemoryError, OverflowError) as error:
            raise Damaged(f"{self.path}: damaged ({' '.join(str(error).split())[:200]})") from error
