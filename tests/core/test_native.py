"""Functions in C++: compiled once, kept, and refused with the cause."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from langevin.core.errors import ConfigError, MissingDependencyError
from langevin.core.native import cache_folder, compiled

SOURCE = 'extern "C" int twice(int x) {\n  int all = 0;\n#pragma omp parallel for reduction(+ : all)\n'
SOURCE += "  for (int i = 0; i < x; ++i) all += 2;\n  return all;\n}\n"

needs_compiler = pytest.mark.skipif(shutil.which(os.environ.get("CXX") or "g++") is None, reason="no C++ compiler")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LANGEVIN_CACHE", str(tmp_path / "kept"))
    path = tmp_path / "twice.cpp"
    path.write_text(SOURCE)
    return path


@needs_compiler
def test_a_function_is_compiled_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled(source, [], why="Doubling").twice(21) == 42
    (made,) = cache_folder().iterdir()
    when = made.stat().st_mtime_ns
    assert compiled(source, [], why="Doubling").twice(4) == 8
    assert [made] == list(cache_folder().iterdir()) and made.stat().st_mtime_ns == when
    compiled(source, ["-DX=1"], why="Doubling")
    source.write_text(SOURCE.replace("+= 2", "+= 3"))
    assert compiled(source, [], why="Doubling").twice(4) == 12
    assert len(list(cache_folder().iterdir())) == 3


@needs_compiler
def test_what_does_not_compile_or_load_is_named(source: Path) -> None:
    source.write_text("int twice(int x) { return y; }\n")
    with pytest.raises(ConfigError, match=r"Doubling does not compile here with .*\by\b.* was not declared"):
        compiled(source, [], why="Doubling")
    assert not list(cache_folder().iterdir())
    source.write_text('extern "C" int elsewhere(int);\nextern "C" int twice(int x) { return elsewhere(x); }\n')
    with pytest.raises(ConfigError, match=r"does not load \(.*elsewhere"):
        compiled(source, [], why="Doubling").twice(1)


def test_without_a_compiler_the_cure_is_told(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingDependencyError, match=r"needs a C\+\+ compiler, and 'no-such-compiler'.*install"):
        compiled(source, [], why="Doubling")


def test_where_functions_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LANGEVIN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/langevin")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "langevin"
