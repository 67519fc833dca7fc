"""Tests and the processes they start reach no other machine; this machine only where a test is about the hub."""

from __future__ import annotations

import os
import socket
from typing import Any

ALLOWED = "LANGEVIN_TESTS_ALLOW_LOCALHOST"
"""Name of the variable that lets a process that a test starts use this machine's addresses."""
HERE = ("localhost", "127.0.0.1", "::1")
_state: dict[str, Any] = vars(socket).setdefault("_guard", {"local": os.environ.get(ALLOWED) == "1", "plain": {}})
"""One for the process, also where this file was imported under two names: by sitecustomize and by the tests."""
_plain: dict[str, Any] = _state["plain"]


def allow_localhost(allowed: bool) -> None:
    """Let connections within this machine pass from now on, or not."""
    _state["local"] = allowed


def check(host: object) -> None:
    """Raise OSError for an address that may not be reached."""
    if host not in HERE:
        raise OSError(f"A test tried to reach {host}; tests run without a network.")
    if not _state["local"]:
        raise OSError(f"A test tried to reach {host}; only tests marked `hub` may use this machine's addresses.")


def _guarded(name: str) -> Any:
    def call(self: socket.socket, *arguments: Any) -> Any:
        # Addresses of sockets between processes (AF_UNIX) are no tuples.
        address = arguments[-1]
        if isinstance(address, tuple):
            check(address[0])
        return _plain[name](self, *arguments)

    return call


def _names(host: Any, *arguments: Any, **options: Any) -> Any:
    if host is not None:
        check(host.decode() if isinstance(host, bytes) else host)
    return _plain["getaddrinfo"](host, *arguments, **options)


def install() -> None:
    """Guard the sockets of this process."""
    if not _plain:
        _plain["getaddrinfo"] = socket.getaddrinfo
        socket.getaddrinfo = _names
        for name in ("connect", "connect_ex", "sendto", "bind"):
            _plain[name] = getattr(socket.socket, name)
            setattr(socket.socket, name, _guarded(name))
