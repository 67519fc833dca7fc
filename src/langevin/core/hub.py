"""The hub: the only place of the library that may touch the network, through huggingface_hub.

Nothing is ever sent about the user: no telemetry exists, so DISABLE_TELEMETRY has nothing to switch off. It is honoured
by also silencing huggingface_hub's own.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from .errors import InputError, LangevinError, check_known, did_you_mean
from .imports import require
from .logging import get_logger
from .report import some

logger = get_logger(__name__)
HUB_OPTIONS = ("revision", "cache_dir", "local_files_only", "token", "force_download", "proxies")
"""What every loading takes for the hub.

`revision` is a branch, tag or commit, `cache_dir` the folder of the cache. `local_files_only` takes what it holds and
asks nothing, `force_download` fetches anew what it has. `token` stands in place of that of `hf auth login`.
`proxies` is refused: the client reads HTTPS_PROXY.
"""
TRANSPORTS = ("httpx", "httpx2", "httpcore", "requests", "urllib3")
"""Packages through which versions of the client reach the network; their errors mean that the hub does not answer."""

REFUSALS = {401: "log in with `hf auth login` or pass a valid `token=`", 403: "the token gives no right to this"}
"""HTTP status of a refusal -> the cure."""


class HubUnreachable(InputError):
    """The hub does not answer, or may not be asked."""


def hub_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hub options among the arguments of a call, such as its `locals()`, without those left at None."""
    return {name: given[name] for name in HUB_OPTIONS if given.get(name) is not None}


def _client() -> Any:
    if os.environ.get("DISABLE_TELEMETRY", "").upper() in ("1", "ON", "YES", "TRUE"):
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    return require("huggingface_hub", why="reading from the hub")


def _arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Check the caller's hub options and drop those left at None."""
    check_known("Loading from the hub", options, HUB_OPTIONS)
    if options.get("proxies"):
        raise InputError("`proxies` is not supported by the hub client; set the HTTPS_PROXY environment variable.")
    if options.get("force_download") and options.get("local_files_only"):
        raise InputError("`force_download` and `local_files_only` contradict each other; pass one of them.")
    return {k: v for k, v in options.items() if v is not None and k != "proxies"}


# Errors --------------------------------------------------------------------------------------------------------------


def _silent(error: BaseException | None) -> bool:
    """Tell whether an error means that the hub does not answer: no connection, a server in trouble, or offline mode."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        status = getattr(error.response, "status_code", 0)
        return status >= 500 or status in (408, 429)
    kind = type(error).__module__.partition(".")[0]
    return kind in TRANSPORTS or isinstance(error, (ConnectionError, TimeoutError))


@contextmanager
def _explained(repo: str, **options: Any) -> Iterator[None]:
    """Turn the client's errors into ones that name cause and cure."""
    try:
        yield
    except LangevinError:
        raise
    except Exception as error:  # the network errors of the client have no common base class
        _explain(repo, error, options)


