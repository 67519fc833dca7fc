"""Stable Diffusion 1 and 2 (Rombach et al. 2022): text to picture, picture to picture, inpainting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.images import ImageInput
from ..core.logging import get_logger
from ..core.rng import Generators
from ..families import sd
from ..families.common import dtype_of
from ..families.conditioning import Conditions, branches
from ..families.latents import LatentSpace
from ..prompts import Encoding
from . import tasks
from .authoring import PictureLoopMixin, PromptLoopMixin
from .callbacks import Callback, MultiPipelineCallbacks, PipelineCallback
from .glossary import documented
from .image_processor import VaeImageProcessor
from .inpainting import MASKED, inpaint
from .inputs import POOLED, TEXTS, Call, begin, check_prompts
from .latent import LatentPipeline, identity
from .outputs import ImagePipelineOutput, StableDiffusionPipelineOutput
from .outputs import StableDiffusionXLPipelineOutput as StableDiffusionXLPipelineOutput

logger = get_logger(__name__)
CORRECTED = {"steps_offset": 1, "clip_sample": False}
"""Scheduler options that every Stable Diffusion checkpoint was released with and some old folders lack."""


class StableDiffusionFamily(PromptLoopMixin, LatentPipeline):
    """What the Stable Diffusion pipelines of all tasks share: components, prompts, decoding, safety.

    Attributes:
        judged: whether results carry the flags of a safety checker.
    """

    judged: ClassVar[bool] = True
    _saved_options = ("requires_safety_checker",)
    model_cpu_offload_seq = "text_encoder->image_encoder->unet->vae"
    _optional_components: ClassVar[Sequence[str]] = ("safety_checker", "feature_extractor", "image_encoder")
    _callback_tensor_inputs: ClassVar[Sequence[str]] = ("latents", "prompt_embeds", "negative_prompt_embeds")

    text_encoder: Any
    tokenizer: Any
    safety_checker: Any = None
    feature_extractor: Any = None
    image_encoder: Any = None

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
        scheduler = corrected(scheduler)
        self._assemble(locals())

    def _assemble(self, given: Mapping[str, Any]) -> None:
        check_safety(type(self).__name__, given)
        super()._assemble(given)

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
        prompt_syntax: str | None = None,
        long_prompt: str = "chunk",
    ) -> tuple[Tensor, Tensor | None]:
        """Return (prompt_embeds, negative_prompt_embeds), each (prompts * num_images_per_prompt, tokens, width).

        The negative half is None without guidance.

        Args:
            lora_scale: strength of a loaded adapter of the text encoder.
            prompt_syntax, long_prompt: as in the call; prompts that change between steps are for the call alone.
        """
        texts: dict[str, Any] = {
            "negative_prompt": negative_prompt,
            "prompt_embeds": prompt_embeds,
            "negative_prompt_embeds": negative_prompt_embeds,
        }
        check_prompts(prompt, **texts)
        device = device or self._execution_device
        with self._adapters_scaled(lora_scale, ["text_encoder"]):
            found = sd.encode(
                sd.one_tower(self.text_encoder, self.tokenizer, device=device),
                prompt,
                **texts,
                guided=do_classifier_free_guidance,
                clip_skip=clip_skip,
                prompt_syntax=prompt_syntax,
                long_prompt=long_prompt,
            )
        dtype = sd.type_of(self.text_encoder, found[0])
        return tuple(sd.rows(found, "hidden", per_prompt=num_images_per_prompt, device=device, dtype=dtype))  # type: ignore[return-value]

    def run_safety_checker(
        self, image: Tensor, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, list[bool] | None]:
        """Return pictures in [-1, 1], flagged ones as the checker replaced them, and flags (None: no checker)."""
        if self.safety_checker is None:
            return image, None
        device, dtype = device or image.device, dtype or dtype_of(self.safety_checker, image.dtype)
        seen = self.feature_extractor(self.image_processor.postprocess(image, "pil"), return_tensors="pt")
        unit = VaeImageProcessor.denormalize(image)
        unit, flags = self.safety_checker(images=unit, clip_input=seen.pixel_values.to(device, dtype))
        flags = [bool(flag) for flag in flags]
        image = image.clone()
        for k, flag in enumerate(flags):
            if flag:
                image[k] = VaeImageProcessor.normalize(torch.as_tensor(unit[k]))
        return image, flags

    def _conditions(self, call: Call, space: LatentSpace) -> Conditions:
        """Return the conditioning of the prompts, and of the negative prompts when guidance asks for them."""
        positive, negative = self._encoded(call, sd.encode_ids)
        dtype = sd.type_of(self.text_encoder, positive)
        place: dict[str, Any] = {"device": call.device, "dtype": dtype, "per_prompt": call.per_prompt}
        return branches(positive, negative, lambda one: sd.Text(one.hidden), numbers=call.numbers, **place)

    def _encoded(self, call: Call, read: Callable[..., Any]) -> tuple[Encoding, Encoding | None]:
        """Return the call's prompts and, when guidance asks for them, negative prompts; see `families.sd.encode`."""
        return sd.encode(
            sd.one_tower(self.text_encoder, self.tokenizer, device=call.device, read=read),
            **call.pick(*TEXTS, *POOLED, "clip_skip", "prompt_syntax", "long_prompt"),
            guided=self._wants_negative(call),
            steps=call.numbers[-1] + 1,
        )

    def _deliver(self, call: Call, image: Tensor, finish: Callable[[Any], Any] = identity) -> Any:
        """Check and convert pictures (batch, channels, height, width) in [-1, 1]; `finish` edits the converted ones."""
        image, flags = self.run_safety_checker(image)
        return self._output(call, finish(self.image_processor.postprocess(image, call["output_type"])), flags)

    def _output(self, call: Call, images: Any, flags: list[bool] | None = None) -> Any:
        if not self.judged:
            return ImagePipelineOutput(images) if call["return_dict"] else (images,)
        return StableDiffusionPipelineOutput(images, flags) if call["return_dict"] else (images, flags)


