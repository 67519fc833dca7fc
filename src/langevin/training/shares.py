"""Shares of tensors and of networks, as `sharded` divides them; nothing here asks who else is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, did_you_mean
from .divided import Division


def is_share(value: Any) -> bool:
    """Return whether a value is a process's share of a tensor."""
    return hasattr(value, "full_tensor")


def full(value: Any) -> Tensor:
    """Return the whole of a tensor; where it is divided, all processes call it together."""
    return value.full_tensor() if is_share(value) else value


@torch.no_grad()
def share_of(whole: Tensor, like: Any) -> Any:
    """Return this process's share of a tensor, divided as another one is; all of it where that is whole or differs."""
    if not is_share(like) or whole.shape != like.shape:
        return whole
    made: Any = torch.empty_like(like, dtype=whole.dtype)
    mesh = like.device_mesh
    rows = -(-len(whole) // mesh.size())
    made.to_local().copy_(whole[rows * mesh.get_local_rank() :][:rows])
    return made


def mesh(device: torch.device) -> Any:
    """Return all processes in a row; one that stands alone becomes a group of one."""
    from torch.distributed import HashStore, get_world_size, init_process_group, is_initialized
    from torch.distributed.device_mesh import init_device_mesh

    if not is_initialized():
        backend = "cuda:nccl,cpu:gloo" if device.type == "cuda" else "gloo"
        init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    return init_device_mesh(device.type, (get_world_size(),))


def twin_of(network: nn.Module) -> nn.Module:
    """Return a copy of a network, with parameters of its own that hold the same memory."""
    held = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in network.parameters()}
    return deepcopy(network, held)


def call_as(derived: type, kind: type) -> None:
    """Give a class the name of the one that it was derived from, under which transformers keep what it can tell."""
    for name in ("__name__", "__qualname__", "__module__"):
        setattr(derived, name, getattr(kind, name))


def let_go(network: nn.Module) -> None:
    """Take the values away from the parameters of a network."""
    for parameter in network.parameters():
        parameter.data = parameter.new_empty(0)


def units(network: nn.Module, division: Division) -> list[nn.Module]:
    """Return the modules of a network whose weights are gathered as one, inner ones before those around them.

    By default they are its blocks, see `blocks`.
    """
    inside = [module for module in [*network.modules()][:0:-1] if any(True for _ in module.parameters())]
    if division.least is not None:
        return list(large(inside, division.least))
    if division.classes is None:
        return list(blocks(network))
    return [module for module in inside if type(module).__name__ in division.classes]


def blocks(module: nn.Module, *, within: bool = False) -> Iterator[nn.Module]:
    """Yield the members of lists of modules that are made of several layers, inner ones first.

    Inside of a member the lists that it holds itself are looked at, and not those of its parts. So residual blocks,
    attentions, their transformer blocks and the layers of text encoders are found; these are what gradient
    checkpointing computes again, of which no part may be gathered for itself.

    Args:
        within: whether the module is a member of such a list.
    """
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            for member in child:
                yield from blocks(member, within=True)
                if any(True for _ in member.children()) and any(True for _ in member.parameters()):
                    yield member
        elif not within:
            yield from blocks(child)


def large(modules: list[nn.Module], least: int) -> Iterator[nn.Module]:
    """Yield the modules of at least so many parameters, without those that one inside of them was yielded for."""
    counted: set[int] = set()
    for module in modules:
        own = {id(p): p.numel() for p in module.parameters() if id(p) not in counted}
        if sum(own.values()) >= least and not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            counted |= set(own)
            yield module


def check_classes(networks: Mapping[str, nn.Module], division: Division) -> None:
    """Raise ConfigError for names of classes that no module of the networks has."""
    present = {type(module).__name__ for network in networks.values() for module in network.modules()}
    for name in division.classes or ():
        if name not in present:
            raise ConfigError(
                f"FSDP_TRANSFORMER_CLS_TO_WRAP names {name}, which {', '.join(networks)} do not have"
                f"{did_you_mean(name, sorted(present))} Leave it out to gather block by block."
            )


def compute_twice(name: str, network: Any) -> None:
    """Let a network compute its activations twice.

    Raises:
        ConfigError: when it cannot.
    """
    for method in ("enable_gradient_checkpointing", "gradient_checkpointing_enable"):
        if hasattr(network, method):
            getattr(network, method)()
            return
    raise ConfigError(f"FSDP_ACTIVATION_CHECKPOINTING: {name} cannot compute activations twice; leave it out.")
