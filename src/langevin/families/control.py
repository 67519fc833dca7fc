"""Attachments by which a picture steers a network: ControlNets (Zhang & Agrawala 2023), T2I-Adapters (Mou et al. 2023).

Both add feature maps to those of the UNet. What is there already stays: several controls of one call add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InputError
from ..diffusion.guidance import Branches
from ..diffusion.table import Step
from ..models.controlnets.controlnet import ControlNetModel, ControlPicture
from ..nn.compiled import is_graph, vary
from .common import Kept, dtype_of
from .conditioning import Conditioning, is_member
from .denoiser import ModelCall

DOWN, MIDDLE, INSIDE = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)
"""Keywords of the UNet: what is added to the maps it keeps on its way down, to its middle, and inside its blocks."""


def spread(maps: Tensor, branches: int) -> Tensor:
    """Return a batch of maps once for every branch, (branches * batch, ...)."""
    return maps if branches == 1 else torch.cat([maps] * branches)


def shown(net: Any, picture: Tensor, branches: int) -> Tensor | ControlPicture:
    """Return a control picture for every branch; a network of this library keeps what it makes of it.

    A compiled one does not: it would need a graph for the first step and another for those that follow.
    """
    rows = spread(picture, branches)
    keeps = getattr(type(net), "forward", None) is ControlNetModel.forward and not is_graph(net)
    return ControlPicture(rows) if keeps else rows


@dataclass
class Control:
    """A ControlNet with its picture for one run.

    Attributes:
        net: called as `net(sample, timestep, controlnet_cond=..., conditioning_scale=..., guess_mode=...)` with the
            conditioning of the family.
        picture: (batch, channels, height, width) in [0, 1], on the device and in the type of the network.
        scale: factor of the residuals.
        start, end: part of the run, as fractions of its steps, in which the network is asked: a step counts when all of
            it lies between them.
        count: network calls of the whole run, where this run is only its first part; None is this run's.
        guess: let the picture guide without a prompt: early residuals are weakened, and the negative branch gets none.
    """

    net: Any
    picture: Tensor
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    guess: bool = False
    count: int | None = None
    shown: Kept[Any] = field(default_factory=partial(Kept, shown), init=False, repr=False)

    def weight(self, step: Step) -> float:
        """Return the factor of the residuals at a step, 0 outside of the control's part of the run."""
        count = self.count or step.count
        inside = step.index / count >= self.start and (step.index + 1) / count <= self.end
        return self.scale if inside else 0.0

    def show(self, picture: Tensor) -> None:
        """Go on with another picture, given once or for every branch.

        Raises:
            InputError: for another number of rows.
        """
        rows = len(self.picture)
        if len(picture) not in (1, rows, 2 * rows) or picture.shape[1:] != self.picture.shape[1:]:
            raise InputError(
                f"The callback returned a control picture of shape {tuple(picture.shape)}; "
                f"this run has {tuple(self.picture.shape)}."
            )
        self.picture = picture[-rows:].expand_as(self.picture).to(self.picture)


class ControlNet:
    """An attachment: the residuals of ControlNets. A network whose weight at a step is 0 is not asked.

    Args:
        controls: the networks of this run.
        name: under which callbacks know the picture, a list of them for several networks.
    """

    def __init__(self, controls: Sequence[Control], name: str = "image") -> None:
        self.controls = tuple(controls)
        self.name = name

    @property
    def tensor(self) -> Any:
        """The picture of the only network, or the list of them."""
        pictures = [control.picture for control in self.controls]
        return pictures[0] if len(pictures) == 1 else pictures

    @tensor.setter
    def tensor(self, pictures: Any) -> None:
        many = [pictures] if isinstance(pictures, Tensor) else list(pictures)
        if len(many) != len(self.controls):
            raise InputError(
                f"The callback returned {len(many)} control pictures for {len(self.controls)} ControlNets."
            )
        for control, picture in zip(self.controls, many, strict=True):
            control.show(picture)

    def __call__(self, call: ModelCall, step: Step, branches: Branches) -> None:
        """Add the residuals to those of the call."""
        for control in self.controls:
            if weight := control.weight(step):
                self.ask(control, weight, call, branches)

    def ask(self, control: Control, weight: float, call: ModelCall, branches: Branches) -> None:
        """Add the residuals of one network to those of the call."""
        chosen = [k for k, b in enumerate(branches) if is_member(b.condition) or not control.guess]
        if not chosen:
            return
        size = len(call.sample) // len(branches)
        rows = [slice(k * size, (k + 1) * size) for k in chosen]
        every = len(chosen) == len(branches)
        sample = call.sample if every else torch.cat([call.sample[part] for part in rows])
        cond = call.cond if every else Conditioning.cat([call.cond.rows(part) for part in rows])
        dtype = dtype_of(control.net, sample.dtype)
        sample, shown = sample.to(dtype), control.shown(control.net, control.picture, len(chosen))
        if is_graph(control.net):
            vary(control.net, sample, shown)
        down, middle = control.net(
            sample,
            call.timestep,
            **replace(cond.to(dtype=dtype), pictures=()).keywords(),
            controlnet_cond=shown,
            conditioning_scale=factor(control.net, weight, sample),
            guess_mode=control.guess,
            return_dict=False,
        )
        maps = [residual.to(call.sample.dtype) for residual in (*down, middle)]
        if not every:
            maps = [among(residual, chosen, len(branches)) for residual in maps]
        add(call, DOWN, maps[:-1])
        call.options[MIDDLE] = maps[-1] + call.options[MIDDLE] if MIDDLE in call.options else maps[-1]


class Adapter:
    """An attachment: feature maps of T2I-Adapters, worked out once, added inside the UNet's blocks.

    Args:
        maps: one (batch, channels, height, width) per resolution.
        share: part of the run's steps, from the first on, in which they are added.
    """

    def __init__(self, maps: Sequence[Tensor], share: float = 1.0) -> None:
        self.spread = Kept(lambda branches: [spread(part, branches) for part in maps])
        self.share = share

    def __call__(self, call: ModelCall, step: Step, branches: Branches) -> None:
        """Add the maps to those of the call."""
        if step.index < int(step.count * self.share):
            add(call, INSIDE, [part.to(call.sample.dtype) for part in self.spread(len(branches))])


def factor(net: Any, weight: float, sample: Tensor) -> float | Tensor:
    """Return a weight as a network is told it: as a tensor (), where a compiler would make another number a graph."""
    dtype = torch.promote_types(sample.dtype, torch.float32)
    return torch.full((), weight, dtype=dtype, device=sample.device) if is_graph(net) else weight


def add(call: ModelCall, name: str, maps: Sequence[Tensor]) -> None:
    """Add maps to those that a keyword of the call holds already."""
    held = call.options.get(name)
    call.options[name] = tuple(maps) if held is None else tuple(a + b for a, b in zip(held, maps, strict=True))


def among(maps: Tensor, chosen: Sequence[int], branches: int) -> Tensor:
    """Return maps of the chosen branches as maps of all branches, zero for the others."""
    parts = dict(zip(chosen, maps.chunk(len(chosen)), strict=True))
    blank = torch.zeros_like(parts[chosen[0]])
    return torch.cat([parts.get(k, blank) for k in range(branches)])
