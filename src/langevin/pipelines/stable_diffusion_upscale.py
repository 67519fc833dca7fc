"""Enlarging pictures with Stable Diffusion: four times beside the picture, two times in latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..core.errors import InputError
from ..core.images import ImageInput
from ..core.rng import Generators, normal
from ..families import sd
from ..families.common import option
from ..families.conditioning import Conditions, branches
from ..families.denoiser import Channels
from ..families.latents import LatentSpace, spread_rows
from ..families.upscaling import PooledText, PreconditionedDenoiser
from . import tasks
from .glossary import documented
from .image_processor import VaeImageProcessor
from .inputs import POOLED, TEXTS, Call, begin, check_prompts, check_second_prompts
from .latent import identity
from .outputs import ImagePipelineOutput, StableDiffusionPipelineOutput
from .pictures import Picture
from .stable_diffusion import StableDiffusionFamily


class StableDiffusionUpscalePipeline(StableDiffusionFamily):
    """Pictures enlarged four times, as a prompt says (Rombach et al. 2022, section 4.4).

    Draw order: the noise on the small picture, in its shape; the starting noise; then one draw per step, as the
    scheduler asks.

    Args:
        low_res_scheduler: adds noise to the small picture, so that its flaws are painted over.
        watermarker: object with `apply_watermark(pictures)`, pictures in [-1, 1], or None.
        max_noise_level: largest `noise_level` that the network was trained for.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components = ("watermarker", "safety_checker", "feature_extractor")
    _saved_options = ("max_noise_level",)
    watermarker: Any
    upcasts_vae = True
    scaling = 0.08333
    adds = {"the picture": 3}

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        low_res_scheduler: Any,
        scheduler: Any,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        watermarker: Any = None,
        max_noise_level: int = 350,
    ) -> None:
        self._assemble(locals())

    def _picture(self, call: Call, **place: Any) -> Picture:
        """Return the small picture; its size is that of the latents, so any size fits."""
        if call["image"] is None:
            raise InputError("No `image` was given; pass the picture to enlarge.")
        reader = VaeImageProcessor(do_resize=False, vae_latent_channels=0, do_convert_rgb=True)
        values = reader.preprocess(call["image"])
        size = tuple(side * self.vae_scale_factor for side in values.shape[-2:])
        return Picture(values, values, size, size)

    def _channels_beside(
        self, call: Call, space: LatentSpace, picture: Picture | None, place: Mapping[str, Any]
    ) -> Sequence[Channels]:
        assert picture is not None
        values, rng = picture.values.to(**place), call.rng
        if isinstance(rng, list):
            values = spread_rows(values, call.images)
        noise = normal(values.shape, generator=rng, **place)
        level = torch.tensor([call["noise_level"]], dtype=torch.long, device=call.device)
        values = self._part("low_res_scheduler").add_noise(values, noise, level)
        return (Channels("image", spread_rows(values, call.images)),)

    def _shared(self, call: Call) -> dict[str, Tensor]:
        """Return the noise level of the small picture, which the network takes as a class."""
        return {"class_labels": torch.full((call.images,), call["noise_level"], dtype=torch.long, device=call.device)}

    def _deliver(self, call: Call, image: Tensor, finish: Callable[[Any], Any] = identity) -> Any:
        if self.watermarker is not None:
            image = self.watermarker.apply_watermark(image)
        return super()._deliver(call, image, finish)

    @documented
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: ImageInput | None = None,
        num_inference_steps: int = 75,
        guidance_scale: float = 9.0,
        noise_level: int = 20,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback: Callable[[int, Any, Tensor], None] | None = None,
        callback_steps: int = 1,
        cross_attention_kwargs: dict[str, Any] | None = None,
        clip_skip: int | None = None,
        seed: int | Sequence[int] | None = None,
        prompt_syntax: str | None = None,
        long_prompt: str = "chunk",
    ) -> StableDiffusionPipelineOutput | tuple[Any, list[bool] | None]:
        """Enlarge a picture four times."""
        call, most = begin(self, locals()), self.config["max_noise_level"]
        if noise_level > most:
            raise InputError(f"`noise_level` is {noise_level}; this network was trained for 0 to {most}.")
        return tasks.text_to_image(self, call, self._picture(call))


