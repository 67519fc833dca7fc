"""What recipes of a LoRA share: its size, and the layers that it changes."""

from __future__ import annotations

from collections.abc import Mapping
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

    def part(self, networks: Mapping[str, Any]) -> LowRank:
        """Return a new LoRA in networks, by component: a UNet, and perhaps a text encoder.

        Raises:
            ConfigError: for layers that there are none of.
        """
        targets = {"unet": self.layers(), "text_encoder": TEXT_ATTENTION}
        return LowRank(networks, targets, rank=self.rank, alpha=self.lora_alpha, seed=self.decided())
