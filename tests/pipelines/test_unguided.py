"""A guidance scale of 1 or less: the negative prompt is neither encoded nor asked, in every pipeline that has one."""

from __future__ import annotations

import inspect

import pytest

import langevin
from langevin.registry import PIPELINES
from tests.pipelines import tiny, tiny_xl
from tests.pipelines.controls import adapters, controlnets
from tests.pipelines.test_sd_edit import build

IMAGE, MASK = {"image": tiny.picture()}, {"mask_image": tiny.hole()}
CONTROL = {"control_image": tiny.picture(1)}
TEXT = {"prompt": "a cat"}
CALLS = {
    "Pipeline": TEXT,
    "Img2ImgPipeline": {**TEXT, **IMAGE},
    "InpaintPipeline": {**TEXT, **IMAGE, **MASK},
    "AdapterPipeline": {**TEXT, **IMAGE},
    "ControlNetPipeline": {**TEXT, **IMAGE},
    "ControlNetImg2ImgPipeline": {**TEXT, **IMAGE, **CONTROL},
    "ControlNetInpaintPipeline": {**TEXT, **IMAGE, **MASK, **CONTROL},
    "InstructPix2PixPipeline": {**TEXT, **IMAGE},
    "Depth2ImgPipeline": {**TEXT, **IMAGE},
    "ImageVariationPipeline": IMAGE,
    "UpscalePipeline": {**TEXT, **IMAGE},
    "LatentUpscalePipeline": {**TEXT, **IMAGE},
}
FAMILIES = ("StableDiffusionXL", "StableDiffusion")


def parts_of(task: str, large: bool) -> dict:
    """Return the components that a task needs beside those of text to image."""
    library, config = langevin, {**tiny.UNET, **tiny_xl.UNET} if large else tiny.UNET
    if task == "AdapterPipeline":
        return {"adapter": adapters()[1]}
    if task.startswith("ControlNet"):
        return {"controlnet": controlnets(config)[1]}
    if task == "InstructPix2PixPipeline":
        return {"unet": tiny_xl.unet(library, in_channels=8) if large else tiny.unets(in_channels=8)[1]}
    if task == "Depth2ImgPipeline":
        estimator, reader = tiny.depth_estimator()
        return {"depth_estimator": estimator, "feature_extractor": reader, "unet": tiny.unets(in_channels=5)[1]}
    if task == "ImageVariationPipeline":
        return {"image_encoder": tiny.image_encoder(), "feature_extractor": tiny.feature_extractor()}
    if task == "UpscalePipeline":
        small = {"low_res_scheduler": tiny.scheduler(library, "DDPMScheduler")}
        return {**small, "unet": tiny.unets(in_channels=7, num_class_embeds=1000)[1]}
    if task == "LatentUpscalePipeline":
        unet = tiny.unets(in_channels=8, out_channels=5, time_cond_proj_dim=128 + tiny.WIDTH)[1]
        return {"unet": unet, "scheduler": tiny.scheduler(library, "EulerDiscreteScheduler", prediction_type="sample")}
    return {}


def guided() -> list[str]:
    """Return the names of the pipelines whose call takes a guidance scale."""
    classes = [row.name for row in PIPELINES]
    return [n for n in classes if "guidance_scale" in inspect.signature(getattr(langevin, n).__call__).parameters]


@pytest.mark.parametrize("name", guided())
def test_half_is_left_out(name, request) -> None:
    family = next(prefix for prefix in FAMILIES if name.startswith(prefix))
    task, large = name.removeprefix(family), family == FAMILIES[0]
    base = request.getfixturevalue("xl")[1] if large else request.getfixturevalue("our_sd")
    parts = {**parts_of(task, large), "scheduler": tiny.scheduler(langevin, "EulerDiscreteScheduler")}
    pipe = build(name, base, **{**parts, **parts_of(task, large)})
    asked, encoded = [], []
    hooks = [pipe.unet.conv_in.register_forward_hook(lambda m, args, out: asked.append(len(out)))]
    if task != "ImageVariationPipeline":
        encoder = pipe.text_encoder
        hooks.append(encoder.register_forward_hook(lambda m, args, kwargs, out: encoded.append(1), with_kwargs=True))
    controls = pipe.components.get("controlnet")
    if controls is not None:
        hooks.append(controls.conv_in.register_forward_hook(lambda m, args, out: asked.append(len(out))))
    found, call = {}, dict(CALLS[task])
    if "negative_prompt" in inspect.signature(pipe.__call__).parameters:
        call["negative_prompt"] = "a dog"
    try:
        for scale in (7.5, 1.0, 0.0):
            asked.clear()
            encoded.clear()
            pipe(**call, num_inference_steps=2, guidance_scale=scale, output_type="latent", seed=0)
            found[scale] = (set(asked), len(encoded))
    finally:
        for hook in hooks:
            hook.remove()
    full = 3 if "Instruct" in task else 2
    assert found[7.5][0] == {full} and found[1.0][0] == found[0.0][0] == {1}
    if "negative_prompt" in call:
        assert found[1.0][1] < found[7.5][1] and found[0.0][1] == found[1.0][1]
