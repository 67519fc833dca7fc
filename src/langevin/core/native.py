"""Functions in C++ that are compiled on the machine they run on, once, and kept for later programs.

The compiler is `$CXX`, or else `g++`. Threads are those of torch's OpenMP, which is in the process: a source may use
them, and is not linked with a library of its own for them. What the compiler makes lies in `$LANGEVIN_CACHE`, or else
in `$XDG_CACHE_HOME/langevin` or `~/.cache/langevin`, under a name made of the source with the headers beside it, the
flags and the compiler.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConfigError, LangevinError, MissingDependencyError
from .logging import get_logger

logger = get_logger(__name__)

COMPILER = "g++"
AVX512 = ("avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512bf16")
"""Instructions of processors with AVX512-BF16."""
COMMON = ("-O3", "-std=c++17", "-fPIC", "-fopenmp")


def cache_folder() -> Path:
    """Return where what this machine has computed once is kept: compiled functions, and casts of weights."""
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
    read = [path.read_bytes() for path in (source, *sorted(source.parent.glob("*.h")))]
    mark = hashlib.sha256(b"\0".join([*read, version, *map(os.fsencode, command)])).hexdigest()[:16]
    target = cache_folder() / f"{source.stem}-{mark}.so"
    if not target.is_file():
        logger.info("%s is compiled, once on this machine, into %s.", why, target)
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
                lines = run.stderr.splitlines() or ["it says nothing"]
                line = next((line for line in lines if "error" in line), lines[0])
                told = f"{line.strip()[:200]}; name another compiler in the variable CXX."
                raise ConfigError(f"{why} does not compile here with {step[0]}: {told}")
        os.replace(made, target)


@dataclass(frozen=True)
class Kernel:
    """A function in C++ that is compiled at its first use, and then compared with what it stands for.

    Attributes:
        why: what it is, the subject of error messages ("The attention kernel").
        source: the file, whose stem is the name of the function with the exported C interface.
        instructions: that it needs, as the compiler calls them ("avx512f").
        here: tells whether the processor and the system are such.
        needs: says in words what `here` asks for.
        agrees: tells whether the compiled function gives what it should.
    """

    why: str
    source: Path
    instructions: tuple[str, ...]
    here: Callable[[], bool]
    needs: str
    agrees: Callable[[Any], bool]

    def function(self) -> Any:
        """Return the compiled function, once it has given what it should.

        Raises:
            MissingDependencyError: there is no C++ compiler.
            ConfigError: the processor is none, or the function does not compile, load or compute here.
        """
        return _checked(self)

    def ready(self) -> bool:
        """Tell whether it works, compiling it if need be; a warning says once why it does not."""
        return _working(self)


@functools.cache
def _checked(kernel: Kernel) -> Any:
    if not kernel.here():
        raise ConfigError(f"{kernel.why} needs {kernel.needs}, and this is none.")
    flags = [f"-m{name}" for name in kernel.instructions]
    found = getattr(compiled(kernel.source, flags, why=kernel.why), kernel.source.stem)
    found.restype = ctypes.c_int
    if not kernel.agrees(found):
        raise ConfigError(f"{kernel.why} computes something else than torch here; leave `kernels` out, or use 'sdpa'.")
    return found


@functools.cache
def _working(kernel: Kernel) -> bool:
    try:
        kernel.function()
    except LangevinError as error:
        logger.warning("Torch computes instead: %s", error)
        return False
    return True


def forget() -> None:
    """Ask anew what was found of kernels."""
    _checked.cache_clear()
    _working.cache_clear()


def longs(*values: int) -> Any:
    """Return integers as functions read them."""
    return (ctypes.c_long * len(values))(*values)
