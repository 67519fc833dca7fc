"""Words that are learned: new rows of a text encoder's table of vectors, while all that it knew stays as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters import textual_inversion
from ..adapters.textual_inversion import Place
from ..core.errors import InputError
from ..weights.dialects import textual_inversion as dialect

NAME = "learned"
"""Name of the trained rows in the encoder's embedding while they are trained."""


class Words:
    """New words of a text encoder, which is otherwise locked (textual inversion, Gal et al. 2022, 2208.01618).

    The tokenizer knows them from now on. The rows that are trained stand beside the table, so that no optimizer
    touches another one; `settle` writes them into it.

    Args:
        place: the text encoder and its tokenizer.
        words: word -> its first vectors, (number, width).
        files: name of a file -> the words that it keeps; the first ones that hold all words are read again.

    Raises:
        InputError: for words that are known already.
        ConfigError: for a tokenizer and an encoder that do not belong together.
    """

    def __init__(self, place: Place, words: Mapping[str, Tensor], files: Mapping[str, Sequence[str]]) -> None:
        self.place, self.files = place, files
        self.sizes = {word: len(rows) for word, rows in words.items()}
        place.encoder.requires_grad_(False)
        textual_inversion.add({place.name: place}, {word: {place.name: rows} for word, rows in words.items()})
        place.encoder.float()
        self.networks: Mapping[str, nn.Module] = {place.name: place.encoder}
        self.first = len(place.tokenizer) - sum(self.sizes.values())
        self.rows = nn.Parameter(place.embedding.weight.detach()[self.first :].clone())
        place.embedding.register_parameter(NAME, self.rows)
        self.hook = place.embedding.register_forward_hook(self._replace)

    def _replace(self, table: Any, args: tuple[Tensor, ...], vectors: Tensor) -> Tensor:
        """Return the vectors of tokens with the trained rows in their places."""
        own = args[0] - self.first
        return torch.where((own >= 0)[..., None], F.embedding(own.clamp(min=0), getattr(table, NAME)), vectors)

    def parameters(self) -> list[nn.Parameter]:
        """Return the rows of all words."""
        return [self.rows]

    def vectors(self) -> dict[str, Tensor]:
        """Return word -> its present vectors, (number, width)."""
        return dict(zip(self.sizes, self.rows.detach().split(list(self.sizes.values())), strict=True))

    def save(self, folder: Path) -> None:
        """Write the words in the layout that `load_textual_inversion` reads."""
        present = self.vectors()
        for name, words in self.files.items():
            dialect.write(folder / name, {word: {self.place.name: present[word]} for word in words})

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Read what `save` wrote into the same rows."""
        present = self.vectors()
        for name in self.files:
            for learned in dialect.read(folder / name):
                present[str(learned.word)].copy_(next(iter(learned.vectors.values())))

    @torch.no_grad()
    def settle(self) -> None:
        """Write the rows into the encoder's table; from now on it is as if the words had been loaded."""
        self.hook.remove()
        delattr(self.place.embedding, NAME)
        self.place.embedding.weight[self.first :] = self.rows


def begun(place: Place, words: str, count: int = 1) -> Tensor:
    """Return the vectors that a new word of `count` vectors begins with, (count, width): those of known words.

    As many tokens as vectors give one each; of any other number the mean is taken.

    Raises:
        InputError: for words that say nothing, or that the tokenizer does not know.
    """
    ids = place.tokenizer(words, add_special_tokens=False).input_ids
    unknown = place.tokenizer.unk_token_id
    if not ids or unknown in ids:
        raise InputError(f"The tokenizer knows no words {words!r} to begin with; name known ones.")
    known = place.embedding.weight.detach()[ids]
    return known.clone() if len(ids) == count else known.mean(0, keepdim=True).repeat(count, 1)
