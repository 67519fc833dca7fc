"""Uploading: what everything with `save_pretrained` shares."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from .errors import InputError, check_known

PUSH_OPTIONS = ("repo_id", "commit_message", "private", "token", "create_pr", "subfolder", "license")


class PushToHubMixin:
    """Adds `push_to_hub` to a class that has `save_pretrained(folder, **options)`."""

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
        subfolder: str | None = None,
        license: str | None = None,
        **options: Any,
    ) -> str:
        """Save into a temporary folder, upload it in one commit to the repository `repo_id`, and return its address.

        Args:
            repo_id: "name" or "namespace/name"; the repository is made if need be.
            commit_message: the title of the commit.
            private: hide a new repository from others.
            token: in place of that of `hf auth login`.
            create_pr: propose the commit instead of making it; the address of the pull request is returned.
            subfolder: folder of the repository that takes the files.
            license: for the model card of a pipeline, an identifier of the hub such as "apache-2.0".
            options: those of `save_pretrained`, such as `variant` and `safe_serialization`.

        Raises:
            InputError: the hub refuses or does not answer, or the repository exists and is not private as asked.
            MissingDependencyError: without the hub client.
        """
        hub = {name: value for name, value in locals().items() if name in PUSH_OPTIONS}
        check_license(hub, self._cardless)
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / repo_id.rpartition("/")[2]
            self.save_pretrained(folder, **options)  # type: ignore[attr-defined]
            return self._upload(folder, hub)

    def _upload(self, folder: str | os.PathLike, hub: Mapping[str, Any]) -> str:
        """Upload a folder that `save_pretrained` wrote, with the options of `push_to_hub`; return the address."""
        return upload(folder, hub, card=self._card(hub.get("license")))

    @property
    def _cardless(self) -> str | None:
        """What messages call an object whose repository gets no README.md; None where it gets one."""
        return f"a {type(self).__name__}" if self._card(None) is None else None

    def _card(self, license: str | None) -> Callable[[str], str] | None:
        """Return what writes a README.md for a repository without one, given its name; None for no README.md."""
        return None


def upload(folder: str | os.PathLike, hub: Mapping[str, Any], *, card: Callable[[str], str] | None = None) -> str:
    """Upload a folder with the options of `push_to_hub`, and return the address.

    Args:
        card: see `hub.push_folder`; a subfolder of a repository gets none.
    """
    from .hub import push_folder

    options = {name: value for name, value in hub.items() if name != "license"}
    return push_folder(folder, card=None if hub.get("subfolder") else card, **options)


def check_push(what: str, hub: Mapping[str, Any], known: Iterable[str], push: bool, *, cardless: str | None) -> None:
    """Check the options that a save with `push_to_hub` hands on, before anything is written.

    Args:
        cardless: see `check_license`.

    Raises:
        ConfigError: for a keyword that `what` does not know; with its neighbour.
        InputError: for options of an upload without `push_to_hub=True`, or a license where no card is written.
    """
    idle = [name for name in hub if name in PUSH_OPTIONS]
    if idle and not push:
        raise InputError(f"{what} uploads nothing without push_to_hub=True; {', '.join(idle)} would have no effect.")
    check_known(what, hub, [*known, "push_to_hub", *(PUSH_OPTIONS if push else ())])
    check_license(hub, cardless)


def check_license(hub: Mapping[str, Any], cardless: str | None) -> None:
    """Raise InputError for a license where no model card is written.

    Args:
        cardless: what is uploaded, in words, where it gets no card.
    """
    what = "a subfolder" if hub.get("subfolder") else cardless
    if hub.get("license") is not None and what is not None:
        raise InputError(f"license={hub['license']!r} is for the model card of a pipeline; {what} gets none.")
