"""Loss and error on fresh sequences, at the length that is trained on and at others."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rnn_lab import bptt, vectorize
from rnn_lab.config import Config
from rnn_lab.parameters import Parameters
from rnn_lab.tasks import Task

BATCH = 100


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
    batches = vectorize.MiniBatches(task, rngs, BATCH, theta.flat.dtype, str(theta.flat.device))
    buffers = bptt.Buffers(theta, net.cell, task.steps, BATCH)
    loss, wrong = torch.zeros(2, len(rngs), dtype=torch.float64, device=theta.flat.device)
    for start in range(0, sequences, BATCH):
        count = min(BATCH, sequences - start)
        x, y = batches.draw()
        buffers.late = batches.late
        o = bptt.forward(theta, x, net, buffers)
        E, _ = bptt.losses(o, y, net, batches.late)
        loss += E[..., :count].double().sum((-2, -1)) * net.weight(1, batches.late)
        wrong += task.wrong(o, y, batches.late)[..., :count].sum(-1)
    return {"loss": loss / sequences, "error": wrong / sequences}
