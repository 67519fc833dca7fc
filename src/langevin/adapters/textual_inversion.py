"""Learned words in a tokenizer and a text encoder: added, told apart, and removed without a trace.

A word of n vectors is n tokens, `word`, `word_1`, ..., whose ids follow those of the vocabulary, and n rows that
follow those of the embedding matrix (Gal et al. 2022, 2208.01618). When words are removed, the ids of those that stay
close up.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, InputError, WeightsError, did_you_mean
from ..core.logging import get_logger
from ..core.report import some
from ..prompts.tokens import tokenizing

logger = get_logger(__name__)
changing = threading.RLock()
"""Held while words are added or removed; calls that run meanwhile are not stopped."""

OLD_END = 2
"""The id by which old configurations of CLIP name the end of a text; the real one is then taken for the largest."""


@dataclass(frozen=True)
class Place:
    """Where words are learned: a text encoder and its tokenizer, with the name of the encoder in the pipeline."""

    name: str
    tokenizer: Any
    encoder: nn.Module

    @property
    def embedding(self) -> nn.Embedding:
        """The encoder's table of token vectors."""
        return self.encoder.get_input_embeddings()  # type: ignore[operator]

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return self.embedding.weight.shape[-1]

    def check(self) -> None:
        """Raise ConfigError unless words can be added and removed here exactly."""
        rows, tokens = len(self.embedding.weight), len(self.tokenizer)
        if rows != tokens:
            raise ConfigError(
                f"{self.name} has {rows} vectors and its tokenizer {tokens} tokens; pass the tokenizer and the text "
                "encoder that belong together."
            )
        if self.embedding.weight.is_meta:
            raise ConfigError(f"{self.name} has no values now (it is offloaded); load words before it is offloaded.")

    # Reading --------------------------------------------------------------------------------------------------------

    def tokens(self) -> list[str]:
        """Return the learned tokens in the order of their ids: what was added to the vocabulary and is not special."""
        special = set(self.tokenizer.all_special_tokens)
        added = {k: str(token) for k, token in self.tokenizer.added_tokens_decoder.items() if not token.special}
        size = self.tokenizer.vocab_size
        return [added[k] for k in sorted(added) if k >= size and added[k] not in special]

    def words(self) -> dict[str, list[str]]:
        """Return word -> its tokens, in the order of ids."""
        tokens = self.tokens()
        grouped: dict[str, list[str]] = {}
        for token in tokens:
            match = re.fullmatch(r"(.+)_(\d+)", token)
            word = match.group(1) if match else token
            if match and len(grouped.get(word, ())) == int(match.group(2)):
                grouped[word].append(token)
            else:
                grouped[token] = [token]
        return grouped

    def vectors(self, word: str) -> Tensor:
        """Return a copy of a learned word's vectors, (number, width).

        Raises:
            InputError: when the word is not there.
        """
        words = self.words()
        if word not in words:
            raise InputError(f"{self.name} has no learned word {word!r}{_nearest(word, words)}")
        ids = self.tokenizer.convert_tokens_to_ids(words[word])
        return self.embedding.weight.detach()[ids].clone()

    # Changing -------------------------------------------------------------------------------------------------------

    def refuse_known(self, words: Mapping[str, Tensor]) -> None:
        """Raise InputError for words that are known already, or that others would be taken for a part of."""
        vocabulary, learned = self.tokenizer.get_vocab(), self.words()
        new = [token for word, rows in words.items() for token in spelt(word, len(rows))]
        for word, rows in words.items():
            if word in learned:
                cure = f"pass another `token`, or first `unload_textual_inversion({word!r})`"
                raise InputError(f"The word {word!r} is loaded already; {cure}.")
            known = next(
                (token for token in spelt(word, len(rows)) if token in vocabulary or new.count(token) > 1), None
            )
            if known is not None:
                where = f"in the vocabulary of {self.name}" if known in vocabulary else "among these words twice"
                raise InputError(f"{known!r} is {where} already; pass another `token` for {word!r}.")
            follower, root = spelt(word, len(rows) + 1)[-1], re.sub(r"_\d+$", "", word)
            for one, other in ((word, follower), (root, word)):
                if one != other and {one, other} <= {*new, *self.tokens()}:
                    raise InputError(
                        f"{other!r} would be taken for a part of {one!r}; pass another `token` for one of them."
                    )
            if f"{word}</w>" in vocabulary:
                logger.warning("%r is a word of the vocabulary; in prompts it now means what was learned for it", word)

    def add(self, words: Mapping[str, Tensor]) -> None:
        """Add words with their vectors (number, width); the caller has checked them.

        Raises:
            ConfigError: when the tokenizer takes the words for others; nothing has changed then.
        """
        tokens = [token for word, rows in words.items() for token in spelt(word, len(rows))]
        old, before, first = self.embedding.weight, self.tokens(), len(self.tokenizer)
        new = torch.cat([old.detach(), *(rows.to(old) for rows in words.values())])
        self._set(new)
        try:
            with tokenizing:
                self.tokenizer.add_tokens(tokens)
            if self.tokenizer.convert_tokens_to_ids(tokens) != list(range(first, first + len(tokens))):
                raise ConfigError(f"The tokenizer of {self.name} cannot keep these words apart: {some(tokens)}.")
        except BaseException:
            self._rename(before)
            self._set(old)
            raise
        self.find_end()

    def remove(self, words: Iterable[str]) -> None:
        """Remove words; the ids of those that stay close up, and without any all is as it was before the first."""
        known = self.words()
        gone = {token for word in words for token in known[word]}
        stay = [token for token in self.tokens() if token not in gone]
        first = len(self.tokenizer) - len(self.tokens())
        ids = [*range(first), *self.tokenizer.convert_tokens_to_ids(stay)] if stay else [*range(first)]
        weight = self.embedding.weight.detach()
        kept = weight[torch.tensor(ids, device=weight.device)].clone()
        self._rename(stay)
        self._set(kept)
        self.find_end()

    def _set(self, weight: Tensor) -> None:
        """Put a matrix in the place of the table's."""
        embedding, old = self.embedding, self.embedding.weight
        embedding.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, old.requires_grad)
        embedding.num_embeddings = len(weight)
        config: Any = self.encoder.config
        inner = getattr(config, "text_config", None) or config
        inner.vocab_size = len(weight)

    def _rename(self, tokens: Sequence[str]) -> None:
        """Let `tokens` be all the learned tokens, their ids in this order."""
        with tokenizing:
            if getattr(self.tokenizer, "_tokenizer", None) is not None:
                _rebuild(self.tokenizer, set(self.tokens()), tokens)
            else:
                _renumber(self.tokenizer, set(self.tokens()), tokens)

    def find_end(self) -> None:
        """Let the encoder find the end of a text though learned tokens have larger ids, see `OLD_END`.

        Configurations stay as they were trained with, so an encoder that is loaded with learned words needs this too.
        """
        inner: Any = getattr(self.encoder, "text_model", self.encoder)
        configured = getattr(getattr(self.encoder, "config", None), "eos_token_id", None)
        if hasattr(inner, "eos_token_id") and configured == OLD_END:
            inner.eos_token_id = self.tokenizer.eos_token_id if self.tokens() else OLD_END


