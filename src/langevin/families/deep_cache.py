"""DeepCache in a run (Ma et al. 2023, 2312.00858): most steps compute the outermost layers of the UNet alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..core.errors import ConfigError, check_count
from ..diffusion.guidance import Branches
from ..diffusion.table import Step
from ..nn.deep_cache import DeepFeatures
from .denoiser import ModelCall


@dataclass
class DeepCache:
    """An attachment: the network keeps its deep features at one call and reuses them at the next `interval - 1`.

    Every batch of branches has its own, so that guidance may change on the way. They belong to the run.

    Attributes:
        unet: the network that is called.
        interval: calls from one whole pass to the next; 1 never reuses.
        layers: see `UNet2DConditionModel.new_deep_features`.

    Raises:
        InputError: for an interval or a number of layers that is none.
        ConfigError: for a network that keeps no deep features.
    """

    unet: Any
    interval: int
    layers: int
    held: dict[Any, tuple[int, DeepFeatures]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_count("interval", self.interval)
        self.fresh()

    def fresh(self) -> DeepFeatures:
        """Return what asks for a whole pass."""
        make = getattr(self.unet, "new_deep_features", None)
        if make is None:
            name = type(self.unet).__name__
            raise ConfigError(f"{name} keeps no deep features; use a UNet2DConditionModel, or `disable_deep_cache`.")
        return make(self.layers)

    def __call__(self, call: ModelCall, step: Step, branches: Branches) -> None:
        """Hand over the features of the same branches, or ask for new ones."""
        asked = tuple((branch.condition, branch.patch) for branch in branches)
        if asked not in self.held or step.index - self.held[asked][0] >= self.interval:
            self.held[asked] = (step.index, self.fresh())
        call.options["deep_features"] = self.held[asked][1]
