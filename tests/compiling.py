"""A backend of torch's compiler that counts graphs and runs them as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Graphs:
    """Counts what is compiled: the backend of one network, so that graphs of others do not count.

    Attributes:
        count: of graphs that were compiled.
        runs: of calls of all of them.
    """

    def __init__(self) -> None:
        self.count = self.seen = self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.count += 1

        def run(*given: Any) -> Any:
            self.runs += 1
            return graph.forward(*given)

        return run

    def new(self) -> int:
        """Return how many graphs were compiled since the last question."""
        found, self.seen = self.count - self.seen, self.count
        return found
