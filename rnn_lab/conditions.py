"""Which runs to take: conditions on the columns of `.runs`, as people type them. No code of theirs is ever executed.

    clip.name=none                                              KEY=VALUE, as on the command line of train.py
    model.activation == 'tanh' and init.scale > 1               an expression
    seed in (0, 1, 2) and not eval/error < 0.01
    training.truncation == null or 0.5 < init.scale <= 2

An expression is made of keys, numbers, quoted texts, true, false, null, lists, == != < <= > >=, in, not in, and, or, not, parentheses.
What a run lacks is null, which is neither smaller nor greater than anything.
"""

import ast
import difflib
import operator
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from rnn_lab.recording.runs import ResultsError

Row = Mapping[Any, Any]  # column of `.runs` -> value
Name = TypeVar("Name", bound=Hashable)

CONSTANTS = {"true": True, "false": False, "null": None}
JOINTS = {
    ast.Div: "/",
    ast.Sub: "-",
}  # what keys may hold that Python calls arithmetic: eval/error, versions.hydra-core
EQUALITY = {ast.Eq: operator.eq, ast.NotEq: operator.ne}
ORDER = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge}
WORDS = "expected KEY=VALUE, or an expression of keys, numbers, 'texts', true, false, null, lists, == != < <= > >= in and or not"


@dataclass(frozen=True)
class Condition:
    """keys: the columns that it looks at.  holds: whether a run meets it."""

    text: str
    keys: frozenset[str]
    holds: Callable[[Row], bool]


def conditions(given: str | Iterable[str]) -> list[Condition]:
    """One condition, or several that a run must all meet. Raises ResultsError on what is none, in one line."""
    return [_condition(text) for text in ([given] if isinstance(given, str) else given)]


def meeting(conditions: Sequence[Condition], runs: Mapping[Name, Row], preferred: Sequence[str] = ()) -> list[Name]:
    """The runs that meet all conditions. Raises ResultsError where a key is unknown or no run is left, and says what there is:

    of the `preferred` keys those in which the runs differ.

    >>> runs = {"a": {"seed": 0, "clip.name": "none"}, "b": {"seed": 1, "clip.name": "norm"}}
    >>> meeting(conditions(["seed < 2", "clip.name=norm"]), runs)
    ['b']
    """
    known = dict.fromkeys(key for row in runs.values() for key in row)
    left = list(runs)
    for condition in conditions:
        for key in sorted(condition.keys - set(known)):
            differ = [k for k in preferred if len({text(row.get(k)) for row in runs.values()}) > 1]
            close = "".join(f"did you mean {k}? " for k in difflib.get_close_matches(key, known, n=1))
            raise ResultsError(
                f"where {condition.text}: no key {key!r}; {close}the runs differ in {', '.join(differ) or 'nothing'}"
            )
        rows = [runs[name] for name in left]
        left = [name for name, row in zip(left, rows, strict=True) if condition.holds(row)]
        if not left:
            values = {key: sorted({text(row.get(key)) for row in rows}) for key in sorted(condition.keys)}
            there = "; ".join(f"{key} is {' or '.join(found)}" for key, found in values.items())
            raise ResultsError(f"where {condition.text}: no such run; {there}")
    return left


def text(value: object) -> str:
    """A cell as people type it: 1 and not 1.0, null and not NaN.

    >>> text(1.0), text(True), text(float("nan")), text("tanh")
    ('1', 'true', 'null', 'tanh')
    """
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, int | float | np.number):
        return "null" if np.isnan(value) else f"{value:.10g}"
    return "null" if value is None else str(value)


def _condition(given: str) -> Condition:
    plain = re.fullmatch(r"\s*([\w./-]+)\s*=(?!=)\s*(.*?)\s*", given)
    if plain:
        key, value = plain.groups()
        with suppress(ValueError):
            value = text(float(value))  # 1.0 and 1e0 are 1
        return Condition(given, frozenset([key]), lambda row: text(row.get(key)) == value)
    try:
        parsed = _Expression(given)
        holds = parsed.truth(ast.parse(given.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, ResultsError):
            raise
        raise ResultsError(f"where {given}: {WORDS}") from error
    return Condition(given, frozenset(parsed.keys), holds)


class _Expression:
    """Turns what `ast` reads into functions of a run's row, node by node; whatever is not in the grammar is refused."""

    def __init__(self, given: str):
        self.given = given
        self.keys: set[str] = set()

    def truth(self, node: ast.expr) -> Callable[[Row], bool]:
        match node:
            case ast.BoolOp(op=op, values=nodes):
                parts = [self.truth(part) for part in nodes]
                every = all if isinstance(op, ast.And) else any
                return lambda row: every(part(row) for part in parts)
            case ast.UnaryOp(op=ast.Not(), operand=inner):
                holds = self.truth(inner)
                return lambda row: not holds(row)
            case ast.Compare(left=left, ops=ops, comparators=others):
                terms = [self.value(term) for term in (left, *others)]
                links = [self.comparison(op) for op in ops]
                return lambda row: all(
                    link(a(row), b(row)) for link, a, b in zip(links, terms, terms[1:], strict=False)
                )
        value = self.value(node)
        return lambda row: bool(value(row))

    def value(self, node: ast.expr) -> Callable[[Row], Any]:
        match node:
            case ast.Constant(value=str() | bool() | int() | float() | None as constant):
                return lambda row: constant
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return lambda row: -number
            case ast.List(elts=nodes) | ast.Tuple(elts=nodes):
                items = [self.value(item) for item in nodes]
                return lambda row: tuple(item(row) for item in items)
        key = self.key(node)
        if key in CONSTANTS:
            return lambda row: CONSTANTS[key]
        self.keys.add(key)
        return lambda row: None if (cell := row.get(key)) != cell else cell  # NaN is what isn't itself

    def key(self, node: ast.expr) -> str:
        match node:
            case ast.Name(id=name):
                return name
            case ast.Attribute(value=inner, attr=name):
                return f"{self.key(inner)}.{name}"
            case ast.BinOp(left=left, op=op, right=right) if type(op) in JOINTS:
                return self.key(left) + JOINTS[type(op)] + self.key(right)
        raise ResultsError(f"where {self.given}: {ast.unparse(node)!r} is not understood; {WORDS}")

    def comparison(self, op: ast.cmpop) -> Callable[[Any, Any], bool]:
        if type(op) in EQUALITY:
            return EQUALITY[type(op)]
        if isinstance(op, ast.In | ast.NotIn):
            return lambda a, b: self.among(a, b) is isinstance(op, ast.In)
        if type(op) not in ORDER:
            raise ResultsError(f"where {self.given}: {WORDS}")
        return lambda a, b: a is not None and b is not None and self.tried(ORDER[type(op)], a, b)

    def among(self, a: Any, b: Any) -> bool:
        return b is not None and self.tried(lambda a, b: a in b, a, b)

    def tried(self, compare: Callable[[Any, Any], bool], a: Any, b: Any) -> bool:
        try:
            return compare(a, b)
        except TypeError as error:
            raise ResultsError(f"where {self.given}: cannot compare {text(a)} with {text(b)}") from error
