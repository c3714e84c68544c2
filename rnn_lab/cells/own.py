"""A user's own cell: its step is written, its backward pass comes from torch.func.vjp."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp

from rnn_lab.cells.base import Blocks, Cell, Step
from rnn_lab.scaled import Scaled, aligned


class Own(Cell):
    """Wraps an object with `step(z, s, W)`, which returns s_t. z = x_t U + b is (runs, rows, gates hidden), W (runs, hidden, gates hidden).

    s is h_{t-1}, (runs, rows, hidden), or a tuple of such where the object says `blocks` > 1, h first; what is returned likewise. `gates`
    and `blocks` of the object are 1 if it doesn't say. W may be used in any way, and a row must not see another.
    What W's gradient is made of are the total gradients dE/ds_t themselves. In a program a run equals the run alone to rounding, not to the
    bit: PyTorch's functions may round the last few entries of a contiguous tensor differently. Cost: about five times the step's own.
    """

    def __init__(self, own: Any):
        self.gates, self.blocks = getattr(own, "gates", 1), getattr(own, "blocks", 1)
        self.sent = self.blocks
        self._step: Callable = own.step

    def step(self, z: Tensor, s: Blocks, W: Tensor) -> Blocks:
        after = self._step(z, s if self.blocks > 1 else s[0], W)
        return tuple(after) if self.blocks > 1 else (after,)

    def forward(self, at: Step, W: Tensor, scratch: Tensor) -> None:
        for out, block in zip(at.after, self.step(at.gates, at.before, W), strict=True):
            out.copy_(block)

    def backward(self, d: Blocks, at: Step, WT: Tensor, delta: Tensor, sent: Tensor, before: Blocks) -> None:
        pull = vjp(lambda z, *s: self.step(z, s, WT.transpose(1, 2)), at.gates, *at.before)[1]
        torch.cat(d, -1, out=sent)
        dz, *ds = pull(d)
        delta.copy_(dz)
        for out, block in zip(before, ds, strict=True):
            out.copy_(block)

    def weight_gradient(self, at: Step, sent: Tensor, W: Tensor, dW: Tensor) -> None:
        pull = vjp(lambda W: self.step(at.gates, at.before, W), W)[1]
        dW.copy_(pull(sent.chunk(self.blocks, -1))[0])

    def weight_summands(self, at: Step, sent: Scaled, W: Tensor) -> tuple[Tensor, Scaled]:
        """The identity, and the summands themselves: each step of each run is taken for a run with a W of its own. In float64."""

        mantissa, exponent = aligned(sent)

        def as_runs(x: Tensor) -> Tensor:
            return x.double().expand(*exponent.shape, *x.shape[-2:]).flatten(0, -3)

        hidden, columns = W.shape[-2:]
        each_W = as_runs(W.unsqueeze(-3))
        dW = torch.empty_like(each_W, memory_format=torch.contiguous_format)
        self.weight_gradient(at.map(as_runs), as_runs(mantissa), each_W, dW)
        eye = torch.eye(hidden, dtype=W.dtype, device=W.device).expand(*exponent.shape, hidden, hidden)
        return eye, Scaled(
            dW.view(*exponent.shape, hidden, columns), exponent.unsqueeze(-1).expand(*exponent.shape, hidden)
        )
