"""The command line: one function per command, heavy imports inside them."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line on `argv` (default: the process's arguments) and leave with its exit status.

    A mistake that the library recognises is printed as one message and leaves with status 2, as a usage error does.
    """
    from ..core.errors import LangevinError
    from .app import app

    try:
        app(args=None if argv is None else list(argv), prog_name="langevin")
    except LangevinError as error:
        print(f"langevin: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("langevin: stopped", file=sys.stderr)
        sys.exit(130)
