"""The Elman cell, forward and backward through time, one function per equation.

Row vectors throughout: a_t = x_t U + h_{t-1} W + b, h_t = phi(a_t). Sequences are (*runs, time, batch, features), weights (*runs, in, out),
biases (*runs, 1, out); `runs` is any number of leading axes, none for a single run. Outputs are written into the buffers given.
"""

import torch
from torch import Tensor

from rnn_lab.activations import Activation
from rnn_lab.scaled import Scaled, add_, normalise_


def _runs_first(x: Tensor, trailing: int) -> Tensor:
    """All leading run axes as one, as a view (`view` raises where that would need a copy)."""
    return x.view(-1, *x.shape[-trailing:])


def _late(late: Tensor | None) -> tuple[int, Tensor | None]:
    """How many steps some run sits out, and each run's number of them beside (runs, batch, hidden)."""
    return (0, None) if late is None else (int(late.max()), late.reshape(-1, 1, 1))


def states(x: Tensor, U: Tensor, W: Tensor, b: Tensor, phi: Activation, h: Tensor, late: Tensor | None = None) -> None:
    """Forward pass: h_t = phi(x_t U + h_{t-1} W + b), t = 1..T (deck, "Forward Pass").

    h: (*runs, T + 1, batch, hidden) with h_0 given in h[..., 0, :, :]; the rest is filled. No a_t is kept: phi' is taken from h_t.
    late: how many steps each run sits out at the beginning, h_t = 0 there, (*runs,); None: none does.
    """
    waiting, late = _late(late)
    x, U, W, b, h = _runs_first(x, 3), _runs_first(U, 2), _runs_first(W, 2), _runs_first(b, 2), _runs_first(h, 3)
    after = h[:, 1:]
    (after.flatten(1, 2)).copy_(b.expand(-1, after.shape[1] * after.shape[2], -1)).baddbmm_(x.flatten(1, 2), U)
    previous, *rest = h.unbind(1)
    a = torch.empty_like(
        previous, memory_format=torch.contiguous_format
    )  # a product into a strided slice takes twice the time
    for t, h_t in enumerate(rest):  # holds x_t U + b so far
        previous = phi.apply(torch.baddbmm(h_t, previous, W, out=a), h_t)
        if late is not None and t < waiting:
            h_t.masked_fill_(t < late, 0)


def deltas(
    immediate: Tensor, h: Tensor, W: Tensor, phi: Activation, dE_dh: Tensor, delta: Tensor, late: Tensor | None = None
) -> None:
    """Total gradients at the states and the pre-activations, last step first (deck, "BPTT"; P13 eqs 3-5).

    dE_dh_t = immediate_t + delta_{t+1} W^T,  delta_t = phi'(a_t) * dE_dh_t,  delta_{T+1} = 0.

    immediate: d+E/dh_t of the last L steps, (*runs, L, batch, hidden), L = 1 (loss at the last step) to T; the batch mean's 1/B is in it.
    Fills dE_dh and delta, (*runs, T, batch, hidden). A caller that has no use for dE_dh may pass one step expanded to T.
    late: as in `states`; both are 0 at the steps that a run sits out, whose `immediate` must be 0.
    """
    waiting, late = _late(late)
    immediate, h, W = _runs_first(immediate, 3), _runs_first(h, 3), _runs_first(W, 2)
    dE_dh, delta = _runs_first(dE_dh, 3), _runs_first(delta, 3)
    WT, T, L = W.transpose(1, 2), delta.shape[1], immediate.shape[1]
    h_steps, d_steps, delta_steps = h.unbind(1), dE_dh.unbind(1), delta.unbind(1)
    d_steps[T - 1].copy_(immediate[:, L - 1])
    for t in range(T - 1, -1, -1):
        d = d_steps[t]
        if t < T - 1:
            d.baddbmm_(delta_steps[t + 1], WT, beta=0)
            if t >= T - L:
                d += immediate[:, t - (T - L)]
            if late is not None and t < waiting:
                d.masked_fill_(t < late, 0)
        phi.backward(d, h_steps[t + 1], delta_steps[t])


def scaled_deltas(
    immediate: Scaled, h: Tensor, W: Tensor, phi: Activation, dE_dh: Scaled, delta: Scaled, late: Tensor | None = None
) -> None:
    """`deltas` with every vector renormalised at each step, so that no length and no gain under- or overflows.

    Mantissas are shaped as in `deltas`, exponents (*runs, time, batch). dE_dh and delta are filled and share one exponent tensor.
    """
    waiting, late = _late(late)
    imm, imm_e = _runs_first(immediate.mantissa, 3), _runs_first(immediate.exponent, 2)
    h_steps, W = _runs_first(h, 3).unbind(1), _runs_first(W, 2)
    d_steps, delta_steps = _runs_first(dE_dh.mantissa, 3).unbind(1), _runs_first(delta.mantissa, 3).unbind(1)
    exponents = _runs_first(dE_dh.exponent, 2).unbind(1)
    WT, T, L = W.transpose(1, 2), len(d_steps), imm.shape[1]
    carried = Scaled(imm[:, L - 1].clone(), imm_e[:, L - 1].clone())
    for t in range(T - 1, -1, -1):
        if t < T - 1:
            torch.bmm(delta_steps[t + 1], WT, out=carried.mantissa)
            normalise_(carried)
            if t >= T - L:
                add_(carried, Scaled(imm[:, t - (T - L)], imm_e[:, t - (T - L)]))
            if late is not None and t < waiting:
                carried.mantissa.masked_fill_(t < late, 0)
        d_steps[t].copy_(carried.mantissa)
        exponents[t].copy_(carried.exponent)
        phi.backward(carried.mantissa, h_steps[t + 1], delta_steps[t])


def gradients(x: Tensor, h: Tensor, delta: Tensor, dU: Tensor, dW: Tensor, db: Tensor) -> None:
    """dE/dU = sum_t x_t^T delta_t,  dE/dW = sum_t h_{t-1}^T delta_t,  dE/db = sum_t delta_t (deck, "BPTT" and its homework).

    delta carries the batch mean's 1/B, so the sum over the batch is the gradient of the mean.
    """
    over_steps = _runs_first(delta, 3).flatten(1, 2)
    _runs_first(dU, 2).baddbmm_(_runs_first(x, 3).flatten(1, 2).transpose(1, 2), over_steps, beta=0)
    _runs_first(dW, 2).baddbmm_(_runs_first(h, 3)[:, :-1].flatten(1, 2).transpose(1, 2), over_steps, beta=0)
    _runs_first(db, 2).copy_(over_steps.sum(1, keepdim=True))
