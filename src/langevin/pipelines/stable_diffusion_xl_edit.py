"""Stable Diffusion XL with a network that sees a picture and edits it as an instruction says (Brooks et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.images import ImageInput
from ..core.rng import Generators
from ..families.denoiser import Channels
from ..families.latents import LatentSpace
from . import tasks
from .glossary import documented
from .inputs import Call, begin
from .outputs import StableDiffusionXLPipelineOutput
from .pictures import Picture
from .stable_diffusion_edit import EditsByInstruction
from .stable_diffusion_xl import Pair, StableDiffusionXLFamily


class StableDiffusionXLInstructPix2PixPipeline(EditsByInstruction, StableDiffusionXLFamily):
    """Pictures edited as an instruction says (Brooks et al. 2023, 2211.09800).

    Draw order: the noise; then one draw per step, as the scheduler asks. Components as in `StableDiffusionXLPipeline`.

    Args:
        is_cosxl_edit: the network sees the picture's latents scaled as the sample's are.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->unet->vae"
    _optional_components = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2")

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        text_encoder_2: Any,
        tokenizer: Any,
        tokenizer_2: Any,
        unet: Any,
        scheduler: Any,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
        is_cosxl_edit: bool = False,
    ) -> None:
        self._assemble(locals())

    def _channels_beside(
        self, call: Call, space: LatentSpace, picture: Picture | None, place: Mapping[str, Any]
    ) -> Sequence[Channels]:
        channels = super()._channels_beside(call, space, picture, place)
        if not self.config["is_cosxl_edit"]:
            return channels
        return [replace(one, tensor=space.scale(one.tensor)) for one in channels]

    @documented
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        prompt_2: str | Sequence[str] | None = None,
        image: ImageInput | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 100,
        denoising_end: float | None = None,
        guidance_scale: float = 5.0,
        image_guidance_scale: float = 1.5,
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
        output_type: str = "pil",
        return_dict: bool = True,
        callback: Callable[[int, Any, Tensor], None] | None = None,
        callback_steps: int = 1,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        original_size: Pair | None = None,
        crops_coords_top_left: Pair = (0, 0),
        target_size: Pair | None = None,
        seed: int | Sequence[int] | None = None,
        prompt_syntax: str | None = None,
        long_prompt: str = "chunk",
    ) -> StableDiffusionXLPipelineOutput | tuple[Any]:
        """Edit a picture as the prompt instructs."""
        call = begin(self, locals())
        return tasks.text_to_image(self, call, self._picture(call, size=self._size(height, width)))
