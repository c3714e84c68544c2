"""What a recurrent cell is: one step forward and one step backward. The loops over time are in `recurrence`, once for all cells.

Row vectors throughout: z_t = x_t U + b comes from the layer's input, for all t in one product, and the cell makes of it and of the state
s_{t-1} the state s_t. A state is one or more blocks of `hidden` units, the first of which is h_t, what layers above and outputs see.
A step's tensors are (runs, rows, width): all run axes as one, and rows = batch, or losses x batch where each loss has its own adjoint.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from rnn_lab.scaled import Scaled

Blocks = tuple[Tensor, ...]


class Step(NamedTuple):
    """What one step of a layer reads and leaves behind.

    gates: (runs, rows, gates hidden), z_t at first, then what the cell's `backward` needs in its place.
    before, after: s_{t-1} and s_t, a tensor (runs, rows, hidden) a block.  kept: what else `forward` leaves for `backward`.
    """

    gates: Tensor
    before: Blocks
    after: Blocks
    kept: Blocks

    def map(self, change: Callable[[Tensor], Tensor]) -> "Step":
        """The same step with every tensor changed in one way."""
        return Step(change(self.gates), *(tuple(map(change, blocks)) for blocks in self[1:]))


class Cell(ABC):
    """One step of a recurrent layer, forward and backward.

    gates: U, W and b have gates * hidden columns.  blocks: of the state.  kept: further blocks of hidden units that a step remembers.
    in_place: h_t itself is all that `backward` needs, and `Step.gates` is its memory.
    sent: the width, in units of hidden, of what W's gradient is made of where it isn't delta itself; 0: it is.
    sigmoids: which of the gates are sigmoids, by number.
    """

    gates: int = 1
    blocks: int = 1
    kept: int = 0
    in_place: bool = False
    sent: int = 0
    sigmoids: tuple[int, ...] = ()

    @abstractmethod
    def step(self, z: Tensor, s: Blocks, W: Tensor) -> Blocks:
        """The equation: s_t from z_t (runs, rows, gates hidden), s_{t-1} and W; out of place, so differentiable, and twice."""

    @abstractmethod
    def forward(self, at: Step, W: Tensor, scratch: Tensor) -> None:
        """`step` in place: fills at.after, at.gates and at.kept from z_t (in at.gates) and at.before.

        scratch: (runs, rows, gates hidden), contiguous.
        """

    @abstractmethod
    def backward(self, d: Blocks, at: Step, WT: Tensor, delta: Tensor, sent: Tensor, before: Blocks) -> None:
        """From d = dE/ds_t, total, to delta_t = dE/dz_t and to dE/ds_{t-1} as far as it comes through this step.

        delta (gates hidden wide) and `sent` are filled, and `before` with dE/ds_{t-1}; it may be the memory of d. Linear in d, row by row.
        A block that acts within the step, too (an LSTM's c_t in h_t), has its total left in d, if `before` is not d's memory.
        WT: W transposed, a view.
        """

    def weight_gradient(self, at: Step, sent: Tensor, W: Tensor, dW: Tensor) -> None:
        """dE/dW, the sum over rows of h_{t-1}^T sent. `at` may hold all steps of a sequence, as rows."""
        dW.baddbmm_(at.before[0].transpose(1, 2), sent, beta=0)

    def weight_summands(self, at: Step, sent: Scaled, W: Tensor) -> tuple[Tensor, Scaled]:
        """Two factors (*runs, T, n, hidden) and (*runs, T, n, gates hidden) of which step t's summand of dE/dW is first^T second.

        `at`: all steps, (*runs, T, batch, ...) each, as is `sent`; or one step, (*runs, 1, batch, ...), for T losses. Here n is the batch.
        """
        return at.before[0], sent
