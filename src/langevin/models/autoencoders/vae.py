"""The convolutional encoder and decoder of latent diffusion (Rombach et al. 2022) and the Gaussian between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import ConfigError, did_you_mean
from ...core.outputs import BaseOutput
from ...core.rng import Generators, normal
from ...nn.activation import activation
from ...nn.attention import Attention
from ...nn.checkpointing import run_block
from ...nn.norm import activated, hooked
from ...nn.resnet import Downsample, ResnetBlock, Upsample

EPS = 1e-6
DOWN_BLOCKS = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
UP_BLOCKS = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}


@dataclass
class DecoderOutput(BaseOutput):
    """Decoded pictures `sample` (B, C, H, W), nominally in [-1, 1]; `commit_loss` is set by quantising decoders."""

    sample: Tensor
    commit_loss: Tensor | None = None


@dataclass
class AutoencoderKLOutput(BaseOutput):
    """The posterior `latent_dist` of an encoded batch."""

    latent_dist: DiagonalGaussianDistribution


class DiagonalGaussianDistribution:
    """A Gaussian with diagonal covariance per latent pixel.

    parameters: (B, 2C, H, W), the mean and then the log variance, which is clamped to [-30, 20]. `deterministic` sets
    the spread to zero. Attributes: mean, logvar, std, var, each (B, C, H, W).
    """

    def __init__(self, parameters: Tensor, deterministic: bool = False) -> None:
        self.parameters = parameters
        self.deterministic = deterministic
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        if deterministic:
            self.std = self.var = torch.zeros_like(self.mean)
        else:
            self.std, self.var = torch.exp(0.5 * self.logvar), torch.exp(self.logvar)

    def sample(self, generator: Generators = None) -> Tensor:
        """Draw one latent per picture, (B, C, H, W): one normal draw of that shape in the parameters' dtype."""
        noise = normal(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + self.std * noise

    def mode(self) -> Tensor:
        """Return the most likely latent, the mean."""
        return self.mean

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> Tensor:
        """Return the divergence KL(self || other) in nats per picture, (B,); None means the standard normal."""
        if self.deterministic:
            return self.mean.new_zeros(1)
        if other is None:
            terms = self.mean.square() + self.var - 1.0 - self.logvar
        else:
            gap = (self.mean - other.mean).square() + self.var
            terms = gap / other.var - 1.0 - self.logvar + other.logvar
        return 0.5 * terms.sum(dim=(1, 2, 3))

    def nll(self, sample: Tensor, dims: Sequence[int] = (1, 2, 3)) -> Tensor:
        """Return the negative log density of `sample` (B, C, H, W) in nats, summed over `dims`."""
        if self.deterministic:
            return self.mean.new_zeros(1)
        log_two_pi = 1.8378770664093453
        terms = log_two_pi + self.logvar + (sample - self.mean).square() / self.var
        return 0.5 * terms.sum(dim=tuple(dims))


class Stage(nn.Module):
    """Residual blocks at one resolution, each followed by self-attention where asked, then a change of resolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        layers: int,
        groups: int,
        act: str,
        attention: bool,
        down: bool = False,
        up: bool = False,
    ) -> None:
        super().__init__()
        widths = [in_channels, *[out_channels] * (layers - 1)]
        self.resnets = nn.ModuleList(
            ResnetBlock(width, out_channels, groups=groups, eps=EPS, act=act) for width in widths
        )
        self.attentions = nn.ModuleList(pixel_attention(out_channels, groups) for _ in range(layers * attention))
        if down:
            self.downsamplers = nn.ModuleList([Downsample(out_channels, use_conv=True, padding=0)])
        if up:
            self.upsamplers = nn.ModuleList([Upsample(out_channels, use_conv=True)])
        self.down, self.up = down, up

    def layers(self) -> Iterator[nn.Module]:
        """Yield the layers in the order in which they are applied."""
        for index, resnet in enumerate(self.resnets):
            yield resnet
            yield from self.attentions[index : index + 1]
        yield from self.downsamplers if self.down else ()
        yield from self.upsamplers if self.up else ()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers():
            x = layer(x)
        return x


class Middle(nn.Module):
    """Two residual blocks at the lowest resolution, with self-attention between them unless it is switched off."""

    def __init__(self, channels: int, *, groups: int, act: str, attention: bool) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([pixel_attention(channels, groups)] if attention else [])
        self.resnets = nn.ModuleList(ResnetBlock(channels, groups=groups, eps=EPS, act=act) for _ in range(2))

    def layers(self) -> Iterator[nn.Module]:
        """Yield the layers in the order in which they are applied."""
        yield self.resnets[0]
        yield from self.attentions
        yield self.resnets[1]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers():
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Pictures (B, in_channels, H, W) to mean and log variance (B, 2 * out_channels, H/f, W/f), f = 2**(stages - 1).

    Raises ConfigError for an unknown block name or a different number of block names and widths.
    """

    gradient_checkpointing = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        down_block_types: Sequence[str],
        block_out_channels: Sequence[int],
        layers_per_block: int,
        norm_num_groups: int,
        act_fn: str,
        mid_block_add_attention: bool,
    ) -> None:
        super().__init__()
        check_stages("down_block_types", down_block_types, block_out_channels, DOWN_BLOCKS)
        widths, common = list(block_out_channels), {"groups": norm_num_groups, "act": act_fn}
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_blocks = build_stages(down_block_types, widths, up=False, layers=layers_per_block, **common)
        self.mid_block = Middle(widths[-1], attention=mid_block_add_attention, **common)
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, widths[-1], eps=EPS)
        self.conv_act = activation(act_fn)
        self.conv_out = nn.Conv2d(widths[-1], 2 * out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = run_stages(self, [*self.down_blocks, self.mid_block], self.conv_in(x))
        return self.conv_out(activated(self.conv_norm_out, self.conv_act, x))


class Decoder(nn.Module):
    """Latents (B, in_channels, h, w) to pictures (B, out_channels, f*h, f*w), f = 2**(stages - 1).

    Widths are given in the encoder's order. Raises ConfigError as Encoder does.
    """

    gradient_checkpointing = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        up_block_types: Sequence[str],
        block_out_channels: Sequence[int],
        layers_per_block: int,
        norm_num_groups: int,
        act_fn: str,
        mid_block_add_attention: bool,
    ) -> None:
        super().__init__()
        check_stages("up_block_types", up_block_types, block_out_channels, UP_BLOCKS)
        widths, common = list(reversed(block_out_channels)), {"groups": norm_num_groups, "act": act_fn}
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.up_blocks = build_stages(up_block_types, widths, up=True, layers=layers_per_block + 1, **common)
        self.mid_block = Middle(widths[0], attention=mid_block_add_attention, **common)
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, widths[-1], eps=EPS)
        self.conv_act = activation(act_fn)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = run_stages(self, [self.mid_block, *self.up_blocks], self.conv_in(z))
        return self.conv_out(activated(self.conv_norm_out, self.conv_act, x))


