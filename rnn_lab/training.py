"""The training loop: a generator that yields what it measured. No files, no trackers, no Hydra.

Row `step = s` describes the parameters after s updates, measured on mini-batch s + 1 before update s + 1 is applied: rows at 0, at every
multiple of log_every (and of eval.every), and at the end, whose batch is drawn and not applied.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnn_lab import bptt, clipping, optimizers, probes, regularizers, theory, vectorize
from rnn_lab.cells import Cell, Elman
from rnn_lab.config import Config
from rnn_lab.parameters import Parameters
from rnn_lab.tasks import Task

if TYPE_CHECKING:
    from rnn_lab.kernels.engine import Program

DTYPES = {"float32": torch.float32, "float64": torch.float64}
EVAL_BATCH = 100


@dataclass(frozen=True)
class Snapshot:
    """What was measured after `step` updates, for the runs where `runs` is true.

    scalars: (R,) float64 each.  timesteps: (R, layers, T) float32 each.  diverged: (R,), the runs that end here because their loss or
    gradient is not finite.  late: (R,), how many of the T steps come before each run's own first and mean nothing.
    """

    step: int
    runs: NDArray[np.bool_]
    scalars: dict[str, NDArray[np.float64]]
    timesteps: dict[str, NDArray[np.float32]]
    diverged: NDArray[np.bool_]
    late: NDArray[np.int64]


def train(configs: list[Config]) -> Iterator[Snapshot]:
    """Trains R runs of equal static fields as one program. What happens in a run depends on its own config and seed alone.

    A run whose loss or gradient is not finite is frozen: its last row is the one that shows it, and the others go on. With
    training.updates=0 nothing is applied, so nothing diverges: an overflowing gradient is then just measured.
    Sets PyTorch to one thread: with more, the order of long sums depends on what else is in the program.
    """
    torch.set_num_threads(1)
    first = configs[0]
    training, dtype, device = first.training, DTYPES[first.training.dtype], first.training.device
    task = vectorize.make_task(first.task)
    cell = vectorize.make_cell(configs, dtype, device)
    net = bptt.Net(cell, task.loss, task.loss_steps, first.task.reduction)
    clip, optimizer = clipping.CLIPS[first.clip.name], optimizers.OPTIMIZERS[first.optimizer.name]
    regularised, truncation = first.regularizer.name == "omega", training.truncation

    init_rngs, data_rngs, eval_roots = zip(*(vectorize.streams(c.seed) for c in configs), strict=True)
    theta = vectorize.stack_parameters(configs, task, list(init_rngs), dtype, device)

    def per_run(group: str, key: str) -> Tensor:
        return vectorize.per_run([getattr(getattr(c, group), key) for c in configs], device)

    clip_settings = clipping.Settings(
        per_run("clip", "threshold"), per_run("clip", "factor"), per_run("clip", "percentile"), theta.matrices
    )
    settings, state = {key: per_run("optimizer", key) for key in optimizer.settings}, optimizer.state(theta.flat)
    alpha = per_run("regularizer", "alpha").to(dtype)
    batches = vectorize.MiniBatches(task, list(data_rngs), training.batch_size, dtype, device)
    buffers = bptt.Buffers(theta, cell, task.steps, training.batch_size, keep_dE_dh=regularised)
    kernel = fused_kernel(theta, net, task, training.batch_size) if training.kernel == "numba" else None
    grads = theta.like() if kernel is None else kernel.grads
    apart = regularised or truncation is not None or kernel is not None
    full = theta.like() if apart else grads  # dE/dtheta of full BPTT, at recorded rows
    before = theta.like() if first.probe.smoothness_every else None  # the parameters one update ago

    active = torch.ones(len(configs), dtype=torch.bool, device=device)
    times_clipped, since = torch.zeros(len(configs), dtype=torch.float64, device=device), 0
    for step in range(training.updates + 1):
        last = step == training.updates
        evaluate = first.eval.every is not None and (last or step % first.eval.every == 0)
        record = last or evaluate or _smoothness_due(step, first) or step % training.log_every == 0

        x, y = batches.draw()
        buffers.late = batches.late
        if kernel is None or record:
            o = bptt.forward(theta, x, net, buffers)
            loss, dE_do = bptt.objective(o, y, net, buffers.late)
        adjoints = bptt.scaled_backward(theta, x, dE_do, net, buffers, full) if record else None
        if kernel is not None:  # what is applied is always the kernel's; the reference only measures
            loss, o = kernel(
                x.unsqueeze(1).numpy(), y.unsqueeze(1).numpy(), 0, False, *_own_lengths(net, x, buffers.late)
            )
        elif truncation is not None:
            bptt.truncated_backward(theta, x, dE_do, net, buffers, grads, truncation)
        elif adjoints is None:
            bptt.backward(theta, x, dE_do, net, buffers, grads)
        elif regularised:
            grads.flat.copy_(full.flat)
        omega = None
        if regularised and isinstance(cell, Elman):
            omega = regularizers.add_omega_gradient_(theta, cell, buffers, alpha, grads)
        applied, clipped = clip(grads.flat, theta.flat, clip_settings)
        times_clipped, since = times_clipped + clipped, since + 1

        finite = torch.isfinite(loss) & torch.isfinite(clipping.norm(grads.flat))
        diverged = active & ~finite & (training.updates > 0)
        rows = active if record else diverged
        if rows.any():
            if adjoints is None:  # a run diverged between two rows: measure what it died of
                if kernel is not None:
                    dE_do = bptt.objective(bptt.forward(theta, x, net, buffers), y, net, buffers.late)[1]
                adjoints = bptt.scaled_backward(theta, x, dE_do, net, buffers, full)
            scalars = {"train/loss": loss, "train/error": task.wrong(o, y, buffers.late).double().mean(-1)}
            scalars |= probes.gradient_scalars(grads.flat, applied, clipped) | {
                "grad/clipped_fraction": times_clipped / since
            }
            timesteps = probes.time_series(x, theta, net, buffers, adjoints)
            if isinstance(cell, Elman):
                scalars["omega"] = regularizers.net_omega(theta, cell, adjoints) if omega is None else omega
            if truncation is not None:
                scalars |= probes.truncation_scalars(full.flat, grads.flat)
            curve = timesteps["dE_dh/log10_norm"]
            if net.loss_steps > 1:  # the slope is that of E_T alone
                curve = probes.log10_norms(bptt.scaled_adjoints(theta, dE_do[..., -1:, :, :], net, buffers).dE_dh)
            scalars["dE_dh/slope"] = probes.slope(curve[..., -1, :])
            if step == 0:  # later the weights are no longer the random ones that it speaks of
                scalars |= mean_field(configs, x, buffers.late)
            if evaluate:
                scalars |= evaluations(theta, net, task, list(eval_roots), step, first)
            if before is not None and _smoothness_due(step, first):
                scalars["grad/smoothness"] = probes.smoothness(theta, before, x, y, net, buffers, full)
            if _spectrum_due(step, first):
                scalars |= spectrum(theta, cell, first)
            elif diverged.any():  # a run's last row has it too, and changes nothing in its neighbours' rows
                yield _snapshot(
                    step, diverged, scalars | spectrum(theta, cell, first), timesteps, diverged, batches.late
                )
                rows = rows & ~diverged
            if rows.any():
                yield _snapshot(step, rows, scalars, timesteps, diverged & rows, batches.late)
            if record:
                times_clipped, since = torch.zeros_like(times_clipped), 0
        active = active & ~diverged
        if last or not active.any():
            return
        if before is not None:
            before.flat.copy_(theta.flat)
        optimizers.update_(optimizer, theta.flat, applied, state, settings, active)


def fused_kernel(theta: Parameters, net: bptt.Net, task: Task, batch_size: int) -> "Program":
    """The Numba kernel for this program."""
    from rnn_lab.kernels.engine import Program  # imports Numba, half a second

    return Program(theta, net, task.steps, batch_size)


def _own_lengths(net: bptt.Net, x: Tensor, late: Tensor | None) -> tuple[NDArray | None, NDArray | None]:
    """What the kernel takes for runs of true lengths of their own: the steps that each sits out, and its weight of one E_t."""
    if late is None:
        return None, None
    return late.numpy(), np.broadcast_to(np.asarray(net.weight(x.shape[-2], late)), len(late)).astype(np.float64)


def _snapshot(
    step: int,
    runs: Tensor,
    scalars: dict[str, Tensor],
    timesteps: dict[str, Tensor],
    diverged: Tensor,
    late: Tensor | None,
) -> Snapshot:
    return Snapshot(
        step,
        runs.cpu().numpy(),
        {name: v.double().cpu().numpy() for name, v in scalars.items()},
        {name: v.float().cpu().numpy() for name, v in timesteps.items()},
        diverged.cpu().numpy(),
        np.zeros(len(runs), np.int64) if late is None else late.cpu().numpy(),
    )


def _smoothness_due(step: int, config: Config) -> bool:
    every = config.probe.smoothness_every
    return every is not None and step > 0 and step % every == 0


def _spectrum_due(step: int, config: Config) -> bool:
    every = config.probe.spectrum_every or max(100, config.training.log_every)
    return step % every == 0 or step == config.training.updates


def spectrum(theta: Parameters, cell: Cell, config: Config) -> dict[str, Tensor]:
    """W/rho, W/sigma_max, and with them theory/eta, where Pascanu's bound applies: gamma sigma_max of an Elman or a leaky net."""
    scalars = probes.spectrum(theta)
    if isinstance(cell, Elman):
        sigma_max, leak = scalars["W/sigma_max"].cpu().numpy(), 1.0 if cell.leak is None else cell.leak.cpu().numpy()
        scalars["theory/eta"] = torch.from_numpy(theory.eta(config.model.activation, sigma_max, leak))
    return scalars


