"""Long functions, files and base classes are smells: each needs a reason, and a reason that lost its need goes."""

from __future__ import annotations

from tests.architecture.tree import Function, module, modules, without_docstring

FUNCTION, CALL, FILE, MODEL_FILE, BASE_CLASS = 80, 60, 600, 900, 300

REASONS: dict[str, str] = {}
"""`file` or `file::qualified name` -> why it may be longer than the limit."""


def limit(function: Function) -> int:
    return CALL if function.node.name == "__call__" else FUNCTION


def too_long(tree) -> dict[str, str]:
    """Return `file` or `file::name` -> what is too long, for the whole tree."""
    found = {}
    for source in tree:
        lines = source.text.count("\n")
        allowed = MODEL_FILE if source.name.startswith("langevin.models.") else FILE
        if lines > allowed:
            found[source.file] = f"{lines} lines, limit {allowed}"
        for function in source.functions:
            if function.length > limit(function):
                found[function.label] = f"{function.length} lines, limit {limit(function)}"
        if not source.file.endswith("/base.py"):
            continue
        for node in source.classes:
            length = node.end_lineno - without_docstring(node.body)[0].lineno + 1 if without_docstring(node.body) else 0
            if length > BASE_CLASS:
                found[f"{source.file}::{node.name}"] = f"{length} lines, limit {BASE_CLASS}"
    return found


def test_sizes() -> None:
    found = too_long(modules())
    unexplained = {place: what for place, what in found.items() if place not in REASONS}
    assert unexplained == {}, "split it, or give the reason in REASONS"


def test_no_reason_outlives_its_need() -> None:
    assert sorted(set(REASONS) - set(too_long(modules()))) == []
    assert all(len(reason.split()) >= 5 for reason in REASONS.values()), "a reason is a sentence"


def test_the_gate_sees_planted_lengths() -> None:
    body = "    x = 1\n"
    tree = [
        module("langevin.core.a", "def f():\n" + body * 81),
        module("langevin.core.b", "class A:\n    def __call__(self):\n" + "        x = 1\n" * 61),
        module("langevin.core.c", "x = 1\n" * 601),
        module("langevin.models.d", "x = 1\n" * 601),
        module("langevin.models.base", "class M:\n" + body * 301),
        module("langevin.core.e", "def f():\n" + '    """' + "doc\n" * 90 + '    """\n' + body * 80),
    ]
    assert sorted(too_long(tree)) == [
        "src/langevin/core/a.py::f",
        "src/langevin/core/b.py::A.__call__",
        "src/langevin/core/c.py",
        "src/langevin/models/base.py::M",
    ]
