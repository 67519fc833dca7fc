"""The base of every network: configuration, loading, saving, attention processors, memory switches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core import garbage
from ..core.config import ConfigMixin, keywords, options_of
from ..core.errors import ConfigError, InputError, check_count, check_known
from ..core.hub import hub_options
from ..core.push import PushToHubMixin, check_push
from ..core.weights_io import held_bytes
from ..nn import processors
from .adapting import AdapterMixin
from .hollow import Hollow
from .loading import LEGACY_ATTENTION, Checkpoint, fill
from .placement import resolve_device, resolve_dtype
from .single_file import FromOriginalModelMixin
from .weight_files import find_weights, save_model


class SmallerMixin:
    """The documented ways of a network to take less memory, beside those of its attention."""

    modules: Callable[[], Iterator[nn.Module]]

    @property
    def dtype(self) -> torch.dtype:
        """Type that the network computes in."""
        raise NotImplementedError

    def enable_layerwise_casting(
        self,
        storage_dtype: torch.dtype = torch.float8_e4m3fn,
        compute_dtype: torch.dtype | None = None,
        skip_modules_pattern: tuple[str, ...] | None = None,
        skip_modules_classes: tuple[type[nn.Module], ...] | None = None,
        non_blocking: bool = False,
    ) -> None:
        """Store the weights of linear layers, convolutions and embeddings in a small type, and cast them when used.

        Rounds the weights, so that the picture changes. Adapters work unfused. `save_pretrained` writes the small type.

        Args:
            storage_dtype: type of the stored weights.
            compute_dtype: type of the computation; the model's own if unset.
            skip_modules_pattern: regular expressions of names to leave out, besides "norm".
            skip_modules_classes: classes to leave out.
            non_blocking: let the device cast while the program goes on.

        Raises:
            ConfigError: for types that are not floating-point, a model in training, fused adapters, or a second call.
        """
        from ..nn import casting

        compute = self.dtype if compute_dtype is None else compute_dtype
        skipped = {"patterns": skip_modules_pattern, "classes": skip_modules_classes}
        casting.enable(self, storage_dtype, compute, **skipped, non_blocking=non_blocking)
        vars(self)["_computing"] = compute

    def disable_layerwise_casting(self) -> None:
        """Store the weights in the type of the computation again; they stay as they were rounded."""
        from ..nn import casting

        casting.disable(self)
        vars(self).pop("_computing", None)

    def enable_forward_chunking(self, chunk_size: int | None = None, dim: int = 0) -> None:
        """Compute the feed-forward networks of transformer blocks in parts, which takes less memory and more time.

        Args:
            chunk_size: rows or tokens at a time, 1 if unset; the last part may have fewer.
            dim: 0 for rows of the batch, 1 for tokens.

        Raises:
            InputError: for a size or a dimension that is none.
            ConfigError: for a model without transformer blocks.
        """
        size = 1 if chunk_size is None else chunk_size
        check_count("chunk_size", size)
        self._chunk(size, dim)

    def disable_forward_chunking(self) -> None:
        """Compute feed-forward networks in one step again."""
        self._chunk(None, 0)

    def _chunk(self, size: int | None, dim: int) -> None:
        blocks = [module for module in self.modules() if hasattr(module, "set_chunk_feed_forward")]
        if not blocks:
            raise ConfigError(f"{type(self).__name__} has no transformer blocks, whose networks could be chunked.")
        for block in blocks:
            block.set_chunk_feed_forward(size, dim)


class ModelMixin(nn.Module, SmallerMixin, AdapterMixin, FromOriginalModelMixin, PushToHubMixin, ConfigMixin):
    """A torch module that is described by `config.json` and keeps its weights beside it.

    Class attributes:
        renamed_weights: (pattern, replacement) for names in old files; see `loading.LEGACY_ATTENTION`.
        ignored_weights: patterns of names that files may hold and the model does not need.
    Buffers that are not part of a checkpoint must be made with `device="cpu"`, since loading builds on the meta device.
    """

    config_name = "config.json"
    renamed_weights: ClassVar[tuple[tuple[str, str], ...]] = LEGACY_ATTENTION
    ignored_weights: ClassVar[tuple[str, ...]] = ()

    # -- loading and saving -----------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        subfolder: str | None = None,
        variant: str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        use_safetensors: bool | None = None,
        strict: bool = True,
        ignore_mismatched_sizes: bool = False,
        check_finite: bool | None = None,
        output_loading_info: bool = False,
        device_map: Any = None,
        low_cpu_mem_usage: bool | None = None,
        disable_mmap: bool = False,
        keep_cast: bool = False,
        config: Mapping[str, Any] | str | os.PathLike | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool | None = None,
        token: str | bool | None = None,
        force_download: bool | None = None,
        proxies: Mapping[str, str] | None = None,
        **overrides: Any,
    ) -> Any:
        """Load a model from a folder or a hub repository, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a local folder, which never touches the network, or a repository.
            subfolder: folder inside it, for example "unet".
            variant: variant of the weight files, for example "fp16" for `diffusion_pytorch_model.fp16.safetensors`;
                when None the plain files, or the only variant there is, which is logged.
            torch_dtype, dtype: type of the floating-point weights, as torch.dtype or name; "auto" keeps the file's.
                float32 where nothing is asked.
            use_safetensors: True for safetensors only, False for .bin only, None for safetensors before .bin.
            strict: with False, weights that are missing are initialised afresh and foreign ones left out, with a
                warning.
            ignore_mismatched_sizes: weights of another shape are initialised afresh, with a warning; needed for
                overrides such as `in_channels=9`.
            check_finite: refuse weights with NaN or infinity. None looks at the values that loading reads, all but
                those that stay in the file because they need no cast; True reads these too; False looks at none.
            output_loading_info: return `(model, info)` with missing_keys, unexpected_keys and mismatched_keys.
            device_map: one device for the whole model: a name, a torch.device, "auto", or {"": device}.
            low_cpu_mem_usage: accepted for its documented callers; loading always needs little memory.
            disable_mmap: read all weights into memory, where those that need no cast are otherwise mapped.
            keep_cast: keep weights that need a cast in the wanted type on the disk, and map them from there the next
                time; see `kept_casts`.
            config: configuration in place of the folder's: a mapping, file or folder.
            revision, cache_dir, local_files_only, token, force_download, proxies: see `core.hub`.
            overrides: keys of the configuration to change.

        Raises:
            WeightsError: weights are absent, damaged, not finite, or do not fit; the message lists them.
            ConfigError: an unknown keyword, or a configuration that cannot be read.
            InputError: the folder or repository does not exist.
        """
        hub = hub_options(locals())
        if overrides:
            check_known(f"{cls.__name__}.from_pretrained", overrides, _keywords(cls))
        target, device = resolve_dtype(torch_dtype, dtype), resolve_device(device_map)
        source, folder = (pretrained_model_name_or_path, subfolder) if config is None else (config, None)
        values = cls.load_config(source, folder, **hub)
        files = find_weights(
            pretrained_model_name_or_path,
            subfolder=subfolder,
            variant=variant,
            use_safetensors=use_safetensors,
            **hub,
        )
        what = _title(cls, values, files.files[0].parent)
        if keep_cast:
            from .kept_casts import kept

            files = kept(files, target)
        build = partial(cls.from_config, values, **overrides)
        with garbage.put_off():
            with Hollow():
                model = build()
            known, renames = model.state_dict(), cls.renamed_weights
            with Checkpoint(files, known=known, renames=renames, use_map=not disable_mmap) as checkpoint:
                report = fill(
                    model,
                    checkpoint,
                    what=what,
                    rebuild=build,
                    ignored=cls.ignored_weights,
                    dtype=target,
                    device=device,
                    strict=strict,
                    ignore_mismatched_sizes=ignore_mismatched_sizes,
                    check_finite=check_finite,
                )
        model.eval()
        return (model, report.as_dict()) if output_loading_info else model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        save_function: Callable[[Mapping[str, Tensor], Any], None] | None = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        push_to_hub: bool = False,
        **hub: Any,
    ) -> None:
        """Write `config.json` and the weights into a folder, all of it or, if interrupted, nothing.

        Args:
            save_directory: folder to write; files in it that this save does not replace stay.
            is_main_process: False writes nothing (the other processes of a distributed run).
            save_function: called as `save_function(tensors, path)` for every weight file in place of the own writer.
            safe_serialization: safetensors, or a torch pickle (.bin) with False.
            variant: put into the file names, for example "fp16"; the weights keep the type they have.
            max_shard_size: largest weight file, in bytes or as "10GB"; more files get an index.
            push_to_hub: upload the folder afterwards.
            hub: with push_to_hub: repo_id, commit_message, private, token, create_pr, subfolder.

        Raises:
            InputError: a size or variant that makes no sense, or a file in the folder's place.
            WeightsError: a weight without values or of a type that the format does not know.
        """
        what, known = f"{type(self).__name__}.save_pretrained", keywords(self.save_pretrained)
        check_push(what, hub, known, push_to_hub, cardless=self._cardless)
        if not is_main_process:
            return
        save_model(
            self.state_dict(),
            save_directory,
            config_name=self.config_name,
            config=self.to_json_string(),
            variant=variant,
            safe_serialization=safe_serialization,
            max_shard_size=max_shard_size,
            save_function=save_function,
        )
        if push_to_hub:
            self._upload(save_directory, hub)

    # -- facts --------------------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        """Type of the first floating-point parameter, or of the first buffer where there are no parameters.

        With layerwise casting the type of the computation.
        """
        if "_computing" in vars(self):
            return vars(self)["_computing"]
        tensors = chain(self.parameters(), self.buffers())
        return next((t.dtype for t in tensors if t.is_floating_point()), torch.get_default_dtype())

    @property
    def device(self) -> torch.device:
        """Device of the first parameter or buffer."""
        return next((t.device for t in chain(self.parameters(), self.buffers())), torch.device("cpu"))

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Count the parameters; optionally only those with gradients, or without the weights of nn.Embedding."""
        embeddings = {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)} if exclude_embeddings else ()
        return sum(
            p.numel() for p in self.parameters() if id(p) not in embeddings and (p.requires_grad or not only_trainable)
        )

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Return the bytes of all parameters, and of the buffers unless told otherwise."""
        tensors = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(map(held_bytes, tensors))

    # -- gradient checkpointing ---------------------------------------------------------------------------------------

    @property
    def supports_gradient_checkpointing(self) -> bool:
        """Whether any part of the model can recompute its activations."""
        return any(hasattr(module, "gradient_checkpointing") for module in self.modules())

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether any part of the model recomputes its activations in the backward pass."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Callable[..., Any] | None = None) -> None:
        """Recompute activations in the backward pass, through torch's checkpointing or through the given function.

        gradient_checkpointing_func: called as `function(block, *args, **kwargs)`, returns the block's output.
        Raises ConfigError when no part of the model can.
        """
        if not self.supports_gradient_checkpointing:
            raise ConfigError(f"{type(self).__name__} has no part that can recompute its activations")
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):
                vars(module)["gradient_checkpointing"] = True
                if gradient_checkpointing_func is not None:
                    vars(module)["gradient_checkpointing_function"] = gradient_checkpointing_func

    def disable_gradient_checkpointing(self) -> None:
        """Keep activations for the backward pass (the default)."""
        for module in self.modules():
            for attribute in ("gradient_checkpointing", "gradient_checkpointing_function"):
                vars(module).pop(attribute, None)

    # -- attention ----------------------------------------------------------------------------------------------------

    @property
    def attn_processors(self) -> dict[str, Any]:
        """The processor of every attention layer, by the layer's name followed by ".processor"."""
        return processors.get_processors(self)

    def set_attn_processor(self, processor: Any) -> None:
        """Give every attention layer one processor, or each its own from a dictionary keyed as `attn_processors`.

        Raises ConfigError when a dictionary does not name every layer exactly.
        """
        processors.set_processors(self, processor)

    def set_default_attn_processor(self) -> None:
        """Give every attention layer the vanilla processor: plain tensor operations, fit for export."""
        processors.set_vanilla_processors(self)

    def set_attention_backend(self, backend: str) -> None:
        """Compute the attention of this model with the named backend, for example "sdpa", "eager" or "xformers".

        Raises ConfigError for an unknown name, MissingDependencyError for a package that is not installed.
        """
        processors.set_backend(self, backend)

    def reset_attention_backend(self) -> None:
        """Compute the attention of this model with the library's default backend."""
        processors.set_backend(self, None)

    def set_attention_slice(self, slice_size: str | int | list[int] | None = "auto") -> None:
        """Compute attention in slices of (image, head) pairs to save memory.

        "auto" takes half of a layer's heads at a time, "max" one, a number that many, a list one number per layer,
        None all at once. Raises InputError for a number above a layer's heads or a list of the wrong length.
        """
        processors.set_slices(self, slice_size)

    def enable_xformers_memory_efficient_attention(self, attention_op: Callable | None = None) -> None:
        """Compute attention through the xformers package, which picks its kernel; `attention_op` is reported."""
        processors.report_attention_op(attention_op)
        self.set_attention_backend("xformers")

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Compute attention with the library's default backend again."""
        self.reset_attention_backend()


def check_maps(name: str, maps: Tensor, option: str, channels: int) -> None:
    """Raise InputError unless `maps` is (batch, channels, height, width); `option` is what names the channels."""
    if maps.dim() != 4 or maps.shape[1] != channels:
        raise InputError(
            f"{name} has shape {tuple(maps.shape)}, but this model's {option} asks for "
            f"(batch, {channels}, height, width)"
        )


def _keywords(cls: type[ModelMixin]) -> list[str]:
    """Return every keyword that `cls.from_pretrained` understands."""
    return [*keywords(cls.from_pretrained), *options_of(cls), *cls.renamed_options]


def _title(cls: type[ModelMixin], values: Mapping[str, Any], folder: Path) -> str:
    """Return how a load is called in messages; a folder that describes another class says so."""
    written = values.get("_class_name", cls.__name__)
    other = "" if written == cls.__name__ else f" (whose configuration is that of {written})"
    return f"{cls.__name__} from {folder}{other}"
