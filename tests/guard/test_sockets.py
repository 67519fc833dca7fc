"""The guard itself: nothing leaves this machine, and only tests about the hub use its addresses."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from tests.guard.sockets import ALLOWED

ASK = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5).close()"


def ask(host: str, port: int, **settings: str) -> subprocess.CompletedProcess:
    """Connect from another process."""
    command = [sys.executable, "-c", ASK, host, str(port)]
    return subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)


@pytest.mark.parametrize("host", ["203.0.113.7", "huggingface.co", "127.0.0.1", "localhost"])
def test_no_test_reaches_anything(host) -> None:
    with pytest.raises(OSError, match="A test tried to reach"):
        socket.create_connection((host, 9))
    assert "A test tried to reach" in ask(host, 9).stderr


def test_no_test_opens_an_address() -> None:
    with socket.socket() as server, pytest.raises(OSError, match="only tests marked `hub`"):
        server.bind(("127.0.0.1", 0))


@pytest.mark.hub
def test_tests_about_the_hub_use_this_machine_only() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()
        assert ask("127.0.0.1", port, **{ALLOWED: "1"}).returncode == 0
        assert ask("127.0.0.1", port).returncode != 0
    with pytest.raises(OSError, match="without a network"):
        socket.create_connection(("203.0.113.7", 9))
    assert "without a network" in ask("203.0.113.7", 9, **{ALLOWED: "1"}).stderr


def test_the_client_of_the_hub_may_not_ask_and_has_no_past() -> None:
    from huggingface_hub import constants, get_token

    assert constants.HF_HUB_OFFLINE and os.environ["HF_HOME"] == constants.HF_HOME
    assert get_token() is None
