"""Words that have no place: model names in `diffusion`, paths of one machine, markers of carried-over code."""

from __future__ import annotations

import re
import subprocess

from langevin.registry import ROWS
from tests.architecture.tree import ROOT, module, modules

MODEL_WORDS = {"unet", "vae", "controlnet", "lora", "sdxl", "sd", "svd", "flux", "kandinsky", "picturebook"}
MODEL_WORDS |= {"deepfloyd", "transformer", "transformers", "autoencoder", "wuerstchen", "pixart", "dit"}
FAMILY_PARTS = {"base", "common", "conditioning", "denoiser", "latents"}
"""Modules of `families` that name a part of every family, and words of the field that `diffusion` may use."""
MARKERS = re.compile(r"#\s*(copied|adapted|taken)\s+from\b", re.IGNORECASE)
PATHS = re.compile(r"(?<![\w.])/(home|root|work|Users|mnt|tmp)/\w")


def words(text: str) -> set[str]:
    """Return the words of a text in lower case; identifiers are split at underscores."""
    return {word.casefold() for word in re.findall(r"[A-Za-z0-9]+", text)}


def model_names(tree) -> list[str]:
    """Return the model, family and pipeline names that appear in `diffusion`."""
    classes = {row.name for row in ROWS if row.module.startswith(("models.", "pipelines."))}
    classes = {name.casefold() for name in classes}
    families = {source.name.rpartition(".")[2] for source in tree if source.name.startswith("langevin.families.")}
    forbidden = MODEL_WORDS | classes | families - FAMILY_PARTS
    found = []
    for source in tree:
        if source.name.startswith("langevin.diffusion"):
            found += [f"{source.file}: {word}" for word in sorted(words(source.text) & forbidden)]
            found += [f"{source.file}: CLIP"] * ("CLIP" in re.findall(r"\w+", source.text))
    return found


def tracked_text() -> dict[str, str]:
    """Return every text file of the repository that git knows or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        folders = [ROOT / name for name in ("src", "tests", "docs")]
        names = [path.relative_to(ROOT).as_posix() for folder in folders for path in folder.rglob("*")]
    else:
        names = listed.stdout.splitlines()
    kinds = (".py", ".md", ".toml", ".txt", ".sh", ".yml", ".json", "Makefile", ".ci/run")
    texts = {}
    for name in names:
        path = ROOT / name
        if name.endswith(kinds) and path.is_file() and path.stat().st_size < 1_000_000:
            texts[name] = path.read_text(encoding="utf-8", errors="replace")
    return texts


def test_no_model_names_in_diffusion() -> None:
    assert model_names(modules()) == []


def test_the_gate_sees_a_planted_name() -> None:
    text = "def sample(x, unet_out):\n    clip_sample = True\n    return CLIP(x)\n"
    found = model_names([module("langevin.diffusion.loop", text)])
    assert [line.rpartition(" ")[2] for line in found] == ["unet", "CLIP"]
    assert model_names([module("langevin.nn.loop", text)]) == []


def test_no_markers_of_carried_over_code() -> None:
    own = "tests/architecture/test_words.py"
    assert [name for name, text in tracked_text().items() if name != own and MARKERS.search(text)] == []


def test_no_paths_of_one_machine() -> None:
    found = []
    for name, text in tracked_text().items():
        found += [f"{name}: {match.group()}" for match in PATHS.finditer(text)]
    assert found == []
