"""What recipes of a LoRA share: its size, and the layers that it changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...core.errors import ConfigError
from ..settings import Settings, at_least, told
from ..trainables import ATTENTION, TEXT_ATTENTION, LowRank


@dataclass
class LowRankSettings(Settings):
    """Settings of recipes that train a LoRA."""

    rank: int = told(4, "rank of the update matrices")
    lora_alpha: float | None = told(None, "the update is scaled by alpha / rank; the rank if unset")
    lora_layers: str = told(
        ",".join(ATTENTION),
        "ends of the names of the UNet's layers that it changes, between commas; conv1 and conv2 too for a style",
    )

    def check(self) -> None:
        """Raise InputError or ConfigError for all that can be known before anything is loaded."""
        super().check()
        at_least(self, "rank", 1)
        if not all(self.layers()):
            raise ConfigError(
                f"lora_layers is {self.lora_layers!r}; it must be names between commas, such as {','.join(ATTENTION)}."
            )

    def layers(self) -> list[str]:
        """Return what the layers of the UNet are called."""
        return [name.strip() for name in self.lora_layers.split(",")]

    def part(self, pipe: Any, encoders: Sequence[str] = ()) -> LowRank:
        """Return a new LoRA in a pipeline's UNet, and in some of its text encoders, by component.

        Stable Diffusion XL reads the layer before the last of its first text encoder, so the last one is left out.

        Raises:
            ConfigError: for layers that there are none of.
        """
        networks = {name: getattr(pipe, name) for name in ("unet", *encoders)}
        targets = {name: self.layers() if name == "unet" else TEXT_ATTENTION for name in networks}
        unread = {}
        if getattr(pipe, "text_encoder_2", None) is not None:
            last = pipe.text_encoder.config.num_hidden_layers - 1
            unread = {"text_encoder": rf"(.*\.)?layers\.{last}\..*"}
        alpha, seed = self.lora_alpha, self.decided()
        return LowRank(networks, targets, rank=self.rank, alpha=alpha, seed=seed, without=unread)
