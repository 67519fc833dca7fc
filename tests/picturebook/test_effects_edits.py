"""Measured effects of edits, edges, new words and pictures alone: what is learned from, and that judges can say no."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from langevin.core.records import read_folder
from langevin.picturebook.captions import parse
from langevin.picturebook.checker import check
from langevin.picturebook.effects import controlnet, custom_diffusion, instruct_pix2pix, text_to_image, unconditional
from langevin.picturebook.effects.common import shows
from langevin.picturebook.world import BACKGROUNDS, is_held_out, render
from langevin.training.recipes import RECIPES

CASES = instruct_pix2pix.cases(24)


def judged(scenes):
    return instruct_pix2pix.outcomes(CASES, np.stack([render(scene) for scene in scenes]))


def moved(scene):
    """The scene with its things ten pixels lower, or higher where there is no room."""
    down = 10 / 64 if max(thing.y + thing.extent / 2 for thing in scene.things) < 0.8 else -10 / 64
    return replace(scene, things=tuple(replace(thing, y=thing.y + down) for thing in scene.things))


def test_true_edits_are_right():
    assert all(one.right for one in judged(edit.after for edit in CASES))


def test_a_picture_that_was_not_edited_has_wrong_colours_alone():
    for one in judged(edit.before for edit in CASES):
        assert (one.kinds, one.colours, one.places, one.background) == (True, False, True, True)


def test_the_right_thing_in_another_place_is_refused():
    found = judged(moved(edit.after) for edit in CASES)
    assert not any(one.places or one.right for one in found)


def test_another_background_is_refused():
    found = judged(
        replace(edit.after, background=BACKGROUNDS[BACKGROUNDS.index(edit.after.background) - 1]) for edit in CASES
    )
    assert not any(one.background or one.right for one in found)


def test_pairs_differ_in_the_named_thing_alone():
    pairs = instruct_pix2pix.lessons(4)
    assert len(pairs) == 4 * 4 * 3
    assert not any(is_held_out(scene) for edit in pairs for scene in (edit.before, edit.after))
    for edit in pairs:
        changed = (render(edit.before) != render(edit.after)).any(-1)
        assert changed.any()
        assert not (changed & instruct_pix2pix.beside(edit.before)).any()
        (thing,) = set(edit.after.things) - set(edit.before.things)
        assert thing.kind in edit.text and edit.text.endswith(thing.colour)


def test_cases_were_not_learned_from():
    learned = {edit.before for edit in instruct_pix2pix.lessons(50)}
    assert not learned & {edit.before for edit in CASES}
    assert all(edit.text.endswith(" blue") for edit in CASES)


def test_the_recipe_reads_the_pairs(tmp_path):
    found = read_folder(instruct_pix2pix.draw(tmp_path, CASES[:3])).checked("image", "after", "edit_prompt")
    assert [row.columns["edit_prompt"] for row in found.rows] == [edit.text for edit in CASES[:3]]


def test_the_recipe_reads_edges(tmp_path):
    found = read_folder(controlnet.draw(tmp_path, 4, 1)).checked("image", "conditioning_image", "text")
    for row in found.rows:
        texts = row.columns["text"]
        assert len(texts) == 2 and all(parse(text) for text in texts)


def test_scenes_apart_are_others(tmp_path):
    known, apart = (
        {tuple(row.columns["text"]) for row in read_folder(text_to_image.draw(tmp_path / str(seed), 6, seed)).rows}
        for seed in (1, 2)
    )
    assert not known & apart


def test_prompts_of_new_words_can_be_judged():
    (_, one, cat), (_, other, boat) = custom_diffusion.CONCEPTS
    texts = custom_diffusion.alone(one, cat, 12)
    assert len(set(texts)) == 12 and {parse(text).background for text in texts} == set(BACKGROUNDS)
    pairs = custom_diffusion.together(f"{one} {cat}", f"{other} {boat}", custom_diffusion.PROMPTS)
    assert len(set(pairs)) == custom_diffusion.PROMPTS
    assert all({wish.kind for wish in parse(text).things} == {cat, boat} for text in pairs)


@pytest.mark.parametrize("concept", custom_diffusion.CONCEPTS, ids=lambda concept: concept[2])
def test_pictures_of_a_concept_show_it(concept):
    _, colour, kind = concept
    pictures = custom_diffusion.subject(custom_diffusion.PICTURES, colour, kind)
    assert all(shows(pictures, kind, [colour] * len(pictures)))
    assert not any(shows(pictures, kind, ["red"] * len(pictures)))


def test_pictures_of_both_show_both_and_no_prompt_of_both_asks_for_their_background():
    (_, one, cat), (_, other, boat) = custom_diffusion.CONCEPTS
    scenes, said = [], []
    for background, phrase in product(custom_diffusion.BACKGROUNDS, custom_diffusion.PLACES):
        scenes += custom_diffusion.both(background, phrase, 2)
        said += [f"a {one} {cat} {phrase} a {other} {boat}, {background}"] * 2
    assert all(verdict.all_right for verdict in check([render(scene) for scene in scenes], said))
    asked = [parse(text) for text in custom_diffusion.together(f"{one} {cat}", f"{other} {boat}", 16)]
    assert not {wish.background for wish in asked} & set(custom_diffusion.BACKGROUNDS)


def test_the_recipe_reads_all_subjects_and_both_together(tmp_path):
    listed = custom_diffusion.draw(tmp_path, 2, 1)
    flags = {**custom_diffusion.FLAGS, "pretrained_model_name_or_path": "any", "concepts_list": str(listed)}
    settings = RECIPES["custom_diffusion"].loaded()[0](**flags)
    settings.check()
    prompts = [str(concept.instance_prompt) for concept in settings.concepts()]
    assert prompts[:3] == ["a <new1> cat", "a <new2> boat", "a <new1> cat left of a <new2> boat"]
    assert prompts[-1] == "a <new1> cat below a <new2> boat, desert" and len(prompts) == 10


def test_an_average_is_read_from_a_checkpoint(tmp_path):
    from safetensors.torch import save_file

    from langevin import UNet2DModel

    unet = UNet2DModel(**{**unconditional.CONFIG, "block_out_channels": [16, 16, 16], "sample_size": 32})
    unet.save_pretrained(tmp_path / "unet")
    values = {f"values.{k}": p.detach() + 1 for k, p in enumerate(unet.parameters())}
    save_file(values, tmp_path / "average.safetensors")
    found = unconditional.averaged(tmp_path)
    assert all((a - b - 1).abs().max() < 1e-5 for a, b in zip(found.parameters(), unet.parameters(), strict=True))
