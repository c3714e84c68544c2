"""One program after the other, in this process."""

from collections.abc import Sequence

from rnn_lab.options import Options
from rnn_lab.recording.progress import Progress
from rnn_lab.runner import Job, Outcome, run_program


def run(programs: Sequence[list[Job]], options: Options, progress: Progress) -> list[list[Outcome]]:
    """Trains the programs one after the other; the outcomes of each, in its jobs' order."""
    return [run_program(program, progress, options.checkpoint_seconds) for program in programs]
