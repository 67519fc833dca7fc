"""Loading and saving of what a configuration file describes in full."""

from __future__ import annotations

import os
from typing import Any

from .config import ConfigMixin
from .hub import HUB_OPTIONS
from .push import PushToHubMixin, check_push


class PretrainedConfig(PushToHubMixin, ConfigMixin):
    """Base of classes that have a configuration file and no weights."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Build the object from the configuration in a folder or hub repository, written by this class or another.

        Args:
            kwargs: options of the class, which win over the file, and hub options (`revision`, `cache_dir`, ...).
        """
        hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        config = cls.load_config(pretrained_model_name_or_path, subfolder=subfolder, **hub)
        return cls.from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write the configuration file into `save_directory`, and upload it with `push_to_hub` and its options."""
        check_push(f"{type(self).__name__}.save_pretrained", kwargs, (), push_to_hub, cardless=self._cardless)
        self.save_config(save_directory)
        if push_to_hub:
            self._upload(save_directory, kwargs)
