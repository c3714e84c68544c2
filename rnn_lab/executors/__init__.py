"""Where programs run: hydra.launcher.engine. One module an engine, each with

    run(programs, options, progress) -> one list of outcomes a program, in their order

A program is a list of jobs that one call of `runner.run_program` trains, in whatever process. Each module ends what it started when it is
interrupted. All share the file system: what a run did is in its directory, and progress is read from there.
"""

import importlib
from collections.abc import Callable, Sequence

from rnn_lab.options import Options
from rnn_lab.recording.progress import Progress
from rnn_lab.runner import Job, Outcome

Run = Callable[[Sequence[list[Job]], Options, Progress], list[list[Outcome]]]


def engine(name: str) -> Run:
    """`run` of the engine of that name, one of options.ENGINES; imported only when it is asked for."""
    return importlib.import_module(f"rnn_lab.executors.{name}").run
