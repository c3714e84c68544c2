"""Weights & Biases as a sink: one wandb run a run, all runs of a sweep in the folder <sweep>/wandb.

wandb mirrors our own store and is never in the way: whatever it raises is told once, in one line, and that run goes on
without it. Per row it gets
    the scalars                          under their contract names
    through_time/<series>/layer<k>       a histogram whose bin is the time step and whose count is `heat` of the norm:
                                         the web dashboard draws those of all rows as a heatmap, updates x time
    dE_dh_at/lag_0000 ... dE_dh_at/t_1   log10 norms of the top layer at some lags T - t, the same for every length, and
                                         at the first time step: lines, which are all that the terminal dashboard draws
The exact series are in our store alone; neither of the last two goes into the summary.

`wandb` is imported by the first sink that needs it (half a second, and its folders have to be known before).
"""

from __future__ import annotations

import logging
import os
import re
import resource
import shlex
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rnn_lab.recording import Row, RunInfo

logger = logging.getLogger("rnn_lab")

HEATMAPS = {"dE_dh/log10_norm": "dE_dh", "delta/log10_norm": "delta"}
LAGS = (0, 5, 10, 20, 50, 100, 200, 500, 1000)
SMALLEST, LARGEST = -46.0, 39.0  # decades just outside float32: its smallest number is 1e-44.9, its largest 1e38.5
MOST_BINS = 512  # wandb refuses a histogram with more
LONGEST_ID = 64

FLUSH_INTERVAL = 0.5  # seconds of rows that a kill -9 may cost; wandb's own default of 15 loses short runs whole
INIT_TIMEOUT = 20.0  # seconds; wandb itself adds about five
FINISH_TIMEOUT = 20.0  # seconds that the first run to get stuck at its end waits for a server; the others then don't
CLOSE_TIMEOUT = 2.0  # seconds until a file counts as incomplete: wandb-core writes its tail after `finish` has returned

# wandb-core holds three descriptors a run and, without them, loses rows and says nothing; this process holds one, and
# three for our own store.
DESCRIPTORS_PER_RUN, SPARE_DESCRIPTORS = 4, 200


@dataclass
class _Process:
    """What all sinks of a process share: wandb has one server (wandb-core) a process, and a user needs one warning."""

    warned: set[str] = field(default_factory=set)
    open_runs: int = 0
    core: int = 0  # counts the wandb-cores: a sink of a dead one must not shut down its successor
    online_failed: bool = False
    finish_stuck: bool = False

    def warn(self, kind: str, text: str) -> None:
        if kind not in self.warned:
            self.warned.add(kind)
            logger.warning("%s", " ".join(text.split()))


_process = _Process()


