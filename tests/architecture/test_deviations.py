"""Every deliberate difference from the peer is written down with the test that shows it."""

from __future__ import annotations

import ast
import re

from tests.architecture.tree import ROOT

TABLE = ROOT / "docs" / "deviations.md"


def rows() -> list[list[str]]:
    """Return the cells of every table row of docs/deviations.md, headings left out."""
    lines = [line.strip() for line in TABLE.read_text(encoding="utf-8").splitlines()]
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if line.startswith("|")]
    return [row for row in cells if row[0] != "Peer" and not set(row[0]) <= set("-: ")]


def names_in(path: str) -> set[str]:
    """Return the names of the tests in a file, `Class::test` for methods."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}::{f.name}" for f in node.body if isinstance(f, ast.FunctionDef)}
    return names


def test_every_row_has_four_cells_and_no_empty_one() -> None:
    assert rows(), "the table is empty"
    assert [row for row in rows() if len(row) != 4 or not all(row)] == []


def test_every_row_names_an_existing_test() -> None:
    missing = []
    for row in rows():
        named = re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)`", row[-1])
        missing += [row] if not named else []
        for path, name in named:
            found = (ROOT / path).is_file() and name in names_in(path)
            missing += [] if found else [f"{path}::{name}"]
    assert missing == []
