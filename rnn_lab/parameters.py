"""The parameters of a net, or their gradients, as one vector with named views: what is done to all of them is done once."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_ALIGN = 16  # entries; slots start at 64 bytes whatever the shapes, so that a product's rounding does not depend on the run's place


class Layer(NamedTuple):
    """One layer's weights: U (*runs, in, gates hidden), W (*runs, hidden, gates hidden), b (*runs, 1, gates hidden); gates: of its cell."""

    U: Tensor
    W: Tensor
    b: Tensor


@dataclass(frozen=True)
class Parameters:
    """`flat` (*runs, P) and views into it. P counts padding between the slots too, which is 0 and stays 0 under every update."""

    flat: Tensor
    layers: list[Layer]
    V: Tensor
    c: Tensor

    @staticmethod
    def zeros(
        runs: tuple[int, ...],
        inputs: int,
        hidden: int,
        outputs: int,
        layers: int = 1,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        gates: int = 1,
    ) -> "Parameters":
        """All zero; V is (*runs, hidden, outputs), c (*runs, 1, outputs)."""
        shapes: list[tuple[int, int]] = []
        for layer in range(layers):
            columns = gates * hidden
            shapes += [(inputs if layer == 0 else hidden, columns), (hidden, columns), (1, columns)]
        shapes += [(hidden, outputs), (1, outputs)]
        widths = [math.ceil(rows * columns / _ALIGN) * _ALIGN for rows, columns in shapes]
        flat = torch.zeros(*runs, sum(widths), dtype=dtype, device=device)
        slots = flat.split(widths, dim=-1)
        views = [slot[..., : r * c].unflatten(-1, (r, c)) for slot, (r, c) in zip(slots, shapes, strict=True)]
        *recurrent, V, c = views
        return Parameters(flat, [Layer(*recurrent[i : i + 3]) for i in range(0, len(recurrent), 3)], V, c)

    def like(self) -> "Parameters":
        """Zeros of the same shapes."""
        first, (hidden, outputs) = self.layers[0], self.V.shape[-2:]
        return Parameters.zeros(
            tuple(self.flat.shape[:-1]),
            first.U.shape[-2],
            hidden,
            outputs,
            len(self.layers),
            self.flat.dtype,
            self.flat.device,
            first.U.shape[-1] // hidden,
        )

    def matrices(self, flat: Tensor) -> list[Tensor]:
        """Views (*runs, in, out) of the weight matrices, U and W of each layer and V, into a vector laid out like this one's."""
        own = [matrix for layer in self.layers for matrix in (layer.U, layer.W)] + [self.V]
        starts = [matrix.storage_offset() - self.flat.storage_offset() for matrix in own]
        return [
            flat[..., start : start + matrix.shape[-2] * matrix.shape[-1]].unflatten(-1, matrix.shape[-2:])
            for start, matrix in zip(starts, own, strict=True)
        ]
