"""Write docs/reference.md from the registry and the glossary: every public class, every argument of every pipeline."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

from langevin import registry
from langevin.pipelines.glossary import GLOSSARY, parameters

TARGET = Path(__file__).with_name("reference.md")
SECTIONS = {"Pipelines": registry.PIPELINES, "Models": registry.MODELS, "Schedulers": registry.SCHEDULERS}


def first_line(value: object) -> str:
    """Return the first line of a docstring."""
    return (inspect.getdoc(value) or "").partition("\n")[0]


def section(title: str, rows: tuple[registry.Row, ...]) -> list[str]:
    """Return the table of one kind of class, and below it the arguments of the calls among them."""
    lines = [f"## {title}", "", "| class | module | |", "|---|---|---|"]
    calls = []
    for row in rows:
        value = getattr(importlib.import_module(f"langevin.{row.module}"), row.name)
        lines.append(f"| `{row.name}` | `langevin.{row.module}` | {first_line(value)} |")
        if "__call__" in vars(value) and title == "Pipelines":
            calls += [
                "",
                f"### {row.name}",
                "",
                first_line(value.__call__),
                "",
                "| argument | default | |",
                "|---|---|---|",
            ]
            for name, parameter in parameters(value.__call__).items():
                default = "" if parameter.default is parameter.empty else f"`{parameter.default!r}`"
                calls.append(f"| `{name}` | {default} | {GLOSSARY.get(name, '')} |")
    return [*lines, *calls, ""]


def reference() -> str:
    """Return the whole page."""
    lines = ["# Reference", "", "Written by `make docs` from the registry and the glossary of arguments.", ""]
    for title, rows in SECTIONS.items():
        lines += section(title, rows)
    return "\n".join(lines)


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
    print(f"Written to {TARGET}")
