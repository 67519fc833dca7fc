"""What `inspect` says of a zoo of files: networks of full size, adapters in their dialects, damage, folders, fits."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import langevin
from langevin.cli import main
from langevin.cli.inspect import report
from langevin.core.errors import InputError
from langevin.weights.contents import amount
from langevin.weights.inspect import Inspection, inspect
from tests.data.published_configs import SD15, SD21, SDXL
from tests.weights import zoo

SHIPPED = Path(langevin.__file__).parent / "picturebook" / "model"


@pytest.fixture(autouse=True)
def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to read values and to load pickles in the usual way."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("langevin.core.weights_io.TensorFile.read", refuse)
    monkeypatch.setattr("langevin.core.weights_io.TensorFile.view", refuse)
    monkeypatch.setattr(torch, "load", refuse)


class Animal:
    """A file of the zoo: its tensors, its metadata, and what is to be said of it."""

    def __init__(self, shapes: Callable[[], zoo.Shapes], kind: str, family: str | None, *said: str, **more: Any):
        self.shapes, self.kind, self.family, self.said = shapes, kind, family, said
        self.metadata = more.pop("metadata", None)
        self.details = more


def sd_lora(spell: Callable[[str], str], *ends: str, **options: Any) -> zoo.Shapes:
    return zoo.lora(zoo.attentions(zoo.unet(SD15)), spell, (ends[0], ends[1]), **options)


V = {"v_pred": (0,), "ztsnr": (0,)}
WORDS = {"modelspec.prediction_type": "v", "modelspec.title": "mine", "modelspec.trigger_phrase": "a wug"}
TRAINED = {
    "ss_network_alpha": "8",
    "ss_sd_model_name": "base.safetensors",
    "ss_tag_frequency": json.dumps({"10_cat": {"cat": 30, "tree": 12}, "5_dog": {"cat": 1, "dog": 5}}),
}
ZOO: dict[str, Animal] = {
    "sd1": Animal(
        zoo.sd1, "checkpoint", "sd1", "StableDiffusionPipeline", "1.07 G", "unet 860 M",
        predicts="epsilon", resolution=512,
    ),
    "sd1-inpaint": Animal(
        lambda: zoo.sd1(**zoo.FEW_SD, in_channels=9), "checkpoint", "sd1", "StableDiffusionInpaintPipeline",
        task="inpainting",
    ),
    "sd1-instruct": Animal(lambda: zoo.sd1(**zoo.FEW_SD, in_channels=8), "checkpoint", "sd1", task="instruction"),
    "sd2": Animal(zoo.sd2, "checkpoint", "sd2", "768-pixel kind of SD 2", predicts="v_prediction", resolution=768),
    "sd2-said": Animal(
        lambda: zoo.sd2(**zoo.FEW_SD), "checkpoint", "sd2", "mine", "a wug", predicts="v_prediction", metadata=WORDS
    ),
    "sd2-depth": Animal(lambda: zoo.sd2(**zoo.FEW_SD, in_channels=5), "checkpoint", "sd2", task="depth"),
    "sd2-upscale": Animal(zoo.upscaler, "checkpoint", "sd2", task="upscaling", predicts="v_prediction"),
    "sdxl": Animal(zoo.sdxl, "checkpoint", "sdxl", "Stable Diffusion XL", predicts="epsilon", resolution=1024),
    "sdxl-v": Animal(
        lambda: {**zoo.sdxl(**zoo.FEW_XL), **V}, "checkpoint", "sdxl", "zero terminal SNR", predicts="v_prediction"
    ),
    "refiner": Animal(zoo.refiner, "checkpoint", "sdxl-refiner", "refiner"),
    "original unet": Animal(lambda: zoo.original_unet(SDXL, prefix=""), "unet", "sdxl", "original names"),
    "unet in a checkpoint": Animal(lambda: zoo.original_unet(SD15), "unet", "sd1", "original names"),
    "original vae": Animal(lambda: zoo.original_vae(""), "vae", None, "original names"),
    "taesd": Animal(zoo.taesd, "vae", None, "small convolutional blocks"),
    "controlnet": Animal(zoo.control, "controlnet", "sd1", "ControlNet for Stable Diffusion 1"),
    "own unet": Animal(lambda: zoo.unet(SD15), "unet", "sd1", "diffusers names", channels="4 in, 4 out"),
    "own unet sd2": Animal(lambda: zoo.unet(SD21), "unet", "sd2"),
    "own unet xl": Animal(lambda: zoo.unet(SDXL), "unet", "sdxl"),
    "own unet for inpainting": Animal(lambda: zoo.unet(SD15, in_channels=9), "unet", "sd1", task="inpainting"),
    "own vae": Animal(lambda: zoo.own("AutoencoderKL", **zoo.VAE_CONFIG), "vae", None, "AutoencoderKL"),
    "own tiny vae": Animal(lambda: zoo.own("AutoencoderTiny"), "vae", None, "AutoencoderTiny"),
    "own unconditional": Animal(lambda: zoo.own("UNet2DModel"), "unet", None, "UNet2DModel"),
    "own controlnet": Animal(lambda: zoo.own("ControlNetModel", cross_attention_dim=1024), "controlnet", "sd2"),
    "own adapter": Animal(lambda: zoo.own("T2IAdapter"), "t2i-adapter", None, "T2IAdapter"),
    "clip": Animal(zoo.clip_text, "text encoder", None, "CLIPTextModel", width=768, layers=12),
    "flux": Animal(lambda: {"double_blocks.0.img_attn.qkv.weight": (9, 3)}, "transformer", "flux", "no class for it"),
    "esrgan": Animal(lambda: {"conv_first.weight": (3, 3), "conv_body.weight": (3, 3)}, "upscaler", "esrgan"),
    "unknown": Animal(lambda: {"foo.a": (2,), "foo.b": (2,), "bar.c": (2,)}, "unknown", None, "foo.* (2), bar.* (1)"),
    "kohya": Animal(
        lambda: zoo.kohya(zoo.attentions(zoo.unet(SD15)), rank=16), "lora", "sd1", "kohya names", "cat (31), tree (12)",
        "base.safetensors", rank=16, alpha="8", layers=128, metadata=TRAINED,
    ),
    "kohya xl": Animal(lambda: zoo.kohya(zoo.attentions(zoo.unet(SDXL)), rank=32), "lora", "sdxl", rank=32, layers=560),
    "peft": Animal(lambda: sd_lora(lambda p: f"unet.{p}", "lora_A.weight", "lora_B.weight"), "lora", "sd1", rank=8),
    "diffusers": Animal(lambda: sd_lora(lambda p: f"unet.{p}", "lora.down.weight", "lora.up.weight"), "lora", "sd1"),
    "half a lora": Animal(
        lambda: {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 8)}, "lora", None, "It is incomplete:"
    ),
    "ip-adapter": Animal(lambda: zoo.ip_adapter(zoo.unet(SD15)), "ip-adapter", "sd1", "IP-Adapter for Stable"),
    "ip-adapter xl": Animal(lambda: zoo.ip_adapter(zoo.unet(SDXL)), "ip-adapter", "sdxl"),
    "custom diffusion": Animal(
        lambda: {f"mid_block.attn2.processor.to_{x}_custom_diffusion.weight": (8, 4) for x in "kv"},
        "custom diffusion", None, "Custom diffusion", attentions=1,
    ),
    "a1111 word": Animal(lambda: {"emb_params": (4, 768)}, "textual inversion", "sd1", "(the file's name)", vectors=4),
    "sdxl embedding": Animal(lambda: {"clip_l": (2, 768), "clip_g": (2, 1280)}, "textual inversion", "sdxl", vectors=2),
    "learned word": Animal(lambda: {"<cat>": (1024,)}, "textual inversion", "sd2", words=["<cat>"], vectors=1),
}  # fmt: skip


PICKLED = ("sd1", "sdxl-v", "original vae", "own unet", "kohya xl", "ip-adapter", "learned word", "half a lora")
FILES = [(name, "safetensors") for name in ZOO] + [(name, "ckpt") for name in PICKLED]


@pytest.mark.parametrize(("name", "form"), FILES)
def test_the_zoo(tmp_path: Path, name: str, form: str) -> None:
    animal = ZOO[name]
    shapes = animal.shapes()
    if form == "safetensors":
        found = inspect(zoo.write(tmp_path / f"{name}.safetensors", shapes, animal.metadata))
        assert found.metadata == (animal.metadata or {})
    else:
        found = inspect(zoo.pickled(tmp_path / f"{name}.ckpt", shapes, lambda state: {"state_dict": state, "epoch": 3}))
        assert found.metadata["epoch"] == "3"
    assert (found.kind, found.family) == (animal.kind, animal.family)
    assert {key: found.details.get(key) for key in animal.details} == animal.details
    assert found.tensors == len(shapes)
    assert found.parameters == sum(torch.Size(shape).numel() for shape in shapes.values())
    assert found.dtypes == {"float16" if form == "safetensors" else "float32": found.parameters}
    text = str(found)
    assert all(words in text for words in animal.said), text
    assert all(len(line) < 125 for line in text.splitlines()), text
    assert json.loads(json.dumps(found.as_dict()))["kind"] == animal.kind
    assert found.ok == (name != "half a lora")
    assert found.reasons or found.kind == "unknown"


@pytest.mark.parametrize("kept", [dict, torch.nn.ParameterDict])
@pytest.mark.parametrize("new", [True, False])
def test_pickled_embeddings_of_a1111(tmp_path: Path, new: bool, kept: Callable) -> None:
    state = {"string_to_token": {"*": torch.tensor(265)}, "name": "wug", "step": 500}
    state["string_to_param"] = kept({"*": torch.zeros(3, 768)})
    torch.save(state | {"sd_checkpoint_name": "v1-5"}, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
    found = inspect(tmp_path / "x.pt")
    assert (found.kind, found.family, found.details["words"]) == ("textual inversion", "sd1", ["wug"])
    assert "trained on          v1-5" in str(found)


# -- damage -----------------------------------------------------------------------------------------------------------

IMPOSTERS = {
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 334643238\n",
        "git-LFS pointer.*335 MB",
    ),
    "html": (b"<!DOCTYPE html><html>Sign in</html>", "an HTML page"),
    "json": (b'{"error": "Repository not found"}', "a JSON file"),
    "xml": (b"<?xml version='1.0'?><Error/>", "an XML message"),
    "empty": (b"", "an empty file"),
    "zeros": (b"\0" * 5000, "filled with zeros"),
    "text": (b"Entry not found", "a text file"),
    "picture": (b"\x89PNG\r\n\x1a\n" + b"\0" * 99, "a PNG picture"),
    "noise": (bytes(range(255, 100, -1)) * 9, "binary data"),
    "header": (b"\xff\0\0\0\0\0\0\0{" + b"x" * 300, "damaged safetensors header"),
    "zip": (b"PK\x03\x04" + b"x" * 300, "damaged or cut short"),
    "pickle": (
        b"\x80\x02cos\nsystem\n(X\x05\x00\x00\x00touchtR.",
        r"^It wants to run code when it is opened \(os\.system\)",
    ),
}


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt", "pt"])
@pytest.mark.parametrize("name", IMPOSTERS)
def test_files_that_are_no_weights(tmp_path: Path, name: str, suffix: str) -> None:
    content, said = IMPOSTERS[name]
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(content)
    found = inspect(path)
    assert found.kind == "no weights" and not found.ok and found.tensors == 0
    (sentence,) = found.damage
    assert sentence.startswith("It ") and sentence.endswith(".") and "\n" not in sentence
    assert re.search(said, sentence)
    assert found.damage[0].split()[0] in str(found)


@pytest.mark.parametrize("magic,name", [(b"GGUF\3\0\0\0", "GGUF"), (b"\x89HDF\r\n\x1a\n", "HDF5 (Keras)")])
def test_weights_of_other_programs(tmp_path: Path, magic: bytes, name: str) -> None:
    (tmp_path / "a.bin").write_bytes(magic + b"\0" * 99)
    assert inspect(tmp_path / "a.bin").kind == f"{name} file"


def test_a_truncated_file_is_still_known(tmp_path: Path) -> None:
    path = zoo.write(tmp_path / "model.safetensors", zoo.unet(SD15))
    with open(path, "rb") as file:
        header = zoo.header_length(file)
    for length in (header, header + 1, 3_000_000, path.stat().st_size - 1):
        found = inspect(zoo.cut(path, length))
        assert (found.kind, found.family) == ("unet", "sd1")
        assert (
            len(found.damage) == 1 and f"truncated: its header speaks of {path.stat().st_size} bytes" in found.damage[0]
        )
    for length in (9, 1000, header - 1):
        found = inspect(zoo.cut(path, length))
        assert found.kind == "no weights" and "truncated" in found.damage[0]


def test_wrong_endings_are_told(tmp_path: Path) -> None:
    path = zoo.write(tmp_path / "word.bin", {"<cat>": (768,)})
    assert inspect(path).damage == ("Its name ends in .bin and it is safetensors; call it word.safetensors.",)
    path = zoo.pickled(tmp_path / "word.safetensors", {"<cat>": (768,)})
    assert inspect(path).damage == ("Its name ends in .safetensors and it is a torch archive; call it word.ckpt.",)
    assert inspect(zoo.write(tmp_path / "word.xyz", {"<cat>": (768,)})).ok


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match=r"did you mean 'model\.safetensors'"):
        inspect(tmp_path / "modl.safetensors")
    assert inspect(tmp_path / "model.safetensors").damage
    (tmp_path / "empty").mkdir()
    assert inspect(tmp_path / "empty").damage == ("The folder holds no weights. It is empty.",)


@pytest.mark.parametrize("name", ["sd1", "sdxl-v", "controlnet", "taesd", "own unet", "kohya", "ip-adapter", "own vae"])
def test_mutated_names_and_shapes_are_answered_and_never_raise(tmp_path: Path, name: str) -> None:
    shapes, draw = ZOO[name].shapes(), random.Random(0)
    for share in (0.02, 0.1, 0.5, 0.99):
        mutated = {}
        for key, shape in shapes.items():
            change = draw.random()
            if change < share / 4:
                continue
            if change < share:
                shape = draw.choice([(), shape[:-1], (*shape, 3), (0, *shape), shape[::-1]])
                key = key.replace(".", "_", 1) if change > 0.9 * share else key
            mutated[key] = tuple(side % 64 for side in shape)
        found = inspect(zoo.write(tmp_path / "x.safetensors", mutated), model=unet_model(SD15))
        assert str(found) and json.dumps(found.as_dict()) and found.fit is not None and not found.fit.fits


# -- folders ----------------------------------------------------------------------------------------------------------


def test_the_shipped_pipeline() -> None:
    found = inspect(SHIPPED)
    assert found.kind == "pipeline folder" and found.ok
    assert found.details["class"] == "StableDiffusionPipeline" and found.details["predicts"] == "v_prediction"
    kinds = {"scheduler", "text_encoder", "tokenizer", "unet", "vae"}
    assert {name: part.kind for name, part in found.parts.items()} == {name: name.replace("_", " ") for name in kinds}
    assert found.parameters == sum(part.parameters for part in found.parts.values()) > 10**7
    assert "unet          UNet2DConditionModel (8.05 M float16)" in str(found)
    assert json.dumps(found.as_dict())


def copied(source: Path, target: Path) -> Path:
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())
    return target


def test_damaged_pipelines(tmp_path: Path) -> None:
    folder = copied(SHIPPED, tmp_path / "pipe")
    (weights,) = (folder / "unet").glob("*.safetensors")
    os.truncate(weights, weights.stat().st_size - 9)
    (folder / "vae" / "config.json").write_text("{")
    for file in (folder / "tokenizer").iterdir():
        file.unlink()
    (folder / "tokenizer").rmdir()
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"safety_checker": ["evil", "Evil"], "../x": ["diffusers", "UNet2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    found = inspect(folder)
    text = str(found)
    assert not found.ok
    assert "unet: It is truncated" in text and "vae: config.json is not a JSON file" in text
    assert "'tokenizer' (CLIPTokenizer) has no folder" in text and "'../x', which is no name" in text
    assert "safety_checker is a Evil of 'evil'" in text


def test_variants_and_shards(tmp_path: Path) -> None:
    shapes = zoo.own("UNet2DModel")
    names = sorted(shapes)
    halves = {name: shapes[name] for name in names[:50]}, {name: shapes[name] for name in names[50:]}
    stem = "diffusion_pytorch_model"
    files = [f"{stem}-0000{k}-of-00002.safetensors" for k in (1, 2)]
    for file, half in zip(files, halves, strict=True):
        zoo.write(tmp_path / file, half)
    table = {name: file for file, half in zip(files, halves, strict=True) for name in half}
    (tmp_path / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    zoo.write(tmp_path / f"{stem}.fp16.safetensors", shapes)
    found = inspect(tmp_path)
    assert (found.kind, found.tensors, found.details["shards"]) == ("unet", len(shapes), 2) and found.ok
    assert [v.split()[0] for v in found.details["variants"]] == ["plain", "fp16"]
    (tmp_path / files[1]).unlink()
    found = inspect(tmp_path)
    assert not found.ok and f"does not hold: {files[1]}" in found.damage[0]


def test_folders_without_weights_or_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    found = inspect(tmp_path)
    assert (found.kind, found.details) == ("no weights", {"class": "UNet2DModel"})
    assert found.damage == ("The folder holds no weights; it holds config.json.",)
    (tmp_path / "config.json").unlink()
    zoo.write(tmp_path / "diffusion_pytorch_model.safetensors", zoo.own("UNet2DModel"))
    found = inspect(tmp_path)
    assert (found.kind, found.details["class"]) == ("unet", "UNet2DModel")
    adapter = zoo.write(tmp_path / "ip.safetensors", zoo.ip_adapter(zoo.unet(SD15)))
    assert fit(adapter, zoo.network("AutoencoderTiny", "{}")).notes == ("The model has no UNet; it has vae.",)


def test_folders_of_adapters(tmp_path: Path) -> None:
    zoo.write(tmp_path / "pytorch_lora_weights.safetensors", zoo.kohya(zoo.attentions(zoo.unet(SD15))))
    assert inspect(tmp_path).kind == "lora"
    zoo.write(tmp_path / "word.safetensors", {"<cat>": (768,)})
    found = inspect(tmp_path)
    assert found.kind == "folder of weight files" and found.parts["word.safetensors"].details["words"] == ["<cat>"]


# -- fits -------------------------------------------------------------------------------------------------------------


def fit(path: Path, model: Any) -> Any:
    found = inspect(path, model=model).fit
    assert found is not None and str(found) in str(found) and json.dumps(found.as_dict())
    return found


def unet_model(config: dict[str, Any]) -> torch.nn.Module:
    return zoo.network("UNet2DConditionModel", json.dumps(config))


def test_a_network_and_its_own_model(tmp_path: Path) -> None:
    shapes = zoo.unet(SD15)
    path = zoo.write(tmp_path / "a.safetensors", shapes)
    assert fit(path, unet_model(SD15)).fits
    wrong = {**zoo.without(shapes, ["conv_in.bias"]), "conv_in.bais": (320,), "conv_out.bias": (5,)}
    found = fit(zoo.write(path, wrong), unet_model(SD15))
    assert not found.fits and not inspect(path, model=unet_model(SD15)).ok
    assert found.missing == ("conv_in.bias",) and found.unexpected == ("conv_in.bais",)
    assert found.mismatched == (("conv_out.bias", (5,), (4,)),)
    assert found.nearest == {"conv_in.bias": "conv_in.bais", "conv_in.bais": "conv_in.bias"}
    assert "conv_in.bais, nearest: conv_in.bias" in str(found)


def test_checkpoints_and_networks_of_either_layout(tmp_path: Path) -> None:
    config = {**SD15, **zoo.FEW_SD}
    whole = zoo.write(tmp_path / "v1.safetensors", zoo.sd1(**zoo.FEW_SD))
    paint = zoo.write(tmp_path / "paint.safetensors", zoo.sd1(**zoo.FEW_SD, in_channels=9))
    alone = zoo.write(tmp_path / "alone.safetensors", zoo.original_unet(config))
    own = zoo.write(tmp_path / "own.safetensors", zoo.unet(config))
    other = zoo.write(tmp_path / "xl.safetensors", zoo.sdxl(**zoo.FEW_XL))
    vae = zoo.write(tmp_path / "vae.safetensors", zoo.original_vae(""))
    assert all(fit(one, two).fits for one in (alone, own) for two in (whole, unet_model(config), own, alone))
    assert fit(whole, unet_model(config)).fits and fit(vae, whole).fits and fit(vae, other).fits
    found = fit(paint, whole)
    assert found.mismatched == (("unet.conv_in.weight", (320, 9, 3, 3), (320, 4, 3, 3)),) and not found.missing
    found = fit(other, whole)
    assert found.notes[0] == "It is made for Stable Diffusion XL, and the model is Stable Diffusion 1."
    assert fit(vae, own).notes == ("The file holds vae; the model has unet.",) and not fit(vae, own).fits
    control = zoo.write(tmp_path / "control.safetensors", zoo.control(**zoo.FEW_DOWN))
    assert fit(control, whole).fits and not fit(control, other).fits


def test_the_whole_tower_of_openclip_fits_the_encoder_that_uses_all_but_its_last_layer(tmp_path: Path) -> None:
    whole = zoo.write(tmp_path / "whole.safetensors", zoo.sd2(**zoo.FEW_SD))
    used = [name for name in zoo.sd2(**zoo.FEW_SD) if ".resblocks.23." not in name and "text_projection" not in name]
    shapes = zoo.sd2(**zoo.FEW_SD)
    cut = zoo.write(tmp_path / "cut.safetensors", {name: shapes[name] for name in used})
    assert fit(whole, cut).fits and fit(cut, whole).fits


def test_adapters_and_models(tmp_path: Path) -> None:
    layers = zoo.attentions(zoo.unet(SD15))
    lora = zoo.write(tmp_path / "lora.safetensors", zoo.kohya(layers))
    assert fit(lora, unet_model(SD15)).notes == ("It changes 128 layers of the unet.",)
    found = fit(lora, unet_model(SD21))
    assert (
        not found.fits and found.notes[0] == "It is made for Stable Diffusion 1, and the model is Stable Diffusion 2."
    )
    assert found.mismatched
    misspelt = {name.replace("mid_block", "midd_block"): shape for name, shape in zoo.kohya(layers).items()}
    found = fit(zoo.write(tmp_path / "b.safetensors", misspelt), unet_model(SD15))
    assert not found.fits and len(found.unexpected) == 24
    assert all(near == name.replace("midd_block", "mid_block") for name, near in found.nearest.items())
    whole = zoo.write(tmp_path / "v1.safetensors", zoo.sd1())
    assert fit(lora, whole).fits
    adapter = zoo.write(tmp_path / "ip.safetensors", zoo.ip_adapter(zoo.unet(SD15)))
    assert fit(adapter, whole).fits
    adapter = zoo.write(tmp_path / "ipxl.safetensors", zoo.ip_adapter(zoo.unet(SDXL)))
    assert "60 of [1280, 2048]" in fit(adapter, whole).notes[1]
    assert fit(zoo.write(tmp_path / "e.safetensors", {"emb_params": (4, 768)}), whole).fits
    found = fit(zoo.write(tmp_path / "f.safetensors", {"clip_l": (4, 768), "clip_g": (4, 1280)}), whole)
    assert found.mismatched == (("clip_g", (4, 1280), (49408, 768)),)
    assert not fit(tmp_path / "e.safetensors", unet_model(SD15)).fits


def test_original_names_in_adapters(tmp_path: Path) -> None:
    """Adapters for SDXL name the layers as the checkpoint does."""
    own, authors = zoo.unet(SDXL), zoo.original_unet(SDXL, prefix="")
    names = {name.removesuffix(".weight"): shape for name, shape in authors.items() if name.endswith("to_q.weight")}
    path = zoo.write(tmp_path / "xl.safetensors", zoo.kohya(names))
    assert fit(path, unet_model(SDXL)).notes == (f"It changes {len(names)} layers of the unet.",)
    assert len(names) == sum(name.endswith("to_q.weight") for name in own)


def test_a_folder_and_a_pipeline(tmp_path: Path) -> None:
    (weights,) = (SHIPPED / "unet").glob("*.safetensors")
    assert fit(SHIPPED, SHIPPED).fits and fit(weights, SHIPPED).fits and fit(SHIPPED / "unet", SHIPPED).fits
    broken = zoo.write(tmp_path / "a.safetensors", zoo.unet(SD15))
    assert not fit(broken, SHIPPED).fits
    assert fit(broken, tmp_path).fits, "the only file of a folder without a configuration is the model"
    with pytest.raises(InputError, match="give a pipeline, a network, or the path of one"):
        inspect(weights, model=3)
    with pytest.raises(InputError, match="does not exist"):
        inspect(weights, model=tmp_path / "nowhere")
    with pytest.raises(InputError, match="no networks to compare with"):
        inspect(weights, model=SHIPPED / "scheduler")


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def command(*arguments: Any) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leaving:
            main(["inspect", *map(str, arguments)])
        return int(leaving.value.code or 0), *capsys.readouterr()

    path = zoo.write(tmp_path / "lora.safetensors", zoo.kohya(zoo.attentions(zoo.unet(SD15))))
    text, ok = report(str(path), None, as_json=False)
    assert ok and text.splitlines()[1] == "  LoRA for Stable Diffusion 1, kohya names"
    code, out, err = command(path, "--json", "--model", "picturebook")
    assert code == 1 and err == ""
    found = json.loads(out)
    assert found["kind"] == "lora" and found["ok"] is False and found["fit"]["fits"] is False
    code, out, err = command(tmp_path / "lora.safetensor")
    assert code == 2 and out == "" and "did you mean 'lora.safetensors'" in err
    os.truncate(path, 100)
    text, ok = report(str(path), None, as_json=False)
    assert not ok and "truncated" in text


def test_the_public_name() -> None:
    assert langevin.inspect is inspect
    assert isinstance(langevin.inspect(SHIPPED / "scheduler"), Inspection)


def test_amounts() -> None:
    numbers = (0, 999, 1000, 1234, 99_949, 999_499, 999_501, 1.07e9, 12e12)
    assert [amount(int(n)).strip() for n in numbers] == [
        "0", "999", "1 k", "1.23 k", "99.9 k", "999 k", "1 M", "1.07 G", "12 T",
    ]  # fmt: skip
