"""Masks: any input becomes the same tensor, kept pixels stay bit for bit, and the peer's numbers."""

from __future__ import annotations

import logging
import types

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline
from diffusers.image_processor import VaeImageProcessor as PeerProcessor
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from langevin.core.errors import InputError, NonFiniteError
from langevin.core.images import to_tensor
from langevin.image_processor import VaeImageProcessor
from langevin.pipelines import masks

PEER = PeerProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def picture(height: int, width: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    return Image.fromarray((noise(height, width, 3, seed=seed) * 255).round().astype(np.uint8)).convert(mode)


def block(height: int = 16, width: int = 24) -> np.ndarray:
    """Return a mask with a white block."""
    mask = np.zeros((height, width), dtype=bool)
    mask[4:12, 8:20] = True
    return mask


def forms() -> dict[str, object]:
    """Return the block in every form that a mask may have."""
    mask = block()
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    values = torch.from_numpy(mask.astype(np.float32))
    modes = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F")
    pictures = {f"pil {mode}": grey.convert("RGB").convert(mode) for mode in modes if mode not in ("I", "F", "LA")}
    pictures |= {f"pil {mode}": grey.convert(mode) for mode in ("I", "F", "LA")}
    pictures["pil I;16"] = Image.fromarray(mask.astype(np.uint16) * 65535)
    arrays = {
        "np bool": mask,
        "np uint8": mask.astype(np.uint8) * 255,
        "np uint8 of 0 and 1": mask.astype(np.uint8),
        "np int64 of 0 and 1": mask.astype(np.int64),
        "np uint16": mask.astype(np.uint16) * 65535,
        "np float64": mask.astype(np.float64),
        "np hwc": mask[..., None],
        "np rgb": np.repeat(mask[..., None], 3, -1).astype(np.uint8) * 255,
        "np rgba": np.dstack([np.repeat(mask[..., None], 3, -1), np.ones_like(mask)]).astype(np.uint8) * 255,
        "np bhw": mask[None],
        "np bhwc": mask[None, ..., None],
        "np bchw": mask[None, None].astype(np.float32),
    }
    tensors = {
        "pt hw": values,
        "pt bool": torch.from_numpy(mask),
        "pt uint8": torch.from_numpy(mask.astype(np.uint8) * 255),
        "pt half": values.half(),
        "pt 1hw": values[None],
        "pt hw1": values[..., None],
        "pt b1hw": values[None, None],
        "pt bhw1": values[None, ..., None],
        "pt half b3hw": values.half().expand(1, 3, -1, -1),
        "pt b3hw": values.expand(1, 3, -1, -1),
        "pt bhw3": values[None, ..., None].expand(-1, -1, -1, 3),
    }
    return {**pictures, **arrays, **tensors, "[pil]": [grey], "[np]": [mask], "[pt]": [values]}


@pytest.mark.parametrize("form", forms())
def test_every_form_of_a_mask_gives_the_same_tensor(form) -> None:
    mask = masks.mask_tensor(forms()[form])
    assert mask.dtype == torch.float32 and mask.shape == (1, 1, 16, 24)
    assert np.array_equal(mask[0, 0].numpy().astype(bool), block())


@pytest.mark.parity
@pytest.mark.parametrize("size", [(None, None), (32, 48), (8, 16)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pil_masks_follow_the_peer(mode, size) -> None:
    one = picture(48, 64, mode=mode)
    assert torch.equal(masks.mask_tensor(one, *size), PEER.preprocess(one, *size))
    assert torch.equal(masks.mask_tensor([one, one], *size), PEER.preprocess([one, one], *size))


@pytest.mark.parity
@pytest.mark.parametrize("shape", [(16, 24), (1, 16, 24), (3, 16, 24), (2, 1, 16, 24)])
def test_array_and_tensor_masks_follow_the_peer(shape) -> None:
    values = noise(*shape)
    for size in ((16, 24), (8, 16), (32, 40)):
        assert torch.equal(
            masks.mask_tensor(torch.from_numpy(values), *size), PEER.preprocess(torch.from_numpy(values), *size)
        )
        if values.ndim < 4:
            assert torch.equal(masks.mask_tensor(values, *size), PEER.preprocess(values, *size))
        else:
            last = np.ascontiguousarray(np.moveaxis(values, 1, -1))
            assert torch.equal(masks.mask_tensor(last, *size), PEER.preprocess(last, *size))


def test_empty_and_full_masks_are_masks(caplog) -> None:
    for value in (0, 255):
        mask = masks.mask_tensor(Image.new("L", (9, 7), value), 16, 24, batch=3)
        assert mask.shape == (3, 1, 16, 24) and mask.unique().tolist() == [value / 255]
        assert masks.mask_tensor(Image.new("L", (1, 1), value)).shape == (1, 1, 1, 1)
        assert VaeImageProcessor.get_crop_region(Image.new("L", (30, 20), value), 64, 64, 4) == (0, 0, 30, 20)


def test_transparent_and_turned_masks() -> None:
    strokes = Image.new("RGBA", (6, 4), (255, 255, 255, 0))
    strokes.putpixel((2, 1), (255, 255, 255, 255))
    mask = masks.mask_tensor(strokes)
    assert mask.sum() == 1 and mask[0, 0, 1, 2] == 1
    assert masks.mask_tensor(np.asarray(strokes)).sum() == 1
    assert VaeImageProcessor.get_crop_region(strokes, 1, 1) == (2, 1, 3, 2)
    turned = Image.new("L", (6, 4))
    turned.getexif()[0x0112] = 6
    assert masks.mask_tensor(turned).shape == (1, 1, 6, 4)


def test_masks_of_another_size_are_resized_and_another_shape_is_reported(caplog, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("langevin"), "propagate", True)
    masks.mask_tensor(noise(30, 20), 60, 40)
    assert not caplog.records
    masks.mask_tensor(noise(30, 20), 32, 32)
    assert "30 x 20 is stretched to 32 x 32" in caplog.text
    masks.mask_tensor(Image.new("L", (8, 8), 90))
    assert "nothing will be repainted" in caplog.text


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([], "empty list of masks"),
        ([Image.new("L", (2, 2)), np.zeros((2, 2))], "one kind"),
        ("mask.png", "load_image"),
        (None, "not NoneType"),
        (np.full((2, 2), 1.5), r"\[0, 1\]"),
        (torch.full((2, 2), -0.1), r"\[0, 1\]"),
        (np.full((2, 2), 77, np.int64), "known range"),
        (np.zeros((2, 2, 2, 2, 2)), "Axes"),
        (np.zeros((0, 3)), "Axes"),
        (torch.zeros(1, 5, 8, 8), "Axes"),
        ([np.zeros((2, 2)), np.zeros((3, 3))], "one size"),
        ([Image.new("L", (2, 2)), Image.new("L", (3, 3))], "one size"),
    ],
)
def test_bad_masks_are_named(mask, message) -> None:
    with pytest.raises(InputError, match=message):
        masks.mask_tensor(mask)


def test_other_bad_masks() -> None:
    with pytest.raises(InputError, match="2 masks do not fit 3 pictures"):
        masks.mask_tensor(np.zeros((2, 8, 8)), batch=3)
    with pytest.raises(NonFiniteError):
        masks.mask_tensor(np.full((2, 2), np.nan))
    assert masks.mask_tensor([Image.new("L", (4, 4)), Image.new("L", (3, 3))], 8, 8).shape == (2, 1, 8, 8)


def test_latent_masks() -> None:
    mask = masks.mask_tensor(noise(64, 48))
    assert torch.equal(masks.latent_mask(mask, 8, 6), mask[..., ::8, ::8])
    thin = torch.zeros(1, 1, 64, 48)
    thin[..., 13, 5:40] = 1
    assert masks.latent_mask(thin, 8, 6).sum() == 0
    image = torch.rand(1, 3, 64, 48) * 2 - 1
    hidden = masks.masked_image(image, mask)
    assert torch.equal(hidden, torch.where(mask > 0.5, 0.0, image))


@pytest.mark.parity
def test_latent_masks_and_masked_pictures_follow_the_peer(monkeypatch) -> None:
    """The peer's preparation is run with an encoder that gives back what it is asked to encode."""
    image = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for pipeline in (StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline):
        stub = types.SimpleNamespace(vae_scale_factor=8, _encode_vae_image=lambda image, generator: image)
        for one in (noise(64, 48), noise(61, 67), block(64, 48)):
            mask = masks.mask_tensor(one, 64, 48)
            hidden = masks.masked_image(image, mask)
            theirs, encoded = pipeline.prepare_mask_latents(
                stub, mask, hidden, 2, 64, 48, torch.float32, torch.device("cpu"), None, False
            )
            assert torch.equal(theirs, masks.latent_mask(mask, 8, 6).expand(2, -1, -1, -1))
            assert torch.equal(encoded, hidden)


@pytest.mark.parity
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_crop_regions_follow_the_peer(data) -> None:
    high, wide = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    mask = np.zeros((high, wide), np.uint8)
    for _ in range(data.draw(st.integers(1, 3))):
        mask[data.draw(st.integers(0, high - 1)), data.draw(st.integers(0, wide - 1))] = data.draw(st.integers(1, 255))
    width, height, pad = data.draw(st.integers(8, 90)), data.draw(st.integers(8, 90)), data.draw(st.integers(0, 12))
    box = VaeImageProcessor.get_crop_region(Image.fromarray(mask), width, height, pad)
    assert box == tuple(int(v) for v in PeerProcessor.get_crop_region(Image.fromarray(mask), width, height, pad))
    left, top, right, bottom = box
    assert 0 <= left < right <= wide and 0 <= top < bottom <= high
    assert mask[top:bottom, left:right].sum() == mask.sum()


KINDS = ("pil", "np", "np uint8", "pt", "pt half", "[pil]")


def as_kind(values: np.ndarray, kind: str) -> object:
    """Return pictures (batch, height, width, channels) in [0, 1] in one of `KINDS`."""
    whole = (values * 255).round().astype(np.uint8)
    if "pil" in kind:
        many = [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in whole]
        return many if kind == "[pil]" else many[0]
    if kind.startswith("np"):
        return whole if kind == "np uint8" else values
    tensor = torch.from_numpy(values).movedim(-1, 1)
    return tensor.half() if kind == "pt half" else tensor


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_kept_pixels_are_the_originals_bit_for_bit(data) -> None:
    high, wide = data.draw(st.integers(1, 23)), data.draw(st.integers(1, 23))
    channels = data.draw(st.sampled_from([1, 3]))
    into, out_of = data.draw(st.sampled_from(KINDS)), data.draw(st.sampled_from(KINDS))
    batch = 1 if into == "pil" or out_of == "pil" else data.draw(st.integers(1, 3))
    seed = data.draw(st.integers(0, 2**31))
    hole = np.random.default_rng(seed).random((batch, high, wide)) < data.draw(st.sampled_from([0, 0.1, 0.5, 0.9, 1]))
    stack = hole[..., None]
    result = as_kind(noise(batch, high, wide, channels, seed=seed), into)
    original = as_kind(noise(batch, high, wide, channels, seed=seed + 1), out_of)
    pasted = masks.paste_back(
        result, original, stack, feather=data.draw(st.integers(0, 5)), match_colour=data.draw(st.booleans())
    )
    expected = masks.paste_back(result, original, np.zeros_like(stack))
    if into == out_of:
        assert np.array_equal(flat(expected), flat(original))
    for got, want, inside in zip(flat(pasted), flat(expected), hole, strict=True):
        assert got.dtype == want.dtype and np.array_equal(got[~inside], want[~inside])
    assert type(pasted) is type(result)
    untouched = masks.paste_back(result, original, stack)
    for got, want, inside in zip(flat(untouched), flat(result), hole, strict=True):
        assert np.array_equal(got[inside], want[inside])


def flat(pictures) -> list[np.ndarray]:
    """Return pictures as arrays (height, width, channels) of their own type."""
    many = pictures if isinstance(pictures, list) else [pictures] if isinstance(pictures, Image.Image) else pictures
    arrays = [one.movedim(0, -1).numpy() if isinstance(one, torch.Tensor) else np.asarray(one) for one in many]
    return [one if one.ndim == 3 else one[..., None] for one in arrays]


def test_pasting_between_types_keeps_the_eight_bits() -> None:
    original, made = picture(9, 11), picture(9, 11, seed=1)
    mask = Image.new("L", (11, 9))
    for result in (to_tensor(made), to_tensor(made).movedim(1, -1).numpy()):
        kept = masks.paste_back(result, original, mask)
        assert np.array_equal(to_tensor(kept), to_tensor(original))
    signed = to_tensor(original) * 2 - 1
    assert np.array_equal(np.asarray(masks.paste_back(made, signed, mask)), np.asarray(original))
    grey = masks.paste_back([made, made], original.convert("L"), mask)
    assert len(grey) == 2 and np.array_equal(np.asarray(grey[1]), np.asarray(original.convert("L").convert("RGB")))
    assert masks.paste_back(noise(9, 11, 3), original, mask).shape == (9, 11, 3)


def test_a_feather_fades_inside_the_hole_only() -> None:
    mask = np.zeros((1, 20, 20), bool)
    mask[:, 5:, :] = True
    pasted = masks.paste_back(torch.ones(1, 1, 20, 20), torch.zeros(1, 1, 20, 20), mask, feather=3)
    assert torch.allclose(pasted[0, 0, :, 7], torch.tensor([0.0] * 5 + [0.25, 0.5, 0.75] + [1.0] * 12))
    thin = np.zeros((20, 20), bool)
    thin[8] = True
    assert masks.paste_back(torch.ones(1, 1, 20, 20), torch.zeros(1, 1, 20, 20), thin, feather=3)[0, 0, 8].min() == 1


def test_matched_colours_lose_the_shift_and_keep_the_object() -> None:
    ramp = np.linspace(0.3, 0.6, 64, dtype=np.float32)
    original = np.broadcast_to(ramp[None, :, None], (64, 64, 3)) * np.array([1, 0.9, 0.8], np.float32)
    wanted = original.copy()
    wanted[28:36, 28:36] = (0.8, 0.3, 0.2)
    shifted = wanted * 0.9 + np.array([0.08, 0.02, -0.03], np.float32)
    mask = np.zeros((64, 64), bool)
    mask[20:44, 20:44] = True
    plain = masks.paste_back(shifted[None], original, mask)
    matched = masks.paste_back(shifted[None], original, mask, match_colour=True)
    assert np.abs(plain - wanted).max() > 0.04 and np.abs(matched - wanted).max() < 1e-3
    flat_grey = np.full((1, 8, 8, 3), 0.5, np.float32)
    assert np.array_equal(masks.paste_back(flat_grey, flat_grey, np.ones((8, 8)), match_colour=True), flat_grey)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((picture(8, 8), picture(8, 9), np.zeros((8, 8))), "does not fit"),
        (([picture(8, 8)] * 3, [picture(8, 8)] * 2, np.zeros((8, 8))), "does not fit"),
        (([picture(8, 8)] * 3, picture(8, 8), np.zeros((2, 8, 8))), "2 masks"),
        ((torch.zeros(1, 4, 8, 8), picture(8, 8), np.zeros((8, 8))), "three channels"),
        ((noise(8, 8, 4), picture(8, 8), np.zeros((8, 8))), "three channels"),
        (([], picture(8, 8), np.zeros((8, 8))), "empty list of results"),
    ],
)
def test_what_cannot_be_pasted_is_named(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        masks.paste_back(*arguments)


def test_a_negative_feather_is_named() -> None:
    with pytest.raises(InputError, match="feather"):
        masks.paste_back(picture(8, 8), picture(8, 8), np.zeros((8, 8)), feather=-1)


@pytest.mark.parametrize("fill", ["edge", "reflect", "white", "#102030"])
@pytest.mark.parametrize("size", [(1, 1), (5, 7)])
def test_outpainting_keeps_the_picture_in_the_middle(fill, size) -> None:
    original = picture(*size)
    larger, mask = masks.outpaint(original, 3, 4, 1, 20, fill=fill)
    assert larger.size == mask.size == (size[1] + 7, size[0] + 21)
    inner = (3, 1, 3 + size[1], 1 + size[0])
    assert np.array_equal(np.asarray(larger.crop(inner)), np.asarray(original))
    assert not np.asarray(mask.crop(inner)).any()
    assert (np.asarray(mask) == 255).sum() == larger.width * larger.height - size[0] * size[1]
    corner = {"white": (255, 255, 255), "#102030": (16, 32, 48), "edge": original.getpixel((0, 0))}
    if fill in corner:
        assert larger.getpixel((0, 0)) == corner[fill]
    elif size != (1, 1):
        assert larger.getpixel((2, 1)) == original.getpixel((1, 0))


def test_bad_outpainting_is_named() -> None:
    with pytest.raises(InputError, match="Margins"):
        masks.outpaint(picture(4, 4), left=-1)
    with pytest.raises(InputError, match="did you mean 'reflect'"):
        masks.outpaint(picture(4, 4), left=1, fill="reflekt")
