"""Configurations: frozen, keyed by the documented JSON keys, strict towards callers and lossless towards files."""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from .errors import ConfigError, check_known
from .files import atomic_write, read_json, resolve_file
from .logging import get_logger
from .push import check_push, upload

logger = get_logger(__name__)
FORMAT_VERSION = "0.42.1"
"""Version of the documented file format that is written as `_diffusers_version`."""

Init = TypeVar("Init", bound=Callable[..., None])
_DEFAULTED = "_use_default_values"


class Config(dict):
    """An immutable dictionary with attribute access, printed as JSON with sorted keys and two spaces."""

    def _frozen(self, *args: Any, **kwargs: Any) -> None:
        raise ConfigError("A config cannot be changed; build a new object with `from_config(config, key=value)`.")

    __setitem__ = __delitem__ = update = pop = popitem = clear = setdefault = __ior__ = _frozen  # type: ignore[assignment]

    def __setattr__(self, name: str, value: Any) -> None:
        self._frozen()

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"The config has no key {name!r}.") from None

    def __repr__(self) -> str:
        return to_json(self)

    def __reduce__(self) -> tuple[type, tuple[dict]]:
        return type(self), (dict(self),)

    def __copy__(self) -> Config:
        return self

    def __deepcopy__(self, memo: dict) -> Config:
        return self


