"""What the documentation shows is run, or at least parsed; links lead somewhere; the two READMEs show the same code."""

from __future__ import annotations

import ast
import importlib.util
import json
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


def spans(pattern: str) -> list[tuple[str, str]]:
    """Return (where, text) for every piece of code inside a line that the pattern matches whole."""
    found = []
    for page in PAGES:
        name = page.relative_to(ROOT).as_posix()
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            found += [
                (f"{name}:{number}", code) for code in re.findall("`([^`]+)`", line) if re.fullmatch(pattern, code)
            ]
    return found


def check_make(words: list[str]) -> None:
    run = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def check_langevin(words: list[str]) -> None:
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
    command.make_context(name, words)


def check_pip(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        for asked in re.findall(r"\[([\w,]+)\]", word):
            assert set(asked.split(",")) <= set(extras)
        assert not word.endswith(".txt") or (ROOT / word).is_file(), word


def check_python(words: list[str]) -> None:
    """A script that is there and takes no arguments, or a module; where it has a `parser`, that takes the rest."""
    if words[0].endswith(".py"):
        assert len(words) == 1 and (ROOT / words[0]).is_file(), words
        return
    option, name, *rest = words
    if name == "langevin":
        check_langevin(rest)
        return
    spec = importlib.util.find_spec(name)
    assert option == "-m" and spec, words
    assert all((ROOT / word).exists() for word in rest if "/" in word), words
    module = importlib.import_module(f"{name}.__main__" if spec.submodule_search_locations else name)
    if hasattr(module, "parser"):
        module.parser().parse_args(rest)


def check_torchrun(words: list[str]) -> None:
    """The module and its arguments stand behind `-m --`; a script stands last."""
    if "--" not in words:
        check_python(words[-1:])
        return
    start = words.index("--")
    assert words[start - 1] == "-m"
    check_python(["-m", *words[start + 1 :]])


def check_accelerate(words: list[str]) -> None:
    """A script that is there, and flags of its recipe if it has one."""
    from langevin.training.recipes import RECIPES
    from langevin.training.settings import parse

    script = next(k for k, word in enumerate(words) if word.endswith(".py"))
    assert words[0] == "launch" and (ROOT / words[script]).is_file(), words
    if words[script:] == ["examples/distributed_inference/with_accelerate.py"]:
        return
    (name,) = re.findall(r'main\("(\w+)"\)', (ROOT / words[script]).read_text(encoding="utf-8"))
    settings, _ = RECIPES[name].loaded()
    parse(settings, words[script + 1 :], name=name)


CHECKS = {"make": check_make, "langevin": check_langevin, "pip": check_pip, "python": check_python}
CHECKS |= {"torchrun": check_torchrun, "accelerate": check_accelerate}


@pytest.mark.parametrize("where, words", commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_shell_commands_parse(where, words) -> None:
    assert words[0] in CHECKS, f"{where}: add a check for {words[0]}"
    CHECKS[words[0]](words[1:])


@pytest.mark.parametrize("where, code", spans("(langevin|make|python -m|torchrun) .*"))
def test_commands_inside_lines_exist(where, code) -> None:
    """A command of ours is there, and a `python -m` parses; what stands inside a line may leave arguments out."""
    words = shlex.split(code)
    if words[0] == "langevin":
        assert words[1] in typer.main.get_command(app).commands, where
    else:
        CHECKS[words[0]](words[1:])


FOLDERS = {path.name for root in (ROOT, ROOT / "src" / "langevin") for path in root.iterdir() if path.is_dir()}


def test_paths_of_the_code_exist() -> None:
    """What reads like a path, and begins with a folder of ours, is one: of the repository, or of the package."""
    named = [(where, path) for where, path in spans(r"[\w./-]+/[\w./-]*") if path.split("/")[0] in FOLDERS - {"model"}]
    assert len(named) > 30
    roots = (ROOT, ROOT / "src", ROOT / "src" / "langevin")
    made = ("docs/reference.md", "outputs/")
    assert [
        each for each in named if each[1] not in made and not any((root / each[1]).exists() for root in roots)
    ] == []


def test_every_page_is_listed() -> None:
    listed = re.findall(r"\]\((\S+\.md)\)", (ROOT / "docs" / "README.md").read_text(encoding="utf-8"))
    there = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md", "reference.md"}
    assert there <= {Path(page).name for page in listed}


@pytest.mark.parametrize("block", every("python", "python no-run"), ids=lambda b: f"{b.page}:{b.line}")
def test_python_blocks_compile_and_their_imports_exist(block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "langevin":
            home = importlib.import_module(node.module)
            assert all(hasattr(home, alias.name) for alias in node.names), block


RUNNABLE = {block.text: block for block in every("python")}
"""Each program once: the two READMEs show the same."""

RUN = """
import json, os, sys
for k, (where, text) in enumerate(json.load(sys.stdin)):
    os.mkdir(str(k))
    os.chdir(str(k))
    print(where, flush=True)
    exec(compile(text, where, "exec"), {"__name__": "__main__"})
    os.chdir("..")
"""


@pytest.mark.parametrize("page", sorted({block.page for block in RUNNABLE.values()}))
def test_python_blocks_run(page, tmp_path) -> None:
    """The programs of a page run, each with names and a folder of its own, in one process that imports torch once."""
    blocks = [(f"{b.page}:{b.line}", b.text) for b in sorted(RUNNABLE.values(), key=lambda b: b.line) if b.page == page]
    command = [sys.executable, "-c", RUN]
    run = subprocess.run(command, input=json.dumps(blocks), cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


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
