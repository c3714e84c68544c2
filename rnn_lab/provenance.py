"""Where a run came from: command, versions, git commit."""

import functools
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "hydra-core", "wandb")


@functools.cache
def provenance() -> dict[str, Any]:
    """The command line, the versions that can change a number, and the commit of this code ("" outside a git checkout)."""
    return {
        "command": shlex.join(["python", *sys.argv]).encode(errors="replace").decode(),  # arguments may be any bytes
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "git": {
            "commit": _git("rev-parse", "HEAD"),
            "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        },
    }


def _git(*arguments: str) -> str:
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
