"""What the tests of hydra.launcher.engine share: a sweep whose middle program takes a while, who trains a run, and how it has to end."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from commands import SMALL, TRAIN, end, start, train

from rnn_lab import results
from rnn_lab.recording.store import read_run

RECORDED = ("steps.jsonl", "timesteps.f32")
LONG = 1500
# Programs of two runs, of the reference, which takes its time; B = 20, H = 50: bitwise in any program, since those that go on later may
# be cut anew.
THREE = ["-m", "task.length=10", "training.log_every=1", "tracker=none", f"training.updates=20,{LONG},21", "seed=0,1"]
THREE += ["training.kernel=reference"]
ALIGNED = ["-m", "task.length=20", "training.updates=20", "training.log_every=5", "tracker=none", "seed=range(3)"]
ALIGNED += [
    "clip=norm",
    "clip.threshold=0.1,1",
    "init.scale=1,3",
    "eval.every=10",
    "eval.sequences=100",
]


OWN_CELL = """
import hydra
import torch
from rnn_lab import app


class Half:
    def step(self, z, h, W):
        return torch.tanh(z + 0.5 * h @ W)


app.register_cell("half", Half)


@hydra.main(version_base="1.3", config_path={conf!r}, config_name="config")
def main(config):
    return app.train_one(config)


if __name__ == "__main__":
    app.command_line(main)
"""


def runs_of(cwd: Path) -> dict[str, Path]:
    """The runs by their ids."""
    return {p.parent.name: p.parent for p in sorted(cwd.glob("runs/default/*/run.json"))}


def recorded(cwd: Path) -> dict[tuple[str, str], bytes]:
    """All that was measured, by run and file."""
    return {(name, file): (run / file).read_bytes() for name, run in runs_of(cwd).items() for file in RECORDED}


def statuses(cwd: Path) -> list[tuple[int, str]]:
    runs = results.load(cwd / "runs" / "default").runs
    return sorted(zip(runs["training.updates"], runs["status"], strict=True))


def until(holds: Callable[[], bool], seconds: float = 120) -> None:
    """Waits for it."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "did not come true"
        time.sleep(0.05)


def long_runs(cwd: Path) -> list[Path]:
    """The two runs of the program that takes a while, once they have begun."""
    found = [run for run in runs_of(cwd).values() if _updates(run) > 21]
    return found if len(found) == 2 else []


def _updates(run: Path) -> int:
    record = read_run(run)
    return record["config"]["training"]["updates"] if record else 0


def under_way(cwd: Path, rows: int = 30) -> bool:
    """Whether the long program has recorded some rows."""
    files = [run / "steps.jsonl" for run in long_runs(cwd)]
    return bool(files) and all(file.read_bytes().count(b"\n") > rows for file in files)


def trainer(run: Path) -> int:
    """The process that holds the lock of a run."""
    inode = run.stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        _, kind, _, mode, pid, file, *_ = line.replace("-> ", "").split()
        if (kind, mode) == ("FLOCK", "WRITE") and int(file.rsplit(":", 1)[1]) == inode:
            return int(pid)
    raise LookupError(run)


def finished_as_if_undisturbed(cwd: Path, *arguments: str) -> None:
    """The same command ends it; then all files are those of the sweep that one process trained from beginning to end."""
    ended = train(*THREE, *arguments, cwd=cwd)
    assert ended.status == 0, ended.err
    assert {status for _, status in statuses(cwd)} == {"completed"}
    assert recorded(cwd) == undisturbed(THREE, cwd / "undisturbed")
    assert not list((cwd / "runs").rglob("*checkpoint*"))


def undisturbed(sweep: list[str], cwd: Path) -> dict[tuple[str, str], bytes]:
    """What hydra.launcher.engine=serial records."""
    cwd.mkdir()
    assert train(*sweep, cwd=cwd).status == 0
    return recorded(cwd)


def trains_an_own_cell(cwd: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
    """A cell of the user's script reaches the workers."""
    script = cwd / "half.py"
    script.write_text(OWN_CELL.format(conf=str(TRAIN.parents[1] / "conf")))
    ended = end(
        start("-m", *SMALL, "model=half", "seed=0,1", *arguments, cwd=cwd, script=script, environment=environment), 300
    )
    assert ended.status == 0, ended.err
    assert {status for _, status in statuses(cwd)} == {"completed"}


def marked(cwd: Path) -> list[int]:
    """The processes that were started for a folder: those with LAUNCHED_FOR in their environment."""
    mark = f"LAUNCHED_FOR={cwd}\0".encode()
    return [int(p.name) for p in Path("/proc").glob("[0-9]*") if int(p.name) != os.getpid() and mark in _environment(p)]


def _environment(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""
