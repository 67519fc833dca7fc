"""The picture processor: the peer's numbers, and any picture that a user has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor as PeerProcessor
from PIL import Image

from langevin.core.errors import InputError
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
