"""Stable Diffusion 1 and 2: prompts to conditioning, pictures to latents, and the one call of the network.

Rombach et al. 2022. Pipelines of every task compose these: `encode` makes the conditioning, `LatentSpace` knows the
autoencoder, `Denoiser` calls the network for the branches that a guidance asks for, after the attachments of the task
(a ControlNet, extra channels) have edited the call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError, InputError, NonFiniteError
from ..core.logging import get_logger
from ..core.rng import Generators, normal
from ..diffusion.guidance import Branches, Guidance, guided
from ..diffusion.table import Step
from ..nn.embedding import sinusoidal
from .common import dtype_of, option, sample_of, timestep_on

logger = get_logger(__name__)
_tokenizing = threading.Lock()
"""Tokenizers keep padding and truncation as state between a call and its work, so threads take turns."""


# Prompts -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conditioning:
    """What the network is told about a batch: `text` (batch, tokens, width)."""

    text: Tensor

    def repeat(self, count: int) -> Conditioning:
        """Return every row `count` times in a row."""
        return Conditioning(self.text.repeat_interleave(count, dim=0))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditioning:
        """Return it on a device and in a type."""
        return Conditioning(self.text.to(device=device, dtype=dtype))

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Return several batches as one."""
        return parts[0] if len(parts) == 1 else Conditioning(torch.cat([part.text for part in parts]))


def expand_words(text: str, tokenizer: Any) -> str:
    """Write out learned words that span several tokens: `<cat>` becomes `<cat> <cat>_1 <cat>_2` (Gal et al. 2022).

    A tokenizer holds such a word as the added tokens `word`, `word_1`, `word_2`, ...
    """
    added = getattr(tokenizer, "added_tokens_encoder", None) or {}
    for word in [w for w in added if f"{w}_1" in added and w in text]:
        count = 1
        while f"{word}_{count}" in added:
            count += 1
        text = text.replace(word, " ".join([word, *(f"{word}_{k}" for k in range(1, count))]))
    return text