def _explain(repo: str, error: Exception, options: dict[str, Any]) -> NoReturn:
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repo}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        forbidden = options.get("local_files_only") or isinstance(error.__cause__, errors.OfflineModeIsEnabled)
        why = "the hub must not be asked" if forbidden else "the hub does not answer"
        cure = "`local_files_only` and HF_HUB_OFFLINE" if forbidden else f"the network, and HF_ENDPOINT ({page})"
        raise HubUnreachable(
            f"{repo!r} is neither a local folder nor in the cache, and {why}; "
            f"check the spelling of the path, or {cure}."
        ) from error
    if isinstance(error, errors.GatedRepoError):
        raise InputError(
            f"{repo!r} is gated: accept its terms on {page} and log in (`hf auth login`), or pass `token=`."
        ) from error
    if isinstance(error, errors.RepositoryNotFoundError):
        raise InputError(
            f"{repo!r} is neither a local folder nor a repository on the hub; "
            "a private one needs `hf auth login` or `token=`."
        ) from error
    if isinstance(error, errors.RevisionNotFoundError):
        raise InputError(_no_revision(repo, options)) from error
    if isinstance(error, errors.HFValidationError):
        raise InputError(f"{repo!r} is neither a local folder nor a valid repository name.") from error
    if isinstance(error, errors.LocalTokenNotFoundError):
        raise InputError("No token was found: log in with `hf auth login`, or pass `token=`.") from error
    if _silent(error) or (isinstance(error, ValueError) and _silent(error.__cause__)):
        what = "HF_HUB_OFFLINE is set" if isinstance(error, errors.OfflineModeIsEnabled) else str(error).strip()
        raise HubUnreachable(f"The hub cannot be asked for {repo!r} ({type(error).__name__}: {what}).") from error
    if isinstance(error, errors.HfHubHTTPError):
        status = getattr(error.response, "status_code", 0)
        reason = REFUSALS.get(status, str(error).strip())
        raise InputError(f"The hub refuses for {repo!r} (HTTP {status}): {reason}.") from error
    raise error


def _no_revision(repo: str, options: dict[str, Any]) -> str:
    """Return the message for a revision that does not exist, with the nearest branch or tag."""
    revision = options.get("revision")
    try:
        refs = _client().HfApi(token=options.get("token")).list_repo_refs(repo)
        known = [ref.name for ref in (*refs.branches, *refs.tags)]
    except Exception:  # the hint is all that is lost
        return f"{repo!r} has no branch, tag or commit {revision!r}."
    return f"{repo!r} has no branch, tag or commit {revision!r}{did_you_mean(str(revision), known)}"


def _no_file(repo: str, name: str, options: dict[str, Any]) -> str:
    """Return the message for a file that does not exist, with the nearest one or what lies beside it."""
    try:
        files = list_files(repo, revision=options.get("revision"), token=options.get("token"))
    except Exception:  # the hint is all that is lost
        return f"{repo!r} has no {name}."
    folder = name.rpartition("/")[0]
    beside = [file for file in files if file.rpartition("/")[0] == folder]
    return f"{repo!r} has no {name}; it has: {some(beside or files)}."


# Reading -------------------------------------------------------------------------------------------------------------


def fetch_file(repo: str, filename: str, *, subfolder: str | None = None, **options: Any) -> Path:
    """Return the cached path of one file, downloading it when needed.

    Raises:
        InputError: the repository, revision or file does not exist, is not open to the caller, or the hub does not
            answer and the file is not in the cache.
    """
    client, arguments = _client(), _arguments(options)
    from huggingface_hub import errors

    name = "/".join(filter(None, [(subfolder or "").strip("/"), filename]))
    with _explained(repo, **arguments):
        try:
            return Path(client.hf_hub_download(repo, name, **arguments))
        except errors.LocalEntryNotFoundError:
            raise
        except errors.EntryNotFoundError as error:
            raise InputError(_no_file(repo, name, arguments)) from error


def fetch_folder(repo: str, *, allow_patterns: Sequence[str] | None = None, **options: Any) -> Path:
    """Return the cached snapshot of a repository, downloading the files that match `allow_patterns`."""
    client, arguments = _client(), _arguments(options)
    with _explained(repo, **arguments):
        return Path(client.snapshot_download(repo, allow_patterns=allow_patterns, **arguments))


def list_files(repo: str, *, revision: str | None = None, token: str | bool | None = None) -> list[str]:
    """Return the names of all files of a repository."""
    with _explained(repo, revision=revision, token=token):
        found = _client().HfApi(token=token).model_info(repo, revision=revision)
        return [file.rfilename for file in found.siblings or ()]


