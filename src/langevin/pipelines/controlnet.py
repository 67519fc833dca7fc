"""Stable Diffusion 1 and 2 with ControlNets (Zhang & Agrawala 2023): a picture says where things are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InputError
from ..core.images import ImageInput
from ..core.rng import Generators
from ..diffusion.table import Plan
from ..families.common import dtype_of, option
from ..families.control import Control, ControlNet
from ..families.latents import LatentSpace
from ..models.controlnets.multicontrolnet import MultiControlNetModel
from . import tasks
from .callbacks import Callback, MultiPipelineCallbacks, PipelineCallback
from .controls import (
    Numbers,
    check_fits,
    control_pixels,
    networks_of,
    per_network,
    per_network_pictures,
    several,
    sized,
)
from .glossary import documented
from .inpainting import MASKED, inpaint
from .inputs import Call, begin
from .outputs import StableDiffusionPipelineOutput
from .stable_diffusion import StableDiffusionFamily, corrected

FITTING = ("cross_attention_dim", "block_out_channels")
"""Configuration values in which a ControlNet and its UNet agree."""


class ControlNetMixin:
    """The control of a pipeline by ControlNets, whatever its family and its task.

    Attributes:
        _control_name: the argument that holds the control pictures.
    """

    controlnet: Any
    _control_name = "image"

    def _attachments(self, call: Call, space: LatentSpace, plan: Plan) -> Sequence[ControlNet]:
        """Return what asks the ControlNets at each step."""
        controls = []
        for net, picture, settings in controls_of(call):
            pixels = control_pixels(call, picture, space, channels=option(net, "conditioning_channels", 3))
            pixels = pixels.to(call.device, dtype_of(net, pixels.dtype))
            controls.append(Control(net, pixels, count=whole(plan), **settings))
        return [ControlNet(controls, self._control_name)]


def whole(plan: Plan) -> int:
    """Return how many network calls a run would make without `denoising_end`."""
    return len((plan if plan.end is None else replace(plan, end=None)).steps)


def controlled(call: Call) -> Call:
    """Return the call with its control checked, and with the size of the picture that it follows.

    That is the control picture, or for inpainting the picture; a picture that is changed as a whole keeps its own size.
    """
    _, picture, _ = controls_of(call)[0]
    if call.pipe._control_name == "image":
        return sized(call, picture)
    return sized(call, call["image"]) if call.get("image") is not None and "mask_image" in call.given else call


def controls_of(call: Call) -> list[tuple[Any, Any, dict[str, Any]]]:
    """Return each ControlNet of a call with its pictures and its settings.

    Raises:
        InputError: when the number of pictures or values does not fit, or a part of the run is empty.
        ConfigError: when a network was made for another UNet.
    """
    pipe, name = call.pipe, call.pipe._control_name
    nets = networks_of(pipe._part("controlnet"))
    for net in nets:
        check_fits(net, pipe._part("unet"), FITTING)
    pictures = per_network_pictures(name, call.get(name), nets, call.prompts, by_prompt=True)
    scales, starts, ends = (
        per_network(argument, call[argument], nets)
        for argument in ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end")
    )
    for start, end in zip(starts, ends, strict=True):
        if start >= end:
            raise InputError(
                f"`control_guidance_start` is {start} and `control_guidance_end` is {end}: nothing lies between them; "
                "to switch a ControlNet off, give it a `controlnet_conditioning_scale` of 0."
            )
    guess = [call["guess_mode"] or bool(option(net, "global_pool_conditions")) for net in nets]
    names = ("scale", "start", "end", "guess")
    settings = [dict(zip(names, each, strict=True)) for each in zip(scales, starts, ends, guess, strict=True)]
    return list(zip(nets, pictures, settings, strict=True))


class StableDiffusionControlNetFamily(ControlNetMixin, StableDiffusionFamily):
    """What the Stable Diffusion pipelines with ControlNets share: one component more, `controlnet`.

    It is a `ControlNetModel`, compiled or not, a `MultiControlNetModel`, or a list of ControlNets.
    """

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        controlnet: Any,
        scheduler: Any,
        safety_checker: Any,
        feature_extractor: Any,
        image_encoder: Any = None,
        requires_safety_checker: bool = True,
    ) -> None:
        controlnet, scheduler = several(controlnet, MultiControlNetModel), corrected(scheduler)
        self._assemble(locals())


class StableDiffusionControlNetPipeline(StableDiffusionControlNetFamily):
    """Pictures from prompts and control pictures.

    Draw order: as in `StableDiffusionPipeline`. Components as there, and `controlnet`.
    """

    _callback_tensor_inputs = (*StableDiffusionFamily._callback_tensor_inputs, "image")

    @documented
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: ImageInput | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Sequence[Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        controlnet_conditioning_scale: Numbers = 1.0,
        guess_mode: bool = False,
        control_guidance_start: Numbers = 0.0,
        control_guidance_end: Numbers = 1.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callback | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        seed: int | Sequence[int] | None = None,
        prompt_syntax: str | None = None,
        long_prompt: str = "chunk",
        **deprecated: Any,
    ) -> StableDiffusionPipelineOutput | tuple[Any, list[bool] | None]:
        """Draw what the prompts say where the control pictures (`image`) say."""
        return tasks.text_to_image(self, controlled(begin(self, locals())))


class StableDiffusionControlNetImg2ImgPipeline(StableDiffusionControlNetFamily):
    """Pictures from a prompt, a picture to start from, and control pictures.

    Draw order: as in `StableDiffusionImg2ImgPipeline`. Components as there, and `controlnet`.
    """

    _control_name = "control_image"
    _callback_tensor_inputs = (*StableDiffusionFamily._callback_tensor_inputs, "control_image")

    @documented
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: ImageInput | None = None,
        control_image: ImageInput | None = None,
        height: int | None = None,
        width: int | None = None,
        strength: float = 0.8,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Sequence[Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        controlnet_conditioning_scale: Numbers = 0.8,
        guess_mode: bool = False,
        control_guidance_start: Numbers = 0.0,
        control_guidance_end: Numbers = 1.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callback | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        seed: int | Sequence[int] | None = None,
        prompt_syntax: str | None = None,
        long_prompt: str = "chunk",
        **deprecated: Any,
    ) -> StableDiffusionPipelineOutput | tuple[Any, list[bool] | None]:
        """Change a picture into what the prompt says, within what the control pictures say."""
        return tasks.image_to_image(self, controlled(begin(self, locals())))


class StableDiffusionControlNetInpaintPipeline(StableDiffusionControlNetFamily):
    """Pictures of which a part is painted anew under control pictures, with 9-channel networks or any other.

    Draw order: as in `StableDiffusionInpaintPipeline`. Components as there, and `controlnet`; for ControlNets made for
    inpainting `make_inpaint_condition` makes the control picture.
    """

    _control_name = "control_image"
    _callback_tensor_inputs = (*StableDiffusionFamily._callback_tensor_inputs, "control_image", *MASKED)

    @documented
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: ImageInput | None = None,
        mask_image: ImageInput | None = None,
        control_image: ImageInput | None = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 1.0,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Sequence[Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        controlnet_conditioning_scale: Numbers = 0.5,
        guess_mode: bool = False,
        control_guidance_start: Numbers = 0.0,
        control_guidance_end: Numbers = 1.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callback | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        seed: int | Sequence[int] | None = None,
        prompt_syntax: str | None = None,
        long_prompt: str = "chunk",
        paste_back: bool = True,
        mask_feather: int = 0,
        match_colour: bool = False,
        **deprecated: Any,
    ) -> StableDiffusionPipelineOutput | tuple[Any, list[bool] | None]:
        """Paint the white part of the mask as prompt and control pictures say, and keep the rest."""
        return inpaint(self, controlled(begin(self, locals())))
