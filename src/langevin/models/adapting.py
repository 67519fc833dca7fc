"""The documented adapter methods of networks. The work is done in `adapters`."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.imports import late

Where = str | os.PathLike | Mapping[str, Tensor]


class AdapterMixin:
    """Adds the loading, scaling, fusing and removing of adapters to a network."""

    def load_attn_procs(self, pretrained_model_name_or_path_or_dict: Where, **kwargs: Any) -> None:
        """Attach a LoRA of any dialect, or the weights of Custom Diffusion, from a file, folder, repository or dict.

        Args:
            kwargs: as for `load_lora_adapter`.
        """
        late("adapters.networks").load_processors(self, pretrained_model_name_or_path_or_dict, **kwargs)

    def save_attn_procs(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable[..., Any] | None = None,
        safe_serialization: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write the attached adapter into a folder; `load_attn_procs` reads it.

        Args:
            is_main_process: False writes nothing.
            weight_name: name of the file.
            save_function: called as `save_function(tensors, path)` in place of the own writer.
            safe_serialization: safetensors, or a torch pickle with False.
            kwargs: adapter_name, dialect.
        """
        if is_main_process:
            writing = {"weight_name": weight_name, "save_function": save_function, "safe": safe_serialization}
            late("adapters.networks").save_processors(self, save_directory, writing, **kwargs)

    def load_lora_adapter(
        self,
        pretrained_model_name_or_path_or_dict: Where,
        prefix: str | None = "transformer",
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Attach a LoRA of any dialect and make it the only active adapter.

        Args:
            prefix: what stands before the names that are for this network; names without it are read too.
            hotswap: put it in the place of the adapter of that name, without compiling anew.
            kwargs: adapter_name, weight_name, subfolder, use_safetensors, metadata, network_alphas, and the options of
                the hub.

        Raises:
            ConfigError: the name is taken.
            WeightsError: tensors that find no layer or do not fit; nothing is attached then.
        """
        late("adapters.networks").load_adapter(
            self, pretrained_model_name_or_path_or_dict, prefix=prefix, hotswap=hotswap, **kwargs
        )

    def save_lora_adapter(
        self,
        save_directory: str | os.PathLike,
        adapter_name: str = "default",
        upcast_before_saving: bool = False,
        safe_serialization: bool = True,
        weight_name: str | None = None,
    ) -> None:
        """Write an attached adapter into a folder, in PEFT's names with its ranks and alphas as metadata.

        Args:
            upcast_before_saving: write float32.
        """
        late("adapters.networks").save_adapter(
            self,
            save_directory,
            adapter_name=adapter_name,
            dtype=torch.float32 if upcast_before_saving else None,
            writing={"weight_name": weight_name, "safe": safe_serialization},
        )

    def add_adapter(self, adapter_config: Any, adapter_name: str = "default") -> None:
        """Attach a new LoRA whose halves require gradients.

        Args:
            adapter_config: PEFT's `LoraConfig`, or an object or mapping with its r, lora_alpha, target_modules ...
        """
        late("adapters.networks").add_fresh(self, adapter_config, adapter_name)

    def set_adapters(self, adapter_names: str | Sequence[str], weights: Any = None) -> None:
        """Make adapters the active ones, with weights: numbers, or nested by block as `{"down": 0.5, "up": {...}}`."""
        late("adapters.networks").set_adapters(self, adapter_names, weights)

    def set_adapter(self, adapter_name: str | Sequence[str]) -> None:
        """Make adapters the active ones, each with its weight at 1."""
        late("adapters.networks").set_adapters(self, adapter_name, None)

    def active_adapters(self) -> list[str]:
        """Return the names of the active adapters."""
        return late("adapters.lora").active_names({"model": self})

    def enable_adapters(self) -> None:
        """Let the active adapters take effect again."""
        late("adapters.lora").enable({"model": self})

    def disable_adapters(self) -> None:
        """Let no adapter take effect, also none that is fused, until `enable_adapters`."""
        late("adapters.lora").disable({"model": self})

    def enable_lora(self) -> None:
        """Let the active adapters take effect again."""
        self.enable_adapters()

    def disable_lora(self) -> None:
        """Let no adapter take effect, also none that is fused, until `enable_lora`."""
        self.disable_adapters()

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Remove adapters; the weights are then exactly what they were."""
        late("adapters.lora").delete({"model": self}, adapter_names)

    def fuse_lora(
        self, lora_scale: float = 1.0, safe_fusing: bool = False, adapter_names: Sequence[str] | None = None
    ) -> None:
        """Make adapters, by default the active ones, part of the weights.

        Args:
            lora_scale: multiplies their weights.
            safe_fusing: refuse, and change nothing, when a weight would not be finite.
        """
        late("adapters.lora").fuse({"model": self}, scale=lora_scale, safe=safe_fusing, names=adapter_names)

    def unfuse_lora(self) -> None:
        """Take the fused adapters out of the weights, which are then exactly what they were."""
        late("adapters.lora").unfuse({"model": self})

    def unload_lora(self) -> None:
        """Remove every adapter."""
        late("adapters.lora").unload({"model": self})

    def enable_lora_hotswap(self, target_rank: int = 128, check_compiled: str = "error") -> None:
        """Make room in the adapters loaded from now on, so that others up to a rank can take their place.

        Args:
            check_compiled: what to do when an adapter is there already: "error", "warn" or "ignore".
        """
        late("adapters.lora").reserve({"model": self}, target_rank, check_compiled=check_compiled)


def rescale(network: nn.Module, factor: float | Tensor) -> list[tuple[nn.Module, Tensor]]:
    """Multiply the scales of active adapters, while a graph is compiled; return each delta and its scale before.

    Other tensors take their place meanwhile, so that an error in the graph leaves the adapters as they were.

    Raises:
        ConfigError: every active adapter is fused, where the factor can have no effect.
    """
    holders = [module for name, module in network.named_modules() if name.endswith(".adapter_deltas")]
    live: list[Any] = [deltas._modules[key] for deltas in holders for key in deltas.live]
    if not live and any(deltas.base_weight is not None for deltas in holders):
        raise ConfigError("The adapters are fused with fixed weights: unfuse them, or leave out the scale.")
    before = [(delta, delta.scale) for delta in live]
    for delta, scale in before:
        delta._buffers["scale"] = scale * factor
    return before


def takes_adapter_scale(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Let `cross_attention_kwargs={"scale": s}` of a forward pass multiply the weights of the active adapters."""
    position = list(inspect.signature(forward).parameters).index("cross_attention_kwargs") - 1

    def scaled(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = args[position] if len(args) > position else kwargs.get("cross_attention_kwargs")
        if not given or given.get("scale") is None:
            return forward(self, *args, **kwargs)
        if torch.compiler.is_compiling():
            before = rescale(self, given["scale"])
            output = forward(self, *args, **kwargs)
            for delta, scale in before:
                delta._buffers["scale"] = scale
            return output
        with late("adapters.lora").scaled({"model": self}, given["scale"]):
            return forward(self, *args, **kwargs)

    # A compiler keeps, counts and limits what it compiled by code: two networks that shared it would fill one limit.
    scaled.__code__ = scaled.__code__.replace(co_name=forward.__name__)
    return functools.wraps(forward)(scaled)
