"""The README.md that the repository of a trained result gets: what it began with, and a program that uses it."""

from __future__ import annotations

from ...core.files import is_local
from ...core.imports import require


def card(base: str | None, use: str, repo_id: str) -> str:
    """Return a README.md.

    Args:
        base: folder or hub repository of the pipeline that training began with; None for a pipeline without text that
            began with nothing.
        use: lines of Python that load the result into `pipe`, in which REPO stands for the repository; where there are
            none, the result is a pipeline itself.
    """
    hub = require("huggingface_hub", why="A model card")
    known = base if base is not None and base.count("/") == 1 and not is_local(base) else None
    task = "unconditional-image-generation" if base is None else "text-to-image"
    data = hub.ModelCardData(base_model=known, library_name="diffusers", pipeline_tag=task, tags=["langevin"])
    lines = ["from langevin import DiffusionPipeline", ""]
    lines += [f'pipe = DiffusionPipeline.from_pretrained("{known or base if use else repo_id}")']
    lines += use.replace("REPO", repo_id).splitlines()
    code = "\n".join(lines)
    begun = "from the beginning" if base is None else f"beginning with `{base}`"
    return (
        f"---\n{data.to_yaml()}\n---\n\n# {repo_id}\n\nTrained with Langevin, {begun}.\n\n"
        f"```python\n{code}\n```\n\n`settings.json` holds all settings.\n"
    )
