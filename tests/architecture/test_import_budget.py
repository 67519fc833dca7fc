"""What an import loads, counted in modules and not in seconds."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = {"transformers", "accelerate", "scipy", "matplotlib", "diffusers", "huggingface_hub", "safetensors", "PIL"}
HEAVY |= {"pandas", "datasets", "torchvision", "requests", "httpx", "typer", "tokenizers", "onnxruntime", "tqdm"}


HELP = """
import sys
from langevin.cli import main
sys.argv = ["langevin", "--help"]
try:
    main()
except SystemExit:
    pass
"""


def loaded(code: str) -> list[str]:
    """Return the names in `sys.modules` after a fresh interpreter has run `code`."""
    script = f"{code}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def roots(names: list[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def ours(names: list[str]) -> list[str]:
    return [name for name in names if name.partition(".")[0] == "langevin"]


def test_the_package_loads_almost_nothing() -> None:
    names = loaded("import langevin")
    assert ours(names) == ["langevin"]
    assert not roots(names) & {"torch", "numpy", *HEAVY}


def test_listing_the_public_names_loads_nothing_more() -> None:
    names = loaded("import langevin; dir(langevin)")
    assert ours(names) == ["langevin", "langevin.registry"]
    assert "torch" not in roots(names)


def test_a_pipeline_class_loads_torch_and_no_other_heavy_package() -> None:
    torch = set(loaded("import torch"))
    names = loaded("from langevin import StableDiffusionPipeline")
    assert "torch" in names
    assert not (roots(names) - roots(list(torch))) & HEAVY
    assert len(ours(names)) <= 75, ours(names)
    beyond = [name for name in names if name not in torch and name not in ours(names)]
    assert len(beyond) <= 40, beyond


def test_the_help_of_the_command_line_loads_no_torch() -> None:
    names = loaded(HELP)
    assert "typer" in names
    assert not roots(names) & {"torch", "numpy", "transformers", "huggingface_hub", "PIL"}
