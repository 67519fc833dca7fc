"""The documented LoRA methods of pipelines. The work is done in `adapters.lora`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, InputError, check_known
from .runs import current

if TYPE_CHECKING:
    from ..adapters.files import Source

Layers = Mapping[str, nn.Module | Tensor]
Where = str | os.PathLike | Mapping[str, Tensor]


COMPONENTS = ("unet", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer")
"""The components of pipelines that can have adapters."""


class either:
    """A method of a class that also knows the object that it was called on, if any: its first argument, or None."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    def __get__(self, instance: Any, owner: type) -> Callable[..., Any]:
        return partial(self.function, instance)


def work() -> Any:
    """Return the module that does the work; it is imported with the first adapter, not with a pipeline's class."""
    from ..adapters import lora

    return lora


def files() -> Any:
    """Return the module that opens what callers give."""
    from ..adapters import files

    return files


class StableDiffusionLoraLoaderMixin:
    """Adds the loading, scaling, fusing, saving and removing of LoRA adapters to a pipeline.

    Adapters sit on the networks, so that pipelines which share networks share their adapters.
    """

    _lora_loadable_modules: ClassVar[Sequence[str]] = COMPONENTS

    def _adaptable(self, components: Sequence[str] | None = None) -> dict[str, nn.Module]:
        """Return the networks that can have adapters, by component; of `components` those that are there."""
        if components is not None:
            known = self._lora_loadable_modules
            check_known(f"{type(self).__name__}, whose adapters lie in components: it", components, known)
        wanted = self._lora_loadable_modules if components is None else components
        found = {name: getattr(self, name, None) for name in wanted}
        return {name: model for name, model in found.items() if isinstance(model, nn.Module)}

    def _adapters_scaled(
        self, factor: float | None, components: Sequence[str] | None = None
    ) -> AbstractContextManager[None]:
        """Return the time in which a factor multiplies the weights of the active adapters, where there are any."""
        return work().scaled(self._adaptable(components), factor)

    # Loading --------------------------------------------------------------------------------------------------------

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: Where,
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Attach a LoRA of any dialect to the networks that it is for, and make it the only active adapter.

        Args:
            pretrained_model_name_or_path_or_dict: a file, a folder, a hub repository, or name -> tensor.
            adapter_name: by which it is called; "default_N" by default.
            hotswap: put it in the place of the adapter of that name, without compiling anew.
            kwargs: weight_name (the file in a folder or repository; needed when several could be it), subfolder,
                use_safetensors, metadata, network_alphas, and the options of the hub.

        Raises:
            ConfigError: the name is taken.
            InputError: no such file, or several that it could be.
            WeightsError: tensors that find no layer or do not fit; nothing is attached then.
        """
        source = files().opened(pretrained_model_name_or_path_or_dict, "load_lora_weights", kwargs)
        work().load(self._adaptable(), source, name=adapter_name, hotswap=hotswap)

    @either
    def lora_state_dict(self, pretrained_model_name_or_path_or_dict: Where, **kwargs: Any) -> tuple[Any, ...]:
        """Return the tensors of an adapter file as they are spelt there, and the alphas among them by name.

        Args:
            kwargs: as for `load_lora_weights`; unet_config is accepted and not needed: names find their layers when
                they are loaded. With return_lora_metadata=True the metadata is a third result.
        """
        told = kwargs.pop("return_lora_metadata", False)
        kwargs.pop("unet_config", None)
        source = files().opened(pretrained_model_name_or_path_or_dict, "lora_state_dict", kwargs)
        alphas = {name: float(value) for name, value in source.state.items() if name.endswith(".alpha")}
        state = {name: value for name, value in source.state.items() if name not in alphas}
        return (state, alphas or None, source.metadata or None) if told else (state, alphas or None)

    @classmethod
    def load_lora_into_unet(
        cls,
        state_dict: Mapping[str, Tensor],
        network_alphas: Mapping[str, float] | None,
        unet: nn.Module,
        adapter_name: str | None = None,
        _pipeline: Any = None,
        low_cpu_mem_usage: bool = False,
        hotswap: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Attach the part of a state dict that is for the UNet.

        Args:
            network_alphas: name -> alpha, as `lora_state_dict` returns them.
            adapter_name, hotswap: as for `load_lora_weights`.
            metadata: ranks and alphas as PEFT's configuration has them.
        """
        source = files().with_alphas(files().Source(state_dict), network_alphas, metadata)
        work().load({"unet": unet}, part_for("unet", source), name=adapter_name, hotswap=hotswap)

    @classmethod
    def load_lora_into_text_encoder(
        cls,
        state_dict: Mapping[str, Tensor],
        network_alphas: Mapping[str, float] | None,
        text_encoder: nn.Module,
        prefix: str | None = None,
        lora_scale: float = 1.0,
        adapter_name: str | None = None,
        _pipeline: Any = None,
        low_cpu_mem_usage: bool = False,
        hotswap: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Attach the part of a state dict that is for a text encoder.

        Args:
            prefix: "text_encoder" by default, or "text_encoder_2".
            lora_scale: weight of the adapter.
            network_alphas, adapter_name, hotswap, metadata: as for `load_lora_into_unet`.
        """
        component = prefix or "text_encoder"
        source = files().with_alphas(files().Source(state_dict), network_alphas, metadata)
        models = {component: text_encoder}
        work().load(models, part_for(component, source), name=adapter_name, hotswap=hotswap)
        if lora_scale != 1.0:
            work().activate(models, dict.fromkeys(work().active_names(models), lora_scale))

    # Saving ---------------------------------------------------------------------------------------------------------

    @either
    def save_lora_weights(
        self,
        save_directory: str | os.PathLike,
        unet_lora_layers: Layers | None = None,
        text_encoder_lora_layers: Layers | None = None,
        text_encoder_2_lora_layers: Layers | None = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable[..., Any] | None = None,
        safe_serialization: bool = True,
        unet_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_2_lora_adapter_metadata: Mapping[str, Any] | None = None,
        adapter_name: str | None = None,
        dialect: str | None = None,
        original: bool = False,
    ) -> None:
        """Write an adapter into a folder: the layers given, or, called on a pipeline without layers, what is loaded.

        Args:
            unet_lora_layers, text_encoder_lora_layers, text_encoder_2_lora_layers: name -> tensor or module.
            is_main_process: False writes nothing.
            weight_name: name of the file.
            save_function: called as `save_function(tensors, path)` in place of the own writer.
            safe_serialization: safetensors, or a torch pickle with False.
            unet_lora_adapter_metadata, ...: ranks and alphas of the layers as PEFT's configuration has them.
            adapter_name: which of several loaded adapters.
            dialect: "diffusers", "diffusers-old", "peft" or "kohya"; by default that of the adapter's file.
            original: in "kohya", name the layers of a UNet as in its authors' layout.

        Raises:
            ConfigError: nothing to save, or several adapters that could be meant.
            WeightsError: the dialect has no words for the adapter.
        """
        if not is_main_process:
            return
        writing = {"weight_name": weight_name, "save_function": save_function, "safe": safe_serialization}
        layers = {
            "unet": (unet_lora_layers, unet_lora_adapter_metadata),
            "text_encoder": (text_encoder_lora_layers, text_encoder_lora_adapter_metadata),
            "text_encoder_2": (text_encoder_2_lora_layers, text_encoder_2_lora_adapter_metadata),
        }
        given = {component: pair for component, pair in layers.items() if pair[0]}
        if given:
            files().write_tensors(save_directory, *packed(given), **writing)
        elif self is None:
            raise ConfigError("There is nothing to save: give layers, or call this on a pipeline with an adapter.")
        else:
            choice = {"name": adapter_name, "dialect": dialect, "original": original}
            work().save(self._adaptable(), save_directory, **choice, **writing)

    # Weights and activity -------------------------------------------------------------------------------------------

    def set_adapters(self, adapter_names: str | Sequence[str], adapter_weights: Any = None) -> None:
        """Make adapters the active ones, with weights.

        Args:
            adapter_names: one or several, which add up.
            adapter_weights: one for all or one for each: a number, or numbers by component, as in
                `{"text_encoder": 0.5, "unet": {"down": 0.9, "up": {"block_0": 0.6, "block_1": [0.4, 0.8, 1.0]}}}`.
                What is left out is 1. Weights by block are for attentions alone; other layers have 1.

        Raises:
            ConfigError: no such adapter, component or block.
            InputError: lists of the wrong length, or what is no number.
        """
        work().set_adapters(self._adaptable(), adapter_names, adapter_weights)

    def get_active_adapters(self) -> list[str]:
        """Return the names of the active adapters."""
        return work().active_names(self._adaptable())

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Return the names of the adapters by component."""
        return {component: own.names for component, own in work().stacks(self._adaptable()).items()}

    def disable_lora(self) -> None:
        """Let no adapter take effect, also none that is fused, until `enable_lora`."""
        work().disable(self._adaptable())

    def enable_lora(self) -> None:
        """Let the active adapters take effect again."""
        work().enable(self._adaptable())

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Remove adapters; when the only active ones go, the first that is left becomes active."""
        work().delete(self._adaptable(), adapter_names)

    def unload_lora_weights(self) -> None:
        """Remove every adapter, out of the weights too; the networks are then exactly what they were."""
        work().unload(self._adaptable())

    def set_lora_device(self, adapter_names: Sequence[str], device: torch.device | str | int) -> None:
        """Move the tensors of adapters to a device; those that are to be used must lie on their network's."""
        work().move(self._adaptable(), adapter_names, device)

    def enable_lora_hotswap(self, target_rank: int = 128, check_compiled: str = "error") -> None:
        """Make room in the adapters loaded from now on, so that others up to a rank can take their place.

        Args:
            check_compiled: what to do when an adapter is there already: "error", "warn" or "ignore".
        """
        work().reserve(self._adaptable(), target_rank, check_compiled=check_compiled)

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: str = "svd",
        svd_rank: int | None = None,
        svd_clamp: float | None = None,
        density: float | None = None,
        majority_sign_method: str = "total",
        generator: torch.Generator | None = None,
    ) -> None:
        """Merge adapters into a new one, which becomes the only active one; those that it is made of stay.

        Args:
            adapters, weights: names, and one weight for each.
            adapter_name: name of the new adapter.
            combination_type: "linear", "cat" (exact), "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune", or
                one of the last four with "_svd".
            svd_rank: rank of the result of "svd", by default the largest of the adapters.
            svd_clamp: quantile at which the entries of its factors are clamped.
            density: the fraction of entries that pruning keeps.
            majority_sign_method: "total" or "frequency", how TIES elects signs.
            generator: of the entries that DARE drops.
        """
        options = {"combination_type": combination_type, "svd_rank": svd_rank, "svd_clamp": svd_clamp}
        options |= {"density": density, "majority_sign_method": majority_sign_method, "generator": generator}
        work().combine(self._adaptable(), adapters, weights, adapter_name, **options)

    @property
    def lora_scale(self) -> float:
        """The factor that the run in progress puts on the adapters' weights, 1 outside a run."""
        run = current(self)
        given = (run.values.get("cross_attention_kwargs") or {}) if run is not None else {}
        return given.get("scale", 1.0)

    # Fusing ---------------------------------------------------------------------------------------------------------

    def fuse_lora(
        self,
        components: Sequence[str] | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> None:
        """Make adapters, by default the active ones, part of the weights.

        Args:
            components: where; everywhere by default.
            lora_scale: multiplies their weights.
            safe_fusing: refuse, and change nothing, when a weight would not be finite.
        """
        work().fuse(self._adaptable(components), scale=lora_scale, safe=safe_fusing, names=adapter_names)

    def unfuse_lora(self, components: Sequence[str] | None = None) -> None:
        """Take the fused adapters out of the weights, which are then exactly what they were."""
        work().unfuse(self._adaptable(components))

    @property
    def fused_loras(self) -> set[str]:
        """The names of the fused adapters."""
        return set(work().fused_names(self._adaptable()))

    @property
    def num_fused_loras(self) -> int:
        """How many adapters are fused."""
        return len(self.fused_loras)


def part_for(component: str, source: Source) -> Source:
    """Return the part of a source that is for a component, or that names none."""
    from ..weights.dialects.words import take_apart

    words = {name: take_apart(name) for name in source.state}
    state = {
        name: source.state[name] for name, word in words.items() if word is None or word.component in (None, component)
    }
    return replace(source, state=state)


def packed(
    given: Mapping[str, tuple[Layers | None, Mapping[str, Any] | None]],
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return layers of components under the names of a file, and its metadata."""
    state: dict[str, Tensor] = {}
    metadata: dict[str, Any] = {}
    for component, (layers, config) in given.items():
        for name, value in (layers or {}).items():
            inside = value.state_dict() if isinstance(value, nn.Module) else None
            if inside is None and not isinstance(value, Tensor):
                raise InputError(f"{name!r} of the {component} is a {type(value).__name__}; give tensors or modules.")
            found = {name: value} if inside is None else {f"{name}.{key}": tensor for key, tensor in inside.items()}
            state |= {f"{component}.{key.removeprefix(f'{component}.')}": tensor for key, tensor in found.items()}
        metadata |= {f"{component}.{key}": value for key, value in (config or {}).items()}
    return state, dict(files().with_alphas(files().Source({}), metadata=metadata).metadata)
