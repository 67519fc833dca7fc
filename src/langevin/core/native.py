"""Functions in C++ that are compiled on the machine they run on, once, and kept for later programs.

The compiler is `$CXX`, or else `g++`. Threads are those of torch's OpenMP, which is in the process: a source may use
them, and is not linked with a library of its own for them. What the compiler makes lies in `$LANGEVIN_CACHE`, or else
in `$XDG_CACHE_HOME/langevin` or `~/.cache/langevin`, under a name made of the source, the flags and the compiler.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .errors import ConfigError, MissingDependencyError

COMPILER = "g++"
COMMON = ("-O3", "-std=c++17", "-fPIC", "-fopenmp")


def cache_folder() -> Path:
    """Return where compiled functions are kept."""
    if own := os.environ.get("LANGEVIN_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "langevin"


def compiler_path() -> str | None:
    """Return the path of the C++ compiler, or None where there is none."""
    return shutil.which(os.environ.get("CXX") or COMPILER)


def compiled(source: Path, flags: Sequence[str], *, why: str) -> ctypes.CDLL:
    """Return the functions of a source, compiled now or earlier.

    Args:
        why: what needs them, the subject of error messages.

    Raises:
        MissingDependencyError: there is no compiler.
        ConfigError: the compiler refuses the source, what it made does not load, or the folder cannot be written to.
    """
    path = compiler_path()
    if path is None:
        name = os.environ.get("CXX") or COMPILER
        raise MissingDependencyError(
            f"{why} needs a C++ compiler, and {name!r} is not here: install one (`apt install g++`), or name it in the "
            "variable CXX."
        )
    command = [path, *COMMON, *flags]
    version = subprocess.run([command[0], "--version"], capture_output=True, check=False).stdout
    mark = hashlib.sha256(b"\0".join([source.read_bytes(), version, *map(os.fsencode, command)])).hexdigest()[:16]
    target = cache_folder() / f"{source.stem}-{mark}.so"
    if not target.is_file():
        try:
            _compile(command, source, target, why)
        except OSError as error:
            where = f"{target.parent} ({error.strerror})"
            raise ConfigError(f"{why} cannot be kept in {where}; name another folder in LANGEVIN_CACHE.") from error
    try:
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise ConfigError(f"{why} does not run here: {target} does not load ({error}).") from error


def _compile(command: Sequence[str], source: Path, target: Path, why: str) -> None:
    """Compile and link, and put what comes of it into its place when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        part, made = Path(folder) / "part.o", Path(folder) / target.name
        steps = ([*command, "-c", str(source), "-o", str(part)], [command[0], "-shared", str(part), "-o", str(made)])
        for step in steps:
            run = subprocess.run(step, capture_output=True, text=True, check=False)
            if run.returncode:
                told = run.stderr.splitlines() or ["it says nothing"]
                line = next((line for line in told if "error" in line), told[0])
                raise ConfigError(f"{why} does not compile here with {step[0]}: {line.strip()[:200]}")
        os.replace(made, target)
