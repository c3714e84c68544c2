"""The rooms: who may import whom, read from the source, nothing executed. An import inside a function counts too."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

# Import only downwards: a module may import modules of its own layer (without cycles) and of those before it in this
# list. A package stands for all that is in it. A new module must be given its place here.
LAYERS: list[set[str]] = [
    {"activations", "inits", "clipping", "optimizers", "losses", "scaled", "theory", "one_unit", "error_surface"}
    | {"graded", "lyapunov", "corpora"},
    {"parameters", "cells", "recurrence", "bptt", "double_sum", "regularizers", "kernels", "jacobians"},
    {"tasks", "probes"},
    {"config", "drawing", "vectorize"},
    {"engines", "evaluation", "predictions", "flossing"},
    {"training"},
    {"recording", "conditions", "results"},
    {
        "provenance",
        "complaints",
        "config_files",
        "interrupts",
        "checkpoints",
        "runner",
        "options",
        "executors",
        "jobs",
        "rehearsal",
        "quicker",
        "launcher",
        "app",
    },
]

# What only these may import, wherever the import stands.
ONLY = {
    "wandb": {"recording"},
    "hydra": {"launcher", "app", "complaints", "config_files", "quicker"},
    "omegaconf": {"config", "launcher", "app", "jobs", "complaints", "config_files", "quicker"},
}

# Tensors and equations: no files, no clock, no logging, no processes. (corpora reads natural data.)
NO_IO = set().union(*LAYERS[:3]) - {"corpora"} | {
    "vectorize",
    "engines",
    "evaluation",
    "predictions",
    "flossing",
    "training",
}
IO = {"os", "io", "sys", "pathlib", "shutil", "json", "pickle", "logging", "subprocess", "fcntl", "time", "tempfile"}

# What importing these modules must not import, directly or through others: --help, completion and figures would pay
# for it. (inits draws in NumPy, so that a seed means the same on every device.)
LIGHT = {
    "inits": {"torch"},
    "theory": {"torch", "pandas"},
    "one_unit": {"torch", "pandas"},
    "error_surface": {"torch", "pandas"},
    "config": {"torch", "wandb", "pandas"},
    "corpora": {"torch", "music21", "pandas"},
    "recording": {"torch", "wandb", "pandas"},
    "results": {"torch", "wandb", "hydra"},
    "app": {"torch", "wandb", "pandas"},
    "launcher": {"torch", "wandb", "pandas"},
}


class Import(NamedTuple):
    """`target` is imported by `module`: when `module` is imported (`top`), or when one of its functions is called."""

    module: str
    target: str
    top: bool
    line: int

    @property
    def package(self) -> str:
        """torch.nn -> torch."""
        return self.target.split(".")[0]

    def __str__(self) -> str:
        return f"{self.module} line {self.line} imports {self.target}"


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def modules() -> dict[str, Path]:
    """All modules of rnn_lab by dotted name."""
    return {name_of(p): p for p in sorted((ROOT / "rnn_lab").rglob("*.py"))}


@cache
def imports(path: Path) -> tuple[Import, ...]:
    """Every import of a file; those under `if TYPE_CHECKING` are not executed and left out."""
    return tuple(_imports(ast.parse(path.read_text(encoding="utf-8")), name_of(path), top=True))


def _imports(node: ast.AST, module: str, top: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(child, ast.Import):
            yield from (Import(module, alias.name, top, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{module} line {child.lineno}: relative import"
            for alias in child.names:
                full = f"{child.module}.{alias.name}"
                yield Import(module, full if full in modules() else str(child.module), top, child.lineno)
        else:
            yield from _imports(
                child, module, top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            )


def room(module: str) -> str:
    """rnn_lab.tasks.base -> tasks."""
    return module.split(".")[1] if "." in module else ""


def layer(module: str) -> int:
    """-1 for rnn_lab itself, which holds nothing."""
    return next((n for n, rooms in enumerate(LAYERS) if room(module) in rooms), -1)


def in_rnn_lab() -> list[Import]:
    return [i for path in modules().values() for i in imports(path)]


def closure(module: str) -> dict[str, Import]:
    """Everything that importing `module` imports, with the import that does it; its parent packages come first."""
    found: dict[str, Import] = {}
    waiting = [module]
    while waiting:
        current = waiting.pop()
        for name in (current, *(current.rsplit(".", n)[0] for n in range(1, current.count(".") + 1))):
            for i in imports(modules()[name]) if name in modules() else ():
                if i.top and i.target not in found:
                    found[i.target] = i
                    waiting.append(i.target)
    return found


def test_every_module_has_a_layer():
    homeless = [m for m in modules() if m != "rnn_lab" and layer(m) < 0]
    assert not homeless, "give it a place in LAYERS"
    assert not imports(modules()["rnn_lab"]), "importing rnn_lab must cost nothing"


def test_imports_go_downwards_only():
    upwards = [str(i) for i in in_rnn_lab() if i.package == "rnn_lab" and layer(i.target) > layer(i.module)]
    assert not upwards


def test_no_cycles():
    """Among modules of one layer, or within a package."""
    graph = {m: {i.target for i in imports(p) if i.target in modules() and i.target != m} for m, p in modules().items()}
    done: set[str] = set()
    while ready := {m for m, targets in graph.items() if m not in done and targets <= done}:
        done |= ready
    assert not set(graph) - done


def test_rnn_lab_knows_nothing_of_those_who_use_it():
    outside = {"experiments", "analysis", "tests", "conftest", "hydra_plugins"}
    assert not [str(i) for i in in_rnn_lab() if i.package in outside]


@pytest.mark.parametrize("package", ONLY)
def test_only_these_import(package):
    assert not [str(i) for i in in_rnn_lab() if i.package == package and room(i.module) not in ONLY[package]]


def test_equations_do_no_input_and_output():
    assert not [str(i) for i in in_rnn_lab() if room(i.module) in NO_IO and i.package in IO]


@pytest.mark.parametrize("light", LIGHT)
def test_light_modules_stay_light(light):
    for module in modules():
        if room(module) == light:
            heavy = {target.split(".")[0]: str(i) for target, i in closure(module).items()}
            assert not [why for package, why in heavy.items() if package in LIGHT[light]]


def test_analysis_reads_results_and_theory_and_never_torch():
    allowed = {"rnn_lab.results", "rnn_lab.theory"}
    for path in sorted((ROOT / "analysis").rglob("*.py")):
        for i in imports(path):
            assert i.package not in {"torch", "wandb", "hydra", "experiments"}, str(i)
            assert i.package != "rnn_lab" or i.target in allowed, str(i)


def test_the_walk_sees_what_it_should():
    """Known facts about the source: a lazy import, a package's own, one through another."""
    found = {(i.module, i.target): i.top for i in in_rnn_lab()}
    assert found["rnn_lab.config", "rnn_lab.tasks"] is False
    assert found["rnn_lab.training", "rnn_lab.bptt"] is True
    assert found["rnn_lab.training", "torch"] is True
    assert "rnn_lab.cells.elman" in closure("rnn_lab.training")
    assert "torch" in closure("rnn_lab.vectorize")