class WandbSink:
    """Mirrors one run into wandb. Raises nothing: it warns once a process and then ignores its rows.

    mode: offline (files only, to be synced later), online (offline when the server can't be reached), or disabled
    (wandb isn't even imported). An unsynced offline copy of the same run id is discarded first: the run starts again,
    and syncing two files with one id would mix their rows.
    """

    def __init__(self, info: RunInfo, mode: str, project: str = "rnn_lab") -> None:
        self._run: Any = None
        self._core = _process.core
        self._rows = 0
        if mode == "disabled":
            return
        try:
            if not _enough_descriptors(_process.open_runs + 1):
                return
            if mode == "online" and not _process.online_failed:
                self._run = _open_online(info, project)
            else:
                self._run = _open(info, "offline", project)
            self._core = _process.core
            _process.open_runs += 1
            self._run.define_metric("through_time/*", summary="none")
            self._run.define_metric("dE_dh_at/*", summary="none")
        except Exception as error:
            self._fail("could not start", error)

    def log(self, row: Row) -> None:
        """Scalars, sampled time steps and heatmaps of one row, about a millisecond. Steps must increase."""
        if self._run is None:
            return
        try:
            payload: dict[str, Any] = {name: float(value) for name, value in row.scalars.items()}
            if "dE_dh/log10_norm" in row.timesteps:
                payload |= sampled(row.timesteps["dE_dh/log10_norm"][-1])
            for series, short in HEATMAPS.items():
                for layer, norms in enumerate(row.timesteps.get(series, ()), start=1):
                    payload[f"through_time/{short}/layer{layer}"] = _histogram(norms)
            self._run.log(payload, step=int(row.step), commit=True)  # without commit the last row would wait for a next
            self._rows += 1
        except Exception as error:
            self._fail("stopped recording", error)

    def finish(self, status: str, summary: dict[str, float]) -> None:
        """Close the run: exit code 0 for completed and diverged, else 1. Waits for FINISH_TIMEOUT seconds at most.

        The summary also gets `status`. wandb writes a nan of the summary as null.
        """
        if self._run is None:
            return
        run, file, errors = self._run, Path(self._run.settings.sync_file), []

        def close() -> None:
            try:
                run.summary.update({**{name: float(value) for name, value in summary.items()}, "status": status})
                run.finish(exit_code=0 if status in ("completed", "diverged") else 1)
            except Exception as error:
                errors.append(error)

        # In a thread: wandb's own time-out doesn't cover a wandb-core that no longer answers, and with a dead server it
        # would count for each run anew.
        thread = threading.Thread(target=close, name="wandb-finish", daemon=True)
        thread.start()
        thread.join(0.1 if _process.finish_stuck else FINISH_TIMEOUT)
        if errors:
            return self._fail("could not finish", errors[0])
        self._forget()
        if thread.is_alive():
            _process.finish_stuck = True
            later = f"wandb sync --include-online {file.parent}"
            text = f"wandb: still busy after {FINISH_TIMEOUT:g} s, not waiting; all rows are here, send them by {later}"
            return _process.warn("stuck", text)
        if "lost" in _process.warned:
            return None
        patience = time.monotonic() + CLOSE_TIMEOUT
        while (kept := rows_in(file)) < self._rows and time.monotonic() < patience:
            time.sleep(0.01)
        if kept < self._rows:
            _process.warn("lost", f"wandb: only {kept} of {self._rows} rows reached {file} (disk full?)")

    def _fail(self, what: str, error: Exception) -> None:
        _process.warn("failed", f"wandb: {what} ({_describe(error)}); the run goes on, our own store has its rows")
        self._forget()
        if isinstance(error, ConnectionError) or type(error).__name__ == "MailboxClosedError":
            _abandon_core(self._core)

    def _forget(self) -> None:
        _process.open_runs -= self._run is not None
        self._run = None


def heat(log10_norm: np.ndarray) -> np.ndarray:
    """The colour of a norm: log10 norm + 46, clipped to 0..85. So 46 is a norm of 1, and each unit is a decade.

    0 means "below float32" (and -inf, a gradient of exactly zero), 85 "above float32" (and inf or nan: blown up). A
    heatmap wants counts, which are finite and not negative; it also has one colour scale for all its rows, so that one
    value of 1e-300 without the clip would leave no colours for the rest.
    """
    finite = np.where(np.isnan(log10_norm), LARGEST, np.asarray(log10_norm, dtype=np.float64))
    return np.clip(finite, SMALLEST, LARGEST) - SMALLEST


def pooled(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over as few neighbouring time steps as leave at most 512 bins, and the bins' edges in 0..T.

    Bin k holds time steps edges[k] + 1 ... edges[k + 1]; up to T = 512 that is the one step t = k + 1.
    """
    T = len(values)
    starts = np.arange(0, T, -(-T // MOST_BINS))
    edges = np.append(starts, T)
    return np.add.reduceat(values, starts) / np.diff(edges), edges


def sampled(log10_norm: np.ndarray) -> dict[str, float]:
    """The norms at LAGS (lag 0 is the last time step) and at the first time step, as scalars named by lag."""
    T = len(log10_norm)
    chosen = {f"dE_dh_at/lag_{lag:04d}": float(log10_norm[T - 1 - lag]) for lag in LAGS if lag < T}
    return {**chosen, "dE_dh_at/t_1": float(log10_norm[0])}


def wandb_id(info: RunInfo) -> str:
    """The readable name in safe characters, cut to 64 of them, with the whole run id at its end."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", info.name.removesuffix(info.run_id))
    readable = readable[: LONGEST_ID - len(info.run_id) - 1].strip("-")
    return f"{readable}-{info.run_id}" if readable else info.run_id


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


