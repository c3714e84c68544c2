"""Runs experiments/train.py as a user does: each command in a process and a folder of its own."""

import atexit
import functools
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest

TRAIN = Path(__file__).resolve().parents[1] / "experiments" / "train.py"
TINY = ["task.length=10", "model.hidden=4", "training.batch_size=3", "training.updates=3", "training.log_every=1"]
SMALL = [*TINY, "tracker=none"]  # a run of milliseconds
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("HYDRA_", "WANDB_"))}


def some(cases: Iterable[str], every: int) -> list[Any]:
    """pytest's parameters: one of so many in the default suite, the others where there is time."""
    slow = [pytest.mark.slow]
    return [pytest.param(case, marks=slow if index % every else [], id=case[:40]) for index, case in enumerate(cases)]


class Ended(NamedTuple):
    """A process that has ended."""

    status: int
    out: str
    err: str


def start(
    *arguments: str, cwd: Path, script: Path = TRAIN, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """`python experiments/train.py ...`, still running; with more variables in its environment."""
    command = [sys.executable, str(script), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=ENVIRONMENT | (environment or {}),
        stdout=pipe,
        stderr=pipe,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored where the tests run in the background
    )


def end(process: subprocess.Popen[str], timeout: float = 120) -> Ended:
    """Waits for it; kills it if that takes too long."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return Ended(process.returncode, out, err)


def train(*arguments: str, cwd: Path) -> Ended:
    """`end(start(...))`, in a fork of a process that has imported torch and Hydra before: a third of the time."""
    server = _server()
    assert server.stdin
    assert server.stdout
    server.stdin.write(json.dumps([str(cwd), arguments]) + "\n")
    return Ended(*json.loads(server.stdout.readline()))


@functools.cache
def _server() -> subprocess.Popen[str]:
    command = [sys.executable, __file__]
    pipe = subprocess.PIPE
    server = subprocess.Popen(command, env=ENVIRONMENT, stdin=pipe, stdout=pipe, text=True, bufsize=1)
    atexit.register(server.communicate)
    return server


def _serve() -> None:
    import torch  # noqa: F401
    from hydra import compose, initialize_config_dir

    import rnn_lab.runner  # noqa: F401
    from rnn_lab import app

    app.register()
    with initialize_config_dir(str(TRAIN.parents[1] / "conf"), version_base="1.3"):
        compose("config", ["seed=1"])  # its parser learns the grammar by using it

    for line in sys.stdin:
        cwd, arguments = json.loads(line)
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            child = os.fork()
            if child == 0:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os.chdir(cwd)
                _run_script(arguments)
            _, status = os.waitpid(child, 0)
            out.seek(0)
            err.seek(0)
            print(json.dumps([os.waitstatus_to_exitcode(status), out.read(), err.read()]), flush=True)


def _run_script(arguments: list[str]) -> NoReturn:
    """As `python` runs it, up to the end of this process, whatever comes."""
    status: object = 1
    sys.argv = [str(TRAIN), *arguments]
    try:
        try:
            runpy.run_path(str(TRAIN), run_name="__main__")
            status = 0
        except SystemExit as leaving:
            status = leaving.code
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    except SystemExit as leaving:  # a signal after the script's end, while its handler is still there
        status = leaving.code
    finally:
        os._exit(status if isinstance(status, int) else int(status is not None))


if __name__ == "__main__":
    _serve()
