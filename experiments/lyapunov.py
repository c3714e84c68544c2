"""How chaotic is an untrained net, and how many directions of its state grow?

    python experiments/lyapunov.py [--g 0.5 1 2] [--activation tanh sigmoid] [--drive autonomous driven] [--out DIR]
    python experiments/lyapunov.py --run runs/<sweep>/<run id>     of this net, before and after its training

Lyapunov spectra by QR along one long trajectory of each net, after a transient, in float64: autonomous (a random state at first, no
input) or driven by a task's sequences, one after another with the state carried over. Beside them ln(singular values) / lag of the
products of Jacobians over finite lags, for seed 0. All gains and seeds of one kind of net and drive are one tensor program. Writes
spectra.csv, singular_values.csv and experiment.json to DIR (runs/lyapunov); analysis/lyapunov.py draws them. The nets are those that
experiments/train.py would start from; the net of a run is trained again from its record, which takes as long as the run.
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

sys.path.append(str(Path(__file__).parents[1]))
from experiments.rerun import stored_config
from rnn_lab import graded, jacobians, lyapunov, results, vectorize
from rnn_lab.config import Config, Task, cell_name, problems
from rnn_lab.parameters import Layer
from rnn_lab.provenance import provenance
from rnn_lab.recording.runs import read_info
from rnn_lab.training import Training

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
    parser.add_argument("--run", type=Path, help="a run directory: its net, task and seed in place of those above")
    parser.add_argument("--out", type=Path, default=Path("runs/lyapunov"))
    args = parser.parse_args(argv)
    for name, least in (("steps", BLOCKS), ("transient", 0), ("seeds", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name} {getattr(args, name)}: must be a whole number >= {least}")
    if not 1 <= min(args.lags) <= max(args.lags) <= args.steps:
        parser.error(f"--lags {' '.join(map(str, args.lags))}: must be whole numbers from 1 to --steps {args.steps}")
    try:
        args.config = stored_config(args.run, read_info(args.run)) if args.run else None
    except results.ResultsError as error:
        parser.error(str(error))
    wrong = dict.fromkeys(line for config in itertools.chain(*programs(args).values()) for line in problems(config))
    for key, option in KEYS.items():
        wrong = dict.fromkeys(line.replace(f"{key}=", f"{option} ") for line in wrong)
    if wrong:
        parser.error("; ".join(wrong))
    given = args.config.task if args.config is not None else Task(name=args.task, length=args.length)
    if vectorize.make_task(given).lengths(np.random.default_rng(0), 1) is not None:
        parser.error(f"--task {given.name}: its sequences differ in length; must be one whose sequences don't")
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
    """The Jacobians of a program's nets along one trajectory each, (runs, 1, N, N); every iteration goes along the same one.

    trained: the parameters after so many updates; None: those that training starts from. net: what the nets are called.
    """

    def __init__(
        self, configs: list[Config], drive: str, net: str, updates: int = 0, trained: list[Layer] | None = None
    ):
        self.configs, self.drive, self.net, self.updates, self.trained = configs, drive, net, updates, trained

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
        return jacobians.along(self.trained or theta.layers, cell, x, normals.unbind(1))


def trajectories(args: argparse.Namespace) -> Iterator[tuple[Trajectory, Trajectory]]:
    """Those of all nets of one kind and drive, and of the first seed among them."""
    if args.run:
        updates, layers = trained(args.config)
        for (done, found), drive in itertools.product(((0, None), (updates, layers)), dict.fromkeys(args.drive)):
            own = Trajectory([args.config], drive, f"{cell_name(args.config)}, {done} updates", done, found)
            yield own, own
        return
    for (net, drive), configs in programs(args).items():
        yield Trajectory(configs, drive, net), Trajectory([c for c in configs if c.seed == 0], drive, net)


def trained(config: Config) -> tuple[int, list[Layer]]:
    """How many updates the run had, and its layers after them, as a program of one run."""
    training = Training([config])
    while not training.done:
        for _ in training.advance():
            pass
    return training.step, [Layer(*(weights.double() for weights in layer)) for layer in training.theta.layers]


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
        own = described(config, trajectory) | {name: value[run].item() for name, value in values.items()}
        for index, (exponent, e) in enumerate(zip(exponents[run].tolist(), error[run].tolist(), strict=True), 1):
            yield own | {"index": index, "exponent": exponent, "error": e}


def singular_values(trajectory: Trajectory, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """ln(singular value) / lag of the product of the first `lag` Jacobians after the transient, a row for each."""
    found = graded.log10_singular_values(itertools.islice(trajectory, args.transient, None), args.lags)
    for config, per_lag in zip(trajectory.configs, found.squeeze(1), strict=True):
        for lag, values in zip(args.lags, (per_lag * math.log(10)).tolist(), strict=True):
            for index, value in enumerate(values, 1):
                yield described(config, trajectory) | {"lag": lag, "index": index, "rate": value / lag}


def described(config: Config, trajectory: Trajectory) -> dict[str, Any]:
    """g: std of W times sqrt(hidden). input_std: std of U, of what drives; 0 if nothing does. updates: of training."""
    drive, init, inputs = trajectory.drive, config.init, vectorize.make_task(config.task).inputs
    std = init.input_scale / inputs**0.5 if init.input_std is None else init.input_std
    g = init.scale if init.std is None else init.std * config.model.hidden**0.5
    model = {"net": trajectory.net, "cell": config.model.name, "activation": config.model.activation, "drive": drive}
    model |= {"updates": trajectory.updates, "init": init.name, "g": g}
    return (
        model
        | {"input_std": std if drive == "driven" else 0.0, "task": config.task.name}
        | {"hidden": config.model.hidden, "layers": config.model.layers, "seed": config.seed}
    )


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
    for nets, first in trajectories(args):
        exponents += spectra(nets, args, f"{nets.net}, {nets.drive}: {len(nets.configs)} nets")
        products += singular_values(first, args)
    given = {name: value for name, value in vars(args).items() if name != "config"}
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
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
