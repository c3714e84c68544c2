"""What a stranger meets: every public name says what it is for, and the examples in docstrings are true."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for path in (ROOT / "rnn_lab").rglob("*.py") if path.stat().st_size)


def undocumented(path: Path) -> list[str]:
    """Public modules, functions, classes and methods without a docstring; what a parent class documents and @inner kernels say by their
    signature are left out.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [] if ast.get_docstring(tree) else ["the module"]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node):
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
