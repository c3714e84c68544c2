"""The state's own memory: how much a small perturbation of the state at time t still moves the last one."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from rnn_lab import bptt
from rnn_lab.parameters import Parameters
from rnn_lab.scaled import log10_rms_norm

SEQUENCES = 4  # of the mini-batch, its first


def memory(theta: Parameters, x: Tensor, net: bptt.Net, late: Tensor | None) -> Tensor:
    """log10 of the root mean square of ||dh_T/ds_t v|| at each (layer, t), over all directions of unit vectors v and over the first four
    sequences of the mini-batch: (*runs, layers, T), float64. h_T is the top layer's, s_t the whole state of a layer (h_t; an LSTM's h_t
    and c_t, where h_t follows a c_t that is moved). A perturbation of length 1 arrives as 10^this.

    That mean is exactly ||dh_T/ds_t||_F / sqrt(size of s_t), so no v is drawn: every unit vector of h_T is pulled back through time once,
    renormalised at each step, and all t come out of the one sweep. Nothing under- or overflows; a state that is forgotten is -inf.
    x: (*runs, T, batch, inputs), late: (*runs,), how many of the T steps each run sits out.
    Cost: 4 hidden / batch updates of the reference and their probes: about 65 updates' time, an LSTM's 45 of its own; memory as
    for an update.
    """
    *runs, T, batch, _ = x.shape
    hidden = theta.V.shape[-2]
    unit = torch.eye(hidden, dtype=x.dtype, device=x.device)
    read = replace(theta, V=unit.expand(*runs, -1, -1), c=theta.c.new_zeros(*runs, 1, hidden))  # its output is h_T
    last = replace(net, loss_steps=1)
    which = torch.cartesian_prod(torch.arange(min(SEQUENCES, batch)), torch.arange(hidden)).to(x.device)
    squares = []  # log10 of the sum of squares over each chunk
    for rows in which.split(batch):
        sequence, direction = rows.unbind(1)
        buffers = bptt.Buffers(theta, net.cell, T, len(rows))
        buffers.late, driven = late, x[..., sequence, :]
        bptt.forward(read, driven, last, buffers)
        pulled = bptt.scaled_adjoints(read, unit[direction].expand(*runs, 1, -1, -1), last, buffers)
        log10_rms = torch.stack([log10_rms_norm(d) for d in pulled.dE_ds], dim=-2)
        squares.append(2 * log10_rms + math.log10(len(rows)))
    total = torch.logsumexp(torch.stack(squares) * math.log(10), 0) / math.log(10)
    return (total - math.log10(len(which) * net.cell.blocks)) / 2
