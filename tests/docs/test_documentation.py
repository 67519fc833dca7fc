"""What the documentation shows is run, or at least parsed; links lead somewhere; the two READMEs show the same code."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

import langevin
from langevin.cli.app import app

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name != "reference.md"),
]


class Block(NamedTuple):
    """A fenced block: its page, its line, its info string and its text."""

    page: str
    line: int
    info: str
    text: str


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    name = page.relative_to(ROOT).as_posix()
    return [Block(name, text.count("\n", 0, m.start()) + 2, m[1].strip(), m[2]) for m in found]


def every(*kinds: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.info in kinds]


def commands() -> list[tuple[str, list[str]]]:
    """Return (where, words) for every command line of every shell block."""
    lines = []
    for block in every("bash"):
        for offset, line in enumerate(block.text.splitlines()):
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                lines.append((f"{block.page}:{block.line + offset}", words))
    return lines


def check_make(words: list[str]) -> None:
    run = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def check_langevin(words: list[str]) -> None:
    group = typer.main.get_command(app)
    command = group.commands[words[0]]
    command.make_context(words[0], words[1:])


def check_pip(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        for asked in re.findall(r"\[([\w,]+)\]", word):
            assert set(asked.split(",")) <= set(extras)
        assert not word.endswith(".txt") or (ROOT / word).is_file(), word


def check_python(words: list[str]) -> None:
    assert words[0] == "-m" and importlib.util.find_spec(words[1]), words
    assert all((ROOT / word).exists() for word in words[2:] if "/" in word), words


def check_torchrun(words: list[str]) -> None:
    """The module and its arguments stand behind `-m --`."""
    start = words.index("--")
    assert words[start - 1] == "-m"
    check_python(["-m", *words[start + 1 :]])


CHECKS = {"make": check_make, "langevin": check_langevin, "pip": check_pip, "python": check_python}
CHECKS["torchrun"] = check_torchrun


@pytest.mark.parametrize("where, words", commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_shell_commands_parse(where, words) -> None:
    assert words[0] in CHECKS, f"{where}: add a check for {words[0]}"
    CHECKS[words[0]](words[1:])


@pytest.mark.parametrize("block", every("python", "python no-run"), ids=lambda b: f"{b.page}:{b.line}")
def test_python_blocks_compile_and_their_imports_exist(block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "langevin":
            home = importlib.import_module(node.module)
            assert all(hasattr(home, alias.name) for alias in node.names), block


@pytest.mark.parametrize("block", every("python"), ids=lambda b: f"{b.page}:{b.line}")
def test_python_blocks_run(block, tmp_path) -> None:
    if not (Path(langevin.__file__).parent / "picturebook" / "model" / "model_index.json").is_file():
        pytest.skip("this checkout carries no picturebook model")
    run = subprocess.run([sys.executable, "-c", block.text], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_every_block_is_of_a_known_kind() -> None:
    kinds = {"bash", "python", "python no-run", ""}
    assert [f"{b.page}:{b.line} {b.info}" for page in PAGES for b in blocks(page) if b.info not in kinds] == []


def test_both_readmes_show_the_same_code() -> None:
    english, korean = (blocks(ROOT / name) for name in ("README.md", "README.ko.md"))
    assert [b.text for b in english] == [b.text for b in korean]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page) -> None:
    targets = re.findall(r"\]\((?!https?://|#|mailto:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_reference_is_written() -> None:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = module.reference()
    assert all(f"`{row.name}`" in text for row in langevin.registry.PIPELINES)


def test_constraints_cover_what_the_package_and_its_tests_ask_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [
        *project["dependencies"],
        *project["optional-dependencies"]["dev"],
        *project["optional-dependencies"]["test"],
    ]
    names = {re.split(r"[<>=\[ ]", line)[0].lower().replace("_", "-") for line in asked} - {"langevin"}
    pinned = {re.split(r"[= ]", line)[0].lower().replace("_", "-") for line in constraints()}
    assert sorted(names - pinned) == []
    assert "torch==2.13.0" in constraints()


def constraints() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]
