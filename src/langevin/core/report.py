"""What a load found: one report for models, adapters and single files, and the words its messages share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import WeightsError, nearest
from .logging import get_logger

logger = get_logger(__name__)
LISTED = 12
"""Names that a message shows of a list."""
AFRESH = "initialised afresh"
RESHAPE = "ignore_mismatched_sizes=True initialises weights of another shape afresh"
LENIENT = "strict=False initialises missing weights afresh and leaves out foreign ones"


@dataclass
class LoadReport:
    """What a load found.

    Attributes: missing_keys, names of the model that no file holds; unexpected_keys, names in the files that the model
    lacks; mismatched_keys, (name, shape in the file, shape in the model); renamed, name in the file -> present name;
    applied, names in the file that took effect; ignored, name in the file -> why it took none, for what is known and
    without effect.
    """

    missing_keys: list[str] = field(default_factory=list)
    unexpected_keys: list[str] = field(default_factory=list)
    mismatched_keys: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    applied: list[str] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the documented loading info."""
        return {
            "missing_keys": self.missing_keys,
            "unexpected_keys": self.unexpected_keys,
            "mismatched_keys": self.mismatched_keys,
            "error_msgs": [],
        }

    def check(self, what: str, *, strict: bool, ignore_mismatched_sizes: bool) -> None:
        """Raise WeightsError for what the caller did not allow; log what was allowed."""
        shapes = [f"{name}: file {a}, model {b}" for name, a, b in self.mismatched_keys]
        missing = paired(self.missing_keys, self.unexpected_keys)
        foreign = paired(self.unexpected_keys, self.missing_keys)
        number = counted(shapes, "shape differs", "shapes differ")
        found = [(f"{number} ({some(shapes, '; ')})", ignore_mismatched_sizes, RESHAPE, AFRESH)] if shapes else []
        for names, one, many, done in (
            (missing, "weight is missing", "weights are missing", AFRESH),
            (foreign, "weight is foreign", "weights are foreign", "left out"),
        ):
            found += [(f"{counted(names, one, many)} ({some(names)})", not strict, LENIENT, done)] if names else []
        refused = {text: cure for text, allowed, cure, _ in found if not allowed}
        if refused:
            cures = "; ".join(dict.fromkeys(refused.values()))
            raise WeightsError(f"{what}: {'; '.join(refused)}. If that is wanted: {cures}")
        for text, _, _, done in found:
            logger.warning("%s: %s, %s", what, text, done)


def counted(items: Sequence[object], one: str, many: str) -> str:
    """Return how many there are, in words that agree with the number."""
    return f"{len(items)} {one if len(items) == 1 else many}"


def some(items: Sequence[str], glue: str = ", ") -> str:
    """Return the first items of a list as text, and how many more there are."""
    more = len(items) - LISTED
    return glue.join(items[:LISTED]) + (f"{glue}and {more} more" if more > 0 else "")


def paired(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return the names, those that a message will show with the nearest one of the other side."""
    close = [nearest(name, others) if len(others) <= 2000 else None for name in names[:LISTED]]
    shown = [f"{name!r} (there is {near!r})" if near else repr(name) for name, near in zip(names, close, strict=False)]
    return [*shown, *names[LISTED:]]
