"""Modules that answer to the name `diffusers`, and the two ways to serve them: to the process, and to one file."""

from __future__ import annotations

import builtins
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from ..core.config import FORMAT_VERSION
from ..core.errors import LangevinError, did_you_mean
from ..registry import HOMES as REGISTRY
from .table import HOMES, MODULES, NAMES

ROOT = "diffusers"
PACKAGE = __name__.partition(".")[0]


class NotThere(LangevinError, ImportError):
    """A documented name or module that this library does not have."""


def is_alias(name: str) -> bool:
    """Tell whether a dotted name leads to the aliased package."""
    return name.partition(".")[0] == ROOT


def surroundings(path: str) -> list[str]:
    """Return a module's path and those of the packages around it, the top one left out."""
    parts = path.split(".")
    return [".".join(parts[:k]) for k in range(len(parts), 0, -1)]


def home_of(path: str, name: str) -> tuple[str, str] | None:
    """Return (module of this library, attribute) for a documented name, or None when nothing has it.

    Args:
        path: the documented module without the leading `diffusers`.
    """
    for place in surroundings(path):
        if name in NAMES.get(place, {}):
            module, _, attribute = NAMES[place][name].partition(":")
            return module, attribute or name
    if path in HOMES and not name.startswith("_") and hasattr(_ours(HOMES[path]), name):
        return HOMES[path], name
    if name in REGISTRY:
        return REGISTRY[name], name
    if path.partition(".")[0] == "utils":
        from . import helpers

        return ("compat.helpers", name) if helpers.question(name) else None
    return None


def _ours(module: str) -> ModuleType:
    return importlib.import_module(f"{PACKAGE}.{module}")


def find(path: str, name: str) -> Any:
    """Return what a documented name of a documented module stands for.

    Raises:
        NotThere: naming the nearest name.
    """
    if (inside := f"{path}.{name}".lstrip(".")) in MODULES:
        return served(inside)
    if (home := home_of(path, name)) is None:
        raise NotThere(missing(path, name), name=f"{ROOT}.{path}".rstrip("."))
    place, attribute = _ours(home[0]), home[1]
    return getattr(place, attribute) if hasattr(place, attribute) else _ours(f"{home[0]}.{attribute}")


def missing(path: str, name: str) -> str:
    """Return the message for a name that this library does not have."""
    inside = (module.removeprefix(f"{path}.") for module in MODULES if module.startswith(f"{path}."))
    known = {*REGISTRY, *inside, *(known for place in surroundings(path) for known in NAMES.get(place, {}))}
    return f"Langevin does not have {name!r} of {f'{ROOT}.{path}'.rstrip('.')}{misspelt(name, known)}"


def misspelt(name: str, known: Iterable[str]) -> str:
    """Return the tail of a message: the name that was meant, where only a letter or two differ.

    Names that exist there and not here are common, and their neighbours of the alphabet are no help.
    """
    close = get_close_matches(name, list(known), n=1, cutoff=0.9)
    return did_you_mean(close[0], close) if close else "."


class Alias(ModuleType):
    """One documented module; its names are looked up on first use, so that importing it loads nothing."""

    __path__: list[str]

    def __init__(self, path: str) -> None:
        super().__init__(f"{ROOT}.{path}".rstrip("."), f"The documented module, served by {PACKAGE}.")
        # Every alias is a package, so that `from diffusers.x import name` asks the finder, whose error names the cause.
        self.__dict__.update(_path=path, __path__=[], **({} if path else {"__version__": FORMAT_VERSION}))

    def __getattr__(self, name: str) -> Any:
        if name == "__all__":
            return [*REGISTRY]
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            value = find(self._path, name)
        except NotThere as error:
            raise AttributeError(str(error)) from None
        self.__dict__[name] = value
        return value

    def __dir__(self) -> list[str]:
        names = (known for place in surroundings(self._path) for known in NAMES.get(place, {}))
        return sorted({*super().__dir__(), *names, *REGISTRY})


@cache
def served(path: str) -> Alias:
    """Return the documented module `path`, the same one every time."""
    return Alias(path)


def alias(name: str) -> Alias:
    """Return the module for a dotted name that begins with `diffusers`.

    Raises:
        NotThere: for a module that is not documented, or that this library does not have.
    """
    path = name.partition(".")[2]
    if path in MODULES:
        return served(path)
    parent, _, last = path.rpartition(".")
    if parent in MODULES:
        raise NotThere(missing(parent, last), name=name)
    raise NotThere(f"Langevin does not have the module {name}{misspelt(path, MODULES)}", name=name)


def is_module(name: str) -> bool:
    """Tell whether a dotted name is that of a documented module."""
    return is_alias(name) and name.partition(".")[2] in MODULES


def lookup(module: str, name: str | None = None) -> Any:
    """Return a documented module by its dotted name, or what a name of it stands for.

    Raises:
        NotThere: naming the nearest one that there is.
    """
    found = alias(module)
    if name is None:
        return found
    return getattr(found, name) if hasattr(found, name) else find(found._path, name)


# For a process -------------------------------------------------------------------------------------------------------


class Finder(MetaPathFinder, Loader):
    """Serves the aliases to `import`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the specification of an alias, or None for other packages; an unknown alias is an error."""
        if not is_alias(fullname):
            return None
        alias(fullname)
        return ModuleSpec(fullname, self, origin=PACKAGE, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the alias itself."""
        return alias(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: an alias is complete."""


FINDER = Finder()


def installed() -> bool:
    """Tell whether `import diffusers` leads to this library."""
    return FINDER in sys.meta_path


def install() -> None:
    """Make `import diffusers` and its documented modules resolve to this library, in this process.

    An installed diffusers is hidden meanwhile, not touched. Calling it again does nothing.

    Raises:
        NotThere: when the real diffusers has been imported: its classes are in use and cannot be replaced.
    """
    real = next((name for name, m in sys.modules.items() if is_alias(name) and not isinstance(m, Alias)), None)
    if real is not None:
        raise NotThere(
            f"The real {ROOT} is loaded already ({real}); call langevin.compat.install() before anything imports it, "
            "or start the script with `langevin run`.",
            name=ROOT,
        )
    if not installed():
        sys.meta_path.insert(0, FINDER)


def uninstall() -> None:
    """Undo `install`: the next `import diffusers` finds what is installed. Names that were imported stay valid."""
    if installed():
        sys.meta_path.remove(FINDER)
    for name in [name for name, m in sys.modules.items() if is_alias(name) and isinstance(m, Alias)]:
        del sys.modules[name]


# For one file --------------------------------------------------------------------------------------------------------


def private_import(
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """Import as `__import__` does, except that `diffusers` is this library, whatever the process knows by that name.

    Raises:
        NotThere: for a name that this library does not have.
    """
    if level or not is_alias(name):
        return builtins.__import__(name, globals, locals, fromlist or (), level)
    found = alias(name)
    for item in fromlist or ():
        if item != "*":
            lookup(name, item)
    return found if fromlist else alias(ROOT)


def private_builtins() -> dict[str, Callable[..., Any]]:
    """Return the builtins for a file whose imports of `diffusers` lead here; other files see nothing of it."""
    return {**vars(builtins), "__import__": private_import}
