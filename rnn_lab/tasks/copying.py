"""The copying problem (Arjovsky, Shah & Bengio 2016, section 5.1; after Hochreiter & Schmidhuber 1997)."""

from rnn_lab.tasks.memorization import Memorization


class Copying(Memorization):
    """A pattern, a long blank, a delimiter: give the pattern back.

    `positions` = 10 symbols of `values` = 8, uniform and independent; then T - 1 blanks (T = `task.length`), one delimiter at 0-based step
    T + positions - 1, and blanks for the `positions` steps of the recall, which starts *after* the delimiter: T + 2 positions steps in all.
    One-hot inputs: the values, blank, delimiter. One-hot outputs: the values, blank; the target is blank before the recall. Softmax cross
    entropy at every step; an example is wrong if any of its steps is; solved when less than 1 % are. It differs from `memorization` by the
    delimiter's place and by its sizes.

    Worked example, positions = 3, values = 2, T = 4 (- blank, ! delimiter):
        input   0 1 1 - - - ! - - -
        target  - - - - - - - 0 1 1

    Trivial baseline, the paper's memoryless strategy: blank up to the delimiter and then any value: loss positions ln(values) /
    (T + 2 positions) nats (10 ln 8 / (T + 20)), error 1 - values^-positions (no constant errs less).
    """

    cue_before_recall = 1

    def __init__(self, length: int, longest: int | None = None, positions: int = 10, values: int = 8):
        super().__init__(length, longest, positions, values)
