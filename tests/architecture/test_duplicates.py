"""One function, one place: no two functions in src have the same body of four or more lines."""

from __future__ import annotations

import ast
from collections import defaultdict

from tests.architecture.tree import Function, module, modules, without_docstring

LINES = 4


def fingerprint(function: Function) -> str | None:
    """Return the body without docstring, comments and layout, or None when it is shorter than the limit."""
    text = "\n".join(ast.unparse(statement) for statement in without_docstring(function.node.body))
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(lines) if len(lines) >= LINES else None


def identical(tree) -> list[list[str]]:
    """Return the groups of functions that share a body."""
    places = defaultdict(list)
    for source in tree:
        for function in source.functions:
            body = fingerprint(function)
            if body is not None:
                places[body].append(function.label)
    return [group for group in places.values() if len(group) > 1]


def test_no_identical_function_bodies() -> None:
    assert identical(modules()) == []


def test_the_gate_sees_a_planted_copy() -> None:
    one = 'def f(x):\n    """Doc."""\n    a = x\n    b = a  # why\n    c = b\n    return c\n'
    two = "class A:\n    def g(self, x):\n        a = x\n\n        b = a\n        c = (b)\n        return c\n"
    short = "def h(x):\n    a = x\n    b = a\n    return b\ndef i(x):\n    a = x\n    b = a\n    return b\n"
    tree = [module("langevin.core.one", one), module("langevin.core.two", two)]
    assert identical(tree) == [["src/langevin/core/one.py::f", "src/langevin/core/two.py::A.g"]]
    assert identical([module("langevin.core.three", short)]) == []
