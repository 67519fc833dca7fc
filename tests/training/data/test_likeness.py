"""Copies are recognised by their pixels, and pictures that look nearly the same are told from those that do not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from langevin.picturebook.world import render, sample_scene
from langevin.training.data.likeness import groups, likeness, near


def scenes(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(render(sample_scene(rng))) for _ in range(count)]


def saved(picture: Image.Image, **options) -> Image.Image:
    held = io.BytesIO()
    picture.save(held, **options)
    return Image.open(held).convert("RGB")


def test_the_hash_is_that_of_the_pixels_and_not_of_the_file() -> None:
    one, other = scenes(2)
    assert (
        likeness(one).pixels == likeness(saved(one, format="PNG")).pixels == likeness(saved(one, format="BMP")).pixels
    )
    assert likeness(one).pixels not in (likeness(other).pixels, likeness(saved(one, format="JPEG")).pixels)
    flat = np.zeros((4, 6, 3), np.uint8)
    assert likeness(Image.fromarray(flat)).pixels != likeness(Image.fromarray(flat.reshape(6, 4, 3))).pixels


CHANGES = {
    "compressed": lambda picture: saved(picture, format="JPEG", quality=40),
    "half the size": lambda picture: picture.resize((32, 32), Image.Resampling.LANCZOS),
    "brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.06),
    "trimmed": lambda picture: picture.crop((1, 1, 63, 63)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_and_different_scenes_are_not(change: str) -> None:
    originals = scenes(150)
    copies = [CHANGES[change](picture) for picture in originals]
    pairs = list(near([likeness(picture) for picture in originals + copies]))
    right = [pair for pair in pairs if pair[1] - pair[0] == 150]
    assert len(right) >= 0.93 * 150
    assert len(pairs) == len(right)


def test_the_same_drawing_in_another_colour_is_another_picture() -> None:
    values = np.full((64, 64, 3), 240, np.uint8)
    red, blue = values.copy(), values.copy()
    red[20:50, 10:40] = (200, 40, 40)
    blue[20:50, 10:40] = (60, 60, 250)
    assert not list(near([likeness(Image.fromarray(each)) for each in (red, blue)]))


def test_flat_pictures_are_compared_by_colour() -> None:
    flat = [likeness(Image.new("RGB", (32, 32), colour)) for colour in ((9, 9, 9), (10, 9, 9), (90, 9, 9))]
    assert list(near(flat)) == [(0, 1)]
    assert list(near([])) == []


def test_pairs_become_groups() -> None:
    assert groups(7, iter([(4, 5), (0, 2), (2, 5)])) == [[0, 2, 4, 5]]
    assert groups(3, iter([])) == []
