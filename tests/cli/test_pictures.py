"""`langevin generate` from pictures: changed, painted into, enlarged, followed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import langevin
from langevin.picturebook import model_folder
from langevin.picturebook.edges import agreement, edges
from tests.cli.conftest import facts, refused, run
from tests.pipelines import ip_adapters, tiny


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """Pictures and masks as files, by name."""
    folder = tmp_path_factory.mktemp("files")
    tiny.picture(size=(16, 16)).save(folder / "cat.png")
    tiny.picture(size=(19, 13)).save(folder / "odd.png")
    tiny.hole((16, 16)).save(folder / "mask.png")
    tiny.hole((19, 13), (4, 4, 12, 9)).save(folder / "odd-mask.png")
    Image.new("L", (16, 16)).save(folder / "black.png")
    (folder / "words.png").write_text("no picture")
    return {path.stem: str(path) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> str:
    """A house that the shipped model draws, by the command in a process of its own."""
    file = tmp_path_factory.mktemp("house") / "house.png"
    words = ["generate", "a red house under a yellow sun", "--seed", "3", "--output", str(file), "--quiet"]
    done = subprocess.run([sys.executable, "-m", "langevin", *words], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(file) and done.stderr == ""
    return str(file)


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


# The shipped model ----------------------------------------------------------------------------------------------------


def test_a_picture_changes_its_colour_and_keeps_its_layout(capsys, tmp_path, house) -> None:
    options = ["--image", house, "--strength", "0.4", "--seed", "3", "--output", str(tmp_path / "blue.png")]
    (path,) = run(capsys, "a blue house under a yellow sun", *options)
    before, after = pixels(house), pixels(path)
    wall = before[40:56, 22:38], after[40:56, 22:38]
    assert wall[0][..., 0].mean() > wall[0][..., 2].mean() + 60, "it was red"
    assert wall[1][..., 2].mean() > wall[1][..., 0].mean() + 20, "it is blue"
    sun = before[10:20, 30:40].mean((0, 1)), after[10:20, 30:40].mean((0, 1))
    assert np.abs(sun[0] - sun[1]).max() < 30, "the sun is where it was"
    found = facts(path)
    expected = {"image": "house.png", "strength": 0.4, "pipeline": "StableDiffusionImg2ImgPipeline", "steps": 25}
    assert {name: found[name] for name in expected} == expected
    assert not {"mask", "control", "edges", "prompt_syntax"} & set(found)
    with Image.open(path) as picture:
        assert "Denoising strength: 0.4" in picture.text["parameters"]


def test_painting_leaves_every_other_byte_alone(capsys, tmp_path, house) -> None:
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[20:50, 34:62] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    options = ["--image", house, "--mask", str(tmp_path / "mask.png"), "--seed", "3", "--output", str(tmp_path)]
    (path,) = run(capsys, "a green tree", *options)
    before, after = pixels(house), pixels(path)
    assert np.array_equal(before[mask == 0], after[mask == 0])
    changed = np.abs(before - after).max(-1)[mask > 0] > 30
    assert changed.mean() > 0.1, "a tree is in the hole"
    assert facts(path)["mask"] == "mask.png" and facts(path)["pipeline"] == "StableDiffusionInpaintPipeline"


def test_a_picture_grows(capsys, tmp_path, house) -> None:
    options = ["--image", house, "--outpaint", "0,32,0,0", "--seed", "3", "--output", str(tmp_path)]
    (path,) = run(capsys, "a red house under a yellow sun", *options)
    before, after = pixels(house), pixels(path)
    assert after.shape == (64, 96, 3) and np.array_equal(after[:, :64], before)
    assert facts(path)["outpaint"] == "0,32,0,0"


def test_the_shipped_control_follows_edges(capsys, tmp_path, house) -> None:
    options = ["--control", house, "--edges", "--seed", "5", "--output", str(tmp_path)]
    (path,) = run(capsys, "a blue house under a yellow sun", *options)
    wanted, found, chance = (edges(pixels(one)[None].astype(np.uint8)) for one in (house, path, house))
    assert agreement(found, wanted)[0] > 0.5 > agreement(found, np.roll(chance, 16, axis=2))[0]
    given = facts(path)
    expected = {"control": "house.png", "controlnet": "picturebook", "control_scale": 1.0, "edges": True}
    assert {name: given[name] for name in expected} == expected
    (both,) = run(capsys, "a green house", *options, "--image", house, "--control-scale", "0.5", "--steps", "4")
    assert facts(both)["pipeline"] == "StableDiffusionControlNetImg2ImgPipeline"


# Any model ------------------------------------------------------------------------------------------------------------


def test_any_size_is_kept(capsys, tmp_path, model, files) -> None:
    options = ["--model", model, "--steps", "2", "--seed", "1", "--image", files["odd"]]
    (path,) = run(capsys, "a cat", *options, "--output", str(tmp_path))
    assert Image.open(path).size == (19, 13)
    (path,) = run(capsys, "a cat", *options, "--mask", files["odd-mask"], "--output", str(tmp_path))
    kept = pixels(files["odd-mask"])[..., 0] == 0
    assert Image.open(path).size == (19, 13)
    assert np.array_equal(pixels(path)[kept], pixels(files["odd"])[kept])
    assert not np.array_equal(pixels(path), pixels(files["odd"]))
    (path,) = run(capsys, "a cat", *options, "--mask", files["odd-mask"], "--size", "24x16", "--output", str(tmp_path))
    assert Image.open(path).size == (24, 16)


def test_the_picture_is_the_one_that_python_makes(capsys, tmp_path, model, files) -> None:
    options = ["--model", model, "--steps", "3", "--seed", "5", "--strength", "0.7", "--image", files["cat"]]
    (path,) = run(capsys, "a (cat:1.3)", *options, "--prompt-syntax", "a1111", "--output", str(tmp_path))
    pipe = langevin.AutoPipelineForImage2Image.from_pretrained(model)
    call = {"strength": 0.7, "num_inference_steps": 3, "seed": 5}
    expected = pipe("a (cat:1.3)", image=Image.open(files["cat"]), prompt_syntax="a1111", **call).images[0]
    assert np.array_equal(pixels(path), np.asarray(expected)) and facts(path)["prompt_syntax"] == "a1111"
    plain = pipe("a (cat:1.3)", image=Image.open(files["cat"]), **call).images[0]
    assert not np.array_equal(pixels(path), np.asarray(plain)), "plain is the default, and another picture"
    (path,) = run(capsys, "a (cat:1.3)", *options, "--output", str(tmp_path))
    assert np.array_equal(pixels(path), np.asarray(plain))


def test_a_controlnet_of_ones_own(capsys, tmp_path, model, files) -> None:
    pipe = langevin.DiffusionPipeline.from_pretrained(model)
    net = langevin.ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 16))
    net.save_pretrained(tmp_path / "net")
    options = ["--model", model, "--steps", "2", "--seed", "1", "--control", files["cat"], "--output", str(tmp_path)]
    (path,) = run(capsys, "a cat", *options, "--controlnet", str(tmp_path / "net"), "--num-images", "1")
    assert facts(path)["controlnet"] == str(tmp_path / "net") and Image.open(path).size == (16, 16)
    together = langevin.AutoPipelineForText2Image.from_pipe(pipe, controlnet=net)
    together.save_pretrained(tmp_path / "both")
    options[1] = str(tmp_path / "both")
    (again,) = run(capsys, "a cat", *options)
    assert np.array_equal(pixels(path), pixels(again)), "a folder that has a ControlNet needs no other"
    (without,) = run(capsys, "a cat", *options[:6], "--output", str(tmp_path))
    assert facts(without)["pipeline"] == "StableDiffusionPipeline"


def test_a_model_for_one_task_is_taken_as_it_is(capsys, tmp_path, model, files) -> None:
    pipe = langevin.DiffusionPipeline.from_pretrained(model)
    seeing = langevin.UNet2DConditionModel(**tiny.UNET, in_channels=8).eval()
    langevin.StableDiffusionInstructPix2PixPipeline.from_pipe(pipe, unet=seeing).save_pretrained(tmp_path / "edit")
    options = ["make it a dog", "--model", str(tmp_path / "edit"), "--steps", "2", "--output", str(tmp_path)]
    (path,) = run(capsys, *options, "--image", files["cat"])
    assert facts(path)["pipeline"] == "StableDiffusionInstructPix2PixPipeline"
    assert "starts from a picture" in refused(capsys, *options)
    assert "takes no --mask" in refused(capsys, *options, "--image", files["cat"], "--mask", files["mask"])
    assert "takes no --control" in refused(capsys, *options, "--image", files["cat"], "--control", files["cat"])


MISTAKES = [
    (["--mask", "mask"], "--mask needs --image"),
    (["--outpaint", "8,0,0,0"], "--outpaint needs --image"),
    (["--strength", "0.5"], "--strength needs --image"),
    (["--edges"], "--edges needs --control"),
    (["--control-scale", "0.5"], "--control-scale needs --control"),
    (["--controlnet", "x"], "--controlnet needs --control"),
    (["--image", "cat", "--mask", "mask", "--outpaint", "8,0,0,0"], "give one of them"),
    (["--image", "cat", "--outpaint", "8"], "LEFT,RIGHT,TOP,BOTTOM"),
    (["--image", "cat", "--strength", "1.5"], "`--strength` is 1.5; it must be between 0"),
    (["--image", "cat", "--strength", "nan"], "finite"),
    (["--image", "cat", "--mask", "odd-mask"], "The mask is 19x13 and the picture 16x16 pixels"),
    (["--image", "cat", "--mask", "odd-mask", "--size", "32"], "The mask is 19x13 and the picture 16x16 pixels"),
    (["--image", "cat", "--mask", "black"], "is black, so nothing would be painted"),
    (["--image", "cat", "--control", "odd"], "The control picture is 19x13"),
    (["--image", "absent.png"], "absent.png does not exist"),
    (["--image", "cat", "--mask", "absent.png"], "absent.png does not exist"),
    (["--control", "absent.png"], "absent.png does not exist"),
    (["--image", "words"], "cannot be read as a picture"),
    (["--prompt-syntax", "a111"], "did you mean 'a1111'"),
    (["--prompt-syntax", "compel", "a cat++ (dog"], "(dog"),
    (["--control", "cat"], "needs a ControlNet made for"),
    (["--image", "cat", "--loora", "x"], "--loora"),
    (["--lora", ":0.5"], "write FILE or FILE:SCALE"),
    (["--image-prompt", "cat"], "--image-prompt needs --ip-adapter"),
]


@pytest.mark.parametrize(("argv", "message"), MISTAKES, ids=lambda value: value if isinstance(value, str) else "")
def test_mistakes_are_found_before_loading(capsys, tmp_path, model, files, monkeypatch, argv, message) -> None:
    def loaded(*args, **kwargs):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(langevin.AutoencoderKL, "from_pretrained", loaded)
    argv = [files.get(word, word) for word in argv]
    prompt = [] if "compel" in argv else ["a cat"]
    error = refused(capsys, *prompt, *argv, "--model", model, "--output", str(tmp_path / "none"))
    assert message in error and not (tmp_path / "none").exists()


def test_without_the_shipped_control_there_is_a_clear_error(capsys, tmp_path, monkeypatch, files) -> None:
    folder = model_folder()
    monkeypatch.setattr("langevin.cli.request.model_folder", lambda: folder)
    monkeypatch.setattr("langevin.picturebook.__file__", str(tmp_path / "__init__.py"))
    error = refused(capsys, "a cat", "--control", files["cat"], "--output", str(tmp_path / "none"))
    assert "carries no picturebook control" in error and "Loading" not in error


# Picture prompts ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory) -> str:
    """A random IP-Adapter for the tiny model, with its picture encoder beside it."""
    folder = tmp_path_factory.mktemp("adapter")
    unet = langevin.UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    torch.save(ip_adapters.adapter("base", unet), folder / "adapter.bin")
    tiny.image_encoder().save_pretrained(folder / "image_encoder")
    return str(folder)


def test_a_picture_speaks_beside_the_prompt(capsys, tmp_path, model, adapter, files) -> None:
    common = ["cat", "--model", model, "--steps", "2", "--seed", "1", "--output", str(tmp_path)]
    (plain,) = run(capsys, *common)
    (shown,) = run(capsys, *common, "--image-prompt", files["cat"], "--ip-adapter", adapter)
    (idle,) = run(capsys, *common, "--image-prompt", files["cat"], "--ip-adapter", adapter, "--ip-adapter-scale", "0")
    assert np.abs(pixels(plain) - pixels(shown)).max() > 2 and np.array_equal(pixels(plain), pixels(idle))
    assert facts(shown)["image_prompt"] == "cat.png" and facts(idle)["ip_adapter_scale"] == 0.0
    assert "--image-prompt needs --ip-adapter" in refused(capsys, *common, "--image-prompt", files["cat"])
