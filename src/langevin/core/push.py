"""Uploading: what everything with `save_pretrained` shares."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any


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
        **options: Any,
    ) -> str:
        """Save into a temporary folder, upload it to the repository `repo_id`, and return the address of the commit.

        repo_id: "name" or "namespace/name"; the repository is made if need be, hidden from others with `private`.
        options: those of `save_pretrained`, such as `variant` and `safe_serialization`. Raises InputError when the hub
        refuses, MissingDependencyError without the hub client.
        """
        from .hub import push_folder

        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / repo_id.rpartition("/")[2]
            self.save_pretrained(folder, **options)  # type: ignore[attr-defined]
            return push_folder(
                folder,
                repo_id=repo_id,
                commit_message=commit_message,
                private=private,
                token=token,
                create_pr=create_pr,
            )
