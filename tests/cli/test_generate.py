"""`langevin generate` with a tiny random model: options reach the pipeline, pictures carry what made them."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import langevin
from langevin.cli import generate, main
from langevin.cli.calling import arguments, describe
from langevin.cli.model import build_scheduler
from langevin.cli.request import Request, find_scheduler, short_name
from langevin.core.errors import LangevinError
from tests.cli.conftest import facts, run
from tests.pipelines import tiny


@pytest.fixture(scope="module")
def pixels(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("pixels") / "pipeline"
    langevin.DDPMPipeline(tiny.pixel_unet(langevin), langevin.DDPMScheduler()).save_pretrained(folder)
    return str(folder)


def test_a_picture_carries_what_made_it(capsys, tmp_path, model) -> None:
    options = [
        "--steps",
        "2",
        "--seed",
        "5",
        "--guidance-scale",
        "3",
        "--negative-prompt",
        "a dog",
        "--scheduler",
        "euler",
    ]
    (path,) = run(capsys, "a cat", "--model", model, *options, "--size", "24x16", "--output", str(tmp_path / "new"))
    assert path == str(tmp_path / "new" / "a-cat-5.png")
    found = facts(path)
    expected = {
        "prompt": "a cat",
        "negative_prompt": "a dog",
        "steps": 2,
        "seed": 5,
        "guidance_scale": 3.0,
        "scheduler": "EulerDiscreteScheduler",
        "width": 24,
        "height": 16,
        "pipeline": "StableDiffusionPipeline",
        "model": model,
        "dtype": "float32",
        "device": "cpu",
    }
    assert {name: found[name] for name in expected} == expected
    assert Image.open(path).size == (24, 16)


def test_the_picture_is_the_one_that_python_makes(capsys, tmp_path, model) -> None:
    (path,) = run(capsys, "a cat", "--model", model, "--steps", "2", "--seed", "5", "--output", str(tmp_path))
    pipe = langevin.DiffusionPipeline.from_pretrained(model)
    expected = pipe("a cat", num_inference_steps=2, generator=torch.Generator().manual_seed(5)).images[0]
    assert Image.open(path).tobytes() == expected.tobytes()


def test_several_pictures_and_a_contact_sheet(capsys, tmp_path, model) -> None:
    options = ["--model", model, "--steps", "2", "--output", str(tmp_path / "cat.png")]
    paths = run(capsys, "a cat", *options, "--seed", "5", "--num-images", "3")
    assert [path.rpartition("/")[2] for path in paths] == ["cat-5.png", "cat-6.png", "cat-7.png", "cat-sheet.png"]
    assert [facts(path)["seed"] for path in paths[:3]] == [5, 6, 7]
    (alone,) = run(capsys, "a cat", *options, "--seed", "7")
    assert alone.endswith("/cat.png")
    assert Image.open(alone).tobytes() == Image.open(paths[2]).tobytes()
    (again,) = run(capsys, "a cat", *options, "--seed", "8")
    assert again.endswith("/cat-2.png") and facts(alone)["seed"] == 7


def test_without_a_seed_one_is_drawn_and_written_down(capsys, tmp_path, model) -> None:
    options = ["--model", model, "--steps", "1", "--output", str(tmp_path), "--quiet"]
    seeds = [facts(run(capsys, "a cat", *options)[0])["seed"] for _ in range(2)]
    assert seeds[0] != seeds[1]


def test_quiet_prints_the_path_alone(capsys, tmp_path, model) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "a cat", "--model", model, "--steps", "1", "--output", str(tmp_path), "--quiet"])
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1 and err == ""


def test_defaults_are_the_pipelines_own(capsys, tmp_path, model) -> None:
    pipe = langevin.DiffusionPipeline.from_pretrained(model)
    request = Request(prompt="a cat", model=model)
    assert arguments(type(pipe), request) == {"prompt": "a cat"}
    described = describe(pipe, request, {"prompt": "a cat"}, Image.new("RGB", (16, 16)), 0)
    assert described["steps"] == 50 and described["guidance_scale"] == 7.5


def test_an_unconditional_model_takes_no_prompt(capsys, tmp_path, pixels) -> None:
    options = ["--model", pixels, "--steps", "2", "--seed", "1", "--num-images", "2", "--output", str(tmp_path)]
    paths = run(capsys, *options)
    assert [path.rpartition("/")[2] for path in paths] == [f"ddpmpipeline-{end}.png" for end in (1, 2, "sheet")]
    assert facts(paths[0])["prompt"] is None and facts(paths[0])["guidance_scale"] is None
    with pytest.raises(SystemExit) as leaving:
        main(["generate", "a cat", *options])
    assert leaving.value.code == 2
    assert "DDPMPipeline takes no PROMPT" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "needs a prompt"),
        (["a cat", "--steps", "0"], "at least 1"),
        (["a cat", "--size", "17"], "17"),
        (["a cat", "--device", "abacus"], "cpu"),
    ],
)
def test_mistakes_are_one_message_and_status_2(capsys, tmp_path, model, argv, message) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["generate", *argv, "--model", model, "--output", str(tmp_path / "none")])
    error = capsys.readouterr().err
    assert leaving.value.code == 2 and message in error and "Traceback" not in error
    assert not (tmp_path / "none").exists()


def test_every_scheduler_of_the_registry_can_be_asked_for(capsys, tmp_path, model) -> None:
    pipe = langevin.DiffusionPipeline.from_pretrained(model)
    for row in langevin.registry.SCHEDULERS:
        if row.name == "VQDiffusionScheduler":
            with pytest.raises(LangevinError, match="needs num_vec_classes"):
                build_scheduler(pipe, row.name)
        elif row.name.endswith("Scheduler"):
            scheduler = build_scheduler(pipe, find_scheduler(short_name(row.name)))
            assert type(scheduler).__name__ == row.name
            assert not scheduler.config.get("clip_sample"), "latents have no bounds"


def test_pixels_are_clipped_as_the_sampler_does(pixels) -> None:
    pipe = langevin.DiffusionPipeline.from_pretrained(pixels)
    assert build_scheduler(pipe, "DDIMScheduler").config.clip_sample is True


@pytest.mark.parametrize("name", ["euler", "euler-discrete", "EulerDiscreteScheduler", "Euler_Discrete"])
def test_spellings_of_a_scheduler(name) -> None:
    assert find_scheduler(name) == "EulerDiscreteScheduler"


def test_a_dry_run_tells_what_it_needs_and_draws_nothing(capsys, tmp_path, model) -> None:
    target = tmp_path / "new"
    options = ["--model", model, "--steps", "3", "--size", "24x16", "--num-images", "2", "--scheduler", "euler"]
    lines = run(capsys, "a cat", *options, "--output", str(target), "--dry-run")
    assert lines[0] == "StableDiffusionPipeline on cpu in float32"
    assert [line.split()[:2] for line in lines[2:5]] == [["text_encoder", "2"], ["unet", "3"], ["vae.decode", "1"]]
    assert not target.exists()
    with pytest.raises(LangevinError, match=r"--dry-run tells of one call; leave --grid out\."):
        generate.forecast(Request(prompt="a cat", dry_run=True, grid="seed=1,2"))
