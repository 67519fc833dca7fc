"""The picturebook draws what its scenes say, the same way every time, and keeps the held-out combinations back."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from langevin.core.errors import InputError
from langevin.picturebook.drawing import COLOUR_VALUES
from langevin.picturebook.world import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_COLOURS,
    HELD_OUT_RELATIONS,
    KINDS,
    STYLES,
    Scene,
    Thing,
    is_held_out,
    render,
    sample_scene,
)


def scenes(count: int, seed: int = 0, *, held_out: bool = False) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, held_out=held_out) for _ in range(count)]


def one(kind: str, colour: str, background: str = "plain", style: str = "flat") -> Scene:
    return Scene((Thing(kind, colour, "big", 1, 0.5, 0.5, 34 / 64),), None, background, style, seed=5)


def close_to(picture: np.ndarray, colour: str) -> int:
    """Count the pixels nearer to `colour` than to any other of the ten: within 40 steps per channel, 4 for white."""
    values = np.array([COLOUR_VALUES[name] for name in COLOURS], dtype=np.float32)
    distance = np.abs(picture.reshape(-1, 1, 3) - values).max(-1)
    return int(
        ((distance.argmin(1) == COLOURS.index(colour)) & (distance.min(1) < (4 if colour == "white" else 40))).sum()
    )


def test_the_world_is_as_large_as_documented() -> None:
    assert (len(KINDS), len(COLOURS), len(BACKGROUNDS), len(STYLES)) == (16, 10, 6, 5)
    assert all(colour in COLOURS and kind in KINDS for colour, kind in HELD_OUT_COLOURS)
    assert all(first in KINDS and second in KINDS for first, _, second in HELD_OUT_RELATIONS)


def test_the_same_scene_is_the_same_picture() -> None:
    from langevin.picturebook import drawing, scenery

    drawn = scenes(60)
    first = [render(scene) for scene in drawn]
    drawing.sprite.cache_clear()
    scenery.scenery.cache_clear()
    for scene, picture in zip(reversed(drawn), reversed(first), strict=True):
        assert np.array_equal(render(scene), picture)
    assert drawn == scenes(60)
    assert drawn != scenes(60, seed=1)


def test_a_picture_may_be_changed_without_harm_to_the_next() -> None:
    scene = one("cat", "orange")
    picture = render(scene)
    kept = picture.copy()
    picture[...] = 0
    assert np.array_equal(render(scene), kept)


def test_shape_and_type() -> None:
    for size in (64, 128):
        picture = render(scenes(1)[0], size)
        assert picture.shape == (size, size, 3)
        assert picture.dtype == np.uint8


def test_a_larger_picture_shows_the_same_scene() -> None:
    for scene in scenes(30, seed=3):
        if scene.style in ("flat", "pastel"):
            large = render(scene, 128).reshape(64, 2, 64, 2, 3).mean((1, 3))
            assert np.abs(large - render(scene)).mean() < 9


@pytest.mark.parametrize("colour", COLOURS)
def test_a_thing_shows_its_colour(colour: str) -> None:
    for kind in KINDS:
        for background in BACKGROUNDS:
            empty = Scene((), None, background, "flat", seed=5)
            found = close_to(render(one(kind, colour, background)), colour) - close_to(render(empty), colour)
            assert found > 90, (kind, background)


def test_every_kind_colour_background_and_style_makes_its_own_picture() -> None:
    base = one("house", "red")
    others = [replace(base, things=(replace(base.things[0], kind=kind),)) for kind in KINDS[1:]]
    others += [replace(base, things=(replace(base.things[0], colour=colour),)) for colour in COLOURS[1:]]
    others += [replace(base, background=background) for background in BACKGROUNDS[:-1]]
    others += [replace(base, style=style) for style in STYLES[1:]]
    pictures = [render(scene).tobytes() for scene in (base, *others)]
    assert len(set(pictures)) == len(pictures)


def test_training_scenes_never_hold_a_held_out_combination() -> None:
    drawn = scenes(20_000)
    assert not any(is_held_out(scene) for scene in drawn)
    seen = {(thing.colour, thing.kind) for scene in drawn for thing in scene.things}
    assert seen == {(colour, kind) for colour in COLOURS for kind in KINDS} - HELD_OUT_COLOURS


def test_held_out_scenes_hold_all_of_them_and_nothing_else() -> None:
    drawn = scenes(3000, held_out=True)
    assert all(is_held_out(scene) for scene in drawn)
    pairs = {(thing.colour, thing.kind) for scene in drawn for thing in scene.things}
    triples = {(*(t.kind for t in s.things), s.relation) for s in drawn if len(s.things) == 2}
    assert pairs >= HELD_OUT_COLOURS
    assert triples >= {(first, second, relation) for first, relation, second in HELD_OUT_RELATIONS}


def test_the_mix_of_scenes() -> None:
    drawn = scenes(8000, seed=2)
    share = {name: count / len(drawn) for name, count in Counter(scene.style for scene in drawn).items()}
    assert share["flat"] == pytest.approx(0.6, abs=0.03)
    assert all(share[style] == pytest.approx(0.1, abs=0.02) for style in STYLES[1:])
    assert np.mean([s.background == "plain" for s in drawn]) == pytest.approx(0.25, abs=0.03)
    assert np.mean([len(s.things) == 1 for s in drawn]) == pytest.approx(0.5, abs=0.03)
    assert {thing.count for scene in drawn for thing in scene.things} == {1, 2}


def test_things_lie_as_their_relation_says_and_inside_the_picture() -> None:
    for scene in scenes(4000, seed=4):
        for thing in scene.things:
            half = thing.extent / 2
            reach = 0.235 if thing.count == 2 else 0.0
            assert thing.x - reach - half >= -0.02 and thing.x + reach + half <= 1.02
            assert thing.y - half >= -0.02 and thing.y + half <= 1.02
        if scene.relation is not None:
            first, second = scene.things
            across, down = second.x - first.x, second.y - first.y
            along, aside = (across, down) if scene.relation == "left of" else (down, across)
            assert along > 0.4 and along > 1.5 * abs(aside)


@pytest.mark.parametrize("x, y", [(1.5, 0.5), (-0.5, 0.5), (0.5, 1.5), (0.5, -0.5)])
def test_a_thing_outside_the_picture_leaves_it_as_it_is(x: float, y: float) -> None:
    scene = one("cat", "red")
    away = replace(scene, things=(replace(scene.things[0], x=x, y=y),))
    assert np.array_equal(render(away), render(replace(scene, things=())))


def test_bad_input_names_the_cure() -> None:
    with pytest.raises(InputError, match="multiple of 64"):
        render(one("cat", "red"), 100)
    with pytest.raises(InputError, match="'house'"):
        render(one("hause", "red"))
    with pytest.raises(InputError, match="'purple'"):
        render(one("house", "purpel"))
    with pytest.raises(InputError, match="'meadow'"):
        render(one("house", "red", background="medow"))
    with pytest.raises(InputError, match="'chalk'"):
        render(one("house", "red", style="chalks"))
