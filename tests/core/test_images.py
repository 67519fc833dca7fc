"""One decoder for every kind of picture, and an encoder that never paints NaN black."""

import io

import numpy as np
import pytest
import torch
from diffusers.utils import load_image as peer_load_image
from diffusers.utils import make_image_grid as peer_grid
from PIL import Image

from langevin.core import images
from langevin.core.errors import InputError, NonFiniteError


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "PA", "La", "RGBa", "RGBX",
                                  "CMYK", "YCbCr", "I;16", "I", "F", "HSV", "LAB"])  # fmt: skip
def test_every_mode_becomes_rgb(mode):
    source = Image.new("L", (6, 4), 200)
    picture = Image.fromarray(np.full((4, 6), 200 * 257, np.uint16)) if mode == "I;16" else (
        source.convert("RGB").convert(mode) if mode in ("HSV", "CMYK", "YCbCr", "RGBA", "RGBX") else
        source.convert(mode.upper()).convert(mode) if mode in ("La", "RGBa") else
        Image.new("LAB", (6, 4), (200, 128, 128)) if mode == "LAB" else source.convert(mode))  # fmt: skip
    rgb = images.decode(picture)
    assert rgb.mode == "RGB" and rgb.size == (6, 4)
    assert np.asarray(rgb).mean() > 180


def test_transparency_is_laid_over_the_background():
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert images.decode(clear).getpixel((0, 0)) == (255, 255, 255)
    assert images.decode(clear, background=(0, 0, 9)).getpixel((0, 0)) == (0, 0, 9)


def test_transparency_can_be_refused():
    with pytest.raises(InputError, match="background"):
        images.decode(Image.new("RGBA", (2, 2), (255, 0, 0, 254)), background=None)
    assert images.decode(Image.new("RGBA", (2, 2), (255, 0, 0, 255)), background=None).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(InputError, match="background"):
        images.to_tensor(np.zeros((2, 2, 4), np.uint8), background=None)
    assert images.decode(Image.new("RGBA", (1, 1)), background="red").getpixel((0, 0)) == (255, 0, 0)
    palette = Image.new("P", (2, 2))
    palette.putpalette([9, 8, 7, 200, 100, 50])
    palette.info["transparency"] = 0
    palette.putpixel((1, 0), 1)
    rgb = images.decode(palette)
    assert rgb.getpixel((0, 0)) == (255, 255, 255) and rgb.getpixel((1, 0)) == (200, 100, 50)


def test_arrays_with_alpha_are_laid_over_the_background_as_pictures_are():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8))
    picture.putalpha(Image.linear_gradient("L").resize((7, 5)))
    for image in (picture, picture.convert("LA")):
        want = images.to_tensor(images.decode(image, background="navy"))
        for array in (np.asarray(image), np.asarray(image)[None], np.asarray(image, np.float64) / 255):
            got = images.to_tensor(array, background=(0, 0, 128))
            assert got.dtype == torch.float32 and got.shape[0] == 1 and got.shape[-2:] == (5, 7)
            if image.mode == "RGBA":
                assert (got - want).abs().max() <= 2 / 255


def test_the_range_of_deep_pictures():
    def value(array, mode=None):
        picture = Image.fromarray(array)
        assert mode in (None, picture.mode)
        return images.decode(picture).getpixel((0, 0))[0]

    assert value(np.full((2, 2), 200, np.uint16), "I;16") == 1
    assert value(np.full((2, 2), 200, np.int32), "I") == 200
    assert value(np.full((2, 2), 51400, np.int32), "I") == 200
    assert value(np.full((2, 2), 200, np.float32), "F") == 200
    assert value(np.full((2, 2), 0.5, np.float32), "F") == 128
    with pytest.raises(InputError, match="scale it"):
        value(np.full((2, 2), -5, np.int32))
    with pytest.raises(NonFiniteError):
        value(np.full((2, 2), np.nan, np.float32))