def _plain(value: Any) -> Any:
    """Return `value` in terms that JSON knows."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return value.as_posix()
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if hasattr(value, "config") and isinstance(value.config, Mapping):
        return _plain(value.config)
    return str(value)


def to_json(values: Mapping[str, Any]) -> str:
    """Return the JSON text of `values`: sorted keys, two-space indentation."""
    return json.dumps(_plain(values), indent=2, sort_keys=True)


def keywords(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters that a function or method takes by name, without self."""
    found = inspect.signature(function).parameters.values()
    return {p.name: p for p in found if p.name != "self" and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


_kept_keywords = functools.lru_cache(maxsize=512)(keywords)


def options_of(cls: type[Any]) -> dict[str, inspect.Parameter]:
    """Return the options that a class is built with: the parameters of its `__init__` by name."""
    return _kept_keywords(cls.__init__)


def register_to_config(init: Init) -> Init:
    """Decorate an `__init__` so that its arguments, defaults included, become `self.config`; `_setup` follows it."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapped(self: ConfigMixin, *args: Any, **kwargs: Any) -> None:
        hidden = kwargs.pop("_hidden", {})
        check_known(type(self).__name__, kwargs, [*options_of(type(self)), *self.renamed_options])
        kwargs = {self.renamed_options.get(name, name): value for name, value in kwargs.items()}
        bound = signature.bind(self, *args, **kwargs)
        given = set(bound.arguments)
        bound.apply_defaults()
        named = [name for name in _kept_keywords(init) if name not in self.ignore_for_config]
        values = {name: bound.arguments[name] for name in named}
        defaulted = sorted(name for name in values if name not in given)
        self.register_to_config(**{**hidden, **values, "_class_name": type(self).__name__, _DEFAULTED: defaulted})
        init(self, *args, **kwargs)
        self._setup()

    return wrapped  # type: ignore[return-value]


class ConfigMixin:
    """Base of everything that is built from a JSON file: models, schedulers, pipelines.

    Attributes:
        config_name: file name of the configuration inside a folder.
        ignore_for_config: arguments of `__init__` that are not part of the configuration.
        renamed_options: old documented argument name -> present name.
    """

    config_name: ClassVar[str | None] = None
    ignore_for_config: ClassVar[tuple[str, ...]] = ()
    renamed_options: ClassVar[dict[str, str]] = {}
    _internal_config: Config

    @property
    def config(self) -> Config:
        """The frozen configuration, unknown keys of the loaded file included."""
        return self.__dict__.get("_internal_config", Config())

    @property
    def _internal_dict(self) -> Config:
        """The configuration, under the name by which pipeline files written for diffusers replace it."""
        return self.config

    @_internal_dict.setter
    def _internal_dict(self, values: Mapping[str, Any]) -> None:
        self.__dict__["_internal_config"] = Config(values)

    def _setup(self) -> None:
        """Finish the object by its configuration, after `__init__`."""

    def register_to_config(self, **values: Any) -> None:
        """Add `values` to the configuration."""
        self.__dict__["_internal_config"] = Config({**self.config, **values})

    @classmethod
    def from_config(cls, config: Mapping[str, Any], return_unused_kwargs: bool = False, **overrides: Any) -> Any:
        """Build the object that `config` describes; `overrides` are the caller's own choices and win.

        Keys of `config` that this class does not know are kept in `.config`, and reported when the file was written for
        this class. Values that nobody had chosen are filled in from this class's own defaults.

        Args:
            return_unused_kwargs: return `(object, unused)` instead of raising for unknown overrides.

        Raises:
            ConfigError: for an unknown override, a required option that is missing, or when `config` is no mapping.
        """
        if not isinstance(config, Mapping):
            raise ConfigError(
                f"{cls.__name__}.from_config takes a mapping, not {type(config).__name__}; "
                f"for a file or folder call {cls.__name__}.from_pretrained or load_config."
            )
        options = options_of(cls)
        known = [*options, *cls.renamed_options]
        unused = {k: v for k, v in overrides.items() if k not in known}
        if unused and not return_unused_kwargs:
            check_known(cls.__name__, unused, known)
        defaulted = config.get(_DEFAULTED, ())
        loaded = {k: v for k, v in config.items() if not k.startswith("_") and k not in defaulted}
        for old, new in cls.renamed_options.items():
            if old in loaded:
                loaded.setdefault(new, loaded[old])
                del loaded[old]
        values = {k: v for k, v in loaded.items() if k in options}
        hidden = {k: v for k, v in loaded.items() if k not in options}
        if hidden and config.get("_class_name") == cls.__name__:
            logger.warning(
                "%s does not use these keys of its configuration file; they are kept: %s",
                cls.__name__, ", ".join(sorted(hidden)),
            )  # fmt: skip
        values |= {k: v for k, v in overrides.items() if k not in unused}
        absent = [name for name, option in options.items() if option.default is option.empty and name not in values]
        if absent:
            raise ConfigError(f"{cls.__name__} needs {', '.join(absent)}, which the configuration does not hold.")
        obj = cls(**values, _hidden=hidden)  # type: ignore[call-arg]
        return (obj, unused) if return_unused_kwargs else obj

    @classmethod
    def load_config(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | Mapping[str, Any],
        subfolder: str | None = None,
        **hub: Any,
    ) -> dict[str, Any]:
        """Read the configuration file of a local folder, a JSON file or a hub repository.

        Args:
            hub: `revision`, `cache_dir`, `local_files_only`, `token`, `force_download`, `proxies`.
        """
        if isinstance(pretrained_model_name_or_path, Mapping):
            return dict(pretrained_model_name_or_path)
        if cls.config_name is None:
            raise ConfigError(f"{cls.__name__} names no configuration file (`config_name`).")
        return read_json(resolve_file(pretrained_model_name_or_path, cls.config_name, subfolder=subfolder, **hub))

    def to_json_string(self) -> str:
        """Return the configuration as the text that `save_config` writes."""
        values = {k: v for k, v in self.config.items() if k != _DEFAULTED}
        return to_json({**values, "_class_name": type(self).__name__, "_diffusers_version": FORMAT_VERSION}) + "\n"

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **hub: Any) -> None:
        """Write the configuration file into `save_directory`, atomically; `hub` are the options of an upload."""
        assert self.config_name is not None
        check_push(f"{type(self).__name__}.save_config", hub, (), push_to_hub, cardless="a configuration file")
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        atomic_write(Path(save_directory) / self.config_name, self.to_json_string())
        if push_to_hub:
            upload(save_directory, hub)
