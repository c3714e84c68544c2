"""Per-step losses E_t and their gradients at the outputs o_t. Losses are in nats; nothing here averages over the batch."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def before_start(late: Tensor, steps: int) -> Tensor:
    """The steps of a program before each run's own first, `late` of them, which carry no loss: (*runs,) -> (*runs, steps, 1), bool."""
    return torch.arange(steps, device=late.device).unsqueeze(-1) < late[..., None, None]


def softmax_cross_entropy(o: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """E_t = -log softmax(o_t)[y_t] and dE_t/do_t = yhat_t - y_t (deck, "BPTT").

    o: (..., classes); y: (...) integer classes. Returns E (...) and dE_do (..., classes).
    """
    log_yhat = torch.log_softmax(o, dim=-1)
    index = y.unsqueeze(-1)
    E = -log_yhat.gather(-1, index).squeeze(-1)
    dE_do = log_yhat.exp_().scatter_add_(-1, index, torch.full_like(index, -1, dtype=o.dtype))
    return E, dE_do


def squared_error(o: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """E_t = sum over outputs of (o_t - y_t)^2 and dE_t/do_t = 2 (o_t - y_t). o, y: (..., outputs)."""
    residual = o - y
    return residual.square().sum(-1), 2 * residual


def bernoulli_cross_entropy(o: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """E_t = sum over outputs of -y log p - (1 - y) log(1 - p), p = sigmoid(o_t), and dE_t/do_t = p - y. o, y (0 or 1): (..., outputs).

    -y log p - (1 - y) log(1 - p) = -log sigmoid(-o) - y o, which no large |o| overflows.
    """
    return -(F.logsigmoid(-o) + y * o).sum(-1), torch.sigmoid(o) - y