class StableDiffusionLatentUpscalePipeline(StableDiffusionFamily):
    """Pictures, or latents of Stable Diffusion, enlarged two times.

    Draw order: the latents of the picture, unless latents are given; the starting noise; then one draw per step, as
    the scheduler asks.

    Args:
        scheduler: `EulerDiscreteScheduler` with prediction_type="sample", or another whose samples keep their scale.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components = ()
    denoiser = PreconditionedDenoiser
    adds = {"the picture": None}
    _embeds_guidance = False
    judged = False

    def __init__(self, vae: Any, text_encoder: Any, tokenizer: Any, unet: Any, scheduler: Any) -> None:
        self._assemble(locals())

    def _channels(self) -> int:
        return option(self.vae, "latent_channels", 4) if self.vae is not None else 4

    def _space(self, call: Call, picture: Picture | None = None) -> LatentSpace:
        """Return the latent space of the enlarged picture; the small one is encoded in it too."""
        assert picture is not None
        sizes = {name: tuple(2 * side for side in getattr(picture, name)) for name in ("size", "visible")}
        return super()._space(call, replace(picture, **sizes))

    def _channels_beside(
        self, call: Call, space: LatentSpace, picture: Picture | None, place: Mapping[str, Any]
    ) -> Sequence[Channels]:
        assert picture is not None
        latents = picture.latents(call, space, dict(place))
        return (Channels("image", functional.interpolate(latents, scale_factor=2, mode="nearest")),)

    def _conditions(self, call: Call, space: LatentSpace) -> Conditions:
        """Return the conditioning of the prompts, and of the negative prompts when guidance asks for them."""
        positive, negative = self._encoded(call, read_pooled)
        place: dict[str, Any] = {"device": call.device, "dtype": sd.type_of(self.text_encoder, positive)}
        place |= {"numbers": call.numbers}
        return branches(positive, negative, lambda one: PooledText(one.hidden, one.pooled), **place)

    def encode_prompt(  # type: ignore[override]
        self,
        prompt: str | Sequence[str] | None,
        device: torch.device | str | None = None,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | Sequence[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        prompt_syntax: str | None = None,
        long_prompt: str = "chunk",
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Return (prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds).

        The embeddings are (prompts, tokens, width), the last layer without the final normalisation; the pooled ones
        (prompts, width). The negative halves are None without guidance.
        """
        device = device or self._execution_device
        given = {name: value for name, value in locals().items() if name in (*TEXTS, *POOLED)}
        check_second_prompts(given, check_prompts(**{name: given[name] for name in TEXTS}))
        found = sd.encode(
            sd.one_tower(self.text_encoder, self.tokenizer, device=device, read=read_pooled),
            **given,
            guided=do_classifier_free_guidance,
            prompt_syntax=prompt_syntax,
            long_prompt=long_prompt,
        )
        dtype = sd.type_of(self.text_encoder, found[0])
        return tuple(sd.rows(found, "hidden", "pooled", per_prompt=1, device=device, dtype=dtype))  # type: ignore[return-value]

    @documented
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: ImageInput | None = None,
        num_inference_steps: int = 75,
        guidance_scale: float = 9.0,
        negative_prompt: str | Sequence[str] | None = None,
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
        seed: int | Sequence[int] | None = None,
        prompt_syntax: str | None = None,
        long_prompt: str = "chunk",
    ) -> ImagePipelineOutput | tuple[Any]:
        """Enlarge a picture two times."""
        call = begin(self, locals())
        return tasks.text_to_image(self, call, self._picture(call))


def read_pooled(encoder: Any, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return a text encoder's last layer (rows, tokens, width), not normalised, and its pooled state (rows, width).

    Raises:
        NonFiniteError: when the encoder returns NaN or infinity.
    """
    found = encoder(ids, attention_mask=mask, output_hidden_states=True)
    hidden, pooled = found.hidden_states[-1], found.pooler_output
    sd.check_encoded(hidden, pooled)
    return hidden, pooled
