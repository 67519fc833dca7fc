"""The base of every pipeline: named components, loading and saving, devices, and memory switches that it delegates."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from ..core.config import FORMAT_VERSION, Config, ConfigMixin
from ..core.errors import ConfigError, check_known
from ..core.hub import hub_options
from ..core.images import from_array
from ..core.progress import progress_bar
from ..core.push import PushToHubMixin, check_push
from ..families.common import dtype_of
from ..models.placement import present, resolve_device
from . import files, loading
from .memory import MemoryMixin
from .runs import InterruptField
from .sharing import share

if TYPE_CHECKING:
    from . import custom


class DiffusionPipeline(MemoryMixin, PushToHubMixin, ConfigMixin):
    """A bundle of named components (networks, tokenizers, a scheduler) that generates with one call.

    A subclass passes its components to `register_modules` in `__init__` and writes `__call__`. Components are plain
    attributes: reading, replacing and sharing them with another pipeline needs nothing else.

    Attributes:
        config_name: the file that names the class and the components.
        _optional_components: components that may be None.
        _callback_tensor_inputs: names of the tensors that a step-end callback may ask for.
    """

    config_name = "model_index.json"
    _code: ClassVar[custom.Source | None] = None
    _optional_components: ClassVar[Sequence[str]] = ()
    _callback_tensor_inputs: ClassVar[Sequence[str]] = ("latents",)
    interrupt = InterruptField()
    _interrupt = InterruptField()

    def register_modules(self, **components: Any) -> None:
        """Make every keyword a component: an attribute that is saved, moved and shared. None marks an absent one."""
        for name, component in components.items():
            loading.check_component(type(self).__name__, name, component)
            setattr(self, name, component)
        known = self.__dict__.setdefault("_component_names", [])
        known.extend(name for name in components if name not in known)

    @property
    def components(self) -> dict[str, Any]:
        """The components by name, ready for the constructor of another pipeline: `Other(**pipe.components)`."""
        return {name: getattr(self, name) for name in self.__dict__.get("_component_names", ())}

    @property
    def config(self) -> Config:
        """The contents of model_index.json: options, and library and class of every present component."""
        found = {name: loading.identify(component) for name, component in self.components.items()}
        names = {"_class_name": type(self).__name__, "_diffusers_version": FORMAT_VERSION}
        return Config({**super().config, **found, **names})

    @property
    def name_or_path(self) -> str | None:
        """Where the pipeline was loaded from, or None."""
        return self.__dict__.get("_name_or_path")

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.config!r}"

    def _part(self, name: str) -> Any:
        """Return a component that a call cannot do without.

        Raises:
            ConfigError: naming it, when it is None.
        """
        component = getattr(self, name, None)
        if component is None:
            raise ConfigError(f"This {type(self).__name__} has no {name}, and the call needs it; set `pipe.{name}`.")
        return component

    # Loading and saving ----------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        torch_dtype: files.DtypeChoice = None,
        dtype: files.DtypeChoice = None,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        device_map: Any = None,
        low_cpu_mem_usage: bool | None = None,
        keep_cast: bool = False,
        revision: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool | None = None,
        token: str | bool | None = None,
        force_download: bool | None = None,
        proxies: Mapping[str, str] | None = None,
        custom_pipeline: str | os.PathLike | None = None,
        custom_revision: str | None = None,
        trust_remote_code: bool | str | None = None,
        **components: Any,
    ) -> Any:
        """Build a pipeline from a local folder or a hub repository.

        `DiffusionPipeline` builds the class that the folder names, a subclass builds itself. A local folder never
        touches the network.

        Args:
            torch_dtype, dtype: type of the weights, float32 when None; or a mapping from component to type with
                "default" for the rest.
            variant: which variant of the weights, such as "fp16" or "non_ema"; components that have none are loaded
                from their plain files, with a warning. When None the plain files, or a component's only variant.
            use_safetensors: True refuses pickled weights, False refuses safetensors, None prefers safetensors.
            device_map: one device to move the pipeline to, such as "cuda"; "auto" takes the accelerator if any.
            low_cpu_mem_usage: accepted as documented; loading never holds the weights twice, whatever it says.
            keep_cast: keep weights that need a cast in the wanted type on the disk, and map them from there the next
                time; see `models.kept_casts`. Text encoders that transformers loads are cast every time.
            revision, cache_dir, local_files_only, token, force_download, proxies: see `core.hub`.
            custom_pipeline: code of the class: a file, a folder or hub repository with `pipeline.py`, or the name of a
                community pipeline; see `pipelines.custom`. Weights and components are those of the first argument.
            custom_revision: revision of the code, or version of the community pipelines.
            trust_remote_code: True lets a pipeline's code run; "sha256:..." only the content with that digest.
            components: a component by name in place of the stored one, or None to leave it out; options of the
                constructor such as `requires_safety_checker`.

        Raises:
            ConfigError: for an unknown keyword, class or component type, or a component that is missing.
            InputError: for a path or repository that does not exist, or a variant nobody has.
            WeightsError: for missing or damaged weights.
        """
        hub = hub_options(locals())
        choices = files.Choices(files.dtypes(torch_dtype, dtype), variant, use_safetensors, keep_cast)
        device = None if device_map is None else resolve_device(device_map)
        from . import custom

        code = custom.Code(custom_pipeline, custom_revision, trust_remote_code, hub)
        pipe = loading.load(cls, pretrained_model_name_or_path, choices=choices, given=components, hub=hub, code=code)
        return pipe if device is None else pipe.to(device)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **components: Any) -> Any:
        """Build a pipeline of this class over the components of another; nothing is loaded or copied.

        See `pipelines.sharing.share`, also for `torch_dtype`.

        Args:
            components: components and options of the constructor in place of the other pipeline's.
        """
        return share(cls, pipeline, components)

    @classmethod
    def download(
        cls,
        pretrained_model_name: str | os.PathLike,
        *,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        **hub: Any,
    ) -> Path:
        """Fetch the files of a pipeline, and only those it needs, and return the local folder.

        Args:
            hub: `revision`, `cache_dir`, `local_files_only`, `token`, `force_download`.
        """
        choices = files.Choices({}, variant, use_safetensors)
        return files.fetch(cls, pretrained_model_name, choices=choices, hub=hub)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **hub: Any,
    ) -> None:
        """Write model_index.json and one folder per component, the whole folder or nothing.

        Files of an existing folder that this save does not write, such as other variants, stay.

        Args:
            push_to_hub: upload the folder afterwards, with a model card where the repository has no README.md.
            hub: with `push_to_hub` the options of an upload, such as `repo_id` and `private`; see `push_to_hub`.
        """
        options = {"safe_serialization": safe_serialization, "variant": variant, "max_shard_size": max_shard_size}
        check_push(f"{type(self).__name__}.save_pretrained", hub, options, push_to_hub, cardless=self._cardless)
        loading.save(self, save_directory, options)
        if push_to_hub:
            self._upload(save_directory, hub)

    def _card(self, license: str | None) -> Callable[[str], str]:
        from .cards import card

        return lambda repo_id: card(self, repo_id, license=license)

    # Devices ---------------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """The device of the first network; the CPU when there is none."""
        devices = (
            getattr(m, "device", None) or next((p.device for p in m.parameters()), None)
            for m in self._networks.values()
        )
        return next((torch.device(d) for d in devices if d is not None), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the first network's weights; float32 when there is none."""
        return next((dtype_of(network, torch.float32) for network in self._networks.values()), torch.float32)

    @property
    def _execution_device(self) -> torch.device:
        return self.device if self._offload is None else self._offload.device

    def to(self, *args: Any, silence_dtype_warnings: bool = False, **kwargs: Any) -> Any:
        """Move and cast all networks in place and return the pipeline.

        Takes a device, a dtype, or both in any order, or the keywords `device` / `torch_device` and `dtype` /
        `torch_dtype`. A number is that of an accelerator, as ranks are. `silence_dtype_warnings` is accepted as
        documented; there is no warning to silence.

        Raises:
            InputError: for a device that is not here.
        """
        check_known("DiffusionPipeline.to", kwargs, ["device", "dtype", "torch_device", "torch_dtype"])
        given = [(name.removeprefix("torch_"), value) for name, value in kwargs.items()]
        given += [("dtype" if isinstance(value, torch.dtype) else "device", value) for value in args]
        named: dict[str, Any] = {}
        for kind, value in given:
            if kind in named and value is not None:
                raise ConfigError(f"`to` was given two values for {kind}: {named[kind]} and {value}.")
            named |= {} if value is None else {kind: present(value) if kind == "device" else value}
        if self._offload is not None:
            if torch.device(named.get("device", "cpu")).type != "cpu":
                raise ConfigError("The networks go to the device by themselves; `remove_all_hooks()` ends that.")
            self._offload.detach()
        for module in self._networks.values():
            module.to(**named)
        return self

    # Progress and pictures -------------------------------------------------------------------------------------------

    def set_progress_bar_config(self, **options: Any) -> None:
        """Set tqdm's options for the progress bars of this pipeline, such as `disable=True`."""
        self._progress_bar_config = options

    def progress_bar(self, iterable: Iterable | None = None, total: int | None = None) -> Any:
        """Return a progress bar over `iterable`, or one up to `total`."""
        if (iterable is None) == (total is None):
            raise ConfigError("Pass either `iterable` or `total` to progress_bar.")
        return progress_bar(iterable, total, **self.__dict__.get("_progress_bar_config", {}))

    @staticmethod
    def numpy_to_pil(images: np.ndarray) -> list[Any]:
        """Return PIL pictures from an array (batch, height, width, channels) in [0, 1]."""
        return from_array(images)