def run_stages(network: Encoder | Decoder, stages: Iterable[Any], x: Tensor) -> Tensor:
    """Return what stages make of a feature map one after the other.

    Their layers are called from here where nobody waits for a whole stage, since the first map of a stage would be kept
    by its caller until the stage is done. Maps that were made on the way may be overwritten.
    """
    own = False
    for stage in stages:
        if hooked(stage) or (network.gradient_checkpointing and torch.is_grad_enabled()):
            x, own = run_block(network, stage, x), False
            continue
        for layer in stage.layers():
            mine = own and isinstance(layer, ResnetBlock) and not hooked(layer)
            x = layer(x, own=True) if mine else layer(x)
            own = not any(hooked(part) for part in layer.modules())  # a hook may have kept the map
    return x


def pixel_attention(channels: int, groups: int) -> Attention:
    """Return single-head self-attention over the pixels of a feature map, with a residual path."""
    return Attention(
        channels,
        heads=1,
        dim_head=channels,
        bias=True,
        norm_num_groups=groups,
        eps=EPS,
        upcast_softmax=True,
        residual_connection=True,
    )


def build_stages(kinds: Sequence[str], widths: Sequence[int], *, up: bool, **options: Any) -> nn.ModuleList:
    """Return one stage per block name; all but the last change the resolution. `options` are those that all share."""
    known, stages = UP_BLOCKS if up else DOWN_BLOCKS, []
    for index, (kind, width) in enumerate(zip(kinds, widths, strict=True)):
        direction = {"up" if up else "down": index < len(widths) - 1}
        stages.append(Stage(widths[max(index - 1, 0)], width, attention=known[kind], **direction, **options))
    return nn.ModuleList(stages)


def check_stages(option: str, kinds: Sequence[str], widths: Sequence[int], known: dict[str, bool]) -> None:
    """Raise ConfigError unless every block name is known and there is one per width."""
    for kind in kinds:
        if kind not in known:
            raise ConfigError(f"{option} names {kind!r}{did_you_mean(kind, known)}")
    if len(kinds) != len(widths):
        raise ConfigError(f"{option} names {len(kinds)} blocks and block_out_channels gives {len(widths)} widths")
