"""`langevin run`: a user's script, unchanged, with `import diffusers` leading here; and what it would miss."""

from __future__ import annotations

import ast
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from ..compat.alias import ROOT, NotThere, install, is_alias, is_module, lookup
from ..core.errors import InputError
from ..core.files import missing

INTERRUPTED = 130


class Use(NamedTuple):
    """A documented name that a script uses: the line, the module, and the name in it (None for the module itself)."""

    line: int
    module: str
    name: str | None

    @property
    def dotted(self) -> str:
        """The whole name."""
        return self.module if self.name is None else f"{self.module}.{self.name}"


def run(script: str, arguments: Sequence[str]) -> NoReturn:
    """Run a script as `python script` does, with the alias installed, and leave with its exit status.

    Raises:
        SystemExit: always; 0 at the end of the script, 1 after a traceback, or what the script asks for.
    """
    path = _script(script)
    install()
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(path.resolve().parent))
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit:
        raise
    except BaseException as error:
        # The frames of this module and of runpy are not the script's.
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename != script:
            frames = frames.tb_next
        traceback.print_exception(type(error), error, frames)
        sys.exit(INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1)
    sys.exit(0)


def _script(name: str) -> Path:
    path = Path(name)
    if path.is_dir():
        raise InputError(f"{name} is a folder; name the script in it.")
    if not path.is_file():
        raise missing(name)
    return path


# What a script uses --------------------------------------------------------------------------------------------------


def check(script: str) -> dict[Use, str | None]:
    """Return the documented names that a script uses, each with what is missing or None; nothing is run.

    Raises:
        InputError: when the file is no Python.
    """
    path = _script(script)
    try:
        tree = ast.parse(path.read_bytes(), script)
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{script} is no Python that can be read ({error}).") from None
    return {use: _missing(use) for use in sorted(set(uses(tree)), key=lambda use: (use.line, use.dotted))}


def _missing(use: Use) -> str | None:
    try:
        lookup(use.module, use.name)
    except NotThere as error:
        return str(error)
    return None


def report(script: str) -> tuple[list[str], int]:
    """Return the lines of `--check`, and its exit status: 1 when a name is missing."""
    found = check(script)
    lines = [
        f"{script}:{use.line}: {use.dotted}  {'yes' if lack is None else f'no: {lack}'}" for use, lack in found.items()
    ]
    there = sum(lack is None for lack in found.values())
    return [*lines, f"{there} of {len(found)} names are there."], int(there < len(found))


def uses(tree: ast.Module) -> Iterator[Use]:
    """Yield the names that a script imports from `diffusers`, or reaches through the module."""
    bound: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and is_alias(node.module or ""):
            for name in node.names:
                yield Use(node.lineno, str(node.module), None if name.name == "*" else name.name)
                bound[name.asname or name.name] = f"{node.module}.{name.name}"
        elif isinstance(node, ast.Import):
            for name in node.names:
                if is_alias(name.name):
                    yield Use(node.lineno, name.name, None)
                    bound[name.asname or ROOT] = name.name if name.asname else ROOT
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (found := _reached(node, bound)) is not None:
            yield Use(node.lineno, *found)


def _reached(node: ast.Attribute, bound: dict[str, str]) -> tuple[str, str] | None:
    """Return (module, name) for an attribute of a module of `diffusers`, else None."""
    if isinstance(node.value, ast.Name):
        module = bound.get(node.value.id)
    elif isinstance(node.value, ast.Attribute) and (outer := _reached(node.value, bound)) is not None:
        module = ".".join(outer)
    else:
        module = None
    return (module, node.attr) if module is not None and is_module(module) else None