def spelt(word: str, count: int) -> list[str]:
    """Return the tokens that a word of `count` vectors is written with."""
    return [word, *(f"{word}_{k}" for k in range(1, count))]


def _nearest(word: str, words: Iterable[str]) -> str:
    words = list(words)
    return did_you_mean(word, words) if words else "; none is loaded."


def _rebuild(tokenizer: Any, learned: set[str], tokens: Sequence[str]) -> None:
    """Give a tokenizer of the tokenizers package other learned tokens; it can only be built anew."""
    state = json.loads(tokenizer._tokenizer.to_str())
    kept = {each["content"]: each for each in state["added_tokens"]}
    base = [each for each in state["added_tokens"] if each["content"] not in learned]
    first = len(tokenizer) - len(learned)
    state["added_tokens"] = base + [{**kept[token], "id": first + k} for k, token in enumerate(tokens)]
    tokenizer._tokenizer = type(tokenizer._tokenizer).from_str(json.dumps(state))


def _renumber(tokenizer: Any, learned: set[str], tokens: Sequence[str]) -> None:
    """Give a tokenizer written in Python other learned tokens."""
    by_name = {str(token): token for token in tokenizer._added_tokens_decoder.values()}
    first = len(tokenizer) - len(learned)
    base = {k: token for k, token in tokenizer._added_tokens_decoder.items() if str(token) not in learned}
    tokenizer._added_tokens_decoder = base | {first + k: by_name[token] for k, token in enumerate(tokens)}
    tokenizer._added_tokens_encoder = {str(token): k for k, token in tokenizer._added_tokens_decoder.items()}
    tokenizer.tokens_trie = type(tokenizer.tokens_trie)()
    tokenizer._update_trie()
    tokenizer._update_total_vocab_size()


# Several places at once ----------------------------------------------------------------------------------------------

Plan = Mapping[str, Mapping[str, Tensor]]
"""Word -> name of a place -> its vectors there, (number, width)."""


def check(places: Mapping[str, Place], plan: Plan) -> None:
    """Raise unless all words of a plan can be added.

    Raises:
        ConfigError: for a tokenizer and an encoder that do not belong together.
        InputError: for a word that is known already.
        WeightsError: for vectors of another width than the encoder's.
    """
    for name, place in places.items():
        words = {word: vectors[name] for word, vectors in plan.items() if name in vectors}
        if words:
            place.check()
            place.refuse_known(words)
    for word, vectors in plan.items():
        for name, rows in vectors.items():
            if rows.shape[-1] != places[name].width:
                raise WeightsError(
                    f"The vectors of {word!r} have {rows.shape[-1]} numbers and those of {name} {places[name].width}: "
                    "the word was learned for another text encoder"
                )


def add(places: Mapping[str, Place], plan: Plan) -> None:
    """Add the words of a plan to all their places, or to none; see `check` for what is refused."""
    with changing:
        check(places, plan)
        done: list[tuple[Place, list[str]]] = []
        try:
            for name, place in places.items():
                words = {word: vectors[name] for word, vectors in plan.items() if name in vectors}
                if words:
                    place.add(words)
                    done.append((place, list(words)))
        except BaseException:
            for place, added in reversed(done):
                place.remove(added)
            raise


def remove(places: Iterable[Place], words: Sequence[str] | None) -> list[str]:
    """Remove words, all learned ones when None, wherever they are; return which were removed.

    Raises:
        InputError: for a word that no place has; nothing has changed then.
    """
    with changing:
        known = {place.name: place.words() for place in places}
        every = list(dict.fromkeys(word for names in known.values() for word in names))
        unknown = [word for word in words or () if word not in every]
        if unknown:
            raise InputError(f"There is no learned word {unknown[0]!r}{_nearest(unknown[0], every)}")
        wanted = every if words is None else list(dict.fromkeys(words))
        for place in places:
            own = [word for word in wanted if word in known[place.name]]
            if own:
                place.remove(own)
        return wanted
