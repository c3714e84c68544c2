"""How far sweeps are: a table that refreshes itself until they have ended.

python experiments/status.py RUNS... [--once]        e.g. runs/remedies runs/phase_diagram
"""

import argparse
import sys
import time
from pathlib import Path

from rnn_lab.recording.status import NoSweep, Status, status

STATES = ("completed", "diverged", "running", "waiting", "failed", "killed")
EVERY = 2.0  # seconds


def row(sweep: Path, now: Status, before: Status | None) -> str:
    """One sweep's line. The rate is that of the last seconds, or the average of the runs that train."""
    rate = now.rate
    if before is not None and now.done > before.done:
        rate = (now.done - before.done) / (now.when - before.when)
    share = 100 * now.done // now.updates if now.updates else 100
    unfinished = now.alive and rate > 0
    left = duration((now.updates - now.done) / rate) if unfinished else "-"
    counts = "".join(f"{now.runs[state]:>11}" for state in STATES)
    return f"{sweep!s:<32} {now.runs.total():>6}{counts}{share:>8} %{rate:>10,.0f}/s{left:>10}"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def table(sweeps: list[Path], now: list[Status], before: list[Status] | None) -> list[str]:
    head = (
        f"{'sweep':<32} {'runs':>6}"
        + "".join(f"{state:>11}" for state in STATES)
        + f"{'updates':>10}{'rate':>12}{'left':>10}"
    )
    rows = [row(*one) for one in zip(sweeps, now, before or [None] * len(now), strict=True)]
    notes = [
        f"  note    {sweep}: {number} of {one.runs.total()} runs {what}"
        for sweep, one in zip(sweeps, now, strict=True)
        for number, what in (
            (one.resumed, "were resumed"),
            (one.dirty, "were trained by code with uncommitted changes"),
        )
        if number
    ]
    failures = [f"  failed  {run}  {error}" for one in now for run, error in one.failures]
    return [head, *rows, *notes, *failures]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sweeps", nargs="+", type=Path, metavar="RUNS", help="a sweep's directory: runs/<sweep>")
    parser.add_argument(
        "--once", action="store_true", help="print one table and leave; so it is where there is no terminal"
    )
    given = parser.parse_args()
    before, shown = None, 0
    while True:
        try:
            now = [status(sweep) for sweep in given.sweeps]
        except NoSweep as error:
            print(error, file=sys.stderr)
            sys.exit(2)
        if shown:
            print(f"\x1b[{shown}F\x1b[J", end="")
        lines = table(given.sweeps, now, before)
        print("\n".join(lines), flush=True)
        if given.once or not sys.stdout.isatty() or not any(one.alive for one in now):
            return
        before, shown = now, len(lines)
        time.sleep(EVERY)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
