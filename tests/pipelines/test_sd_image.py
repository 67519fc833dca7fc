"""Picture to picture and inpainting: what they promise beyond the peer, and what they refuse."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import langevin
from langevin.core.errors import ConfigError, InputError, NonFiniteError
from tests.pipelines import tiny

CALL = {"prompt": "a cat", "num_inference_steps": 4, "seed": 3}


@pytest.fixture
def change(pipe):
    return task("StableDiffusionImg2ImgPipeline", pipe)


@pytest.fixture
def paint(pipe):
    return task("StableDiffusionInpaintPipeline", pipe)


def task(name, pipe, **parts):
    built = getattr(langevin, name)(**{**pipe.components, **parts}, requires_safety_checker=False)
    built.set_progress_bar_config(disable=True)
    return built


def far(a, b) -> float:
    return float(np.abs(np.asarray(a, dtype=np.float32) - np.asarray(b, dtype=np.float32)).max())


# Sizes and strength --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (61, 67), (1, 1), (17, 2)])
def test_a_picture_of_any_size_comes_back_at_its_size(change, size) -> None:
    image = change(**CALL, image=tiny.picture(1, size), strength=0.5).images[0]
    assert image.size == size


def test_a_margin_does_not_touch_the_rest(change) -> None:
    whole = tiny.picture(1, (16, 16))
    padded = change(**CALL, image=whole.crop((0, 0, 16, 15)), strength=0.5, output_type="np").images
    mirrored = np.asarray(whole.crop((0, 0, 16, 15)), dtype=np.float32) / 255
    mirrored = np.concatenate([mirrored, mirrored[-2:-1]])
    filled = change(**CALL, image=mirrored, strength=0.5, output_type="np").images
    assert padded.shape == (1, 15, 16, 3) and far(padded, filled[:, :15]) <= 1e-5


@pytest.mark.parametrize("size", [(16, 16), (13, 18)])
@pytest.mark.parametrize("name", ["change", "paint"])
def test_no_strength_gives_the_picture_back(request, name, size) -> None:
    pipe, image = request.getfixturevalue(name), tiny.picture(1, size)
    more = {} if name == "change" else {"mask_image": tiny.hole(size), "height": 16, "width": 16}
    result = pipe(**CALL, image=image, strength=0.0, num_images_per_prompt=2, **more).images
    expected = image if name == "change" else image.resize((16, 16), Image.Resampling.LANCZOS)
    assert [r.tobytes() for r in result] == [expected.tobytes()] * 2


@pytest.mark.parametrize("output_type", ["latent", "np"])
def test_no_strength_gives_latents_back(change, output_type) -> None:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    call = {**CALL, "strength": 0.0, "output_type": output_type}
    result = change(**call, image=latents).images
    if output_type == "latent":
        assert torch.equal(result, latents)
        assert change(**call, image=tiny.picture(1)).images.shape == (1, 4, 8, 8)
    else:
        assert result.shape == (1, 16, 16, 3) and not np.array_equal(result, change(**call, image=-latents).images)


def test_no_strength_gives_the_whole_picture_back_where_a_part_would_be_painted(paint) -> None:
    image, mask = tiny.picture(1, (50, 34)), tiny.hole((50, 34))
    result = paint(**CALL, image=image, mask_image=mask, padding_mask_crop=3, strength=0.0).images[0]
    assert result.tobytes() == image.tobytes()


def test_any_strength_runs_a_step(change) -> None:
    seen = []
    change(
        **CALL, image=tiny.picture(1), strength=0.01, callback_on_step_end=lambda p, k, t, x: seen.append(int(t)) or x
    )
    assert len(seen) == 1


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_neighbouring_strengths_give_neighbouring_pictures(change, name) -> None:
    change.scheduler = tiny.scheduler(langevin, name)
    call = {**CALL, "image": tiny.picture(1), "output_type": "np", "num_inference_steps": 10}
    pictures = [change(**call, strength=s).images for s in (0.48, 0.495, 0.505, 0.52)]
    apart = [far(a, b) for a, b in pairwise(pictures)]
    assert max(apart) <= 0.25 * far(change(**call, strength=0.3).images, change(**call, strength=0.7).images)


def test_pictures_go_with_their_prompts(change) -> None:
    images = [tiny.picture(1), tiny.picture(2)]
    call = {"num_inference_steps": 4, "strength": 0.5, "output_type": "np"}
    many = change(["a cat", "a dog"], images, num_images_per_prompt=2, seed=[1, 2, 3, 4], **call).images
    alone = change("a dog", images[1], seed=[3], **call).images
    assert far(many[2], alone[0]) <= 1e-5


@pytest.mark.parametrize("name", ["change", "paint"])
def test_a_picture_of_a_batch_can_be_made_alone(request, name) -> None:
    pipe, more = request.getfixturevalue(name), {"image": tiny.picture(1), "strength": 0.5, "output_type": "np"}
    more |= {"mask_image": tiny.hole()} if name == "paint" else {}
    pipe.scheduler = tiny.scheduler(langevin, "EulerAncestralDiscreteScheduler")
    batch = pipe(**{**CALL, "seed": 20}, num_images_per_prompt=3, **more).images
    alone = pipe(**{**CALL, "seed": 22}, **more).images
    assert far(batch[2], alone[0]) <= 1e-5


# What is kept --------------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_kept_byte_stays(paint, data) -> None:
    size = tuple(2 * data.draw(st.integers(4, 14)) for _ in range(2))
    image = tiny.picture(data.draw(st.integers(0, 99)), size)
    mask = np.random.default_rng(data.draw(st.integers(0, 99))).random(size[::-1]) < data.draw(st.floats(0, 1))
    call = {"height": size[1], "width": size[0], "num_inference_steps": 2, "strength": data.draw(st.floats(0.1, 1))}
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    result = np.asarray(paint(**{**CALL, **call}, image=image, mask_image=picture).images[0])
    assert (result[~mask] == np.asarray(image)[~mask]).all()
    if mask.all():
        assert far(result, image) > 0


@pytest.mark.parametrize("seed", range(4))
def test_a_crop_keeps_every_byte_outside_the_mask(paint, seed) -> None:
    size = (50, 34)
    left, top = np.random.default_rng(seed).integers(0, 20, 2)
    mask = tiny.hole(size, (int(left), int(top), int(left) + 9, int(top) + 7))
    image = tiny.picture(seed, size)
    result = np.asarray(paint(**CALL, image=image, mask_image=mask, padding_mask_crop=3).images[0])
    kept = np.asarray(mask) == 0
    assert result.shape == (34, 50, 3) and (result[kept] == np.asarray(image)[kept]).all()
    assert far(result[~kept], np.asarray(image)[~kept]) > 0


@pytest.mark.parametrize("kind", ["np", "pt"])
def test_floats_stay_the_callers_floats(paint, kind) -> None:
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mask = tiny.hole()
    result = paint(**CALL, image=image, mask_image=mask, output_type=kind).images
    result = torch.from_numpy(result).movedim(-1, 1) if kind == "np" else result
    kept = torch.from_numpy(np.asarray(mask) == 0)
    assert torch.equal(result[..., kept], image[..., kept])


def test_an_empty_mask_gives_the_picture_back(paint) -> None:
    image = tiny.picture(1)
    assert paint(**CALL, image=image, mask_image=Image.new("L", (16, 16))).images[0].tobytes() == image.tobytes()


def test_without_pasting_the_kept_part_is_what_the_autoencoder_makes_of_it(paint) -> None:
    image, mask = tiny.picture(1), tiny.hole()
    result = paint(**CALL, image=image, mask_image=mask, paste_back=False).images[0]
    assert far(np.asarray(result)[:4], np.asarray(image)[:4]) > 0


def test_feathering_changes_the_inside_alone(paint) -> None:
    image, mask = tiny.picture(1), tiny.hole()
    sharp, soft = (
        np.asarray(paint(**CALL, image=image, mask_image=mask, mask_feather=f).images[0]) for f in (0, 3)
    )
    kept = np.asarray(mask) == 0
    assert (sharp[kept] == soft[kept]).all() and (sharp[~kept] != soft[~kept]).any()


def test_given_noise_starts_a_noised_picture_too(paint) -> None:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    call = {**CALL, "image": tiny.picture(1), "mask_image": tiny.hole(), "latents": latents, "output_type": "np"}
    assert far(paint(**call, strength=0.5).images, paint(**call, strength=1.0).images) > 1e-3


# Attacks -------------------------------------------------------------------------------------------------------------

MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F"]


@pytest.mark.parametrize("mode", MODES)
def test_pictures_of_every_mode(change, mode) -> None:
    image = tiny.picture(1).convert("L").convert("I").convert(mode) if mode == "I;16" else tiny.picture(1).convert(mode)
    assert change(**CALL, image=image, strength=0.5).images[0].size == (16, 16)


def test_a_picture_with_alpha_is_no_latent(change) -> None:
    image = tiny.picture(1).convert("RGBA")
    plain = change(**CALL, image=tiny.picture(1), strength=0.5, output_type="np").images
    for rgba in (image, np.asarray(image), np.asarray(image, dtype=np.float32) / 255):
        assert far(change(**CALL, image=rgba, strength=0.5, output_type="np").images, plain) <= 1e-5
    latents = torch.rand(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert change(**CALL, image=latents, strength=0.5).images[0].size == (16, 16)


def test_transparency_of_a_palette_is_laid_over_white(change) -> None:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.info["transparency"] = 1
    seen = change(**CALL, image=image, strength=0.0).images[0]
    assert seen.getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["pil", "rgb", "np", "uint8", "bool", "pt", "documented", "list", "large"])
def test_masks_of_every_kind(paint, kind) -> None:
    mask = tiny.hole()
    array = np.asarray(mask, dtype=np.float32) / 255
    forms = {
        "pil": mask,
        "rgb": mask.convert("RGB"),
        "np": array,
        "uint8": np.asarray(mask),
        "bool": array > 0.5,
        "pt": torch.from_numpy(array)[None],
        "documented": torch.from_numpy(array)[None, ..., None],
        "list": [mask],
        "large": tiny.hole((32, 32), (8, 12, 24, 28)),
    }
    call = {**CALL, "image": tiny.picture(1), "output_type": "np"}
    expected = paint(**call, mask_image=mask).images
    assert far(paint(**call, mask_image=forms[kind]).images, expected) <= 1e-5


def test_a_full_mask_paints_everything_anew(paint) -> None:
    image = tiny.picture(1)
    result = paint(**CALL, image=image, mask_image=Image.new("L", (16, 16), 255)).images[0]
    other = paint(**CALL, image=tiny.picture(2), mask_image=Image.new("L", (16, 16), 255)).images[0]
    assert result.tobytes() == other.tobytes()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        ({"image": None}, InputError, "No `image`"),
        ({"image": []}, InputError, "empty list"),
        ({"image": "house.png"}, InputError, "picture"),
        ({"image": [tiny.picture(1), tiny.picture(1, (8, 8))]}, InputError, "one size"),
        ({"image": [tiny.picture(1)] * 3}, InputError, "3 pictures were given for 1"),
        ({"image": torch.full((3, 16, 16), float("nan"))}, NonFiniteError, ""),
        ({"image": torch.full((3, 16, 16), 7.0)}, InputError, "0, 1"),
        ({"strength": 1.5}, InputError, "between 0.0 and 1.0"),
        ({"strength": -0.1}, InputError, "between 0.0 and 1.0"),
        ({"strength": "0.5"}, InputError, "finite number"),
        ({"strenght": 0.5}, ConfigError, "did you mean 'strength'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_calls(change, monkeypatch, call, error, words) -> None:
    refuse_work(monkeypatch, change)
    with pytest.raises(error, match=words):
        change(**{**CALL, "image": tiny.picture(1), **call})


def refuse_work(monkeypatch, pipe) -> None:
    def refuse(*args, **kwargs):
        raise AssertionError("work was begun before the arguments were checked")

    for name in ("unet", "text_encoder", "vae"):
        monkeypatch.setattr(getattr(pipe, name), "forward", refuse)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        ({"mask_image": None}, InputError, "No `mask_image`"),
        ({"mask_image": []}, InputError, "empty list"),
        ({"mask_image": torch.full((1, 16, 16), 2.0)}, InputError, "0, 1"),
        ({"mask_image": [tiny.hole()] * 3}, InputError, "3"),
        ({"height": 15}, InputError, "not a multiple of 2"),
        ({"padding_mask_crop": 3, "output_type": "np"}, InputError, "PIL pictures"),
        ({"padding_mask_crop": 3, "mask_image": np.zeros((16, 16))}, InputError, "one PIL picture"),
        ({"padding_mask_crop": 3, "mask_image": tiny.hole((8, 8))}, InputError, "as large as"),
        ({"padding_mask_crop": -3}, InputError, "at least 0"),
        ({"paste_back": False, "mask_feather": 3}, InputError, "paste_back"),
        ({"mask_feather": -1}, InputError, "at least 0"),
        ({"masked_image_latents": torch.zeros(1, 3, 8, 8)}, InputError, "masked_image_latents"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_paintings(paint, monkeypatch, call, error, words) -> None:
    refuse_work(monkeypatch, paint)
    with pytest.raises(error, match=words):
        paint(**{**CALL, "image": tiny.picture(1), "mask_image": tiny.hole(), **call})


def test_a_network_of_another_task_is_named(change, paint) -> None:
    unet = langevin.UNet2DConditionModel(**{**tiny.UNET, "in_channels": 9}).eval()
    change.unet = unet
    with pytest.raises(ConfigError, match="takes 9 channels"):
        change(**CALL, image=tiny.picture(1))
    paint.unet = langevin.UNet2DConditionModel(**{**tiny.UNET, "in_channels": 5}).eval()
    with pytest.raises(ConfigError, match="1 of the mask"):
        paint(**CALL, image=tiny.picture(1), mask_image=tiny.hole())


def test_latents_cannot_be_masked_for_a_network_that_sees_them(paint) -> None:
    paint.unet = langevin.UNet2DConditionModel(**{**tiny.UNET, "in_channels": 9}).eval()
    with pytest.raises(ConfigError, match="cannot be masked"):
        paint(**CALL, image=torch.zeros(1, 4, 8, 8), mask_image=tiny.hole())


def test_callbacks_see_and_change_the_mask_of_any_network(paint) -> None:
    names, seen = ["latents", "mask", "masked_image_latents"], []

    def keep_all(inner, step, timestep, tensors):
        seen.append(tensors["mask"].clone())
        return {**tensors, "mask": torch.zeros_like(tensors["mask"])}

    call = {**CALL, "image": tiny.picture(1), "mask_image": tiny.hole(), "output_type": "np", "paste_back": False}
    kept = paint(**call, callback_on_step_end=keep_all, callback_on_step_end_tensor_inputs=names).images
    assert seen[0].shape == (1, 1, 8, 8) and seen[0].any() and not seen[1].any()
    assert far(kept, paint(**{**call, "mask_image": Image.new("L", (16, 16))}).images) <= 1e-5


def test_a_size_that_is_given_need_not_be_known_to_the_network(paint, monkeypatch) -> None:
    def unknown(unet, vae):
        raise InputError("The networks do not name their size; pass `height` and `width`.")

    monkeypatch.setattr("langevin.pipelines.latent.default_size", unknown)
    call = {**CALL, "image": tiny.picture(1), "mask_image": tiny.hole()}
    assert paint(**call, height=16, width=16).images[0].size == (16, 16)
    with pytest.raises(InputError, match="pass `height` and `width`"):
        paint(**call, height=16)
