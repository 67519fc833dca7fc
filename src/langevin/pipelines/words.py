"""Learned words of a pipeline: where they are read from, which text encoder learns them, how they are saved.

The documented methods are in `pipelines.textual_inversion`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..adapters import textual_inversion as adapters
from ..adapters.files import choose
from ..adapters.textual_inversion import Place
from ..core.errors import ConfigError, InputError, check_known
from ..core.files import PathLike, is_local, resolve_file, safe_join
from ..core.hub import HUB_OPTIONS
from ..core.logging import get_logger
from ..core.report import LoadReport, some
from ..weights.dialects import textual_inversion as dialect
from ..weights.dialects.textual_inversion import ANY, NAMES, SUFFIXES, Learned
from .textual_inversion import Source

logger = get_logger(__name__)
ENCODERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
"""Text encoders that learn words, and their tokenizers."""


def load(
    pipe: Any,
    source: Source | Sequence[Source],
    token: str | Sequence[str | None] | None,
    *,
    where: Mapping[str, Any],
    hub: Mapping[str, Any],
    tokenizer: Any = None,
    text_encoder: nn.Module | None = None,
) -> LoadReport:
    """Load learned words, all or none; see `TextualInversionLoaderMixin.load_textual_inversion`.

    Args:
        where: `weight_name`, `subfolder`, `use_safetensors`.
        hub: options of the hub, and `hf_token`.
    """
    names = [*(name for name in HUB_OPTIONS if name != "token"), *where, "hf_token"]
    check_known(f"{type(pipe).__name__}.load_textual_inversion", hub, names)
    options = {"token" if name == "hf_token" else name: value for name, value in hub.items()}
    sources = list(source) if isinstance(source, (list, tuple)) else [source]
    files = [_read(each, where, options) for each in sources]
    found = _named(files, token)
    places = places_of(pipe, tokenizer, text_encoder)
    report, given = LoadReport(), text_encoder is not None or tokenizer is not None
    plan: dict[str, dict[str, Tensor]] = {}
    for word, learned in found:
        chosen = _assigned(word, learned, places, report, given=given)
        if word in plan and set(plan[word]) & set(chosen):
            raise InputError(f"The word {word!r} is given twice; pass a `token` for each.")
        plan[word] = plan.get(word, {}) | chosen
    adapters.add(places, plan)
    if not given:
        _report_alone(plan, places)
    return report


def unload(pipe: Any, tokens: str | Sequence[str] | None, *, tokenizer: Any, text_encoder: nn.Module | None) -> None:
    """Remove learned words; see `TextualInversionLoaderMixin.unload_textual_inversion`."""
    words = [tokens] if isinstance(tokens, str) else tokens
    if not adapters.remove(list(places_of(pipe, tokenizer, text_encoder).values()), words):
        logger.warning("There is no learned word to unload.")


def save(
    pipe: Any,
    save_directory: PathLike,
    token: str | Sequence[str] | None,
    *,
    layout: str,
    weight_name: str | None,
    safe: bool,
) -> Path:
    """Save learned words; see `TextualInversionLoaderMixin.save_textual_inversion`."""
    places = places_of(pipe)
    there = {name: place.words() for name, place in places.items()}
    every = list(dict.fromkeys(word for words in there.values() for word in words))
    words = every if token is None else [token] if isinstance(token, str) else list(token)
    if not words:
        raise InputError("There is no learned word to save; load one with `load_textual_inversion`.")
    held = {
        word: {name: places[name].vectors(word) for name in places if word in there[name]}
        or {ANY: next(iter(places.values())).vectors(word)}
        for word in words
    }
    path = Path(save_directory).expanduser()
    if path.suffix not in SUFFIXES:
        double = any(len(vectors) > 1 for vectors in held.values())
        stem = words[0] if layout == "a1111" or double else Path(NAMES[0]).stem
        ending = ".safetensors" if safe else ".pt" if layout == "a1111" else ".bin"
        path = safe_join(path, weight_name or f"{stem}{ending}")
    dialect.write(path, held, layout)
    return path


def places_of(pipe: Any, tokenizer: Any = None, text_encoder: nn.Module | None = None) -> dict[str, Place]:
    """Return where words can be learned, by the name of the text encoder.

    Args:
        tokenizer, text_encoder: those that the caller names; one of them names the other.
    Raises:
        ConfigError: when there is no such place.
    """
    own = own_places(pipe)
    if tokenizer is None and text_encoder is None:
        if not own:
            raise ConfigError(f"This {type(pipe).__name__} has no text encoder with a tokenizer to learn words.")
        return own
    for name, place in own.items():
        if text_encoder in (None, place.encoder) and (tokenizer is None or tokenizer is place.tokenizer):
            return {name: place}
    if tokenizer is None or text_encoder is None:
        raise ConfigError("This text encoder or tokenizer is none of the pipeline's; pass both of them.")
    return {ANY: Place("text_encoder", tokenizer, text_encoder)}


def own_places(pipe: Any) -> dict[str, Place]:
    """Return the places of a pipeline's own components, by the name of the text encoder."""
    parts = {name: (getattr(pipe, beside, None), getattr(pipe, name, None)) for name, beside in ENCODERS.items()}
    return {name: Place(name, *pair) for name, pair in parts.items() if None not in pair}


