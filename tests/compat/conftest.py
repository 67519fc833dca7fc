"""Community files loaded for the peer and for this library, and the tiny models of the pipelines' tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import langevin
from tests.pipelines.conftest import caplog_ours, our_sd, peer_sd, pipe, quiet, sd_folder

__all__ = ["caplog_ours", "our_sd", "peer_sd", "pipe", "sd_folder"]
FILES = Path(__file__).parent / "files"


def theirs(name: str):
    """Return a community file as a module of the real diffusers."""
    spec = importlib.util.spec_from_file_location(f"peer_{name}", FILES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ours(folder, name: str, **more):
    """Return the pipeline of a community file over a folder, as this library loads it."""
    file = FILES / f"{name}.py"
    return quiet(
        langevin.DiffusionPipeline.from_pretrained(folder, custom_pipeline=file, trust_remote_code=True, **more)
    )
