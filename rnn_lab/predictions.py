"""What theory says of a program's runs, in the scalars that it is recorded under."""

import numpy as np
import torch
from torch import Tensor

from rnn_lab import theory
from rnn_lab.config import POINTWISE_CELLS, Config


def bound(configs: list[Config], sigma_max: Tensor) -> dict[str, Tensor]:
    """theory/eta of P13's theorem, (runs,), where it applies: gamma sigma_max of an Elman net, and what it is of a leaky one."""
    model = configs[0].model
    if model.name not in POINTWISE_CELLS:
        return {}
    leak = [config.model.leak if model.name == "leaky" else 1.0 for config in configs]
    return {"theory/eta": torch.from_numpy(theory.eta(model.activation, sigma_max.cpu().numpy(), leak))}


def mean_field(configs: list[Config], x: Tensor, late: Tensor | None) -> dict[str, Tensor]:
    """theory/slope of untrained Gaussian Elman nets (top layer), along this mini-batch's ||x_t||^2; NaN for other kinds of W.

    Cost: once a program, 20 ms and 1 ms a run for 100 steps (and 0.1 s in a process that meets sigmoid or tanh first).
    """
    model = configs[0].model
    if model.name != "elman":
        return {}

    def gain(scale: float, std: float | None, fan_in: int) -> float:
        return scale if std is None else std * fan_in**0.5

    inits = [c.init for c in configs]
    g = np.array([gain(i.scale, i.std, model.hidden) if i.name == "gaussian" else np.nan for i in inits])
    skipped = 0 if late is None else late.cpu().numpy()
    inputs, fan_in = x.double().square().sum(-1).mean(-1).cpu().numpy() / x.shape[-1], x.shape[-1]
    for _ in range(model.layers):
        from_below = np.array([gain(i.input_scale, i.input_std, fan_in) for i in inits]) ** 2
        q = theory.second_moments(model.activation, np.nan_to_num(g), from_below[:, None] * inputs, skipped)
        inputs, fan_in = theory.mean_square(model.activation, q), model.hidden
    return {"theory/slope": torch.from_numpy(theory.slope(model.activation, g, q, skipped))}
