"""Leaky units: an Elman net with a memory that decays at a rate of its own (Jaeger et al. 2007)."""

import torch
from torch import Tensor

from rnn_lab.activations import Activation
from rnn_lab.cells.base import Blocks, Step
from rnn_lab.cells.elman import Elman


class Leaky(Elman):
    """h_t = (1 - leak) h_{t-1} + leak phi(a_t), a_t = z_t + h_{t-1} W. leak: (*runs,), in (0, 1] and of the weights' dtype; 1 is Elman."""

    in_place = False

    def __init__(self, phi: Activation, leak: Tensor):
        super().__init__(phi)
        self.leak = leak
        self._taken, self._held = leak.reshape(-1, 1, 1), 1 - leak.reshape(-1, 1, 1)

    def step(self, z: Tensor, s: Blocks, W: Tensor) -> Blocks:
        return (torch.lerp(s[0], self.phi.of(z + s[0] @ W), self._taken.to(z.dtype)),)

    def forward(self, at: Step, W: Tensor, scratch: Tensor) -> None:
        phi = self.phi.apply(torch.baddbmm(at.gates, at.before[0], W, out=scratch), at.gates)
        torch.lerp(at.before[0], phi, self._taken, out=at.after[0])

    def backward(self, d: Blocks, at: Step, WT: Tensor, delta: Tensor, sent: Tensor, before: Blocks) -> None:
        """delta_t = leak phi'(a_t) * dE/dh_t,  dE/dh_{t-1} = (1 - leak) dE/dh_t + delta_t W^T."""
        self.phi.backward(d[0], at.gates, delta).mul_(self._taken)
        torch.mul(d[0], self._held, out=before[0]).baddbmm_(delta, WT)
