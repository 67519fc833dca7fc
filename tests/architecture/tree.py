"""What the gates read: the source tree as parsed modules, and the rules they have in common."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "langevin"


@dataclass(frozen=True)
class Function:
    """A function or method: its qualified name, its node and its file."""

    name: str
    node: ast.FunctionDef | ast.AsyncFunctionDef
    file: str

    @property
    def label(self) -> str:
        return f"{self.file}::{self.name}"

    @property
    def length(self) -> int:
        """Lines from the `def` to the end, without the docstring and without the signature."""
        body = without_docstring(self.node.body)
        return self.node.end_lineno - body[0].lineno + 1 if body else 0


@dataclass(frozen=True)
class Module:
    """One source file: its path relative to the repository, its dotted name and its text."""

    file: str
    name: str
    text: str

    @cached_property
    def ast(self) -> ast.Module:
        return ast.parse(self.text, self.file)

    @property
    def is_package(self) -> bool:
        return self.file.endswith("__init__.py")

    @property
    def functions(self) -> Iterator[Function]:
        yield from _functions(self.ast, "", self.file)

    @property
    def classes(self) -> Iterator[ast.ClassDef]:
        yield from (node for node in ast.walk(self.ast) if isinstance(node, ast.ClassDef))


def _functions(node: ast.AST, prefix: str, file: str) -> Iterator[Function]:
    for child in ast.iter_child_nodes(node):
        name = f"{prefix}{getattr(child, 'name', '')}"
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield Function(name, child, file)
        inner = f"{name}." if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) else prefix
        yield from _functions(child, inner, file)


@cache
def modules(src: Path = ROOT / "src") -> list[Module]:
    """Return every Python file of the package below `src`; each is read and parsed once."""
    found = []
    for path in sorted((src / PACKAGE).rglob("*.py")):
        parts = list(path.relative_to(src).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(Module(path.relative_to(src.parent).as_posix(), name, path.read_text(encoding="utf-8")))
    return found


def module(name: str, text: str) -> Module:
    """Make a module out of text, for the tests of the gates themselves."""
    return Module(f"src/{name.replace('.', '/')}.py", name, text)


def without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    """Return the statements of a body after its docstring."""
    first = body[0] if body else None
    is_constant = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return body[1:] if is_constant and isinstance(first.value.value, str) else body


@dataclass(frozen=True)
class Import:
    """`importer` (a dotted module name) imports `target`, a dotted name that may end in an object's name."""

    importer: str
    target: str
    file: str
    line: int


def imports(tree: list[Module]) -> Iterator[Import]:
    """Yield every import of the tree, those inside functions and `import_module("...")` with a literal included."""
    for source in tree:
        for node in ast.walk(source.ast):
            for target in _targets(node, source):
                yield Import(source.name, target, source.file, node.lineno)


def _targets(node: ast.AST, source: Module) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            here = source.name.split(".")
            here = here[: len(here) - node.level + (1 if source.is_package else 0)]
            base = ".".join([*here, *([node.module] if node.module else [])])
        return [f"{base}.{alias.name}" for alias in node.names]
    is_call = isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)
    if is_call and getattr(node.func, "attr", getattr(node.func, "id", "")) in ("import_module", "__import__"):
        return [str(node.args[0].value)]
    return []
