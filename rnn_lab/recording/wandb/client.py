"""One run through wandb's own client: its settings, its rows, its end. What is here may raise or hang; the mirror copes."""

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rnn_lab.recording.follow import Follower
from rnn_lab.recording.store import FINISHED
from rnn_lab.recording.wandb.files import LONGEST_ID, discard, errors_in, mark_synced, rows_in, wandb_id
from rnn_lab.recording.wandb.payload import MOST_TABLE_ROWS, Summary, chosen, payload, table

FLUSH_INTERVAL = 0.5  # seconds of rows that the end of all processes may cost; wandb's own 15 lose short runs whole
INIT_TIMEOUT = 20.0  # seconds; wandb itself adds about five
CLOSE_TIMEOUT = (
    10.0  # seconds until a file counts as incomplete: wandb-core writes its tail after `finish` has returned
)
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
            self._rows, self._status = 0, "running"
            self._run = _init(directory.parent, identity, record, mode, project)
            self._run.define_metric("through_time/*", summary="none")
            self._run.define_metric("dE_dh_at/*", summary="none")
        except BaseException:
            self._follower.close()
            raise
        self.file = Path(self._run.settings.sync_file)
        self.online = mode == "online"

    @property
    def ended(self) -> bool:
        """Whether the last look found that no row will come any more."""
        return self._status != "running"

    def advance(self) -> int:
        """Records the next rows, a hundred at most; how many."""
        self._status = self._follower.record()["status"]  # first: a row may still come after "running"
        rows = self._follower.rows(ROWS_AT_ONCE)
        for row in rows:
            self._summary.add(row)
            self._run.log(payload(row, self._series), step=row.step, commit=True)  # else a row waits for the next
        self._rows += len(rows)
        return len(rows)

    def conclude(self) -> None:
        """How the run ended and, where it has a result, the table and our own exact file. `close` is still to come."""
        record = self._follower.record()
        if record["status"] == "running":  # nobody is there to say how it ended
            record["status"] = "killed"
        self._run.config.update({"lab": _lab(record)}, allow_val_change=True)
        self._run.summary.update(self._summary.ended(record))
        result = record["status"] in FINISHED
        if result and self._rows:
            self._run.summary.update({"timesteps": self._table()})
            exact = self._follower.directory / "timesteps.f32"
            self._run.save(str(exact), base_path=str(exact.parent), policy="now")
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
        return exact


def _lab(record: Mapping[str, Any]) -> dict[str, Any]:
    """What our run.json says beside config and numbers: origin, sizes, baseline, times."""
    return {key: value for key, value in record.items() if key not in ("config", "summary")}


def _init(sweep: Path, identity: str, record: Mapping[str, Any], mode: str, project: str) -> Any:
    folder = sweep / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # else even an offline run looks up a server
    os.environ.setdefault("WANDB_DIR", str(sweep))
    os.environ.setdefault("WANDB_DATA_DIR", str(folder / ".data"))
    os.environ.setdefault("WANDB_CACHE_DIR", str(folder / ".cache"))
    import wandb

    git = record.get("git") or {}
    settings = wandb.Settings(
        silent=True,
        console="off",
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        disable_git=True,  # it would be the commit of wherever this runs
        git_commit=git.get("commit") or None,
        disable_code=True,
        symlink=False,
        x_transaction_log_flush_interval=FLUSH_INTERVAL,
        init_timeout=INIT_TIMEOUT,
        login_timeout=INIT_TIMEOUT,
    )
    if mode == "online":
        wandb.setup(settings)  # or it would tell where it found the key
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
        settings=settings,
    )
