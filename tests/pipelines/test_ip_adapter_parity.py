"""IP-Adapters of every kind against the peer, on the same tiny weights."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from diffusers.callbacks import IPAdapterScaleCutoffCallback as PeerCutoff
from diffusers.image_processor import IPAdapterMaskProcessor as PeerMasks

import langevin
from tests.pipelines import ip_adapters as ip
from tests.pipelines import tiny
from tests.pipelines.controls import controlnets
from tests.pipelines.pairs import difference, twins

pytestmark = pytest.mark.parity
LIMIT = 1e-4
PICTURE, OTHER = tiny.picture(11, (40, 32)), tiny.picture(12, (32, 32))
ONE = {"ip_adapter_image": PICTURE}


@pytest.fixture
def loaded():
    """Load adapters into pipelines; they are removed afterwards, since the networks are shared."""
    used = []

    def load(pipes, *states):
        used.append(pipes)
        ip.load(pipes, *states)
        return pipes

    yield load
    for pipes in used:
        for pipe in pipes:
            pipe.unload_ip_adapter()


def seeing(name, peer, ours):
    """Return pipelines of a class with a picture encoder."""
    more = {"image_encoder": (tiny.image_encoder(),) * 2, "feature_extractor": (tiny.feature_extractor(),) * 2}
    return twins(name, peer, ours, **more)


@pytest.fixture
def sd(peer_sd, our_sd):
    return seeing("StableDiffusionPipeline", peer_sd, our_sd)


@pytest.fixture
def xl_pair(xl):
    return seeing("StableDiffusionXLPipeline", *xl)


def make(pipes, *kinds, **options):
    """Return one random adapter per kind for a pair of pipelines."""
    return [ip.adapter(kind, pipes[1].unet, seed=7 * i, **options) for i, kind in enumerate(kinds)]


@pytest.mark.parametrize("guidance", [7.5, 1.0])
@pytest.mark.parametrize("kind", ["base", "plus", "full-face"])
def test_pictures(sd, loaded, kind, guidance) -> None:
    loaded(sd, *make(sd, kind))
    assert difference(sd, guidance_scale=guidance, **ONE) <= LIMIT
    assert difference(sd, guidance_scale=guidance, prompt="a cat", num_images_per_prompt=2, **ONE) <= LIMIT


@pytest.mark.parametrize("kind", ["base", "plus"])
@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_pictures_xl(xl_pair, loaded, kind, guidance) -> None:
    loaded(xl_pair, *make(xl_pair, kind))
    assert difference(xl_pair, guidance_scale=guidance, **ONE) <= LIMIT


@pytest.mark.parametrize("guidance", [7.5, 1.0])
def test_faces(sd, loaded, guidance) -> None:
    loaded(sd, *make(sd, "faceid"))
    rows = ip.faces(2 if guidance > 1 else 1)
    assert difference(sd, guidance_scale=guidance, ip_adapter_image_embeds=[rows]) <= LIMIT


def test_faces_with_lora_layers(sd, loaded, peer_sd) -> None:
    loaded(sd, *make(sd, "faceid", lora=2))
    try:
        assert difference(sd, ip_adapter_image_embeds=[ip.faces()]) <= LIMIT
    finally:
        peer_sd.unload_lora_weights()


@pytest.mark.parametrize("shortcut", [False, True])
def test_faces_and_pictures(sd, loaded, shortcut) -> None:
    loaded(sd, *make(sd, "faceid-plus"))
    for pipe in sd:
        clip = pipe.prepare_ip_adapter_image_embeds([PICTURE], None, torch.device("cpu"), 2, True)[0]
        layer = pipe.unet.encoder_hid_proj.image_projection_layers[0]
        layer.clip_embeds, layer.shortcut = clip, shortcut
    assert difference(sd, ip_adapter_image_embeds=[ip.faces()]) <= LIMIT


def test_several_adapters_and_pictures(sd, loaded) -> None:
    loaded(sd, *make(sd, "base", "plus"))
    for scale in ([0.6, 0.6], [0.3, 0.9]):
        for pipe in sd:
            pipe.set_ip_adapter_scale(scale)
        assert difference(sd, ip_adapter_image=[PICTURE, OTHER]) <= LIMIT
        assert difference(sd, ip_adapter_image=[[PICTURE, OTHER], OTHER]) <= LIMIT


@pytest.mark.parametrize(
    "scale",
    [
        0.0,
        {"down": {"block_0": [0.5]}},
        {"up": {"block_1": [0.0, 1.0]}},
        {"down": {"block_0": 0.5}, "mid": 1.0, "up": 0.2},
        [{"up": {"block_1": [0.3]}}],
    ],
)
def test_scales(sd, loaded, scale) -> None:
    loaded(sd, *make(sd, "base"))
    for pipe in sd:
        pipe.set_ip_adapter_scale(scale)
    assert difference(sd, **ONE) <= LIMIT


def test_scales_by_block_xl(xl_pair, loaded) -> None:
    loaded(xl_pair, *make(xl_pair, "plus", "plus"))
    for pipe in xl_pair:
        pipe.set_ip_adapter_scale([{"down": {"block_0": [1.0]}}, {"up": {"block_1": [0.0, 0.7]}}])
    assert difference(xl_pair, ip_adapter_image=[PICTURE, OTHER]) <= LIMIT


def masks(count: int, height: int = 16, width: int = 16) -> torch.Tensor:
    """Return masks (count, 1, height, width) of the peer, left and right halves in turn."""
    boxes = [(0, 0, 8, 16), (8, 0, 16, 16)]
    found = [tiny.hole(box=boxes[k % 2]).resize((width, height)) for k in range(count)]
    theirs = PeerMasks().preprocess(found, height=height, width=width)
    ours = langevin.IPAdapterMaskProcessor().preprocess(found, height=height, width=width)
    assert torch.equal(theirs, ours)
    return ours


@pytest.mark.parametrize("size", [(16, 16), (24, 16), (16, 40)])
def test_masks_of_several_adapters(sd, loaded, size) -> None:
    loaded(sd, *make(sd, "base", "plus"))
    call = {"height": size[0], "width": size[1], "ip_adapter_image": [PICTURE, OTHER]}
    assert difference(sd, cross_attention_kwargs={"ip_adapter_masks": masks(2, *size)}, **call) <= LIMIT


def test_masks_of_several_pictures(sd, loaded) -> None:
    loaded(sd, *make(sd, "plus"))
    for pipe in sd:
        pipe.set_ip_adapter_scale([[0.7, 0.4]])
    call = {"ip_adapter_image": [[PICTURE, OTHER]]}
    rows = masks(2).reshape(1, 2, 16, 16)
    assert difference(sd, cross_attention_kwargs={"ip_adapter_masks": [rows]}, **call) <= LIMIT


@pytest.mark.parametrize("kind", ["base", "plus"])
@pytest.mark.parametrize("guided", [True, False])
def test_embeddings_worked_out_before(sd, loaded, kind, guided) -> None:
    loaded(sd, *make(sd, kind))
    found = [pipe.prepare_ip_adapter_image_embeds(PICTURE, None, "cpu", 1, guided) for pipe in sd]
    assert torch.allclose(found[0][0], found[1][0], atol=1e-6) and found[0][0].shape == found[1][0].shape
    twice = [pipe.prepare_ip_adapter_image_embeds(None, found[0], "cpu", 3, guided)[0] for pipe in sd]
    assert torch.equal(*twice)
    call = {"guidance_scale": 7.5 if guided else 1.0, "num_images_per_prompt": 2, "prompt": "a cat"}
    assert difference(sd, ip_adapter_image_embeds=found[0], **call) <= LIMIT


def test_a_cutoff(sd, loaded) -> None:
    loaded(sd, *make(sd, "base"))
    pictures = []
    for library, pipe in zip((diffusers, langevin), sd, strict=True):
        pipe.scheduler = tiny.scheduler(library, "DDIMScheduler")
        stop = (PeerCutoff if library is diffusers else langevin.IPAdapterScaleCutoffCallback)(cutoff_step_ratio=0.5)
        call = {"num_inference_steps": 4, "output_type": "np", "callback_on_step_end": stop, **ONE}
        pictures.append(pipe("a cat", generator=torch.Generator().manual_seed(0), **call).images)
    assert np.abs(pictures[0] - pictures[1]).max() <= LIMIT


def test_encode_image(sd) -> None:
    for hidden in (None, True):
        theirs, ours = (pipe.encode_image(PICTURE, "cpu", 2, hidden) for pipe in sd)
        assert all(torch.allclose(a, b, atol=1e-6) and a.shape == b.shape for a, b in zip(theirs, ours, strict=True))


def test_image_to_image_and_inpainting(peer_sd, our_sd, loaded) -> None:
    pipes = seeing("StableDiffusionImg2ImgPipeline", peer_sd, our_sd)
    loaded(pipes, *make(pipes, "plus"))
    assert difference(pipes, image=tiny.picture(1), prompt="a cat", strength=0.5, **ONE) <= LIMIT
    pipes = seeing("StableDiffusionInpaintPipeline", peer_sd, our_sd)
    call = {"image": tiny.picture(1), "mask_image": tiny.hole(), "prompt": "a cat", "strength": 0.5}
    assert difference(pipes, ours={"paste_back": False}, **call, **ONE) <= LIMIT


def test_controlnet(peer_sd, our_sd, loaded) -> None:
    more = {"image_encoder": (tiny.image_encoder(),) * 2, "feature_extractor": (tiny.feature_extractor(),) * 2}
    pipes = twins("StableDiffusionControlNetPipeline", peer_sd, our_sd, controlnet=controlnets(), **more)
    loaded(pipes, *make(pipes, "base"))
    assert difference(pipes, image=tiny.picture(4), prompt="a cat", **ONE) <= LIMIT


def test_instructions(peer_sd, our_sd, loaded) -> None:
    more = {"image_encoder": (tiny.image_encoder(),) * 2, "feature_extractor": (tiny.feature_extractor(),) * 2}
    pipes = twins("StableDiffusionInstructPix2PixPipeline", peer_sd, our_sd, unet=tiny.unets(in_channels=8), **more)
    loaded(pipes, *make(pipes, "base"))
    assert difference(pipes, image=tiny.picture(4), prompt="a cat", **ONE) <= LIMIT


@pytest.mark.parametrize("name", ["StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"])
def test_xl_tasks(xl, loaded, name) -> None:
    pipes = seeing(name, *xl)
    loaded(pipes, *make(pipes, "base"))
    painting = {"mask_image": tiny.hole(), "ours": {"paste_back": False}} if "Inpaint" in name else {}
    assert difference(pipes, image=tiny.picture(1), prompt="a cat", strength=0.5, **painting, **ONE) <= LIMIT
