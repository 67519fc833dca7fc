"""Pictures from prompts and control pictures with T2I-Adapters (Mou et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import lcm
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.images import ImageInput
from ..core.rng import Generators
from ..diffusion.table import Plan
from ..families.common import dtype_of, option
from ..families.control import Adapter
from ..families.latents import LatentSpace, scale_factor
from ..models.t2i_adapters.t2i_adapter import MultiAdapter
from . import tasks
from .controls import Numbers, control_pixels, networks_of, per_network, per_network_pictures, several, sized
from .glossary import documented
from .inputs import Call, begin, check_size
from .outputs import StableDiffusionPipelineOutput, StableDiffusionXLPipelineOutput
from .stable_diffusion import StableDiffusionFamily, corrected
from .stable_diffusion_xl import Pair, StableDiffusionXLFamily


class AdapterMixin:
    """The control of a pipeline by T2I-Adapters, whatever its family; `image` holds the control pictures."""

    adapter: Any

    def _attachments(self, call: Call, space: LatentSpace, plan: Plan) -> Sequence[Adapter]:
        """Return what adds the adapters' feature maps, which are worked out here."""
        adapters, pictures, scales = adapters_of(call)
        if not any(scales):
            return ()
        pixels = [
            control_pixels(call, picture, space, channels=option(adapter, "in_channels", 3)).to(
                call.device, dtype_of(adapter, torch.float32)
            )
            for adapter, picture in zip(adapters, pictures, strict=True)
        ]
        if len(adapters) > 1:
            maps = self.adapter(pixels, scales)
        else:
            maps = [feature * scales[0] for feature in adapters[0](pixels[0])]
        return [Adapter(maps, call.get("adapter_conditioning_factor", 1.0))]


def adapters_of(call: Call) -> tuple[list[Any], list[Any], list[float]]:
    """Return the adapters of a call, the pictures of each and the weight of each.

    Raises:
        InputError: when the number of pictures or weights does not fit.
        ConfigError: when an adapter was made for another UNet.
    """
    adapters = networks_of(call.pipe._part("adapter"))
    for adapter in adapters:
        check_widths(adapter, call.pipe._part("unet"))
    pictures = per_network_pictures("image", call.get("image"), adapters, call.prompts)
    return adapters, pictures, per_network("adapter_conditioning_scale", call["adapter_conditioning_scale"], adapters)


def check_widths(adapter: Any, unet: Any) -> None:
    """Raise ConfigError when an adapter's maps are not as wide as the UNet's, block by block."""
    made, wanted = (list(option(m, name) or ()) for m, name in ((adapter, "channels"), (unet, "block_out_channels")))
    if any(one != other for one, other in zip(made, wanted, strict=False)):
        raise ConfigError(
            f"This {type(adapter).__name__} makes maps of {made} channels, and the pipeline's UNet has {wanted}; load "
            "one that was trained for the same family of models."
        )


def adapted(call: Call) -> Call:
    """Return the call with its control checked, and with the size of the control picture where it names none.

    Raises:
        InputError: for a size that is no multiple of what the autoencoder and the adapter shrink pictures by.
    """
    adapters, pictures, _ = adapters_of(call)
    multiple = lcm(*(getattr(adapter, "downscale_factor", 1) for adapter in adapters))
    call = sized(call, pictures[0], multiple=multiple)
    check_size(call["height"], call["width"], factor=lcm(multiple, scale_factor(call.pipe.vae)))
    return call


class StableDiffusionAdapterPipeline(AdapterMixin, StableDiffusionFamily):
    """Pictures from prompts and control pictures, with Stable Diffusion 1 and 2 and T2I-Adapters.

    Draw order: as in `StableDiffusionPipeline`. Components as there, and:

    Args:
        adapter: `T2IAdapter`, compiled or not, a `MultiAdapter`, or a list of adapters.
    """

    model_cpu_offload_seq = "text_encoder->adapter->unet->vae"
    _optional_components: ClassVar[Sequence[str]] = ("safety_checker", "feature_extractor")

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        adapter: Any,
        scheduler: Any,
        safety_checker: Any,
        feature_extractor: Any,
        requires_safety_checker: bool = True,
    ) -> None:
        adapter, scheduler = several(adapter, MultiAdapter), corrected(scheduler)
        self._assemble(locals())

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
        output_type: str = "pil",
        return_dict: bool = True,
        callback: Callable[[int, Any, Tensor], Any] | None = None,
        callback_steps: int = 1,
        cross_attention_kwargs: dict[str, Any] | None = None,
        adapter_conditioning_scale: Numbers = 1.0,
        clip_skip: int | None = None,
        seed: int | Sequence[int] | None = None,
        prompt_syntax: str | None = None,
        long_prompt: str = "chunk",
    ) -> StableDiffusionPipelineOutput | tuple[Any, list[bool] | None]:
        """Draw what the prompts say where the control pictures (`image`) say."""
        return tasks.text_to_image(self, adapted(begin(self, locals())))


class StableDiffusionXLAdapterPipeline(AdapterMixin, StableDiffusionXLFamily):
    """Pictures from prompts and control pictures, with Stable Diffusion XL and T2I-Adapters.

    Draw order: as in `StableDiffusionXLPipeline`. Components as there, and:

    Args:
        adapter: `T2IAdapter`, compiled or not, a `MultiAdapter`, or a list of adapters.
    """

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        text_encoder_2: Any,
        tokenizer: Any,
        tokenizer_2: Any,
        unet: Any,
        adapter: Any,
        scheduler: Any,
        force_zeros_for_empty_prompt: bool = True,
        feature_extractor: Any = None,
        image_encoder: Any = None,
    ) -> None:
        adapter = several(adapter, MultiAdapter)
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
        callback: Callable[[int, Any, Tensor], Any] | None = None,
        callback_steps: int = 1,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        original_size: Pair | None = None,
        crops_coords_top_left: Pair = (0, 0),
        target_size: Pair | None = None,
        negative_original_size: Pair | None = None,
        negative_crops_coords_top_left: Pair = (0, 0),
        negative_target_size: Pair | None = None,
        adapter_conditioning_scale: Numbers = 1.0,
        adapter_conditioning_factor: float = 1.0,
        clip_skip: int | None = None,
        seed: int | Sequence[int] | None = None,
        prompt_syntax: str | None = None,
        long_prompt: str = "chunk",
    ) -> StableDiffusionXLPipelineOutput | tuple[Any]:
        """Draw what the prompts say where the control pictures (`image`) say."""
        return tasks.text_to_image(self, adapted(begin(self, locals())))
