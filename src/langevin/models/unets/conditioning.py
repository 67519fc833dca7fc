"""How time, labels, sizes, pooled text and images enter a conditional UNet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.config import Config
from ...core.errors import ConfigError, InputError, did_you_mean
from ...nn.activation import activation
from ...nn.embedding import (
    GaussianFourierProjection,
    ImageHintTimeEmbedding,
    ImageProjection,
    ImageTimeEmbedding,
    TextImageProjection,
    TextImageTimeEmbedding,
    TextTimeEmbedding,
    TimestepEmbedding,
    Timesteps,
)
from ...nn.image_projection import MultiIPAdapterImageProjection

CLASS_EMBEDDINGS = ("timestep", "identity", "projection", "simple_projection")
ADDITION_EMBEDDINGS = ("text", "text_image", "text_time", "image", "image_hint")
ENCODER_PROJECTIONS = ("text_proj", "text_image_proj", "image_proj", "ip_image_proj")
PICTURES = "ip_image_proj"
"""What some configurations call the projection of an IP-Adapter, which is attached later; the network has none."""
TIME_EMBEDDINGS = ("positional", "fourier")


def need(config: Config, option: str, because: str) -> Any:
    """Return a configuration value that must not be None here."""
    value = config[option]
    if value is None:
        raise ConfigError(f"{because} needs {option}")
    return value


def time_projection(config: Config) -> tuple[nn.Module, int, int]:
    """Return the module that embeds timesteps, the width it gives and the width of the time embedding."""
    kind, first = config.time_embedding_type, config.block_out_channels[0]
    if kind == "positional":
        return (
            Timesteps(first, config.flip_sin_to_cos, config.freq_shift),
            first,
            config.time_embedding_dim or first * 4,
        )
    if kind == "fourier":
        width = config.time_embedding_dim or first * 2
        if width % 2:
            raise ConfigError(f"time_embedding_dim is {width}; time_embedding_type='fourier' needs an even number")
        project = GaussianFourierProjection(width // 2, log=False, flip_sin_to_cos=config.flip_sin_to_cos)
        return project, width, width
    raise ConfigError(f"time_embedding_type is {kind!r}{did_you_mean(str(kind), TIME_EMBEDDINGS)}")


def class_embedding(config: Config, projected: int, width: int) -> nn.Module | None:
    """Return the module that turns class labels into a vector of the time embedding's width."""
    kind = config.class_embed_type
    if kind is None:
        return None if config.num_class_embeds is None else nn.Embedding(config.num_class_embeds, width)
    if kind == "timestep":
        return TimestepEmbedding(projected, width, act_fn=config.act_fn)
    if kind == "identity":
        return nn.Identity()
    if kind not in CLASS_EMBEDDINGS:
        raise ConfigError(f"class_embed_type is {kind!r}{did_you_mean(str(kind), CLASS_EMBEDDINGS)}")
    given = need(config, "projection_class_embeddings_input_dim", f"class_embed_type={kind!r}")
    return TimestepEmbedding(given, width) if kind == "projection" else nn.Linear(given, width)


def encoder_projection(config: Config) -> nn.Module | None:
    """Return the module that brings the encoder's output to the width of the cross-attention."""
    kind, given = config.encoder_hid_dim_type, config.encoder_hid_dim
    kind = "text_proj" if kind is None and given is not None else kind
    if kind is None or kind == PICTURES:
        return None
    given = need(config, "encoder_hid_dim", f"encoder_hid_dim_type={kind!r}")
    wanted = config.cross_attention_dim
    if not isinstance(wanted, int):
        raise ConfigError(f"encoder_hid_dim_type={kind!r} needs one cross_attention_dim for all blocks, not {wanted}")
    if kind == "text_proj":
        return nn.Linear(given, wanted)
    if kind == "text_image_proj":
        return TextImageProjection(given, wanted, wanted)
    if kind == "image_proj":
        return ImageProjection(given, wanted)
    raise ConfigError(f"encoder_hid_dim_type is {kind!r}{did_you_mean(str(kind), ENCODER_PROJECTIONS)}")


