"""Control images: the peer's numbers, any picture, and edges that are where the edges are."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline
from diffusers.image_processor import VaeImageProcessor as PeerProcessor
from diffusers.pipelines.t2i_adapter.pipeline_stable_diffusion_adapter import _preprocess_adapter_image
from PIL import Image, ImageDraw

from langevin.core.errors import InputError, NonFiniteError
from langevin.pipelines.control_images import _connected, canny, control_tensor, make_inpaint_condition


def picture(height: int = 50, width: int = 37, mode: str = "RGB", seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def peer_control(image, height: int, width: int, prompts: int, per_prompt: int) -> torch.Tensor:
    """Return what the peer's ControlNet pipelines make of a control image."""
    processor = PeerProcessor(vae_scale_factor=8, do_convert_rgb=True, do_normalize=False)
    stub = types.SimpleNamespace(control_image_processor=processor)
    batch = prompts * per_prompt
    prepare = StableDiffusionControlNetPipeline.prepare_image
    return prepare(stub, image, width, height, batch, per_prompt, torch.device("cpu"), torch.float32)


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["RGB", "L", "1 each", "np", "pt", "[pt]"])
@pytest.mark.parametrize(("prompts", "per_prompt"), [(1, 1), (2, 3)])
def test_controlnet_images_follow_the_peer(kind, prompts, per_prompt) -> None:
    values = np.random.default_rng(1).random((2, 33, 41, 3), dtype=np.float32)[:prompts]
    tensor = torch.from_numpy(values).movedim(-1, 1)
    image = {"RGB": picture(), "L": picture(mode="L"), "1 each": [picture(seed=k) for k in range(prompts)],
             "np": values, "pt": tensor, "[pt]": list(tensor)}[kind]  # fmt: skip
    got = control_tensor(image, 64, 48, prompts * per_prompt, per_prompt=per_prompt)
    assert got.shape == (prompts * per_prompt, 3, 64, 48)
    assert torch.equal(got, peer_control(image, 64, 48, prompts, per_prompt))


@pytest.mark.parity
@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_adapter_images_follow_the_peer(mode, channels) -> None:
    image = picture(mode=mode)
    got = control_tensor(image, 64, 48, 1, channels=channels)
    assert got.shape[1] == channels and torch.equal(got, _preprocess_adapter_image(image, 64, 48).float())
    two = [image, picture(mode=mode, seed=1)]
    got = control_tensor(two, 64, 48, 2, channels=channels)
    assert torch.equal(got, _preprocess_adapter_image(two, 64, 48))
    tensor = torch.rand(2, channels, 16, 24)
    assert torch.equal(control_tensor(tensor, 16, 24, 2, channels=channels), tensor)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_is_a_control_image(mode, channels) -> None:
    image = picture(mode="L").convert(mode) if mode in ("I", "F", "LA", "PA") else picture(mode=mode)
    got = control_tensor(image, 48, 32, 2, channels=channels)
    assert got.shape == (2, channels, 48, 32) and got.min() >= 0 and got.max() <= 1 and torch.equal(got[0], got[1])


def test_transparency_is_no_condition() -> None:
    strokes = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    strokes.putpixel((3, 2), (255, 255, 255, 255))
    for image in (strokes, np.asarray(strokes)):
        assert control_tensor(image, 8, 8, 1).sum() == 3


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        ([picture()] * 2, {"batch": 3}, "2 control images do not fit 3 prompts"),
        ([picture()] * 2, {"batch": 8, "per_prompt": 2}, "do not fit 4 prompts"),
        (torch.zeros(1, 4, 8, 8), {}, "has 4"),
        (torch.zeros(1, 2, 8, 8), {"channels": 1}, "has 2"),
        ([], {}, "empty list of control images"),
        ([picture(), torch.zeros(3, 8, 8)], {}, "one kind"),
        (np.full((8, 8, 3), 255.0), {}, "Divide by 255"),
    ],
)
def test_bad_control_images_are_named(image, options, message) -> None:
    with pytest.raises(InputError, match=message):
        control_tensor(image, 8, 8, **{"batch": 1, **options})


