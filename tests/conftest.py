"""What holds for every test: no network beyond this machine."""

from __future__ import annotations

import ipaddress
import socket

import pytest


def is_here(address: object) -> bool:
    """Tell whether a socket address stays on this machine."""
    host = address[0] if isinstance(address, tuple) else "localhost"
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse connections to other machines; a test that needs one is wrong."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if not is_here(address):
            raise OSError(f"A test tried to reach {address}.")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