@pytest.mark.parametrize(
    ("source", "shape", "value"),
    [
        (np.full((4, 6), 255, np.uint8), (1, 1, 4, 6), 1),
        (np.full((4, 6, 3), 65535, np.uint16), (1, 3, 4, 6), 1),
        (np.full((2, 4, 6, 3), 0.5), (2, 3, 4, 6), 0.5),
        (np.ones((4, 6, 1), bool), (1, 1, 4, 6), 1),
        (torch.full((4, 6), 0.25), (1, 1, 4, 6), 0.25),
        (torch.full((3, 4, 6), -1.0), (1, 3, 4, 6), -1),
        (torch.full((2, 3, 4, 6), 255, dtype=torch.uint8), (2, 3, 4, 6), 1),
        ([torch.ones(3, 4, 6)] * 2, (2, 3, 4, 6), 1),
        ([np.ones((4, 6, 3), np.float16)] * 3, (3, 3, 4, 6), 1),
        ([torch.ones(2, 3, 4, 6), torch.ones(3, 4, 6)], (3, 3, 4, 6), 1),
    ],
)
def test_shapes_and_types(source, shape, value):
    tensor = images.to_tensor(source)
    assert tensor.shape == shape and tensor.is_floating_point() and tensor.unique().tolist() == [value]


def test_a_tensor_does_not_share_the_memory_of_an_array():
    array = np.zeros((4, 6, 3), np.float32)
    images.to_tensor(array).fill_(1)
    assert not array.any()


def test_loading(tmp_path, monkeypatch):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 4), np.uint8), "RGBA")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    assert images.load_image(tmp_path / "a.png").mode == "RGB"
    assert images.load_image(str(tmp_path / "a.png"), lambda p: p.convert("L")).mode == "L"
    kept = images.load_image(tmp_path / "a.png", convert_method=lambda p: p)
    assert kept.mode == "RGBA" and kept.size == (4, 6)
    plain = picture.convert("RGB")
    assert np.array_equal(np.asarray(images.load_image(plain)), np.asarray(peer_load_image(plain)))
    with open(tmp_path / "a.png", "rb") as file:
        assert images.decode(file).size == (4, 6)
    with pytest.raises(InputError, match="https://"):
        images.load_image("ftp://example.org/a.png")

    class Response(io.BytesIO):
        pass

    data = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: Response(data))
    assert images.load_image("https://example.org/a.png").size == (4, 6)
    monkeypatch.setattr(images, "DOWNLOAD_LIMIT", 10)
    with pytest.raises(InputError, match="larger than"):
        images.load_image("https://example.org/a.png")

    def fail(url, timeout):
        raise OSError("no route")

    monkeypatch.setattr("urllib.request.urlopen", fail)
    with pytest.raises(InputError, match="no route"):
        images.load_image("https://example.org/a.png")


