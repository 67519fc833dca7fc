"""Optional packages: asked for by name, imported late, missing with a cure."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from functools import cache
from types import ModuleType

from .errors import MissingDependencyError

_DISTRIBUTIONS = {
    "PIL": "Pillow",
    "cv2": "opencv-python",
    "imwatermark": "invisible-watermark",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}


@cache
def is_available(name: str) -> bool:
    """Tell whether the package `name` can be imported, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def version(name: str) -> str | None:
    """Return the installed version of the package `name`, or None."""
    try:
        return importlib.metadata.version(_DISTRIBUTIONS.get(name, name))
    except importlib.metadata.PackageNotFoundError:
        return None


def require(name: str, *, why: str, extra: str | None = None) -> ModuleType:
    """Import the package `name` and return it.

    Args:
        why: what needs it, the subject of the error message ("saving a video").
        extra: the extra of this distribution that brings it, if any.

    Raises:
        MissingDependencyError: with the pip line that cures it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        root = name.partition(".")[0]
        if is_available(root):
            raise
        cure = f'pip install "langevin[{extra}]"' if extra else f"pip install {_DISTRIBUTIONS.get(root, root)}"
        raise MissingDependencyError(f"{why} needs the package {root!r}, which is not installed: {cure}") from error


def late(name: str) -> ModuleType:
    """Import a module of this library, such as "adapters.lora", that lies above the caller, at the time of a call.

    For documented methods of a public class whose work is done by a package above it: the method is the signature, and
    the work has its own place. tests/architecture lists the callers.
    """
    package = __name__.partition(".")[0]
    return importlib.import_module(f"{package}.{name}")
