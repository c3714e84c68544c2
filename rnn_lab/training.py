"""The training loop: a generator that yields what it measured. No files, no trackers, no Hydra.

Row `step = s` describes the parameters after s updates, measured on mini-batch s + 1 before update s + 1 is applied: rows at 0, at every
multiple of log_every (and of eval.every), and at the end, whose batch is drawn and not applied.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnn_lab import bptt, cells, clipping, flossing, optimizers, predictions, probes, vectorize
from rnn_lab.config import Config
from rnn_lab.engines import engine_for, loops_for
from rnn_lab.evaluation import evaluations
from rnn_lab.tasks import Streams

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def timestep_series(config: Config) -> tuple[str, ...]:
    """The series that each row of a run has."""
    series = probes.series_names(cells.kind(config.model.name))
    return series if config.probe.memory_every is None else (*series, "memory/log10_gain")


@dataclass(frozen=True)
class Snapshot:
    """What was measured after `step` updates, for the runs where `runs` is true.

    scalars: (R,) float64 each.  timesteps: (R, layers, T) float32 each.  diverged: (R,), the runs that end here because their loss or
    gradient is not finite.  solved: (R,), those that end here because they have solved their task (training.stop_when_solved).
    late: (R,), how many of the T steps come before each run's own first and mean nothing.
    contributions: (R, 3, layers, L + 4, T) float32, the lecture's double sum, where it is due (see `probes.contributions`).
    """

    step: int
    runs: NDArray[np.bool_]
    scalars: dict[str, NDArray[np.float64]]
    timesteps: dict[str, NDArray[np.float32]]
    diverged: NDArray[np.bool_]
    solved: NDArray[np.bool_]
    late: NDArray[np.int64]
    contributions: NDArray[np.float32] | None = None


def train(configs: list[Config]) -> Iterator[Snapshot]:
    """Trains R runs from their beginning to their end."""
    training = Training(configs)
    while not training.done:
        yield from training.advance()


class Training:
    """R runs of equal static fields as one program. What happens in a run depends on its own config and seed alone.

    A run whose loss or gradient is not finite is frozen: its last row is the one that shows it, and the others go on. So is one that has
    solved its task, where training.stop_when_solved says so. With training.updates=0 nothing is applied, so nothing diverges: an
    overflowing gradient is then just measured.
    Sets PyTorch to one thread: with more, the order of long sums depends on what else is in the program.

    step: how many updates have been applied.  done: nothing is left to do.
    """

    def __init__(self, configs: list[Config]):
        torch.set_num_threads(1)
        first = self.first = configs[0]
        dtype, device = DTYPES[first.training.dtype], first.training.device
        self.configs, self.task = configs, vectorize.make_task(first.task)
        cell = vectorize.make_cell(configs, dtype, device)
        loops = loops_for(first, cell, self.task.inputs)
        self.net = bptt.Net(cell, self.task.loss, self.task.loss_steps, first.task.reduction, loops)
        init_rngs, data_rngs, eval_roots = zip(*(vectorize.streams(c.seed) for c in configs), strict=True)
        self.eval_roots = list(eval_roots)
        self.theta = vectorize.stack_parameters(configs, self.task, list(init_rngs), dtype, device)
        self.batches = vectorize.mini_batches(
            self.task, list(data_rngs), first.training.batch_size, dtype, device, ahead=True
        )

        def per_run(group: str, key: str) -> Tensor:
            return vectorize.per_run([getattr(getattr(c, group), key) for c in configs], device)

        self.clip = clipping.CLIPS[first.clip.name]
        self.clip_settings = clipping.Settings(
            per_run("clip", "threshold"), per_run("clip", "factor"), per_run("clip", "percentile"), self.theta.matrices
        )
        self.optimizer = optimizers.OPTIMIZERS[first.optimizer.name]
        self.settings = {key: per_run("optimizer", key) for key in self.optimizer.settings}
        self.optimizer_state = self.optimizer.state(self.theta.flat)
        self.alpha = per_run("regularizer", "alpha").to(dtype) if first.regularizer.name == "omega" else None
        self.engine = engine_for(first, self.theta, self.net, self.batches, self.alpha)
        self.before = self.theta.like() if first.probe.smoothness_every else None  # the parameters one update ago

        self.step, self.done = 0, False
        self.active = np.ones(len(configs), bool)  # NumPy: the loop's own decisions, at a third of the cost
        self.times_clipped, self.since = torch.zeros(len(configs), dtype=torch.float64, device=device), 0

    def advance(self) -> Iterator[Snapshot]:
        """One mini-batch: yields what it measured, and then applies its update. Between two calls `state` may be taken."""
        training, probe, step = self.first.training, self.first.probe, self.step
        last = step == training.updates
        evaluate = _due(self.first.eval.every, step, last)
        smoothness = step > 0 and _due(probe.smoothness_every, step)
        contributions = _due(probe.contributions_every, step, last)
        others = contributions or _due(probe.lyapunov_every, step) or _due(probe.memory_every, step)
        flossed = {}
        if flossing.due(self.first, step):
            flossed = flossing.floss(self.configs, step, self.task, self.theta, self.net.cell, self.active)
        record = last or evaluate or smoothness or others or bool(flossed) or _due(training.log_every, step)

        self.batches.advance()
        if self.alpha is not None and self.first.regularizer.decay == "epoch" and isinstance(self.task, Streams):
            self.engine.alpha = self.alpha / self.task.epoch(step, training.batch_size)
        loss, o = self.engine.gradients(measure=record)
        g = self.engine.grads.flat
        size = clipping.norm(g)
        applied, clipped = self.clip(g, size, self.theta.flat, self.clip_settings)
        self.times_clipped, self.since = self.times_clipped + clipped, self.since + 1

        finite = np.isfinite((loss + size).cpu().numpy())  # the one time an update waits for a GPU
        diverged = self.active & ~finite & (training.updates > 0)
        rows = self.active if record else diverged
        if rows.any():  # between two rows: what a run died of
            solved = np.zeros_like(diverged)
            y = self.batches.targets()
            scalars = {
                "train/loss": loss,
                "train/error": self.task.wrong(o, y, self.batches.late).double().mean(-1),
                **probes.gradient_scalars(g, size, applied, clipped),
                "grad/clipped_fraction": self.times_clipped / self.since,
            }
            own, timesteps = self.engine.measured()
            scalars |= own | flossed | self._occasional(evaluate, smoothness) | self._exponents(last)
            timesteps |= self._memory(last)
            pairs = None
            if contributions:
                shares, pairs = self._contributions()
                scalars |= shares
            if evaluate and training.stop_when_solved:
                solved = self.active & ~diverged & (scalars["eval/error"] < self.task.solved_below).cpu().numpy()
            ending = diverged | solved
            if _spectrum_due(step, self.first):
                scalars |= self._spectrum()
            elif ending.any():  # a run's last row has it too, and changes nothing in its neighbours' rows
                yield self._snapshot(ending, scalars | self._spectrum(), timesteps, diverged, solved, pairs)
                rows = rows & ~ending
            if rows.any():
                yield self._snapshot(rows, scalars, timesteps, diverged & rows, solved & rows, pairs)
            if record:
                self.times_clipped, self.since = torch.zeros_like(self.times_clipped), 0
            self.active = self.active & ~ending
            self.done = last or not self.active.any()
        if self.done:
            return
        if self.before is not None:
            self.before.flat.copy_(self.theta.flat)
        optimizers.update_(self.optimizer, self.theta.flat, applied, self.optimizer_state, self.settings, self.active)
        self.step += 1

    def _occasional(self, evaluate: bool, smoothness: bool) -> dict[str, Tensor]:
        """What only some rows have."""
        scalars: dict[str, Tensor] = {}
        if (
            self.step == 0 and self.first.flossing.name == "none"
        ):  # else the weights are not the random ones that it speaks of
            scalars |= predictions.mean_field(self.configs, self.batches.tensors()[0], self.batches.late)
        if evaluate:
            scalars |= evaluations(self.theta, self.net, self.task, self.eval_roots, self.step, self.first)
        if smoothness and self.before is not None:
            buffers = bptt.Buffers(self.theta, self.net.cell, self.task.steps, self.first.training.batch_size)
            buffers.late = self.batches.late
            scalars["grad/smoothness"] = probes.smoothness(
                self.before, self.theta, *self.batches.tensors(), self.net, buffers
            )
        return scalars

    def _exponents(self, last: bool) -> dict[str, Tensor]:
        if not _due(self.first.probe.lyapunov_every, self.step, last):
            return {}
        return probes.lyapunov_scalars(self.theta, self.batches.tensors()[0], self.net.cell, self.batches.late)

    def _memory(self, last: bool) -> dict[str, Tensor]:
        """Every row has all series: NaN where this one is not due."""
        every, theta = self.first.probe.memory_every, self.theta
        if every is None:
            return {}
        if not _due(every, self.step, last):
            shape = (len(theta.flat), self.first.model.layers, self.task.steps)
            return {"memory/log10_gain": theta.flat.new_full(shape, torch.nan)}
        return {"memory/log10_gain": probes.memory(theta, self.batches.tensors()[0], self.net, self.batches.late)}

    def _contributions(self) -> tuple[dict[str, Tensor], Tensor]:
        lag = self.first.probe.contributions_lag
        return self.engine.contributions(self.task.steps // 2 if lag is None else lag)

    def _spectrum(self) -> dict[str, Tensor]:
        scalars = probes.spectrum(self.theta)
        return scalars | predictions.bound(self.configs, scalars["W/sigma_max"])

    def _snapshot(
        self,
        runs: NDArray[np.bool_],
        scalars: dict[str, Tensor],
        timesteps: dict[str, Tensor],
        diverged: NDArray[np.bool_],
        solved: NDArray[np.bool_],
        contributions: Tensor | None,
    ) -> Snapshot:
        late = self.batches.late
        return Snapshot(
            self.step,
            runs,
            _to_host(scalars, np.float64),
            _to_host(timesteps, np.float32),
            diverged,
            solved,
            np.zeros(len(runs), np.int64) if late is None else late.cpu().numpy(),
            None if contributions is None else contributions.float().cpu().numpy(),
        )

    def _tensors(self) -> list[Tensor]:
        """What changes from update to update, (R, ...) each."""
        return [
            self.theta.flat,
            *self.optimizer_state,
            self.times_clipped,
            *([] if self.before is None else [self.before.flat]),
            *self.engine.carried,
        ]

    def state(self) -> list[dict[str, Any]]:
        """All that each run needs to go on bit for bit, in any program: tensors of its own, numbers, and plain containers of them."""
        return [
            {
                "step": self.step,
                "since": self.since,
                "tensors": [tensor[run].clone() for tensor in self._tensors()],
                "norms": self.clip_settings.history.of(run),
                "generator": generator,
            }
            for run, generator in enumerate(self.batches.state())
        ]

    def part(self, runs: list[int]) -> "Training":
        """Some of the runs as a program of their own, where they are now."""
        states, part = self.state(), Training([self.configs[run] for run in runs])
        part.restore([states[run] for run in runs])
        return part

    def restore(self, states: list[dict[str, Any]]) -> None:
        """Goes on from what `state` said of these runs, wherever they were; all at one step."""
        for run, state in enumerate(states):
            for tensor, own in zip(self._tensors(), state["tensors"], strict=True):
                tensor[run] = own
            self.clip_settings.history.put(run, state["norms"])
        self.step, self.since = states[0]["step"], states[0]["since"]
        self.batches.restore([state["generator"] for state in states], self.step)


def _to_host(values: dict[str, Tensor], dtype: type[np.floating]) -> dict[str, NDArray]:
    """Tensors of one shape as arrays; what is on a GPU comes in one go."""
    there = [name for name, value in values.items() if value.is_cuda]
    if there:
        values = values | dict(zip(there, torch.stack([values[name].double() for name in there]).cpu(), strict=True))
    with np.errstate(over="ignore"):  # what is too large for dtype is infinite there
        return {name: value.numpy().astype(dtype, copy=False) for name, value in values.items()}


def _due(every: int | None, step: int, last: bool = False) -> bool:
    """Every so many updates, and at the `last` row; never if `every` is None."""
    return every is not None and (last or step % every == 0)


def _spectrum_due(step: int, config: Config) -> bool:
    every = config.probe.spectrum_every or max(100, config.training.log_every)
    return _due(every, step, last=step == config.training.updates)
