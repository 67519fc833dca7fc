"""Prompts: three syntaxes read into weighted texts, and texts of any length encoded by any number of encoders.

A family describes its text encoders as `Tower`s and calls `encode` with the prompts that `parse_all` read.
"""

from .data import Script
from .encoding import Condition, Encoding, aligned, encode, given
from .reader import Tower
from .syntax import SYNTAXES, parse, parse_all
from .tokens import expand_words

__all__ = [
    "SYNTAXES",
    "Condition",
    "Encoding",
    "Script",
    "Tower",
    "aligned",
    "encode",
    "expand_words",
    "given",
    "parse",
    "parse_all",
]
