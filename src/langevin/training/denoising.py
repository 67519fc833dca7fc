"""What diffusion networks are trained on: noised samples at random levels, and the cost of what the network says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.objective import Noising, Objective
from .streams import Draw
from .trainables import Whole
from .trainer import Losses


class Denoiser:
    """The cost of a network's output for noised samples.

    Args:
        noising: the levels that it is trained at.
        objective: what it says, and what a mistake costs.
        odds: how likely every level is, (levels,), from little noise to much, whatever their sum; None has all alike.
    """

    def __init__(self, noising: Noising, objective: Objective, odds: Tensor | None = None) -> None:
        self.noising, self.objective = noising, objective
        self.weights = objective.weights(noising)
        self.risen = None if odds is None else (odds.double() / odds.double().sum()).cumsum(0)

    def numbers(self, chance: Tensor, *, even: bool) -> Tensor:
        """Return the numbers of levels for chances in [0, 1), by their odds or, with `even`, all alike likely."""
        count = len(self.noising)
        if self.risen is None or even:
            return (chance * count).long()
        return torch.searchsorted(self.risen, chance, right=True).clamp(max=count - 1)

    def __call__(
        self,
        network: Callable[..., Any],
        x0: Tensor,
        draw: Draw,
        *,
        conditions: Mapping[str, Any] | None = None,
        beside: Tensor | None = None,
        shares: Tensor | None = None,
        where: Tensor | None = None,
    ) -> Losses:
        """Return the losses of a batch.

        Args:
            network: called as `network(sample, timestep, **conditions)`.
            x0: clean samples (rows, channels, ...); where there are more rows than examples, each example has rows / n
                of them, one batch of examples after the other, all with draws of their own.
            conditions: what the network is told beside.
            beside: further channels, in front of the network only.
            shares: the share of every row in the loss, (rows,).
            where: 1 for the places of the samples that count and 0 for the others, (rows, 1, ...).
        """
        groups = len(x0) // len(draw.positions)

        def rows(what: str, shape: tuple[int, ...]) -> Tensor:
            return torch.cat([draw.normal(f"{what} {k}" if k else what, shape) for k in range(groups)])

        chance = torch.cat([draw.uniform(f"level {k}" if k else "level") for k in range(groups)])
        levels = self.noising.at(self.numbers(chance, even=draw.even), x0.device)
        offset = rows("offset", (x0.shape[1],)) if self.objective.offset else None
        noise = self.objective.noise(rows("noise", tuple(x0.shape[1:])), offset)
        more = rows("perturbation", tuple(x0.shape[1:])) if self.objective.perturbation else None
        noise, x0 = noise.to(x0.device), x0.float()
        x = self.objective.noised(x0, noise, levels, more)
        x = x if beside is None else torch.cat([x, beside], 1)
        output = network(x, levels.t, **(conditions or {}), return_dict=False)[0]
        costs = self.objective.cost(output, self.objective.target(x0, noise, levels), where)
        plain, costs = costs.detach(), costs * self.weights.to(costs.device)[levels.row]
        return Losses(costs if shares is None else costs * shares, levels.row, plain)


class Unconditional:
    """Trains a network on pictures alone.

    Args:
        unet: the network.
        denoiser: its cost.
    """

    def __init__(self, unet: Any, denoiser: Denoiser, *, learning_rate: float = 1e-4) -> None:
        self.part, self.denoiser, self.learning_rate = Whole("unet", unet), denoiser, learning_rate
        self.networks: dict[str, nn.Module] = dict(self.part.networks)

    def groups(self) -> list[dict[str, Any]]:
        """Return all parameters."""
        return [{"params": self.part.parameters(), "lr": self.learning_rate}]

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Do nothing: everything is trained."""

    def losses(self, batch: Mapping[str, Any], draw: Draw) -> Losses:
        """Return the losses of a batch of pictures under "pixels", (rows, channels, height, width) in [-1, 1]."""
        return self.denoiser(self.networks["unet"], batch["pixels"], draw)

    def save(self, folder: Path) -> None:
        """Write the network in its folder."""
        self.part.save(folder)

    def load(self, folder: Path) -> None:
        """Read the network."""
        self.part.load(folder)
