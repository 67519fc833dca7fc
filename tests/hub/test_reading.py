"""Reading from the hub: which files, which revision, which variant, and what happens when something is not there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

import langevin
from langevin import DDPMPipeline, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from langevin.core.errors import ConfigError, InputError, WeightsError
from tests.hub.conftest import outside
from tests.pipelines import tiny
from tests.pipelines.conftest import quiet

pytestmark = pytest.mark.hub
REPO = "me/model"
WEIGHTS = "diffusion_pytorch_model"


def draw(pipe) -> np.ndarray:
    call = {"prompt": "a cat", "num_inference_steps": 2, "output_type": "np"}
    return quiet(pipe)(**call, generator=torch.Generator().manual_seed(0)).images


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return list(states[0]) == list(states[1]) and all(
        torch.equal(states[0][name], states[1][name]) for name in states[0]
    )


@pytest.fixture
def folder(sd_folder, tmp_path) -> Path:
    """A folder of its own, free to be changed before it is published."""
    return Path(shutil.copytree(sd_folder, tmp_path / "source"))


@pytest.fixture
def everything(folder) -> Path:
    """A folder with plain weights and a variant, both as safetensors and pickled, and files that nobody needs."""
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    for safe in (True, False):
        pipe.save_pretrained(folder, safe_serialization=safe)
        pipe.save_pretrained(folder, safe_serialization=safe, variant="fp16")
    for dot in (".", ".fp16."):
        torch.save(pipe.text_encoder.state_dict(), folder / "text_encoder" / f"pytorch_model{dot}bin")
    for extra in (
        "model.ckpt",
        "unet/flax_model.msgpack",
        "vae/model.onnx",
        "README.md",
        "unet/run.png",
        "v1.safetensors",
    ):
        (folder / extra).write_text("x")
    return folder


def rename(folder: Path, old: str, new: str) -> None:
    """Turn weight files of every component into a variant, or back."""
    for path in folder.rglob(f"*{old}.safetensors"):
        path.rename(path.with_name(path.name.replace(f"{old}.safetensors", f"{new}.safetensors")))


# Whole pipelines -----------------------------------------------------------------------------------------------------


def test_a_pipeline_comes_as_from_its_folder(hub, sd_folder) -> None:
    hub.publish(REPO, sd_folder)
    pipe = DiffusionPipeline.from_pretrained(REPO)
    assert type(pipe) is StableDiffusionPipeline and pipe.name_or_path == REPO
    assert np.array_equal(draw(pipe), draw(StableDiffusionPipeline.from_pretrained(sd_folder)))


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_only_what_is_needed_is_fetched(hub, everything, variant, kind) -> None:
    hub.publish(REPO, everything)
    StableDiffusionPipeline.from_pretrained(REPO, variant=variant, use_safetensors=kind == "safetensors")
    dot = f".{variant}" if variant else ""
    text = f"pytorch_model{dot}.bin" if kind == "bin" else f"model{dot}.safetensors"
    stored = [f"text_encoder/{text}", *(f"{part}/{WEIGHTS}{dot}.{kind}" for part in ("unet", "vae"))]
    settings = [f"{part}/config.json" for part in ("text_encoder", "unet", "vae")]
    settings += ["model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json"]
    large = {asked.path.split("/", 3)[3] for asked in hub.log if asked.path.startswith("/objects/")}
    assert large == set(stored)
    assert hub.fetched() == sorted([*settings, "tokenizer/tokenizer_config.json"])


def test_a_component_that_is_given_is_not_fetched(hub, sd_folder) -> None:
    hub.publish(REPO, sd_folder)
    unet = UNet2DConditionModel.from_pretrained(sd_folder / "unet")
    hub.log.clear()
    pipe = DiffusionPipeline.from_pretrained(REPO, vae=None, unet=unet)
    assert pipe.unet is unet and pipe.vae is None
    assert not any("/vae/" in asked.path or "/unet/" in asked.path for asked in hub.log)


def test_a_second_load_fetches_nothing(hub, sd_folder, caplog_ours) -> None:
    hub.publish(REPO, sd_folder)
    first = DiffusionPipeline.from_pretrained(REPO)
    hub.log.clear()
    assert same(DiffusionPipeline.from_pretrained(REPO).unet, first.unet)
    assert hub.fetched() == [] and not any(asked.path.startswith("/objects/") for asked in hub.log)
    assert len([asked for asked in hub.log if "agent" not in asked.path]) <= 2
    assert not caplog_ours.text


@pytest.mark.parametrize("trouble", ["down", "gone", "offline", "local_files_only"])
def test_the_cache_serves_when_the_hub_does_not(hub, sd_folder, caplog_ours, monkeypatch, trouble) -> None:
    from huggingface_hub import constants

    hub.publish(REPO, sd_folder)
    first = DiffusionPipeline.from_pretrained(REPO)
    hub.log.clear()
    hub.down = trouble == "down"
    if trouble == "gone":
        hub.stop()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", trouble == "offline")
    options = {"local_files_only": True} if trouble == "local_files_only" else {}
    assert same(DiffusionPipeline.from_pretrained(REPO, **options).vae, first.vae)
    assert ("What the cache holds of it is taken" in caplog_ours.text) == (trouble != "local_files_only")
    assert trouble == "down" or not hub.log
    unet = UNet2DConditionModel.from_pretrained(REPO, subfolder="unet", **options)
    assert same(unet, UNet2DConditionModel.from_pretrained(sd_folder / "unet"))


def test_half_a_cache_is_said_to_be_half(hub, sd_folder) -> None:
    hub.publish(REPO, sd_folder)
    DiffusionPipeline.from_pretrained(REPO, vae=None)
    hub.stop()
    with pytest.raises(InputError, match=r"only a part of 'me/model'.*vae/config\.json, vae/diffusion_pytorch_model"):
        DiffusionPipeline.from_pretrained(REPO)
    with pytest.raises(InputError, match="only a part"):
        langevin.AutoencoderKL.from_pretrained(REPO, subfolder="vae", config=sd_folder / "vae")


def test_download(hub, everything) -> None:
    hub.publish(REPO, everything)
    root = StableDiffusionPipeline.download(REPO, variant="fp16")
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert f"unet/{WEIGHTS}.fp16.safetensors" in files and f"unet/{WEIGHTS}.safetensors" not in files
    assert not any(name.endswith((".bin", ".ckpt", ".png", ".md")) for name in files)
    hub.stop()
    StableDiffusionPipeline.from_pretrained(root, variant="fp16")
    StableDiffusionPipeline.from_pretrained(REPO, variant="fp16")
    with pytest.raises(ConfigError, match="did you mean 'revision'"):
        StableDiffusionPipeline.download(REPO, revison="main")


def test_an_old_repository_keeps_everything_at_its_root(hub, tmp_path) -> None:
    unet = tiny.pixel_unet(langevin)
    unet.save_pretrained(tmp_path / "old", safe_serialization=False)
    langevin.DDPMScheduler().save_pretrained(tmp_path / "old")
    index = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    (tmp_path / "old" / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline", **index}))
    (tmp_path / "old" / "other.bin").write_text("x")
    hub.publish("google/ddpm", tmp_path / "old")
    pipe = DiffusionPipeline.from_pretrained("google/ddpm")
    assert type(pipe) is DDPMPipeline and same(pipe.unet, unet)
    assert same(langevin.UNet2DModel.from_pretrained("google/ddpm"), unet)
    assert "other.bin" not in " ".join(asked.path for asked in hub.log)


def test_shards(hub, folder) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    for part in ("unet", "text_encoder"):
        (next((folder / part).glob("*.safetensors"))).unlink()
    pipe.unet.save_pretrained(folder / "unet", max_shard_size="1MB", variant="fp16")
    pipe.text_encoder.save_pretrained(folder / "text_encoder", max_shard_size="50KB", variant="fp16")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 2 < len(list((folder / "text_encoder").iterdir()))
    hub.publish(REPO, folder)
    loaded = DiffusionPipeline.from_pretrained(REPO, variant="fp16")
    assert same(loaded.unet, pipe.unet) and same(loaded.text_encoder, pipe.text_encoder)
    assert same(UNet2DConditionModel.from_pretrained(REPO, subfolder="unet", variant="fp16"), pipe.unet)


def test_a_repository_of_pickles(hub, sd_folder, tmp_path) -> None:
    unet = UNet2DConditionModel.from_pretrained(sd_folder / "unet")
    unet.save_pretrained(tmp_path / "own", safe_serialization=False)
    hub.publish(REPO, tmp_path / "own")
    assert same(UNet2DConditionModel.from_pretrained(REPO), unet)
    assert same(UNet2DConditionModel.from_pretrained(REPO, use_safetensors=False), unet)
    with pytest.raises(WeightsError, match=r"no diffusion_pytorch_model\.safetensors; change `use_safetensors`.*\.bin"):
        UNet2DConditionModel.from_pretrained(REPO, use_safetensors=True)


# Parts ---------------------------------------------------------------------------------------------------------------


def test_models_schedulers_and_configurations(hub, sd_folder) -> None:
    hub.publish(REPO, sd_folder)
    unet = UNet2DConditionModel.from_pretrained(REPO, subfolder="unet", torch_dtype=torch.float16)
    assert unet.dtype == torch.float16
    assert hub.fetched() == ["unet/config.json"]
    scheduler = langevin.EulerDiscreteScheduler.from_pretrained(REPO, subfolder="scheduler")
    assert scheduler.config.beta_schedule == "scaled_linear"
    config = UNet2DConditionModel.load_config(REPO, subfolder="unet")
    assert config == json.loads((sd_folder / "unet" / "config.json").read_text())
    assert type(langevin.AutoPipelineForImage2Image.from_pretrained(REPO)).__name__ == "StableDiffusionImg2ImgPipeline"


def test_a_subfolder_may_be_deep_and_end_in_a_slash(hub, sd_folder) -> None:
    hub.publish(REPO, {f"a/b/{p.name}": p.read_bytes() for p in (sd_folder / "unet").iterdir()})
    for subfolder in ("a/b", "a/b/"):
        UNet2DConditionModel.from_pretrained(REPO, subfolder=subfolder)


def test_a_local_path_never_asks(hub, sd_folder, monkeypatch) -> None:
    hub.publish("sd/model", sd_folder)
    monkeypatch.chdir(sd_folder.parent.parent)
    (sd_folder.parent.parent / "sd").exists() or (sd_folder.parent.parent / "sd").symlink_to(sd_folder.parent)
    StableDiffusionPipeline.from_pretrained("sd/model")
    UNet2DConditionModel.from_pretrained("./sd/model", subfolder="unet")
    for name in ("./nothing", "~/nothing-at-all", str(sd_folder / "nothing")):
        with pytest.raises(InputError, match="does not exist"):
            DiffusionPipeline.from_pretrained(name)
    assert hub.log == []


# Revisions and caches ------------------------------------------------------------------------------------------------


def test_branch_tag_and_commit(hub, sd_folder, folder) -> None:
    first = hub.publish(REPO, sd_folder)
    hub.repositories[REPO].tags["v1"] = first
    unet = tiny.networks(langevin)["unet"]
    torch.nn.init.ones_(unet.conv_out.bias)
    unet.save_pretrained(folder / "unet")
    second = hub.publish(REPO, folder, branch="next")
    for revision in ("next", second):
        for loaded in (
            UNet2DConditionModel.from_pretrained(REPO, subfolder="unet", revision=revision),
            DiffusionPipeline.from_pretrained(REPO, revision=revision).unet,
        ):
            assert loaded.conv_out.bias.min() == 1
    for revision in (None, "main", "v1", first):
        loaded = DiffusionPipeline.from_pretrained(REPO, revision=revision).unet
        assert not torch.equal(loaded.conv_out.bias, unet.conv_out.bias)
    hub.publish(REPO, folder)
    assert DiffusionPipeline.from_pretrained(REPO).unet.conv_out.bias.min() == 1, "the branch has moved"
    hub.stop()
    assert DiffusionPipeline.from_pretrained(REPO, revision="next").unet.conv_out.bias.min() == 1


def test_a_load_stays_at_one_commit(hub, sd_folder, folder, monkeypatch) -> None:
    from langevin.pipelines import files

    hub.publish(REPO, sd_folder)
    (folder / "unet" / "config.json").write_text("{}")
    read = files.read_json

    def push_meanwhile(path):
        hub.publish(REPO, folder)
        return read(path)

    monkeypatch.setattr(files, "read_json", push_meanwhile)
    DiffusionPipeline.from_pretrained(REPO)


def test_cache_dir_and_force_download(hub, sd_folder, tmp_path) -> None:
    hub.publish(REPO, sd_folder)
    DiffusionPipeline.from_pretrained(REPO, cache_dir=tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "models--me--model" / "snapshots").is_dir() and not (tmp_path / "cache").exists()
    hub.log.clear()
    DiffusionPipeline.from_pretrained(REPO, cache_dir=tmp_path / "elsewhere")
    assert hub.fetched() == []
    DiffusionPipeline.from_pretrained(REPO, cache_dir=tmp_path / "elsewhere", force_download=True)
    assert "unet/config.json" in hub.fetched()
    assert [asked.file for asked in hub.log if asked.method == "GET"].count("model_index.json") == 1
    with pytest.raises(InputError, match="contradict"):
        DiffusionPipeline.from_pretrained(REPO, force_download=True, local_files_only=True)
    hub.stop()
    with pytest.raises(InputError, match="cannot be asked for 'me/model'"):
        DiffusionPipeline.from_pretrained(REPO, cache_dir=tmp_path / "elsewhere", force_download=True)


def test_a_dropped_connection_is_resumed(hub, sd_folder, monkeypatch) -> None:
    hub.publish(REPO, sd_folder)
    name = f"unet/{WEIGHTS}.safetensors"
    hub.drops[name] = [1000, 50_000]
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    unet = UNet2DConditionModel.from_pretrained(REPO, subfolder="unet")
    assert same(unet, UNet2DConditionModel.from_pretrained(sd_folder / "unet"))
    ranges = [asked.range for asked in hub.log if asked.path.endswith(name) and asked.method == "GET"]
    assert [text for text in ranges if text] == ["bytes=1000-", "bytes=51000-"]


def test_a_transfer_that_fails_leaves_no_half_file(hub, sd_folder, tmp_path) -> None:
    hub.publish(REPO, sd_folder)
    name = f"unet/{WEIGHTS}.safetensors"
    hub.drops[name] = [0] * 50
    with pytest.raises(InputError, match="'me/model'"):
        UNet2DConditionModel.from_pretrained(REPO, subfolder="unet")
    hub.drops.clear()
    assert same(
        UNet2DConditionModel.from_pretrained(REPO, subfolder="unet"),
        UNet2DConditionModel.from_pretrained(sd_folder / "unet"),
    )


def test_threads_load_together(hub, sd_folder) -> None:
    hub.publish(REPO, sd_folder)
    hub.delay = 0.05
    found, errors = [], []

    def load() -> None:
        try:
            found.append(UNet2DConditionModel.from_pretrained(REPO, subfolder="unet"))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and len(found) == 4 and all(same(unet, found[0]) for unet in found)
    times = [asked for asked in hub.log if asked.method == "GET" and asked.path.endswith(f"{WEIGHTS}.safetensors")]
    assert len([asked for asked in times if asked.path.startswith("/objects/")]) == 1


def test_processes_load_together_by_environment_alone(hub, sd_folder, tmp_path) -> None:
    hub.publish(REPO, sd_folder, private=True)
    program = (
        "import langevin; print(langevin.DiffusionPipeline.from_pretrained('me/model').unet.conv_out.bias.sum().item())"
    )
    command = [sys.executable, "-c", program]
    places = {
        "env": outside(hub, tmp_path / "home"),
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    runs = [subprocess.Popen(command, **places) for _ in range(2)]
    said = [(run.communicate(), run.returncode) for run in runs]
    assert [code for _, code in said] == [0, 0], said
    assert said[0][0][0] == said[1][0][0]


# Variants ------------------------------------------------------------------------------------------------------------


def test_the_only_variant_is_taken(hub, folder, caplog_ours) -> None:
    rename(folder, "", ".fp16")
    hub.publish(REPO, folder)
    pipe = DiffusionPipeline.from_pretrained(REPO)
    assert "their only variant 'fp16' is taken" in caplog_ours.text
    assert all(part in caplog_ours.text for part in ("unet", "vae", "text_encoder"))
    assert caplog_ours.text.count("variant 'fp16' is taken") == 1
    UNet2DConditionModel.from_pretrained(REPO, subfolder="unet")
    assert "model/unet has no plain weights; its only variant 'fp16' is taken" in caplog_ours.text
    assert same(pipe.unet, UNet2DConditionModel.from_pretrained(folder / "unet", variant="fp16"))


@pytest.mark.parity
def test_a_variant_alone_needs_no_name(folder, caplog_ours) -> None:
    """The peer refuses a folder in which only a variant lies."""
    rename(folder, "", ".non_ema")
    with pytest.raises((OSError, ValueError)):
        diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    assert UNet2DConditionModel.from_pretrained(folder / "unet").config.sample_size == 8
    assert StableDiffusionPipeline.from_pretrained(folder).unet is not None


def test_among_several_variants_nobody_chooses(hub, folder) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.unet.save_pretrained(folder / "unet", variant="ema")
    pipe.unet.save_pretrained(folder / "unet", variant="fp16.v2")
    (folder / "unet" / f"{WEIGHTS}.safetensors").unlink()
    hub.publish(REPO, folder)
    words = rf"several variants: pass variant='ema' or variant='fp16\.v2'.*{WEIGHTS}\.ema\.safetensors, {WEIGHTS}\.fp16"
    with pytest.raises(InputError, match=f"'unet'.*{words}"):
        DiffusionPipeline.from_pretrained(REPO)
    with pytest.raises(WeightsError, match=f"model/unet has no.*{words}"):
        UNet2DConditionModel.from_pretrained(REPO, subfolder="unet")
    assert not any(asked.path.startswith("/objects/") for asked in hub.log), "nothing large was fetched"
    for variant in ("ema", "fp16.v2"):
        assert same(UNet2DConditionModel.from_pretrained(REPO, subfolder="unet", variant=variant), pipe.unet)
        assert same(DiffusionPipeline.from_pretrained(REPO, variant=variant).unet, pipe.unet)


def test_plain_weights_come_before_a_variant(hub, everything, caplog_ours) -> None:
    for path in everything.rglob(f"{WEIGHTS}.safetensors"):
        path.unlink()
    hub.publish(REPO, everything)
    UNet2DConditionModel.from_pretrained(REPO, subfolder="unet")
    assert any(asked.path.endswith(f"unet/{WEIGHTS}.bin") for asked in hub.log)
    assert not caplog_ours.text


def test_an_absent_variant_is_an_error_before_anything_is_fetched(hub, everything) -> None:
    hub.publish(REPO, everything)
    with pytest.raises(
        InputError, match=r"variant 'fp61'; did you mean 'fp16'\? Files there: text_encoder/model\.fp16"
    ):
        DiffusionPipeline.from_pretrained(REPO, variant="fp61")
    with pytest.raises(WeightsError, match=rf"leave `variant` out\. Files there: config\.json, {WEIGHTS}\.bin"):
        UNet2DConditionModel.from_pretrained(REPO, subfolder="unet", variant="bf16")
    assert not any(asked.path.startswith("/objects/") for asked in hub.log)


def test_a_variant_of_some_components(hub, folder, caplog_ours) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    unet.save_pretrained(folder / "unet", variant="fp16")
    hub.publish(REPO, folder)
    DiffusionPipeline.from_pretrained(REPO, variant="fp16")
    assert "No variant 'fp16' of text_encoder, vae" in caplog_ours.text
    large = {asked.path.rpartition("/")[2] for asked in hub.log if asked.path.startswith("/objects/")}
    assert large == {f"{WEIGHTS}.fp16.safetensors", f"{WEIGHTS}.safetensors", "model.safetensors"}


# What is not there, and what is not allowed --------------------------------------------------------------------------


def test_a_missing_repository(hub) -> None:
    for load in (DiffusionPipeline, UNet2DConditionModel, langevin.DDIMScheduler):
        with pytest.raises(InputError, match=r"neither a local folder nor a repository.*`hf auth login` or `token=`"):
            load.from_pretrained("me/nothing")
    with pytest.raises(InputError, match="valid repository name"):
        DiffusionPipeline.from_pretrained("me/no thing")


def test_a_missing_revision(hub, sd_folder) -> None:
    hub.publish(REPO, sd_folder)
    hub.repositories[REPO].branches["release"] = hub.repositories[REPO].branches["main"]
    for load in (DiffusionPipeline, UNet2DConditionModel):
        with pytest.raises(InputError, match="no branch, tag or commit 'relaese'; did you mean 'release'"):
            load.from_pretrained(REPO, revision="relaese")


def test_missing_files(hub, sd_folder) -> None:
    hub.publish(REPO, sd_folder)
    with pytest.raises(InputError, match=r"no config\.json; it has: model_index\.json"):
        UNet2DConditionModel.from_pretrained(REPO)
    with pytest.raises(InputError, match=r"no unit/config\.json; it has: .*unet/config\.json"):
        UNet2DConditionModel.from_pretrained(REPO, subfolder="unit")
    hub.publish("me/unet", sd_folder / "unet")
    with pytest.raises(InputError, match=r"no model_index\.json; it has: config\.json"):
        DiffusionPipeline.from_pretrained("me/unet")
    hub.publish("me/empty", {"config.json": (sd_folder / "unet" / "config.json").read_bytes()})
    with pytest.raises(WeightsError, match=r"me/empty has no .*the folder holds no weights"):
        UNet2DConditionModel.from_pretrained("me/empty")


def test_a_gated_repository(hub, sd_folder, logged_in) -> None:
    hub.publish("other/gated", sd_folder, gated=True)
    for load in (DiffusionPipeline, langevin.DDIMScheduler):
        with pytest.raises(InputError, match=r"gated: accept its terms on http://127.*other/gated and log in"):
            load.from_pretrained("other/gated")
    assert DiffusionPipeline.from_pretrained("other/gated", token="hf_other").unet is not None


def test_a_private_repository_and_tokens(hub, sd_folder, monkeypatch) -> None:
    hub.publish(REPO, sd_folder, private=True)
    with pytest.raises(InputError, match="a private one needs"):
        DiffusionPipeline.from_pretrained(REPO)
    with pytest.raises(InputError, match="a private one needs"):
        DiffusionPipeline.from_pretrained(REPO, token="hf_other")
    with pytest.raises(InputError, match=r"HTTP 401.*pass a valid `token=`"):
        DiffusionPipeline.from_pretrained(REPO, token="hf_nobody")
    hub.log.clear()
    pipe = DiffusionPipeline.from_pretrained(REPO, token="hf_me")
    UNet2DConditionModel.from_pretrained(REPO, subfolder="unet", token="hf_me")
    assert pipe.unet is not None
    assert {asked.token for asked in hub.log if asked.path.startswith("/objects/")} == {None}, "no token to the store"
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    langevin.PNDMScheduler.from_pretrained(REPO, subfolder="scheduler", force_download=True)


def test_a_hub_that_does_not_answer(hub) -> None:
    hub.down = True
    with pytest.raises(InputError, match="the hub does not answer; check the spelling of the path, or the network"):
        DiffusionPipeline.from_pretrained(REPO)
    with pytest.raises(InputError, match="must not be asked"):
        UNet2DConditionModel.from_pretrained(REPO, local_files_only=True)
    with pytest.raises(InputError, match="HTTPS_PROXY"):
        DiffusionPipeline.from_pretrained(REPO, proxies={"https": "x"})