def mean_field(configs: list[Config], x: Tensor, late: Tensor | None) -> dict[str, Tensor]:
    """theory/slope of untrained Gaussian Elman nets (top layer), along this mini-batch's ||x_t||^2; NaN for other kinds of W.

    Cost: once a program, 20 ms and 1 ms a run for 100 steps (and 0.1 s in a process that meets sigmoid or tanh first).
    """
    model = configs[0].model
    if model.name != "elman":
        return {}

    def gain(scale: float, std: float | None, fan_in: int) -> float:
        return scale if std is None else std * fan_in**0.5

    inits = [c.init for c in configs]
    g = np.array([gain(i.scale, i.std, model.hidden) if i.name == "gaussian" else np.nan for i in inits])
    skipped = 0 if late is None else late.cpu().numpy()
    inputs, fan_in = x.double().square().sum(-1).mean(-1).cpu().numpy() / x.shape[-1], x.shape[-1]
    for _ in range(model.layers):
        from_below = np.array([gain(i.input_scale, i.input_std, fan_in) for i in inits]) ** 2
        q = theory.second_moments(model.activation, np.nan_to_num(g), from_below[:, None] * inputs, skipped)
        inputs, fan_in = theory.mean_square(model.activation, q), model.hidden
    return {"theory/slope": torch.from_numpy(theory.slope(model.activation, g, q, skipped))}


