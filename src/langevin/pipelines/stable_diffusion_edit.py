"""Stable Diffusion with a network that sees a picture: its depth, the picture itself, or its CLIP embedding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core.errors import InputError
from ..core.images import ImageInput
from ..core.logging import get_logger
from ..core.rng import Generators
from ..diffusion.guidance import DualCFG, Guidance, Talk, alone
from ..diffusion.table import Step
from ..families import sd
from ..families.common import dtype_of
from ..families.conditioning import Conditions, members
from ..families.denoiser import Channels
from ..families.latents import LatentSpace, spread_rows
from . import tasks
from .callbacks import Callback, MultiPipelineCallbacks, PipelineCallback
from .glossary import documented
from .inputs import Call, begin
from .outputs import ImagePipelineOutput, StableDiffusionPipelineOutput
from .pictures import Picture, upright_pictures
from .runs import RunField, RunState
from .stable_diffusion import StableDiffusionFamily, corrected

logger = get_logger(__name__)


class StableDiffusionDepth2ImgPipeline(StableDiffusionFamily):
    """Pictures from a prompt and a picture whose depth is kept (Stable Diffusion 2, depth).

    Draw order: the latents of the picture; the noise; then one draw per step, as the scheduler asks.

    Args:
        depth_estimator: `DPTForDepthEstimation`, which makes the depth map when none is given.
        feature_extractor: `DPTImageProcessor` for it.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components = ()
    _callback_tensor_inputs = (*StableDiffusionFamily._callback_tensor_inputs, "depth_mask")
    adds = {"the depth map": 1}
    judged = False

    depth_estimator: Any

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: Any,
        depth_estimator: Any,
        feature_extractor: Any,
    ) -> None:
        scheduler = corrected(scheduler)
        self._assemble(locals())

    def _channels_beside(
        self, call: Call, space: LatentSpace, picture: Picture | None, place: Mapping[str, Any]
    ) -> Sequence[Channels]:
        depth = call["depth_map"]
        depth = self._estimate(call) if depth is None else depth_rows(depth)
        depth = nn.functional.interpolate(depth.to(**place), size=space.size, mode="bicubic", align_corners=False)
        low, high = depth.amin((1, 2, 3), keepdim=True), depth.amax((1, 2, 3), keepdim=True)
        depth = 2.0 * (depth - low) / (high - low).clamp(min=torch.finfo(depth.dtype).tiny) - 1.0
        return (Channels("depth_mask", spread_rows(depth, call.images)),)

    def _estimate(self, call: Call) -> Tensor:
        """Return the depth (rows, 1, height, width) that the estimator sees in the call's picture.

        Ranftl et al. 2021 (2103.13413).
        """
        estimator, reader = self._part("depth_estimator"), self._part("feature_extractor")
        seen = reader(images=upright_pictures(call["image"]), return_tensors="pt").pixel_values
        return estimator(seen.to(call.device, dtype_of(estimator, torch.float32))).predicted_depth[:, None]

    @documented
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: ImageInput | None = None,
        depth_map: Tensor | None = None,
        strength: float = 0.8,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: Generators = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
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
    ) -> ImagePipelineOutput | tuple[Any]:
        """Change a picture into what the prompt says and keep its depth."""
        return tasks.image_to_image(self, begin(self, locals()))


def depth_rows(depth: Tensor) -> Tensor:
    """Return a given depth map as (rows, 1, height, width).

    Raises:
        InputError: for anything but (height, width), (rows, height, width) or (rows, 1, height, width).
    """
    if depth.ndim not in (2, 3, 4) or (depth.ndim == 4 and depth.shape[1] != 1):
        raise InputError(f"`depth_map` is {tuple(depth.shape)}; it must be a tensor (rows, height, width).")
    return depth if depth.ndim == 4 else depth[:, None] if depth.ndim == 3 else depth[None, None]


