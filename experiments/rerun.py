"""Does a run give the same numbers again?

    python experiments/rerun.py RUN [--out DIR]

Trains RUN (the directory of a completed or diverged run) anew from nothing but the config in its run.json, and compares every number that
both have recorded. Prints what has changed since in code and versions, and either that all is the same or, column by column, how many
numbers differ, by how much at most, and from which step on. Exit status 0 if all are the same, 1 if not, 2 if there is nothing to repeat.
The new run goes into DIR, which must not exist yet; without --out it is thrown away.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd

from rnn_lab import results
from rnn_lab.config import Config, ConfigError, from_container
from rnn_lab.provenance import provenance
from rnn_lab.recording.runs import read_info
from rnn_lab.recording.store import FINISHED

KEYS = {"steps": ["step"], "timesteps": ["step", "layer", "t"]}


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:  # one line, as everywhere in the lab
        self.exit(2, f"{self.prog}: {message}\n")


def stored_config(run: Path, info: dict[str, Any]) -> Config:
    """What to train: the run's own config, untracked. Raises ResultsError."""
    if info["status"] not in FINISHED:
        raise results.ResultsError(f"{run}: {info['status']}; only a completed or diverged run can be repeated")
    try:
        config = from_container(info["config"])
    except ConfigError as error:
        raise results.ResultsError(
            f"{run}: its config is none any more: {'; '.join(str(error).split(chr(10)))}"
        ) from error
    return replace(config, tracker=replace(config.tracker, name="none"))


def changes(info: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is not as it was when the run was trained, one line each."""
    was, here = (
        {"commit": origin.get("git", {}).get("commit"), **origin.get("versions", {})} for origin in (info, now)
    )
    found = [
        f"{key}: {was.get(key) or '?'} then, {here.get(key) or '?'} now" for key in here if was.get(key) != here[key]
    ]
    dirty = [when for when, origin in (("then", info), ("now", now)) if origin.get("git", {}).get("dirty")]
    return found + [f"the code had changes that were not committed, {' and '.join(dirty)}"] * bool(dirty)


def differences(first: results.Results, again: results.Results) -> pd.DataFrame:
    """A row for each column in which two recordings of one run differ.

    column; numbers, differ: how many there are, and how many are not the same (NaN is the same as NaN; one that only one of both has is
    not); largest: difference of two finite ones; step: of the first that differs.
    """
    found = []
    for name, keys in KEYS.items():
        pair = [getattr(loaded, name).drop(columns="run_id").set_index(keys) for loaded in (first, again)]
        index = pair[0].index.union(pair[1].index)
        recorded = [pd.Series(True, frame.index).reindex(index, fill_value=False).to_numpy(bool) for frame in pair]
        for column in dict.fromkeys([*pair[0], *pair[1]]):
            a, b = (frame.reindex(index=index, columns=[column])[column].to_numpy(float) for frame in pair)
            differ = ~((a == b) | (np.isnan(a) & np.isnan(b))) | (recorded[0] != recorded[1])
            if differ.any():
                with np.errstate(invalid="ignore"):
                    distance = np.abs(a - b)[differ]
                steps = index.get_level_values("step")[differ]
                largest = np.max(distance, where=np.isfinite(distance), initial=0.0)
                found.append((column, len(a), int(differ.sum()), largest, int(steps.min())))
    return pd.DataFrame(found, columns=["column", "numbers", "differ", "largest", "step"])


def rerun(run: Path, out: Path) -> int:
    """Repeats `run` in `out` and says how it went; the exit status."""
    from rnn_lab.jobs import Task, train_jobs
    from rnn_lab.options import Options

    info, now = read_info(run), provenance()
    config = stored_config(run, info)
    out.mkdir(parents=True)
    [outcome] = train_jobs([Task(config, out, [])], Options())
    for line in changes(info, now):
        print(line)
    if (outcome.status, outcome.error) != (info["status"], None):
        print(f"{run}: {info['status']} then, {outcome.status} now {outcome.error or ''}".rstrip())
    first, again = results.load(run), results.load(out)
    table = differences(first, again)
    numbers = sum(getattr(first, name).drop(columns=["run_id", *keys]).size for name, keys in KEYS.items())
    if table.empty:
        print(f"{run}: {len(first.steps)} records, {numbers} numbers, all the same")
    else:
        print(f"{run}: not the same in {len(table)} columns")
        print(table.to_string(index=False, float_format="{:.3g}".format))
    return int(not table.empty or outcome.status != info["status"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="rerun.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to keep the new run")
    args = parser.parse_args(argv)
    try:
        with nullcontext(args.out) if args.out else tempfile.TemporaryDirectory() as folder:
            return rerun(args.run, Path(folder) if args.out else Path(folder, "again"))
    except results.ResultsError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
    except OSError as error:
        print(f"{parser.prog}: {error.filename}: {error.strerror}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
