"""How chaotic is an untrained net, and how many directions of its state grow?

    python experiments/lyapunov.py [--g 0.5 1 2] [--activation tanh sigmoid] [--drive autonomous driven] [--out DIR]

Lyapunov spectra by QR along one long trajectory of each net, after a transient, in float64: autonomous (a random state at first, no
input) or driven by a task's sequences, one after another with the state carried over. Beside them ln(singular values) / lag of the
products of Jacobians over finite lags, for seed 0. All gains and seeds of one kind of net and drive are one tensor program. Writes
spectra.csv, singular_values.csv and experiment.json to DIR (runs/lyapunov); analysis/lyapunov.py draws them. The nets are those that
experiments/train.py would start from.
"""

import argparse
import csv
import itertools
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from rnn_lab import graded, jacobians, lyapunov, vectorize
from rnn_lab.config import Config, Task, cell_name, problems
from rnn_lab.provenance import provenance

KEYS = {"model.name": "--cell", "model.leak": "--leak",
        "model.activation": "--activation", "init.name": "--init", "init.scale": "--g", "init.input_std": "--input-std",
        "model.hidden": "--hidden", "model.layers": "--layers", "task.name": "--task", "task.length": "--length"}  # fmt: skip
BLOCKS = 20  # of time, for standard errors


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:  # one line, as everywhere in the lab
        self.exit(2, f"{self.prog}: {message}\n")


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gains = [0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0]
    parser.add_argument(
        "--g", type=float, nargs="+", default=gains, help="recurrent gains: std of W times sqrt(hidden)"
    )
    parser.add_argument("--cell", nargs="+", default=["elman"], help="elman leaky lstm gru")
    parser.add_argument("--leak", type=float, default=1.0, help="of leaky cells")
    parser.add_argument("--activation", nargs="+", default=["tanh", "sigmoid"])
    parser.add_argument("--drive", nargs="+", choices=["autonomous", "driven"], default=["autonomous", "driven"])
    parser.add_argument("--init", default="gaussian", help="of W")
    parser.add_argument("--input-std", type=float, default=1.0, help="std of U where driven (default 1)")
    parser.add_argument("--task", default="temporal_order", help="whose input drives")
    parser.add_argument("--length", type=int, default=100, help="of its sequences")
    parser.add_argument("--hidden", type=int, default=100)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1000, help="counted, after the transient")
    parser.add_argument("--transient", type=int, default=300)
    parser.add_argument("--lags", type=int, nargs="+", default=[1, 10, 100], help="of the singular values")
    parser.add_argument("--out", type=Path, default=Path("runs/lyapunov"))
    args = parser.parse_args(argv)
    for name, least in (("steps", BLOCKS), ("transient", 0), ("seeds", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name} {getattr(args, name)}: must be a whole number >= {least}")
    if not 1 <= min(args.lags) <= max(args.lags) <= args.steps:
        parser.error(f"--lags {' '.join(map(str, args.lags))}: must be whole numbers from 1 to --steps {args.steps}")
    wrong = dict.fromkeys(line for config in itertools.chain(*programs(args).values()) for line in problems(config))
    for key, option in KEYS.items():
        wrong = dict.fromkeys(line.replace(f"{key}=", f"{option} ") for line in wrong)
    if wrong:
        parser.error("; ".join(wrong))
    task = vectorize.make_task(Task(name=args.task, length=args.length))
    if task.lengths(np.random.default_rng(0), 1) is not None:
        parser.error(f"--task {args.task}: its sequences differ in length; must be one whose sequences don't")
    return args


def programs(args: argparse.Namespace) -> dict[tuple[str, str], list[Config]]:
    """The nets of each kind (cell, activation) and drive, gains outside and seeds inside."""
    found: dict[tuple[str, str], list[Config]] = {}
    for name, activation, drive in itertools.product(args.cell, args.activation, dict.fromkeys(args.drive)):
        c = Config()
        c.task = replace(c.task, name=args.task, length=args.length)
        shape = {"hidden": args.hidden, "layers": args.layers, "leak": args.leak}
        c.model = replace(c.model, name=name, activation=activation, **shape)
        inits = [replace(c.init, name=args.init, scale=g, input_std=args.input_std) for g in dict.fromkeys(args.g)]
        each = itertools.product(inits, range(args.seeds))
        found[cell_name(c), drive] = [replace(c, init=init, seed=seed) for init, seed in each]
    return found


class Trajectory:
    """The Jacobians of a program's nets along one trajectory each, (runs, 1, N, N); every iteration goes along the same one."""

    def __init__(self, configs: list[Config], drive: str):
        self.configs, self.drive = configs, drive

    def __iter__(self) -> Iterator[Tensor]:
        model, task = self.configs[0].model, vectorize.make_task(self.configs[0].task)
        init_rngs, data_rngs, _ = zip(*(vectorize.streams(c.seed) for c in self.configs), strict=True)
        cell = vectorize.make_cell(self.configs, torch.float64, "cpu")
        theta = vectorize.stack_parameters(self.configs, task, list(init_rngs), torch.float64, "cpu")
        normals = torch.stack(
            [torch.from_numpy(r.standard_normal((model.layers, 1, cell.blocks * model.hidden))) for r in data_rngs]
        )
        batches = vectorize.MiniBatches(task, list(data_rngs), 1, torch.float64, "cpu")
        x = sequences(batches) if self.drive == "driven" else itertools.repeat(torch.zeros(1, 1, task.inputs).double())
        return jacobians.along(theta.layers, cell, x, normals.unbind(1))


def sequences(batches: vectorize.MiniBatches) -> Iterator[Tensor]:
    """x_t of one sequence after another, (runs, 1, inputs)."""
    while True:
        yield from batches.draw()[0].clone().unbind(1)


def spectra(trajectory: Trajectory, args: argparse.Namespace, label: str) -> Iterator[dict[str, Any]]:
    """A row for each exponent of each net."""
    jacobians = itertools.islice(trajectory, args.transient + args.steps)
    shown = progress(lyapunov.log_growth(jacobians), args.transient + args.steps, label)
    growth = torch.stack(list(itertools.islice(shown, args.transient, None))).squeeze(2)
    exponents, order = growth.mean(0).sort(-1, descending=True)
    error = lyapunov.standard_error(lambda mean: mean, growth, BLOCKS).gather(-1, order)
    whole = {"kaplan_yorke": lyapunov.kaplan_yorke, "entropy": lyapunov.entropy_rate}
    values = {name: f(exponents) for name, f in whole.items()}
    values |= {f"{name}_error": lyapunov.standard_error(f, growth, BLOCKS) for name, f in whole.items()}
    for run, config in enumerate(trajectory.configs):
        own = described(config, trajectory.drive) | {name: value[run].item() for name, value in values.items()}
        for index, (exponent, e) in enumerate(zip(exponents[run].tolist(), error[run].tolist(), strict=True), 1):
            yield own | {"index": index, "exponent": exponent, "error": e}


def singular_values(trajectory: Trajectory, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """ln(singular value) / lag of the product of the first `lag` Jacobians after the transient, a row for each."""
    found = graded.log10_singular_values(itertools.islice(trajectory, args.transient, None), args.lags)
    for config, per_lag in zip(trajectory.configs, found.squeeze(1), strict=True):
        for lag, values in zip(args.lags, (per_lag * math.log(10)).tolist(), strict=True):
            for index, value in enumerate(values, 1):
                yield described(config, trajectory.drive) | {"lag": lag, "index": index, "rate": value / lag}


def described(config: Config, drive: str) -> dict[str, Any]:
    """input_std: what drives, 0 if nothing does."""
    std = config.init.input_std if drive == "driven" else 0.0
    model = {"net": cell_name(config), "cell": config.model.name, "activation": config.model.activation, "drive": drive}
    init = {"init": config.init.name, "g": config.init.scale, "input_std": std, "task": config.task.name}
    return model | init | {"hidden": config.model.hidden, "layers": config.model.layers, "seed": config.seed}


def progress(steps: Iterable[Tensor], total: int, label: str) -> Iterator[Tensor]:
    """Counts steps on one line of the terminal; where there is none, says only when they are done."""
    began = time.monotonic()
    for done, step in enumerate(steps, 1):
        if sys.stderr.isatty() and (done % 50 == 0 or done == total):
            print(f"\r{label}: {100 * done // total:3d} %", end="", file=sys.stderr, flush=True)
        yield step
    start = "\r" if sys.stderr.isatty() else ""
    print(f"{start}{label}: {total} steps, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    print(path)


def main(argv: Sequence[str] | None = None) -> int:
    args = options(argv)
    torch.set_num_threads(1)
    exponents: list[dict[str, Any]] = []
    products: list[dict[str, Any]] = []
    args.out.mkdir(parents=True, exist_ok=True)
    for (net, drive), configs in programs(args).items():
        label = f"{net}, {drive}: {len(configs)} nets"
        exponents += spectra(Trajectory(configs, drive), args, label)
        products += singular_values(Trajectory([c for c in configs if c.seed == 0], drive), args)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    write(args.out / "spectra.csv", exponents)
    write(args.out / "singular_values.csv", products)
    path = args.out / "experiment.json"
    path.write_text(json.dumps({"settings": settings, **provenance()}, indent=1))
    print(path)
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except OSError as error:
        print(f"lyapunov.py: {error.filename}: {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from error
