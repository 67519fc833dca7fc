"""The documented loading of a pipeline from one file in its authors' own layout. The work is done in `assembly`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..core.hub import hub_options
from ..models.placement import resolve_device
from . import files


class FromSingleFileMixin:
    """Adds `from_single_file` to a pipeline."""

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: str | os.PathLike,
        *,
        torch_dtype: files.DtypeChoice = None,
        dtype: files.DtypeChoice = None,
        config: str | os.PathLike | None = None,
        original_config: Any = None,
        original_config_file: Any = None,
        extract_ema: bool = False,
        prediction_type: str | None = None,
        image_size: int | None = None,
        num_in_channels: int | None = None,
        upcast_attention: bool | None = None,
        scheduler_type: str | None = None,
        strict: bool = True,
        device_map: Any = None,
        disable_mmap: bool = False,
        low_cpu_mem_usage: bool | None = None,
        use_safetensors: bool | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool | None = None,
        token: str | bool | None = None,
        force_download: bool | None = None,
        proxies: Mapping[str, str] | None = None,
        **components: Any,
    ) -> Any:
        """Build this pipeline from one file that holds its networks in their authors' own layout.

        Configurations and tokenizers that the file does not hold come with this library, so a local file never touches
        the network. The file is read, never executed, whatever its kind.

        Args:
            pretrained_model_link_or_path: a .safetensors or .ckpt file, or its address on the hub
                (https://huggingface.co/OWNER/NAME/blob/main/FILE).
            torch_dtype, dtype: as in `from_pretrained`.
            config: a folder or repository in the documented layout whose configurations, scheduler and tokenizers are
                taken; needed for networks of unpublished sizes only.
            original_config, original_config_file: the authors' YAML file, a path or its contents.
            extract_ema: take the moving averages of the UNet's weights, where the file has them.
            prediction_type: "epsilon", "v_prediction" or "sample", in place of what the file tells.
            image_size: side of the training pictures in pixels, in place of what the file tells.
            num_in_channels, upcast_attention: options of the UNet to change.
            scheduler_type: one of ddim, ddpm, deis, dpm, euler, euler-ancestral, heun, lms, pndm, unipc.
            strict: with False, missing weights are initialised afresh and foreign ones left out, with a warning.
            device_map: one device to move the pipeline to.
            disable_mmap: read weights into memory that would otherwise map the file.
            low_cpu_mem_usage, use_safetensors: accepted as documented; both kinds of files are read safely.
            revision, cache_dir, local_files_only, token, force_download, proxies: see `core.hub`.
            components: a component by name in place of the file's, or None to leave it out; options of the constructor.

        Raises:
            WeightsError: the file is damaged, of no known layout, or does not hold what the pipeline needs, whole.
            InputError: the file does not exist.
            ConfigError: the file is for another pipeline, which is named, or an argument is unknown.
        """
        hub = hub_options(locals())
        from .assembly import load_single_file

        unet = {"in_channels": num_in_channels, "upcast_attention": upcast_attention}
        pipe = load_single_file(
            cls,
            pretrained_model_link_or_path,
            components,
            choices=files.Choices(files.dtypes(torch_dtype, dtype)),
            hub=hub,
            overrides={name: value for name, value in unet.items() if value is not None},
            scheduler_type=scheduler_type,
            use_map=not disable_mmap,
            config=config,
            original_config=original_config if original_config is not None else original_config_file,
            prediction_type=prediction_type,
            image_size=image_size,
            extract_ema=extract_ema,
            strict=strict,
        )
        return pipe if device_map is None else pipe.to(resolve_device(device_map))

    @classmethod
    def from_ckpt(cls, pretrained_model_link_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """Build this pipeline from one file; the older name of `from_single_file`, whose arguments it takes."""
        return cls.from_single_file(pretrained_model_link_or_path, **kwargs)
