"""The tiny autoencoder as a pipeline's own and for previews, and previews without any."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import langevin
from langevin import PreviewCallback
from langevin.core.errors import ConfigError, InputError
from langevin.core.images import to_images
from langevin.picturebook import model_folder
from tests.pipelines import tiny
from tests.pipelines.conftest import quiet
from tests.pipelines.test_sd_edit import build

CALL = {"prompt": "a cat", "num_inference_steps": 6, "output_type": "np", "seed": 1}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A tiny autoencoder of the peer and of this library over one folder, for latents of half the side."""
    folder = tmp_path_factory.mktemp("taesd")
    widths = {"encoder_block_out_channels": (16, 16), "decoder_block_out_channels": (16, 16)}
    torch.manual_seed(5)
    net = diffusers.AutoencoderTiny(**widths, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
    net.save_pretrained(folder)
    return net.eval(), langevin.AutoencoderTiny.from_pretrained(folder)


@pytest.mark.parity
@pytest.mark.parametrize("family", ["StableDiffusion", "StableDiffusionXL"])
def test_the_tiny_autoencoder_is_exchanged_for_the_own_one(family, small, peer_sd, our_sd, request) -> None:
    """As documented, `pipe.vae = AutoencoderTiny.from_pretrained(...)`, for pictures from noise and from a picture."""
    bases = (peer_sd, our_sd) if family == "StableDiffusion" else request.getfixturevalue("xl")
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    for task, given in (("", {"latents": noise}), ("Img2Img", {"image": tiny.picture(), "strength": 0.5})):
        pictures = []
        for library, base, vae in zip((diffusers, langevin), bases, small, strict=True):
            cls = getattr(library, f"{family}{task}Pipeline")
            known = tiny.constructor(cls)
            extra = {"requires_safety_checker": False} if family == "StableDiffusion" else {}
            pipe = quiet(cls(**{k: v for k, v in base.components.items() if k in known}, **extra))
            pipe.scheduler = tiny.scheduler(library, "EulerDiscreteScheduler")
            pipe.vae = vae
            if library is diffusers:
                pipe.vae_scale_factor = pipe.image_processor.config["vae_scale_factor"]
            call = {"prompt": "a cat", "num_inference_steps": 4, "output_type": "np"}
            pictures.append(pipe(**call, **given, generator=torch.Generator().manual_seed(0)).images)
        assert pictures[0].shape == pictures[1].shape == (1, 16, 16, 3)
        assert np.abs(pictures[0] - pictures[1]).max() <= 1e-4


def test_a_preview_by_a_decoder(pipe, small) -> None:
    shown, latents = {}, {}

    def keep(inner, step, timestep, tensors):
        latents[step] = tensors["latents"].clone()
        return preview(inner, step, timestep, tensors)

    preview = PreviewCallback(lambda step, pictures: shown.update({step: pictures}), every=2, decoder=small[1])
    plain = pipe(**CALL).images
    seen = pipe(**CALL, callback_on_step_end=keep)
    assert np.array_equal(seen.images, plain) and list(shown) == [0, 2, 4, 5]
    with torch.no_grad():
        last = latents[5] / latents[5].std().clamp(min=1)
        wanted = to_images(small[1].decode(last).sample)
    assert np.array_equal(np.asarray(shown[5][0]), np.asarray(wanted[0])) and shown[5][0].size == (16, 16)


def test_previews_of_sdxl_in_a_folder(xl, tmp_path) -> None:
    pipe = build("StableDiffusionXLPipeline", xl[1])
    pipe.scheduler = tiny.scheduler(langevin, "EulerDiscreteScheduler")
    pipe(
        **{**CALL, "prompt": ["a cat", "a dog"]}, callback_on_step_end=PreviewCallback(tmp_path / "on the way", every=4)
    )
    found = sorted(path.name for path in (tmp_path / "on the way").iterdir())
    assert found == [f"step-00{step}-{row}.png" for step in (0, 4, 5) for row in (0, 1)]
    with Image.open(tmp_path / "on the way" / found[0]) as picture:
        assert picture.size == (8, 8) and picture.mode == "RGB"


def test_the_linear_map_shows_the_picture() -> None:
    pipe = quiet(langevin.StableDiffusionPipeline.from_pretrained(model_folder()))
    shown = {}
    preview = PreviewCallback(lambda step, pictures: shown.update({step: np.asarray(pictures[0]) / 255}))
    call = {"prompt": "a red house", "num_inference_steps": 8, "guidance_scale": 2.0, "output_type": "np", "seed": 0}
    made = torch.from_numpy(pipe(**call, callback_on_step_end=preview).images).movedim(-1, 1)
    wanted = F.interpolate(made, size=shown[7].shape[:2], mode="area")[0].movedim(0, -1).numpy()
    left = [((picture - wanted) ** 2).mean() / wanted.var() for picture in (shown[0], shown[7])]
    assert left[1] < 0.5 and left[0] > 2 * left[1], left


def test_what_cannot_be_shown_is_said(pipe) -> None:
    for given, match in (((3,), "`show`"), ((print, 0), "every"), ((print, 5, 3), "`decoder`")):
        with pytest.raises(InputError, match=match):
            PreviewCallback(given[0], **dict(zip(("every", "decoder"), given[1:], strict=False)))
    pipe.vae = None
    with pytest.raises(ConfigError, match="needs the pipeline's vae"):
        pipe(**{**CALL, "output_type": "latent"}, callback_on_step_end=PreviewCallback(print), height=64, width=64)
