"""What authors of pipelines call on `self`: documented helpers for a loop of their own in `__call__`.

The pipelines of this library do not use them; community pipelines do. Each is a thin skin over the parts that the tasks
of this library are made of.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import InputError, check_count
from ..core.rng import Generators, normal
from ..diffusion.grid import check_strength
from ..families.latents import spread_rows
from .callbacks import check_wanted
from .image_processor import VaeImageProcessor
from .inputs import CHECKS, check_latents, check_prompts, check_size

Place = torch.device | str | None


class StableDiffusionMixin:
    """The memory switches of pipelines with an autoencoder, under their documented name."""

    _delegate: Callable[..., None]

    def enable_vae_slicing(self) -> None:
        """Decode the pictures of a batch one after the other."""
        self._delegate("enable_slicing", only="vae")

    def disable_vae_slicing(self) -> None:
        """Decode a batch in one step again."""
        self._delegate("disable_slicing", only="vae")

    def enable_vae_tiling(self) -> None:
        """Decode large pictures tile by tile."""
        self._delegate("enable_tiling", only="vae")

    def disable_vae_tiling(self) -> None:
        """Decode pictures whole again."""
        self._delegate("disable_tiling", only="vae")

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """Strengthen the backbone of the UNet and weaken what it keeps; see `UNet2DConditionModel.enable_freeu`."""
        self._delegate("enable_freeu", s1, s2, b1, b2, only="unet")

    def disable_freeu(self) -> None:
        """Use the UNet as it was trained again."""
        self._delegate("disable_freeu", only="unet")

    def enable_token_merging(self, ratio: float = 0.5, max_downsample: int = 1) -> None:
        """Let attention in the UNet work on fewer tokens; see `UNet2DConditionModel.enable_token_merging`."""
        self._delegate("enable_token_merging", ratio, max_downsample, only="unet")

    def disable_token_merging(self) -> None:
        """Let attention in the UNet work on all tokens again."""
        self._delegate("disable_token_merging", only="unet")


class OwnLoopMixin:
    """Helpers of every latent pipeline: the first sample, the scheduler's options, the schedule's tail, decoding."""

    vae: Any
    unet: Any
    scheduler: Any

    def prepare_latents(
        self,
        batch_size: int,
        num_channels_latents: int,
        height: int,
        width: int,
        dtype: torch.dtype | None,
        device: Place,
        generator: Generators = None,
        latents: Tensor | None = None,
    ) -> Tensor:
        """Return the first sample of a run, (batch_size, channels, height, width) in latents: noise as the scheduler
        scales it, drawn or given.

        Args:
            height, width: of the pictures in pixels.
            latents: unscaled noise instead of a draw.

        Raises:
            InputError: for latents of another shape, or a list of generators of another length.
        """
        factor = self.vae_scale_factor  # type: ignore[attr-defined]
        shape = (batch_size, num_channels_latents, int(height) // factor, int(width) // factor)
        check_latents(latents, shape)
        if latents is None:
            latents = normal(shape, generator=generator, device=device, dtype=dtype)
        return latents.to(device) * self.scheduler.init_noise_sigma

    def prepare_extra_step_kwargs(self, generator: Generators, eta: float | None = None) -> dict[str, Any]:
        """Return `generator` and `eta` as keywords of the scheduler's `step`, as far as it has them."""
        known = inspect.signature(self.scheduler.step).parameters
        return {name: value for name, value in (("eta", eta), ("generator", generator)) if name in known}

    def get_timesteps(self, num_inference_steps: int, strength: float, device: Place = None) -> tuple[Tensor, int]:
        """Return the part of the scheduler's schedule that `strength` leaves, in whole steps, and how many steps it is.

        Args:
            device: accepted as documented; `set_timesteps` has placed the schedule already.
        """
        check_strength(strength)
        steps = min(int(num_inference_steps * strength), num_inference_steps)
        first = (num_inference_steps - steps) * getattr(self.scheduler, "order", 1)
        if callable(getattr(self.scheduler, "set_begin_index", None)):
            self.scheduler.set_begin_index(first)
        return self.scheduler.timesteps[first:], steps

    def decode_latents(self, latents: Tensor) -> np.ndarray:
        """Return the pictures of latents as an array (batch, height, width, channels) in [0, 1]."""
        height, width = (side * self.vae_scale_factor for side in latents.shape[-2:])  # type: ignore[attr-defined]
        space = self._own_space(latents.shape[1], height, width)  # type: ignore[attr-defined]
        pixels = space.decode(latents)
        return VaeImageProcessor.pt_to_numpy(VaeImageProcessor.denormalize(pixels))


