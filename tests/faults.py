"""Sweeps that are disturbed again and again and started again by the same command, held to one that nobody disturbed.

    python tests/faults.py --faults 300 --seed 0        (make faults)

Each sweep goes through the command line in a child of this process, which has imported torch before (a fork costs nothing). While a
command runs, one thing is done to it (FAULTS); when it has ended, some of its files are cut or get a flipped bit. After each of these
the sweep is loaded: what is there is what the undisturbed sweep holds, or a message names the file. While a command runs, every line of
every steps.jsonl is watched: once seen, it stays where it is. At the end, the same command makes the sweep whole, to the bit.
"""

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import cycle
from pathlib import Path
from typing import Any

from commands import TRAIN, _run_script

from rnn_lab import results
from rnn_lab.recording import journal, store
from rnn_lab.recording.runs import damage
from rnn_lab.recording.status import status
from rnn_lab.recording.wandb.files import rows_in

# 6 runs in 3 programs; those with lr=3 diverge on their way. B = 20, H = 50: bitwise in any program.
SWEEP = [
    *(
        "-m",
        "sweep=faulty",
        "task.length=10",
        "training.updates=120",
        "training.log_every=5",
        "training.kernel=reference",
    ),
    *("clip=autoclip", "optimizer=momentum", "optimizer.lr=0.003,0.03,3", "seed=range(2)", "model.activation=linear"),
    *("eval.every=60", "eval.sequences=50", "probe.contributions_every=120", "probe.spectrum_every=120"),
    *("hydra.launcher.max_runs=2", "hydra.launcher.checkpoint_seconds=0.05"),
]
RUNS, LAST = 6, b'"step": 120,'
# Every tenth sweep is mirrored in wandb, and every tenth has workers: a second or two of imports a command.
ENGINES = {1: ["tracker=wandb"], 2: ["tracker=none", "hydra.launcher.engine=processes", "hydra.launcher.workers=2"]}
PLAIN = ["tracker=none"]
VARYING = ["path", "command", "seconds", "cpu_seconds", "started", "finished", "program_runs", "resumed", "flags"]
OURS = ("run.json", "steps.jsonl", "timesteps.f32", "contributions/*.npy")  # harm to these is harm to what is recorded
HARMED = (
    *(f"*/{name}" for name in (*OURS, "checkpoint.pt", "train.log", ".hydra/*.yaml")),
    "*.parquet",
    "*.log",
    "*.yaml",
)


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
    told: int = 0  # how often loading was refused, the file named
    rows_watched: int = 0
    rows_lost: int = 0
    rows_doubled: int = 0


