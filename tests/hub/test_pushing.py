"""Writing to the hub: what is uploaded comes back equal, in one commit, with a card, and never over another's work."""

from __future__ import annotations

import subprocess
import sys

import diffusers
import pytest
import torch
from huggingface_hub import ModelCard, RepoCard

import langevin
from langevin import AutoencoderKL, DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from langevin.core.errors import ConfigError, InputError
from langevin.pipelines import cards
from langevin.registry import PIPELINES
from tests.hub.conftest import outside
from tests.hub.test_reading import same
from tests.pipelines import tiny

pytestmark = pytest.mark.hub
WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture(autouse=True)
def me(logged_in) -> str:
    """Every push needs a login."""
    return logged_in


def vae() -> AutoencoderKL:
    return tiny.networks(langevin)["vae"]


def test_a_model(hub) -> None:
    model = vae()
    address = model.push_to_hub("my-vae", commit_message="A new autoencoder")
    files = hub.files("me/my-vae")
    assert set(files) == {".gitattributes", "config.json", f"{WEIGHTS}.safetensors"}
    repository = hub.repositories["me/my-vae"]
    assert address.endswith(repository.branches["main"]) and not repository.private
    assert repository.messages[repository.branches["main"]] == "A new autoencoder"
    assert len(repository.commits) == 2, "one commit after the first"
    assert same(AutoencoderKL.from_pretrained("me/my-vae"), model)
    model.push_to_hub("me/my-vae", variant="fp16", safe_serialization=False)
    assert set(hub.files("me/my-vae")) == {*files, f"{WEIGHTS}.fp16.bin"}
    assert same(AutoencoderKL.from_pretrained("me/my-vae", variant="fp16"), model)


def test_a_scheduler(hub) -> None:
    scheduler = tiny.scheduler(langevin, "DDIMScheduler")
    scheduler.push_to_hub("my-org/my-scheduler", private=True)
    assert set(hub.files("my-org/my-scheduler")) == {".gitattributes", "scheduler_config.json"}
    assert hub.repositories["my-org/my-scheduler"].private
    assert DDIMScheduler.from_pretrained("my-org/my-scheduler").to_json_string() == scheduler.to_json_string()


def test_a_pipeline_comes_back_equal(hub, sd_folder) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(sd_folder)
    pipe.push_to_hub("my-pipeline", license="apache-2.0", private=True)
    files = hub.files("me/my-pipeline")
    assert {name.partition("/")[0] for name in files} == {
        *("unet", "vae", "text_encoder", "tokenizer", "scheduler"),
        *("model_index.json", "README.md", ".gitattributes"),
    }
    again = DiffusionPipeline.from_pretrained("me/my-pipeline")
    assert type(again) is StableDiffusionPipeline and again.safety_checker is None
    assert all(same(getattr(again, part), getattr(pipe, part)) for part in ("unet", "vae", "text_encoder"))
    assert again.config == pipe.config and again.scheduler.config == pipe.scheduler.config


