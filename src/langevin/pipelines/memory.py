"""What a pipeline can do about memory: attention in slices, and networks that wait on the CPU until they compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from ..core.errors import ConfigError, InputError
from .runs import check_idle, loops_itself

if TYPE_CHECKING:
    from ..optimization.estimate import Estimate
    from ..optimization.offload import Offload
    from ..optimization.plan import Report


class MemoryMixin:
    """The documented switches; what they do is done by networks, and by `optimization.offload`."""

    components: Any
    _part: Callable[[str], Any]
    _offload: Offload | None = None
    suits_processor: bool = True
    """Whether calls on the CPU compute layers in the way that suits the processor; see docs/speed.md."""
    _deep_cache: tuple[int, int] | None = None
    _guidance_interval: tuple[float, float] | None = None

    @property
    def _networks(self) -> dict[str, nn.Module]:
        return {name: c for name, c in self.components.items() if isinstance(c, nn.Module)}

    def maybe_free_model_hooks(self) -> None:
        """Bring networks that wait on the CPU between calls back there; loops of the documented form end with this."""
        if self._offload is not None:
            self._offload.free()

    def _delegate(self, method: str, *args: Any, only: str | None = None) -> None:
        """Call `method` on every network that has it, or on the component `only`; see `_offering`."""
        for module in self._offering(method, only):
            getattr(module, method)(*args)

    def _offering(self, method: str, only: str | None = None) -> list[nn.Module]:
        """Return the networks that have a method, or the component `only`.

        Raises:
            ConfigError: when none has it.
        """
        modules = self._networks.values() if only is None else [self._part(only)]
        able = [module for module in modules if callable(getattr(module, method, None))]
        if not able:
            raise ConfigError(f"No component of this {type(self).__name__} offers `{method}`.")
        return able

    def estimate(self, *, timed: bool = True, **call: Any) -> Estimate:
        """Tell what a call would need, without its networks computing anything: memory and work of every stage.

        The result prints as a table. Switches, sizes and numbers of pictures count as they would in the call; weights
        count where they are, activations to the byte, and what the allocator keeps for later does not. See
        `optimization.estimate` for what was measured.

        Args:
            timed: also measure the device for a fraction of a second, and guess a time: per operation the greater of
                its work over a convolution's speed and its bytes over that of a sum. Small pictures take longer, since
                Python's own time is left out.
            call: arguments of the call; the prompt is empty unless given. Random streams and callbacks are not touched.

        Raises:
            ConfigError: for an argument that the call does not take.
            LangevinError: what the call itself would raise for its arguments.
        """
        from ..optimization.estimate import rehearse

        return rehearse(self, call, timed=timed)

    def optimize(self, *, compile: bool | Literal["blocks"] = False, graphs: bool = False,
                 kernels: bool = False) -> Report:  # fmt: skip
        """Make the networks faster by what is lossless on their device and in their type, and tell what was done.

        A second call does only what has become possible since, such as after `to`. See `optimization.plan.optimize`,
        and docs/speed.md for figures. `deoptimize` undoes it.

        Args:
            compile: have torch compile the network that denoises and the decoder; the first call then takes minutes.
                With "blocks" it compiles the blocks that networks repeat, each kind once, which takes less.
            graphs: on CUDA devices, have calls of the UNet recorded and replayed; not yet run on one.
            kernels: on CUDA devices, have Triton compute norms and gated GELUs; not yet run on one. In bfloat16 on CPUs
                with AVX512-BF16, have kernels that a C++ compiler makes at the first use compute norms and, with AMX,
                attention.

        Raises:
            ConfigError: during a call, when networks that wait on the CPU in blocks should be compiled, or when no
                network can take what is asked for.
            InputError: `compile` is another word.
            MissingDependencyError: kernels are asked for without Triton, or without a C++ compiler.
        """
        from ..optimization import plan

        check_idle(self, "optimize")
        if self._offload is not None:
            if compile and self._offload.blocks:
                raise ConfigError("Blocks that wait on the CPU cannot be compiled; use `enable_model_cpu_offload`.")
            self._offload.detach()
        asked = {"compile": compile, "graphs": graphs, "kernels": kernels}
        return plan.optimize(self._networks, **asked, device=self._computes_on)

    def deoptimize(self) -> None:
        """Undo what `optimize` did; the weights are what they were, bit for bit."""
        from ..optimization import plan

        check_idle(self, "deoptimize")
        if self._offload is not None:
            self._offload.detach()
        plan.deoptimize(self._networks)

    def _serving(self) -> AbstractContextManager[None]:
        """Context of a call; see `optimization.plan.serving`."""
        from ..optimization.plan import serving

        return serving(self._networks.values(), suit=self.suits_processor, device=self._computes_on)

    def _release(self, name: str) -> None:
        """Free what a network keeps for a call, where it has done its part."""
        from ..optimization.plan import release

        network = self._networks.get(name)
        if network is not None:
            release([network])

    @property
    def _computes_on(self) -> torch.device | None:
        return None if self._offload is None else self._offload.device

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """Compute attention in slices, which takes less memory and more time.

        Args:
            slice_size: how many (image, head) pairs are computed at once: "auto" is half of an attention's heads, "max"
                one, None all. Networks with fewer heads than a number, such as autoencoders, compute theirs at once.

        Raises:
            InputError: before anything is changed, for a number below 1 or above an attention's heads.
        """
        for network, size in slices(self._offering("set_attention_slice"), slice_size):
            network.set_attention_slice(size)

    def disable_attention_slicing(self) -> None:
        """Compute attention in one step again."""
        self._delegate("set_attention_slice", None)

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Compute attention with the package xformers."""
        self._delegate("enable_xformers_memory_efficient_attention", attention_op)

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Compute attention with torch again."""
        self._delegate("disable_xformers_memory_efficient_attention")

    def enable_deep_cache(self, interval: int = 3, layers: int = 2) -> None:
        """Compute the deep part of the UNet at one call in `interval` alone; changes the picture (Ma et al. 2023).

        The other calls compute the outermost layers, with the deep features as they were (DeepCache, 2312.00858): 22 %
        of the operations of Stable Diffusion 1.5, 4 % of SDXL, 33 % of the picturebook. The picturebook is then drawn
        in 1 / 1.74 of the time, 38.7 dB from plain (`python -m benchmarks.lossy`, one thread of a CPU); not measured on
        an accelerator. A ControlNet is asked at every call. What it brings and costs: docs/lossy.md.

        Args:
            interval: calls of the network from one whole pass to the next; 1 changes nothing.
            layers: layers of the way up, counted from the output, that every call computes.

        Raises:
            InputError: for an interval or a number of layers that is none.
            ConfigError: for a network that has no such layers, or a pipeline with a loop of its own.
        """
        from ..families.deep_cache import DeepCache

        self._check_own_loop("enable_deep_cache")
        DeepCache(self._part("unet"), interval, layers)
        self._deep_cache = (interval, layers)

    def disable_deep_cache(self) -> None:
        """Compute the whole UNet at every call again."""
        self._deep_cache = None

    def enable_guidance_interval(self, low: float = 0.28, high: float = 5.42) -> None:
        """Guide at middling noise levels alone, low < sigma <= high; changes the picture (Kynkäänniemi et al. 2024).

        Outside, the network is asked for the positive prompt alone, which halves the time of those steps (2404.07724).
        The picturebook is then drawn in 1 / 1.41 of the time, 32.6 dB from plain (`python -m benchmarks.lossy`, one
        thread of a CPU); not measured on an accelerator.

        Levels are noise over signal, sigma / alpha, so that they mean the same for every sampler, number of steps and
        strength; the defaults are the paper's for SDXL. What it brings and costs: docs/lossy.md.

        Args:
            low, high: the interval; 0 and infinity guide at every step.

        Raises:
            InputError: when nothing lies between the two.
            ConfigError: for a pipeline that is not guided by a negative prompt, or has a loop of its own.
        """
        from ..diffusion.guidance import Within, alone

        self._check_own_loop("enable_guidance_interval")
        Within(alone, low, high)
        self._guidance_interval = (low, high)

    def disable_guidance_interval(self) -> None:
        """Guide at every step again."""
        self._guidance_interval = None

    def _check_own_loop(self, switch: str) -> None:
        """Raise ConfigError unless the pipeline denoises latents by the loop of this library."""
        if not hasattr(self, "_guidance") or loops_itself(self):
            raise ConfigError(
                f"`{switch}` is for pipelines that denoise latents in the loop of this library; "
                f"{type(self).__name__} does not."
            )

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


def slices(networks: Sequence[Any], size: Any) -> list[tuple[Any, Any]]:
    """Return each network with the size of slices that it takes, which is None where it has fewer heads than that.

    Raises:
        InputError: for a size that is none, or above the heads of an attention in a network that has so many elsewhere.
    """
    from ..nn.processors import named_attentions

    if size in ("auto", "max", None):
        return [(network, size) for network in networks]
    if isinstance(size, bool) or not isinstance(size, int):
        raise InputError(f"slice_size is {size!r}; valid: 'auto', 'max', a number or None")
    heads = [[layer.sliceable_head_dim for _, layer in named_attentions(network)] for network in networks]
    most = max(map(max, filter(None, heads)), default=1)
    asked = size if 1 <= size <= most else most
    limit = min((min(own) for own in heads if own and max(own) >= asked), default=1)
    if not 1 <= size <= limit:
        raise InputError(f"slice_size is {size}, must be between 1 and {limit} (the heads)")
    sizes = [size if max(own, default=0) >= size else None for own in heads]
    return list(zip(networks, sizes, strict=True))
