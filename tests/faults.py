"""Sweeps that are killed again and again and started again by the same command, held to one that nobody disturbed.

    python tests/faults.py --faults 200 --seed 0        (make faults)

Each sweep goes through the command line in a child of this process, which has imported torch before (a fork costs nothing). At moments
drawn from the seed, while Hydra composes, while runs train, or just as they end, the child gets SIGKILL, SIGTERM, SIGINT, or SIGSTOP and
SIGCONT; then the same command runs again. While it runs, every line of every steps.jsonl is watched: once seen, it stays where it is.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from commands import TRAIN, _run_script

from rnn_lab import results
from rnn_lab.recording import store
from rnn_lab.recording.wandb.files import rows_in

# 12 runs in 4 programs; those with lr=0.5 and without a clip diverge on their way. B = 20, H = 50: bitwise in any program.
SWEEP = [
    *(
        "-m",
        "sweep=faulty",
        "task.length=20",
        "training.updates=400",
        "training.log_every=5",
        "model.activation=linear",
    ),
    *("clip=none,autoclip", "optimizer=momentum", "optimizer.lr=0.003,0.03", "seed=range(3)"),
    *("eval.every=100", "eval.sequences=200", "hydra.launcher.max_runs=4", "hydra.launcher.checkpoint_seconds=0.2"),
]
RUNS, MOST_ROWS = 12, 250  # rows until a fault
EXIT = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGINT: 128 + signal.SIGINT}
VARYING = ["path", "command", "seconds", "cpu_seconds", "started", "finished", "program_runs"]  # columns of .runs


class Fault(AssertionError):
    """What must not happen has happened."""


def check(holds: bool, *what: object) -> None:
    if not holds:
        raise Fault(" ".join(map(str, what)))


@dataclass
class Figures:
    """What has been done and found."""

    faults: Counter[str] = field(default_factory=Counter)
    during: Counter[str] = field(default_factory=Counter)
    sweeps: int = 0
    commands: int = 0
    resumed: int = 0
    rows_watched: int = 0
    rows_lost: int = 0
    rows_doubled: int = 0


class Sweep:
    """One sweep in a folder of its own, and what has been seen of it."""

    def __init__(self, folder: Path, tracker: str, figures: Figures):
        self.folder, self.arguments, self.figures = folder, [*SWEEP, f"tracker={tracker}"], figures
        self.directory, self.tracker = folder / "runs" / "faulty", tracker
        self.seen: dict[Path, bytes] = {}
        folder.mkdir()

    def start(self) -> int:
        """The command, in a child; its process id."""
        self.figures.commands += 1
        sys.stdout.flush()
        if child := os.fork():
            return child
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ["FAULTS_FOLDER"] = str(self.folder)
        os.chdir(self.folder)
        log = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        _run_script(self.arguments)
        raise AssertionError

    def watch(self) -> None:
        """Every line that was seen is still there, and in its place."""
        for file in self.directory.glob("*/steps.jsonl"):
            content = file.read_bytes()
            whole, before = content[: content.rfind(b"\n") + 1], self.seen.get(file, b"")
            if not whole.startswith(before):
                self.figures.rows_lost += len(set(before.splitlines()) - set(whole.splitlines()))
                raise Fault(f"{file}: rows that were there are gone")
            self.seen[file] = whole

    def phase(self, launched: int) -> str:
        """What the command does at the moment; launched: size of sweep.log before it."""
        log = self.directory / "sweep.log"
        new = log.read_bytes()[launched:] if log.exists() else b""
        if b"started" not in new and b"resumed" not in new:
            return "composing"
        ends = sum(b'"step": 400,' in content for content in self.seen.values())
        ended = sum((store.read_run(run.parent) or {}).get("status") == "completed" for run in self.seen)
        return "finishing" if ends > ended else "training"

    def rows(self) -> int:
        return sum(content.count(b"\n") for content in self.seen.values())

    def log_size(self) -> int:
        log = self.directory / "sweep.log"
        return log.stat().st_size if log.exists() else 0

    def statuses(self) -> Counter[str]:
        return Counter((store.read_run(run) or {}).get("status", "none") for run in self.directory.glob("*/"))


def ended(child: int) -> int | None:
    """The exit status of a child that has ended."""
    pid, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def catches(child: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    [mask] = re.findall(r"^SigCgt:\s*([0-9a-f]+)$", Path(f"/proc/{child}/status").read_text(), re.M) or ["f" * 16]
    return bool(int(mask, 16) >> (number - 1) & 1)


def until(sweep: Sweep, child: int, kind: str, rng: random.Random) -> int | None:
    """Watches until the moment of a fault; the exit status of a command that ends before. kind: "early": within a second; "rows": when some
    more rows are there; "end": when a run is about to end.
    """
    while not catches(child, signal.SIGTERM):  # before, Python itself is still starting
        time.sleep(0.005)
    launched, began, before = sweep.log_size(), time.monotonic(), sweep.rows()
    moment, more = rng.uniform(0, 1), rng.randint(1, MOST_ROWS)
    while (status := ended(child)) is None:
        sweep.watch()
        if kind == "early" and time.monotonic() - began > moment:
            break
        if kind == "rows" and sweep.rows() >= before + more:
            break
        if kind == "end" and sweep.phase(launched) == "finishing":
            break
        time.sleep(0.005)
    return status


def disturb(sweep: Sweep, rng: random.Random) -> bool:
    """Starts the command and does one fault (or a pause and then a fault) to it. Whether it was there to be disturbed."""
    launched, child = sweep.log_size(), sweep.start()
    number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP])
    status = until(sweep, child, rng.choice(["early", "rows", "rows", "end"]), rng)
    if status is None and number == signal.SIGSTOP:
        os.kill(child, number)
        time.sleep(rng.uniform(0, 0.3))
        os.kill(child, signal.SIGCONT)
        sweep.figures.faults["SIGSTOP"] += 1
        number = signal.SIGKILL
        status = until(sweep, child, "rows", rng)
    if status is None:
        sweep.figures.during[sweep.phase(launched)] += 1
        sweep.figures.faults[signal.Signals(number).name] += 1
        os.kill(child, number)
        status = wait(sweep, child)
        check(status in (EXIT[number], 0), "exit status", status, "after", signal.Signals(number).name)
        check(status != 0 or sweep.statuses()["killed"] == 0, "exit status 0 although runs were killed")
        return True
    check(status == 0, "exit status", status, "of a command that nobody disturbed")
    return False


def wait(sweep: Sweep, child: int, timeout: float = 120) -> int:
    began = time.monotonic()
    while (status := ended(child)) is None:
        sweep.watch()
        if time.monotonic() - began > timeout:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise Fault(f"the command did not end within {timeout:g} s")
        time.sleep(0.02)
    return status


def recorded(sweep: Sweep) -> dict[tuple[str, str], bytes]:
    files = [
        f for run in sweep.directory.glob("*/") for f in (run / "steps.jsonl", run / "timesteps.f32") if f.exists()
    ]
    return {(f.parent.name, f.name): f.read_bytes() for f in files}


def held_to(sweep: Sweep, undisturbed: Sweep) -> None:
    """At the end: the frames, the bytes, one wandb file a run with all rows, no lock and nothing left lying about."""
    check(recorded(sweep) == recorded(undisturbed), "other bytes than the undisturbed sweep's")
    mine, theirs = results.load(sweep.directory), results.load(undisturbed.directory)
    varying = [name for name in VARYING if name in mine.runs] + ["tracker.name"]
    check(mine.runs.drop(columns=varying).equals(theirs.runs.drop(columns=varying)), "other runs")
    check(mine.steps.equals(theirs.steps), "other steps")
    check(mine.timesteps.equals(theirs.timesteps), "other timesteps")
    doubled = int(mine.steps.duplicated(["run_id", "step"]).sum())
    sweep.figures.rows_doubled += doubled
    check(doubled == 0, doubled, "rows doubled")
    for run in sweep.directory.glob("*/"):
        if run.name != "wandb":
            names = {p.name for p in run.iterdir()}
            check(names == {".hydra", "run.json", "steps.jsonl", "timesteps.f32", "train.log"}, run, "holds", names)
            os.close(store.lock(run))
            sweep.figures.resumed += len(json.loads((run / "run.json").read_text())["resumed"])
    os.close(store.lock(sweep.directory))
    if sweep.tracker == "wandb":
        files = list(sweep.directory.glob("wandb/*run-*/*.wandb"))
        check(len(files) == RUNS, len(files), "wandb files for", RUNS, "runs")
        ids = mine.steps.groupby("run_id").size()
        for file in files:
            rows = ids[re.search(r"([0-9a-f]{10})\.wandb$", file.name)[1]]  # type: ignore[index]
            told = (
                f"rows reached {file}" in (sweep.folder / "output.txt").read_text()
            )  # wandb-core too slow, then killed
            check(rows_in(file) == rows or told, file, "holds", rows_in(file), "of", rows, "rows, and nobody said so")


def nothing_left(folder: Path, patience: float = 15) -> None:
    """No process that a command started lives on."""
    mark, gone = f"FAULTS_FOLDER={folder}".encode(), time.monotonic() + patience
    while left := [p for p in Path("/proc").glob("[0-9]*") if mark in _environment(p)]:
        check(time.monotonic() < gone, "processes left:", *[(p / "cmdline").read_bytes() for p in left])
        time.sleep(0.1)


def _environment(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""


def campaign(faults: int, seed: int, folder: Path) -> Figures:
    """So many faults, several a sweep, on sweeps with and without wandb. Raises Fault."""
    rng, figures = random.Random(seed), Figures()
    undisturbed = Sweep(folder / "undisturbed", "none", Figures())
    check(wait(undisturbed, undisturbed.start()) == 0, "the undisturbed sweep failed")
    statuses = undisturbed.statuses()
    check(statuses["completed"] + statuses["diverged"] == RUNS and statuses["diverged"] > 0, statuses)
    while sum(figures.faults.values()) < faults:
        sweep = Sweep(folder / f"sweep{figures.sweeps}", ("wandb", "none")[figures.sweeps % 2], figures)
        try:
            for _ in range(rng.randint(4, 12)):
                if not disturb(sweep, rng):
                    break
            check(wait(sweep, sweep.start()) == 0, "the last command failed")
            held_to(sweep, undisturbed)
            nothing_left(sweep.folder)
        except Fault as fault:
            raise Fault(f"{fault} ({sweep.folder}, seed {seed}, {figures})") from fault
        figures.sweeps += 1
        figures.rows_watched += sweep.rows()
        shutil.rmtree(sweep.folder)
        print(json.dumps(vars(figures)), file=sys.stderr, flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    warm()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    began = time.monotonic()
    figures: dict[str, Any] = vars(campaign(given.faults, given.seed, folder))
    shutil.rmtree(folder)
    print(json.dumps(figures | {"seconds": round(time.monotonic() - began)}))


def warm() -> None:
    """Imports what every child needs; starts no thread."""
    import torch  # noqa: F401
    from hydra import compose, initialize_config_dir

    import rnn_lab.runner  # noqa: F401
    from rnn_lab import app

    app.register()
    with initialize_config_dir(str(TRAIN.parents[1] / "conf"), version_base="1.3"):
        compose("config", ["seed=1"])


if __name__ == "__main__":
    main()
