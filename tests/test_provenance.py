"""What a run says about where it came from."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from rnn_lab import provenance as module

provenance = module.provenance.__wrapped__  # asked anew each time: a process asks once and remembers


def test_command_versions_and_commit(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["experiments/train.py", "-m", "seed=range(0, 3)"])
    said = provenance()
    assert shlex.split(said["command"]) == ["python", "experiments/train.py", "-m", "seed=range(0, 3)"]
    assert (
        said["versions"]["torch"] == torch.__version__.split("+")[0] or said["versions"]["torch"] == torch.__version__
    )
    assert said["versions"]["python"] == sys.version.split()[0]
    assert said == json.loads(json.dumps(said))


def test_the_commit_is_the_checkouts_and_dirty_once_a_file_differs(tmp_path, monkeypatch):
    """Asked of the code's own folder, whatever the current directory."""

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    file = Path(shutil.copy(module.__file__, tmp_path))
    monkeypatch.setattr(module, "__file__", str(file))
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    assert provenance()["git"] == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "untracked").touch()
    assert provenance()["git"]["dirty"] is False
    file.write_text("changed")
    assert provenance()["git"]["dirty"] is True


def test_outside_a_checkout_or_without_git_the_commit_is_empty(tmp_path, monkeypatch):
    nothing = {"commit": "", "dirty": False}
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(module, "__file__", str(tmp_path / "provenance.py"))
    assert provenance()["git"] == nothing
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance()["git"] == nothing