def test_other_channels_and_values() -> None:
    assert control_tensor(torch.zeros(1, 6, 8, 8), 8, 8, 2, channels=6).shape == (2, 6, 8, 8)
    assert control_tensor(torch.zeros(1, 4, 16, 16), 8, 8, 1, channels=4).shape == (1, 4, 8, 8)
    assert control_tensor(torch.zeros(1, 8, 8), 8, 8, 1).shape == (1, 3, 8, 8)
    assert control_tensor(torch.zeros(1, 1, 8, 8).half(), 8, 8, 1).dtype == torch.float32
    with pytest.raises(NonFiniteError):
        control_tensor(torch.full((1, 3, 8, 8), torch.nan), 8, 8, 1)


def test_the_inpaint_condition_is_the_documented_recipe() -> None:
    image, mask = picture(), picture(mode="L", seed=5)
    want = np.asarray(image, dtype=np.float32) / 255
    want[np.asarray(mask, dtype=np.float32) / 255 > 0.5] = -1.0
    got = make_inpaint_condition(image, mask)
    assert got.dtype == torch.float32 and np.array_equal(got[0].movedim(0, -1).numpy(), want)
    assert torch.equal(control_tensor(got, 48, 32, 1), torch.nn.functional.interpolate(got, (48, 32)))
    assert make_inpaint_condition([image, image], np.ones((5, 5))).unique().tolist() == [-1]
    assert make_inpaint_condition(picture(mode="L"), np.zeros((50, 37))).shape == (1, 3, 50, 37)
    with pytest.raises(InputError, match="do not fit"):
        make_inpaint_condition([image] * 3, [mask] * 2)
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        make_inpaint_condition(torch.full((1, 3, 8, 8), -0.5), np.zeros((8, 8)))


def test_edges_are_thin_and_where_the_shape_is() -> None:
    image = Image.new("RGB", (64, 64), (40, 60, 90))
    ImageDraw.Draw(image).rectangle((16, 20, 47, 43), fill=(240, 220, 200))
    edges = np.asarray(canny(image)) > 0
    outline = np.zeros((64, 64), bool)
    outline[19:45, 15:49] = True
    outline[21:43, 17:47] = False
    assert edges.any() and not (edges & ~outline).any()
    assert (edges.sum(0)[20:44] == 2).all() and (edges.sum(1)[24:40] == 2).all()
    assert not np.asarray(canny(Image.new("RGB", (9, 9), "red"))).any()
    assert not np.asarray(canny(Image.new("RGB", (1, 1), "red"))).any()


def test_edges_of_every_kind_and_their_thresholds() -> None:
    disc = Image.new("L", (48, 48))
    ImageDraw.Draw(disc).ellipse((8, 8, 39, 39), fill=255)
    want = np.asarray(canny(disc))
    assert set(np.unique(want)) == {0, 255} and 60 < (want > 0).sum() < 160
    values = np.asarray(disc, dtype=np.float32)[None, ..., None] / 255
    for many in ([disc], values, torch.from_numpy(values).movedim(-1, 1)):
        (one,) = canny(many)
        assert np.array_equal(np.asarray(one), want)
    assert not np.asarray(canny(disc, 2000, 3000)).any()
    faint = disc.point(lambda v: v // 8)
    assert not np.asarray(canny(faint)).any() and np.asarray(canny(faint, 10, 20)).any()
    with pytest.raises(InputError, match="permute"):
        canny(torch.zeros(1, 48, 48, 3))
    with pytest.raises(InputError, match="not 4"):
        canny(torch.zeros(1, 4, 48, 48))
    with pytest.raises(InputError, match="low <= high"):
        canny(disc, 200, 100)


def test_weak_edges_go_on_from_strong_ones() -> None:
    allowed = np.zeros((6, 9), bool)
    allowed[2, 1:5] = allowed[3, 5] = allowed[4, 6] = allowed[0, 8] = True
    seeds = np.zeros_like(allowed)
    seeds[2, 1] = True
    reached = allowed.copy()
    reached[0, 8] = False
    assert np.array_equal(_connected(seeds, allowed), reached)
