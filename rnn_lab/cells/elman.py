"""The Elman cell (deck, "Forward Pass" and "BPTT"; P13 eqs 2-5)."""

import torch
from torch import Tensor

from rnn_lab.activations import Activation
from rnn_lab.cells.base import Blocks, Cell, Step


class Elman(Cell):
    """h_t = phi(a_t), a_t = z_t + h_{t-1} W. No a_t is kept: phi' is taken from h_t."""

    in_place = True
    leak: Tensor | None = None  # see Leaky

    def __init__(self, phi: Activation):
        self.phi = phi

    def step(self, z: Tensor, s: Blocks, W: Tensor) -> Blocks:
        return (self.phi.of(z + s[0] @ W),)

    def forward(self, at: Step, W: Tensor, scratch: Tensor) -> None:
        # a product into a strided slice takes twice the time: hence `scratch`
        self.phi.apply(torch.baddbmm(at.gates, at.before[0], W, out=scratch), at.after[0])

    def backward(self, d: Blocks, at: Step, WT: Tensor, delta: Tensor, sent: Tensor, before: Blocks) -> None:
        """delta_t = phi'(a_t) * dE/dh_t,  dE/dh_{t-1} = delta_t W^T."""
        self.phi.backward(d[0], at.after[0], delta)
        before[0].baddbmm_(delta, WT, beta=0)
