"""Fused kernels: the equations of cells/ and bptt again, for one core and one run at a time, runs in parallel over cores (Numba).

A kernel never mixes runs, so a run's numbers are bitwise the same alone and in any program, at any shape and number of threads.
"""

import importlib.util
from collections.abc import Callable


def _silent(line: str) -> None:
    pass


say: Callable[[str], None] = (
    _silent  # is told, in one line, what a user should know (a kernel compiles); those who write set it
)


def installed() -> bool:
    """Whether Numba can be imported; asked without importing it, which takes half a second."""
    return importlib.util.find_spec("numba") is not None
