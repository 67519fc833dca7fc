"""The command line without a model: options, names, files, errors, help."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from langevin import registry
from langevin.cli import env, main
from langevin.cli.calling import draw
from langevin.cli.metadata import a1111, sampler_name
from langevin.cli.model import pick_device
from langevin.cli.output import Place, free, slug, write
from langevin.cli.request import Request, find_scheduler, parse_margins, parse_size, short_name
from langevin.cli.sources import read
from langevin.core.errors import InputError

FACTS = {
    "langevin": "0.1.0",
    "pipeline": "StableDiffusionPipeline",
    "model": "folder, with comma",
    "scheduler": "DPMSolverMultistepScheduler",
    "scheduler_config": {"use_karras_sigmas": True},
    "prompt": "ein grünes Haus 집",
    "negative_prompt": "snow",
    "steps": 25,
    "guidance_scale": 7.5,
    "seed": 3,
    "width": 64,
    "height": 32,
}


def failed(capsys: pytest.CaptureFixture, *argv: str) -> str:
    """Run a command that must fail with status 2 and return what it printed to the error stream."""
    with pytest.raises(SystemExit) as leaving:
        main(argv)
    assert leaving.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("text, size", [("64", (64, 64)), ("512x768", (512, 768)), (" 96X64 ", (96, 64)), (None, None)])
def test_sizes(text, size) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["0", "x64", "64x", "64x0", "-8", "64*64", "big", ""])
def test_a_wrong_size_is_an_error(text) -> None:
    with pytest.raises(InputError, match="512x768"):
        parse_size(text)


def test_margins() -> None:
    assert parse_margins("32, 0,8,4") == (32, 0, 8, 4)
    for text in ("32", "1,2,3", "0,0,0,0", "-1,0,0,0", "1,2,3,4,5", "a,b,c,d"):
        with pytest.raises(InputError, match="LEFT,RIGHT,TOP,BOTTOM"):
            parse_margins(text)


def test_short_names_are_unique_and_readable() -> None:
    names = [row.name for row in registry.SCHEDULERS if row.name.endswith("Scheduler")]
    assert len({short_name(name) for name in names}) == len(names)
    assert short_name("EulerAncestralDiscreteScheduler") == "euler-ancestral"
    assert short_name("DPMSolverMultistepScheduler") == "dpm-solver"
    assert short_name("PNDMScheduler") == "pndm"


@pytest.mark.parametrize("name", ["euler", "Euler", "EulerDiscreteScheduler", "eulerdiscretescheduler"])
def test_a_scheduler_is_found_by_either_name(name) -> None:
    assert find_scheduler(name) == "EulerDiscreteScheduler"


def test_an_unknown_scheduler_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'euler'"):
        find_scheduler("eulr")


def test_devices() -> None:
    assert pick_device("cpu") == "cpu"
    with pytest.raises(InputError, match="cpu"):
        pick_device("abacus")


def test_devices_of_an_accelerator(monkeypatch) -> None:
    card = SimpleNamespace(name="H", total_memory=2**34)
    for kind in ("cuda", "mps"):
        made = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2,
                               current_accelerator=lambda kind=kind: SimpleNamespace(type=kind))  # fmt: skip
        monkeypatch.setattr(torch, "accelerator", made)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda k: card)
        assert pick_device("auto") == kind and pick_device(f"{kind}:1") == f"{kind}:1"
        with pytest.raises(InputError, match=f"did you mean '{kind}:1'"):
            pick_device(f"{kind}:11")
        assert env.accelerators()[1] == {"cuda": "cuda:1 H (16 GiB)", "mps": "mps:1"}[kind]


def test_an_interrupted_command_says_so(monkeypatch, capsys) -> None:
    def interrupt(**words) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("langevin.cli.app.app", interrupt)
    with pytest.raises(SystemExit) as leaving:
        main(["env"])
    assert leaving.value.code == 130 and capsys.readouterr().err == "langevin: stopped\n"


def test_pictures_that_were_flagged_are_named(capsys) -> None:
    class Pipe:
        def __call__(self, generator=None, batch_size=1):
            return SimpleNamespace(images=["a"] * batch_size, nsfw_content_detected=[False, True])

    assert draw(Pipe(), {}, seed=1, count=2) == ["a", "a"]
    assert capsys.readouterr().err == "The model's safety checker flagged these pictures: [1]\n"


def test_a_picture_is_brought_to_the_size(tmp_path) -> None:
    Image.new("RGB", (10, 12), "red").save(tmp_path / "a.png")
    found = read(Request(image=str(tmp_path / "a.png"), control=str(tmp_path / "a.png"), size="8x6"))
    assert found.image.size == found.control.size == (8, 6) and found.mask is None


def test_slugs() -> None:
    assert slug("A red house, under a yellow sun!") == "a-red-house-under-a-yellow-sun"
    assert slug("빨간 집") == "빨간-집"
    assert slug("../../etc") == "etc"
    assert slug("?!") == "picture"
    assert len(slug("word " * 100)) <= 60


def test_no_file_is_overwritten(tmp_path) -> None:
    path = tmp_path / "a.png"
    for expected in ("a.png", "a-2.png", "a-3.png"):
        assert free(path).name == expected
        free(path).touch()


def test_output_is_a_png_or_a_folder(tmp_path) -> None:
    assert Place.of(str(tmp_path / "x" / "cat.png")) == Place(tmp_path / "x", "cat")
    assert Place.of(str(tmp_path / "v1.5")) == Place(tmp_path / "v1.5", None)
    with pytest.raises(InputError, match=r"cat\.png"):
        Place.of("cat.jpg")


def test_pictures_carry_their_parameters(tmp_path) -> None:
    images = [Image.new("RGB", (64, 32), colour) for colour in ("red", "blue", "green")]
    facts = [{**FACTS, "seed": 3 + k} for k in range(3)]
    paths = write(images, facts, Place(tmp_path / "new" / "folder", None))
    assert [path.name for path in paths] == [f"ein-grünes-haus-집-{end}.png" for end in (3, 4, 5, "sheet")]
    with Image.open(paths[1]) as picture:
        assert picture.size == (64, 32) and picture.getpixel((0, 0)) == (0, 0, 255)
        assert json.loads(picture.text["langevin"]) == facts[1]
        assert picture.text["parameters"].splitlines()[0] == FACTS["prompt"]
    with Image.open(paths[-1]) as sheet:
        assert sheet.size == (128, 64)
        assert json.loads(sheet.text["langevin"])["seeds"] == [3, 4, 5]
    again = write(images[:1], facts[:1], Place(tmp_path / "new" / "folder", None))
    assert again[0].name == "ein-grünes-haus-집-3-2.png"


def test_the_parameters_text() -> None:
    assert a1111(FACTS).splitlines() == [
        "ein grünes Haus 집",
        "Negative prompt: snow",
        "Steps: 25, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 3, Size: 64x32, "
        'Model: "folder, with comma", Version: langevin 0.1.0',
    ]
    made = {**FACTS, "strength": 0.4, "controlnet": "edges", "control_scale": 0.5, "edges": True}
    line = a1111(made).splitlines()[-1]
    assert 'Denoising strength: 0.4, ControlNet 0: "Module: canny, Model: edges, Weight: 0.5", Model' in line
    assert sampler_name("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}) == "DPM++ 2M SDE"
    assert sampler_name("SomeScheduler", {}) == "SomeScheduler"


def test_infinities_become_text(tmp_path) -> None:
    facts = {**FACTS, "scheduler_config": {"lambda_min_clipped": -float("inf"), "trained_betas": [float("nan"), 0.5]}}
    (path,) = write([Image.new("RGB", (8, 8))], [facts], Place(tmp_path, None))
    with Image.open(path) as picture:
        found = json.loads(picture.text["langevin"], parse_constant=pytest.fail)
    assert found["scheduler_config"] == {"lambda_min_clipped": "-inf", "trained_betas": ["nan", 0.5]}


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="choose another --output"):
        write([Image.new("RGB", (8, 8))], [FACTS], Place.of(str(tmp_path / "file" / "a.png")))


@pytest.mark.parametrize(
    "argv, message",
    [
        (["generate", "x", "--scheduler", "eulr"], "did you mean 'euler'"),
        (["generate", "x", "--dtype", "float"], "did you mean 'float32'"),
        (["generate", "x", "--size", "3x"], "WIDTHxHEIGHT"),
        (["generate", "x", "--output", "a.jpg"], "a.png"),
        (["generate", "x", "--model", "./no-such-folder"], "no-such-folder does not exist"),
        (["generate", "x", "--num-images", "0"], "--num-images"),
        (["generate", "x", "--seed", str(2**64)], "from -2^63 to 2^64 - 1"),
        (["generate", "x", "--seed", str(2**64 - 1), "--num-images", "2"], "from -2^63 to 2^64 - 1"),
        (["generate", "x", "--scheduler", ""], "--scheduler is ''"),
        (["generate", "x", "--stepps", "3"], "--steps"),
        (["generat", "x"], "generate"),
    ],
)
def test_mistakes_are_one_message_and_status_2(capsys, argv, message) -> None:
    error = failed(capsys, *argv)
    assert message in error and "Traceback" not in error


def test_env(capsys) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["env"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    for fact in ("langevin", "Python", "torch", "transformers", "Accelerators", "Hub cache", "Telemetry: none"):
        assert f"- {fact}" in text


def test_python_dash_m() -> None:
    run = subprocess.run([sys.executable, "-m", "langevin", "--help"], capture_output=True, text=True, check=True)
    assert "generate" in run.stdout and "env" in run.stdout
