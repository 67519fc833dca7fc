"""Stable Diffusion XL (Podell et al. 2023, 2307.01952): text to picture, picture to picture, inpainting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.images import ImageInput
from ..core.rng import Generators
from ..families import sd, sdxl
from ..families.conditioning import Conditions, branches
from ..families.latents import LatentSpace
from . import tasks
from .callbacks import Callback, MultiPipelineCallbacks, PipelineCallback
from .glossary import documented
from .inpainting import MASKED, inpaint
from .inputs import POOLED, TEXTS, Call, begin, check_prompts, check_second_prompts
from .latent import LatentPipeline, identity
from .outputs import StableDiffusionXLPipelineOutput
from .runs import RunField
from .watermark import Watermark, watermark

Pair = tuple[int, int]
MORE_TEXTS = (
    *("prompt_2", "negative_prompt_2", *POOLED),
    *("clip_skip", "prompt_syntax", "long_prompt"),
)


class StableDiffusionXLFamily(LatentPipeline):
    """What the Stable Diffusion XL pipelines of all tasks share: components, prompts, sizes, decoding, the watermark.

    A class writes the documented constructor and passes its arguments to `_assemble`.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->image_encoder->unet->vae"
    upcasts_vae = True
    _saved_options = ("force_zeros_for_empty_prompt", "requires_aesthetics_score", "is_cosxl_edit")
    _optional_components: ClassVar[Sequence[str]] = (
        *("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"),
        *("image_encoder", "feature_extractor"),
    )
    _callback_tensor_inputs: ClassVar[Sequence[str]] = ("latents", "prompt_embeds", "add_text_embeds", "add_time_ids")

    text_encoder: Any
    text_encoder_2: Any
    tokenizer: Any
    tokenizer_2: Any
    watermark: Watermark | None

    denoising_end = _denoising_end = RunField("denoising_end")
    denoising_start = _denoising_start = RunField("denoising_start")

    def _assemble(self, given: Mapping[str, Any]) -> None:
        self.watermark = watermark(given.get("add_watermarker", False))
        super()._assemble({name: value for name, value in given.items() if name != "add_watermarker"})

    def _towers(self, device: torch.device | str) -> sd.Towers:
        encoders = (self.text_encoder, self.tokenizer, self.text_encoder_2, self.tokenizer_2)
        return sdxl.two_towers(*encoders, device=device)

    def upcast_vae(self) -> None:
        """Make the autoencoder float32 for good; decoding does so by itself, on a copy, where float16 overflows."""
        self._part("vae").to(torch.float32)

    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None,
        prompt_2: str | Sequence[str] | None = None,
        device: torch.device | str | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | Sequence[str] | None = None,
        negative_prompt_2: str | Sequence[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
        prompt_syntax: str | None = None,
        long_prompt: str = "chunk",
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Return (prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds).

        The first two are (prompts * num_images_per_prompt, tokens, width), the pooled ones (..., size). The negative
        ones are None without guidance.

        Args:
            prompt_2, negative_prompt_2: for the second encoder; the other prompt where they are None.
            lora_scale: strength of loaded adapters of the text encoders.
            prompt_syntax, long_prompt: as in the call; prompts that change between steps are for the call alone.
        """
        given = {name: value for name, value in locals().items() if name in (*TEXTS, *MORE_TEXTS)}
        check_second_prompts(given, check_prompts(**{name: given[name] for name in TEXTS}))
        device = device or self._execution_device
        zeros = self.config["force_zeros_for_empty_prompt"]
        guided = do_classifier_free_guidance
        with self._adapters_scaled(lora_scale, ["text_encoder", "text_encoder_2"]):
            found = sd.encode(self._towers(device), **given, guided=guided, zeros=zeros)
        place: dict[str, Any] = {"device": device, "dtype": self._text_dtype(found[0])}
        return tuple(sd.rows(found, "hidden", "pooled", per_prompt=num_images_per_prompt, **place))  # type: ignore[return-value]

    def _text_dtype(self, encoding: Any) -> torch.dtype:
        """Return the type of the conditioning: the second encoder's, or without it the network's."""
        return sd.type_of(self.unet if self.text_encoder_2 is None else self.text_encoder_2, encoding)

    def _conditions(self, call: Call, space: LatentSpace) -> Conditions:
        """Return the conditioning of the prompts, and of the negative prompts when guidance asks for them."""
        scored = bool(self.config.get("requires_aesthetics_score"))
        own, other = sdxl.sizes_of(call.given, (space.height, space.width), scored=scored)
        positive, negative = sd.encode(
            self._towers(call.device),
            **call.pick(*TEXTS, *MORE_TEXTS),
            guided=self._wants_negative(call),
            zeros=self.config["force_zeros_for_empty_prompt"],
            steps=call.numbers[-1] + 1,
        )
        place: dict[str, Any] = {"device": call.device, "dtype": self._text_dtype(positive)}
        place |= {"per_prompt": call.per_prompt, "numbers": call.numbers}
        made = branches(positive, negative, own.told, make_negative=other.told, **place)
        sdxl.check_added(self.unet, made["positive"].at(0), scored=scored)  # type: ignore[union-attr]
        return made

    def _deliver(self, call: Call, image: Tensor, finish: Callable[[Any], Any] = identity) -> Any:
        """Mark and convert pictures (batch, channels, height, width) in [-1, 1]; `finish` edits the converted ones."""
        if self.watermark is not None and not tasks.keeps_all(call):
            image = self.watermark(image)
        return self._output(call, finish(self.image_processor.postprocess(image, call["output_type"])))

    def _output(self, call: Call, images: Any) -> Any:
        return StableDiffusionXLPipelineOutput(images) if call["return_dict"] else (images,)


class StableDiffusionXLPipeline(StableDiffusionXLFamily):
    """Pictures from prompts.

    Draw order: as in `StableDiffusionPipeline`.

    Args:
        vae: `AutoencoderKL` or another autoencoder of pictures.
        text_encoder: `CLIPTextModel`; None leaves all prompts to the second, as refiners do.
        text_encoder_2: `CLIPTextModelWithProjection`; None when only embeddings are used.
        tokenizer, tokenizer_2: `CLIPTokenizer`.
        unet: `UNet2DConditionModel`, compiled or not, or a module with the same call.
        scheduler: any scheduler of this library, or an object with the documented protocol.
        image_encoder, feature_extractor: for picture prompts.
        force_zeros_for_empty_prompt: a negative prompt that was not given is all zeros, not the empty text.
        add_watermarker: mark pictures invisibly; None does where the package invisible-watermark is installed.
    """

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        text_encoder_2: Any,
        tokenizer: Any,
        tokenizer_2: Any,
        unet: Any,
        scheduler: Any,
        image_encoder: Any = None,
        feature_extractor: Any = None,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
    ) -> None:
        self._assemble(locals())

    @documented
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        prompt_2: str | Sequence[str] | None = None,
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
        guidance_rescale: float = 0.0,
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
        """Draw pictures of what the prompts say."""
        return tasks.text_to_image(self, begin(self, locals()))


class StableDiffusionXLPictureFamily(StableDiffusionXLFamily):
    """What the pipelines that change a picture share: refiners do so too.

    Components as in `StableDiffusionXLPipeline`, and:

    Args:
        requires_aesthetics_score: the network is told an aesthetic score in place of the target size.
    """

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        text_encoder_2: Any,
        tokenizer: Any,
        tokenizer_2: Any,
        unet: Any,
        scheduler: Any,
        image_encoder: Any = None,
        feature_extractor: Any = None,
        requires_aesthetics_score: bool = False,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
    ) -> None:
        self._assemble(locals())


class StableDiffusionXLImg2ImgPipeline(StableDiffusionXLPictureFamily):
    """Pictures from a prompt and a picture to start from; also the refiner, which goes on with another run's latents.

    Draw order: as in `StableDiffusionImg2ImgPipeline`; with `denoising_start` the noise is not drawn.
    """

    @documented
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        prompt_2: str | Sequence[str] | None = None,
        image: ImageInput | None = None,
        strength: float = 0.3,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
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
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Sequence[Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
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
        """Change a picture into what the prompt says."""
        return tasks.image_to_image(self, begin(self, locals()))


class StableDiffusionXLInpaintPipeline(StableDiffusionXLPictureFamily):
    """Pictures of which a part is painted anew, with networks trained for it (9 channels) or any other (4 channels).

    Draw order: as in `StableDiffusionInpaintPipeline`.
    """

    _callback_tensor_inputs = (*StableDiffusionXLFamily._callback_tensor_inputs, *MASKED)

    @documented
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        prompt_2: str | Sequence[str] | None = None,
        image: ImageInput | None = None,
        mask_image: ImageInput | None = None,
        masked_image_latents: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 0.9999,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
        guidance_scale: float = 7.5,
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
        guidance_rescale: float = 0.0,
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
        paste_back: bool = True,
        mask_feather: int = 0,
        match_colour: bool = False,
        **deprecated: Any,
    ) -> StableDiffusionXLPipelineOutput | tuple[Any]:
        """Paint the white part of the mask as the prompt says and keep the rest."""
        return inpaint(self, begin(self, locals()))
