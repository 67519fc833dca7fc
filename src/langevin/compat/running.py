"""Run one file of Python whose imports of `diffusers` lead to this library: a pipeline file, or a user's script."""

from __future__ import annotations

import linecache
import sys
from types import ModuleType

from .alias import private_builtins


def load(source: bytes, *, filename: str, name: str) -> ModuleType:
    """Run `source` as a module and return it; the same name gives the module that is loaded already.

    Nothing is read from the disk: these bytes are compiled, and tracebacks show their lines.

    Args:
        filename: what tracebacks and `__file__` say.
        name: the module's name in `sys.modules`, which must stand for these bytes.

    Raises:
        Exception: whatever the source raises; it is then not kept as a module.
    """
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__dict__.update(__file__=filename, __builtins__=private_builtins())
    lines = source.decode("utf-8", errors="replace").splitlines(keepends=True)
    linecache.cache[filename] = (len(source), None, lines, filename)
    sys.modules[name] = module
    try:
        exec(compile(source, filename, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module
