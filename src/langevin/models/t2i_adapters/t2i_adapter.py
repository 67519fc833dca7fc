"""T2I-Adapter: a small network that turns a control picture into feature maps for the UNet (Mou et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ...core.config import register_to_config
from ...core.errors import ConfigError, InputError, did_you_mean
from ...nn.checkpointing import run_block
from ..base import ModelMixin, check_maps
from ..several import SeveralFolders, check_parts, one_each

BOTTLENECK = 4
FACTORS = ("total_downscale_factor", "downscale_factor")


class Stage(NamedTuple):
    """One stage of an adapter: whether it halves the resolution, and its numbers of channels."""

    halve: bool
    channels_in: int
    channels_out: int


def full_stages(channels: Sequence[int], folded: int) -> list[Stage]:
    """Every stage but the first halves; `folded`, the channels of the folded picture, pass a convolution before."""
    return [Stage(i > 0, channels[max(i - 1, 0)], width) for i, width in enumerate(channels)]


def xl_stages(channels: Sequence[int], folded: int) -> list[Stage]:
    """Only the third stage halves, as SDXL has fewer resolutions."""
    return [stage._replace(halve=i == 2) for i, stage in enumerate(full_stages(channels, folded))]


def light_stages(channels: Sequence[int], folded: int) -> list[Stage]:
    """The first stage reads the folded picture, and one stage more than there are widths closes the row."""
    given = (folded, *channels)
    return [Stage(i > 0, given[i], width) for i, width in enumerate((*channels, channels[-1]))]


KINDS = {"full_adapter": full_stages, "full_adapter_xl": xl_stages, "light_adapter": light_stages}


class AdapterResidual(nn.Module):
    """x + conv(relu(conv(x))) on feature maps (B, C, H, W); the second kernel is `kernel` wide."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.block1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.block2 = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block2(F.relu(self.block1(x)))


class AdapterBlock(nn.Module):
    """Halve with averages if the stage says so, change the width, then residual blocks.

    With `light` the residual blocks run on a quarter of the channels, between two 1x1 convolutions.
    """

    gradient_checkpointing = False

    def __init__(self, stage: Stage, residuals: int, *, light: bool) -> None:
        super().__init__()
        self.halve = stage.halve
        width = stage.channels_out // BOTTLENECK if light else stage.channels_out
        self.in_conv = self.out_conv = None
        if light or stage.channels_in != width:
            self.in_conv = nn.Conv2d(stage.channels_in, width, 1)
        self.resnets = nn.ModuleList(AdapterResidual(width, 3 if light else 1) for _ in range(residuals))
        if light:
            self.out_conv = nn.Conv2d(width, stage.channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.halve:
            x = F.avg_pool2d(x, 2, ceil_mode=True)
        if self.in_conv is not None:
            x = self.in_conv(x)
        for layer in self.resnets:
            x = run_block(self, layer, x)
        return x if self.out_conv is None else self.out_conv(x)


class AdapterBody(nn.Module):
    """The network itself: fold the picture's pixels into channels, then one block per feature map."""

    def __init__(self, kind: str, in_channels: int, channels: Sequence[int], residuals: int, factor: int) -> None:
        super().__init__()
        light = kind == "light_adapter"
        folded = in_channels * factor**2
        self.factor = factor
        self.conv_in = None if light else nn.Conv2d(folded, channels[0], 3, padding=1)
        self.body = nn.ModuleList(
            AdapterBlock(stage, residuals, light=light) for stage in KINDS[kind](channels, folded)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        folded = F.pixel_unshuffle(x, self.factor)
        levels = [folded if self.conv_in is None else self.conv_in(folded)]
        for block in self.body:
            levels.append(block(levels[-1]))
        return levels[1:]


class T2IAdapter(ModelMixin):
    """Turns a control picture into the feature maps that a UNet adds on its way down.

    The UNet takes them as `down_intrablock_additional_residuals`. Source: Mou et al. 2023, arXiv 2302.08453.

    Raises:
        ConfigError: an unknown `adapter_type`, or no channels.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        channels: Sequence[int] = (320, 640, 1280, 1280),
        num_res_blocks: int = 2,
        downscale_factor: int = 8,
        adapter_type: str = "full_adapter",
    ) -> None:
        super().__init__()
        if adapter_type not in KINDS:
            raise ConfigError(f"adapter_type is {adapter_type!r}{did_you_mean(str(adapter_type), KINDS)}")
        if not channels:
            raise ConfigError("channels is empty; an adapter for Stable Diffusion has 320, 640, 1280, 1280")
        self.adapter = AdapterBody(adapter_type, in_channels, channels, num_res_blocks, downscale_factor)

    @property
    def downscale_factor(self) -> int:
        """How much smaller than the picture the first feature map is."""
        return self.config.downscale_factor

    @property
    def total_downscale_factor(self) -> int:
        """How much smaller than the picture the last feature map is; a picture's sides should be multiples of it."""
        return self.downscale_factor * 2 ** sum(block.halve for block in self.adapter.body)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return one feature map per resolution of a picture (B, in_channels, H, W) with values in [0, 1].

        Raises:
            InputError: another number of channels, or a height or width that `downscale_factor` does not divide.
        """
        check_maps("the control picture", x, "in_channels", self.config.in_channels)
        factor, (height, width) = self.downscale_factor, x.shape[-2:]
        if height % factor or width % factor:
            fitting = tuple(max(1, round(size / factor)) * factor for size in (height, width))
            raise InputError(
                f"the control picture is ({height}, {width}); this adapter needs multiples of {factor}, "
                f"such as {fitting}"
            )
        return self.adapter(x)


class MultiAdapter(SeveralFolders, ModelMixin):
    """Runs every adapter in `adapters` on its own control picture and returns the weighted sum of the feature maps.

    Raises:
        ConfigError: the list is empty, holds another class, or adapters that shrink pictures differently.
    """

    part_class = T2IAdapter

    def __init__(self, adapters: Sequence[T2IAdapter]) -> None:
        super().__init__()
        adapters = check_parts(type(self), adapters, T2IAdapter)
        self.adapters = nn.ModuleList(adapters)
        self.num_adapter = len(adapters)
        for name in FACTORS:
            values = [getattr(adapter, name) for adapter in adapters]
            if len(set(values)) > 1:
                raise ConfigError(f"all adapters need the same {name}; these have {values}")
            setattr(self, name, values[0])

    @property
    def parts(self) -> nn.ModuleList:
        """The adapters."""
        return self.adapters

    def forward(self, xs: Sequence[Tensor], adapter_weights: Sequence[float] | None = None) -> list[Tensor]:
        """Return the weighted sum of the feature maps.

        Args:
            xs: one control picture per adapter, each (B, in_channels, H, W).
            adapter_weights: one weight per adapter; None gives each 1 / number.

        Raises:
            InputError: a list has another length than there are adapters, or a picture does not fit its adapter.
        """
        given = 1 / self.num_adapter if adapter_weights is None else adapter_weights
        weights = one_each("adapter_weights", given, self.adapters, numbers=True)
        total: list[Any] = []
        for x, weight, adapter in zip(one_each("xs", xs, self.adapters), weights, self.adapters, strict=True):
            features = [weight * feature for feature in adapter(x)]
            total = features if not total else [a + b for a, b in zip(total, features, strict=True)]
        return total
