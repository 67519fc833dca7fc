"""`langevin generate --lora`."""

from __future__ import annotations

import pytest
from PIL import Image
from safetensors.torch import save_file

import langevin
from langevin.cli.loras import Lora, attach, parse, teach, told
from langevin.core.errors import InputError
from tests.adapters import loras
from tests.cli.conftest import facts, refused, run

CALL = ["a cat", "--steps", "2", "--seed", "1", "--size", "16", "--device", "cpu", "--quiet"]


def test_files_and_scales() -> None:
    assert parse(["a/style.safetensors:0.8", "owner/repo", "b/style.safetensors", "C:\\x.pt:-1"]) == [
        Lora("a/style.safetensors", 0.8, "style"),
        Lora("owner/repo", 1.0, "repo"),
        Lora("b/style.safetensors", 1.0, "style-2"),
        Lora("C:\\x.pt", -1.0, "C:\\x.pt"),
    ]
    assert told(["style.safetensors:0.5"]) == ["style:0.5"] and told([]) is None
    assert parse(["C:\\x.pt"]) == [Lora("C:\\x.pt", 1.0, "C:\\x.pt")]
    for text in (":0.5", "style:nan", ""):
        with pytest.raises(InputError, match="FILE:SCALE"):
            parse([text])


def test_a_pipeline_that_takes_none_says_so() -> None:
    pipe = langevin.DDPMPipeline(None, None)
    with pytest.raises(InputError, match="DDPMPipeline takes no --lora; leave it out"):
        attach(pipe, ["style.safetensors"])
    with pytest.raises(InputError, match="DDPMPipeline takes no --embedding; leave it out"):
        teach(pipe, ["word.pt"])
    attach(pipe, [])
    teach(pipe, [])


def test_pictures_with_adapters(capsys, tmp_path, model) -> None:
    unet = langevin.UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    for name, seed in (("one", 0), ("two", 1)):
        save_file(loras.kohya({"unet": loras.halves(unet, seed=seed, strength=3.0)}), tmp_path / f"{name}.safetensors")
    one, two = (str(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    call = [*CALL, "--model", model, "--output", str(tmp_path / "out")]
    (plain,) = run(capsys, *call)
    (none,) = run(capsys, *call, "--lora", f"{one}:0")
    (both,) = run(capsys, *call, "--lora", one, "--lora", f"{two}:-0.5")
    pixels = [Image.open(path).tobytes() for path in (plain, none, both)]
    assert pixels[0] == pixels[1] != pixels[2]
    assert "lora" not in facts(plain) and facts(both)["lora"] == ["one:1", "two:-0.5"]
    with Image.open(both) as picture:
        assert picture.text["parameters"].splitlines()[0] == "a cat <lora:one:1> <lora:two:-0.5>"
    wrong = tmp_path / "wrong.safetensors"
    save_file(
        {n.replace("lora_unet", "lora_net"): t for n, t in loras.kohya({"unet": loras.halves(unet)}).items()}, wrong
    )
    assert "nothing was attached" in refused(capsys, *call, "--lora", str(wrong))
    assert "does not exist" in refused(capsys, *call, "--lora", str(tmp_path / "none.safetensors"))


def test_what_comes_with_the_shipped_model_goes_by_its_name(capsys, tmp_path) -> None:
    call = ["--steps", "2", "--seed", "1", "--device", "cpu", "--quiet", "--output", str(tmp_path / "out")]
    (plain,) = run(capsys, "a <mika> in the snow", *call)
    (taught,) = run(capsys, "a <mika> in the snow", *call, "--embedding", "mika", "--lora", "sepia:0.5")
    assert Image.open(plain).tobytes() != Image.open(taught).tobytes()
    assert "embedding" not in facts(plain)
    assert facts(taught)["embedding"] == ["mika"] and facts(taught)["lora"] == ["sepia:0.5"]
    assert "does not exist" in refused(capsys, "a cat", *call, "--embedding", "mica.safetensors")
