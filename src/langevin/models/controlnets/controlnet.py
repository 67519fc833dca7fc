"""ControlNet: a trainable copy of a UNet's first half that turns a picture into residuals (Zhang & Agrawala 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.config import register_to_config
from ...core.errors import ConfigError, InputError, did_you_mean
from ...core.outputs import BaseOutput
from ..adapting import takes_adapter_scale
from ..base import ModelMixin, check_maps
from ..unets.encoder import EncoderMixin

CHANNEL_ORDERS = ("rgb", "bgr")
EMBEDDING_WIDTHS = (16, 32, 96, 256)
GUESS_FIRST = 0.1
USUAL: dict[str, Any] = {
    "conv_in_kernel": 3,
    "dropout": 0.0,
    "mid_block_only_cross_attention": False,
    "cross_attention_norm": None,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "class_embeddings_concat": False,
    "center_input_sample": False,
}
"""Options of a conditional UNet that a ControlNet does not have, and what their absence means."""


@dataclass
class ControlNetOutput(BaseOutput):
    """Residuals of a ControlNet.

    `down_block_res_samples` has one map per feature map that the UNet keeps on its way down, `mid_block_res_sample`
    is for its middle block; the UNet takes them as `down_block_additional_residuals` and
    `mid_block_additional_residual`.
    """

    down_block_res_samples: tuple[Tensor, ...]
    mid_block_res_sample: Tensor


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """Return the layer with all values zero, so that an untrained ControlNet changes nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ControlNetConditioningEmbedding(nn.Module):
    """Shrink a picture (B, channels, H, W) to features (B, width, H/f, W/f), f = 2 ** (len(widths) - 1), usually 8."""

    def __init__(self, width: int, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for narrow, wide in pairwise(widths):
            self.blocks.append(nn.Conv2d(narrow, narrow, 3, padding=1))
            self.blocks.append(nn.Conv2d(narrow, wide, 3, padding=1, stride=2))
        self.conv_out = zeroed(nn.Conv2d(widths[-1], width, 3, padding=1))

    def forward(self, conditioning: Tensor) -> Tensor:
        x = F.silu(self.conv_in(conditioning))
        for block in self.blocks:
            x = F.silu(block(x))
        return self.conv_out(x)


class ControlPicture:
    """A control picture that a network is shown again and again, and what the network made of it.

    For the steps of one run, during which the network's weights stay. Nothing is kept while gradients are recorded.

    Attributes:
        pixels: (B or 1, channels, H, W).
        features: of the network that saw it first, None before.
    """

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels
        self.features: Tensor | None = None


class ControlNetModel(EncoderMixin, ModelMixin):
    """Turns a noisy sample and a control picture into residuals for a `UNet2DConditionModel`.

    The options are those of published configurations. `controlnet_conditioning_channel_order` is the order in which
    the weights expect colours; `controlnet_cond` is always RGB. With `global_pool_conditions` every residual is
    averaged over its positions (the shuffle ControlNet). Source: Zhang & Agrawala 2023, arXiv 2302.05543.

    Raises:
        ConfigError: a block name or embedding type is unknown, lists have different lengths, or options contradict.
    """

    _supports_gradient_checkpointing = True
    fixed = {**USUAL, "up_block_types": None, "reverse_transformer_layers_per_block": None}

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        conditioning_channels: int = 3,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        down_block_types: tuple[str, ...] = (
            "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D",
        ),
        mid_block_type: str | None = "UNetMidBlock2DCrossAttn",
        only_cross_attention: bool | tuple[bool, ...] = False,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int | tuple[int, ...] = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        act_fn: str = "silu",
        norm_num_groups: int | None = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int | tuple[int, ...] = 1280,
        transformer_layers_per_block: int | tuple[int, ...] | tuple[tuple, ...] = 1,
        encoder_hid_dim: int | None = None,
        encoder_hid_dim_type: str | None = None,
        attention_head_dim: int | tuple[int, ...] = 8,
        num_attention_heads: int | tuple[int, ...] | None = None,
        use_linear_projection: bool = False,
        class_embed_type: str | None = None,
        addition_embed_type: str | None = None,
        addition_time_embed_dim: int | None = None,
        num_class_embeds: int | None = None,
        upcast_attention: bool = False,
        resnet_time_scale_shift: str = "default",
        projection_class_embeddings_input_dim: int | None = None,
        controlnet_conditioning_channel_order: str = "rgb",
        conditioning_embedding_out_channels: tuple[int, ...] | None = EMBEDDING_WIDTHS,
        global_pool_conditions: bool = False,
        addition_embed_type_num_heads: int = 64,
    ) -> None:  # fmt: skip
        super().__init__()
        order, widths = controlnet_conditioning_channel_order, conditioning_embedding_out_channels
        if order not in CHANNEL_ORDERS:
            hint = did_you_mean(str(order), CHANNEL_ORDERS)
            raise ConfigError(f"controlnet_conditioning_channel_order is {order!r}{hint}")
        if not widths:
            raise ConfigError(
                "conditioning_embedding_out_channels is empty; published ControlNets have 16, 32, 96, 256"
            )
        self.build_encoder()
        first, last = block_out_channels[0], block_out_channels[-1]
        self.controlnet_cond_embedding = ControlNetConditioningEmbedding(first, conditioning_channels, widths)
        kept = [first, *(width for block in self.down_blocks for width in block.kept_channels)]
        self.controlnet_down_blocks = nn.ModuleList(zeroed(nn.Conv2d(width, width, 1)) for width in kept)
        self.controlnet_mid_block = zeroed(nn.Conv2d(last, last, 1))

    @classmethod
    def from_unet(
        cls,
        unet: Any,
        controlnet_conditioning_channel_order: str = "rgb",
        conditioning_embedding_out_channels: tuple[int, ...] | None = EMBEDDING_WIDTHS,
        load_weights_from_unet: bool = True,
        conditioning_channels: int = 3,
    ) -> ControlNetModel:
        """Start a ControlNet from a `UNet2DConditionModel`: the same first half, with the same weights in float32.

        Args:
            unet: the model to be controlled; it is not changed and no memory is shared.
            controlnet_conditioning_channel_order: "rgb" or "bgr".
            conditioning_embedding_out_channels: widths of the layers that shrink the control picture; every width
                after the first halves it once.
            load_weights_from_unet: False keeps fresh random weights.
            conditioning_channels: channels of the control picture.

        The UNet's dropout is not taken over: a ControlNet has no such option. Raises ConfigError when the UNet has
        another option that a ControlNet's configuration cannot express.
        """
        names = cls.__init__.__wrapped__.__annotations__  # type: ignore[attr-defined]
        given = {name: unet.config[name] for name in names if name in unet.config}
        foreign = {
            name: unet.config[name]
            for name, usual in USUAL.items()
            if name != "dropout" and (unet.config.get(name) or usual) != usual
        }
        if foreign:
            raise ConfigError(
                f"this UNet has {foreign}, which a ControlNet's configuration cannot express; start from a UNet "
                "with the usual values, for a distilled model from the one it was distilled from"
            )
        controlnet: ControlNetModel = cls(
            **{
                **given,
                "controlnet_conditioning_channel_order": controlnet_conditioning_channel_order,
                "conditioning_embedding_out_channels": conditioning_embedding_out_channels,
                "conditioning_channels": conditioning_channels,
            }
        )
        if load_weights_from_unet:
            wanted = controlnet.state_dict()
            shared = {name: value for name, value in unet.state_dict().items() if name in wanted}
            missing = [n for n in wanted if n not in shared and not n.startswith("controlnet_")]
            if missing:
                raise ConfigError(
                    f"the UNet holds no {missing[0]!r} and {len(missing) - 1} more of its usual weights; if an adapter "
                    "renamed them, remove it first"
                )
            controlnet.load_state_dict(shared, strict=False)
        return controlnet

    @takes_adapter_scale
    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None,
        controlnet_cond: Tensor | ControlPicture,
        conditioning_scale: float | Tensor = 1.0,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guess_mode: bool = False,
        return_dict: bool = True,
    ) -> ControlNetOutput | tuple[tuple[Tensor, ...], Tensor]:
        """Compute residuals from a noisy sample (B, in_channels, H, W) at `timestep` and a control picture.

        Args:
            timestep, encoder_hidden_states, class_labels, timestep_cond, attention_mask, added_cond_kwargs,
                cross_attention_kwargs: as for `UNet2DConditionModel`.
            controlnet_cond: control picture (B or 1, conditioning_channels, 8H, 8W), RGB in [0, 1]; a `ControlPicture`
                is read once.
            conditioning_scale: factor for all residuals; a compiled network takes another number as a tensor () without
                compiling anew.
            guess_mode: weaken the residuals of early layers, from 0.1 for the first to 1 for the middle in equal
                ratios, so that the picture alone can guide. Has no effect with `global_pool_conditions`.

        Raises:
            InputError: a shape does not fit the configuration or the sample, or a needed input is missing.
        """
        picture = controlnet_cond if isinstance(controlnet_cond, ControlPicture) else ControlPicture(controlnet_cond)
        self._check_condition(sample, picture.pixels)
        sample, given = self.prepare(
            sample,
            timestep,
            encoder_hidden_states,
            class_labels=class_labels,
            timestep_cond=timestep_cond,
            attention_mask=attention_mask,
            encoder_attention_mask=None,
            cross_attention_kwargs=cross_attention_kwargs,
            added_cond_kwargs=added_cond_kwargs,
        )
        x, kept = self.go_down(self.conv_in(sample) + self._features(picture, sample), given)
        x = self.middle(x, given)
        maps = [layer(value) for layer, value in zip(self.controlnet_down_blocks, kept, strict=True)]
        maps.append(self.controlnet_mid_block(x))
        pool = self.config.global_pool_conditions
        scales = guess_scales(len(maps)) if guess_mode and not pool else [1.0] * len(maps)
        maps = [times(value, scale * conditioning_scale) for value, scale in zip(maps, scales, strict=True)]
        if pool:
            maps = [value.mean(dim=(2, 3), keepdim=True) for value in maps]
        down, mid = tuple(maps[:-1]), maps[-1]
        return ControlNetOutput(down_block_res_samples=down, mid_block_res_sample=mid) if return_dict else (down, mid)

    def _check_condition(self, sample: Tensor, condition: Tensor) -> None:
        check_maps("controlnet_cond", condition, "conditioning_channels", self.config.conditioning_channels)
        if condition.shape[0] != 1 and condition.shape[0] != sample.shape[0]:
            raise InputError(f"controlnet_cond has {condition.shape[0]} pictures for a batch of {sample.shape[0]}")

    def _features(self, picture: ControlPicture, sample: Tensor) -> Tensor:
        """Return the control picture as features of the sample's height and width."""
        features, condition = picture.features, picture.pixels
        if features is None:
            bgr = self.config.controlnet_conditioning_channel_order == "bgr"
            features = self.controlnet_cond_embedding(condition.flip(1) if bgr else condition)
            if not torch.is_grad_enabled():
                picture.features = features
        if features.shape[-2:] != sample.shape[-2:]:
            factor = 2 ** (len(self.config.conditioning_embedding_out_channels) - 1)
            raise InputError(
                f"controlnet_cond is {tuple(condition.shape[-2:])} and becomes {tuple(features.shape[-2:])} positions, "
                f"but sample has {tuple(sample.shape[-2:])}; the control picture needs {factor} times the sample's "
                "height and width"
            )
        return features


def times(value: Tensor, factor: float | Tensor) -> Tensor:
    """Return a map times a factor, in the map's type; a factor in a wider type is not rounded to it."""
    return (value.to(factor.dtype) * factor).to(value.dtype) if isinstance(factor, Tensor) else value * factor


def guess_scales(count: int) -> list[float]:
    """Return the factors of guess mode: `count` numbers in equal ratios from 0.1 to 1."""
    return [GUESS_FIRST ** (1 - i / (count - 1)) for i in range(count)]
