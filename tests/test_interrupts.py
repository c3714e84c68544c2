"""A signal that ends the process waits inside `deferred`, and then does what it always did."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from rnn_lab.interrupts import SIGNALS, deferred


class Came(Exception):
    """Raised by the handler of a test."""


def come(number: int, _: object) -> None:
    raise Came(number)


@pytest.fixture(params=SIGNALS, ids=lambda number: number.name)
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal with a handler of its own."""
    before = signal.signal(request.param, come)
    yield request.param
    signal.signal(request.param, before)


def hit(number: int, times: int, reached: list[list[int]]) -> None:
    """What has been noted after each signal."""
    with deferred() as noted:
        for _ in range(times):
            os.kill(os.getpid(), number)
            reached.append(list(noted))


def test_the_first_one_waits_until_the_end_and_then_does_what_it_did(number):
    reached: list[list[int]] = []
    with pytest.raises(Came):
        hit(number, 1, reached)
    assert reached == [[number]]
    assert signal.getsignal(number) is come


def test_a_second_one_does_not_wait(number):
    reached: list[list[int]] = []
    with pytest.raises(Came):
        hit(number, 2, reached)
    assert reached == [[number]]
    assert signal.getsignal(number) is come


def test_an_ignored_signal_stays_ignored(number):
    signal.signal(number, signal.SIG_IGN)
    with deferred() as noted:
        os.kill(os.getpid(), number)
    assert noted == []
    assert signal.getsignal(number) is signal.SIG_IGN


def test_without_a_signal_all_is_as_before(number):
    with deferred() as noted:
        assert signal.getsignal(number) is not come
    assert noted == []
    assert signal.getsignal(number) is come


def test_other_threads_defer_nothing_and_do_not_fail():
    found = []

    def work() -> None:
        with deferred() as noted:
            found.append(noted)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [[]]


UNTIDY = """
import os, signal
from rnn_lab import app

def main():
    try:
        os.kill(os.getpid(), signal.Signals({number}))
    finally:
        None.tidy_up()

app.command_line(main)
"""


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_command_ends_by_its_signal_whatever_breaks_on_the_way_out(number):
    """OmegaConf's own way out does, where it is left in the middle of a list."""
    ended = subprocess.run(
        [sys.executable, "-c", UNTIDY.format(number=int(number))],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in the background
    )
    assert (ended.returncode, ended.stderr) == (128 + number, "")
