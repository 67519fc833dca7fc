"""`langevin lora`: LoRAs merged, and taken from the difference of two models."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import langevin
from langevin.adapters.stack import Stack
from langevin.cli import main
from langevin.core.weights_io import SafetensorsFile
from tests.adapters import loras


def run(capsys: pytest.CaptureFixture, *argv: str) -> tuple[int, str]:
    """Run `langevin lora` and return its status and what it says."""
    with pytest.raises(SystemExit) as leaving:
        main(["lora", *argv])
    out, err = capsys.readouterr()
    return int(leaving.value.code or 0), out or err


def opened(model: str):
    pipe = langevin.StableDiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe) -> torch.Tensor:
    call = {"num_inference_steps": 2, "output_type": "np", "height": 16, "width": 16, "seed": 1}
    return torch.from_numpy(pipe("a cat", **call).images)


def adapter(pipe, seed: int, rank: int) -> dict[str, torch.Tensor]:
    """Return a random LoRA for the UNet and the text encoder."""
    unet = loras.halves(pipe.unet, seed=seed, rank=rank, strength=3.0)
    text = loras.halves(pipe.text_encoder, loras.TEXT, seed=seed, rank=rank, strength=3.0)
    return loras.kohya({"unet": unet, "text_encoder": text}, alpha=1.0)


@pytest.mark.parametrize("method", ["cat", "svd"])
def test_merged_files_draw_what_both_draw(capsys, tmp_path, model, method) -> None:
    pipe = opened(model)
    for name, seed, rank in (("one", 0, 2), ("two", 5, 3)):
        save_file(adapter(pipe, seed, rank), tmp_path / f"{name}.safetensors")
        pipe.load_lora_weights(tmp_path / f"{name}.safetensors", adapter_name=name)
    pipe.set_adapters(["one", "two"], [0.7, -0.4])
    both = drawn(pipe)
    pipe.unload_lora_weights()
    files = [f"{tmp_path / 'one.safetensors'}:0.7", f"{tmp_path / 'two.safetensors'}:-0.4"]
    target = tmp_path / "merged.safetensors"
    call = ["merge", *files, "--model", model, "--method", method, "-o", str(target)]
    call += ["--rank", "5"] if method == "svd" else []
    assert run(capsys, *call) == (0, f"{target}\n")
    plain = drawn(pipe)
    pipe.load_lora_weights(target)
    assert (drawn(pipe) - both).abs().max() < 1e-3 < (plain - both).abs().max()
    status, said = run(capsys, *call)
    assert status == 2 and "exists already" in said


def test_methods_that_draw_follow_the_seed(capsys, tmp_path, model) -> None:
    pipe = opened(model)
    save_file(adapter(pipe, 0, 2), tmp_path / "one.safetensors")
    states = []
    for k, seed in enumerate(("3", "3", "4")):
        target = tmp_path / f"out-{k}.safetensors"
        options = ["--method", "dare_linear", "--density", "0.5", "--seed", seed]
        status, said = run(capsys, "merge", str(tmp_path / "one.safetensors"), "-m", model, *options, "-o", str(target))
        assert status == 0, said
        pipe.load_lora_weights(target, adapter_name=str(k))
        states.append(next(iter(Stack(pipe.unet).parts(str(k)).values())).tensors["down"])
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_a_difference_comes_back_as_a_lora(capsys, tmp_path, model) -> None:
    pipe = opened(model)
    pipe.load_lora_weights({n: t for n, t in adapter(pipe, 0, 2).items() if n.startswith("lora_unet")})
    pipe.fuse_lora()
    tuned = drawn(pipe)
    pipe.save_pretrained(tmp_path / "tuned")
    target = tmp_path / "style.safetensors"
    call = ["extract", str(tmp_path / "tuned"), model, "--rank", "2", "--dtype", "float32", "-o", str(target)]
    status, said = run(capsys, *call)
    lines = said.splitlines()
    assert status == 0 and lines[-1] == str(target) and "of rank 2 to 2, 100.0% of the difference" in lines[-2]
    assert not any(line.startswith("text_encoder") for line in lines)
    plain = opened(model)
    before = drawn(plain)
    plain.load_lora_weights(target)
    assert (drawn(plain) - tuned).abs().max() < 1e-3 < (before - tuned).abs().max()
    half = tmp_path / "half.safetensors"
    assert run(capsys, *call[:3], "--energy", "0.5", "-o", str(half), "--dialect", "kohya")[0] == 0
    with SafetensorsFile(half) as file:
        kinds = {entry.dtype for name, entry in file.entries.items() if not name.endswith("alpha")}
        assert kinds == {torch.float16} and all(name.startswith("lora_unet_") for name in file.entries)


def test_what_cannot_be_done_is_said(capsys, tmp_path, model) -> None:
    target = str(tmp_path / "x.safetensors")
    for argv, words in (
        (["extract", model, model, "--rank", "2", "-o", target], "do not differ"),
        (["extract", model, model, "--rank", "2", "-o", str(tmp_path / "x.bin")], "name a .safetensors file"),
        (["merge", str(tmp_path / "none.safetensors"), "-m", model, "-o", target], "does not exist"),
        (["merge", "sepia", "-m", model, "-o", target], "does not fit"),
    ):
        status, said = run(capsys, *argv)
        assert status == 2 and words in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())
