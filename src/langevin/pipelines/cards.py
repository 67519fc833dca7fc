"""Model cards: the README.md that a repository without one gets with a pipeline."""

from __future__ import annotations

import inspect
from typing import Any

from ..core.files import is_local
from ..core.imports import require, version
from ..registry import PIPELINES

OUR_TAG = "langevin"
LIBRARY = "diffusers"
"""The name under which the hub knows the folder layout; its widgets and counters go by it."""
TAGS = {"text-to-image": "text-to-image", "generation": "unconditional-image-generation"}
"""Task of the registry -> the hub's name for it; whatever starts from a picture is "image-to-image"."""
EXAMPLES = {
    "prompt": '"a red house under a yellow sun"',
    "image": 'load_image("picture.png")',
    "mask_image": 'load_image("mask.png")',
    "control_image": 'load_image("control.png")',
}
"""Arguments that a call cannot do without -> what the example passes."""
PACKAGES = ("torch", "transformers", "safetensors")


def pipeline_tag(cls: type[Any]) -> str | None:
    """Return the hub's name for the task of a pipeline class, None for a class that the registry does not know."""
    task = next((row.task for row in PIPELINES if row.name == cls.__name__), None)
    if task is None:
        return None
    return next((tag for ending, tag in TAGS.items() if task.endswith(ending)), "image-to-image")


def snippet(pipe: Any, repo_id: str) -> str:
    """Return a program that loads the pipeline from `repo_id` and draws a picture."""
    asked = [name for name in EXAMPLES if name in inspect.signature(type(pipe).__call__).parameters]
    call = ", ".join(f"{name}={EXAMPLES[name]}" for name in asked)
    lines = ["from langevin import DiffusionPipeline"]
    lines += ["from langevin.utils import load_image"] if "load_image" in call else []
    lines += ["", f'pipe = DiffusionPipeline.from_pretrained("{repo_id}")']
    lines += [f"image = pipe({call}).images[0]", 'image.save("out.png")']
    return "\n".join(lines)


def card(pipe: Any, repo_id: str, *, license: str | None = None) -> str:
    """Return a README.md: metadata for the hub, a program that runs, the components, and the versions.

    Args:
        license: an identifier of the hub, such as "apache-2.0" or "creativeml-openrail-m".
    """
    source = pipe.name_or_path
    base = source if source is not None and source.count("/") == 1 and not is_local(source) else None
    hub = require("huggingface_hub", why="A model card")
    tag = pipeline_tag(type(pipe))
    data = hub.ModelCardData(
        library_name=LIBRARY, pipeline_tag=tag, base_model=base, license=license, tags=[OUR_TAG, type(pipe).__name__]
    )
    rows = [_row(name, component) for name, component in pipe.components.items() if component is not None]
    versions = [f"{name} {version(name)}" for name in (OUR_TAG, *PACKAGES) if version(name)]
    origin = f", made from [{base}](https://huggingface.co/{base})" if base else ""
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {repo_id.rpartition('/')[2]}",
        f"A `{type(pipe).__name__}`{f' ({tag})' if tag else ''}{origin}.",
        f"```python\n{snippet(pipe, repo_id)}\n```",
        "\n".join(["| Component | Class | Parameters |", "|---|---|---|", *rows]),
        f"Saved with {', '.join(versions)}.",
    ]
    return "\n\n".join(parts) + "\n"


def _row(name: str, component: Any) -> str:
    """Return a row of the table of components."""
    parameters = getattr(component, "parameters", None)
    size = f"{sum(p.numel() for p in parameters()):,}" if callable(parameters) else ""
    return f"| {name} | {type(component).__name__} | {size} |"
