"""`langevin convert` and the documented script: a folder to a single file and back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import langevin
from langevin.cli import main
from langevin.cli.model import class_of
from langevin.core.errors import WeightsError
from langevin.core.weights_io import SafetensorsFile
from langevin.weights.saving import save

SCRIPT = Path(__file__).parents[2] / "scripts" / "convert_original_stable_diffusion_to_diffusers.py"


def convert(capsys: pytest.CaptureFixture, *argv: object, status: int = 0) -> str:
    """Run `langevin convert` and return what it prints, or the message with which it must fail."""
    with pytest.raises(SystemExit) as leaving:
        main(["convert", *map(str, argv)])
    out, err = capsys.readouterr()
    assert leaving.value.code == status, err
    return err if status else out


def tensors(path) -> dict[str, torch.Tensor]:
    """Return all tensors of a file."""
    with SafetensorsFile(path) as file:
        return {name: file.view(name).clone() for name in file.entries}


def test_a_folder_becomes_a_file_and_a_folder_again(model, tmp_path, capsys) -> None:
    printed = convert(capsys, model, tmp_path / "one.safetensors")
    assert "StableDiffusionPipeline in" in printed and "one.safetensors: unet, vae, text_encoder" in printed
    printed = convert(capsys, tmp_path / "one.safetensors", tmp_path / "folder", "--config", model)
    assert (
        printed.startswith("stable_diffusion, text-to-image (") and f"wrote {tmp_path / 'folder' / 'unet'}" in printed
    )
    unet = "unet/diffusion_pytorch_model.safetensors"
    first, again = tensors(Path(model) / unet), tensors(tmp_path / "folder" / unet)
    assert set(first) == set(again) and all(torch.equal(first[name], again[name]) for name in first)
    convert(capsys, tmp_path / "folder", tmp_path / "two.safetensors")
    assert tensors(tmp_path / "one.safetensors").keys() == tensors(tmp_path / "two.safetensors").keys()


def test_one_network_and_another_number_format(model, tmp_path, capsys) -> None:
    convert(capsys, Path(model) / "vae", tmp_path / "vae.safetensors", "--dtype", "float16")
    assert {value.dtype for value in tensors(tmp_path / "vae.safetensors").values()} == {torch.float16}
    assert "autoencoder_kl" in convert(capsys, tmp_path / "vae.safetensors", tmp_path / "vae")
    assert langevin.AutoencoderKL.from_pretrained(tmp_path / "vae", torch_dtype="auto").dtype == torch.float16


def test_nothing_is_overwritten(model, tmp_path, capsys) -> None:
    (tmp_path / "taken.safetensors").write_text("mine")
    assert "exists already" in convert(capsys, model, tmp_path / "taken.safetensors", status=2)
    assert (tmp_path / "taken.safetensors").read_text() == "mine"
    assert "exists already" in convert(capsys, tmp_path / "taken.safetensors", model, status=2)
    for name in ("out", "out.safetensors"):
        message = convert(capsys, model, tmp_path / "taken.safetensors" / name, status=2)
        assert f"{name} cannot be written (" in message and "name another target" in message


def test_what_cannot_be_converted_says_why(model, tmp_path, capsys) -> None:
    assert "neither a model_index.json" in convert(capsys, tmp_path, tmp_path / "out.safetensors", status=2)
    said = convert(capsys, model, tmp_path / "out.safetensors", "--placeholder-token", "cat", status=2)
    assert "--placeholder-token need --base" in said
    assert "is a folder" in convert(capsys, model, tmp_path / "out.safetensors", "--extract-ema", status=2)
    (tmp_path / "picture.safetensors").write_bytes(b"\x89PNG and so on")
    assert "a PNG picture" in convert(capsys, tmp_path / "picture.safetensors", tmp_path / "out", status=2)
    said = convert(capsys, model, tmp_path / "out.safetensors", "--layout", "stable_difusion", status=2)
    assert "did you mean 'stable_diffusion'" in said and not (tmp_path / "out.safetensors").exists()


def test_a_single_file_says_which_class_it_is_for(model, tmp_path) -> None:
    pipe = langevin.DiffusionPipeline.from_pretrained(model)
    save(pipe, tmp_path / "whole.safetensors")
    assert class_of(str(tmp_path / "whole.safetensors")) == "StableDiffusionPipeline" == class_of(model)
    save({"vae": pipe.vae}, tmp_path / "vae.safetensors")
    with pytest.raises(WeightsError, match=r"vae\.safetensors is a .* and no whole model; `langevin inspect`"):
        class_of(str(tmp_path / "vae.safetensors"))


def script(*argv: object, folder: Path) -> subprocess.CompletedProcess:
    """Run the documented script in a folder."""
    command = [sys.executable, SCRIPT, *map(str, argv)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)


def test_the_script_with_its_documented_flags(model, tmp_path) -> None:
    pipe = langevin.DiffusionPipeline.from_pretrained(model)
    save(pipe, tmp_path / "model.ckpt")
    flags = ["--checkpoint_path", "model.ckpt", "--config_files", model, "--dump_path", "./", "--to_safetensors"]
    more = ["--scheduler_type", "euler", "--half", "--device", "cpu", "--pipeline_type", "FrozenCLIPEmbedder"]
    done = script(*flags, *more, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "stable_diffusion, text-to-image" in done.stdout
    again = langevin.DiffusionPipeline.from_pretrained(tmp_path, torch_dtype="auto")
    assert type(again.scheduler).__name__ == "EulerDiscreteScheduler" and again.unet.dtype == torch.float16
    assert torch.equal(again.unet.conv_in.weight, pipe.unet.conv_in.weight.half())
    assert (tmp_path / "model.ckpt").is_file(), "the current folder keeps what it held"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_the_script_says_what_is_wrong(model, tmp_path) -> None:
    save(langevin.DiffusionPipeline.from_pretrained(model), tmp_path / "model.ckpt")
    flags = ["--checkpoint_path", "model.ckpt", "--config_files", model, "--dump_path", "out"]
    for more, message in {
        "--controlnet": "holds no ControlNet",
        "--pipeline_type=FrozenOpenCLIPEmbedder": "the file is stable_diffusion, text-to-image",
    }.items():
        done = script(*flags, more, folder=tmp_path)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
