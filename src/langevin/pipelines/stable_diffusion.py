"""Text to picture with Stable Diffusion 1 and 2 (Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError, check_choice
from ..core.images import OUTPUT_TYPES
from ..core.logging import get_logger
from ..core.rng import Generators
from ..diffusion.guidance import CFG, Guidance, Talk, alone
from ..diffusion.table import Step
from ..families import sd
from .base import DiffusionPipeline
from .callbacks import Callback, MultiPipelineCallbacks, PipelineCallback, check_wanted, wanted
from .image_processor import VaeImageProcessor
from .inputs import (
    begin,
    check_latents,
    check_number,
    check_prompts,
    check_size,
    check_steps,
    documented,
    old_callback,
)
from .outputs import StableDiffusionPipelineOutput
from .runs import RunField, RunState, running
from .sampling import denoise, plan_of

logger = get_logger(__name__)
CORRECTED = {"steps_offset": 1, "clip_sample": False}
"""Scheduler options that every Stable Diffusion checkpoint was released with and some old folders lack."""


class _StableDiffusion(DiffusionPipeline):
    """What the Stable Diffusion pipelines of all tasks share: components, prompts, decoding, safety."""

    model_cpu_offload_seq = "text_encoder->image_encoder->unet->vae"
    _optional_components = ("safety_checker", "feature_extractor", "image_encoder")
    _callback_tensor_inputs = ("latents", "prompt_embeds", "negative_prompt_embeds")

    vae: Any
    text_encoder: Any
    tokenizer: Any
    unet: Any
    scheduler: Any
    safety_checker: Any
    feature_extractor: Any
    image_encoder: Any

    guidance_scale = _guidance_scale = RunField("guidance_scale")
    guidance_rescale = _guidance_rescale = RunField("guidance_rescale")
    clip_skip = _clip_skip = RunField("clip_skip")
    cross_attention_kwargs = _cross_attention_kwargs = RunField("cross_attention_kwargs")
    num_timesteps = _num_timesteps = RunField("num_timesteps")

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: Any,
        safety_checker: Any,
        feature_extractor: Any,
        image_encoder: Any = None,
        requires_safety_checker: bool = True,
    ) -> None:
        if safety_checker is None and requires_safety_checker:
            logger.warning(
                "%s has no safety checker: pictures are returned unchecked. Pass requires_safety_checker=False when "
                "that is meant; keep the checker where the licence of the weights asks for it.",
                type(self).__name__,
            )
        if safety_checker is not None and feature_extractor is None:
            raise ConfigError(
                "A safety checker needs a `feature_extractor` (CLIPImageProcessor); pass one or drop both."
            )
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=corrected(scheduler),
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
        )
        self.register_to_config(requires_safety_checker=requires_safety_checker)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent and side."""
        return sd.scale_factor(self.vae)

    @property
    def image_processor(self) -> VaeImageProcessor:
        """The picture processor that fits the autoencoder."""
        return VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the run in progress asks the network twice per step."""
        return self._is_guided(self.guidance_scale or 0.0)

    def _is_guided(self, guidance_scale: float, negative_prompt: Any = None) -> bool:
        """Tell whether a guidance scale needs the negative prompts: not when the network was distilled to embed it."""
        guided = CFG(guidance_scale).active and sd.option(self.unet, "time_cond_proj_dim") is None
        if negative_prompt and not guided:
            logger.warning("`negative_prompt` has no effect: guidance_scale=%s switches guidance off.", guidance_scale)
        return guided

    def _check_ip_adapter(self, image: Any, embeds: Any) -> None:
        """Raise ConfigError for a picture prompt, which needs an adapter that is not loaded."""
        if image is not None or embeds is not None:
            name = "ip_adapter_image" if image is not None else "ip_adapter_image_embeds"
            raise ConfigError(f"`{name}` needs a loaded IP-Adapter, and this pipeline has none.")

    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None,
        device: torch.device | str | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | Sequence[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return (prompt_embeds, negative_prompt_embeds), each (prompts * num_images_per_prompt, tokens, width).

        The negative half is None without guidance. Words beyond the encoder's limit are dropped with a warning.

        Args:
            lora_scale: strength of a loaded adapter of the text encoder.
        """
        texts: dict[str, Any] = {
            "negative_prompt": negative_prompt,
            "prompt_embeds": prompt_embeds,
            "negative_prompt_embeds": negative_prompt_embeds,
        }
        check_prompts(prompt, **texts)
        if lora_scale is not None:
            logger.warning("lora_scale=%s has no effect: no adapter of the text encoder is loaded.", lora_scale)
        positive, negative = sd.encode(
            self.text_encoder,
            self.tokenizer,
            prompt,
            **texts,
            device=device or self._execution_device,
            guided=do_classifier_free_guidance,
            per_prompt=num_images_per_prompt,
            clip_skip=clip_skip,
        )
        return positive.text, negative.text if negative is not None else None

    def run_safety_checker(
        self, image: Tensor, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, list[bool] | None]:
        """Return pictures in [-1, 1], flagged ones as the checker replaced them, and flags (None: no checker)."""
        if self.safety_checker is None:
            return image, None
        device, dtype = device or image.device, dtype or sd.dtype_of(self.safety_checker, image.dtype)
        seen = self.feature_extractor(self.image_processor.postprocess(image, "pil"), return_tensors="pt")
        unit = VaeImageProcessor.denormalize(image)
        unit, flags = self.safety_checker(images=unit, clip_input=seen.pixel_values.to(device, dtype))
        flags = [bool(flag) for flag in flags]
        image = image.clone()
        for k, flag in enumerate(flags):
            if flag:
                image[k] = VaeImageProcessor.normalize(torch.as_tensor(unit[k]))
        return image, flags

    def _space(self, height: int | None, width: int | None, *, output_type: str, latents: Any = None) -> sd.LatentSpace:
        """Return the latent space of a call: the size asked for, else that of the given latents, else the model's own.

        Raises:
            InputError: for an unknown output type, or a size that is no multiple of the autoencoder's factor.
            ConfigError: when there is no autoencoder and something is to be decoded.
        """
        check_choice("output_type", output_type, OUTPUT_TYPES)
        if output_type != "latent":
            self._part("vae")
        factor = self.vae_scale_factor
        if height is None and width is None and getattr(latents, "ndim", 0) == 4:
            height, width = (side * factor for side in latents.shape[-2:])
        if height is None or width is None:
            own = sd.default_size(self.unet, self.vae)
            height, width = own[0] if height is None else height, own[1] if width is None else width
        check_size(height, width, factor=factor)
        return sd.LatentSpace(self.vae, sd.option(self.unet, "in_channels", 4), height, width)

    def _guidance(self, run: RunState) -> Guidance:
        """Return the guidance of a run, which follows when a callback changes the run's scale."""
        if sd.option(self.unet, "time_cond_proj_dim") is not None:
            return alone

        def guidance(x: Tensor, step: Step) -> Talk:
            return CFG(run.values["guidance_scale"], run.values["guidance_rescale"])(x, step)

        return guidance

    def _finish(
        self, space: sd.LatentSpace, latents: Tensor, output_type: str, return_dict: bool
    ) -> StableDiffusionPipelineOutput | tuple[Any, list[bool] | None]:
        """Decode, check and convert the latents of a finished run."""
        image, flags = latents, None
        if output_type != "latent":
            image, flags = self.run_safety_checker(space.decode(latents))
        images = self.image_processor.postprocess(image, output_type)
        return StableDiffusionPipelineOutput(images, flags) if return_dict else (images, flags)


