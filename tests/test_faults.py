"""Nothing that is killed is lost: the harness of faults.py, in a process of its own, since it forks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_what_is_disturbed_sixty_times_ends_as_what_nobody_disturbed():
    command = [sys.executable, str(Path(__file__).with_name("faults.py")), "--faults", "60", "--seed", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    figures = json.loads(ended.stdout.splitlines()[-1])
    assert sum(figures["faults"].values()) >= 60
    assert {"SIGKILL", "SIGTERM", "SIGINT", "cut", "bit flipped"} < set(figures["faults"])
    assert set(figures["during"]) == {"composing", "training", "finishing"}
    assert (figures["rows_lost"], figures["rows_doubled"]) == (0, 0)
    assert figures["told"] > 0
    assert figures["rows_watched"] > 200
