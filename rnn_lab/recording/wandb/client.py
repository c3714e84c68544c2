"""One run through wandb's own client: its settings, its rows, its end. What is here may raise or hang; the mirror copes."""

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rnn_lab.recording.follow import Follower
from rnn_lab.recording.store import FINISHED
from rnn_lab.recording.wandb.bulk import log_rows
from rnn_lab.recording.wandb.files import LONGEST_ID, discard, errors_in, mark_synced, rows_in, wandb_id
from rnn_lab.recording.wandb.payload import MOST_TABLE_ROWS, Summary, chosen, payload, table

FLUSH_INTERVAL = 0.5  # seconds of rows that the end of all processes may cost; wandb's own 15 lose short runs whole
INIT_TIMEOUT = 20.0  # seconds; wandb itself adds about five
SETTINGS = {  # in the environment, wandb reads them once a process; given with each run, every one costs it a millisecond
    "WANDB_ERROR_REPORTING": "false",  # else even an offline run looks up a server
    "WANDB_MODE": "offline",  # what a run's own mode does not decide: no telemetry
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
    "WANDB_X_DISABLE_STATS": "true",
    "WANDB_X_DISABLE_META": "true",
    "WANDB_X_DISABLE_MACHINE_INFO": "true",
    "WANDB_X_SAVE_REQUIREMENTS": "false",
    "WANDB_DISABLE_GIT": "true",  # it would be the commit of wherever this runs
    "WANDB_DISABLE_CODE": "true",
    "WANDB_SYMLINK": "false",
    "WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL": str(FLUSH_INTERVAL),
    "WANDB_INIT_TIMEOUT": str(INIT_TIMEOUT),
    "WANDB_LOGIN_TIMEOUT": str(INIT_TIMEOUT),
}
CLOSE_TIMEOUT = (
    10.0  # seconds until a file counts as incomplete: wandb-core writes its tail after `finish` has returned
)
EVERY = 2.0  # seconds between two bites of a run's rows: the more at once, the less each costs
ROWS_AT_ONCE = 100


class Incomplete(RuntimeError):
    """wandb said nothing, and not everything is where it should be."""


class Recording:
    """A wandb run that repeats a run of our store from its first row on; what was recorded of that before is discarded.

    mode: offline or online.  series: "dE_dh" or "all".  Raises Locked where another process records the run, ValueError where there is
    none, and what wandb raises.
    """

    def __init__(self, directory: Path, mode: str, project: str, series: str):
        self._follower = Follower(directory)
        try:
            record = self._follower.record()
            identity = wandb_id(record["name"], record["run_id"])
            discard(directory.parent / "wandb", identity)
            self._series = chosen(record["series"], series)
            self._summary = Summary()
            self._rows, self._status, self._next = 0, "running", 0.0
            self._lab = _lab(record)
            self._run = _init(directory.parent, identity, record, mode, project)
        except BaseException:
            self._follower.close()
            raise
        self.file = Path(self._run.settings.sync_file)
        self.online = mode == "online"

    @property
    def ended(self) -> bool:
        """Whether the last look found that no row will come any more."""
        return self._status != "running"

    def advance(self, hurry: bool) -> int:
        """Records the next rows, a hundred at most; how many. Of a run that goes on, only every EVERY seconds, unless in a hurry."""
        self._status = self._follower.record()["status"]  # first: a row may still come after "running"
        if not (hurry or self.ended) and time.monotonic() < self._next:
            return 0
        rows = self._follower.rows(ROWS_AT_ONCE)
        for row in rows:
            self._summary.add(row)
        if len(rows) < ROWS_AT_ONCE:
            self._next = time.monotonic() + EVERY
        if rows:
            log_rows(self._run, [(row.step, payload(row, self._series)) for row in rows])
            if not self.ended:  # else `conclude` says it
                self._run.summary.update(self._summary.so_far())
        self._rows += len(rows)
        return len(rows)

    def conclude(self) -> None:
        """How the run ended and, where it has a result, the table and our own exact file. `close` is still to come."""
        record = self._follower.record()
        if record["status"] == "running":  # nobody is there to say how it ended
            record["status"] = "killed"
        if _lab(record) != self._lab:
            self._run.config.update({"lab": _lab(record)}, allow_val_change=True)
        summary, result = self._summary.ended(record), record["status"] in FINISHED
        if result and self._rows:
            summary["timesteps"] = self._table()
            exact = self._follower.directory / "timesteps.f32"
            self._run.save(str(exact), base_path=str(exact.parent), policy="now")
        self._run.summary.update(summary)
        self._exit_code = 0 if result else 1
        self._follower.close()

    def close(self) -> None:
        """Ends the wandb run; waits for the server, for ever if need be. Raises Incomplete."""
        self._run.finish(exit_code=self._exit_code)
        patience = time.monotonic() + CLOSE_TIMEOUT
        while (kept := rows_in(self.file)) < self._rows:
            if time.monotonic() > patience:
                raise Incomplete(f"only {kept} of {self._rows} rows reached {self.file} (disk full?)")
            time.sleep(0.01)
        if self.online:
            if complaints := errors_in(Path(self._run.settings.log_internal)):
                raise Incomplete(f"not everything was sent: {complaints[-1]}")
            mark_synced(self.file)

    def release(self) -> None:
        """Lets go of our store's files; wandb-core is dead."""
        self._follower.close()

    def abandon(self) -> None:
        """Ends the wandb run as it is, so that its id is free."""
        self.release()
        with contextlib.suppress(Exception):
            self._run.finish(exit_code=1)

    def _table(self) -> Any:
        import wandb
        from wandb.sdk.data_types import table as module

        self._follower.rewind()
        columns, cells = table(self._follower.rows(self._rows), self._series)
        theirs: Any = module
        theirs._numpy_arrays_to_lists = lambda data: (
            data
        )  # looks for arrays in every cell, ten times what the rest takes
        theirs.Table.MAX_ROWS = MOST_TABLE_ROWS  # its own 10,000 are of a time before artifacts
        exact: Any = wandb.Table(columns=[*columns])
        exact.data = cells  # given to its constructor, every cell's type is looked at: seconds
        exact.bind_to_run(self._run, "timesteps", "summary")  # bound by the summary, it would be an artifact as well
        return exact.to_json(
            self._run
        )  # for the table itself, the summary would import pandas, to see if it is a frame


def _lab(record: Mapping[str, Any]) -> dict[str, Any]:
    """What our run.json says beside config and numbers: origin, sizes, baseline, times."""
    return {key: value for key, value in record.items() if key not in ("config", "summary")}


def load() -> Any:
    """wandb, imported with our settings: a second's work, the first time."""
    os.environ.update(SETTINGS)
    import wandb

    return wandb


def _init(sweep: Path, identity: str, record: Mapping[str, Any], mode: str, project: str) -> Any:
    folder = sweep / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("WANDB_DIR", str(sweep))
    os.environ.setdefault("WANDB_DATA_DIR", str(folder / ".data"))
    os.environ.setdefault("WANDB_CACHE_DIR", str(folder / ".cache"))
    wandb = load()
    git = record.get("git") or {}
    return wandb.init(
        project=project,
        dir=str(sweep),
        id=identity,
        name=record["name"],
        group=record["sweep"],
        job_type="train",
        tags=[tag[:LONGEST_ID] for tag in record.get("tags", ()) if tag],
        notes=record.get("command"),
        config={**record["config"], "lab": _lab(record)},
        mode="online" if mode == "online" else "offline",
        reinit="create_new",  # the default hands out the run that is open already
        settings=wandb.Settings(git_commit=git.get("commit") or None),
    )