def test_saving_may_push_at_once(hub, sd_folder, tmp_path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(sd_folder)
    pipe.save_pretrained(tmp_path / "other-name", push_to_hub=True, variant="fp16")
    assert f"unet/{WEIGHTS}.fp16.safetensors" in hub.files("me/other-name")
    assert not (tmp_path / "other-name" / "README.md").exists(), "the card belongs to the repository"
    vae().save_pretrained(tmp_path / "vae", push_to_hub=True, repo_id="my-org/vae", private=True, token="hf_me")
    DDIMScheduler().save_pretrained(tmp_path / "scheduler", push_to_hub=True, repo_id="me/steps")
    assert "scheduler_config.json" in hub.files("me/steps") and hub.repositories["my-org/vae"].private
    vae().save_config(tmp_path / "alone", push_to_hub=True)
    assert set(hub.files("me/alone")) == {".gitattributes", "config.json"}


def test_a_subfolder(hub) -> None:
    model = vae()
    model.push_to_hub("me/parts", subfolder="vae")
    DDIMScheduler().push_to_hub("me/parts", subfolder="scheduler")
    assert set(hub.files("me/parts")) > {"vae/config.json", "scheduler/scheduler_config.json"}
    assert same(AutoencoderKL.from_pretrained("me/parts", subfolder="vae"), model)


def test_a_pull_request_changes_nothing_yet(hub, sd_folder) -> None:
    hub.publish("other/model", sd_folder)
    before = hub.files("other/model")
    address = vae().push_to_hub("other/model", create_pr=True, subfolder="vae")
    assert address.endswith("other/model/discussions/1")
    assert hub.files("other/model") == before != hub.files("other/model", "refs/pr/1")
    assert vae().dtype == AutoencoderKL.from_pretrained("other/model", subfolder="vae", revision="refs/pr/1").dtype


def test_hidden_files_stay_at_home(hub, tmp_path) -> None:
    (tmp_path / "own" / ".git").mkdir(parents=True)
    (tmp_path / "own" / ".git" / "config").write_text("secret")
    (tmp_path / "own" / ".env").write_text("secret")
    vae().save_pretrained(tmp_path / "own", push_to_hub=True)
    assert set(hub.files("me/own")) == {".gitattributes", "config.json", f"{WEIGHTS}.safetensors"}


# The card ------------------------------------------------------------------------------------------------------------


def test_the_card(hub, sd_folder) -> None:
    hub.publish("me/base", sd_folder)
    pipe = DiffusionPipeline.from_pretrained("me/base")
    pipe.push_to_hub("me/tuned", license="creativeml-openrail-m")
    card = ModelCard.load("me/tuned", ignore_metadata_errors=False)
    assert card.data.library_name == "diffusers" and card.data.pipeline_tag == "text-to-image"
    assert card.data.base_model == "me/base" and card.data.license == "creativeml-openrail-m"
    assert RepoCard.load("me/tuned").data.to_dict()["base_model"] == "me/base"
    assert "| unet | UNet2DConditionModel | 792,964 |" in card.text and f"torch {torch.__version__}" in card.text
    StableDiffusionPipeline.from_pretrained(sd_folder).push_to_hub("me/local")
    data = ModelCard.load("me/local").data
    assert data.base_model is None and data.license is None


@pytest.mark.parametrize("kind", ["text", "picture", "pixels"])
def test_the_program_on_the_card_runs(hub, sd_folder, tmp_path, kind) -> None:
    parts = StableDiffusionPipeline.from_pretrained(sd_folder).components
    pipe = {
        "text": lambda: StableDiffusionPipeline(**parts, requires_safety_checker=False),
        "picture": lambda: langevin.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False),
        "pixels": lambda: langevin.DDPMPipeline(tiny.pixel_unet(langevin), langevin.DDPMScheduler()),
    }[kind]()
    pipe.push_to_hub("me/drawn")
    text = hub.files("me/drawn")["README.md"].decode()
    program = text.partition("```python\n")[2].partition("```")[0]
    assert "pipe(" in program
    program = program.replace(").images", f"{'' if 'pipe()' in program else ', '}num_inference_steps=2).images")
    tiny.picture().save(tmp_path / "picture.png")
    tiny.hole().save(tmp_path / "mask.png")
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, cwd=tmp_path, env=outside(hub, tmp_path / "home"), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert (tmp_path / "out.png").is_file()


def test_every_pipeline_has_a_tag_and_a_program() -> None:
    tags = {"text-to-image", "image-to-image", "unconditional-image-generation"}
    for row in PIPELINES:
        if row.task is None:
            continue
        cls = getattr(langevin, row.name)
        assert cards.pipeline_tag(cls) in tags
        compile(cards.snippet(cls.__new__(cls), "me/model"), row.name, "exec")
    assert cards.pipeline_tag(langevin.StableDiffusionInpaintPipeline) == "image-to-image"
    assert cards.pipeline_tag(type("Own", (DiffusionPipeline,), {})) is None


