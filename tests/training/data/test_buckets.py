"""Buckets: sizes of one area, the nearest shape for every picture, and what a crop takes away."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from langevin.core.errors import InputError
from langevin.training.data.buckets import assign, kept, loss, nearest, plan, sheet
from langevin.training.data.framing import Framing


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 1100))
def test_sizes_have_at_most_the_area_and_hold_every_shape_both_ways(resolution: int) -> None:
    sizes = plan(resolution)
    assert (resolution, resolution) in sizes and {(wide, high) for high, wide in sizes} == set(sizes)
    assert all(high * wide <= resolution**2 and max(high, wide) <= 2 * min(high, wide) for high, wide in sizes)


def test_the_plan_of_usual_resolutions() -> None:
    assert plan(512) == [(640, 384), (576, 448), (512, 512), (448, 576), (384, 640)]
    assert len(plan(1024)) == 9 and len(plan(64)) == 5
    assert plan(512, step=64, widest=1.0) == [(512, 512)]
    with pytest.raises(InputError, match="No bucket"):
        plan(32, step=64)


@settings(max_examples=80, deadline=None)
@given(st.integers(10, 900), st.integers(10, 900))
def test_the_loss_is_the_area_that_the_crop_leaves_out(high: int, wide: int) -> None:
    bucket = nearest((high, wide), plan(512))
    left, top, right, bottom = kept((high, wide), bucket)
    assert (right - left) * (bottom - top) / (high * wide) == pytest.approx(1 - loss((high, wide), bucket))
    assert min(left, top) > -1e-6 and right < wide + 1e-6 and bottom < high + 1e-6
    assert all(loss((high, wide), bucket) <= loss((high, wide), other) + 1e-9 for other in plan(512))
    frame = Framing(*bucket, centre=True).place((high, wide), torch.Generator().manual_seed(0))
    assert frame.left * wide / frame.resized[1] == pytest.approx(left, abs=2 * wide / frame.resized[1] + 1)


def test_poor_buckets_are_dissolved_until_every_one_has_enough() -> None:
    pictures = [(512, 512)] * 4 + [(448, 576)] * 2 + [(384, 640)]
    sizes = plan(512)
    assert assign(pictures, sizes) == pictures
    assert assign(pictures, sizes, least=3) == [(512, 512)] * 4 + [(448, 576)] * 3
    assert assign(pictures, sizes, least=9) == [(512, 512)] * 7
    assert assign([], sizes) == []


def test_a_sheet_dims_what_is_cut_away() -> None:
    white = Image.fromarray(np.full((100, 200, 3), 255, np.uint8))
    values = np.asarray(sheet([("a.png", lambda: white, (100, 100))], cell=180)).astype(int)
    row = values[8 + 90, 8 : 8 + 180]
    reddish = (row[:, 0] - row[:, 1]) > 60
    assert reddish[:44].all() and reddish[-44:].all() and not reddish[46:134].any()
