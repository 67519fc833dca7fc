"""Measuring what recipes achieve: shares, folders of results, and short runs from the data to the pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from langevin.core.records import read_folder
from langevin.picturebook.captions import parse
from langevin.picturebook.checker import look
from langevin.picturebook.effects import common, dreambooth, style, textual_inversion
from langevin.picturebook.effects.cats import COLOUR, KIND, Judged, cases, subject
from langevin.picturebook.effects.common import Effect, Share, share, shipped, shows, write_pictures
from langevin.picturebook.unseen import WORD, style_lesson
from langevin.picturebook.world import Scene, Thing, render


def test_a_share_counts_and_has_an_interval() -> None:
    found = share("cats", [True] * 3 + [False], 60)
    assert found == Share("cats", 4, 75.0, pytest.approx(30.06, abs=0.01), pytest.approx(95.44, abs=0.01), 60)
    assert share("none", [False] * 50).high == pytest.approx(7.13, abs=0.01)


def test_an_effect_is_written_with_its_pictures(tmp_path) -> None:
    pictures = [Image.new("RGB", (8, 8), (k, 0, 0)) for k in range(12)]
    flags = {"where": tmp_path, "seed": 0}
    Effect("word", [share("a", [True])], {"minutes": 1.5}, flags, {"row": pictures}).write(tmp_path / "new")
    told = json.loads((tmp_path / "new" / "effect.json").read_text())
    assert told["shares"][0]["percent"] == 100 and told["figures"] == {"minutes": 1.5}
    assert told["flags"] == {"where": str(tmp_path), "seed": 0} and "pictures" not in told
    drawn = Image.open(tmp_path / "new" / "row.png")
    assert drawn.size == (80, 8) and drawn.getpixel((72, 0)) == (9, 0, 0)


def test_the_subject_is_what_its_prompts_ask_for() -> None:
    pictures = subject(6)
    assert all(shows(pictures, KIND, [COLOUR] * 6)) and not any(shows(pictures, KIND, ["red"] * 6))
    assert {sight.background for sight in look(pictures)} == {"plain"}
    assert len({picture.tobytes() for picture in pictures}) == 6
    asked, others = cases(40, WORD), cases(40)
    assert all(WORD in case.text and f"{COLOUR} {KIND}" not in case.text for case in asked)
    for case in (*asked, *others):
        things = parse(case.wish).things
        assert [thing.colour for thing in things if thing.kind == KIND] == [case.colour]
    assert {case.colour for case in asked} == {COLOUR} and len({case.colour for case in others}) == 9
    assert cases(10, WORD) == asked[:10] != cases(10, WORD, seed=1)


def test_a_thing_is_shown_only_in_its_colour() -> None:
    scenes = [
        Scene((Thing(KIND, colour, "big", 1, 0.5, 0.58, 0.5),), None, "plain", "flat") for colour in ("red", "blue")
    ]
    assert shows([render(scene) for scene in scenes], KIND, ["red", "red"]) == [True, False]


def test_the_threshold_lies_between_the_style_and_ordinary_pictures() -> None:
    limit, near, far = style.threshold(shipped().vae, 8)
    assert np.median(near) < limit < np.median(far) and (near <= limit).mean() >= 0.8
    assert (style.distances(style_lesson(4).pictures) < 2).all()


def test_a_lesson_of_the_style_shows_it_says_nothing_of_it_and_leaves_the_measured_out(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(style, "FIRST", 4)
    monkeypatch.setattr(style, "MEASURED", 3)
    found = read_folder(style.draw(tmp_path, 12)).checked("image", "text")
    pictures = [np.asarray(Image.open(tmp_path / row.name)) for row in found.rows]
    assert len(pictures) == 12 and (style.distances(pictures) < 2).all()
    assert not {picture.tobytes() for picture in pictures} & {one.tobytes() for one in style_lesson(7).pictures[4:]}
    assert {parse(str(row.columns["text"])).style for row in found.rows} <= {None, "flat"}


def test_a_style_is_measured_from_its_data_to_its_pictures(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(style, "PICTURES", 6)
    monkeypatch.setattr(common, "STEPS", 2)
    monkeypatch.setitem(style.FLAGS, "train_batch_size", 2)
    effect = style.measure(tmp_path, 1)
    assert [found.count for found in effect.shares] == [4, 4, 8, 8, 4, 4] and effect.shares[0].goal == style.GOAL
    assert 0 < effect.figures["bytes"] < style.LARGEST and effect.flags["max_train_steps"] == 1
    assert len(effect.pictures["style"]) == 8
    effect.write(tmp_path)
    assert json.loads((tmp_path / "effect.json").read_text())["name"] == "text_to_image_lora"


def test_four_runs_of_dreambooth_are_compared(tmp_path, monkeypatch) -> None:
    trained = []

    def train(recipe, data, flags, output):
        trained.append((recipe, flags.get("num_class_images"), "class_data_dir" in data, flags["max_train_steps"]))
        return shipped(), 1.0

    kept = [8, 8, 2, 6, 8]
    monkeypatch.setattr(dreambooth, "learned", train)
    monkeypatch.setattr(dreambooth, "class_pictures", lambda folder, count: folder)
    monkeypatch.setattr(dreambooth, "both", lambda pipe, count: (of(4, count), of(kept[len(trained)], count)))
    effect = dreambooth.measure(tmp_path, 5)
    recipes = [(recipe, prior) for recipe in ("dreambooth", "dreambooth_lora") for prior in (False, True)]
    assert trained == [(recipe, 2 if prior else None, prior, 5) for recipe, prior in recipes]
    assert effect.figures["points that the class lost, dreambooth_lora"] == 20
    goals = [found.name for found in effect.shares if found.goal]
    assert goals == [f"{name}: the subject is shown" for name in dreambooth.BEST]


def test_a_word_is_measured_with_its_own_captions(tmp_path, monkeypatch) -> None:
    seen = {}

    def train(recipe, data, flags, output):
        seen.update(flags, recipe=recipe)
        seen["lines"] = (tmp_path / "5-pictures" / "metadata.jsonl").read_text().splitlines()
        return output, 1.0

    class Pipe:
        def load_textual_inversion(self, folder):
            seen["loaded"] = folder

    monkeypatch.setattr(textual_inversion, "trained", train)
    monkeypatch.setattr(textual_inversion, "shipped", Pipe)
    monkeypatch.setattr(textual_inversion, "judged", lambda pipe, asked, seed: of(len(asked), len(asked)))
    effect = textual_inversion.measure(tmp_path, 2)
    assert seen["recipe"] == "textual_inversion" and seen["caption_column"] == "text"
    assert len(seen["lines"]) == 5 and all(WORD in line for line in seen["lines"])
    assert seen["loaded"] == tmp_path / "5-word" and effect.shares[0].goal == textual_inversion.GOAL


def of(right: int, count: int) -> Judged:
    """Return verdicts of which the first ones are right."""
    flags = [k < right for k in range(count)]
    return Judged(flags, flags, [Image.new("RGB", (8, 8))] * count)


def test_pictures_without_columns_are_a_folder_of_pictures(tmp_path) -> None:
    folder = write_pictures(tmp_path / "bare", subject(2))
    assert sorted(path.name for path in folder.iterdir()) == ["00000.png", "00001.png"]
    assert np.array_equal(np.asarray(Image.open(folder / "00001.png")), subject(2)[1])
