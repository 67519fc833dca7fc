"""What is trained of a pipeline's networks: how its parameters are found, kept in checkpoints, and written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from ..adapters import lora
from ..adapters.files import open_source
from ..adapters.networks import add_fresh
from .streams import seeded

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""What the layers of a network's attentions are called that a LoRA changes."""
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
"""The same in text encoders."""
LORA_USE = 'pipe.load_lora_weights("REPO")'
"""How a LoRA is loaded, see `recipes.cards.card`."""


class Trainable(Protocol):
    """A part of a pipeline that is trained.

    Attributes:
        networks: those that hold its parameters, by the name of their component.
    """

    networks: Mapping[str, nn.Module]

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters."""

    def save(self, folder: Path) -> None:
        """Write them into a folder, in the documented layout."""

    def load(self, folder: Path) -> None:
        """Read what `save` wrote into the same parameters."""


class Whole:
    """All parameters of a network, kept in a folder named as its component.

    Args:
        name: of the component.
        network: of this library or of transformers.
    """

    def __init__(self, name: str, network: Any) -> None:
        self.name, self.network = name, network.requires_grad_(True).float()
        self.networks: Mapping[str, nn.Module] = {name: network}

    def parameters(self) -> list[nn.Parameter]:
        """Return all of them."""
        return list(self.network.parameters())

    def save(self, folder: Path) -> None:
        """Write the network."""
        self.network.save_pretrained(folder / self.name)

    def load(self, folder: Path) -> None:
        """Read the network."""
        saved = type(self.network).from_pretrained(folder / self.name)
        self.network.load_state_dict(saved.state_dict())


class LowRank:
    """A new LoRA (Hu et al. 2021, 2106.09685) in networks that are otherwise locked, kept in one file.

    Args:
        networks: by component.
        targets: component -> what the layers are called that it changes.
        rank: of the update.
        alpha: its scale is alpha / rank; the rank by default.
        seed: of the first values.
        without: component -> the paths, as a regular expression, of layers that stay as they are.
    """

    adapter = "default"

    def __init__(
        self,
        networks: Mapping[str, Any],
        targets: Mapping[str, Sequence[str]],
        *,
        rank: int = 4,
        alpha: float | None = None,
        seed: int = 0,
        without: Mapping[str, str] | None = None,
    ) -> None:
        self.networks = networks
        with seeded(seed):
            for name, network in networks.items():
                network.requires_grad_(False)
                config: dict[str, Any] = {"r": rank, "lora_alpha": rank if alpha is None else alpha}
                config |= {"target_modules": targets[name], "exclude_modules": (without or {}).get(name)}
                config |= {"init_lora_weights": "gaussian"}
                add_fresh(network, config, self.adapter)

    def parameters(self) -> list[nn.Parameter]:
        """Return the two halves of every layer."""
        return [p for network in self.networks.values() for p in network.parameters() if p.requires_grad]

    def save(self, folder: Path) -> None:
        """Write pytorch_lora_weights.safetensors."""
        lora.save(self.networks, folder)

    def load(self, folder: Path) -> None:
        """Read it into the same layers."""
        lora.load(self.networks, open_source(folder), name=self.adapter, hotswap=True)