def find_ends(pipe: Any) -> None:
    """Let text encoders that come with learned words find the end of a text, see `Place.find_end`."""
    for place in own_places(pipe).values():
        place.find_end()


# Files and names -----------------------------------------------------------------------------------------------------


def _read(source: Source, where: Mapping[str, Any], hub: Mapping[str, Any]) -> list[Learned]:
    """Return the words in one source."""
    if isinstance(source, (Mapping, Tensor)):
        return dialect.parse(source, "The state dict")
    return dialect.read(_find(source, hub=hub, **where))


def _find(
    source: PathLike,
    *,
    weight_name: str | None,
    subfolder: str | None,
    use_safetensors: bool | None,
    hub: Mapping[str, Any],
) -> Path:
    """Return the file that a source leads to: the one named, or of the usual name, or the only one there is.

    Raises:
        InputError: when there is none, or several, with the files that there are.
    """
    if weight_name is not None or Path(source).expanduser().is_file():
        return resolve_file(source, weight_name or "", subfolder=subfolder, **hub)
    names = [name for name in NAMES if use_safetensors in (None, name.endswith(SUFFIXES[0]))]
    for name in () if is_local(source) else names:  # a repository in the cache can be asked for files, not for a list
        try:
            return resolve_file(source, name, subfolder=subfolder, **hub)
        except InputError as error:
            logger.debug("%s", error)
    found = choose(source, subfolder=subfolder, safe=use_safetensors, names=names, **hub)
    return resolve_file(source, found, subfolder=subfolder, **hub)


def _named(files: Sequence[Sequence[Learned]], token: str | Sequence[str | None] | None) -> list[tuple[str, Learned]]:
    """Return every learned word with the name it gets.

    Args:
        files: the words of every source.
        token: see `load_textual_inversion`.
    Raises:
        InputError: for another number of names than words, and for a word without a name.
    """
    every = [learned for words in files for learned in words]
    names: list[str | None] = (
        [token] if isinstance(token, str) else [*token] if token is not None else [None] * len(every)
    )
    if len(names) != len(every):
        there = some([repr(each.word) for each in every if each.word])
        raise InputError(
            f"`token` names {len(names)} words, and {len(every)} are loaded{f': {there}' if there else ''}."
        )
    pairs = [(name if name is not None else each.word, each) for name, each in zip(names, every, strict=True)]
    for name, each in pairs:
        if not name or name.strip() != name:
            stored = some(list(each.stored)) or "the tensor"
            raise InputError(f"{stored} does not say which word it is; pass it as `token`, for example token='<cat>'.")
    return [(str(name), each) for name, each in pairs]


def _assigned(
    word: str, learned: Learned, places: Mapping[str, Place], report: LoadReport, *, given: bool
) -> dict[str, Tensor]:
    """Return place -> vectors of a word, and note in the report what was used and what has no place.

    Args:
        given: whether the caller chose the place; then the vectors that fit there are taken.
    Raises:
        InputError: for a file made for two encoders where the pipeline has the first alone.
    """
    stored = dict(zip(learned.vectors, learned.stored or ("",), strict=True))
    if given or ANY in learned.vectors:
        pairs = [(name, part) for name in places for part in learned.vectors]
        fits = [(name, part) for name, part in pairs if places[name].width == learned.vectors[part].shape[-1]]
        named = [(name, part) for name, part in fits if name == part]
        name, part = (named or fits or pairs)[0]
        chosen = {name: learned.vectors[part]}
    else:
        if "text_encoder_2" not in places and {"text_encoder", "text_encoder_2"} <= set(learned.vectors):
            raise InputError(
                f"The word {word!r} was learned for the two text encoders of SDXL ({', '.join(learned.stored)}), and "
                "here is one; load it into an SDXL pipeline."
            )
        chosen = {name: rows for name, rows in learned.vectors.items() if name in places}
    if not chosen:
        raise InputError(
            f"The word {word!r} was learned for {', '.join(learned.vectors)}; here is {', '.join(places)}."
        )
    used = {part for part, rows in learned.vectors.items() if any(rows is each for each in chosen.values())}
    report.applied += [stored[part] for part in learned.vectors if part in used and stored[part]]
    report.ignored |= {stored[part]: f"there is no {part} here" for part in learned.vectors if part not in used}
    return chosen


def _report_alone(plan: Mapping[str, Mapping[str, Tensor]], places: Mapping[str, Place]) -> None:
    """Say which words only one of several text encoders knows."""
    for word, vectors in plan.items():
        others = [name for name in places if name not in vectors and word not in places[name].words()]
        if others:
            logger.warning("%s knows %r and %s does not: it reads the word letter by letter", *vectors, word, others[0])
