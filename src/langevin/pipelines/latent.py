"""What the pipelines of every latent family share: sizes, guidance, the run from a start to finished pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.logging import get_logger
from ..diffusion.guidance import CFG, Guidance, Talk, Within, alone
from ..diffusion.sampling import Edit
from ..diffusion.table import Plan, Step
from ..families.common import dtype_of, option
from ..families.conditioning import Conditions, members
from ..families.denoiser import Attachment, Channels, Denoiser
from ..families.latents import LatentSpace, default_size, scale_factor
from ..nn.embedding import sinusoidal
from .authoring import OwnLoopMixin, StableDiffusionMixin
from .base import DiffusionPipeline
from .image_processor import VaeImageProcessor
from .inputs import Call, check_latents, check_rows, check_size
from .ip_adapter import IPAdapterMixin
from .lora import StableDiffusionLoraLoaderMixin
from .pictures import Picture, read_picture
from .regions import Box
from .runs import RunField, RunState
from .sampling import denoise
from .single_file import FromSingleFileMixin
from .tasks import Start
from .textual_inversion import TextualInversionLoaderMixin

logger = get_logger(__name__)


def identity(images: Any) -> Any:
    """Return pictures as they are."""
    return images


class derived:
    """A value that follows from the components, unless a subclass sets an attribute of that name."""

    def __init__(self, compute: Callable[[Any], Any]) -> None:
        self.compute, self.__doc__ = compute, compute.__doc__

    def __get__(self, pipe: Any, owner: type | None = None) -> Any:
        return self if pipe is None else self.compute(pipe)


def for_processors(given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return keywords of a call without `scale`, which the adapters of the whole run have."""
    return {name: value for name, value in (given or {}).items() if name != "scale"} or None


