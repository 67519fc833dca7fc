"""Pictures from noise alone: DDPM (Ho et al. 2020), DDIM (Song et al. 2021) and PNDM (Liu et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InputError, check_choice
from ..core.images import to_images
from ..core.rng import Generators, normal
from ..diffusion.table import Step
from ..families.common import option, sample_of, timestep_on
from ..schedulers.base import SchedulerMixin
from ..schedulers.preserving import DDIMScheduler, PNDMScheduler
from .base import DiffusionPipeline
from .glossary import documented
from .inputs import begin
from .outputs import ImagePipelineOutput
from .runs import running
from .sampling import denoise, plan_of

OUTPUTS = ("pil", "np", "pt")


class PixelDenoiser:
    """The prediction of a network in pixel space."""

    def __init__(self, unet: Any) -> None:
        self.unet = unet

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """Return the prediction for a sample (batch, channels, height, width)."""
        scaled = x if step.in_scale == 1.0 else x * step.in_scale
        return sample_of(self.unet(scaled, timestep_on(step.timestep, x.device)))


class _Unconditional(DiffusionPipeline):
    """A network in pixel space and a scheduler."""

    model_cpu_offload_seq = "unet"

    def __init__(self, unet: Any, scheduler: Any) -> None:
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def _generate(self, given: Mapping[str, Any], **step_options: Any) -> ImagePipelineOutput | tuple[Any]:
        """Draw noise, denoise it, and return the pictures; `given` are the arguments of the call."""
        check_choice("output_type", given["output_type"], OUTPUTS)
        call = begin(self, given, prompts=given["batch_size"])
        unet = self._part("unet")
        size = option(unet, "sample_size")
        if size is None:
            raise InputError("The network does not name its size; set `unet.sample_size`.")
        height, width = (size, size) if isinstance(size, int) else size
        plan = plan_of(call, **step_options)
        shape = (call.images, option(unet, "in_channels"), height, width)
        with running(call) as run:
            noise = normal(shape, generator=call.rng, device=call.device, dtype=self.dtype)
            image = denoise(run, PixelDenoiser(unet), plan.start(noise), plan)
        images = to_images(image, call["output_type"])
        return ImagePipelineOutput(images) if call["return_dict"] else (images,)


class DDPMPipeline(_Unconditional):
    """Ancestral sampling: as many steps as the network was trained with, or fewer.

    Draw order: the starting noise (batch, channels, height, width) in the network's type, then one draw of the same
    shape per step as the scheduler asks.
    """

    @documented
    def __call__(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        num_inference_steps: int = 1000,
        output_type: str = "pil",
        return_dict: bool = True,
        seed: int | Sequence[int] | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Return `batch_size` pictures."""
        return self._generate(locals())


class DDIMPipeline(_Unconditional):
    """Implicit sampling: few steps, deterministic unless `eta` is above 0. Another scheduler is turned into DDIM.

    Draw order: the starting noise (batch, channels, height, width) in the network's type; with `eta` above 0, one draw
    of the same shape per step.
    """

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__(unet, as_class(scheduler, DDIMScheduler))

    @documented
    def __call__(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        eta: float = 0.0,
        num_inference_steps: int = 50,
        use_clipped_model_output: bool | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        seed: int | Sequence[int] | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Return `batch_size` pictures."""
        return self._generate(locals(), use_clipped_model_output=bool(use_clipped_model_output))


class PNDMPipeline(_Unconditional):
    """Pseudo-numerical sampling with four past predictions. Another scheduler is turned into PNDM.

    Draw order: the starting noise (batch, channels, height, width) in the network's type, and nothing else.
    """

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__(unet, as_class(scheduler, PNDMScheduler))

    @documented
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 50,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        seed: int | Sequence[int] | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Return `batch_size` pictures."""
        return self._generate(locals())


def as_class(scheduler: Any, cls: type[Any]) -> Any:
    """Return the scheduler when it is of `cls`, else one of `cls` with its configuration and what `using` gave it."""
    if scheduler is None or isinstance(scheduler, cls):
        return scheduler
    return scheduler.turned_into(cls) if isinstance(scheduler, SchedulerMixin) else cls.from_config(scheduler.config)
