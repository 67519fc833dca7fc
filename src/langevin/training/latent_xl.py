"""Training of Stable Diffusion XL: two text encoders, and the sizes that the network is told of every picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..families.common import option
from ..families.sdxl import Text, check_added, encode_ids, projected
from .data.examples import sizes_of
from .data.framing import Frame
from .denoising import Denoiser
from .latent import TextToImage
from .trainables import Trainable

ENCODERS = {"text_encoder": "ids", "text_encoder_2": "ids_2"}
"""Component -> the token ids in a batch that it reads."""


class TextToImageXL(TextToImage):
    """Trains parts of a Stable Diffusion XL pipeline (Podell et al. 2023, 2307.01952).

    Batches hold tokens for the second text encoder under "ids_2" too, and under "frames" where pictures were cut, of
    which the network is told the original size, the corner of the crop and the size of the result (section 2.2). An
    autoencoder whose configuration says force_upcast stays in float32, whatever the run computes in.

    Args:
        corner: top and left of the crop that the network is told instead, in pixels; None tells what was cut.
        text: options of the optimizer for parameters of the text encoders, such as "lr".
    """

    def __init__(
        self,
        pipe: Any,
        denoiser: Denoiser,
        trained: Sequence[Trainable],
        *,
        learning_rate: float,
        corner: tuple[int | None, int | None] = (None, None),
        text: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(pipe, denoiser, trained, learning_rate=learning_rate)
        self.corner, self.text = corner, text or {}

    def groups(self) -> list[dict[str, Any]]:
        """Return the trained parameters; those of text encoders apart, if they have options of their own."""
        if not self.text:
            return super().groups()
        own = {id(p) for name in ENCODERS if name in self.networks for p in self.networks[name].parameters()}
        found = []
        for group in super().groups():
            for options, inside in (({}, False), (self.text, True)):
                members = [p for p in group["params"] if (id(p) in own) is inside]
                found += [{**group, **options, "params": members}] if members else []
        return found

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move what is not trained."""
        upcast = option(self.pipe.vae, "force_upcast", True)
        for module in self.frozen:
            module.to(device, torch.float32 if upcast and module is self.pipe.vae else dtype)

    def spread(self, pixels: Tensor | Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the mean and the deviation that the autoencoder gives pictures, computed in its own type."""
        with torch.autocast(self.pipe.vae.device.type, enabled=False):
            return super().spread(pixels)

    def conditions(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the network is told of a batch, by the names of its arguments.

        Raises:
            ConfigError: when the network was not built for it.
        """
        said = self.recalled(batch, lambda: self.said(batch))
        told = Text(**said, sizes=self.sizes(batch["frames"]).to(said["text"].device))
        check_added(self.pipe.unet, told, scored=False)
        return told.keywords()

    def said(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return what the text encoders say of a batch: "text" (rows, tokens, width) and "pooled" (rows, size).

        Raises:
            ConfigError: when there is no pooled embedding.
        """
        states = [
            encode_ids(self.networks.get(name, getattr(self.pipe, name)), batch[ids], name=name)
            for name, ids in ENCODERS.items()
        ]
        return {"text": torch.cat([hidden for hidden, _ in states], -1), "pooled": projected(states[-1][1])}

    def sizes(self, frames: Sequence[Frame]) -> Tensor:
        """Return what the network is told of the sizes of pictures, float32, (rows, 6)."""
        sizes = sizes_of(frames)
        for column, value in enumerate(self.corner, 2):
            if value is not None:
                sizes[:, column] = value
        return sizes
