"""The documented loading of a network from a file in its authors' own layout. The work is done in `weights`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..core.hub import hub_options
from ..core.imports import late
from .placement import resolve_device, resolve_dtype


class FromOriginalModelMixin:
    """Adds `from_single_file` to a network."""

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path_or_dict: str | os.PathLike | Mapping[str, Tensor],
        *,
        torch_dtype: Any = None,
        dtype: Any = None,
        config: str | os.PathLike | None = None,
        subfolder: str | None = None,
        original_config: Any = None,
        extract_ema: bool = False,
        strict: bool = True,
        ignore_mismatched_sizes: bool = False,
        check_finite: bool | None = None,
        device: Any = None,
        device_map: Any = None,
        disable_mmap: bool = False,
        low_cpu_mem_usage: bool | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool | None = None,
        token: str | bool | None = None,
        force_download: bool | None = None,
        proxies: Mapping[str, str] | None = None,
        **overrides: Any,
    ) -> Any:
        """Load this network from one file in its authors' own layout, alone in it or beside others.

        Args:
            pretrained_model_link_or_path_or_dict: a .safetensors, .ckpt, .pt or .bin file, its address on the hub
                (https://huggingface.co/OWNER/NAME/blob/main/FILE), or its tensors by name.
            torch_dtype, dtype: type of the floating-point weights, as torch.dtype or name; "auto" keeps the file's.
                float32 where nothing is asked.
            config: folder or repository with the network's config.json; told from the file where None.
            subfolder: folder inside `config`.
            original_config: the authors' YAML file, a path or its contents.
            extract_ema: take the moving averages of a UNet's weights, where the file has them.
            strict, ignore_mismatched_sizes, check_finite: as in `from_pretrained`.
            device, device_map: where the weights go.
            disable_mmap: read weights into memory that would otherwise map the file.
            low_cpu_mem_usage: accepted for its documented callers; loading always needs little memory.
            revision, cache_dir, local_files_only, token, force_download, proxies: see `core.hub`.
            overrides: keys of the configuration to change.

        Raises:
            WeightsError: the file is damaged, of no known layout, or does not hold this network, whole.
            InputError: the file does not exist.
            ConfigError: an unknown keyword, or a configuration that can neither be read nor told from shapes.
        """
        hub = hub_options(locals())
        return late("weights.single_file").load_model(
            cls,
            pretrained_model_link_or_path_or_dict,
            dtype=resolve_dtype(torch_dtype, dtype),
            device=resolve_device(device if device is not None else device_map),
            hub=hub,
            overrides=overrides,
            config=config,
            subfolder=subfolder,
            original_config=original_config,
            extract_ema=extract_ema,
            strict=strict,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            check_finite=check_finite,
            use_map=not disable_mmap,
        )
