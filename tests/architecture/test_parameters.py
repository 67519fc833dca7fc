"""Nothing public is undocumented: pipeline arguments are in the glossary, public functions say what they do."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable

import pytest

from langevin.pipelines.glossary import GLOSSARY, describe, parameters
from langevin.registry import PIPELINES, Row
from tests.architecture.tree import Function, module, modules

PLANTED = '''
def f(x: int, y):
    def inner(z):
        pass

def _g(x):
    pass

class A:
    def h(self):
        pass

    def i(self):
        """Do."""

class B(A):
    """Kind."""

    def h(self):
        pass

    def i(self):
        pass
'''


def call_of(row: Row) -> Callable | None:
    """Return the pipeline's own `__call__`, or None for the base."""
    pipeline = getattr(importlib.import_module(f"langevin.{row.module}"), row.name)
    return vars(pipeline).get("__call__")


@pytest.mark.parametrize("row", PIPELINES, ids=lambda row: row.name)
def test_every_argument_of_a_pipeline_is_explained_in_its_help(row) -> None:
    call = call_of(row)
    if call is not None:
        assert [name for name in parameters(call) if name not in GLOSSARY] == []
        assert describe(call) in (call.__doc__ or ""), "decorate the call with pipelines.glossary.documented"


def test_the_glossary_explains_no_argument_that_no_pipeline_has() -> None:
    used = {name for row in PIPELINES if (call := call_of(row)) for name in parameters(call)}
    assert sorted(set(GLOSSARY) - used) == []


def is_public(function: Function) -> bool:
    """A function is public when no part of its name is private and it is not inside another function."""
    return all(not part.startswith("_") for part in function.name.split("."))


def nested(tree) -> set[ast.AST]:
    """Return the functions that are defined inside another one."""
    outer = [f.node for source in tree for f in source.functions]
    return {inner for node in outer for inner in ast.walk(node) if inner is not node}


def inherited(tree) -> set[str]:
    """Return the labels of the methods that a base class or protocol of the tree documents."""
    classes = {node.name: (source, node) for source in tree for node in source.classes}

    def documented(name: str, method: str) -> bool:
        if name not in classes:
            return False
        node = classes[name][1]
        own = [f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == method]
        bases = [getattr(base, "id", getattr(base, "attr", "")) for base in node.bases]
        return any(ast.get_docstring(f) for f in own) or any(documented(base, method) for base in bases)

    declared = {name for _, node in classes.values() if is_protocol(node) for name in members(node)}
    labels = set()
    for source, node in classes.values():
        for method in node.body:
            name = getattr(method, "name", "")
            if isinstance(method, ast.FunctionDef) and (name in declared or documented(node.name, name)):
                labels.add(f"{source.file}::{node.name}.{name}")
    return labels


def is_protocol(node: ast.ClassDef) -> bool:
    return any(getattr(base, "id", "") == "Protocol" for base in node.bases)


def members(node: ast.ClassDef) -> set[str]:
    """Return the names that a class declares: annotated attributes and documented methods."""
    attributes = {child.target.id for child in node.body if isinstance(child, ast.AnnAssign)}
    methods = [child for child in node.body if isinstance(child, ast.FunctionDef)]
    return attributes | {method.name for method in methods if ast.get_docstring(method)}


def undocumented(tree) -> list[str]:
    """Return the public functions and classes without a docstring.

    A method may leave it to the base class or protocol that declares it, a setter to its property, `forward` to its
    class.
    """
    inside, by_base = nested(tree), inherited(tree)
    functions = [f for source in tree for f in source.functions if is_public(f) and f.node not in inside]
    bare = [f for f in functions if not ast.get_docstring(f.node) and f.label not in by_base]
    found = [f.label for f in bare if f.node.name not in ("forward", "extra_repr") and not is_setter(f)]
    for source in tree:
        classes = [c for c in source.classes if not c.name.startswith("_") and c not in inside]
        found += [f"{source.file}::{c.name}" for c in classes if not ast.get_docstring(c)]
    return found


def is_setter(function: Function) -> bool:
    return any(isinstance(d, ast.Attribute) and d.attr == "setter" for d in function.node.decorator_list)


def untyped(tree) -> list[str]:
    """Return the public functions with an argument that has no annotation."""
    inside, found = nested(tree), []
    for source in tree:
        for f in source.functions:
            arguments = [*f.node.args.posonlyargs, *f.node.args.args, *f.node.args.kwonlyargs]
            bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            if bare and is_public(f) and f.node not in inside:
                found.append(f"{f.label}({', '.join(bare)})")
    return found


def test_public_functions_and_classes_have_a_docstring() -> None:
    assert undocumented(modules()) == []


def test_public_arguments_have_a_type() -> None:
    assert untyped(modules()) == []


def test_the_gates_see_planted_gaps() -> None:
    tree = [module("langevin.core.a", PLANTED)]
    assert undocumented(tree) == [f"src/langevin/core/a.py::{name}" for name in ("f", "A.h", "B.h", "A")]
    assert untyped(tree) == ["src/langevin/core/a.py::f(y)"]
