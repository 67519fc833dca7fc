"""Editing with the shipped model: what a picture keeps, and what the prompt changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from langevin.picturebook import GUIDANCE_SCALE, captions, model_folder, world
from langevin.picturebook.checker import check

COUNT = 12


@pytest.fixture(scope="module")
def parts():
    from langevin import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(model_folder()).components


def scenes(things: int, seed: int) -> list[world.Scene]:
    """Return flat scenes of single big things."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < COUNT:
        scene = world.sample_scene(rng)
        plain = scene.style == "flat" and all(thing.count == 1 and thing.size != "small" for thing in scene.things)
        if plain and len(scene.things) == things:
            found.append(scene)
    return found


def pictures(many) -> list[Image.Image]:
    return [Image.fromarray(world.render(scene)) for scene in many]


def say(many) -> list[str]:
    return [captions.describe(scene, np.random.default_rng(k)) for k, scene in enumerate(many)]


def changed(scene: world.Scene, which: int, rng, *, kinds: bool) -> world.Scene:
    """Return the scene with another colour, or another kind and colour, of one thing."""
    old, taken = scene.things[which], {thing.kind for thing in scene.things}
    options = [(k, c) for k in world.KINDS for c in world.COLOURS if (c, k) not in world.HELD_OUT_COLOURS]
    fits = [(k, c) for k, c in options if c != old.colour and (k not in taken if kinds else k == old.kind)]
    kind, colour = fits[int(rng.integers(len(fits)))]
    things = list(scene.things)
    things[which] = replace(old, kind=kind, colour=colour)
    return replace(scene, things=tuple(things))


def test_a_picture_keeps_its_layout_and_takes_the_colour(parts) -> None:
    from langevin import StableDiffusionImg2ImgPipeline

    pipe = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    rng, before = np.random.default_rng(1), scenes(1, seed=777)
    after = [changed(scene, 0, rng, kinds=False) for scene in before]
    call = {"image": pictures(before), "strength": 0.4, "num_inference_steps": 25, "guidance_scale": GUIDANCE_SCALE}
    verdicts = check(pipe(say(after), **call, seed=0).images, say(after))
    shifts = []
    for scene, verdict in zip(after, verdicts, strict=True):
        seen = [found for found in verdict.found if found.kind == scene.things[0].kind]
        shifts += [64 * np.hypot(found.x - scene.things[0].x, found.y - scene.things[0].y) for found in seen]
    assert sum(verdict.all_right for verdict in verdicts) >= 8, "few things took the colour"
    assert len(shifts) >= 10 and np.median(shifts) <= 3, "things moved, in pixels of 64"


def test_inpainting_draws_what_is_asked_and_leaves_every_other_byte(parts) -> None:
    from langevin import StableDiffusionInpaintPipeline

    pipe = StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    rng, before = np.random.default_rng(2), scenes(2, seed=778)
    after = [changed(scene, 1, rng, kinds=True) for scene in before]
    masks = [hole(scene.things[1]) for scene in before]
    call = {"image": pictures(before), "mask_image": masks, "num_inference_steps": 25}
    made = pipe(say(after), **call, guidance_scale=GUIDANCE_SCALE, seed=0).images
    verdicts = check(made, say(after))
    assert sum(verdict.kinds_right for verdict in verdicts) >= 9
    assert sum(verdict.all_right for verdict in verdicts) >= 7
    for picture, mask, result in zip(pictures(before), masks, made, strict=True):
        kept = np.asarray(mask) == 0
        assert (np.asarray(result)[kept] == np.asarray(picture)[kept]).all()


@pytest.mark.parametrize("seed", range(6))
def test_every_byte_outside_any_mask_of_any_size_stays(parts, seed) -> None:
    from langevin import StableDiffusionInpaintPipeline

    pipe = StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(seed)
    width, height = (4 * int(side) for side in rng.integers(6, 25, 2))
    picture = Image.fromarray(world.render(world.sample_scene(rng), 128)).resize((width, height))
    mask = rng.random((height, width)) < rng.random()
    call = {"width": width, "height": height, "num_inference_steps": 2, "strength": float(rng.uniform(0.1, 1))}
    shown = Image.fromarray(mask.astype(np.uint8) * 255)
    result = np.asarray(pipe("a red house", picture, shown, **call, guidance_scale=2.0, seed=seed).images[0])
    assert (result[~mask] == np.asarray(picture)[~mask]).all() and (result[mask] != np.asarray(picture)[mask]).any()


def hole(thing: world.Thing) -> Image.Image:
    """Return a mask over a thing and a margin of half its size."""
    half, mask = 48 * thing.extent, np.zeros((64, 64), np.uint8)
    left, right, top, bottom = (
        int(np.clip(64 * place + side * half, 0, 64)) for place in (thing.x, thing.y) for side in (-1, 1)
    )
    mask[top:bottom, left:right] = 255
    return Image.fromarray(mask)
