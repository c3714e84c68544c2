"""Runs back from wandb: what the mirror recorded, as our own store holds it. Scalars come from wandb's rows, exact norms from the file
timesteps.f32 that the mirror saves with a run that has a result, everything else from its config.
"""

import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rnn_lab.recording.runs import ResultsError, Run, assemble, check_info
from rnn_lab.recording.wandb.files import records, wandb_files
from rnn_lab.recording.wandb.payload import NAMES

PREFIX = "wandb:"
EXACT = "timesteps.f32"
STATES = {"running": "running", "crashed": "killed", "killed": "killed"}  # at a server; others have a status of ours
TIMEOUT = 60  # seconds for an answer of a server
OF_WANDB = ("_", "through_time/", "dE_dh_at/")  # beginnings of what is in a row but not in our scalars

Row = dict[str, Any]


@dataclass(frozen=True)
class Recorded:
    """A run that wandb has. info: as its run.json; rows, values: as `assemble` takes them."""

    info: dict[str, Any]
    rows: Callable[[], list[Row]]
    values: Callable[[], np.ndarray | None]

    def run(self) -> Run:
        return assemble(self.info, self.rows(), self.values())


def recorded(path: str) -> dict[str, Recorded]:
    """The runs of this lab, by where they are, at wandb:ENTITY/PROJECT or in the .wandb files of a folder. Raises ResultsError."""
    return _of_project(path.removeprefix(PREFIX)) if path.startswith(PREFIX) else _of_folder(Path(path))


# ---------------------------------------------------------------------------------------------------- out of their terms


def _info(config: Mapping[str, Any], where: str, status: str | None) -> dict[str, Any] | None:
    """What run.json said; None if the run is not of this lab. status: that of a run whose recording has no end."""
    if "lab" not in config:
        return None
    own = {key: value for key, value in config.items() if key not in ("lab", "_wandb")}
    info = check_info({**config["lab"], "config": own}, where)
    return info | ({"status": status} if status else {})


def _row(row: Mapping[str, Any], T: int) -> Row:
    """A row as in steps.jsonl. T: as in run.json; a row's own is where the bins of its heatmap end."""
    named = {NAMES.get(key, key): value for key, value in row.items()}
    scalars = {name: _number(value) for name, value in named.items() if not name.startswith(OF_WANDB)}
    edges = next((value["bins"] for name, value in row.items() if name.startswith("through_time/")), [T])
    return {"step": int(row["_step"]), "T": int(edges[-1]), **scalars}


def _number(value: Any) -> float:
    """JSON has no word for NaN and infinity, so servers may give them as text."""
    return math.nan if value is None else float(value)


# ----------------------------------------------------------------------------------------------------------- .wandb files


def _of_folder(folder: Path) -> dict[str, Recorded]:
    found = {}
    for file in wandb_files(folder):
        try:
            config, rows, ended = _read_file(file)
        except OSError as error:
            raise ResultsError(f"{error.filename or file}: {error.strerror or error}") from error
        info = _info(config, str(file), "killed" if not ended else None)
        if info is not None:
            found[str(file)] = _local(file, info, rows)
    if not found:
        raise ResultsError(f"{folder}: its .wandb files hold no run of this lab")
    return found


def _local(file: Path, info: dict[str, Any], rows: list[Row]) -> Recorded:
    exact = file.parent / "files" / EXACT
    return Recorded(
        info,
        lambda: [_row(row, info["T"]) for row in rows],
        lambda: np.fromfile(exact, "<f4") if exact.exists() else None,
    )


def _read_file(file: Path) -> tuple[dict[str, Any], list[Row], bool]:
    """Config, rows (what wandb calls nested keys are nested dicts), and whether the recording came to its end."""
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    proto: Any = wandb_internal_pb2  # made at import, so that type checkers see nothing in it
    config: dict[str, Any] = {}
    rows: list[Row] = []
    ended = False
    for payload in records(file):
        try:
            record = proto.Record.FromString(payload)
        except DecodeError as error:
            raise ResultsError(f"{file}: a record that is not of wandb ({error})") from error
        kind = record.WhichOneof("record_type")
        if kind == "run":
            config |= _nested(record.run.config.update)
        elif kind == "config":
            config |= _nested(record.config.update)
        elif kind == "history":
            rows.append(_nested(record.history.item))
        ended |= kind == "exit"
    return config, rows, ended


def _nested(items: Iterable[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        *outer, last = item.nested_key or [item.key]
        inner = found
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = json.loads(item.value_json)
    return found


# --------------------------------------------------------------------------------------------------------------- a server


def _of_project(address: str) -> dict[str, Recorded]:
    if not re.fullmatch(r"[^/\s]+/[^/\s]+", address):
        raise ResultsError(f"{PREFIX}{address}: expected {PREFIX}ENTITY/PROJECT")
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # else wandb tells another server of its errors, too
    import wandb

    try:
        runs = wandb.Api(timeout=TIMEOUT).runs(address, lazy=False)
        found = {f"{PREFIX}{address}/{run.id}": run for run in runs}  # list(runs) would swallow what their len() raises
        infos = {where: _info(run.config, where, STATES.get(run.state)) for where, run in found.items()}
    except wandb.Error as error:
        raise ResultsError(f"{PREFIX}{address}: {' '.join(str(error).split())}") from error
    known = {where: _remote(where, found[where], info) for where, info in infos.items() if info is not None}
    if not known:
        raise ResultsError(f"{PREFIX}{address}: no run of this lab there")
    return known


def _remote(where: str, run: Any, info: dict[str, Any]) -> Recorded:
    """Nothing is fetched before it is asked for."""

    def rows() -> list[Row]:
        return _asked(where, lambda: [_row(row, info["T"]) for row in run.scan_history(use_cache=False)])

    def values() -> np.ndarray | None:
        with tempfile.TemporaryDirectory() as folder:
            exact = Path(folder, EXACT)
            _asked(where, lambda: [file.download(root=folder) for file in run.files(names=[EXACT])])
            return np.fromfile(exact, "<f4") if exact.exists() else None

    return Recorded(info, rows, values)


def _asked(where: str, ask: Callable[[], Any]) -> Any:
    import requests
    import wandb

    try:
        return ask()
    except (wandb.Error, requests.RequestException, OSError) as error:
        raise ResultsError(f"{where}: {' '.join(str(error).split())}") from error
