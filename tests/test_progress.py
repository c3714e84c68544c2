"""Long work shows how far it is."""

import io

import pytest

from rnn_lab.recording import progress
from rnn_lab.recording.progress import told


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that a test sets."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("terminal", [True, False])
def test_what_takes_long_is_told_and_what_does_not_is_not(clock, monkeypatch, terminal):
    said = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr("sys.stderr", said)
    assert list(told("abc", "reading")) == ["a", "b", "c"]
    assert said.getvalue() == ""
    for _ in told(range(2000), "reading"):
        clock[0] += 1 / 128
    lines = [line.strip() for line in said.getvalue().replace("\r", "\n").splitlines() if line]
    if terminal:  # after 2 s, then every 0.2 s, and at the end
        assert lines[:2] == ["reading: 256 of 2,000", "reading: 282 of 2,000"]
        assert lines[-1] == "reading: 2,000 of 2,000"
    else:  # every 10 s
        assert lines == ["reading: 1,280 of 2,000"]
    assert said.getvalue().endswith("\n")