@pytest.mark.parametrize("where", ["repository", "folder"])
def test_a_readme_is_never_overwritten(hub, sd_folder, tmp_path, where) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(sd_folder)
    if where == "folder":
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "README.md").write_text("---\nlicense: mit\n---\nmine")
        pipe.save_pretrained(tmp_path / "model", push_to_hub=True)
    else:
        hub.publish("me/model", {"README.md": b"mine", "notes.txt": b"x"})
        pipe.push_to_hub("me/model")
        assert hub.files("me/model")["notes.txt"] == b"x"
    assert hub.files("me/model")["README.md"].endswith(b"mine")


# Refusals ------------------------------------------------------------------------------------------------------------


def test_what_the_hub_refuses_is_explained(hub, monkeypatch) -> None:
    with pytest.raises(InputError, match=r"'other/x'.*HTTP 403.*no right"):
        vae().push_to_hub("other/x")
    with pytest.raises(InputError, match=r"HTTP 401.*valid `token=`"):
        vae().push_to_hub("x", token="hf_nobody")
    with pytest.raises(InputError, match="valid repository name"):
        vae().push_to_hub("my vae!")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match=r"HTTP 401.*log in"):
        vae().push_to_hub("x")
    hub.down = True
    with pytest.raises(InputError, match="cannot be asked"):
        vae().push_to_hub("x", token="hf_me")
    assert hub.repositories == {}


@pytest.mark.parity
def test_a_public_repository_does_not_pass_for_private(hub) -> None:
    DDIMScheduler().push_to_hub("me/open")
    with pytest.raises(InputError, match="'me/open' exists and is public"):
        vae().push_to_hub("me/open", private=True)
    assert "config.json" not in hub.files("me/open")
    DDIMScheduler().push_to_hub("me/closed", private=True)
    vae().push_to_hub("me/closed", private=True, subfolder="vae")
    diffusers.DDIMScheduler(num_train_timesteps=7).push_to_hub("me/open", private=True)
    assert b": 7," in hub.files("me/open")["scheduler_config.json"], "the peer publishes it"


def test_options_are_checked_before_anything_is_written(hub, sd_folder, tmp_path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(sd_folder)
    for thing in (pipe, pipe.unet, pipe.scheduler):
        with pytest.raises(ConfigError, match="did you mean 'private'"):
            thing.save_pretrained(tmp_path / "x", push_to_hub=True, privat=True)
        with pytest.raises(InputError, match="uploads nothing without push_to_hub=True; repo_id"):
            thing.save_pretrained(tmp_path / "x", repo_id="me/x")
        with pytest.raises(ConfigError, match="did you mean 'push_to_hub'"):
            thing.save_pretrained(tmp_path / "x", push_to_hup=True)
    with pytest.raises(ConfigError, match="varient"):
        pipe.unet.push_to_hub("me/x", varient="fp16")
    with pytest.raises(InputError, match=r"license='mit'.*a UNet2DConditionModel gets none"):
        pipe.unet.push_to_hub("me/x", license="mit")
    with pytest.raises(ConfigError, match="save_config does not accept 'push_to_hup'; did you mean 'push_to_hub'"):
        pipe.scheduler.save_config(tmp_path / "x", push_to_hup=True)
    assert not (tmp_path / "x").exists() and hub.repositories == {}
    push = {"push_to_hub": True, "repo_id": "me/y", "license": "mit"}
    with pytest.raises(InputError, match=r"license='mit' is for the model card.*; a configuration file gets none"):
        pipe.scheduler.save_config(tmp_path / "y", **push)
    with pytest.raises(InputError, match=r"license='mit' is for the model card.*; a subfolder gets none"):
        pipe.save_pretrained(tmp_path / "y", subfolder="part", **push)
    for thing, what in ((pipe.unet, "a UNet2DConditionModel"), (pipe.scheduler, f"a {type(pipe.scheduler).__name__}")):
        with pytest.raises(InputError, match=rf"license='mit' is for the model card.*; {what} gets none"):
            thing.save_pretrained(tmp_path / "y", **push)
    assert not (tmp_path / "y").exists() and hub.repositories == {}
