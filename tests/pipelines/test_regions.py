"""Margins: any size fits, and comes back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from langevin.core.errors import InputError
from langevin.pipelines.regions import Crop, crop_box, pad_to_multiple


@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 2, 8, 64]))
def test_any_size_fits_and_comes_back(height, width, factor) -> None:
    pixels = torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width)
    padded, crop = pad_to_multiple(pixels, factor)
    assert [s % factor for s in padded.shape[-2:]] == [0, 0]
    assert padded.shape[-2] - height < factor and padded.shape[-1] - width < factor
    assert torch.equal(crop.apply(padded), pixels)
    assert torch.isin(padded, pixels).all()


def test_margins_mirror() -> None:
    pixels = torch.rand(2, 3, 61, 67)
    assert torch.equal(pad_to_multiple(pixels, 8)[0], functional.pad(pixels, (0, 5, 0, 3), mode="reflect"))
    exact = torch.rand(1, 3, 16, 8)
    assert pad_to_multiple(exact, 8)[0] is exact


def test_a_crop_cuts_every_kind_of_picture() -> None:
    crop = Crop(3, 5)
    image = Image.new("RGB", (8, 8))
    assert crop.apply(image).size == (5, 3) and crop.apply([image])[0].size == (5, 3)
    assert crop.apply(np.zeros((2, 8, 8, 3))).shape == (2, 3, 5, 3)
    assert crop.apply(torch.zeros(2, 3, 8, 8)).shape == (2, 3, 3, 5)


def test_a_negative_margin_is_named() -> None:
    with pytest.raises(InputError, match="margin"):
        crop_box(np.ones((4, 4)), 8, 8, -1)