class StableDiffusionPipeline(_StableDiffusion):
    """Pictures from prompts.

    Draw order: the starting latents (pictures, channels, height / factor, width / factor) in the type of the text
    embeddings; then one draw of the same shape per step, as the scheduler asks. Decoding draws nothing. A list of
    generators, or `seed`, draws row k from stream k.

    Args:
        vae: `AutoencoderKL` or another autoencoder of pictures.
        text_encoder: `CLIPTextModel`; None when only `prompt_embeds` are used.
        tokenizer: `CLIPTokenizer`.
        unet: `UNet2DConditionModel`, compiled or not, or a module with `in_channels` and the same call.
        scheduler: any scheduler of this library, or an object with the documented protocol.
        safety_checker: `StableDiffusionSafetyChecker`, any function of its signature, or None for none.
        feature_extractor: `CLIPImageProcessor` for the safety checker.
        image_encoder: `CLIPVisionModelWithProjection` for picture prompts.
        requires_safety_checker: warn when there is no safety checker.
    """

    @documented
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
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
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callback | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        seed: int | Sequence[int] | None = None,
        **deprecated: Any,
    ) -> StableDiffusionPipelineOutput | tuple[Any, list[bool] | None]:
        """Draw pictures of what the prompts say."""
        old = old_callback(StableDiffusionPipeline.__call__, deprecated)
        names = wanted(callback_on_step_end, callback_on_step_end_tensor_inputs)
        check_wanted(names, self._callback_tensor_inputs)
        check_steps(num_inference_steps, timesteps, sigmas)
        check_number("guidance_scale", guidance_scale)
        check_number("guidance_rescale", guidance_rescale, low=0.0, high=1.0)
        check_number("eta", eta, low=0.0, high=1.0)
        self._check_ip_adapter(ip_adapter_image, ip_adapter_image_embeds)
        texts: dict[str, Any] = {
            "negative_prompt": negative_prompt,
            "prompt_embeds": prompt_embeds,
            "negative_prompt_embeds": negative_prompt_embeds,
        }
        prompts = check_prompts(prompt, **texts)
        call = begin(self, prompts, per_prompt=num_images_per_prompt, generator=generator, seed=seed)
        space, unet = self._space(height, width, output_type=output_type, latents=latents), self._part("unet")
        check_latents(latents, space.shape(call.images))
        plan = plan_of(self._part("scheduler"), call, num_inference_steps, timesteps=timesteps, sigmas=sigmas, eta=eta)
        run_values = {"guidance_scale": guidance_scale, "guidance_rescale": guidance_rescale, "clip_skip": clip_skip}
        with running(self, **run_values, cross_attention_kwargs=cross_attention_kwargs) as run:
            positive, negative = sd.encode(
                self.text_encoder,
                self.tokenizer,
                prompt,
                **texts,
                device=call.device,
                guided=self._is_guided(guidance_scale, negative_prompt),
                per_prompt=call.per_prompt,
                clip_skip=clip_skip,
            )
            place: dict[str, Any] = {"device": call.device, "dtype": positive.text.dtype}
            noise = space.noise(call.images, rng=call.rng, **place) if latents is None else latents.to(**place)
            options = {
                "cross_attention_kwargs": cross_attention_kwargs,
                "timestep_cond": sd.guidance_embedding(unet, guidance_scale, call.images, device=call.device),
            }
            conditions = {"positive": positive, "negative": negative}
            model = sd.Denoiser(unet, conditions, self._guidance(run), options=options)
            hook = {"callback": callback_on_step_end, "names": names, "old": old}
            x = denoise(run, model, plan.start(noise), plan, rng=call.rng, **hook)
            return self._finish(space, x, output_type, return_dict)


def corrected(scheduler: Any) -> Any:
    """Return the scheduler, or a copy with the options that Stable Diffusion was released with, and say so."""
    config = getattr(scheduler, "config", {})
    wrong = {name: value for name, value in CORRECTED.items() if config.get(name, value) != value}
    if not wrong or not hasattr(scheduler, "from_config"):
        return scheduler
    logger.warning(
        "The scheduler was made with %s; Stable Diffusion needs %s, so the pipeline uses a copy with these.",
        ", ".join(f"{name}={config[name]}" for name in wrong),
        ", ".join(f"{name}={value}" for name, value in wrong.items()),
    )
    return type(scheduler).from_config(config, **wrong)
