"""Stable Diffusion XL with ControlNets (Zhang & Agrawala 2023): a picture says where things are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.images import ImageInput
from ..core.rng import Generators
from ..models.controlnets.multicontrolnet import MultiControlNetModel
from . import tasks
from .callbacks import Callback, MultiPipelineCallbacks, PipelineCallback
from .controlnet import ControlNetMixin, controlled
from .controls import Numbers, several
from .glossary import documented
from .inpainting import MASKED, inpaint
from .inputs import begin
from .outputs import StableDiffusionXLPipelineOutput
from .stable_diffusion_xl import Pair, StableDiffusionXLFamily

SEEN = ("latents", "prompt_embeds", "negative_prompt_embeds", "add_text_embeds", "add_time_ids")
SEEN_NEGATIVE = ("negative_pooled_prompt_embeds", "add_neg_time_ids")
"""Tensors that callbacks of every pipeline here, and of those that change a picture, may ask for."""


class StableDiffusionXLControlNetPipeline(ControlNetMixin, StableDiffusionXLFamily):
    """Pictures from prompts and control pictures.

    Draw order: as in `StableDiffusionXLPipeline`. Components as there, and:

    Args:
        controlnet: `ControlNetModel`, compiled or not, a `MultiControlNetModel`, or a list of ControlNets.
    """

    _callback_tensor_inputs = (*SEEN, "negative_pooled_prompt_embeds", "negative_add_time_ids", "image")

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        text_encoder_2: Any,
        tokenizer: Any,
        tokenizer_2: Any,
        unet: Any,
        controlnet: Any,
        scheduler: Any,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
        feature_extractor: Any = None,
        image_encoder: Any = None,
    ) -> None:
        controlnet = several(controlnet, MultiControlNetModel)
        self._assemble(locals())

    @documented
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        prompt_2: str | Sequence[str] | None = None,
        image: ImageInput | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        denoising_end: float | None = None,
        guidance_scale: float = 5.0,
        negative_prompt: str | Sequence[str] | None = None,
        negative_prompt_2: str | Sequence[str] | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Sequence[Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        controlnet_conditioning_scale: Numbers = 1.0,
        guess_mode: bool = False,
        control_guidance_start: Numbers = 0.0,
        control_guidance_end: Numbers = 1.0,
        original_size: Pair | None = None,
        crops_coords_top_left: Pair = (0, 0),
        target_size: Pair | None = None,
        negative_original_size: Pair | None = None,
        negative_crops_coords_top_left: Pair = (0, 0),
        negative_target_size: Pair | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callback | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        seed: int | Sequence[int] | None = None,
        prompt_syntax: str | None = None,
        long_prompt: str = "chunk",
        **deprecated: Any,
    ) -> StableDiffusionXLPipelineOutput | tuple[Any]:
        """Draw what the prompts say where the control pictures (`image`) say."""
        return tasks.text_to_image(self, controlled(begin(self, locals())))


class StableDiffusionXLControlNetPictureFamily(ControlNetMixin, StableDiffusionXLFamily):
    """What the pipelines with ControlNets that change a picture share: components, and the name of the control.

    Components as in `StableDiffusionXLImg2ImgPipeline`, and `controlnet`.
    """

    _control_name = "control_image"

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        text_encoder_2: Any,
        tokenizer: Any,
        tokenizer_2: Any,
        unet: Any,
        controlnet: Any,
        scheduler: Any,
        requires_aesthetics_score: bool = False,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
        feature_extractor: Any = None,
        image_encoder: Any = None,
    ) -> None:
        controlnet = several(controlnet, MultiControlNetModel)
        self._assemble(locals())


class StableDiffusionXLControlNetImg2ImgPipeline(StableDiffusionXLControlNetPictureFamily):
    """Pictures from a prompt, a picture to start from, and control pictures.

    Draw order: as in `StableDiffusionXLImg2ImgPipeline`.
    """

    _callback_tensor_inputs = (*SEEN, *SEEN_NEGATIVE, "control_image")

    @documented
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        prompt_2: str | Sequence[str] | None = None,
        image: ImageInput | None = None,
        control_image: ImageInput | None = None,
        height: int | None = None,
        width: int | None = None,
        strength: float = 0.8,
        num_inference_steps: int = 50,
        guidance_scale: float = 5.0,
        negative_prompt: str | Sequence[str] | None = None,
        negative_prompt_2: str | Sequence[str] | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Sequence[Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        controlnet_conditioning_scale: Numbers = 0.8,
        guess_mode: bool = False,
        control_guidance_start: Numbers = 0.0,
        control_guidance_end: Numbers = 1.0,
        original_size: Pair | None = None,
        crops_coords_top_left: Pair = (0, 0),
        target_size: Pair | None = None,
        negative_original_size: Pair | None = None,
        negative_crops_coords_top_left: Pair = (0, 0),
        negative_target_size: Pair | None = None,
        aesthetic_score: float = 6.0,
        negative_aesthetic_score: float = 2.5,
        clip_skip: int | None = None,
        callback_on_step_end: Callback | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        seed: int | Sequence[int] | None = None,
        prompt_syntax: str | None = None,
        long_prompt: str = "chunk",
        **deprecated: Any,
    ) -> StableDiffusionXLPipelineOutput | tuple[Any]:
        """Change a picture into what the prompt says, within what the control pictures say."""
        return tasks.image_to_image(self, controlled(begin(self, locals())))


class StableDiffusionXLControlNetInpaintPipeline(StableDiffusionXLControlNetPictureFamily):
    """Pictures of which a part is painted anew under control pictures, with 9-channel networks or any other.

    Draw order: as in `StableDiffusionXLInpaintPipeline`.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->unet->vae"
    _callback_tensor_inputs = (*SEEN, *SEEN_NEGATIVE, *MASKED, "control_image")

    @documented
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        prompt_2: str | Sequence[str] | None = None,
        image: ImageInput | None = None,
        mask_image: ImageInput | None = None,
        control_image: ImageInput | None = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 0.9999,
        num_inference_steps: int = 50,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
        guidance_scale: float = 5.0,
        negative_prompt: str | Sequence[str] | None = None,
        negative_prompt_2: str | Sequence[str] | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Sequence[Tensor] | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        controlnet_conditioning_scale: Numbers = 1.0,
        guess_mode: bool = False,
        control_guidance_start: Numbers = 0.0,
        control_guidance_end: Numbers = 1.0,
        guidance_rescale: float = 0.0,
        original_size: Pair | None = None,
        crops_coords_top_left: Pair = (0, 0),
        target_size: Pair | None = None,
        aesthetic_score: float = 6.0,
        negative_aesthetic_score: float = 2.5,
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
    ) -> StableDiffusionXLPipelineOutput | tuple[Any]:
        """Paint the white part of the mask as prompt and control pictures say, and keep the rest."""
        return inpaint(self, controlled(begin(self, locals())))