def fetch_chosen(repo: str, choose: Callable[[Sequence[str]], Iterable[str]], **options: Any) -> Path:
    """Return the cached snapshot of a repository with the files that `choose` picks from the names of all files.

    Files that the cache has are not asked for. When the hub does not answer, the cache is taken, with a warning.

    Raises:
        InputError: as `fetch_file` does.
    """
    arguments = _arguments(options)
    if arguments.get("local_files_only"):
        return _cached(repo, choose, arguments)
    try:
        files = list_files(repo, revision=arguments.get("revision"), token=arguments.get("token"))
    except HubUnreachable as error:
        if arguments.get("force_download"):
            raise
        logger.warning("%s What the cache holds of it is taken.", error)
        return _cached(repo, choose, {**arguments, "local_files_only": True})
    return fetch_folder(repo, allow_patterns=[glob.escape(name) for name in choose(files)], **options)


def _cached(repo: str, choose: Callable[[Sequence[str]], Iterable[str]], arguments: dict[str, Any]) -> Path:
    """Return the cached snapshot of a repository.

    Raises:
        InputError: when it lacks files that `choose` picks.
    """
    root = fetch_folder(repo, allow_patterns=[], **arguments)
    here = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    wanted = list(choose(sorted(_listed(repo, arguments) or here)))
    lost = sorted(set(wanted) - here)
    if lost:
        raise HubUnreachable(
            f"The cache holds only a part of {repo!r}, and the hub is not asked or does not answer; "
            f"missing: {some(lost)}."
        )
    return root


def _listed(repo: str, arguments: dict[str, Any]) -> list[str]:
    """Return the names of all files of a repository that newer clients keep in the cache, or none."""
    client = _client()
    if not hasattr(client, "get_cached_repo_tree"):
        return []
    asked = {name: arguments[name] for name in ("revision", "cache_dir") if name in arguments}
    try:
        return [file.path for file in client.get_cached_repo_tree(repo, **asked)]
    except client.errors.CachedRepoTreeNotFoundError:
        return []


# Writing -------------------------------------------------------------------------------------------------------------


def push_folder(
    folder: str | os.PathLike,
    *,
    repo_id: str | None = None,
    commit_message: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    subfolder: str | None = None,
    card: Callable[[str], str] | None = None,
) -> str:
    """Upload a folder to the hub in one commit and return its address, or that of the pull request.

    Args:
        repo_id: "name" or "namespace/name", made if need be; the folder's name when None.
        private: whether a repository that is made is hidden from others; None leaves that to the namespace.
        subfolder: folder of the repository that takes the files; its root when None.
        card: gets the full name of the repository and returns a README.md, for one that has none.

    Raises:
        InputError: the hub refuses or does not answer, or `private` is asked of a repository that is public.
    """
    api = _client().HfApi(token=token)
    folder = Path(folder)
    repo_id = repo_id or folder.resolve().name
    with _explained(repo_id, token=token):
        repo_id = str(api.create_repo(repo_id, private=private, exist_ok=True).repo_id)
        present = api.model_info(repo_id)
        if private and not present.private:
            raise InputError(f"{repo_id!r} exists and is public; make it private in its settings or take another name.")
        files: dict[str, Any] = {_within(path, folder, subfolder): path for path in sorted(folder.rglob("*"))}
        files = {name: path for name, path in files.items() if name and path.is_file()}
        known = {*files, *(file.rfilename for file in present.siblings or ())}
        if card is not None and "README.md" not in known:
            files["README.md"] = card(repo_id).encode()
        add = _client().CommitOperationAdd
        commit = api.create_commit(
            repo_id,
            [add(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()],
            commit_message=commit_message or f"Upload {folder.resolve().name}",
            create_pr=create_pr,
        )
    return str(commit.pr_url or commit.commit_url)


def _within(path: Path, folder: Path, subfolder: str | None) -> str:
    """Return the name of a file in the repository; none for hidden files, such as those of git and of the cache."""
    parts = path.relative_to(folder).parts
    return "" if any(part.startswith(".") for part in parts) else "/".join([*filter(None, [subfolder]), *parts])