def addition_embedding(config: Config, width: int) -> nn.Module | None:
    """Return the module whose vector is added to the time embedding."""
    kind = config.addition_embed_type
    if kind is None:
        return None
    if kind == "text":
        text = config.encoder_hid_dim or config.cross_attention_dim
        return TextTimeEmbedding(text, width, config.addition_embed_type_num_heads)
    if kind == "text_image":
        return TextImageTimeEmbedding(config.cross_attention_dim, config.cross_attention_dim, width)
    if kind == "text_time":
        given = need(config, "projection_class_embeddings_input_dim", "addition_embed_type='text_time'")
        return TimestepEmbedding(given, width)
    if kind in ("image", "image_hint"):
        given = need(config, "encoder_hid_dim", f"addition_embed_type={kind!r}")
        return ImageTimeEmbedding(given, width) if kind == "image" else ImageHintTimeEmbedding(given, width)
    raise ConfigError(f"addition_embed_type is {kind!r}{did_you_mean(str(kind), ADDITION_EMBEDDINGS)}")


class LabelsMixin:
    """Applies the class embedding of a UNet."""

    config: Config
    time_proj: nn.Module
    class_embedding: nn.Module | None

    def get_class_embed(self, dtype: torch.dtype, class_labels: Tensor | None) -> Tensor | None:
        """Embed class labels: integers, levels or vectors, as `class_embed_type` says.

        Raises:
            InputError: labels are missing, or given to a model that has no use for them.
        """
        if self.class_embedding is None:
            if class_labels is not None:
                raise InputError("class_labels were given, but this model has no class embedding")
            return None
        if class_labels is None:
            raise InputError("this model has a class embedding and needs class_labels")
        if self.config.class_embed_type == "timestep":
            class_labels = self.time_proj(class_labels).to(dtype)
        return self.class_embedding(class_labels).to(dtype)