class Sweep:
    """One sweep in a folder of its own, and what has been seen of it."""

    def __init__(self, folder: Path, more: list[str], figures: Figures):
        self.folder, self.arguments, self.figures = folder, [*SWEEP, *more], figures
        self.directory, self.wandb = folder / "runs" / "faulty", more == ENGINES[1]
        self.output = folder.parents[1] / f"{folder.name}.txt"  # beside the disk that gets full
        self.seen: dict[Path, bytes] = {}
        self.harmed: set[Path] = set()  # since the last command: their rows may be gone
        self.names: set[str] = set()  # of all that were ever harmed
        folder.mkdir()

    def start(self, clock: timedelta = timedelta()) -> int:
        """The command, in a child; its process id. clock: what is added to the time of day."""
        self.figures.commands += 1
        sys.stdout.flush()
        if child := os.fork():
            return child
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ["FAULTS_FOLDER"] = str(self.folder)
            os.chdir(self.folder)
            if clock:
                _set_clock(clock)
            log = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            _run_script(self.arguments)
        finally:  # never back into the campaign
            os._exit(70)

    def watch(self) -> None:
        """Every line that was seen is still there, and in its place."""
        for file in self.directory.glob("*/steps.jsonl"):
            if file.parent in self.harmed:
                continue
            with suppress(FileNotFoundError):
                content = file.read_bytes()
                whole, before = content[: content.rfind(b"\n") + 1], self.seen.get(file, b"")
                if not whole.startswith(before):
                    self.figures.rows_lost += len(set(before.splitlines()) - set(whole.splitlines()))
                    raise Fault(f"{file}: rows that were there are gone")
                self.seen[file] = whole

    def harm(self, run: Path) -> None:
        """Rows of this run may be gone until the next command has ended."""
        self.harmed.add(run)
        self.seen.pop(run / "steps.jsonl", None)

    def phase(self, launched: int) -> str:
        """What the command does at the moment; launched: size of sweep.log before it."""
        log = self.directory / "sweep.log"
        new = log.read_bytes()[launched:] if log.exists() else b""
        if b"started" not in new and b"resumed" not in new:
            return "composing"
        ends = sum(LAST in content for content in self.seen.values())
        ended = sum((store.read_run(run.parent) or {}).get("status") == "completed" for run in self.seen)
        return "finishing" if ends > ended else "training"

    def rows(self) -> int:
        return sum(content.count(b"\n") for content in self.seen.values())

    def log_size(self) -> int:
        log = self.directory / "sweep.log"
        return log.stat().st_size if log.exists() else 0

    def runs(self) -> list[Path]:
        return sorted(path for path in self.directory.glob("*/") if re.fullmatch(r"[0-9a-f]{10}", path.name))

    def statuses(self) -> Counter[str]:
        return Counter((store.read_run(run) or {}).get("status", "none") for run in self.runs())

    def unfinished(self) -> int:
        return RUNS - sum(store.finished_run(run) is not None for run in self.runs())

    def said(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""


def _set_clock(by: timedelta) -> None:
    """For what our own code asks of the time of day in this process; file times and the mirror's process keep theirs."""

    class Moved(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + by

    real = time.time
    time.time = lambda: real() + by.total_seconds()
    store.datetime = journal.datetime = Moved  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------- what is done to a command


def ended(child: int) -> int | None:
    """The exit status of a child that has ended."""
    pid, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def catches(child: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    [mask] = re.findall(r"^SigCgt:\s*([0-9a-f]+)$", Path(f"/proc/{child}/status").read_text(), re.M) or ["f" * 16]
    return bool(int(mask, 16) >> (number - 1) & 1)


MOMENTS = ("early", "rows", "end", "rows")


def until(sweep: Sweep, child: int, moment: str, rng: random.Random) -> int | None:
    """Watches until the moment of a fault, and leaves the command stopped there; the exit status of a command that ends before.
    moment: "early": within half a second; "rows": when some more rows are there; "end": when a run is about to end. That is soon over,
    hence the command does not go on while we look.
    """
    while not catches(child, signal.SIGTERM):  # before, Python itself is still starting
        time.sleep(0.005)
    launched, began, before = sweep.log_size(), time.monotonic(), sweep.rows()
    early, more = rng.uniform(0, 0.5), rng.randint(1, 5 + 10 * sweep.unfinished())
    while (status := ended(child)) is None:
        if moment == "end":
            os.kill(child, signal.SIGSTOP)
        sweep.watch()
        if (
            (moment == "early" and time.monotonic() - began > early)
            or (moment == "rows" and sweep.rows() >= before + more)
            or (moment == "end" and sweep.phase(launched) == "finishing")
        ):
            os.kill(child, signal.SIGSTOP)
            break
        os.kill(child, signal.SIGCONT)
        time.sleep(0.002 if moment == "end" else 0.005)
    return status


def wait(sweep: Sweep, child: int, timeout: float = 1800) -> int:
    began = time.monotonic()
    while (status := ended(child)) is None:
        sweep.watch()
        if time.monotonic() - began > timeout:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise Fault(f"the command did not end within {timeout:g} s")
        time.sleep(0.01)
    return status


Doing = Callable[
    [Sweep, int, random.Random], set[int]
]  # to a command that runs; the exit statuses that it may have then


def signalled(number: signal.Signals) -> Doing:
    def kill(sweep: Sweep, child: int, rng: random.Random) -> set[int]:
        os.kill(child, number)
        return {-number if number == signal.SIGKILL else 128 + number}

    return kill


def stop(sweep: Sweep, child: int, rng: random.Random) -> set[int]:
    os.kill(child, signal.SIGSTOP)
    time.sleep(rng.uniform(0, 0.2))
    os.kill(child, signal.SIGCONT)
    return set()


def start_twice(sweep: Sweep, child: int, rng: random.Random) -> set[int]:
    """A second time while the first is at work."""
    second = sweep.start()
    while (status := ended(second)) is None:
        sweep.watch()
        time.sleep(0.005)
    check(status in (0, 2), "exit status", status, "of a command that was given twice at once")
    check(status == 0 or "another process is working" in sweep.said(), "nobody said who works there")
    return set() if status == 2 else {2}  # whoever had the lock


def remove_run(sweep: Sweep, child: int, rng: random.Random) -> set[int]:
    if runs := sweep.runs():
        run = rng.choice(runs)
        sweep.harm(run)
        shutil.rmtree(run, ignore_errors=True)  # its writer may put a file into it at that moment
    return {1}


def harm_live(sweep: Sweep, child: int, rng: random.Random) -> set[int]:
    harm(sweep, rng)
    return {1}


def limit_file_size(sweep: Sweep, child: int, rng: random.Random) -> set[int]:
    sizes = [file.stat().st_size for file in sweep.directory.glob("*/timesteps.f32")]
    most = int(rng.uniform(0, 1.2) * max(sizes, default=10_000))
    with suppress(ProcessLookupError):
        resource.prlimit(child, resource.RLIMIT_FSIZE, (most, most))
    return {1, 2}


def fill_disk(sweep: Sweep, child: int, rng: random.Random) -> set[int]:
    """But for a few bytes. Undone when the command has ended."""
    disk = os.statvfs(sweep.folder)
    room = disk.f_bavail * disk.f_frsize - rng.choice([0, 4096, 8192, rng.randrange(100_000)])
    with open(sweep.folder.parent / "ballast", "wb") as file, suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, room)
    return {1, 2}


def forbid_writing(sweep: Sweep, child: int, rng: random.Random) -> set[int]:
    """In the sweep's directory, or a run's. Undone when the command has ended."""
    there = [path for path in [sweep.directory, *sweep.runs()] if path.exists()]
    if there:
        _protect(rng.choice(there), True)
    return {1, 2}


def _protect(directory: Path, on: bool) -> None:
    """Root may write where the mode forbids it: hence the attribute, which tmpfs and ext4 know."""
    if os.geteuid() == 0:
        subprocess.run(["chattr", "+i" if on else "-i", directory], check=False, stderr=subprocess.DEVNULL)
    else:
        directory.chmod(0o555 if on else 0o755)


def kill_named(name: str) -> Doing:
    """SIGKILL to a process that the command started."""

    def kill(sweep: Sweep, child: int, rng: random.Random) -> set[int]:
        found = [int(p.name) for p in _started(sweep.folder) if name.encode() in _read(p / "cmdline")]
        if name == "forkserver":  # its children: the workers
            found = [
                p for p in found if any(f"PPid:\t{q}\n" in _read(Path(f"/proc/{p}/status")).decode() for q in found)
            ]
        if found:
            with suppress(ProcessLookupError):
                os.kill(rng.choice(found), signal.SIGKILL)
        return {1} if name == "forkserver" else set()

    return kill


FAULTS: dict[str, Doing] = {
    "SIGKILL": signalled(signal.SIGKILL),
    "SIGTERM": signalled(signal.SIGTERM),
    "SIGINT": signalled(signal.SIGINT),
    "SIGSTOP": stop,
    "started twice": start_twice,
    "run removed": remove_run,
    "file harmed while it runs": harm_live,
    "file size limit": limit_file_size,
    "directory read-only": forbid_writing,
}
ON_A_DISK_OF_ITS_OWN = {"disk full": fill_disk}
OF_WANDB = {
    "mirror killed": kill_named("rnn_lab.recording.wandb.process"),
    "wandb-core killed": kill_named("wandb-core"),
}
OF_WORKERS = {"worker killed": kill_named("forkserver")}


def disturb(sweep: Sweep, name: str, moment: str, do: Doing, rng: random.Random) -> bool:
    """Starts the command and does one fault to it, with a clock that may have been put back before; False where the command ended before
    its moment.
    """
    clock = timedelta(seconds=-rng.choice([3600, 864000])) if rng.random() < 0.15 else timedelta()
    if clock:
        sweep.figures.faults["clock put back"] += 1
    launched, said, child = sweep.log_size(), len(sweep.said()), sweep.start(clock)
    exits = {0}
    try:
        status = until(sweep, child, moment, rng)
        if in_time := status is None:
            sweep.figures.during[sweep.phase(launched)] += 1
            sweep.figures.faults[name] += 1
            exits |= do(sweep, child, rng)
            os.kill(child, signal.SIGCONT)
            status = wait(sweep, child)
    finally:
        (sweep.folder.parent / "ballast").unlink(missing_ok=True)
        for path in [sweep.directory, *sweep.runs()] if name == "directory read-only" else []:
            _protect(path, False)
    if sweep.harmed:  # then runs may fail, in this command or in the one that repairs them
        exits.add(1)
    check(status in exits, "exit status", status, "after", name)
    check(
        status != 0 or name == "run removed" or sweep.statuses()["killed"] == 0,
        "exit status 0 although runs were killed",
    )
    check("Traceback" not in sweep.said()[said:], "a traceback after", name)
    rest(sweep)
    return in_time


def rest(sweep: Sweep) -> None:
    """No command runs: rows that were harmed have been measured again, or will be by one of the next."""
    sweep.harmed = {run for run in sweep.harmed if run.exists() and (damage(run) is not None or torn(run))}


def torn(run: Path) -> bool:
    """Whether there are lines that count no longer: a command that was to measure them anew has been killed before it cut them off."""
    record, lines = store.read_run(run), run / "steps.jsonl"
    written = lines.read_bytes().count(b"\n") if lines.exists() else 0
    return record is None or written != len(store.whole_rows(run, record))


# ---------------------------------------------------------------------------------------------- what is done to files


def harm(sweep: Sweep, rng: random.Random) -> None:
    """Cuts one of the files, or flips a bit in it; sometimes so that its time does not tell."""
    kinds = [found for pattern in HARMED if (found := sorted(sweep.directory.glob(pattern)))]
    if not kinds:
        return
    file = rng.choice(rng.choice(kinds))
    how = rng.choice(["cut", "bit flipped"])
    with suppress(FileNotFoundError):  # a checkpoint comes and goes
        if (size := file.stat().st_size) == 0:
            return
        run = sweep.directory / file.relative_to(sweep.directory).parts[0]
        if any(file.match(f"*/{name}") for name in OURS):
            sweep.harm(run)
        sweep.names.add(file.name)
        times = file.stat()
        with open(file, "r+b") as content:
            if how == "cut":
                content.truncate(rng.randrange(size))
            else:
                at = rng.randrange(size)
                byte = os.pread(content.fileno(), 1, at)
                os.pwrite(content.fileno(), bytes([byte[0] ^ 1 << rng.randrange(8)]), at)
        if rng.random() < 0.5:
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    sweep.figures.faults[how] += 1


def remove_finished(sweep: Sweep, rng: random.Random) -> None:
    """So that there is something to do."""
    for run in rng.sample(runs := sweep.runs(), min(len(runs), rng.randint(1, 4))):
        sweep.seen.pop(run / "steps.jsonl", None)
        shutil.rmtree(run)


class Truth:
    """The undisturbed sweep, run by run."""

    def __init__(self, sweep: Sweep):
        self.sweep, self.loaded = sweep, results.load(sweep.directory)
        self.frames = {
            name: dict(iter(frame.groupby("run_id")))
            for name, frame in (("steps", self.loaded.steps), ("timesteps", self.loaded.timesteps))
        }
        self.config = self.loaded.runs.set_index("run_id")[list(self.loaded.config)].drop(columns="tracker.name")


def looked_at(sweep: Sweep, truth: Truth) -> None:
    """What is loaded is the truth, or the beginning of it where a run has not ended; or a message names a file that was harmed."""
    if not sweep.runs():
        return
    status(sweep.directory)
    with warnings.catch_warnings(record=True, action="always"):
        try:
            loaded = results.load(sweep.directory)
        except results.ResultsError as error:
            told = [name for name in sweep.names if name in str(error)]
            check(bool(told) or "no runs here" in str(error), "refused for no reason:", error)
            sweep.figures.told += 1
            return
    config = loaded.runs.set_index("run_id")[list(truth.config)]
    check(config.equals(truth.config.loc[config.index]), "another config was loaded")
    for name in ("steps", "timesteps"):
        for run, rows in getattr(loaded, name).groupby("run_id"):
            true = truth.frames[name][run]
            check(rows.equals(true.iloc[: len(rows)].set_axis(rows.index)), "other", name, "of", run)
    lengths = loaded.steps.groupby("run_id").size().reindex(loaded.runs["run_id"], fill_value=0)
    for run, ending in zip(loaded.runs["run_id"], loaded.runs["status"], strict=True):
        whole = ending not in ("completed", "diverged") or lengths[run] == len(truth.frames["steps"][run])
        check(whole, run, "says", ending, "and has", lengths[run], "rows")


# ------------------------------------------------------------------------------------------------------------- the end


def recorded(sweep: Sweep) -> dict[tuple[str, str], bytes]:
    files = [f for run in sweep.runs() for pattern in OURS[1:] for f in run.glob(pattern)]
    return {(str(f.relative_to(sweep.directory).parts[0]), f.name): f.read_bytes() for f in files}


def held_to(sweep: Sweep, truth: Truth) -> None:
    """At the end: the frames, the bytes, one wandb file a run with all rows, no lock and nothing left lying about."""
    check(recorded(sweep) == recorded(truth.sweep), "other bytes than the undisturbed sweep's")
    mine, theirs = results.load(sweep.directory), truth.loaded
    varying = [name for name in VARYING if name in mine.runs] + ["tracker.name"]
    mine_alike, theirs_alike = mine.runs.drop(columns=varying), theirs.runs.drop(columns=varying)
    other = [name for name in theirs_alike if name not in mine_alike or not mine_alike[name].equals(theirs_alike[name])]
    check(mine_alike.equals(theirs_alike), "other runs:", other)
    check(mine.steps.equals(theirs.steps), "other steps")
    check(mine.timesteps.equals(theirs.timesteps), "other timesteps")
    doubled = int(mine.steps.duplicated(["run_id", "step"]).sum())
    sweep.figures.rows_doubled += doubled
    check(doubled == 0, doubled, "rows doubled")
    for run in sweep.runs():
        names = {p.name for p in run.iterdir()}
        check(
            names == {".hydra", "contributions", "run.json", "steps.jsonl", "timesteps.f32", "train.log"},
            run,
            "holds",
            names,
        )
        os.close(store.lock(run))
        sweep.figures.resumed += len(json.loads((run / "run.json").read_text())["resumed"])
    os.close(store.lock(sweep.directory))
    if sweep.wandb:
        mirrored(sweep, mine.steps.groupby("run_id").size())


def mirrored(sweep: Sweep, rows: Any) -> None:
    """Every row of every run is in one wandb file. A mirror that was killed or out of time has said so, and what it says to do helps."""

    def missing() -> list[str]:
        files = {run: list(sweep.directory.glob(f"wandb/*run-*/*{run}.wandb")) for run in rows.index}
        return [run for run, found in files.items() if [rows_in(file) for file in found] != [rows[run]]]

    if missing():
        check("our own store has every row" in sweep.said(), missing(), "are not in wandb, and nobody said so")
        rebuild = [sys.executable, TRAIN.with_name("wandb_rebuild.py"), "runs/faulty"]
        subprocess.run(rebuild, cwd=sweep.folder, check=True, capture_output=True)
    check(not missing(), missing(), "are not in wandb")


def nothing_left(folder: Path, patience: float = 30) -> None:
    """No process that a command started lives on."""
    gone = time.monotonic() + patience
    while left := _started(folder):
        check(time.monotonic() < gone, "processes left:", *[_read(p / "cmdline") for p in left])
        time.sleep(0.1)


def _started(folder: Path) -> list[Path]:
    """Processes that a command of a sweep started (not its forks), in /proc."""
    mark = f"FAULTS_FOLDER={folder}\0".encode()
    return [p for p in Path("/proc").glob("[0-9]*") if mark in _read(p / "environ")]


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


# -------------------------------------------------------------------------------------------------------- the campaign


@contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """A disk of our own that can get full, where one can be mounted; else a folder."""
    place = folder / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "none", place], check=False, capture_output=True
    )
    if mounted.returncode == 0:
        FAULTS.update(ON_A_DISK_OF_ITS_OWN)
    (probe := place / "probe").mkdir()
    _protect(probe, True)
    with suppress(OSError):
        (probe / "file").touch()
        FAULTS.pop("directory read-only")  # root, on a file system without the attribute
    _protect(probe, False)
    try:
        yield place
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", place], check=True)