class PromptLoopMixin:
    """Helpers of pipelines with one text encoder: the checks of a call, and prompts for both halves of a batch."""

    def check_inputs(
        self, prompt: str | Sequence[str] | None, height: int, width: int, *rest: Any, **more: Any
    ) -> None:
        """Check a call's prompts, size and callbacks before any work.

        Args:
            rest, more: what else the call has, see `_check_rest`.

        Raises:
            InputError: naming the argument that cannot be used.
        """
        check_size(height, width, factor=self.vae_scale_factor)  # type: ignore[attr-defined]
        self._check_rest(prompt, *rest, **more)

    def _check_rest(
        self,
        prompt: str | Sequence[str] | None,
        callback_steps: int | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Sequence[Tensor] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
    ) -> None:
        """Check what the documented `check_inputs` of all tasks end with."""
        texts = {"prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative_prompt_embeds}
        check_prompts(prompt, negative_prompt=negative_prompt, **texts)
        if ip_adapter_image is not None and ip_adapter_image_embeds is not None:
            raise InputError("Both `ip_adapter_image` and `ip_adapter_image_embeds` were given; pass one of them.")
        if callback_steps is not None:
            check_count("callback_steps", callback_steps)
        check_wanted(callback_on_step_end_tensor_inputs or (), self._callback_tensor_inputs)  # type: ignore[attr-defined]

    def _encode_prompt(
        self,
        prompt: str | Sequence[str] | None,
        device: Place,
        num_images_per_prompt: int,
        do_classifier_free_guidance: bool,
        negative_prompt: str | Sequence[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Return what the older `_encode_prompt` did: one tensor, the negative half first where there is guidance."""
        embeds = {"prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative_prompt_embeds}
        positive, negative = self.encode_prompt(  # type: ignore[attr-defined]
            prompt, device, num_images_per_prompt, do_classifier_free_guidance, negative_prompt, **embeds, **options
        )
        return positive if negative is None else torch.cat([negative, positive])


class PictureLoopMixin(PromptLoopMixin, OwnLoopMixin):
    """The same for pipelines with one text encoder that start from a picture."""

    def check_inputs(  # type: ignore[override]
        self, prompt: str | Sequence[str] | None, strength: float, *rest: Any, **more: Any
    ) -> None:
        """Check a call's prompts, strength and callbacks before any work; otherwise as without a picture."""
        CHECKS["strength"]("strength", strength)
        self._check_rest(prompt, *rest, **more)

    def prepare_latents(  # type: ignore[override]
        self,
        image: Tensor,
        timestep: Tensor,
        batch_size: int,
        num_images_per_prompt: int,
        dtype: torch.dtype | None,
        device: Place,
        generator: Generators = None,
    ) -> Tensor:
        """Return the first sample of a run: the picture's latents, noised to `timestep`.

        Draw order: the latents of the picture, then the noise.

        Args:
            image: pictures (rows, channels, height, width) in [-1, 1], or latents, as `image_processor.preprocess`
                returns them.
            timestep: where the run starts, one value or one per row.
            batch_size: number of prompts.
        """
        image, rows = image.to(device=device, dtype=dtype), batch_size * num_images_per_prompt
        space = self._own_space(self._channels(), *image.shape[-2:])  # type: ignore[attr-defined]
        latent = image.shape[1] == space.channels
        latents = spread_rows(image, rows) if latent else space.encode(image, rows, rng=generator)
        noise = normal(latents.shape, generator=generator, device=latents.device, dtype=latents.dtype)
        return self.scheduler.add_noise(latents, noise, timestep)
