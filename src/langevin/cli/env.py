"""`langevin env`: the facts that a bug report needs. Nothing is sent anywhere."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from .. import __version__
from ..core.imports import version

PACKAGES = ("numpy", "safetensors", "huggingface_hub", "transformers", "accelerate", "diffusers", "Pillow", "xformers")


def report() -> str:
    """Return the report as Markdown list items, one fact per line."""
    import torch

    facts = {
        "langevin": __version__,
        "Platform": platform.platform(),
        "Python": platform.python_version(),
        "torch": f"{torch.__version__} (CUDA build: {torch.version.cuda or 'no'})",
        **{name: version(name) or "not installed" for name in PACKAGES},
        "CPU": f"{torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "Accelerators": ", ".join(accelerators()) or "none",
        "Hub cache": str(hub_cache()),
        "Telemetry": "none; Langevin sends nothing about you or your use",
    }
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def accelerators() -> list[str]:
    """Return a line for every accelerator that torch can use."""
    import torch

    if not torch.accelerator.is_available():
        return []
    kind = torch.accelerator.current_accelerator().type  # type: ignore[union-attr]
    if kind != "cuda":
        return [f"{kind}:{k}" for k in range(torch.accelerator.device_count())]
    found = [torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count())]
    return [f"cuda:{k} {card.name} ({card.total_memory / 2**30:.0f} GiB)" for k, card in enumerate(found)]


def hub_cache() -> Path:
    """Return the folder in which huggingface_hub keeps what it downloaded."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)
