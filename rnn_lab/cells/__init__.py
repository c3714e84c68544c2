"""Recurrent cells, one a file: what happens in a single step of time, forward and backward."""

from rnn_lab.cells.base import Blocks, Cell, Step
from rnn_lab.cells.elman import Elman
from rnn_lab.cells.gru import GRU
from rnn_lab.cells.leaky import Leaky
from rnn_lab.cells.lstm import LSTM
from rnn_lab.cells.own import Own

CELLS: dict[str, type[Cell]] = {"elman": Elman, "leaky": Leaky, "lstm": LSTM, "gru": GRU}
OWN: dict[str, type] = {}  # users' classes with a `step`; see app.register_cell


def kind(name: str) -> type[Cell]:
    """The class of the cell that `model=name` chooses."""
    return CELLS.get(name, Own)


__all__ = ["CELLS", "GRU", "LSTM", "OWN", "Blocks", "Cell", "Elman", "Leaky", "Own", "Step", "kind"]
