"""`--grid`: its words, its pictures, its sheet."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFont

import langevin
from langevin.cli.grid import Axis, cells, endings, parse, summary
from langevin.cli.request import Request
from langevin.cli.sheet import contact_sheet, readable, wrapped
from langevin.core.errors import InputError
from tests.cli.conftest import facts, refused, run
from tests.pipelines import tiny


def test_axes_are_read() -> None:
    axes = parse("guidance_scale=3,5.5 x --scheduler = euler, ddim x seed=1")
    assert axes == [
        Axis("guidance_scale", (3.0, 5.5), ("3", "5.5")),
        Axis("scheduler", ("euler", "ddim"), ("euler", "ddim")),
        Axis("seed", (1,), ("1",)),
    ]
    (axis,) = parse('prompt="a cat x a dog, happy",a cat x mouse,"seed x steps=3"')
    assert axis.values == ("a cat x a dog, happy", "a cat x mouse", "seed x steps=3")
    assert [axis.name for axis in parse("control-scale=1 x negative-prompt=dog")] == [
        "control_scale",
        "negative_prompt",
    ]
    assert summary(parse("seed=1,2,3 x steps=4,5")) == "Grid of 6 pictures: seed (3) x steps (2)"
    assert endings(parse('prompt="?!","a/b c" x seed=1,2')) == ["1-1", "1-2", "a-b-c-1", "a-b-c-2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an example: 'guidance_scale=3,5,7 x"),
        ("seed", "name=value,value"),
        ("seed=", "name=value,value"),
        ("seed=1,,2", "name=value,value"),
        ("seed=1,", "name=value,value"),
        ("sed=1,2", "did you mean 'seed'"),
        ("num_inference_steps=1,2", "num_inference_steps"),
        ("width=64", "valid: control_scale, guidance_scale"),
        ("seed=1.5", "seed=1.5; it must be a whole number"),
        ("strength=much", "strength=much; it must be a number"),
        ("seed=1,2,1", "a value of seed twice"),
        ("seed=1 x seed=2", "seed twice"),
        ("seed=1 x steps=2 x strength=1 x guidance_scale=2", "4 axes"),
    ],
)
def test_mistakes_in_axes_are_named(text, message) -> None:
    with pytest.raises(InputError) as raised:
        parse(text)
    assert message in str(raised.value)


def test_cells_are_all_combinations() -> None:
    made = cells(Request(prompt="a cat"), parse("steps=2,3 x seed=1,2"))
    assert [(one.prompt, one.steps, one.seed) for one in made] == [
        ("a cat", 2, 1), ("a cat", 2, 2), ("a cat", 3, 1), ("a cat", 3, 2),
    ]  # fmt: skip
    assert cells(Request(prompt="a cat"), []) == [Request(prompt="a cat")]


def test_a_grid_is_drawn_once_loaded(capsys, tmp_path, model, monkeypatch) -> None:
    loads = []
    whole = langevin.StableDiffusionPipeline.from_pretrained.__func__
    monkeypatch.setattr(
        langevin.StableDiffusionPipeline,
        "from_pretrained",
        classmethod(lambda cls, *args, **kwargs: loads.append(1) or whole(cls, *args, **kwargs)),
    )
    axes = "guidance_scale=1,3,9 x scheduler=euler,ddim x seed=1,2"
    options = ["--model", model, "--steps", "2", "--grid", axes]
    paths = run(capsys, "a cat", *options, "--output", str(tmp_path / "cat.png"))
    assert len(paths) == 13 and loads == [1]
    names = [path.rpartition("/")[2] for path in paths]
    assert names[:3] == ["cat-1-euler-1.png", "cat-1-euler-2.png", "cat-1-ddim-1.png"] and names[-1] == "cat-sheet.png"
    found = [facts(path) for path in paths]
    assert [(one["guidance_scale"], one["scheduler"], one["seed"]) for one in found[:3]] == [
        (1.0, "EulerDiscreteScheduler", 1), (1.0, "EulerDiscreteScheduler", 2), (1.0, "DDIMScheduler", 1),
    ]  # fmt: skip
    assert found[-1]["grid"] == {"guidance_scale": [1.0, 3.0, 9.0], "scheduler": ["euler", "ddim"], "seed": [1, 2]}
    (alone,) = run(capsys, "a cat", "--model", model, "--steps", "2", "--guidance-scale", "9", "--scheduler", "ddim",
                   "--seed", "2", "--output", str(tmp_path))  # fmt: skip
    assert Image.open(alone).tobytes() == Image.open(paths[11]).tobytes(), "a cell is the picture made alone"


def test_the_count_is_announced_and_progress_goes_over_the_grid(capsys, tmp_path, model) -> None:
    from langevin.cli import main

    options = ["--model", model, "--steps", "1", "--output", str(tmp_path)]
    with pytest.raises(SystemExit):
        main(["generate", "a cat", *options, "--grid", "guidance_scale=1,2"])
    out, err = capsys.readouterr()
    assert err.index("Grid of 2 pictures: guidance_scale (2)") < err.index("Loading")
    assert "2/2" in err and "picture" in err and "0/1" not in err
    seeds = {facts(path)["seed"] for path in out.splitlines()}
    assert len(seeds) == 1, "one seed is drawn for all"
    with pytest.raises(SystemExit):
        main(["generate", "a cat", *options, "--grid", "seed=1,2", "--quiet"])
    assert capsys.readouterr().err == ""


def test_strength_is_an_axis(capsys, tmp_path, model) -> None:
    tiny.picture().save(tmp_path / "in.png")
    options = ["--model", model, "--steps", "4", "--seed", "1", "--output", str(tmp_path / "out")]
    paths = run(capsys, "a cat", *options, "--image", str(tmp_path / "in.png"), "--grid", "strength=0,0.5,1")
    assert [facts(path)["strength"] for path in paths[:3]] == [0.0, 0.5, 1.0]
    assert Image.open(paths[0]).tobytes() == tiny.picture().tobytes(), "strength 0 is the picture"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--grid", "sed=1"], "did you mean 'seed'"),
        (["--grid", "seed=1,2", "--seed", "3"], "--seed was given, and seed is an axis"),
        (["--grid", "seed=1,2", "--num-images", "2"], "give an axis seed"),
        (["--grid", "scheduler=euler,eulr"], "did you mean 'euler'"),
        (["--grid", "strength=0.5"], "--strength needs --image"),
        (["--grid", "steps=0,2"], "at least 1"),
        (["--grid", "prompt=a,b"], "PROMPT was given"),
        (["--grid", "guidance_scale=1,inf"], "finite"),
    ],
)
def test_mistakes_are_one_message_and_status_2(capsys, tmp_path, model, argv, message) -> None:
    error = refused(capsys, "a cat", "--model", model, *argv, "--output", str(tmp_path / "none"))
    assert message in error and "Loading" not in error and not (tmp_path / "none").exists()


def test_pictures_lie_under_their_values() -> None:
    axes = parse("guidance_scale=1,2,3 x steps=4,5 x seed=6,7")
    colours = [(40 * g, 60 * s, 80 * r) for g in (1, 2, 3) for s in (1, 2) for r in (1, 2)]
    sheet = contact_sheet([Image.new("RGB", (64, 64), colour) for colour in colours], axes)
    values = np.asarray(sheet)
    places = []
    for colour in colours:
        rows, columns = np.where((values == colour).all(-1))
        assert len(rows) == 128 * 128, "small pictures are enlarged, and none is covered"
        places.append((columns.min(), rows.min()))
    left = sorted({x for x, _ in places})
    assert len(left) == 3 and len({y for _, y in places}) == 4
    for index, (x, _) in enumerate(places):
        assert x == left[index // 4], "the first axis runs to the right"
    assert places[1][1] > places[2][1] > places[0][1], "the second runs down inside the blocks of the third"
    ink = (values < 120).all(-1) & (np.ptp(values, axis=-1) == 0)
    assert ink[: places[0][1], left[0] :].any() and ink[:, : left[0]].any(), "labels above and at the left"


def test_labels_that_the_font_cannot_write_are_numbered() -> None:
    font = ImageFont.load_default(14)
    assert readable(Axis("prompt", ("빨간 집", "a cat"), ("빨간 집", "a cat")), font) == ["prompt 1", "a cat"]
    assert contact_sheet([Image.new("RGB", (8, 8))] * 2, parse("prompt=빨간 집,파란 집")).width > 128
    long = wrapped("word " * 30 + "W" * 200, 120, font)
    assert all(font.getlength(line) <= 120 for line in long.split("\n"))
    assert long.replace("\n", "").replace(" ", "") == "word" * 30 + "W" * 200


def test_one_value_and_wide_pictures() -> None:
    sheet = contact_sheet([Image.new("RGB", (600, 200), "red")], parse("seed=3"))
    assert sheet.width == 612 and 200 < sheet.height < 300
