"""Modules of adapters inside a network: their weights are no weights of the network.

A class of our own is `Unlisted` and has no state dict at all. A module of any class can be made a guest, which keeps a
state dict of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

GUEST = "_guest_of_a_network"
"""Name in a guest's `__dict__` that tells what it is."""


class Unlisted(nn.Module):
    """A module that no state dict mentions: the names and values of its parent's checkpoint stay what they are."""

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Return `destination` as it is."""
        return {} if destination is None else destination

    def _load_from_state_dict(self, *args) -> None:
        """Read nothing and miss nothing."""


def make_guest(module: nn.Module) -> None:
    """Leave the weights of a module out of the state dict of what contains it; its own state dict keeps them.

    A network with guests is saved as it is without them, and a state dict of the bare network loads into it strictly.
    """
    module.__dict__[GUEST] = True
    module.register_state_dict_post_hook(_leave_out)
    module.register_load_state_dict_post_hook(_not_missed)


def own_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules inside a network by path, without those of adapters."""
    strange = [module for module in model.modules() if isinstance(module, Unlisted) or GUEST in module.__dict__]
    theirs = {inside for module in strange for inside in module.modules()}
    yield from ((path, module) for path, module in model.named_modules() if path and module not in theirs)


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Drop what the module has just written below its place in another one."""
    for name in [name for name in state if prefix and name.startswith(prefix)]:
        del state[name]


def _not_missed(module: nn.Module, keys: Any) -> None:
    """Drop the module's names below any place from the list of missing ones."""
    own = tuple(f".{name}" for name, _ in module.named_parameters())
    keys.missing_keys[:] = [name for name in keys.missing_keys if not (own and name.endswith(own))]