class LatentPipeline(
    StableDiffusionLoraLoaderMixin,
    TextualInversionLoaderMixin,
    IPAdapterMixin,
    FromSingleFileMixin,
    StableDiffusionMixin,
    OwnLoopMixin,
    DiffusionPipeline,
):
    """A network that denoises latents, the autoencoder that decodes them, and a family's way to encode prompts.

    A family writes `_conditions`, `_deliver` and `_output`. A control (a ControlNet, an adapter) is a mixin that writes
    `_attachments`. The tasks stand in `pipelines.tasks`.

    Attributes:
        upcasts_vae: whether an autoencoder in float16 works in float32.
        adds: what the task shows the network beside the sample -> its channels, None for those of a latent.
        denoiser: how the network is called.
        scaling: scale of the latents, where it is not for the autoencoder's configuration to say.
        _saved_options: what constructors take beside components and what is saved.
    """

    vae: Any
    unet: Any
    scheduler: Any
    upcasts_vae: ClassVar[bool] = False
    adds: ClassVar[Mapping[str, int | None]] = {}
    denoiser: ClassVar[type[Denoiser]] = Denoiser
    scaling: ClassVar[float | None] = None
    _saved_options: ClassVar[Sequence[str]] = ()

    guidance_scale = _guidance_scale = RunField("guidance_scale")
    guidance_rescale = _guidance_rescale = RunField("guidance_rescale")
    clip_skip = _clip_skip = RunField("clip_skip")
    cross_attention_kwargs = _cross_attention_kwargs = RunField("cross_attention_kwargs")
    num_timesteps = _num_timesteps = RunField("num_timesteps")

    def _assemble(self, given: Mapping[str, Any]) -> None:
        """Take over a constructor's arguments, its `locals()`: options are saved, the rest are components."""
        given = {name: value for name, value in given.items() if name not in ("self", "__class__")}
        options = {name: given.pop(name) for name in self._saved_options if name in given}
        self.register_modules(**given)
        self.register_to_config(**options)

    # What a family and a control write ------------------------------------------------------------------------------

    def _conditions(self, call: Call, space: LatentSpace) -> Conditions:
        """Return the conditioning of every branch that the call's guidance may ask for."""
        raise NotImplementedError

    def _finish(self, call: Call, space: LatentSpace, latents: Tensor) -> Any:
        """Return the output of a finished run: its latents, or the decoded pictures as the call asks for them."""
        if call["output_type"] == "latent":
            return self._output(call, latents)
        return self._deliver(call, self._decoded(space, latents))

    def _decoded(self, space: LatentSpace, latents: Tensor) -> Tensor:
        """Return the pictures of latents, once what the network that denoised them kept for the call is free."""
        self._release("unet")
        return space.decode(latents)

    def _deliver(self, call: Call, image: Tensor, finish: Callable[[Any], Any] = identity) -> Any:
        """Convert pictures (batch, channels, height, width) in [-1, 1]; `finish` edits the converted ones."""
        raise NotImplementedError

    def _output(self, call: Call, images: Any) -> Any:
        """Return pictures or latents as the call returns them."""
        raise NotImplementedError

    def _attachments(self, call: Call, space: LatentSpace, plan: Plan) -> Sequence[Attachment]:
        """Return what edits the network's calls: nothing, unless the pipeline has a control."""
        return ()

    def _channels_beside(
        self, call: Call, space: LatentSpace, picture: Picture | None, place: Mapping[str, Any]
    ) -> Sequence[Channels]:
        """Return the channels that the task shows the network beside the sample, `adds` in all.

        Called before the starting noise is drawn.

        Args:
            picture: the call's picture.
            place: device and type of the result.
        """
        return ()

    def _shared(self, call: Call) -> Mapping[str, Tensor]:
        """Return further keywords of the network, one row per picture."""
        return {}

    # Sizes ----------------------------------------------------------------------------------------------------------

    @derived
    def vae_scale_factor(self) -> int:
        """Pixels per latent and side."""
        return scale_factor(self.vae)

    @derived
    def image_processor(self) -> VaeImageProcessor:
        """The picture processor that fits the autoencoder."""
        return VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    def _picture(self, call: Call, *, box: Box | None = None, size: tuple[int, int] | None = None) -> Picture:
        """Return the picture of the call, resized to `size` or to the call's height and width, where there are any.

        Args:
            box: (left, top, right, bottom) of the part to take.
        """
        height, width = size or (call.get("height"), call.get("width"))
        factor = self.vae_scale_factor
        if height is not None and width is not None:
            check_size(height, width, factor=factor)
        channels = self._channels()
        return read_picture(call["image"], factor=factor, channels=channels, height=height, width=width, box=box)

    def _space(self, call: Call, picture: Picture | None = None) -> LatentSpace:
        """Return the latent space of a call: of the picture's size, else of the size asked for, else that of the given
        latents, else the model's own.

        Raises:
            InputError: for a size that is no multiple of the autoencoder's factor, or latents of another shape.
            ConfigError: when there is no autoencoder and something is to be encoded or decoded.
        """
        if call["output_type"] != "latent" or (picture is not None and not picture.latent):
            self._part("vae")
        factor, latents = self.vae_scale_factor, call.get("latents")
        height, width = call.get("height"), call.get("width")
        visible = None
        if picture is not None:
            check_rows("pictures", len(picture.values), call)
            (height, width), visible = picture.size, picture.visible
        elif height is None and width is None and getattr(latents, "ndim", 0) == 4:
            height, width = (side * factor for side in latents.shape[-2:])
        height, width = self._size(height, width)
        check_size(height, width, factor=factor)
        space = self._own_space(self._channels(), height, width, visible)
        check_latents(latents, space.shape(call.images))
        return space

    def _own_space(self, channels: int, height: int, width: int, visible: tuple[int, int] | None = None) -> LatentSpace:
        """Return the latent space of a size as this family scales it."""
        return LatentSpace(self.vae, channels, height, width, visible, scaling=self.scaling, upcast=self.upcasts_vae)

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Return height and width in pixels, the model's own where None."""
        if height is not None and width is not None:
            return height, width
        own = default_size(self.unet, self.vae)
        return own[0] if height is None else height, own[1] if width is None else width

    def _channels(self) -> int:
        """Return the channels of a latent: the network's input, less what a task adds to it."""
        return option(self._part("unet"), "out_channels") or option(self.unet, "in_channels", 4)

    def _check_channels(self, space: LatentSpace, adds: Mapping[str, int | None]) -> None:
        """Raise ConfigError unless the network takes the latents and the channels that the task adds."""
        extra = {name: space.channels if n is None else n for name, n in adds.items()}
        wanted, has = space.channels + sum(extra.values()), option(self.unet, "in_channels")
        if has is not None and has != wanted:
            parts = " and ".join([f"{space.channels} of the latents", *(f"{n} of {name}" for name, n in extra.items())])
            raise ConfigError(
                f"The unet takes {has} channels, and {type(self).__name__} gives it {wanted}: {parts}; "
                "load a checkpoint of this task, or use the pipeline of the checkpoint's task."
            )

    # Guidance -------------------------------------------------------------------------------------------------------

    @property
    def _embeds_guidance(self) -> bool:
        """Whether the network was distilled to be told the guidance scale, so that it is asked once per step."""
        return option(self.unet, "time_cond_proj_dim") is not None

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the run in progress asks the network twice per step."""
        return self._is_guided(self.guidance_scale or 0.0)

    def _is_guided(self, guidance_scale: float) -> bool:
        """Tell whether a guidance scale needs the negative prompts: not when the network was distilled to embed it."""
        return CFG(guidance_scale).active and not self._embeds_guidance

    def get_guidance_scale_embedding(
        self, w: Tensor, embedding_dim: int = 512, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return guidance scales less 1, (n,), as networks distilled to embed them take them, (n, embedding_dim).

        Source: Meng et al. 2023 (2210.03142), with the frequencies of a timestep of 1000 w.
        """
        return sinusoidal(w, embedding_dim, scale=1000.0).to(dtype)

    def _wants_negative(self, call: Call) -> bool:
        """Tell whether the negative prompts of a call are asked at all, with a warning where they are given in vain."""
        scale = call["guidance_scale"]
        guided = self._is_guided(scale)
        if call.get("negative_prompt") and not guided:
            logger.warning("`negative_prompt` has no effect: guidance_scale=%s switches guidance off.", scale)
        return guided

    def _guidance(self, run: RunState, conditions: Conditions) -> Guidance:
        """Return the guidance of a run, which follows when a callback changes the run's scale."""
        names = members(conditions)
        if self._embeds_guidance:
            return alone

        def shares(step: Step) -> tuple[tuple[str, Tensor], ...]:
            weights = ((name, conditions[name].at(step.index).weight) for name in names)  # type: ignore[union-attr]
            return tuple((name, weight.view(-1, 1, 1, 1)) for name, weight in weights if weight is not None)

        def guidance(x: Tensor, step: Step) -> Talk:
            scale, rescale = run.values["guidance_scale"], run.values.get("guidance_rescale", 0.0)
            return CFG(scale, rescale, shares(step) if len(names) > 1 else ())(x, step)

        return guidance

    def _limited(self, guidance: Guidance, start: Start) -> Guidance:
        """Return a guidance within the interval that was asked for; see `enable_guidance_interval`."""
        if self._guidance_interval is None:
            return guidance
        if self._embeds_guidance:
            raise ConfigError("This network is told its guidance scale; call `disable_guidance_interval`.")
        if len(members(start.conditions)) > 1:
            raise ConfigError("AND needs guidance at every step; call `disable_guidance_interval`, or write no AND.")
        within = Within(guidance, *self._guidance_interval)
        if start.conditions.get("negative") and not any(map(within.holds, start.plan.steps)):
            levels = [f"{step.level.ratio:.3g}" for step in (start.plan.steps[0], start.plan.steps[-1])]
            logger.warning("No step of this run is guided: its levels go from %s to %s.", *levels)
        return within

    def _reused(self) -> Sequence[Attachment]:
        """Return what reuses deep features of the network in a run; see `enable_deep_cache`."""
        if self._deep_cache is None:
            return ()
        from ..families.deep_cache import DeepCache

        return (DeepCache(self.unet, *self._deep_cache),)

    # The run --------------------------------------------------------------------------------------------------------

    def _sample(
        self, start: Start, x: Tensor, *, channels: Sequence[Channels] = (), after: Sequence[Edit] = ()
    ) -> Tensor:
        """Return the latents of a finished run.

        Args:
            x: the first sample.
            channels: channels of the task, which follow the pipeline's own attachments.
            after: edits of the sample after each step.
        """
        call = start.call
        options: dict[str, Any] = {"cross_attention_kwargs": for_processors(call.get("cross_attention_kwargs"))}
        if self._embeds_guidance:
            scales = torch.full((call.images,), call.get("guidance_scale", 0.0) - 1.0, device=call.device)
            width, dtype = option(self.unet, "time_cond_proj_dim"), dtype_of(self.unet, torch.float32)
            options["timestep_cond"] = self.get_guidance_scale_embedding(scales, width, dtype)
        model = self.denoiser(
            self.unet,
            start.conditions,
            self._limited(self._guidance(start.run, start.conditions), start),
            attach=(*start.attach, *channels, *self._reused()),
            options=options,
            shared=self._shared(call),
            shown=after,
        )
        return denoise(start.run, model, x, start.plan, after=after)
