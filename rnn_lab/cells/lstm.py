"""Long short-term memory with a forget gate (Hochreiter & Schmidhuber 1997; Gers, Schmidhuber & Cummins 2000)."""

import torch
from torch import Tensor

from rnn_lab.cells.base import Blocks, Cell, Step

_aten = torch.ops.aten


class LSTM(Cell):
    """c_t = f c_{t-1} + i g,  h_t = o tanh(c_t); i, f, o = sigmoid and g = tanh of their columns of a_t = z_t + h_{t-1} W.

    Gates stand in the order i, f, g, o in the columns of U, W, b, as in torch.nn.LSTM. The state is (h, c).
    """

    gates = 4
    blocks = 2
    kept = 1  # tanh(c_t)
    sigmoids = (0, 1, 3)

    def step(self, z: Tensor, s: Blocks, W: Tensor) -> Blocks:
        i, f, g, o = (z + s[0] @ W).chunk(4, -1)
        c = torch.sigmoid(f) * s[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    def forward(self, at: Step, W: Tensor, scratch: Tensor) -> None:
        (h_before, c_before), (h, c), [tanh_c] = at.before, at.after, at.kept
        torch.sigmoid(torch.baddbmm(at.gates, h_before, W, out=scratch), out=at.gates)  # all four: one call is cheaper
        i, f, g, o = at.gates.chunk(4, -1)
        torch.tanh(scratch.chunk(4, -1)[2], out=g)
        torch.mul(f, c_before, out=c).addcmul_(i, g)
        torch.mul(o, torch.tanh(c, out=tanh_c), out=h)

    def backward(self, d: Blocks, at: Step, WT: Tensor, delta: Tensor, sent: Tensor, before: Blocks) -> None:
        """dE/dc_t = (through c_{t+1}) + dE/dh_t o (1 - tanh^2 c_t), left in d; delta_o = o (1 - o) tanh(c_t) dE/dh_t, and so on;
        dE/dc_{t-1} = f dE/dc_t,  dE/dh_{t-1} = delta_t W^T.
        """
        (dh, dc), c_before, [tanh_c] = d, at.before[1], at.kept
        i, f, g, o = at.gates.chunk(4, -1)
        dc += _aten.tanh_backward(dh * o, tanh_c)
        dE_da = delta.chunk(4, -1)
        for product, gate, out in ((dc * g, i, dE_da[0]), (dc * c_before, f, dE_da[1]), (dh * tanh_c, o, dE_da[3])):
            _aten.sigmoid_backward.grad_input(product, gate, grad_input=out)
        _aten.tanh_backward.grad_input(dc * i, g, grad_input=dE_da[2])
        torch.mul(dc, f, out=before[1])
        before[0].baddbmm_(delta, WT, beta=0)
