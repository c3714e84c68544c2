"""Optimisers over whole parameter vectors (*runs, P), with a learning rate for each run."""

from torch import Tensor


def sgd_(theta: Tensor, g: Tensor, lr: Tensor) -> None:
    """theta -= lr g. lr: (*runs,)."""
    theta.addcmul_(g, lr.to(theta.dtype).unsqueeze(-1), value=-1)
