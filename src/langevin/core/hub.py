"""The hub: the only place of the library that may touch the network, through huggingface_hub.

Nothing is ever sent about the user: no telemetry exists, so DISABLE_TELEMETRY has nothing to switch off. It is honoured
by also silencing huggingface_hub's own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError, check_known
from .imports import require
from .logging import get_logger

logger = get_logger(__name__)
HUB_OPTIONS = ("revision", "cache_dir", "local_files_only", "token", "force_download", "proxies")


def _client() -> Any:
    if os.environ.get("DISABLE_TELEMETRY", "").upper() in ("1", "ON", "YES", "TRUE"):
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    return require("huggingface_hub", why="reading from the hub")


def _arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Check the caller's hub options and drop those left at None."""
    check_known("Loading from the hub", options, HUB_OPTIONS)
    if options.get("proxies"):
        raise InputError("`proxies` is not supported by the hub client; set the HTTPS_PROXY environment variable.")
    return {k: v for k, v in options.items() if v is not None and k != "proxies"}


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turn the client's errors into ones that name cause and cure."""
    from huggingface_hub import errors

    try:
        yield
    except errors.LocalEntryNotFoundError as error:
        raise InputError(
            f"{repo!r} is neither a local folder nor in the cache, and the hub was not asked or cannot be reached; "
            f"check the spelling of the path, or the network and `local_files_only`."
        ) from error
    except errors.GatedRepoError as error:
        raise InputError(f"{repo!r} is gated: accept its terms on its page and log in (`hf auth login`).") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{repo!r} is neither a local folder nor a repository on the hub; "
            "a private one needs `hf auth login` or `token=`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{repo!r} has no such revision ({error}).") from error
    except errors.EntryNotFoundError as error:
        raise InputError(f"{repo!r} has no such file ({error}).") from error
    except errors.HFValidationError as error:
        raise InputError(f"{repo!r} is neither a local folder nor a valid repository name.") from error


def fetch_file(repo: str, filename: str, *, subfolder: str | None = None, **options: Any) -> Path:
    """Return the cached path of one file, downloading it when needed."""
    client, arguments = _client(), _arguments(options)
    with _explained(repo):
        return Path(client.hf_hub_download(repo, filename, subfolder=subfolder, **arguments))


def fetch_folder(repo: str, *, allow_patterns: Sequence[str] | None = None, **options: Any) -> Path:
    """Return the cached snapshot of a repository, downloading the files that match `allow_patterns`."""
    client, arguments = _client(), _arguments(options)
    with _explained(repo):
        return Path(client.snapshot_download(repo, allow_patterns=allow_patterns, **arguments))


def list_files(repo: str, *, revision: str | None = None, token: str | bool | None = None) -> list[str]:
    """Return the names of all files of a repository."""
    client = _client()
    with _explained(repo):
        return client.list_repo_files(repo, revision=revision, token=token)


def push_folder(
    folder: str | os.PathLike,
    *,
    repo_id: str | None = None,
    commit_message: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    path_in_repo: str | None = None,
) -> str:
    """Upload a folder to the hub and return the address of the commit; `repo_id` defaults to the folder's name."""
    api = _client().HfApi(token=token)
    repo_id = repo_id or Path(folder).name
    with _explained(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        message = commit_message or f"Upload {Path(folder).name}"
        return str(
            api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=message,
                create_pr=create_pr,
                path_in_repo=path_in_repo,
            )
        )
