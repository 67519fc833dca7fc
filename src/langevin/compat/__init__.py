"""The `diffusers` import alias: scripts and community pipelines that import diffusers run on this library, unchanged.

`install()` serves a whole process, `langevin run script.py` does it for one script, and the pipeline files that
`DiffusionPipeline.from_pretrained(custom_pipeline=...)` reads get the alias for themselves alone. The names stand in
`table.py`. Nothing here imports the real package.
"""

from __future__ import annotations

from .alias import NotThere, install, installed, uninstall

__all__ = ["NotThere", "install", "installed", "uninstall"]
