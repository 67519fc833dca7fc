"""The stand-in for the hub, and the real client pointed at it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.server import Hub
from tests.pipelines.conftest import caplog_ours, sd_folder  # noqa: F401


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running stand-in that huggingface_hub talks to, with an empty cache and nobody logged in."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.utils import _http, disable_progress_bars

    (tmp_path / "objects").mkdir()
    server = Hub(tmp_path / "objects")
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
    monkeypatch.setattr(time, "sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.05)))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    disable_progress_bars()
    _http.close_session()
    yield server
    _http.close_session()
    server.stop()


@pytest.fixture
def logged_in(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> str:
    """The user "me" is logged in."""
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    return "me"


def outside(hub: Hub, folder: Path) -> dict[str, str]:
    """Return the environment of another process that uses the stand-in, with a cache in `folder`."""
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    return {**os.environ, **settings, "LANGEVIN_TESTS_ALLOW_LOCALHOST": "1", "HF_TOKEN": "hf_me"}
