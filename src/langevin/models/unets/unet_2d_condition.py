"""The conditional UNet of latent and pixel diffusion models (Ronneberger 2015; Ho et al. 2020; Rombach et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ...core.config import register_to_config
from ...core.errors import ConfigError, InputError, check_count
from ...core.outputs import BaseOutput
from ...nn.activation import activation
from ...nn.norm import activated
from ...nn.transformer import BasicTransformerBlock
from ..adapting import takes_adapter_scale
from ..base import ModelMixin
from .blocks import Given, UpBlock
from .encoder import EncoderMixin
from .k_blocks import KUpBlock

if TYPE_CHECKING:
    from ...nn.deep_cache import DeepFeatures


@dataclass
class UNet2DConditionOutput(BaseOutput):
    """Prediction of the UNet: `sample` (B, out_channels, H, W)."""

    sample: Tensor


class UNet2DConditionModel(EncoderMixin, ModelMixin):
    """Predicts noise (or the sample, or velocity) from a noisy sample, a time and a context.

    The options are those of published configurations. `attention_head_dim` is the *number* of heads in transformer
    blocks (CrossAttn...) and the width of a head in the others, as those configurations have it.

    Raises:
        ConfigError: a block name or embedding type is unknown, lists have different lengths, or options contradict.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        center_input_sample: bool = False,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        down_block_types: tuple[str, ...] = (
            "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D",
        ),
        mid_block_type: str | None = "UNetMidBlock2DCrossAttn",
        up_block_types: tuple[str, ...] = (
            "UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D",
        ),
        only_cross_attention: bool | tuple[bool, ...] = False,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int | tuple[int, ...] = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        dropout: float = 0.0,
        act_fn: str = "silu",
        norm_num_groups: int | None = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int | tuple[int, ...] = 1280,
        transformer_layers_per_block: int | tuple[int, ...] | tuple[tuple, ...] = 1,
        reverse_transformer_layers_per_block: tuple[tuple[int, ...], ...] | None = None,
        encoder_hid_dim: int | None = None,
        encoder_hid_dim_type: str | None = None,
        attention_head_dim: int | tuple[int, ...] = 8,
        num_attention_heads: int | tuple[int, ...] | None = None,
        dual_cross_attention: bool = False,
        use_linear_projection: bool = False,
        class_embed_type: str | None = None,
        addition_embed_type: str | None = None,
        addition_time_embed_dim: int | None = None,
        num_class_embeds: int | None = None,
        upcast_attention: bool = False,
        resnet_time_scale_shift: str = "default",
        resnet_skip_time_act: bool = False,
        resnet_out_scale_factor: float = 1.0,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        time_embedding_act_fn: str | None = None,
        timestep_post_act: str | None = None,
        time_cond_proj_dim: int | None = None,
        conv_in_kernel: int = 3,
        conv_out_kernel: int = 3,
        projection_class_embeddings_input_dim: int | None = None,
        attention_type: str = "default",
        class_embeddings_concat: bool = False,
        mid_block_only_cross_attention: bool | None = None,
        cross_attention_norm: str | None = None,
        addition_embed_type_num_heads: int = 64,
    ) -> None:  # fmt: skip
        super().__init__()
        self.sample_size = sample_size
        self._check_config()
        first = block_out_channels[0]
        layout, common = self.build_encoder()
        self.up_blocks = nn.ModuleList(
            (KUpBlock if level.kind.adaptive else UpBlock)(level, common) for level in layout.up
        )
        self.num_upsamplers = sum(level.resample for level in layout.up)
        self.conv_norm_out = self.conv_act = None
        if norm_num_groups is not None:
            self.conv_norm_out = nn.GroupNorm(norm_num_groups, first, eps=norm_eps)
            self.conv_act = activation(act_fn)
        self.conv_out = nn.Conv2d(first, out_channels, conv_out_kernel, padding=(conv_out_kernel - 1) // 2)

    def _check_config(self) -> None:
        config = self.config
        if config.num_attention_heads is not None:
            raise ConfigError(
                "num_attention_heads is not read by this model: published configurations give the number of heads "
                "as attention_head_dim; set attention_head_dim and leave num_attention_heads out"
            )
        if config.dual_cross_attention:
            raise ConfigError("dual_cross_attention=True is not supported; leave it False")
        if config.attention_type != "default":
            raise ConfigError(f"attention_type is {config.attention_type!r}; only 'default' is supported")

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """Weaken what was kept on the way down, and strengthen the backbone, in the first two blocks of the way up.

        FreeU (Si et al. 2023, 2309.11497) often gives more detail at no cost, and changes the picture. Its authors name
        b1=1.2, b2=1.4, s1=0.9, s2=0.2 for Stable Diffusion 1.5 and b1=1.1, b2=1.2, s1=0.6, s2=0.4 for SDXL.

        Args:
            s1, s2: factors of the low frequencies of what was kept, in the first and the second block.
            b1, b2: factors of half of the backbone's channels there.

        Raises:
            InputError: for a factor that is no number, or below 0.
            ConfigError: for a network whose first two blocks up are of other kinds.
        """
        from ...nn.freeu import FreeU

        blocks, made = list(self.up_blocks[:2]), [FreeU(b1, s1), FreeU(b2, s2)]
        if not all(isinstance(block, UpBlock) for block in blocks):
            raise ConfigError(f"FreeU is for up blocks that join two features; {type(blocks[0]).__name__} does not.")
        for block, freeu in zip(blocks, made, strict=False):
            block.freeu = freeu

    def disable_freeu(self) -> None:
        """Join features as they are again."""
        for block in self.up_blocks:
            block.__dict__.pop("freeu", None)

    def enable_token_merging(
        self, ratio: float = 0.5, max_downsample: int = 1, *, cross: bool = False, feed_forward: bool = False
    ) -> None:
        """Let self-attention work on fewer tokens (Bolya & Hoffman 2023, 2303.17604); it changes the picture.

        The larger the picture, the more it saves: attention grows with the square of the tokens.

        Args:
            ratio: share of the tokens that is merged, at most 0.75.
            max_downsample: do it where the feature map is at most that many times smaller than the sample.
            cross, feed_forward: do it for cross-attention and the feed-forward layers too, which costs detail.

        Raises:
            InputError: for a ratio that is none.
            ConfigError: when the network has no transformer at such a size.
        """
        from ...nn.merging import LAYERS, TokenMerging

        chosen = [LAYERS[0], *([LAYERS[1]] if cross else []), *([LAYERS[2]] if feed_forward else [])]
        merging, found = TokenMerging(ratio, tuple(chosen)), self._transformers()
        if not any(shrunk <= max_downsample for shrunk, _ in found):
            least = min((shrunk for shrunk, _ in found), default=None)
            raise ConfigError(f"This network has no transformer there; the first is at max_downsample={least}.")
        self.disable_token_merging()
        for shrunk, block in found:
            if shrunk <= max_downsample:
                block.merging = merging

    def disable_token_merging(self) -> None:
        """Let attention work on all tokens again."""
        for _, block in self._transformers():
            block.__dict__.pop("merging", None)

    @property
    def _up_layers(self) -> int:
        return sum(len(block.resnets) for block in self.up_blocks)

    def new_deep_features(self, layers: int = 2) -> DeepFeatures:
        """Return what `forward` keeps of a whole pass, and reuses in passes of the outermost layers (DeepCache).

        Give the same object to the passes of one batch at successive steps; setting its `kept` to None asks for a whole
        pass again.

        Args:
            layers: layers of the way up, counted from the output, that every pass computes.

        Raises:
            InputError: for a number of layers that leaves nothing out.
            ConfigError: for a network whose blocks join several levels at once.
        """
        from ...nn.deep_cache import DeepFeatures

        if not all(isinstance(block, UpBlock) for block in self.up_blocks):
            name = type(self.up_blocks[0]).__name__
            raise ConfigError(f"Deep features are kept between layers that join two features; {name} has none.")
        check_count("layers", layers)
        if layers >= self._up_layers:
            raise InputError(f"`layers` is {layers}; of the {self._up_layers} on the way up, leave at least one out.")
        return DeepFeatures(layers)

    def _transformers(self) -> list[tuple[int, BasicTransformerBlock]]:
        """Return how many times smaller than the sample its feature map is, and every transformer block."""
        found, shrunk = [], 1
        for stage in (*self.down_blocks, self.mid_block, *self.up_blocks):
            for module in stage.modules() if stage is not None else ():
                if isinstance(module, BasicTransformerBlock):
                    found.append((shrunk, module))
            shrunk *= 2 if getattr(stage, "downsamplers", None) is not None else 1
            shrunk //= 2 if getattr(stage, "upsamplers", None) is not None else 1
        return found

    @takes_adapter_scale
    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        down_block_additional_residuals: tuple[Tensor, ...] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        down_intrablock_additional_residuals: tuple[Tensor, ...] | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
        deep_features: DeepFeatures | None = None,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """Predict from a noisy sample (B, in_channels, H, W) at `timestep`.

        Args:
            timestep: a number, or a tensor of one or B values.
            encoder_hidden_states: context (B, tokens, width).
            class_labels: labels, noise levels or vectors, as `class_embed_type` says.
            timestep_cond: guidance embedding (B, time_cond_proj_dim).
            attention_mask: (B, positions), 1 = may be attended to.
            cross_attention_kwargs: further keywords for the attention processors; `scale` multiplies the weights of
                the active adapters.
            added_cond_kwargs: `text_embeds`, `time_ids`, `image_embeds`, `hint`, as `addition_embed_type` says.
            down_block_additional_residuals: added to the kept feature maps, one each (ControlNet).
            mid_block_additional_residual: added to the middle's features (ControlNet).
            down_intrablock_additional_residuals: added inside the blocks on the way down, one each (T2I adapter).
            encoder_attention_mask: (B, tokens), 1 = may be attended to; or already additive, (B, 1, tokens).
            deep_features: what to reuse of an earlier pass, or to keep of this one; see `new_deep_features`.

        Raises:
            InputError: a shape does not fit the configuration, or a needed input is missing.
        """
        sample, given = self.prepare(
            sample,
            timestep,
            encoder_hidden_states,
            class_labels=class_labels,
            timestep_cond=timestep_cond,
            attention_mask=attention_mask,
            encoder_attention_mask=encoder_attention_mask,
            cross_attention_kwargs=cross_attention_kwargs,
            added_cond_kwargs=added_cond_kwargs,
        )
        x = self.conv_in(2 * sample - 1.0 if self.config.center_input_sample else sample)
        maps = None if deep_features is None or deep_features.kept is None else deep_features.layers
        x, kept = self.go_down(x, given, down_intrablock_additional_residuals, maps)
        if maps is not None and down_block_additional_residuals is not None:
            down_block_additional_residuals = down_block_additional_residuals[:maps]
        kept = add_residuals(kept, down_block_additional_residuals, mid_block_additional_residual)
        if maps is None:
            x = self.middle(x, given, down_intrablock_additional_residuals)
            if mid_block_additional_residual is not None:
                x = x + mid_block_additional_residual
        x = self._go_up(x, kept, given, deep_features)
        if self.conv_norm_out is not None:
            x = activated(self.conv_norm_out, self.conv_act, x)
        x = self.conv_out(x)
        return UNet2DConditionOutput(sample=x) if return_dict else (x,)

    def _go_up(
        self, x: Tensor, kept: tuple[Tensor, ...], given: Given, deep_features: DeepFeatures | None = None
    ) -> Tensor:
        odd = any(size % 2**self.num_upsamplers for size in kept[0].shape[-2:])
        left = len(kept) if deep_features is None else self._up_layers
        for block in self.up_blocks:
            lower = max(left - len(block.resnets), 0)
            here = kept[lower:left]
            size = (kept[lower - 1].shape[-2], kept[lower - 1].shape[-1]) if odd and lower and here else None
            if deep_features is not None and lower < deep_features.layers <= left:
                x = deep_features.through(block, x, here, given, size, first=left - deep_features.layers)
            elif here:
                x = block(x, here, given, size)
            left = lower
        return x


def add_residuals(kept: tuple[Tensor, ...], extra: tuple[Tensor, ...] | None, mid: Tensor | None) -> tuple[Tensor, ...]:
    """Add a ControlNet's residuals to the kept feature maps.

    Raises:
        InputError: their number differs, or the middle's residual is missing.
    """
    if extra is None:
        return kept
    if len(extra) != len(kept):
        raise InputError(f"down_block_additional_residuals has {len(extra)} entries, this model keeps {len(kept)} maps")
    if mid is None:
        raise InputError(
            "down_block_additional_residuals came without mid_block_additional_residual; residuals of a T2I adapter "
            "go to down_intrablock_additional_residuals"
        )
    return tuple(a + b for a, b in zip(kept, extra, strict=True))
