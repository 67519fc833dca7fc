"""Verbosity of the library's loggers and progress bars."""

from __future__ import annotations

import logging
import os
import sys
import threading
from logging import CRITICAL, DEBUG, ERROR, FATAL, INFO, NOTSET, WARN, WARNING

__all__ = [
    "CRITICAL", "DEBUG", "ERROR", "FATAL", "INFO", "NOTSET", "WARN", "WARNING",
    "add_handler", "disable_default_handler", "disable_progress_bar", "disable_propagation",
    "enable_default_handler", "enable_explicit_format", "enable_progress_bar", "enable_propagation",
    "get_logger", "get_verbosity", "is_progress_bar_enabled", "log_levels", "remove_handler", "reset_format",
    "set_verbosity", "set_verbosity_debug", "set_verbosity_error", "set_verbosity_info", "set_verbosity_warning",
]  # fmt: skip

log_levels = {"debug": DEBUG, "info": INFO, "warning": WARNING, "error": ERROR, "critical": CRITICAL}
_ROOT = "langevin"
_lock = threading.Lock()
_handler: logging.Handler | None = None
_bars = True


class _Stderr(logging.StreamHandler):
    """Writes to whatever `sys.stderr` is at the time of the record."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self):
        return sys.stderr


def _root() -> logging.Logger:
    """Return the library's logger, configured on first use from LANGEVIN_VERBOSITY (default: warning)."""
    global _handler
    root = logging.getLogger(_ROOT)
    with _lock:
        if _handler is None:
            _handler = _Stderr()
            _handler.setFormatter(logging.Formatter("%(message)s"))
            root.addHandler(_handler)
            wanted = os.environ.get("LANGEVIN_VERBOSITY", "warning").lower()
            root.setLevel(log_levels.get(wanted, WARNING))
            root.propagate = False
            if wanted not in log_levels:
                root.warning("LANGEVIN_VERBOSITY is %r; valid: %s.", wanted, ", ".join(log_levels))
    return root


def get_logger(name: str | None = None) -> logging.Logger:
    """Return the logger called `name` (default: the library's own)."""
    _root()
    return logging.getLogger(name or _ROOT)


def get_verbosity() -> int:
    """Return the current level as an integer of the standard `logging` module."""
    return _root().getEffectiveLevel()


def set_verbosity(verbosity: int) -> None:
    """Set the level, one of the constants of this module."""
    _root().setLevel(verbosity)


def set_verbosity_info() -> None:
    """Show informational messages and above."""
    set_verbosity(INFO)


def set_verbosity_warning() -> None:
    """Show warnings and above."""
    set_verbosity(WARNING)


def set_verbosity_debug() -> None:
    """Show everything."""
    set_verbosity(DEBUG)


def set_verbosity_error() -> None:
    """Show errors only."""
    set_verbosity(ERROR)


def disable_default_handler() -> None:
    """Stop writing to standard error."""
    root = _root()
    assert _handler is not None
    root.removeHandler(_handler)


def enable_default_handler() -> None:
    """Write to standard error again."""
    root = _root()
    assert _handler is not None
    root.addHandler(_handler)


def add_handler(handler: logging.Handler) -> None:
    """Add a handler to the library's logger."""
    _root().addHandler(handler)


def remove_handler(handler: logging.Handler) -> None:
    """Remove a handler from the library's logger."""
    _root().removeHandler(handler)


def disable_propagation() -> None:
    """Keep records from reaching the root logger of the process (the default)."""
    _root().propagate = False


def enable_propagation() -> None:
    """Let records reach the root logger of the process."""
    _root().propagate = True


def _format(pattern: str) -> None:
    for handler in _root().handlers:
        handler.setFormatter(logging.Formatter(pattern))


def enable_explicit_format() -> None:
    """Show time, level, module and line with every record."""
    _format("%(asctime)s %(levelname)s %(name)s:%(lineno)d: %(message)s")


def reset_format() -> None:
    """Show the bare message."""
    _format("%(message)s")


def is_progress_bar_enabled() -> bool:
    """Tell whether progress bars are shown."""
    return _bars


def enable_progress_bar() -> None:
    """Show progress bars."""
    global _bars
    _bars = True


def disable_progress_bar() -> None:
    """Hide progress bars."""
    global _bars
    _bars = False
