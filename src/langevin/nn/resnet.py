"""Residual convolution blocks and their resampling layers, named as in published checkpoints."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import InputError, check_choice
from .activation import activation
from .norm import AdaGroupNorm, activated, added, hooked, scale_shift

FIR_TAPS = (1.0, 3.0, 3.0, 1.0)


class Upsample(nn.Module):
    """Double the height and width with nearest neighbours, then optionally convolve with a 3x3 kernel called `conv`.

    forward: x (B, C, H, W) to (B, C, 2H, 2W), or to `output_size` (height, width) where that is given.
    Raises InputError when x has other than `channels` channels.
    """

    def __init__(self, channels: int, *, use_conv: bool = False) -> None:
        super().__init__()
        self.channels = channels
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if use_conv else None

    def forward(self, x: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        check_channels(self, x)
        if output_size is None:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        else:
            x = F.interpolate(x, size=tuple(output_size), mode="nearest")
        return x if self.conv is None else self.conv(x)


class Downsample(nn.Module):
    """Halve the height and width with a strided 3x3 convolution called `conv`, or with 2x2 averages.

    forward: x (B, C, H, W) to (B, C, H/2, W/2). With `padding=0` the convolution pads the right and the bottom edge
    only, as autoencoders of latent diffusion do. Raises InputError when x has other than `channels` channels.
    """

    def __init__(self, channels: int, *, use_conv: bool = False, padding: int = 1) -> None:
        super().__init__()
        self.channels = channels
        self.asymmetric = padding == 0
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding) if use_conv else None

    def forward(self, x: Tensor) -> Tensor:
        check_channels(self, x)
        if self.conv is None:
            return F.avg_pool2d(x, 2)
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class FirResample(nn.Module):
    """Double or halve height and width through the separable filter 1-3-3-1 (Karras et al. 2019; Zhang 2019).

    Beyond the border there are zeros, or with `reflect` the mirrored picture.
    """

    kernel: Tensor

    def __init__(self, *, up: bool, reflect: bool = False) -> None:
        super().__init__()
        self.up, self.reflect = up, reflect
        # Placed on the CPU by name, so that building a model on the meta device leaves the values in place.
        taps = torch.tensor(FIR_TAPS, device="cpu")
        kernel = torch.outer(taps, taps) / taps.sum().square()
        self.register_buffer("kernel", kernel * 4 if up else kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        weight = self.kernel.to(x.dtype).expand(channels, 1, -1, -1)
        resample = F.conv_transpose2d if self.up else F.conv2d
        if not self.reflect:
            return resample(x, weight, stride=2, padding=1, groups=channels)
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return resample(x, weight, stride=2, padding=3 if self.up else 0, groups=channels)


class ResnetBlock(nn.Module):
    """Two normalised 3x3 convolutions around a residual path, with an optional time embedding in between.

    forward: x (B, in_channels, H, W) and, where `time_channels` is set, time_embedding (B, time_channels) to
    (B, out_channels, H', W'); H' and W' are doubled with `up` and halved with `down`. `time_embedding_norm` decides
    whether the projected embedding is added before the second norm ("default") or scales and shifts after it
    ("scale_shift"). `up` and `down` mean nearest neighbours and averages, with `fir` the filter of FirResample.
    With `own` the block may write its result over x.
    `conv_shortcut=None` means a 1x1 convolution on the residual path where the numbers of channels differ.
    Source: Ho et al. 2020; scale and shift from Dhariwal & Nichol 2021.
    Raises InputError when a time embedding is needed and not given.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        *,
        time_channels: int | None = None,
        groups: int = 32,
        groups_out: int | None = None,
        eps: float = 1e-6,
        dropout: float = 0.0,
        time_embedding_norm: str = "default",
        up: bool = False,
        down: bool = False,
        output_scale_factor: float = 1.0,
        skip_time_act: bool = False,
        act: str = "silu",
        conv_shortcut: bool | None = None,
        fir: bool = False,
    ) -> None:
        super().__init__()
        check_choice("time_embedding_norm", time_embedding_norm, ("default", "scale_shift"))
        out_channels = out_channels or in_channels
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.time_embedding_norm = time_embedding_norm
        self.output_scale_factor = output_scale_factor
        self.skip_time_act = skip_time_act

        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        width = 2 * out_channels if time_embedding_norm == "scale_shift" else out_channels
        self.time_emb_proj = nn.Linear(time_channels, width) if time_channels else None
        self.norm2 = nn.GroupNorm(groups_out or groups, out_channels, eps=eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nonlinearity = activation(act)
        self.upsampler = self.downsampler = None
        if up:
            self.upsampler = FirResample(up=True) if fir else Upsample(in_channels)
        elif down:
            self.downsampler = FirResample(up=False) if fir else Downsample(in_channels)
        if conv_shortcut is None:
            conv_shortcut = in_channels != out_channels
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if conv_shortcut else None

    def forward(self, x: Tensor, time_embedding: Tensor | None = None, *, own: bool = False) -> Tensor:
        hidden = activated(self.norm1, self.nonlinearity, x)
        resample = self.upsampler or self.downsampler
        if resample is not None:
            x, hidden = resample(x), resample(hidden)
        hidden = self.conv1(hidden)
        hidden = self.condition(hidden, time_embedding)
        if self.conv_shortcut is not None:
            x, own = self.conv_shortcut(x), not hooked(self.conv_shortcut)
        total = added(self.conv2, self.dropout(hidden), x, own=own)
        return total if self.output_scale_factor == 1 else total / self.output_scale_factor

    def condition(self, hidden: Tensor, time_embedding: Tensor | None) -> Tensor:
        """Return the activation of the second norm of `hidden` (B, C, H, W).

        The time embedding is added before the norm, or scales and shifts between norm and activation.
        """
        if self.time_emb_proj is None:
            return activated(self.norm2, self.nonlinearity, hidden)
        if time_embedding is None:
            raise InputError("this residual block was built with time_channels and needs a time embedding")
        if not self.skip_time_act:
            time_embedding = self.nonlinearity(time_embedding)
        projected = self.time_emb_proj(time_embedding)[:, :, None, None]
        if self.time_embedding_norm == "scale_shift":
            return self.nonlinearity(scale_shift(self.norm2(hidden), projected))
        return activated(self.norm2, self.nonlinearity, hidden + projected)


class AdaResnetBlock(nn.Module):
    """Two 3x3 convolutions around a residual path, each after a norm that the time embedding steers (Crowson 2022).

    forward: x (B, in_channels, H, W) and time_embedding (B, time_channels) to (B, last_channels, H, W).
    `last_channels` is the width after the second convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        time_channels: int,
        last_channels: int,
        groups: int,
        groups_out: int,
        eps: float,
        dropout: float,
        act: str,
    ) -> None:
        super().__init__()
        self.norm1 = AdaGroupNorm(time_channels, in_channels, groups, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = AdaGroupNorm(time_channels, out_channels, groups_out, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, last_channels, 3, padding=1)
        self.nonlinearity = activation(act)
        reshaped = in_channels != last_channels
        self.conv_shortcut = nn.Conv2d(in_channels, last_channels, 1, bias=False) if reshaped else None

    def forward(self, x: Tensor, time_embedding: Tensor) -> Tensor:
        hidden = self.conv1(self.nonlinearity(self.norm1(x, time_embedding)))
        hidden = self.dropout(self.nonlinearity(self.norm2(hidden, time_embedding)))
        return added(self.conv2, hidden, x if self.conv_shortcut is None else self.conv_shortcut(x))


def check_channels(layer: nn.Module, x: Tensor) -> None:
    """Raise InputError when `x` (B, C, H, W) does not have the number of channels that `layer.channels` states."""
    if x.shape[1] != layer.channels:
        raise InputError(f"{type(layer).__name__} expects {layer.channels} channels and got {x.shape[1]}")
