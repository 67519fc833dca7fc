# ruff: noqa
"""A pipeline in the style of the first community files: repaired configurations, `_encode_prompt`, arrays at the end."""

from dataclasses import dataclass
from typing import List, Union

import numpy as np
import PIL.Image
import torch

import diffusers
from diffusers import SchedulerMixin, StableDiffusionPipeline
from diffusers.configuration_utils import FrozenDict
from diffusers.loaders import StableDiffusionLoraLoaderMixin, TextualInversionLoaderMixin
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.utils import BaseOutput, PIL_INTERPOLATION, deprecate, is_accelerate_available, logging

logger = logging.get_logger(__name__)


@dataclass
class BlendedOutput(BaseOutput):
    images: Union[List[PIL.Image.Image], np.ndarray]
    weights: List[float] = None


class Helper:
    """Not a pipeline."""


class Unused(StableDiffusionPipeline):
    """A base of the one below; the last class of a file is its pipeline."""


class BlendedPromptsPipeline(Unused):
    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder,
        tokenizer,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        safety_checker,
        feature_extractor,
        image_encoder=None,
        requires_safety_checker: bool = True,
    ):
        if hasattr(scheduler.config, "steps_offset") and scheduler.config.steps_offset != 1:
            deprecate("steps_offset!=1", "1.0.0", "The configuration is outdated.", standard_warn=False)
            new_config = dict(scheduler.config)
            new_config["steps_offset"] = 1
            scheduler._internal_dict = FrozenDict(new_config)
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
            requires_safety_checker=requires_safety_checker,
        )
        self.vae_scale_factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.register_to_config(requires_safety_checker=requires_safety_checker)
        self.shrink = PIL_INTERPOLATION["lanczos"]
        self.learns_words = isinstance(self, TextualInversionLoaderMixin)

    @torch.no_grad()
    def __call__(
        self,
        prompts,
        weights,
        height=16,
        width=16,
        num_inference_steps=4,
        guidance_scale=5.0,
        generator=None,
        output_type="pil",
        **kwargs,
    ):
        steps = deprecate("steps", "9.0.0", "Use `num_inference_steps`.", take_from=kwargs)
        num_inference_steps = steps or num_inference_steps
        device = self._execution_device
        embeds = sum(
            weight * self._encode_prompt(prompt, device, 1, True) for prompt, weight in zip(prompts, weights)
        ) / sum(weights)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        latents = self.prepare_latents(1, self.unet.config.in_channels, height, width, embeds.dtype, device, generator)
        extra = self.prepare_extra_step_kwargs(generator, 0.0)
        for i, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            doubled = self.scheduler.scale_model_input(torch.cat([latents] * 2), t)
            uncond, text = self.unet(doubled, t, encoder_hidden_states=embeds).sample.chunk(2)
            latents = self.scheduler.step(uncond + guidance_scale * (text - uncond), t, latents, **extra).prev_sample
        image = self.decode_latents(latents)
        if output_type == "pil":
            image = [one.resize((8, 8), self.shrink) for one in self.numpy_to_pil(image)]
        return BlendedOutput(images=image, weights=list(weights))
