"""What a pipeline can do about memory: attention in slices, and networks that wait on the CPU until they compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..core.errors import ConfigError

if TYPE_CHECKING:
    from ..optimization.offload import Offload


class MemoryMixin:
    """The documented switches; what they do is done by networks, and by `optimization.offload`."""

    components: Any
    _part: Callable[[str], Any]
    _offload: Offload | None = None

    @property
    def _networks(self) -> dict[str, nn.Module]:
        return {name: c for name, c in self.components.items() if isinstance(c, nn.Module)}

    def maybe_free_model_hooks(self) -> None:
        """Bring networks that wait on the CPU between calls back there; loops of the documented form end with this."""
        if self._offload is not None:
            self._offload.free()

    def _delegate(self, method: str, *args: Any, only: str | None = None) -> None:
        """Call `method` on every network that has it, or on the component `only`.

        Raises:
            ConfigError: when none has it.
        """
        modules = self._networks.values() if only is None else [self._part(only)]
        able = [module for module in modules if callable(getattr(module, method, None))]
        if not able:
            raise ConfigError(f"No component of this {type(self).__name__} offers `{method}`.")
        for module in able:
            getattr(module, method)(*args)

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """Compute attention in slices, which takes less memory and more time: "auto", "max" or heads per slice."""
        self._delegate("set_attention_slice", slice_size)

    def disable_attention_slicing(self) -> None:
        """Compute attention in one step again."""
        self._delegate("set_attention_slice", None)

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Compute attention with the package xformers."""
        self._delegate("enable_xformers_memory_efficient_attention", attention_op)

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Compute attention with torch again."""
        self._delegate("disable_xformers_memory_efficient_attention")

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """Keep every network on the CPU until it computes; one at a time is on the accelerator.

        Costs the time to copy each network once per call, and needs the memory of the largest one.

        Args:
            gpu_id, device: where networks compute; the machine's accelerator if unset.

        Raises:
            ConfigError: without an accelerator.
        """
        self._wait_on_cpu(gpu_id, device)

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Keep every block of every network on the CPU until it computes: least memory, and slow.

        Every step copies the whole network; `enable_block_offload` copies while it computes. See
        `enable_model_cpu_offload` for the arguments.
        """
        self._wait_on_cpu(gpu_id, device, blocks=True, ahead=False)

    def enable_block_offload(self, resident: float = 0.0, *, device: torch.device | str | None = None) -> None:
        """Keep blocks of networks on the CPU until they compute, and bring the next while one computes.

        Args:
            resident: share of all weights, between 0 and 1, that stays on the accelerator.
            device: see `enable_model_cpu_offload`.

        Raises:
            ConfigError: without an accelerator, or for compiled networks.
        """
        self._wait_on_cpu(None, device, blocks=True, resident=resident)

    def _wait_on_cpu(self, gpu_id: int | None, device: torch.device | str | None, **options: Any) -> None:
        from ..optimization.offload import Offload, accelerator

        offload = Offload(accelerator(gpu_id, device), **options)
        self.remove_all_hooks()
        offload.attach(self._networks)
        self._offload = offload

    def remove_all_hooks(self) -> None:
        """Leave all networks on the CPU, and let them stay where `to` puts them from now on."""
        if self._offload is not None:
            self._offload.detach()
            self._offload = None
