"""What a load found: one report for models, adapters and single files, and the words its messages share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import WeightsError, nearest
from .logging import get_logger

logger = get_logger(__name__)
LISTED = 12


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
        parts = []
        if self.mismatched_keys:
            shapes = [f"{name}: file {a}, model {b}" for name, a, b in self.mismatched_keys]
            number = counted(shapes, "shape differs", "shapes differ")
            parts.append((not ignore_mismatched_sizes, f"{number} ({some(shapes, '; ')})"))
        if self.missing_keys:
            number = counted(self.missing_keys, "weight is missing", "weights are missing")
            parts.append((strict, f"{number} ({some(paired(self.missing_keys, self.unexpected_keys))})"))
        if self.unexpected_keys:
            number = counted(self.unexpected_keys, "weight is foreign", "weights are foreign")
            parts.append((strict, f"{number} ({some(paired(self.unexpected_keys, self.missing_keys))})"))
        refused = [text for fatal, text in parts if fatal]
        if refused:
            advice = []
            if any(" differ" in text for text in refused):
                advice.append("ignore_mismatched_sizes=True initialises weights of another shape afresh")
            if any(" differ" not in text for text in refused):
                advice.append("strict=False initialises missing weights afresh and leaves out foreign ones")
            raise WeightsError(f"{what}: {'; '.join(refused)}. If that is wanted: {'; '.join(advice)}")
        for _, text in parts:
            done = "left out" if " foreign" in text else "initialised afresh"
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