class StableDiffusionPipeline(StableDiffusionFamily):
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
        prompt_syntax: str | None = None,
        long_prompt: str = "chunk",
        **deprecated: Any,
    ) -> StableDiffusionPipelineOutput | tuple[Any, list[bool] | None]:
        """Draw pictures of what the prompts say."""
        return tasks.text_to_image(self, begin(self, locals()))


class StableDiffusionImg2ImgPipeline(PictureLoopMixin, StableDiffusionFamily):
    """Pictures from a prompt and a picture to start from.

    Draw order: the latents of the picture, one draw per picture given or, with a list of generators or `seed`, per
    result; the noise; then one draw per step, as the scheduler asks. Components as in `StableDiffusionPipeline`.
    """

    @documented
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: ImageInput | None = None,
        strength: float = 0.8,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: Generators = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Sequence[Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callback | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        seed: int | Sequence[int] | None = None,
        prompt_syntax: str | None = None,
        long_prompt: str = "chunk",
        **deprecated: Any,
    ) -> StableDiffusionPipelineOutput | tuple[Any, list[bool] | None]:
        """Change a picture into what the prompt says."""
        return tasks.image_to_image(self, begin(self, locals()))


class StableDiffusionInpaintPipeline(StableDiffusionFamily):
    """Pictures of which a part is painted anew, with networks trained for it (9 channels) or any other (4 channels).

    Draw order: the latents of the picture, unless the network sees them and strength is 1; the noise; the latents of
    the picture without its masked part; then one draw per step, as the scheduler asks. Components as in
    `StableDiffusionPipeline`.
    """

    _callback_tensor_inputs = (*StableDiffusionFamily._callback_tensor_inputs, *MASKED)

    @documented
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: ImageInput | None = None,
        mask_image: ImageInput | None = None,
        masked_image_latents: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 1.0,
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
        """Paint the white part of the mask as the prompt says and keep the rest."""
        return inpaint(self, begin(self, locals()))


def check_safety(pipeline: str, given: Mapping[str, Any]) -> None:
    """Warn about a safety checker that a constructor was not given; ConfigError for one that cannot see."""
    checker = given.get("safety_checker")
    if checker is None and given.get("requires_safety_checker"):
        logger.warning(
            "%s has no safety checker: pictures are returned unchecked. Pass requires_safety_checker=False when "
            "that is meant; keep the checker where the licence of the weights asks for it.",
            pipeline,
        )
    if checker is not None and given.get("feature_extractor") is None:
        raise ConfigError("A safety checker needs a `feature_extractor` (CLIPImageProcessor); pass one or drop both.")


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
    if hasattr(scheduler, "turned_into"):
        return scheduler.turned_into(type(scheduler), **wrong)
    return type(scheduler).from_config(config, **wrong)
