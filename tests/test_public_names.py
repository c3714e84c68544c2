"""What a stranger meets: every public name says what it is for, and the examples in docstrings are true."""

import ast
import doctest
import importlib
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for path in (ROOT / "rnn_lab").rglob("*.py") if path.stat().st_size)


def undocumented(path: Path) -> list[str]:
    """Public modules, functions, classes and methods without a docstring; what a parent class documents and @inner kernels say by their
    signature are left out.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [] if ast.get_docstring(tree) else ["the module"]
    for node in tree.body:
        if (
            isinstance(node, ast.FunctionDef | ast.ClassDef)
            and not node.name.startswith("_")
            and not ast.get_docstring(node)
        ):
            found.append(f"{node.name}, line {node.lineno}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_public_name_is_documented(path):
    assert undocumented(path) == []


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


WITH_EXAMPLES = [path for path in MODULES if ">>>" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=name_of)
def test_the_examples_in_docstrings_are_true(path):
    found = doctest.testmod(importlib.import_module(name_of(path)))
    assert found.attempted > 0
    assert found.failed == 0


def test_what_the_repository_says_of_itself_agrees():
    """Licence, citation, CI, hooks and templates: well-formed, and of one mind with pyproject.toml and .ci/run."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
    assert project["license"] == citation["license"] == "MIT"
    assert project["version"] == citation["version"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]
    low, high = re.findall(r"3\.(\d+)", project["requires-python"])
    assert job["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in range(int(low), int(high))]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    for hook in hooks:  # each is a line of `make lint`
        tool = hook["entry"].removesuffix(" --force-exclude").removeprefix(".venv")
        assert re.search(rf"^\t\$\(BIN\){tool[4:]}\b", (ROOT / "Makefile").read_text(), re.MULTILINE), hook
    assert len(hooks) == 3
    for template in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        assert yaml.safe_load(template.read_text())


def test_every_locked_package_has_hashes_and_every_dependency_is_locked():
    entries = re.findall(
        r"^([\w.-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", (ROOT / "requirements.lock").read_text(), re.M
    )
    text = "\n".join(line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#"))
    assert len(entries) == text.count("==")
    locked = {re.sub(r"[-_.]+", "-", name).lower() for name, _, _ in entries} | {"torch"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [re.match(r"[\w-]+", line)[0] for line in project["dependencies"] + project["optional-dependencies"]["dev"]]
    assert set(map(str.lower, asked)) <= locked
