"""One decoder for every kind of picture, and an encoder that never paints NaN black."""

import numpy as np
import pytest
import torch
from PIL import Image

from langevin.core import images
from langevin.core.errors import InputError, NonFiniteError


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "I", "F", "HSV", "LAB"])
def test_every_mode_becomes_rgb(mode):
    source = Image.new("L", (6, 4), 200)
    picture = Image.fromarray(np.full((4, 6), 200 * 257, np.uint16)) if mode == "I;16" else (
        source.convert("RGB").convert(mode) if mode in ("HSV", "CMYK", "YCbCr", "RGBA") else
        Image.new("LAB", (6, 4), (200, 128, 128)) if mode == "LAB" else source.convert(mode))  # fmt: skip
    rgb = images.decode(picture)
    assert rgb.mode == "RGB" and rgb.size == (6, 4)
    assert np.asarray(rgb).mean() > 180


def test_transparency_is_laid_over_the_background():
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert images.decode(clear).getpixel((0, 0)) == (255, 255, 255)
    assert images.decode(clear, background=(0, 0, 9)).getpixel((0, 0)) == (0, 0, 9)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = Image.new("RGB", (8, 4), "black")
    upright.putpixel((0, 0), (255, 255, 255))
    turns = ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90", "TRANSVERSE", "ROTATE_270"]
    undo = None if orientation == 1 else Image.Transpose[turns[orientation - 2]]
    stored = upright.transpose(undo) if undo is not None else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    decoded = images.decode(tmp_path / "a.png")
    assert decoded.size == (8, 4) and decoded.getpixel((0, 0)) == (255, 255, 255)


def test_round_trip_through_every_output_type():
    pictures = [Image.fromarray(np.random.default_rng(k).integers(0, 256, (4, 6, 3), np.uint8)) for k in range(2)]
    tensor = images.to_tensor(pictures)
    assert tensor.shape == (2, 3, 4, 6) and tensor.min() >= 0 and tensor.max() <= 1
    signed = tensor * 2 - 1
    assert all(np.array_equal(a, b) for a, b in zip(images.to_images(signed), pictures, strict=True))
    assert images.to_images(signed, "np").shape == (2, 4, 6, 3)
    assert torch.allclose(images.to_images(signed, "pt"), tensor, atol=1e-6)
    assert images.to_images(signed, "latent") is signed
    assert torch.equal(images.to_tensor(np.stack([np.asarray(p) for p in pictures])), tensor)


def test_bad_pictures_are_named(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(InputError, match=r"a\.png cannot be read"):
        images.decode(tmp_path / "a.png")
    with pytest.raises(InputError, match="does not exist"):
        images.load_image(tmp_path / "b.png")
    with pytest.raises(InputError, match="one size"):
        images.to_tensor([Image.new("RGB", (2, 2)), Image.new("RGB", (3, 2))])
    with pytest.raises(InputError, match="did you mean 'pil'"):
        images.to_images(torch.zeros(1, 3, 2, 2), "pill")
    with pytest.raises(NonFiniteError, match="NaN"):
        images.to_images(torch.full((1, 3, 2, 2), torch.nan))


def test_grid_places_pictures_row_by_row():
    cells = [Image.new("RGB", (2, 2), (k, 0, 0)) for k in range(5)]
    sheet = images.grid(cells, 2, 3)
    assert sheet.size == (6, 4) and sheet.getpixel((2, 2)) == (4, 0, 0) and sheet.getpixel((5, 3)) == (255, 255, 255)
    with pytest.raises(InputError, match="do not fit"):
        images.grid(cells, 1, 3)
