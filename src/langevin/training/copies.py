"""Where the weights of a run lie: every process has all of them, and processes share their gradients alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .average import Average


class Copies:
    """Weights of which every process has a copy, as accelerate prepares them.

    Args:
        accelerator: of the run.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator

    def prepare(self, networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """Return what is called in place of networks while they are trained."""
        return {name: self.accelerator.prepare(network.train()) for name, network in networks.items()}

    def own(self, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
        """Return what this process trains of parameters of the networks."""
        return parameters

    def checked(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Return an optimizer, after a look at whether it can train them."""
        return optimizer

    @contextmanager
    def apart(self, networks: Mapping[str, nn.Module]) -> Iterator[None]:
        """Context in which processes keep their gradients to themselves, before the last batch of a step.

        Args:
            networks: as `prepare` returned them.
        """
        with ExitStack() as stack:
            for network in networks.values():
                stack.enter_context(self.accelerator.no_sync(network))
            yield

    def clip(self, parameters: list[nn.Parameter], longest: float) -> Tensor:
        """Shorten the gradient of all parameters together to a length, and return the one that it had."""
        return self.accelerator.clip_grad_norm_(parameters, longest)

    @contextmanager
    def whole(self, device: torch.device | None = None, *, changed: bool = False) -> Iterator[None]:
        """Context in which the networks of the task hold whole weights, which all processes enter together.

        Args:
            device: where; the memory of the processor by default.
            changed: whether weights are written in it, by all processes. Else the first one alone has them.
        """
        yield

    def collected(self, state: Any) -> Any:
        """Return a tree of tensors whole, as far as the first process is concerned; all processes call it together."""
        return state

    def joined(self, average: Average | None) -> Copies:
        """Make the weights of the networks whole for good, and their average; all processes call it together.

        Returns:
            What holds them from now on.
        """
        return self
