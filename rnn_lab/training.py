"""The training loop: a generator that yields what it measured. No files, no trackers, no Hydra.

Row `step = s` describes the parameters after s updates, measured on mini-batch s + 1 before update s + 1 is applied: rows at 0, at every
multiple of log_every (and of eval.every), and at the end, whose batch is drawn and not applied.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnn_lab import bptt, clipping, optimizers, probes, vectorize
from rnn_lab.activations import ACTIVATIONS
from rnn_lab.config import Config
from rnn_lab.parameters import Parameters
from rnn_lab.tasks import TASKS, Task

DTYPES = {"float32": torch.float32, "float64": torch.float64}
EVAL_BATCH = 100
TIMESTEP_SERIES = ("dE_dh/log10_norm", "delta/log10_norm", "h/norm", "phi_prime/mean")


@dataclass(frozen=True)
class Snapshot:
    """What was measured after `step` updates, for the runs where `runs` is true.

    scalars: (R,) float64 each.  timesteps: (R, layers, T) float32 each.  diverged: (R,), the runs that end here because their loss or
    gradient is not finite.
    """

    step: int
    runs: NDArray[np.bool_]
    scalars: dict[str, NDArray[np.float64]]
    timesteps: dict[str, NDArray[np.float32]]
    diverged: NDArray[np.bool_]


def train(configs: list[Config]) -> Iterator[Snapshot]:
    """Trains R runs of equal static fields as one program. What happens in a run depends on its own config and seed alone.

    A run whose loss or gradient is not finite is frozen: its last row is the one that shows it, and the others go on. With
    training.updates=0 nothing is applied, so nothing diverges: an overflowing gradient is then just measured.
    Sets PyTorch to one thread: with more, the order of long sums depends on what else is in the program.
    """
    torch.set_num_threads(1)
    first = configs[0]
    training, dtype, device = first.training, DTYPES[first.training.dtype], first.training.device
    task = TASKS[first.task.name](first.task.length)
    net = bptt.Net(ACTIVATIONS[first.model.activation], task.loss, task.loss_steps, first.task.reduction)
    clip = clipping.CLIPS[first.clip.name]

    init_rngs, data_rngs, eval_roots = zip(*(vectorize.streams(c.seed) for c in configs), strict=True)
    theta = vectorize.stack_parameters(configs, task, list(init_rngs), dtype, device)
    threshold = vectorize.per_run([c.clip.threshold for c in configs], device)
    lr = vectorize.per_run([c.optimizer.lr for c in configs], device)
    batches = vectorize.MiniBatches(task, list(data_rngs), training.batch_size, dtype, device)
    buffers, grads = bptt.Buffers(theta, task.steps, training.batch_size), theta.like()

    active = torch.ones(len(configs), dtype=torch.bool, device=device)
    times_clipped, since = torch.zeros(len(configs), dtype=torch.float64, device=device), 0
    for step in range(training.updates + 1):
        last = step == training.updates
        evaluate = first.eval.every is not None and (last or step % first.eval.every == 0)
        record = last or evaluate or step % training.log_every == 0

        x, y = batches.draw()
        o = bptt.forward(theta, x, net, buffers)
        loss, dE_do = bptt.objective(o, y, net)
        adjoints = bptt.scaled_backward(theta, x, dE_do, net, buffers, grads) if record else None
        if adjoints is None:
            bptt.backward(theta, x, dE_do, net, buffers, grads)
        applied, clipped = clip(grads.flat, threshold)
        times_clipped, since = times_clipped + clipped, since + 1

        finite = torch.isfinite(loss) & torch.isfinite(clipping.norm(grads.flat))
        diverged = active & ~finite & (training.updates > 0)
        rows = active if record else diverged
        if rows.any():
            if adjoints is None:  # a run diverged between two rows: measure what it died of
                adjoints = bptt.scaled_backward(theta, x, dE_do, net, buffers, grads)
            scalars = {"train/loss": loss, "train/error": task.wrong(o, y).double().mean(-1)}
            scalars |= probes.gradient_scalars(grads.flat, applied, clipped) | {
                "grad/clipped_fraction": times_clipped / since
            }
            timesteps = {
                "dE_dh/log10_norm": probes.log10_norms(adjoints.dE_dh),
                "delta/log10_norm": probes.log10_norms(adjoints.delta),
                "h/norm": probes.h_norm(buffers.h),
                "phi_prime/mean": probes.phi_prime_mean(buffers.h, net.phi),
            }
            scalars["dE_dh/slope"] = probes.slope(timesteps["dE_dh/log10_norm"][..., -1, :])
            if evaluate:
                scalars |= evaluation(theta, net, task, list(eval_roots), step, first.eval.sequences)
            if _spectrum_due(step, first):
                scalars |= probes.spectrum(theta)
            elif diverged.any():  # a run's last row has it too, and changes nothing in its neighbours' rows
                yield _snapshot(step, diverged, scalars | probes.spectrum(theta), timesteps, diverged)
                rows = rows & ~diverged
            if rows.any():
                yield _snapshot(step, rows, scalars, timesteps, diverged & rows)
            if record:
                times_clipped, since = torch.zeros_like(times_clipped), 0
        active = active & ~diverged
        if last or not active.any():
            return
        if not active.all():
            applied = applied.masked_fill(~active.unsqueeze(-1), 0)
        optimizers.sgd_(theta.flat, applied, lr)


def _snapshot(
    step: int, runs: Tensor, scalars: dict[str, Tensor], timesteps: dict[str, Tensor], diverged: Tensor
) -> Snapshot:
    return Snapshot(
        step,
        runs.cpu().numpy(),
        {name: v.double().cpu().numpy() for name, v in scalars.items()},
        {name: v.float().cpu().numpy() for name, v in timesteps.items()},
        diverged.cpu().numpy(),
    )


def _spectrum_due(step: int, config: Config) -> bool:
    every = config.probe.spectrum_every or max(100, config.training.log_every)
    return step % every == 0 or step == config.training.updates


def evaluation(
    theta: Parameters, net: bptt.Net, task: Task, roots: list[np.random.SeedSequence], step: int, sequences: int
) -> dict[str, Tensor]:
    """Loss and error on fresh sequences, which are the same whenever a run is evaluated at this step; the training data do not move."""
    batches = vectorize.MiniBatches(
        task,
        [vectorize.evaluation_rng(root, step) for root in roots],
        EVAL_BATCH,
        theta.flat.dtype,
        str(theta.flat.device),
    )
    buffers = bptt.Buffers(theta, task.steps, EVAL_BATCH)
    loss, wrong = torch.zeros(2, len(roots), dtype=torch.float64, device=theta.flat.device)
    for start in range(0, sequences, EVAL_BATCH):
        count = min(EVAL_BATCH, sequences - start)
        x, y = batches.draw()
        o = bptt.forward(theta, x, net, buffers)
        E, _ = net.loss(o, y)
        loss += E[..., :count].double().sum((-2, -1)) / task.loss_steps
        wrong += task.wrong(o, y)[..., :count].sum(-1)
    return {"eval/loss": loss / sequences, "eval/error": wrong / sequences}
