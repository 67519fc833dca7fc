"""The picture processor: the peer's numbers, and any picture that a user has."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor as PeerProcessor
from PIL import Image

from langevin.core.errors import InputError, NonFiniteError
from langevin.image_processor import VaeImageProcessor


def picture(width: int = 37, height: int = 50, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parity
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"vae_scale_factor": 4},
        {"do_normalize": False},
        {"do_resize": False},
        {"resample": "bilinear"},
        {"do_convert_rgb": True},
        {"do_convert_grayscale": True, "do_normalize": False, "do_binarize": True},
    ],
    ids=str,
)
def test_preprocess(options) -> None:
    theirs, ours = PeerProcessor(**options), VaeImageProcessor(**options)
    assert {k: ours.config[k] for k in theirs.config if k[0] != "_"} == {
        k: v for k, v in theirs.config.items() if k[0] != "_"
    }
    inputs = [picture(), [picture(), picture()]]
    if not options.get("do_convert_grayscale"):
        inputs += [np.random.default_rng(1).random((2, 16, 24, 3), dtype=np.float32), torch.rand(2, 3, 18, 24)]
    for image in inputs:
        assert torch.equal(theirs.preprocess(image), ours.preprocess(image))
    assert torch.equal(theirs.preprocess(picture(), 32, 24), ours.preprocess(picture(), 32, 24))


@pytest.mark.parity
@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_postprocess(output_type) -> None:
    image = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for flags in (None, [True, False, True]):
        clipped = image.clamp(0, 1) if flags else image
        theirs = PeerProcessor().postprocess(clipped, output_type=output_type, do_denormalize=flags)
        ours = VaeImageProcessor().postprocess(clipped, output_type=output_type, do_denormalize=flags)
        for a, b in zip(theirs, ours, strict=True):
            assert np.abs(np.asarray(a, dtype=np.float32) - np.asarray(b, dtype=np.float32)).max() <= 1e-6


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1", "I;16"])
def test_every_mode_of_a_picture_becomes_pixels(mode) -> None:
    image = picture(16, 16).convert("L").convert("I").convert(mode) if mode == "I;16" else picture(16, 16, mode)
    pixels = VaeImageProcessor(do_convert_rgb=True).preprocess(image)
    assert pixels.shape == (1, 3, 16, 16) and pixels.min() >= -1 and pixels.max() <= 1


FLAGS = ("do_normalize", "do_binarize", "do_resize", "do_convert_rgb", "do_convert_grayscale")


@pytest.mark.parity
@pytest.mark.parametrize("resize_mode", ["default", "fill", "crop"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pil_follows_the_peer_over_all_flags(mode, resize_mode) -> None:
    one, two = picture(37, 50, mode), picture(37, 50, mode).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for values in itertools.product([True, False], repeat=len(FLAGS)):
        flags = dict(zip(FLAGS, values, strict=True))
        if flags["do_convert_rgb"] and flags["do_convert_grayscale"]:
            continue
        theirs, ours = PeerProcessor(**flags), VaeImageProcessor(**flags)
        for size, box in itertools.product([(None, None), (64, 40)], [None, (3, 4, 30, 44)]):
            options = {"resize_mode": resize_mode, "crops_coords": box}
            want = theirs.preprocess([one, two], *size, **options)
            assert torch.equal(want, ours.preprocess([one, two], *size, **options))


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["np", "pt", "np list", "pt list", "np hw", "pt signed"])
def test_arrays_and_tensors_follow_the_peer_over_all_flags(kind) -> None:
    values = np.random.default_rng(3).random((2, 21, 34, 3), dtype=np.float32)
    tensor = torch.from_numpy(values).movedim(-1, 1)
    image = {"np": values, "pt": tensor, "np list": list(values), "pt list": list(tensor), "np hw": values[0, ..., 0],
             "pt signed": tensor * 2 - 1}[kind]  # fmt: skip
    for values in itertools.product([True, False], repeat=3):
        flags = dict(zip(FLAGS, values, strict=False))
        for size in [(None, None), (40, 16)]:
            want = PeerProcessor(**flags).preprocess(image, *size)
            assert torch.equal(want, VaeImageProcessor(**flags).preprocess(image, *size))


@pytest.mark.parity
@pytest.mark.parametrize("resample", ["nearest", "bilinear", "linear", "bicubic", "lanczos"])
@pytest.mark.parametrize("resize_mode", ["default", "fill", "crop"])
def test_filters_and_resize_modes_follow_the_peer(resize_mode, resample) -> None:
    theirs, ours = PeerProcessor(resample=resample), VaeImageProcessor(resample=resample)
    for height, width, mode in itertools.product((8, 32, 64, 200), (8, 32, 40), ("RGB", "L")):
        want = theirs.resize(picture(mode=mode), height, width, resize_mode)
        assert np.array_equal(np.asarray(want), np.asarray(ours.resize(picture(mode=mode), height, width, resize_mode)))
    array = np.random.default_rng(1).random((2, 9, 7, 3), dtype=np.float32)
    assert np.array_equal(theirs.resize(array, 16, 24), ours.resize(array, 16, 24))
    assert VaeImageProcessor(resample="hamming").resize(picture(), 8, 8).size == (8, 8)


def test_a_filled_margin_has_no_black_line() -> None:
    """The peer leaves the last column of an odd size black."""
    white = Image.new("RGB", (37, 50), "white")
    for size in itertools.product((33, 34), repeat=2):
        assert np.asarray(VaeImageProcessor().resize(white, *size, "fill")).min() == 255
    assert np.asarray(PeerProcessor().resize(white, 33, 33, "fill")).min() == 0
    assert VaeImageProcessor().resize(Image.new("RGB", (500, 1)), 8, 8, "fill").size == (8, 8)


@pytest.mark.parity
@pytest.mark.parametrize("crop", [None, (3, 4, 20, 30)])
@pytest.mark.parametrize("cut", [True, False])
def test_overlays_follow_the_peer(cut, crop) -> None:
    original, made = picture(), picture().transpose(Image.Transpose.ROTATE_180)
    mask = picture(mode="L").point(lambda v: 255 * (v > 99)) if cut else picture(mode="L")
    made = made if crop is None else made.resize((64, 64))
    want = PeerProcessor().apply_overlay(mask, original, made, crop)
    got = VaeImageProcessor().apply_overlay(mask, original, made, crop)
    assert np.array_equal(np.asarray(want), np.asarray(got))
    if cut:
        kept = np.asarray(mask) == 0
        assert np.array_equal(np.asarray(got)[kept], np.asarray(original)[kept])
    with pytest.raises(InputError, match="must have one size"):
        VaeImageProcessor().apply_overlay(mask, original.resize((9, 9)), made, crop)


@pytest.mark.parity
def test_small_tools_follow_the_peer() -> None:
    theirs, ours = PeerProcessor(), VaeImageProcessor()
    values = np.random.default_rng(1).random((2, 9, 7, 3), dtype=np.float32)
    for one in (values, torch.from_numpy(values)):
        for name in ("normalize", "binarize"):
            want, got = getattr(theirs, name)(one + 0), getattr(ours, name)(one + 0)
            assert type(want) is type(got) and np.array_equal(want, got)
    assert torch.equal(theirs.denormalize(torch.linspace(-2, 2, 9)), ours.denormalize(torch.linspace(-2, 2, 9)))
    assert ours.denormalize(np.linspace(-2, 2, 5)).tolist() == [0, 0, 0.5, 1, 1]
    for mode in ("RGB", "L"):
        one = picture(mode=mode)
        assert np.array_equal(theirs.pil_to_numpy([one]).ravel(), ours.pil_to_numpy([one]).ravel())
        assert np.array_equal(np.asarray(theirs.blur(one, 3)), np.asarray(ours.blur(one, 3)))
    for want, got in zip(theirs.numpy_to_pil(values), ours.numpy_to_pil(values), strict=True):
        assert np.array_equal(np.asarray(want), np.asarray(got))
    for image in (picture(), values, torch.from_numpy(values).movedim(-1, 1), values[..., 0]):
        for size in [(None, None), (20, None), (None, 33)]:
            assert theirs.get_default_height_width(image, *size) == ours.get_default_height_width(image, *size)


def with_alpha(mode: str = "RGBA") -> Image.Image:
    image = picture(16, 16)
    image.putalpha(Image.linear_gradient("L").resize((16, 16)))
    return image.convert(mode)


@pytest.mark.parametrize("options", [{}, {"do_convert_rgb": True}])
def test_a_picture_with_alpha_is_never_latents(options) -> None:
    over_white = Image.alpha_composite(Image.new("RGBA", (16, 16), "white"), with_alpha()).convert("RGB")
    want = VaeImageProcessor().preprocess(over_white)
    processor = VaeImageProcessor(**options)
    for image in (with_alpha(), np.asarray(with_alpha()), np.asarray(with_alpha(), dtype=np.float32)[None] / 255):
        got = processor.preprocess(image)
        assert got.shape == (1, 3, 16, 16) and (got - want).abs().max() <= 2 / 255
    palette = with_alpha().quantize(16)
    assert palette.mode == "P" and palette.has_transparency_data
    for image in (palette, with_alpha("PA"), with_alpha("LA"), np.asarray(with_alpha("LA"))):
        assert processor.preprocess(image).shape[0] == 1 and processor.preprocess(image).shape[1] in (1, 3)
    assert processor.preprocess([with_alpha()] * 2).shape == (2, 3, 16, 16)


def test_tensors_of_latent_channels_are_latents_alone_and_in_lists() -> None:
    one, batch = torch.randn(4, 5, 7), torch.randn(2, 4, 5, 7)
    processor = VaeImageProcessor()
    assert torch.equal(processor.preprocess(one), one[None])
    assert torch.equal(processor.preprocess([one, one]), torch.stack([one, one]))
    assert torch.equal(processor.preprocess([batch, batch]), torch.cat([batch, batch]))
    wide = torch.randn(1, 16, 5, 7)
    assert VaeImageProcessor(vae_latent_channels=16).preprocess(wide) is wide
    small = torch.randn(1, 16, 4, 4)
    assert VaeImageProcessor(vae_latent_channels=16).preprocess(small) is small


def test_exif_orientation_is_applied_in_every_mode() -> None:
    for mode in ("RGB", "L", "CMYK"):
        turned = picture(24, 16, mode)
        turned.getexif()[0x0112] = 6
        assert VaeImageProcessor().preprocess(turned).shape[-2:] == (24, 16)


def test_attack_inputs_are_pictures_or_errors() -> None:
    processor = VaeImageProcessor(do_convert_rgb=True)
    assert processor.preprocess(picture(61, 67)).shape == (1, 3, 64, 56)
    assert processor.preprocess(Image.new("RGB", (1, 1)), 16, 16).shape == (1, 3, 16, 16)
    assert VaeImageProcessor(do_resize=False).preprocess(Image.new("RGB", (1, 1))).shape == (1, 3, 1, 1)
    deep = Image.fromarray(np.full((16, 16), 32768, np.uint16))
    assert deep.mode == "I;16" and processor.preprocess(deep).abs().max() <= 1.01 / 255
    assert processor.preprocess(np.full((16, 16), 65535, np.uint16)).unique().tolist() == [1.0]
    assert processor.preprocess(np.full((16, 16, 3), 255, np.uint8)).unique().tolist() == [1.0]
    assert processor.preprocess(torch.zeros(16, 16)).shape == (1, 3, 16, 16)
    assert VaeImageProcessor(do_convert_grayscale=True).preprocess(torch.rand(1, 3, 16, 16)).shape == (1, 1, 16, 16)
    white = processor.preprocess(Image.new("CMYK", (16, 16), (0, 0, 0, 0)))
    assert white.unique().tolist() == [1.0]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("RGB", (1, 1)), "at least 8"),
        ([picture(), np.zeros((8, 8, 3))], "one kind"),
        ([picture(), torch.zeros(3, 8, 8)], "one kind"),
        ("a.png", "load_image"),
        (None, "not NoneType"),
        (np.full((8, 8, 3), 200.0), "Divide by 255"),
        (torch.full((1, 3, 8, 8), -1.5), "Divide by 255"),
        (np.zeros((3, 16, 24)), "last axis"),
        (torch.zeros(16, 24, 3), "permute"),
        (np.zeros((8, 8, 3), np.int64), "known range"),
        ([np.zeros((8, 8, 3)), np.zeros((16, 8, 3))], "one size"),
        (np.zeros((0, 8, 3)), "some pixels"),
        (Image.new("RGB", (0, 8)), "no pixels"),
    ],
)
def test_what_is_no_picture_is_named(image, message) -> None:
    with pytest.raises(InputError, match=message):
        VaeImageProcessor().preprocess(image)


def test_other_errors_and_crops_of_arrays() -> None:
    with pytest.raises(NonFiniteError):
        VaeImageProcessor().preprocess(torch.full((1, 3, 8, 8), torch.nan))
    with pytest.raises(NonFiniteError):
        VaeImageProcessor().preprocess(np.full((8, 8, 3), np.inf))
    with pytest.raises(InputError, match="for PIL pictures"):
        VaeImageProcessor().preprocess(np.zeros((8, 8, 3)), resize_mode="fill")
    with pytest.raises(InputError, match="for PIL pictures"):
        VaeImageProcessor().resize(torch.zeros(1, 3, 8, 8), 8, 8, "crop")
    values = np.random.default_rng(0).random((16, 24, 3), dtype=np.float32)
    part = VaeImageProcessor(do_resize=False, do_normalize=False).preprocess(values, crops_coords=(3, 4, 11, 12))
    assert np.array_equal(part[0].movedim(0, -1), values[4:12, 3:11])


def test_latents_pass_and_bad_input_does_not() -> None:
    latents = torch.randn(2, 4, 5, 5)
    assert VaeImageProcessor().preprocess(latents) is latents
    with pytest.raises(InputError, match="empty list"):
        VaeImageProcessor().preprocess([])
    with pytest.raises(InputError, match="resize_mode"):
        VaeImageProcessor().preprocess(picture(), resize_mode="stretch")
    with pytest.raises(InputError, match="takes a tensor"):
        VaeImageProcessor().postprocess(np.zeros((1, 2, 2, 3)))
    with pytest.raises(InputError, match="exclude each other"):
        VaeImageProcessor(do_convert_rgb=True, do_convert_grayscale=True)


def test_conversions_and_small_tools() -> None:
    array = np.random.default_rng(0).random((2, 4, 6, 3), dtype=np.float32)
    assert np.array_equal(VaeImageProcessor.pt_to_numpy(VaeImageProcessor.numpy_to_pt(array)), array)
    (image, _) = VaeImageProcessor.numpy_to_pil(array)
    assert np.abs(VaeImageProcessor.pil_to_numpy(image)[0] - array[0]).max() <= 0.5 / 255 + 1e-6
    assert VaeImageProcessor.blur(picture()).size == picture().size
    assert VaeImageProcessor.convert_to_grayscale(picture()).mode == "L"
    assert VaeImageProcessor().resize(array, 8, 8).shape == (2, 8, 8, 3)
    assert VaeImageProcessor().get_default_height_width(picture()) == (48, 32)


def test_arguments_that_the_peer_ignores_for_arrays_have_an_effect() -> None:
    values = np.random.default_rng(0).random((40, 40, 3), dtype=np.float32)
    box = (8, 8, 24, 32)
    theirs, ours = (cls().preprocess(values, crops_coords=box) for cls in (PeerProcessor, VaeImageProcessor))
    assert theirs.shape[-2:] == (40, 40) and ours.shape[-2:] == (24, 16)
    assert PeerProcessor().preprocess(values, 16, 16, resize_mode="fill").shape[-2:] == (16, 16)
    with pytest.raises(InputError, match="for PIL pictures"):
        VaeImageProcessor().preprocess(values, 16, 16, resize_mode="fill")
