"""Loss and error on fresh sequences, at the length that is trained on and at others."""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rnn_lab import bptt, vectorize
from rnn_lab.config import Config
from rnn_lab.parameters import Parameters
from rnn_lab.tasks import Streams, Task
from rnn_lab.tasks.streams import STREAMS

BATCH = 100


def evaluations(
    theta: Parameters, net: bptt.Net, task: Task, roots: list[np.random.SeedSequence], step: int, config: Config
) -> dict[str, Tensor]:
    """eval/loss, eval/error on the task that is trained on, and eval/loss_L<k>, eval/error_L<k> at each length k of eval.lengths.

    Of natural data: of the whole validation part, and test/loss, test/error of the whole test part.
    """
    if isinstance(task, Streams):
        parts = {"eval": task.corpus.valid, "test": task.corpus.test}
        return {f"{part}/{key}": v for part, data in parts.items() for key, v in whole(theta, net, task, data).items()}
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


def whole(theta: Parameters, net: bptt.Net, task: Streams, part: NDArray) -> dict[str, Tensor]:
    """Loss and error on a whole part of a corpus, read as `Streams` says: the mean over its steps (times T with task.reduction=sum)."""
    buffers, runs = bptt.Buffers(theta, net.cell, task.steps, STREAMS), theta.flat.shape[:-1]
    (loss, wrong), steps = torch.zeros(2, *runs, dtype=torch.float64, device=theta.flat.device), 0
    for x, y, count in task.chunks(part):
        x, y = (torch.from_numpy(z).to(theta.flat.device) for z in (x, y))
        x = (F.one_hot(x.long(), task.inputs) if task.symbols else x).to(theta.flat.dtype)
        y = (y if task.symbols else y.to(theta.flat.dtype)).expand(*runs, *y.shape)
        buffers.carry()
        o = bptt.forward(theta, x.expand(*runs, *x.shape), net, buffers)
        E, _ = bptt.losses(o, y, net)
        loss += E[..., :count, :].double().sum((-2, -1))
        wrong += task.wrong_steps(o, y)[..., :count, :].sum((-2, -1))
        steps += count * STREAMS
    return {"loss": loss / steps * (net.weight(1) * task.steps), "error": wrong / steps}