def campaign(faults: int, seed: int, folder: Path, seconds: float) -> Figures:
    """So many faults, several a sweep, or as many as so many seconds allow. Raises Fault."""
    rng, figures, end = random.Random(seed), Figures(), time.monotonic() + seconds
    undisturbed = Sweep(folder / "undisturbed", PLAIN, Figures())
    check(wait(undisturbed, undisturbed.start()) == 0, "the undisturbed sweep failed:", undisturbed.said())
    statuses = undisturbed.statuses()
    check(statuses["completed"] + statuses["diverged"] == RUNS and statuses["diverged"] > 0, statuses)
    truth = Truth(undisturbed)
    deck: list[tuple[str, str]] = []
    while sum(figures.faults.values()) < faults and time.monotonic() < end:
        kind = figures.sweeps % 10
        sweep = Sweep(folder / f"sweep{figures.sweeps}", ENGINES.get(kind, PLAIN), figures)
        special = {1: OF_WANDB, 2: OF_WORKERS}.get(kind, {})
        done: list[str] = []
        try:
            for number in range(rng.randint(3, 5) if special else rng.randint(6, 12)):
                deck = deck or list(zip(rng.sample(list(FAULTS), len(FAULTS)), cycle(MOMENTS)))
                if special and number < 2:
                    name, moment = list(special)[number % len(special)], rng.choice(MOMENTS)
                else:
                    name, moment = deck.pop()
                done.append(name)
                if not sweep.runs() or not sweep.unfinished():
                    remove_finished(sweep, rng)
                if not disturb(sweep, name, moment, (FAULTS | special)[name], rng) and name in FAULTS:
                    deck.append((name, moment))  # next time
                looked_at(sweep, truth)
                for _ in range(rng.choice([0, 1, 1, 2, 3])):
                    harm(sweep, rng)
                    looked_at(sweep, truth)
            wait(sweep, sweep.start())
            rest(sweep)
            if sweep.harmed or sweep.unfinished():  # harmed under its hands: seen when it had ended
                check(wait(sweep, sweep.start()) == 0, "the last command failed")
            held_to(sweep, truth)
            nothing_left(sweep.folder)
        except Fault as fault:
            raise Fault(f"{fault} ({sweep.folder}, seed {seed}, {done}, {figures})") from fault
        figures.sweeps += 1
        figures.rows_watched += sweep.rows()
        shutil.rmtree(sweep.folder)
        sweep.output.unlink()
        print(json.dumps(vars(figures)), file=sys.stderr, flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--faults", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no sweep after so many")
    given = parser.parse_args()
    warm()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    began = time.monotonic()
    with disk(folder) as place:
        figures: dict[str, Any] = vars(campaign(given.faults, given.seed, place, given.seconds))
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
