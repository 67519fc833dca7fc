"""Weights of which every process has a share: FSDP (Zhao et al. 2023, 2304.11277) by torch's `fully_shard`.

The networks of the task keep their classes, their hooks and their places in the pipeline, but no values. Beside each
stands a twin, which is called in training and holds this process's share of every parameter. Where whole weights are
needed, to look at pictures, for a file, at the end, the processes gather them into the task's networks, one parameter
after the other. So files, previews and proofs are those of a run that divides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.logging import get_logger
from .average import Average
from .copies import Copies
from .divided import Division
from .shares import call_as, check_classes, compute_twice, full, is_share, let_go, mesh, share_of, twin_of, units

logger = get_logger(__name__)
OPTIMIZERS = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
"""Optimizers that change every number by itself, so that a share of a parameter is all they need."""
TYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Sharded(Copies):
    """Weights that are divided among the processes.

    Args:
        accelerator: of the run.
        division: how.
    """

    def __init__(self, accelerator: Any, division: Division) -> None:
        super().__init__(accelerator)
        self.division, self.device = division, accelerator.device
        if accelerator.mixed_precision not in TYPES:
            raise ConfigError(f"{division.asked} computes in {', '.join(TYPES)}, not in {accelerator.mixed_precision}.")
        self.pairs: list[tuple[nn.Module, nn.Module]] = []

    def prepare(self, networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """Divide networks, and return their twins; the networks themselves hold nothing from now on.

        Raises:
            ConfigError: when the configuration names classes that the networks do not have.
        """
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

        cuda = self.device.type == "cuda"
        kind = TYPES[self.accelerator.mixed_precision]
        options = {
            "mesh": mesh(self.device),
            "reshard_after_forward": self.division.freed,
            "offload_policy": CPUOffloadPolicy(pin_memory=cuda) if self.division.offload else OffloadPolicy(),
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=kind, reduce_dtype=kind and torch.float32, cast_forward_inputs=False
            ),
        }
        check_classes(networks, self.division)
        twins = {}
        for name, network in networks.items():
            if self.division.checkpointing:
                compute_twice(name, network)
            self.agree(network)
            twin = twin_of(network.train())
            for unit in (*units(twin, self.division), twin):
                undivided = type(unit)
                fully_shard(unit, **options)
                call_as(type(unit), undivided)
            let_go(network)
            for one in (network, twin):
                self.accelerator.prepare_model(one, device_placement=False, evaluation_mode=True)
            self.pairs.append((network, twin))
            twins[name] = twin
        if self.accelerator.is_main_process:
            count = self.accelerator.num_processes
            said = f"{self.division.asked}: each of {count} processes holds its share of the weights"
            if self.division.instead:
                logger.warning("%s, which is done %s.", said, self.division.instead)
            else:
                logger.info("%s.", said)
        return twins

    @torch.no_grad()
    def agree(self, network: nn.Module) -> None:
        """Give a network the values that it has in the first process, and its buffers their device."""
        for parameter in network.parameters():
            value = parameter.to(self.device)
            torch.distributed.broadcast(value, 0)
            parameter.copy_(value)
        for buffer in network.buffers():
            buffer.data = buffer.to(self.device)
            torch.distributed.broadcast(buffer, 0)

    def shares(self) -> Iterator[tuple[nn.Parameter, Any]]:
        """Yield every parameter of the networks with its share, in the same order in every process."""
        for network, twin in self.pairs:
            shares = dict(twin.named_parameters())
            for name, parameter in network.named_parameters():
                yield parameter, shares[name]

    def own(self, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
        """Return the shares of parameters of the networks."""
        shares = {id(parameter): share for parameter, share in self.shares()}
        return [shares[id(parameter)] for parameter in parameters]

    def checked(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Return an optimizer.

        Raises:
            ConfigError: when it needs more of a parameter than a share.
        """
        if not isinstance(optimizer, OPTIMIZERS):
            names = ", ".join(kind.__name__ for kind in OPTIMIZERS)
            raise self.division.untrained(type(optimizer).__name__, names)
        return optimizer

    @contextmanager
    def apart(self, networks: Mapping[str, nn.Module]) -> Iterator[None]:
        """Context of nothing: gradients are divided after every batch, since whole ones would take the memory again."""
        yield

    def clip(self, parameters: list[nn.Parameter], longest: float) -> Tensor:
        """Shorten the gradient of all parameters together to a length, and return the one that it had."""
        return full(super().clip(parameters, longest))

    @contextmanager
    def whole(self, device: torch.device | None = None, *, changed: bool = False) -> Iterator[None]:
        """Context in which the networks of the task hold whole weights, see `Copies.whole`."""
        self.gather(device, everywhere=changed)
        try:
            yield
            if changed:
                with torch.no_grad():
                    for parameter, share in self.shares():
                        share.copy_(share_of(parameter.detach(), share))
        finally:
            for network, _ in self.pairs:
                let_go(network)

    @torch.no_grad()
    def gather(self, device: torch.device | None, *, everywhere: bool) -> None:
        """Put whole weights into the networks of the first process, or of all."""
        for parameter, share in self.shares():
            value = full(share.detach())
            if everywhere or self.accelerator.is_main_process:
                parameter.data = value.to(device or "cpu")

    @torch.no_grad()
    def collected(self, state: Any) -> Any:
        """Return a tree of tensors with whole ones in place of shares, in the first process; see `Copies.collected`."""
        if isinstance(state, Mapping):
            return {name: self.collected(part) for name, part in state.items()}
        if isinstance(state, list):
            return [self.collected(part) for part in state]
        if not is_share(state):
            return state
        value = full(state)
        return value.cpu() if self.accelerator.is_main_process else None

    def joined(self, average: Average | None) -> Copies:
        """Make the weights of the networks whole for good, and their average, see `Copies.joined`."""
        self.gather(self.device if self.accelerator.is_main_process else None, everywhere=True)
        if average is not None:
            wholes = {id(share): parameter for parameter, share in self.shares()}
            average.parameters = [wholes[id(share)] for share in average.parameters]
            average.values = [full(value).cpu() for value in average.values]
        return Copies(self.accelerator)