def _histogram(log10_norm: np.ndarray) -> Any:
    import wandb

    values, edges = pooled(heat(log10_norm))
    return wandb.Histogram(np_histogram=(np.round(values, 3), edges))


def _open(info: RunInfo, mode: Literal["offline", "online"], project: str) -> Any:
    folder = info.directory.parent.resolve() / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    identity = wandb_id(info)
    _discard_unsynced(folder, identity)

    os.environ["WANDB_ERROR_REPORTING"] = "false"  # else even an offline run looks up a server
    os.environ.setdefault("WANDB_DIR", str(folder.parent))
    os.environ.setdefault("WANDB_DATA_DIR", str(folder / ".data"))
    os.environ.setdefault("WANDB_CACHE_DIR", str(folder / ".cache"))
    import wandb

    settings = wandb.Settings(
        silent=True,  # wandb prints three lines a run; what matters is told by our own warnings
        console="off",
        x_disable_stats=True,
        x_disable_meta=True,  # the command line would go into it
        x_disable_machine_info=True,
        x_save_requirements=False,
        disable_git=True,
        disable_code=True,
        symlink=False,
        x_transaction_log_flush_interval=FLUSH_INTERVAL,
        init_timeout=INIT_TIMEOUT,
        login_timeout=INIT_TIMEOUT,
        finish_timeout=FINISH_TIMEOUT + 5.0,  # how long the process may wait at its own end
    )
    if mode == "online":
        wandb.setup(settings)  # or it would tell where it found the key
    return wandb.init(
        project=project,
        dir=str(folder.parent),
        id=identity,
        name=info.name,
        group=info.sweep,
        job_type="train",
        tags=[tag[:LONGEST_ID] for tag in info.tags if tag],
        config=info.config,
        mode=mode,
        reinit="create_new",  # the default hands out the run that is open already
        settings=settings,
    )


def _open_online(info: RunInfo, project: str) -> Any:
    """An online run; where the server can't be reached an offline one, as are then all later runs of this process."""
    folder, mine = info.directory.parent / "wandb", f"run-*-{wandb_id(info)}"
    before = set(folder.glob(mine))
    try:
        return _open(info, "online", project)
    except Exception as error:
        _process.online_failed = True
        _process.warn("online", f"wandb: no connection ({_describe(error)}); recording offline instead")
        if _process.open_runs:  # wandb-core still holds the failed run's id, and can't be restarted under the others
            raise
        _abandon_core(_process.core)
        for failed in set(folder.glob(mine)) - before:
            shutil.rmtree(failed, ignore_errors=True)
        return _open(info, "offline", project)


def _discard_unsynced(folder: Path, identity: str) -> None:
    for old in folder.glob(f"offline-run-*-{identity}"):
        ours = re.fullmatch(rf"offline-run-\d{{8}}_\d{{6}}-{re.escape(identity)}", old.name)
        if ours and not any(old.glob("*.synced")):
            shutil.rmtree(old, ignore_errors=True)


def _enough_descriptors(runs: int) -> bool:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = DESCRIPTORS_PER_RUN * runs + SPARE_DESCRIPTORS
    if hard != resource.RLIM_INFINITY and hard < needed:
        text = f"wandb: {runs} open runs need {needed} file descriptors, `ulimit -Hn` is {hard}; not recording the rest"
        _process.warn("descriptors", text)
        return False
    if soft != resource.RLIM_INFINITY and soft < needed:
        # To what is needed and not to the hard limit: some programs walk through all descriptors that could be open.
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return True


def _abandon_core(core: int) -> None:
    """Let go of a wandb-core that died or has no runs: the next run starts a new one, nothing is printed at exit."""
    if core != _process.core:
        return
    _process.core += 1
    import wandb

    try:
        wandb.teardown()
    except Exception as error:
        logger.debug("wandb: teardown: %s", _describe(error))


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200] if str(error) else type(error).__name__
