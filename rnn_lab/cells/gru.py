"""The gated recurrent unit (Cho et al. 2014) in the form of cuDNN and torch.nn.GRU: the reset gate acts after the product."""

import torch
from torch import Tensor

from rnn_lab.cells.base import Blocks, Cell, Step

_aten = torch.ops.aten


class GRU(Cell):
    """h_t = (1 - z) n + z h_{t-1},  n = tanh(a_n),  a_n = x_t U_n + b_n + r * (h_{t-1} W_n);  r, z = sigmoid(x_t U + b + h_{t-1} W).

    Columns of U, W, b in the order r, z, n. There is no second bias b_hn (torch.nn.GRU's is 0 here). delta = dE/d(a_r, a_z, a_n); W_n sees
    r * delta_n in place of delta_n, so what W's gradient is made of, `sent`, is a tensor of its own.
    """

    gates = 3
    kept = 1  # h_{t-1} W_n
    sent = 3
    sigmoids = (0, 1)

    def step(self, z: Tensor, s: Blocks, W: Tensor) -> Blocks:
        (z_r, z_z, z_n), (a_r, a_z, m) = z.chunk(3, -1), (s[0] @ W).chunk(3, -1)
        n = torch.tanh(z_n + torch.sigmoid(z_r + a_r) * m)
        return (torch.lerp(n, s[0], torch.sigmoid(z_z + a_z)),)

    def forward(self, at: Step, W: Tensor, scratch: Tensor) -> None:
        [h_before], [h], [m], hidden = at.before, at.after, at.kept, W.shape[-2]
        torch.bmm(h_before, W, out=scratch)
        m.copy_(scratch[..., 2 * hidden :])
        at.gates[..., : 2 * hidden].add_(scratch[..., : 2 * hidden]).sigmoid_()
        r, z, n = at.gates.chunk(3, -1)
        n.addcmul_(r, m).tanh_()
        torch.lerp(n, h_before, z, out=h)

    def backward(self, d: Blocks, at: Step, WT: Tensor, delta: Tensor, sent: Tensor, before: Blocks) -> None:
        """delta_n = (1 - n^2) (1 - z) dE/dh_t,  delta_z = z (1 - z) (h_{t-1} - n) dE/dh_t,  delta_r = r (1 - r) m delta_n, m = h_{t-1} W_n;
        dE/dh_{t-1} = z dE/dh_t + (delta_r, delta_z, r delta_n) W^T.
        """
        [dh], [h_before], [m] = d, at.before, at.kept
        r, z, n = at.gates.chunk(3, -1)
        delta_r, delta_z, delta_n = delta.chunk(3, -1)
        _aten.tanh_backward.grad_input(dh * (1 - z), n, grad_input=delta_n)
        _aten.sigmoid_backward.grad_input(dh * (h_before - n), z, grad_input=delta_z)
        _aten.sigmoid_backward.grad_input(delta_n * m, r, grad_input=delta_r)
        sent.copy_(delta).chunk(3, -1)[2].mul_(r)
        torch.mul(dh, z, out=before[0]).baddbmm_(sent, WT)
