"""What holds for every test: no network, and nothing of the user's hub cache and login."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guard import sockets

HOME = tempfile.mkdtemp(prefix="langevin-tests-")
GUARD = Path(__file__).parent / "guard"
# Before anything imports the client of the hub, and for the processes that tests start.
os.environ |= {"HF_HOME": HOME, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
os.environ["PYTHONPATH"] = os.pathsep.join([str(GUARD), *filter(None, [os.environ.get("PYTHONPATH")])])
for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"):
    os.environ.pop(name, None)
sockets.install()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Open this machine's addresses for tests marked `hub`, fixtures included."""
    sockets.allow_localhost(item.get_closest_marker("hub") is not None)
    try:
        return (yield)
    finally:
        sockets.allow_localhost(False)


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)
