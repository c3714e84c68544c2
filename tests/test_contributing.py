"""The recipes of CONTRIBUTING.md, followed to the letter in a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCK = r"\n\n```\w+\n(.*?)```"
# By title, what stands under it
RECIPES = dict(re.findall(r"^## (A \w+)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))


def edited(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"{old!r} must be there once, and is there {text.count(old)} times"
    return text.replace(old, new)


def follow(recipe: str, root: Path) -> str:
    """Makes the files and edits; the commands to run."""
    for name, content in re.findall(r"^New file `(.*?)`:" + BLOCK, recipe, re.MULTILINE | re.DOTALL):
        assert not (root / name).exists(), name
        (root / name).write_text(content, encoding="utf-8")
    for name, line, content in re.findall(r"^In `(.*?)`, after `(.*?)`:" + BLOCK, recipe, re.MULTILINE | re.DOTALL):
        file = root / name
        file.write_text(
            edited(file.read_text(encoding="utf-8"), f"\n{line}\n", f"\n{line}\n{content}"), encoding="utf-8"
        )
    for name, old, new in re.findall(r"^In `(.*?)`, `(.*?)` becomes `(.*?)`\.$", recipe, re.MULTILINE):
        file = root / name
        file.write_text(edited(file.read_text(encoding="utf-8"), old, new), encoding="utf-8")
    [commands] = re.findall(r"^Run:" + BLOCK, recipe, re.MULTILINE | re.DOTALL)
    return commands


def test_every_recipe_is_there():
    assert list(RECIPES) == ["A task", "A cell", "A probe", "A remedy", "A figure"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of the repository."""
    root = tmp_path / "lab"
    for room in ("conf", "rnn_lab", "experiments", "analysis"):
        shutil.copytree(ROOT / room, root / room, ignore=shutil.ignore_patterns("__pycache__", "runs"))
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_fits(root, title):
    """The lines that it names are there, once each."""
    assert "python experiments/" in follow(RECIPES[title], root)


@pytest.mark.slow  # each compiles the kernels anew
@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_works(root, title):
    commands = follow(RECIPES[title], root)
    environment = ENVIRONMENT | {"PYTHONPATH": str(root), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    script = ["bash", "-euo", "pipefail", "-c", commands]
    ended = subprocess.run(script, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "1 completed" in ended.stdout or "2 completed" in ended.stdout or "3 completed" in ended.stdout
    if title == "A figure":
        assert {file.suffix for file in (root / "runs/scales/figures").iterdir()} >= {".pdf", ".png", ".csv"}
    new = re.findall(r"^New file `(.*?\.py)`", RECIPES[title], re.MULTILINE)
    for check in (["format", "--check"], ["check"]):
        ruff = [Path(sys.executable).with_name("ruff"), *check, "--quiet", *(new or ["conf"])]
        checked = subprocess.run(ruff, cwd=root, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout
