"""docs/hub.md, run from the top to the bottom against the stand-in."""

from __future__ import annotations

import shlex
import shutil

import pytest
from typer.testing import CliRunner

import langevin
from langevin.cli.app import app
from tests.docs.test_documentation import ROOT, blocks
from tests.pipelines.tiny import networks

pytestmark = pytest.mark.hub
PAGE = blocks(ROOT / "docs" / "hub.md")


@pytest.fixture
def published(hub, logged_in, sd_folder, tmp_path, monkeypatch):
    """The stand-in with the repositories that the page names, and an empty working folder."""
    folder = shutil.copytree(sd_folder, tmp_path / "source")
    langevin.StableDiffusionPipeline.from_pretrained(folder).save_pretrained(folder, variant="fp16")
    hub.publish("my-org/my-model", folder)
    hub.publish("someone/model", sd_folder)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return hub


def test_the_programs_run(published) -> None:
    known: dict = {}
    for block in PAGE:
        if block.info.startswith("python"):
            exec(compile(block.text, f"{block.page}:{block.line}", "exec"), known)
    assert published.repositories["me/my-copy"].private and "README.md" in published.files("me/my-copy")
    assert set(published.files("my-org/my-unet")) > {"scheduler/scheduler_config.json", "config.json"}
    assert known["address"].endswith("someone/model/discussions/1")


def test_the_commands_run(published, tmp_path) -> None:
    lines = [line for block in PAGE if block.info == "bash" for line in block.text.splitlines()]
    assert len(lines) == 2
    for line in lines:
        words = [word for word in shlex.split(line) if not word.startswith("HF_")]
        assert words.pop(0) == "langevin"
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, (result.output, result.exception)
        (tmp_path / "work" / "house.png").unlink()


def test_the_documented_snippets_of_sharing(published) -> None:
    """The pages on pushing files: models, variants, schedulers and pipelines built from nothing."""
    shape = {"block_out_channels": (32, 64), "layers_per_block": 2, "in_channels": 4, "cross_attention_dim": 32}
    downs = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
    controlnet = langevin.ControlNetModel(**shape, **downs, conditioning_embedding_out_channels=(16, 32))
    controlnet.push_to_hub("my-controlnet-model")
    controlnet.push_to_hub("my-controlnet-model", variant="fp16")
    langevin.ControlNetModel.from_pretrained("me/my-controlnet-model")
    files = published.files("me/my-controlnet-model")
    assert {name for name in files if name.endswith(".safetensors")} == {
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.safetensors",
    }
    table = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    langevin.DDIMScheduler(**table, clip_sample=False, set_alpha_to_one=False).push_to_hub("my-controlnet-scheduler")
    langevin.DDIMScheduler.from_pretrained("me/my-controlnet-scheduler")
    parts = langevin.StableDiffusionPipeline.from_pretrained("my-org/my-model").components
    bare = {**parts, **networks(langevin), "safety_checker": None, "feature_extractor": None}
    langevin.StableDiffusionPipeline(**bare).push_to_hub("my-pipeline")
    langevin.StableDiffusionPipeline.from_pretrained("me/my-pipeline")
    controlnet.push_to_hub("my-controlnet-model-private", private=True)
    assert published.repositories["me/my-controlnet-model-private"].private
