"""Makes the wandb runs of sweeps anew from our own store, offline: after a crash, a full disk, or without a server in the end.

python experiments/wandb_rebuild.py RUNS...        run directories or sweeps
wandb sync runs/<sweep>/wandb/offline-run-*        then sends them; at the server, rows that are there already replace themselves
"""

import argparse
import logging
from pathlib import Path

from rnn_lab.recording import wandb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run directories, or sweeps")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    found: list[Path] = []
    for path in arguments.runs:
        runs = [path] if (path / "run.json").is_file() else sorted(file.parent for file in path.glob("*/run.json"))
        if not runs:
            parser.error(f"{path}: no runs here; name run directories or sweeps")
        found += runs
    wandb.rebuild(found)
    print(
        f"{len(found)} runs recorded; wandb sync {' '.join(f'{sweep}/wandb/offline-run-*' for sweep in sweeps(found))}"
    )


def sweeps(runs: list[Path]) -> list[Path]:
    return list(dict.fromkeys(run.parent for run in runs))


if __name__ == "__main__":
    main()
