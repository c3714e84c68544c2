"""The cells that have a kernel, a run and a step at a time, by autograd alone: slow and obvious. Every step has weights of its own, equal
to the others', so that autograd also says what each step adds to dE/dW and dE/dU.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from oracle import PHI
from torch import Tensor

from rnn_lab.parameters import Parameters


def elman(z, h, c, W, phi, leak):
    return PHI[phi](z + h @ W), c


def leaky(z, h, c, W, phi, leak):
    return (1 - leak) * h + leak * PHI[phi](z + h @ W), c


def lstm(z, h, c, W, phi, leak):
    i, f, g, o = (z + h @ W).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru(z, h, c, W, phi, leak):
    (z_r, z_z, z_n), (u_r, u_z, u_n) = z.chunk(3, -1), (h @ W).chunk(3, -1)
    r, update = torch.sigmoid(z_r + u_r), torch.sigmoid(z_z + u_z)
    return (1 - update) * torch.tanh(z_n + r * u_n) + update * h, c


STEPS = {"elman": elman, "leaky": leaky, "lstm": lstm, "gru": gru}


@dataclass
class Truth:
    """Of one run: objective, grads laid out like the parameters, and (layers, T) or (T,) series, log10 where the kernel's are."""

    objective: Tensor
    grads: Tensor
    series: dict[str, Tensor]
    curve: Tensor
    omega: Tensor
    omega_W: list[Tensor]  # d+Omega/dW, a layer each


def log10_rms(steps: list[Tensor], batch: int) -> Tensor:
    """steps: (batch, units) each, with 1/B -> (T,)."""
    return torch.stack([(batch * v).norm(dim=-1).square().mean().sqrt() for v in steps]).log10()


def saturation(cell: str, z: list[Tensor], h: list[Tensor], W: Tensor) -> Tensor:
    """The fraction of sigmoid gates below .1 or above .9 at each step."""
    found, before = [], torch.zeros_like(h[0])
    for z_t, h_t in zip(z, h, strict=True):
        blocks = (z_t + before @ W).chunk({"lstm": 4, "gru": 3}[cell], -1)
        gates = torch.sigmoid(torch.stack([blocks[n] for n in ((0, 1, 3) if cell == "lstm" else (0, 1))]))
        found.append(((gates < 0.1) | (gates > 0.9)).double().mean())
        before = h_t
    return torch.stack(found)


def omega_of(W: Tensor, d: list[Tensor], delta: list[Tensor], leak: float) -> Tensor:
    """P13's Omega of one layer in W, d = dE/dh_t and delta constants; literally."""
    total, number = W.new_zeros(()), 0
    for d_t, delta_t in zip(d, delta, strict=True):
        for a, b in zip(d_t, delta_t, strict=True):
            if (a @ a) >= 1e-20:
                back = b @ W.T + (1 - leak) * a
                total, number = total + ((back @ back) / (a @ a) - 1) ** 2, number + 1
    return total / max(number, 1)


def truth(cell: str, theta: Parameters, r: int, x: Tensor, y: Tensor, L: int, phi="tanh", leak=1.0) -> Truth:
    """Run r's, x (T, batch, inputs), y (L, batch) labels or (L, batch, outputs) targets; the loss is the mean over the L last steps."""
    T, batch, hidden = len(x), x.shape[1], theta.V.shape[-2]
    V, c = theta.V[r].clone().requires_grad_(), theta.c[r].clone().requires_grad_()
    below, layers = list(x), []
    for layer in theta.layers:
        U, W, b = ([w[r].clone().requires_grad_() for _ in range(T)] for w in layer)
        h_t, c_t, z, h, memory = x.new_zeros(batch, hidden), x.new_zeros(batch, hidden), [], [], []
        for t in range(T):
            z.append(below[t] @ U[t] + b[t])
            h_t, c_t = STEPS[cell](z[t], h_t, c_t, W[t], phi, leak)
            h.append(h_t)
            memory.append(c_t)
        layers.append((U, W, b, z, h, memory))
        below = h
    o = torch.stack([h_t @ V + c for h_t in below[T - L :]])
    if y.dtype == torch.int64:
        E = F.cross_entropy(o.flatten(0, 1), y.flatten(), reduction="none").view(L, batch)
    else:
        E = (o - y).square().sum(-1)
    objective = E.sum() / (batch * L)

    def derivatives(of: Tensor, nodes: list[Tensor]) -> list[Tensor]:
        found = torch.autograd.grad(of, nodes, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(n) if g is None else g for n, g in zip(nodes, found, strict=True)]

    grads, names = theta.like(), ("dE_dh", "delta", "dE_dc", "dW", "dU", "h/norm", "phi_prime/mean", "gates/saturation")
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    omega, omega_W = x.new_zeros(()), []
    for place, (U, W, b, z, h, memory) in zip(grads.layers, layers, strict=True):
        dU, dW, db, dz, dh = (derivatives(objective, nodes) for nodes in (U, W, b, z, h))
        for slot, each in zip(place, (dU, dW, db), strict=True):
            slot[r] = sum(each)
        rows["dE_dh"].append(log10_rms(dh, batch))
        rows["delta"].append(log10_rms(dz, batch))
        rows["dW"].append(torch.stack([g.norm() for g in dW]).log10())
        rows["dU"].append(torch.stack([g.norm() for g in dU]).log10())
        rows["h/norm"].append(torch.stack([h_t.detach().norm(dim=-1).square().mean().sqrt() for h_t in h]))
        if cell == "lstm":
            rows["dE_dc"].append(log10_rms(derivatives(objective, memory), batch))
        if cell in ("lstm", "gru"):
            rows["gates/saturation"].append(saturation(cell, z, h, W[0]).detach())
            continue
        a = [z_t + before @ W[0] for z_t, before in zip(z, [0 * h[0], *h[:-1]], strict=True)]
        free = [a_t.detach().requires_grad_() for a_t in a]
        slopes = [torch.autograd.grad(PHI[phi](a_t).sum(), a_t)[0] for a_t in free]
        rows["phi_prime/mean"].append(torch.stack([s.mean() for s in slopes]))
        own = W[0].detach().clone().requires_grad_()
        value = omega_of(own, dh, dz, leak)
        omega = omega + value.detach()
        omega_W += torch.autograd.grad(value, own) if value.requires_grad else [torch.zeros_like(own)]
    grads.V[r], grads.c[r] = derivatives(objective, [V, c])
    logs = ("dE_dh", "delta", "dE_dc", "dW", "dU")
    series = {f"{n}/log10_norm" if n in logs else n: torch.stack(v) for n, v in rows.items() if v}
    curve = log10_rms(derivatives(E[-1].sum() / (batch * L), layers[-1][4]), batch)
    return Truth(objective.detach(), grads.flat[r], series, curve, omega, omega_W)
