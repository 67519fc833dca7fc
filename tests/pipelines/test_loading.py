"""Pipelines on disk: both directions with the peer, dispatch, variants, strictness, and saves that are whole."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

import langevin
from langevin import DDPMPipeline, DiffusionPipeline, StableDiffusionPipeline
from langevin.core.errors import ConfigError, InputError, WeightsError
from langevin.core.variants import weights_in
from langevin.pipelines.files import Choices, needed_files
from tests.pipelines import tiny
from tests.pipelines.conftest import quiet

CALL = {"prompt": "a cat", "num_inference_steps": 3, "output_type": "np"}
COMPONENTS = {"vae", "text_encoder", "tokenizer", "unet", "scheduler", "safety_checker", "feature_extractor"}
COMPONENTS |= {"image_encoder"}


def draw(pipe) -> np.ndarray:
    return quiet(pipe)(**CALL, generator=torch.Generator().manual_seed(0)).images


@pytest.fixture
def copy(sd_folder, tmp_path) -> Path:
    """A folder of its own, free to be damaged."""
    return Path(shutil.copytree(sd_folder, tmp_path / "model"))


def edit(folder: Path, **changes) -> None:
    """Change keys of model_index.json."""
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# The format ----------------------------------------------------------------------------------------------------------


@pytest.mark.parity
def test_what_is_saved_here_loads_in_the_peer(sd_folder, tmp_path) -> None:
    ours = StableDiffusionPipeline.from_pretrained(sd_folder)
    ours.save_pretrained(tmp_path / "saved")
    theirs = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert isinstance(theirs, diffusers.StableDiffusionPipeline)
    assert np.abs(draw(theirs) - draw(ours)).max() <= 1e-4
    again = DiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert np.array_equal(draw(again), draw(ours))


@pytest.mark.parity
def test_the_index_has_the_documented_keys(sd_folder, tmp_path) -> None:
    StableDiffusionPipeline.from_pretrained(sd_folder).save_pretrained(tmp_path)
    ours, theirs = (json.loads((folder / "model_index.json").read_text()) for folder in (tmp_path, sd_folder))
    assert ours == theirs
    assert (tmp_path / "model_index.json").read_text().startswith('{\n  "_class_name": "StableDiffusionPipeline",')
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {path.relative_to(sd_folder).as_posix() for path in sd_folder.rglob("*") if path.is_file()}


def test_the_base_class_dispatches(sd_folder) -> None:
    pipe = DiffusionPipeline.from_pretrained(str(sd_folder))
    assert type(pipe) is StableDiffusionPipeline and pipe.name_or_path == str(sd_folder)
    assert set(pipe.components) == COMPONENTS
    text = repr(pipe)
    assert text.startswith("StableDiffusionPipeline {\n  ")
    shown = json.loads(text.removeprefix("StableDiffusionPipeline "))
    assert shown["unet"] == ["diffusers", "UNet2DConditionModel"] and shown["safety_checker"] == [None, None]
    assert list(shown) == sorted(shown)


def test_a_subclass_loads_a_folder_that_names_another_class(copy) -> None:
    edit(copy, _class_name="StableDiffusionSomethingPipeline")
    assert type(StableDiffusionPipeline.from_pretrained(copy)) is StableDiffusionPipeline
    with pytest.raises(ConfigError, match="StableDiffusionSomethingPipeline"):
        DiffusionPipeline.from_pretrained(copy)
    edit(copy, _class_name="StableDifusionPipeline")
    with pytest.raises(ConfigError, match="did you mean 'StableDiffusionPipeline'"):
        DiffusionPipeline.from_pretrained(copy)


def test_old_class_names_are_understood(copy) -> None:
    tiny.feature_extractor().save_pretrained(copy / "feature_extractor")
    edit(copy, feature_extractor=["transformers", "CLIPFeatureExtractor"])
    pipe = StableDiffusionPipeline.from_pretrained(copy)
    assert pipe.config.feature_extractor == ["transformers", "CLIPImageProcessor"]


def test_an_old_repository_keeps_everything_at_its_root(tmp_path) -> None:
    tiny.pixel_unet(langevin).save_pretrained(tmp_path)
    langevin.DDPMScheduler().save_pretrained(tmp_path)
    index = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline", **index}))
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(pipe) is DDPMPipeline and pipe.unet.config.sample_size == 8
    assert langevin.UNet2DModel.from_pretrained(tmp_path).config == pipe.unet.config


def test_a_local_folder_never_touches_the_network(sd_folder, monkeypatch) -> None:
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    StableDiffusionPipeline.from_pretrained(sd_folder)
    with pytest.raises(InputError, match="does not exist"):
        StableDiffusionPipeline.from_pretrained(sd_folder.parent / "modle")


# Components ----------------------------------------------------------------------------------------------------------


def test_a_component_can_be_brought_along_or_left_out(sd_folder) -> None:
    scheduler = tiny.scheduler(langevin, "EulerDiscreteScheduler")
    pipe = DiffusionPipeline.from_pretrained(sd_folder, scheduler=scheduler, vae=None)
    assert pipe.scheduler is scheduler and pipe.vae is None and pipe.unet is not None
    other = StableDiffusionPipeline(**pipe.components)
    assert all(getattr(other, name) is part for name, part in pipe.components.items())


def test_a_component_that_is_not_used_is_not_read(copy) -> None:
    shutil.rmtree(copy / "vae")
    assert StableDiffusionPipeline.from_pretrained(copy, vae=None).vae is None
    with pytest.raises(InputError, match="no folder vae"):
        StableDiffusionPipeline.from_pretrained(copy)


def test_a_missing_component_is_named(copy) -> None:
    edit(copy, unet=[None, None])
    with pytest.raises(ConfigError, match=r"does not list unet.*`unet=\.\.\.`"):
        StableDiffusionPipeline.from_pretrained(copy)


def test_extra_components_are_reported(sd_folder, caplog_ours) -> None:
    unet = tiny.pixel_unet(langevin)
    pipe = DDPMPipeline.from_pretrained(sd_folder, unet=unet)
    assert type(pipe) is DDPMPipeline and pipe.unet is unet
    assert "text_encoder, tokenizer, vae" in caplog_ours.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"torch_dtyp": torch.float16}, "did you mean 'torch_dtype'"),
        ({"shceduler": None}, "did you mean 'scheduler'"),
        ({"torch_dtype": "flaot16"}, "did you mean 'float16'"),
        ({"torch_dtype": torch.int8}, "floating"),
        ({"torch_dtype": torch.float16, "dtype": torch.float32}, "contradict"),
        ({"torch_dtype": {"unett": torch.float16}}, "did you mean 'unet'"),
        ({"scheduler": "ddim"}, "pass a built object"),
        ({"unet": langevin.UNet2DModel}, "the class UNet2DModel"),
        ({"scheduler": torch.nn.Linear(1, 1)}, "no `step`"),
    ],
    ids=str,
)
def test_bad_options(sd_folder, options, words) -> None:
    with pytest.raises(ConfigError, match=words):
        StableDiffusionPipeline.from_pretrained(sd_folder, **options)


def test_code_of_strangers_is_not_run(copy) -> None:
    edit(copy, unet=["my_module", "MyUNet"])
    with pytest.raises(ConfigError, match=r"my_module.*build it yourself"):
        StableDiffusionPipeline.from_pretrained(copy)
    edit(copy, unet=["transformers", "NoSuchModel"])
    with pytest.raises(ConfigError, match="NoSuchModel"):
        StableDiffusionPipeline.from_pretrained(copy)


def test_a_model_folder_is_no_pipeline(sd_folder) -> None:
    with pytest.raises(InputError, match=r"no model_index\.json.*config\.json"):
        DiffusionPipeline.from_pretrained(sd_folder / "unet")


def test_types(sd_folder) -> None:
    half = StableDiffusionPipeline.from_pretrained(sd_folder, torch_dtype=torch.float16)
    assert {half.unet.dtype, half.vae.dtype, half.text_encoder.dtype} == {torch.float16} and half.dtype == torch.float16
    mixed = StableDiffusionPipeline.from_pretrained(
        sd_folder, dtype={"unet": "bfloat16", "default": torch.float16, "vae": torch.float32}
    )
    assert (mixed.unet.dtype, mixed.text_encoder.dtype) == (torch.bfloat16, torch.float16)
    assert mixed.vae.dtype == torch.float32
    assert np.isfinite(draw(mixed)).all()
    plain = StableDiffusionPipeline.from_pretrained(sd_folder)
    assert {plain.unet.dtype, plain.text_encoder.dtype} == {torch.float32}


# Variants and weight files -------------------------------------------------------------------------------------------


def test_variants_live_beside_the_original(copy) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(copy, torch_dtype=torch.float16)
    before = {path for path in copy.rglob("*") if path.is_file()}
    pipe.save_pretrained(copy, variant="fp16")
    assert before < {path for path in copy.rglob("*") if path.is_file()}
    assert (copy / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    assert (copy / "text_encoder" / "model.fp16.safetensors").is_file()
    half = StableDiffusionPipeline.from_pretrained(copy, variant="fp16", torch_dtype="auto")
    assert half.unet.dtype == half.text_encoder.dtype == torch.float16
    assert StableDiffusionPipeline.from_pretrained(copy, torch_dtype="auto").unet.dtype == torch.float32


def test_a_variant_alone_is_taken(sd_folder, tmp_path, caplog_ours) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(sd_folder)
    pipe.save_pretrained(tmp_path / "own", variant="non_ema")
    assert np.array_equal(draw(StableDiffusionPipeline.from_pretrained(tmp_path / "own")), draw(pipe))
    assert "their only variant 'non_ema' is taken" in caplog_ours.text
    assert np.array_equal(
        draw(StableDiffusionPipeline.from_pretrained(tmp_path / "own", variant="non_ema")), draw(pipe)
    )
    with pytest.raises(InputError, match="did you mean 'non_ema'"):
        StableDiffusionPipeline.from_pretrained(tmp_path / "own", variant="non-ema")


def test_a_partial_variant_is_reported(copy, caplog_ours) -> None:
    langevin.UNet2DConditionModel.from_pretrained(copy / "unet").save_pretrained(copy / "unet", variant="fp16")
    StableDiffusionPipeline.from_pretrained(copy, variant="fp16")
    assert "No variant 'fp16' of text_encoder, vae" in caplog_ours.text


def test_pickled_weights(sd_folder, tmp_path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(sd_folder)
    pipe.save_pretrained(tmp_path / "own", safe_serialization=False)
    assert (tmp_path / "own" / "unet" / "diffusion_pytorch_model.bin").is_file()
    assert np.array_equal(draw(StableDiffusionPipeline.from_pretrained(tmp_path / "own")), draw(pipe))
    with pytest.raises(InputError, match="use_safetensors=True"):
        StableDiffusionPipeline.from_pretrained(tmp_path / "own", use_safetensors=True)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("damage", ["truncated", "text", "missing"])
def test_damaged_weights_are_an_error(copy, component, damage) -> None:
    from safetensors.torch import load_file, save_file

    (path,) = (copy / component).glob("*.safetensors")
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    else:
        weights = load_file(path)
        weights.pop(sorted(weights)[-1])
        save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=component):
        StableDiffusionPipeline.from_pretrained(copy)


# Saving --------------------------------------------------------------------------------------------------------------


def test_a_failed_save_leaves_the_old_folder(copy, monkeypatch) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(copy)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(pipe.vae, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        pipe.save_pretrained(copy)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_what_cannot_be_saved_is_refused_first(sd_folder, tmp_path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(sd_folder, unet=torch.nn.Linear(1, 1))
    with pytest.raises(ConfigError, match=r"'unet'.*nothing was written"):
        pipe.save_pretrained(tmp_path / "own")
    assert not (tmp_path / "own").exists()
    with pytest.raises(ConfigError, match="did you mean 'variant'"):
        pipe.save_pretrained(tmp_path / "own", varient="fp16")


def test_options_of_the_constructor_are_kept(sd_folder, tmp_path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(sd_folder, requires_safety_checker=True)
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["requires_safety_checker"] is True


def test_two_answers_about_types_and_strange_components(sd_folder, tmp_path) -> None:
    with pytest.raises(ConfigError, match="pass one of them"):
        StableDiffusionPipeline.from_pretrained(sd_folder, torch_dtype={"unet": "float16"}, dtype={"vae": "float16"})
    for name, pair in (("../unet", ["diffusers", "UNet2DConditionModel"]), ("unet", ["diffusers", 3])):
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline", name: pair}))
        with pytest.raises(ConfigError, match="which is no component and its class"):
            DiffusionPipeline.from_pretrained(tmp_path)


# The hub -------------------------------------------------------------------------------------------------------------


def test_sharded_weights_are_one_kind() -> None:
    names = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "model.fp16-00001-of-00002.bin"]
    names += ["model.bin.index.fp16.json", "config.json"]
    assert weights_in(names) == {(None, "safetensors"), ("fp16", "bin")}
    files = [f"text_encoder/{name}" for name in names]
    needed = needed_files(files, ["text_encoder"], Choices({}, "fp16", False))
    assert [Path(name).name for name in needed] == [
        "model_index.json",
        "config.json",
        "model.bin.index.fp16.json",
        "model.fp16-00001-of-00002.bin",
    ]


def test_every_network_of_a_component_of_several_is_fetched() -> None:
    names = ("config.json", "diffusion_pytorch_model.safetensors")
    folders = ("controlnet", "controlnet_1", "controlnet_extra", "unet")
    files = ["model_index.json", *(f"{folder}/{name}" for folder in folders for name in names)]
    fetched = needed_files(files, ["unet", "controlnet"], Choices({}))
    assert {file.split("/")[0] for file in fetched} == {"model_index.json", "controlnet", "controlnet_1", "unet"}