class ConditioningMixin(LabelsMixin):
    """Builds and applies the embeddings of a conditional UNet; its modules sit on the model under published names.

    Attributes:
        fixed: options of a conditional UNet that this class does not have, and what they are in it.
    """

    fixed: ClassVar[Mapping[str, Any]] = {}

    @property
    def options(self) -> Config:
        """Every option of a conditional UNet: the configuration, and what is fixed."""
        return Config({**self.config, **self.fixed})

    def build_conditioning(self) -> int:
        """Create the embedding modules; return the width of the vector that residual blocks receive."""
        config = self.options
        self.time_proj, projected, width = time_projection(config)
        self.time_embedding = TimestepEmbedding(
            projected,
            width,
            act_fn=config.act_fn,
            post_act_fn=config.timestep_post_act,
            cond_proj_dim=config.time_cond_proj_dim,
        )
        self.encoder_hid_proj = encoder_projection(config)
        self.class_embedding = class_embedding(config, projected, width)
        if config.addition_embed_type == "text_time":
            sizes = need(config, "addition_time_embed_dim", "addition_embed_type='text_time'")
            self.add_time_proj = Timesteps(sizes, config.flip_sin_to_cos, config.freq_shift)
        self.add_embedding = addition_embedding(config, width)
        self.time_embed_act = activation(config.time_embedding_act_fn) if config.time_embedding_act_fn else None
        self.class_embeddings_concat = config.class_embeddings_concat
        return width * 2 if self.class_embeddings_concat else width

    def get_time_embed(self, timesteps: Tensor, dtype: torch.dtype, timestep_cond: Tensor | None = None) -> Tensor:
        """Embed timesteps (B,) and an optional guidance embedding (B, time_cond_proj_dim)."""
        if timestep_cond is not None and self.time_embedding.cond_proj is None:
            raise InputError("timestep_cond was given, but this model has no time_cond_proj_dim to receive it")
        return self.time_embedding(self.time_proj(timesteps).to(dtype), timestep_cond)

    def get_aug_embed(
        self, dtype: torch.dtype, encoder_hidden_states: Tensor | None, given: dict[str, Tensor] | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the vector to add to the time embedding and channels to append to the sample, either may be None."""
        kind = self.config.addition_embed_type
        if kind is None:
            return None, None
        if kind == "text":
            return self.add_embedding(encoder_hidden_states), None
        if kind == "text_image":
            text = encoder_hidden_states if not given or "text_embeds" not in given else given["text_embeds"]
            return self.add_embedding(text, self.added(given, "image_embeds")), None
        if kind == "text_time":
            sizes = self.added(given, "time_ids")
            text = self.added(given, "text_embeds")
            embedded = self.add_time_proj(sizes.flatten()).reshape(text.shape[0], -1)
            joined = torch.cat([text, embedded.to(text.dtype)], dim=-1)
            wanted = self.config.projection_class_embeddings_input_dim
            if joined.shape[-1] != wanted:
                raise InputError(
                    f"time_ids {tuple(sizes.shape)} and text_embeds {tuple(text.shape)} make a vector of "
                    f"{joined.shape[-1]} numbers, but this model was built for {wanted}"
                )
            return self.add_embedding(joined.to(dtype)), None
        if kind == "image":
            return self.add_embedding(self.added(given, "image_embeds")), None
        return self.add_embedding(self.added(given, "image_embeds"), self.added(given, "hint"))

    def process_encoder_hidden_states(
        self, encoder_hidden_states: Tensor | None, given: dict[str, Tensor] | None
    ) -> Tensor | None:
        """Bring the encoder's output (B, L, C) to what the cross-attention reads."""
        if self.encoder_hid_proj is None or isinstance(self.encoder_hid_proj, MultiIPAdapterImageProjection):
            return encoder_hidden_states
        kind = self.config.encoder_hid_dim_type or "text_proj"
        if kind == "image_proj":
            return self.encoder_hid_proj(self.added(given, "image_embeds"))
        if encoder_hidden_states is None:
            raise InputError("encoder_hidden_states is None, but this model reads a text encoder's output")
        self.check_width(encoder_hidden_states, self.config.encoder_hid_dim, "encoder_hid_dim")
        if kind == "text_image_proj":
            return self.encoder_hid_proj(encoder_hidden_states, self.added(given, "image_embeds"))
        return self.encoder_hid_proj(encoder_hidden_states)

    def picture_tokens(self, given: dict[str, Any] | None, batch: int) -> list[Tensor] | None:
        """Return the tokens of picture prompts, (B, pictures, tokens, width) per IP-Adapter; None without any.

        Raises:
            InputError: for another number of rows than the batch has.
        """
        pictures = (given or {}).get("image_embeds")
        if pictures is None or not isinstance(self.encoder_hid_proj, MultiIPAdapterImageProjection):
            return None
        tokens = self.encoder_hid_proj(pictures)
        for i, rows in enumerate(tokens):
            if len(rows) != batch:
                raise InputError(f"image_embeds[{i}] has {len(rows)} rows for a batch of {batch} samples")
        return tokens

    @staticmethod
    def check_width(encoder_hidden_states: Tensor, width: int, option: str) -> None:
        """Raise InputError unless the context is (B, L, width)."""
        if encoder_hidden_states.dim() != 3 or encoder_hidden_states.shape[-1] != width:
            raise InputError(
                f"encoder_hidden_states has shape {tuple(encoder_hidden_states.shape)}, but this model's "
                f"{option} asks for (batch, tokens, {width}); was it made by another model's text encoder?"
            )

    def added(self, given: dict[str, Tensor] | None, name: str) -> Tensor:
        """Return an entry of `added_cond_kwargs`, or raise InputError."""
        if given is None or name not in given:
            kinds = f"addition_embed_type={self.config.addition_embed_type!r}"
            raise InputError(
                f"added_cond_kwargs has no {name!r}, which this model needs ({kinds}, "
                f"encoder_hid_dim_type={self.config.encoder_hid_dim_type!r}); it holds {sorted(given or ())}"
            )
        return given[name]
