"""Long and large: what 10,000 runs in one sweep, 512 runs in one program, T = 10,000 and a long training cost.

    python tests/soak.py [--runs 10000] [--trained 10000] [--minutes 60] [--only sweep,program,length,memory]        (make soak)

Each part is one command in a process of its own, measured; the figures are printed as JSON, a line a part. --trained: so many of the
sweep's runs come from a real sweep of untrained nets, the others are copies of their directories under other seeds and ids.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rnn_lab.config import container, from_container, run_id
from rnn_lab.recording.store import read_run, write_json

ROOT = Path(__file__).resolve().parents[1]
TINY = ["task.length=10", "model.hidden=4", "training.batch_size=2", "tracker=none"]
LOAD = """
import sys, time
from rnn_lab import results
began = time.perf_counter()
loaded = results.load(sys.argv[1])
print(len(loaded.runs), "runs", len(loaded.steps), "records in", round(time.perf_counter() - began, 2), "s")
"""


def measured(*command: object, cwd: Path) -> dict[str, Any]:
    """Seconds of wall and CPU time, the peak of the resident memory (MB), and the last line of what it said."""
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            list(map(str, command)), cwd=cwd, env=environment, stdout=said, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        lines = said.read().splitlines()
    found = {"seconds": time.monotonic() - began, "cpu": usage.ru_utime + usage.ru_stime, "MB": usage.ru_maxrss / 1024}
    assert process.returncode == 0, lines[-20:]
    return {key: round(value, 2) for key, value in found.items()} | {"said": lines[-1] if lines else ""}


def train(*overrides: str, cwd: Path) -> dict[str, Any]:
    return measured(sys.executable, ROOT / "experiments" / "train.py", *overrides, cwd=cwd)


def multiply(sweep: Path, runs: int) -> None:
    """Copies of the sweep's runs under seeds that it has not, until there are so many; the files that stay the same are hard links."""
    given = [(file.parent, read_run(file.parent) or {}) for file in sorted(sweep.glob("*/run.json"))]
    configs = [from_container(record["config"]) for _, record in given]
    for seed in range(len(given), runs):
        source, record = given[seed % len(given)]
        config = replace(configs[seed % len(given)], seed=seed)
        copy = sweep / run_id(config)
        shutil.copytree(source, copy, copy_function=os.link)
        name = record["name"].replace(record["run_id"], copy.name)
        write_json(copy / "run.json", record | {"config": container(config), "run_id": copy.name, "name": name})


def of_a_sweep(folder: Path, runs: int, trained: int) -> dict[str, Any]:
    """So many tiny runs in one directory: trained, looked at, loaded, collected, loaded again, shown, and skipped."""
    sweep, only = folder / "runs" / "tiny", ["-m", "sweep=tiny", "training.updates=0", *TINY]
    found: dict[str, Any] = {
        "runs": runs,
        "trained": trained,
        "train": train(*only, f"seed=range({trained})", cwd=folder),
    }
    if trained < runs:
        multiply(sweep, runs)
    found["status"] = measured(sys.executable, ROOT / "experiments" / "status.py", sweep, "--once", cwd=folder)
    for file in sweep.glob("*.parquet"):
        file.unlink()
    found["load"] = measured(sys.executable, "-c", LOAD, sweep, cwd=folder)
    found["same command again"] = train(*only, f"seed=range({runs})", cwd=folder)
    found["load collected"] = measured(sys.executable, "-c", LOAD, sweep, cwd=folder)
    found["report"] = measured(sys.executable, ROOT / "analysis" / "report.py", sweep, cwd=folder)
    found["report MB"] = round((sweep / "report.html").stat().st_size / 1e6, 1)
    return found | {"files MB": round(sum(f.stat().st_size for f in sweep.rglob("*") if f.is_file()) / 1e6, 1)}


def of_a_program(folder: Path, runs: int = 512) -> dict[str, Any]:
    """So many runs in one program, at the usual sizes."""
    wide = [
        "-m",
        "sweep=wide",
        "training.updates=20",
        "tracker=none",
        f"seed=range({runs})",
        f"hydra.launcher.max_runs={runs}",
    ]
    return {"runs": runs, **train(*wide, cwd=folder)}


def of_a_length(folder: Path, T: int = 10_000) -> dict[str, Any]:
    """One run of so many time steps."""
    long = ["sweep=long", f"task.length={T}", "training.updates=10", "training.log_every=5", "tracker=none"]
    return {"T": T, **train(*long, cwd=folder), "load": measured(sys.executable, "-c", LOAD, "runs/long", cwd=folder)}


def of_a_training(folder: Path, minutes: float) -> dict[str, Any]:
    """The resident memory of a training that goes on: its slope over the second half, in MB an hour."""
    arguments = [
        "sweep=on",
        "training.updates=100000000",
        "training.log_every=100",
        "eval.every=1000",
        "eval.sequences=200",
        "tracker=none",
    ]
    command = [
        sys.executable,
        str(ROOT / "experiments" / "train.py"),
        "-m",
        *arguments,
        "task.length=20",
        "seed=range(8)",
    ]
    process = subprocess.Popen(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL
    )
    seen: list[tuple[float, float]] = []
    began = time.monotonic()
    try:
        while (elapsed := time.monotonic() - began) < 60 * minutes:
            assert process.poll() is None
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            seen.append((elapsed / 3600, pages * os.sysconf("SC_PAGE_SIZE") / 2**20))
            time.sleep(1)
    finally:
        process.terminate()
        process.wait()
    last = seen[len(seen) // 2 :]
    x, y = [sum(column) / len(last) for column in zip(*last, strict=True)]
    slope = sum((a - x) * (b - y) for a, b in last) / sum((a - x) ** 2 for a, _ in last)
    step = max(json.loads(f.read_text().splitlines()[-1])["step"] for f in folder.glob("runs/on/*/steps.jsonl"))
    return {
        "minutes": minutes,
        "updates": step,
        "MB": [round(seen[0][1]), round(last[0][1]), round(last[-1][1])],
        "MB an hour": round(slope, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--trained", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--only", default="sweep,program,length,memory")
    given = parser.parse_args()
    parts = {
        "sweep": lambda folder: of_a_sweep(folder, given.runs, given.trained),
        "program": of_a_program,
        "length": of_a_length,
        "memory": lambda folder: of_a_training(folder, given.minutes),
    }
    for name in given.only.split(","):
        with tempfile.TemporaryDirectory(prefix="soak-") as folder:
            print(json.dumps({name: parts[name](Path(folder))}), flush=True)


if __name__ == "__main__":
    main()