def evaluations(
    theta: Parameters, net: bptt.Net, task: Task, roots: list[np.random.SeedSequence], step: int, config: Config
) -> dict[str, Tensor]:
    """eval/loss, eval/error on the task that is trained on, and eval/loss_L<k>, eval/error_L<k> at each length k of eval.lengths."""
    rngs = [vectorize.evaluation_rng(root, step) for root in roots]
    found = evaluation(theta, net, task, rngs, config.eval.sequences)
    scalars = {f"eval/{name}": v for name, v in found.items()}
    for length in config.eval.lengths or ():
        other = vectorize.make_task(replace(config.task, length=length, length_range=None))
        rngs = [vectorize.evaluation_rng(root, step, length) for root in roots]
        its_net = replace(net, loss_steps=other.loss_steps)
        found = evaluation(theta, its_net, other, rngs, config.eval.sequences)
        scalars |= {f"eval/{name}_L{length}": v for name, v in found.items()}
    return scalars


def evaluation(
    theta: Parameters, net: bptt.Net, task: Task, rngs: list[vectorize.Rng], sequences: int
) -> dict[str, Tensor]:
    """Loss and error on fresh sequences, which are the same whenever a run is evaluated at this step; the training data do not move."""
    batches = vectorize.MiniBatches(
        task,
        rngs,
        EVAL_BATCH,
        theta.flat.dtype,
        str(theta.flat.device),
    )
    buffers = bptt.Buffers(theta, net.cell, task.steps, EVAL_BATCH)
    loss, wrong = torch.zeros(2, len(rngs), dtype=torch.float64, device=theta.flat.device)
    for start in range(0, sequences, EVAL_BATCH):
        count = min(EVAL_BATCH, sequences - start)
        x, y = batches.draw()
        buffers.late = batches.late
        o = bptt.forward(theta, x, net, buffers)
        E, _ = bptt.losses(o, y, net, batches.late)
        loss += E[..., :count].double().sum((-2, -1)) * net.weight(1, batches.late)
        wrong += task.wrong(o, y, batches.late)[..., :count].sum(-1)
    return {"loss": loss / sequences, "error": wrong / sequences}
