"""Prompts from files in the manner of PartiPrompts: a table with `Prompt` and `Category`, or one prompt a line."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import InputError, did_you_mean

TABLES = (".tsv", ".csv")


class Tabs(csv.Dialect):
    """Cells between tabs, in which a quotation mark is one: prompts often quote what a sign says."""

    delimiter, lineterminator, quoting = "\t", "\n", csv.QUOTE_NONE


@dataclass(frozen=True)
class Prompt:
    """A prompt; `category` and `challenge` are empty where the file has none."""

    text: str
    category: str = ""
    challenge: str = ""


def read_prompts(path: str | Path) -> list[Prompt]:
    """Return the prompts of a .tsv or .csv file with a column `Prompt`, or of a .txt file, one a line.

    Raises:
        InputError: for a file that is missing, of another kind, empty, or has lines without a prompt or prompts twice;
            all lines at once.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in (*TABLES, ".txt"):
        raise InputError(f"{path} is no file of prompts; those end in .tsv, .csv or .txt.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8.") from error
    prompts = _lines(text) if path.suffix.lower() == ".txt" else _table(path, text)
    seen: dict[str, int] = {}
    problems = []
    for number, prompt in prompts:
        if not prompt.text:
            problems.append(f"line {number}: there is no prompt")
        elif prompt.text in seen:
            problems.append(f"line {number}: the prompt of line {seen[prompt.text]} again")
        seen.setdefault(prompt.text, number)
    if problems or not prompts:
        raise InputError(f"{path}: {'; '.join(problems[:20]) or 'it holds no prompt'}.")
    return [prompt for _, prompt in prompts]


def _lines(text: str) -> list[tuple[int, Prompt]]:
    return [(k, Prompt(line.strip())) for k, line in enumerate(text.splitlines(), 1) if line.strip()]


def _table(path: Path, text: str) -> list[tuple[int, Prompt]]:
    tabs = path.suffix.lower() == ".tsv"
    reader = csv.DictReader(text.splitlines(), dialect=Tabs if tabs else csv.excel)
    names = {name.strip().casefold(): name for name in reader.fieldnames or ()}
    if "prompt" not in names:
        raise InputError(f"{path} has no column 'Prompt'{did_you_mean('Prompt', names.values())}")

    def cell(row: dict[str, str | None], name: str) -> str:
        text = (row.get(names.get(name, "")) or "").strip()
        return unquoted(text) if tabs else text

    return [
        (reader.line_num, Prompt(cell(row, "prompt"), cell(row, "category"), cell(row, "challenge"))) for row in reader
    ]


def unquoted(cell: str) -> str:
    """Return a cell without the quotation marks that a spreadsheet may have put around it."""
    inner = cell[1:-1]
    wrapped = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if wrapped else cell


def draw(
    prompts: Sequence[Prompt], *, count: int | None = None, category: str | None = None, seed: int = 0
) -> Iterator[Prompt]:
    """Yield prompts in an order that the seed decides: `count` of them, and of one category only, where asked.

    Raises:
        InputError: for a category that there is not, naming the nearest, or more prompts than there are.
    """
    known = {prompt.category for prompt in prompts}
    if category is not None and category not in known:
        raise InputError(f"No prompt has the category {category!r}{did_you_mean(category, known - {''})}")
    chosen = [prompt for prompt in prompts if category in (None, prompt.category)]
    if count is not None and not 0 < count <= len(chosen):
        raise InputError(f"{count} prompts were asked of {len(chosen)}.")
    yield from random.Random(seed).sample(chosen, len(chosen) if count is None else count)