def tokenize(tokenizer: Any, texts: Sequence[str], *, length: int | None = None) -> Any:
    """Return token ids and mask of `texts`, padded to `length` tokens (the encoder's limit when None).

    Words beyond the limit are dropped; a warning names them.
    """
    limit = length or tokenizer.model_max_length
    texts = [expand_words(text, tokenizer) for text in texts]
    with _tokenizing:
        tokens = tokenizer(texts, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
        whole = tokenizer(texts, padding=False, truncation=False).input_ids
    for text, ids in zip(texts, whole, strict=True):
        if len(ids) > limit:
            dropped = tokenizer.decode(ids[limit - 1 : -1]).strip()
            logger.warning(
                "The prompt %r has %d tokens, the encoder takes %d; dropped: %r", text, len(ids), limit, dropped
            )
    return tokens


def encode_texts(
    encoder: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    device: torch.device | str,
    length: int | None = None,
    clip_skip: int | None = None,
) -> Tensor:
    """Return the text encoder's hidden states (texts, tokens, width).

    Args:
        clip_skip: leave out that many last layers; the final normalisation is applied all the same.

    Raises:
        NonFiniteError: when the encoder returns NaN or infinity.
    """
    tokens = tokenize(tokenizer, texts, length=length)
    mask = tokens.attention_mask.to(device) if getattr(encoder.config, "use_attention_mask", False) else None
    ids = tokens.input_ids.to(device)
    if clip_skip is None:
        hidden = encoder(ids, attention_mask=mask)[0]
    else:
        layers = encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        if not 0 <= clip_skip < len(layers) - 1:
            raise InputError(f"`clip_skip` is {clip_skip}; this text encoder has {len(layers) - 1} layers.")
        hidden = getattr(encoder, "text_model", encoder).final_layer_norm(layers[-1 - clip_skip])
    if not torch.isfinite(hidden).all():
        raise NonFiniteError(
            "The text encoder returned NaN or infinity; its weights are damaged.", module="text_encoder"
        )
    return hidden


def encode(
    encoder: Any,
    tokenizer: Any,
    prompt: str | Sequence[str] | None,
    *,
    device: torch.device | str,
    guided: bool,
    negative_prompt: str | Sequence[str] | None = None,
    prompt_embeds: Tensor | None = None,
    negative_prompt_embeds: Tensor | None = None,
    per_prompt: int = 1,
    clip_skip: int | None = None,
) -> tuple[Conditioning, Conditioning | None]:
    """Return the conditioning of prompts and of negative prompts, each row `per_prompt` times.

    Args:
        guided: whether negative prompts are needed; a missing one is the empty text.

    Raises:
        ConfigError: when there is something to encode and no text encoder or tokenizer.
    """

    def embed(texts: str | Sequence[str], count: int, length: int | None, skip: int | None) -> Tensor:
        if encoder is None or tokenizer is None:
            missing = "text_encoder" if encoder is None else "tokenizer"
            raise ConfigError(f"This pipeline has no {missing}; pass `prompt_embeds` (and `negative_prompt_embeds`).")
        texts = [texts] * count if isinstance(texts, str) else list(texts)
        return encode_texts(encoder, tokenizer, texts, device=device, length=length, clip_skip=skip)

    if prompt_embeds is None:
        count = 1 if isinstance(prompt, str) else len(prompt or ())
        prompt_embeds = embed(prompt or "", count, None, clip_skip)
    dtype = prompt_embeds.dtype if encoder is None else dtype_of(encoder, prompt_embeds.dtype)
    positive = Conditioning(prompt_embeds).to(device, dtype).repeat(per_prompt)
    if not guided:
        return positive, None
    if negative_prompt_embeds is None:
        count, length = prompt_embeds.shape[:2]
        negative_prompt_embeds = embed(negative_prompt or "", count, length, None)
    return positive, Conditioning(negative_prompt_embeds).to(device, dtype).repeat(per_prompt)


# Latents -------------------------------------------------------------------------------------------------------------


def scale_factor(vae: Any) -> int:
    """Return how many pixels a latent spans per side, 8 without an autoencoder."""
    stages = option(vae, "block_out_channels") if vae is not None else None
    return 2 ** (len(stages) - 1) if stages else 8


def default_size(unet: Any, vae: Any) -> tuple[int, int]:
    """Return the height and width in pixels that the model was trained for.

    Raises:
        InputError: when neither network says.
    """
    for module, factor in ((unet, scale_factor(vae)), (vae, 1)):
        size = option(module, "sample_size") if module is not None else None
        if size is not None:
            height, width = (size, size) if isinstance(size, int) else size
            return height * factor, width * factor
    raise InputError("The networks do not name their size; pass `height` and `width`.")


@dataclass(frozen=True)
class LatentSpace:
    """Where the latents of one call live.

    Attributes:
        vae: the autoencoder, or None when nothing will be decoded.
        channels: channels of a latent.
        height, width: of the picture in pixels.
    """

    vae: Any
    channels: int
    height: int
    width: int

    def shape(self, images: int) -> tuple[int, int, int, int]:
        """Return the shape of the latents of `images` pictures."""
        factor = scale_factor(self.vae)
        return images, self.channels, self.height // factor, self.width // factor

    def noise(self, images: int, *, rng: Generators, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """Draw the starting noise of `images` pictures."""
        return normal(self.shape(images), generator=rng, device=device, dtype=dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the pictures (batch, channels, height, width) in [-1, 1] of latents.

        Raises:
            NonFiniteError: instead of a black picture.
        """
        latents = latents / option(self.vae, "scaling_factor", 0.18215)
        pictures = sample_of(self.vae.decode(latents.to(dtype_of(self.vae, latents.dtype))))
        if not torch.isfinite(pictures).all():
            raise NonFiniteError(
                f"The vae returned NaN or infinity in {pictures.dtype}; load it in float32 or bfloat16, or check it.",
                module="vae",
            )
        return pictures


# The network ---------------------------------------------------------------------------------------------------------


@dataclass
class ModelCall:
    """One call of the UNet for a batch of branches, open to attachments until it is made.

    Attributes:
        sample: (branches * batch, channels, height, width), scaled as the network wants it.
        timestep: scalar tensor.
        cond: the conditioning of all rows.
        options: further keywords of the network, such as residuals, which attachments accumulate.
    """

    sample: Tensor
    timestep: Tensor
    cond: Conditioning
    options: dict[str, Any] = field(default_factory=dict)


Attachment = Callable[[ModelCall, Step, Branches], None]
"""Edits a call of the network before it is made: adds channels, adds residuals to those that are there."""


class Denoiser:
    """The UNet's prediction for (sample, step), combined by a guidance.

    It belongs to one run: callbacks may replace its conditioning and guidance between steps.

    Args:
        unet: called as `unet(sample, timestep, encoder_hidden_states=..., **options)` and nothing more.
        conditions: the conditioning of every branch that the guidance may ask for, "positive" first.
        guidance: which branches a step needs; see `diffusion.guidance`.
        attach: attachments, applied in order.
        options: keywords of every call; None values are left out.
    """

    def __init__(
        self,
        unet: Any,
        conditions: Mapping[str, Conditioning | None],
        guidance: Guidance,
        *,
        attach: Sequence[Attachment] = (),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.unet = unet
        self.conditions = {name: cond for name, cond in conditions.items() if cond is not None}
        self.guidance = guidance
        self.attach = tuple(attach)
        self.options = {name: value for name, value in (options or {}).items() if value is not None}

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """Return the guided prediction for a sample (batch, channels, height, width)."""
        return guided(self.guidance, x, step, lambda branches: self.predict(x, step, branches))

    def predict(self, x: Tensor, step: Step, branches: Branches) -> tuple[Tensor, ...]:
        """Return one prediction per branch: a single batch, unless a branch patches the network."""
        if len(branches) > 1 and any(branch.patch for branch in branches):
            return tuple(self.predict(x, step, (branch,))[0] for branch in branches)
        samples = torch.cat([x if branch.sample is None else branch.sample for branch in branches])
        if step.in_scale != 1.0:
            samples = samples * step.in_scale
        dtype = dtype_of(self.unet, x.dtype)
        cond = Conditioning.cat([self.condition(branch.condition) for branch in branches]).to(dtype=dtype)
        call = ModelCall(samples.to(dtype), timestep_on(step.timestep, x.device), cond, dict(self.options))
        for attach in self.attach:
            attach(call, step, branches)
        with branches[0].patch() if branches[0].patch else nullcontext():
            output = self.unet(call.sample, call.timestep, encoder_hidden_states=call.cond.text, **call.options)
        return sample_of(output).to(x.dtype).chunk(len(branches))

    def condition(self, name: str) -> Conditioning:
        """Return a branch's conditioning.

        Raises:
            ConfigError: when this run has none under that name.
        """
        if name not in self.conditions:
            raise ConfigError(
                f"The guidance asks for the {name} prompt, which this run did not encode; start with guidance above 1."
            )
        return self.conditions[name]

    def tensors(self) -> dict[str, Tensor | None]:
        """Return what callbacks may see; with guidance `prompt_embeds` holds negative rows, then positive ones."""
        positive, negative = self.conditions["positive"], self.conditions.get("negative")
        both = [cond for cond in (negative, positive) if cond is not None]
        return {
            "prompt_embeds": Conditioning.cat(both).text,
            "negative_prompt_embeds": None if negative is None else negative.text,
        }

    def replace(self, *, prompt_embeds: Tensor | None = None, negative_prompt_embeds: Tensor | None = None) -> None:
        """Go on with embeddings that a callback returned.

        Args:
            prompt_embeds: positive rows, or negative and positive rows as `tensors` gives them; one row serves all.

        Raises:
            InputError: for another number of rows.
        """
        rows = len(self.conditions["positive"].text)
        if prompt_embeds is not None:
            count = len(prompt_embeds)
            if count not in (1, rows, 2 * rows):
                raise InputError(f"The callback returned {count} rows of `prompt_embeds` for a batch of {rows}.")
            if count == 2 * rows:
                negative, prompt_embeds = prompt_embeds.chunk(2)
                self.conditions["negative"] = Conditioning(negative)
            self.conditions["positive"] = Conditioning(prompt_embeds.expand(rows, -1, -1))
        if negative_prompt_embeds is not None:
            self.conditions["negative"] = Conditioning(negative_prompt_embeds.expand(rows, -1, -1))


def guidance_embedding(unet: Any, scale: float, images: int, *, device: torch.device | str) -> Tensor | None:
    """Return the embedded guidance scale (images, width) for a network distilled to take it, else None.

    Source: Meng et al. 2023; the embedding is that of a timestep 1000 (scale - 1).
    """
    width = option(unet, "time_cond_proj_dim")
    if width is None:
        return None
    scales = torch.full((images,), scale - 1.0, device=device)
    return sinusoidal(scales, width, scale=1000.0).to(dtype_of(unet, torch.float32))