def test_broken_and_huge_files_are_named(tmp_path, monkeypatch):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    picture.save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"b\.png cannot be read"):
        images.decode(tmp_path / "b.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match="decompression bomb"):
        images.decode(tmp_path / "a.png")


@pytest.mark.parity
def test_grids_follow_the_peer():
    from langevin.utils import load_image, make_image_grid

    assert load_image is images.load_image
    cells = [Image.fromarray(np.random.default_rng(k).integers(0, 256, (8, 6, 3), np.uint8)) for k in range(6)]
    cells[4] = cells[4].convert("L")
    for options in ({}, {"resize": 5}):
        want, got = (f(cells, rows=2, cols=3, **options) for f in (peer_grid, make_image_grid))
        assert np.array_equal(np.asarray(want), np.asarray(got))
    mixed = [cells[0], cells[4].resize((3, 3)), Image.new("RGBA", (6, 8))]
    assert make_image_grid(mixed, 1, 3).size == (18, 8)


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


def test_a_header_with_broken_numbers_is_an_error_like_any_other(tmp_path) -> None:
    (tmp_path / "a.ppm").write_bytes(b"P6 4w 4 255\n" + bytes(48))
    with pytest.raises(InputError, match=r"a\.ppm cannot be read"):
        images.decode(tmp_path / "a.ppm")


def test_grid_places_pictures_row_by_row():
    cells = [Image.new("RGB", (2, 2), (k, 0, 0)) for k in range(5)]
    sheet = images.grid(cells, 2, 3)
    assert sheet.size == (6, 4) and sheet.getpixel((2, 2)) == (4, 0, 0) and sheet.getpixel((5, 3)) == (255, 255, 255)
    with pytest.raises(InputError, match="do not fit"):
        images.grid(cells, 1, 3)


GREYS = [
    (np.full((4, 6), 0.5, np.float32), (1, 1, 4, 6)),
    (np.full((2, 4, 6), 0.5, np.float32), (2, 1, 4, 6)),
    (np.full((4, 6, 3), 0.5, np.float32), (1, 1, 4, 6)),
    (np.full((2, 4, 6, 1), 0.5, np.float32), (2, 1, 4, 6)),
    (np.full((2, 1, 4, 6), 0.5, np.float32), (2, 1, 4, 6)),
    (torch.full((4, 6), 0.5), (1, 1, 4, 6)),
    (torch.full((3, 4, 6), 0.5), (3, 1, 4, 6)),
    (torch.full((4, 6, 1), 0.5), (1, 1, 4, 6)),
    (torch.full((2, 3, 4, 6), 0.5), (2, 1, 4, 6)),
    (torch.full((2, 4, 6, 3), 0.5), (2, 1, 4, 6)),
    ([torch.full((4, 6), 0.5)] * 2, (2, 1, 4, 6)),
]


@pytest.mark.parametrize(("source", "shape"), GREYS)
def test_grey_from_every_order_of_axes(source, shape):
    grey = images.to_grey(source)
    assert grey.shape == shape and torch.allclose(grey, torch.tensor(0.5))


def test_grey_weighs_colours_and_lays_transparency_over_black():
    picture = Image.new("RGBA", (2, 2), (255, 0, 0, 128))
    assert images.to_grey(picture).unique().tolist() == pytest.approx([38 / 255])
    array = np.asarray(picture)
    assert images.to_grey(array).unique().tolist() == pytest.approx([0.299 * 128 / 255])
    with pytest.raises(InputError, match=r"Axes \(2, 5, 5, 5\) are not those of a mask"):
        images.to_grey(np.zeros((2, 5, 5, 5), np.float32))


BAD = [
    (lambda: images.upright(7), "A picture was expected, not int"),
    (lambda: images.upright(Image.new("RGB", (0, 3))), "no pixels; its size is 0 x 3"),
    (lambda: images.to_tensor([]), "An empty list of pictures"),
    (lambda: images.to_tensor([torch.zeros(3, 2, 2), np.zeros((2, 2, 3))]), r"must hold one kind; got \['np', 'pt'\]"),
    (lambda: images.to_tensor("a.png"), "not str. Open files with load_image"),
    (lambda: images.to_tensor(7), "a tensor, not int.$"),
    (lambda: images.to_tensor(np.zeros(3)), r"2, 3 or 4 axes and some pixels; got the shape \(3,\)"),
    (lambda: images.to_tensor(np.zeros((2, 2, 9))), r"An array has its channels .* got \(1, 2, 2, 9\)"),
    (lambda: images.to_tensor(np.zeros((2, 2), np.int64)), "no known range; use uint8, uint16 or float"),
    (lambda: images.to_tensor([torch.zeros(3, 2, 2), torch.zeros(3, 2, 4)]), "must have one size"),
    (lambda: images.without_alpha(torch.full((1, 4, 2, 2), 2.0)), "alpha must lie in"),
    (lambda: images.luminance(torch.zeros(1, 8, 8, 3)), "channels before height and width"),
    (lambda: images.luminance(torch.zeros(1, 2, 8, 8)), "one or three channels, not 2"),
    (lambda: images.grid([], 1, 1), "0 pictures do not fit a grid of 1 x 1"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message for _, message in BAD])
def test_what_is_no_picture_is_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_alpha_that_hides_nothing_is_dropped_without_a_background():
    solid = torch.ones(1, 2, 2, 2)
    assert torch.equal(images.without_alpha(solid, None), torch.ones(1, 1, 2, 2))
