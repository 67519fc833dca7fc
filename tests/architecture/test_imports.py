"""Imports point downward; `diffusion` knows only core and torch; nothing in src imports the peer."""

from __future__ import annotations

import ast

from tests.architecture.tree import PACKAGE, Import, imports, module, modules

LEVELS = {
    "registry": 0,
    "core": 0,
    "diffusion": 1,
    "nn": 1,
    "prompts": 1,
    "models": 2,
    "weights": 3,
    "adapters": 4,
    "schedulers": 4,
    "optimization": 4,
    "families": 5,
    "pipelines": 6,
    "training": 7,
    "evaluation": 7,
    "compat": 8,
    "utils": 8,
    "callbacks": 8,
    "image_processor": 8,
    "serving": 8,
    "picturebook": 8,
    "cli": 9,
    "__main__": 10,
}
"""Package or module of langevin -> level. A module may import from lower levels and from its own package."""

SIDEWAYS = {
    ("picturebook", "compat"): "the picturebook is an application and may use all but the command line",
    ("picturebook", "utils"): "the picturebook is an application and may use all but the command line",
}
"""Imports on one level that are part of the design, with the reason."""

FACTS = {"langevin.__version__"}
"""Names of the top module that are plain data and may be read from everywhere."""

OUTSIDE_DIFFUSION = {"torch", "numpy", "math", "typing", "collections", "dataclasses", "functools", "itertools", "abc"}
OUTSIDE_DIFFUSION |= {"__future__", "enum", "bisect", "copy", "warnings", "operator", "types", "contextlib", "inspect"}
"""What `diffusion` may import besides core: torch, numpy and the standard library's small tools."""


def place(name: str) -> str:
    """Return the package of langevin that a dotted name belongs to."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def upward(tree) -> list[str]:
    """Return one line for every import that points upward or sideways."""
    return [f"{i.file}:{i.line} imports {i.target}" for i in imports(tree) if not allowed(i)]


def allowed(i: Import) -> bool:
    if i.target.split(".")[0] != PACKAGE or i.target in FACTS or i.importer == PACKAGE:
        return True
    importer, target = place(i.importer), place(i.target)
    if importer == target or (importer, target) in SIDEWAYS:
        return True
    if target not in LEVELS:
        return importer in ("cli", "picturebook", "compat")  # a public name through the lazy top module
    return LEVELS[importer] > LEVELS[target]


def test_every_package_has_a_level() -> None:
    unknown = {place(m.name) for m in modules()} - {*LEVELS, ""}
    assert not unknown, f"give these packages a level in {__name__}: {sorted(unknown)}"


def test_imports_point_downward() -> None:
    assert upward(modules()) == []


def test_diffusion_imports_only_core_torch_and_numpy() -> None:
    found = [
        f"{i.file}:{i.line} imports {i.target}"
        for i in imports(modules())
        if place(i.importer) == "diffusion"
        and i.target.split(".")[0] not in OUTSIDE_DIFFUSION
        and place(i.target) not in ("core", "diffusion")
    ]
    assert found == []


def test_the_peer_is_not_imported() -> None:
    found = [f"{i.file}:{i.line}" for i in imports(modules()) if i.target.split(".")[0] == "diffusers"]
    assert found == []


def test_the_gate_sees_a_planted_import() -> None:
    planted = [
        "from langevin.pipelines.base import DiffusionPipeline",
        "def f():\n    from ..schedulers import ddim",
        "import importlib\nimportlib.import_module('langevin.families.sd')",
        "from .. import families",
        "from langevin import StableDiffusionPipeline",
    ]
    for text in planted:
        assert len(upward([module("langevin.models.base", text)])) == 1, text
    for text in ["from ..nn import attention", "from ..core.errors import InputError", "from .unets import blocks"]:
        assert upward([module("langevin.models.base", text)]) == [], text
    assert upward([module("langevin.training.trainer", "from ..pipelines import base")]) == []
    assert upward([module("langevin.pipelines.base", "from ..training import trainer")]) != []


LATE = {
    "models.adapting": "documented methods of networks whose work is done in adapters",
    "models.single_file": "documented methods of networks whose work is done in weights",
    "pipelines.custom": "a community file is imported with the alias of compat around it",
}
"""Modules that may import one above them when a documented method is called, with the reason."""


def test_late_imports_are_those_of_documented_methods() -> None:
    """`core.imports.late` is a way around the levels, so its callers are named one by one."""
    calling = {
        m.name.removeprefix(f"{PACKAGE}.")
        for m in modules()
        for node in ast.walk(m.ast)
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "late"
    }
    assert calling == set(LATE)