class EditsByInstruction:
    """Mixin: a network that sees the picture beside the sample, guided by prompt and picture (Brooks et al. 2023)."""

    adds: ClassVar[Mapping[str, int | None]] = {"the picture": None}
    image_guidance_scale = _image_guidance_scale = RunField("image_guidance_scale")

    def _wants_negative(self, call: Call) -> bool:
        """Guidance needs a picture scale of at least 1, as documented."""
        guided = super()._wants_negative(call)
        if guided and call["image_guidance_scale"] < 1.0:
            logger.warning("image_guidance_scale=%s, below 1, switches guidance off.", call["image_guidance_scale"])
            return False
        return guided

    def _conditions(self, call: Call, space: LatentSpace) -> Conditions:
        found = super()._conditions(call, space)
        if len(members(found)) > 1:
            raise InputError("This task guides by one prompt and the picture; write the prompt without AND.")
        return {"positive": found["positive"], "picture": found["negative"], "nothing": found["negative"]}

    def _guidance(self, run: RunState, conditions: Conditions) -> Guidance:
        """Return the guidance of a run, which follows when a callback changes the run's scales."""
        if self._embeds_guidance:  # type: ignore[attr-defined]
            return alone

        def guidance(x: Tensor, step: Step) -> Talk:
            values = run.values
            if values["guidance_scale"] <= 1.0 or values["image_guidance_scale"] < 1.0:
                return (yield from alone(x, step))
            scales = (values["guidance_scale"], values["image_guidance_scale"], values.get("guidance_rescale", 0.0))
            return (yield from DualCFG(*scales)(x, step))

        return guidance

    def _channels_beside(
        self, call: Call, space: LatentSpace, picture: Picture | None, place: Mapping[str, Any]
    ) -> Sequence[Channels]:
        assert picture is not None
        latents = picture.latents(call, space, dict(place), mode=True)
        return (Channels("image_latents", latents, blank=("nothing",)),)


class StableDiffusionInstructPix2PixPipeline(EditsByInstruction, StableDiffusionFamily):
    """Pictures edited as an instruction says (Brooks et al. 2023, 2211.09800).

    Draw order: the noise; then one draw per step, as the scheduler asks. Components as in `StableDiffusionPipeline`.
    """

    _callback_tensor_inputs = ("latents", "prompt_embeds", "image_latents")

    @documented
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: ImageInput | None = None,
        num_inference_steps: int = 100,
        guidance_scale: float = 7.5,
        image_guidance_scale: float = 1.5,
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
        callback_on_step_end: Callback | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        cross_attention_kwargs: dict[str, Any] | None = None,
        seed: int | Sequence[int] | None = None,
        prompt_syntax: str | None = None,
        long_prompt: str = "chunk",
        **deprecated: Any,
    ) -> StableDiffusionPipelineOutput | tuple[Any, list[bool] | None]:
        """Edit a picture as the prompt instructs."""
        call = begin(self, locals())
        return tasks.text_to_image(self, call, self._picture(call))


class StableDiffusionImageVariationPipeline(StableDiffusionFamily):
    """Variations of a picture, from its CLIP embedding in place of a text.

    Draw order: the noise; then one draw per step, as the scheduler asks.

    Args:
        image_encoder: `CLIPVisionModelWithProjection`.
        feature_extractor: `CLIPImageProcessor` for it, and for the safety checker.
    """

    model_cpu_offload_seq = "image_encoder->unet->vae"
    _optional_components = ("safety_checker",)

    def __init__(
        self,
        vae: Any,
        image_encoder: Any,
        unet: Any,
        scheduler: Any,
        safety_checker: Any,
        feature_extractor: Any,
        requires_safety_checker: bool = True,
    ) -> None:
        scheduler = corrected(scheduler)
        self._assemble(locals())

    def _conditions(self, call: Call, space: LatentSpace) -> Conditions:
        """Return the picture's embedding, and zeros for the negative branch."""
        encoder, image = self._part("image_encoder"), call["image"]
        if not isinstance(image, Tensor):
            reader = self._part("feature_extractor")
            image = reader(images=upright_pictures(image), return_tensors="pt").pixel_values
        image = image if image.ndim == 4 else image[None]
        embeds = encoder(image.to(call.device, dtype_of(encoder, torch.float32))).image_embeds[:, None]
        positive = sd.Text(embeds).repeat(call.per_prompt)
        negative = sd.Text(torch.zeros_like(positive.text)) if self._wants_negative(call) else None
        return {"positive": positive, "negative": negative}

    @documented
    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback: Callable[[int, Any, Tensor], None] | None = None,
        callback_steps: int = 1,
        seed: int | Sequence[int] | None = None,
    ) -> StableDiffusionPipelineOutput | tuple[Any, list[bool] | None]:
        """Draw pictures that show what a picture shows."""
        return tasks.text_to_image(self, begin(self, locals(), prompts=count_pictures(image)))


def count_pictures(image: Any) -> int:
    """Return how many pictures were given.

    Raises:
        InputError: for none.
    """
    if isinstance(image, Tensor):
        return len(image) if image.ndim == 4 else 1
    if isinstance(image, (list, tuple)):
        if not image:
            raise InputError("An empty list of pictures was given.")
        return len(image)
    if not hasattr(image, "getbands"):
        raise InputError(f"`image` is a {type(image).__name__}; pass a PIL picture, a list of them, or a tensor.")
    return 1
