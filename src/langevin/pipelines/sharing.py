"""Another pipeline over the same components: nothing is loaded twice, nothing is copied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..core.config import options_of
from ..core.errors import ConfigError, check_known
from ..core.logging import get_logger
from . import files, loading

logger = get_logger(__name__)
CASTS = ("torch_dtype", "dtype")


def share(cls: type[Any], pipe: Any, given: Mapping[str, Any], *, without: Iterable[str] = ()) -> Any:
    """Return a pipeline of `cls` over the components of `pipe`, the same objects.

    What the constructor takes beside components, such as `requires_safety_checker`, and the progress bar's options are
    carried over; options that `cls` does not know are kept for the next class that does. Types stay as they are.

    Args:
        given: components and options of the constructor in place of those of `pipe`, and `torch_dtype` or `dtype`, to
            which the networks are cast in place: `pipe` sees that as well, and a warning says so.
        without: components of `pipe` to leave out without a word.

    Raises:
        ConfigError: when `pipe` is no pipeline, for an unknown keyword, for a component that `cls` needs and neither
            has, or when `cls` is the base, which does not say what to build.
    """
    from .base import DiffusionPipeline

    if cls.__init__ is object.__init__:
        raise ConfigError(
            f"{cls.__name__}.from_pipe does not say what to build; call it on the class that you want, or "
            f"AutoPipelineForText2Image, AutoPipelineForImage2Image or AutoPipelineForInpainting."
        )
    if not isinstance(pipe, DiffusionPipeline):
        raise ConfigError(f"{cls.__name__}.from_pipe takes a pipeline of this library, not a {type(pipe).__name__}.")
    accepted = options_of(cls)
    check_known(f"{cls.__name__}.from_pipe", given, [*accepted, *CASTS])
    asked = [given.get(name) for name in CASTS]
    types = files.dtypes(*asked) if asked != [None, None] else {}
    given = {name: value for name, value in given.items() if name not in CASTS}
    have = {name: part for name, part in pipe.components.items() if name not in given and name not in without}
    parts = {name: part for name, part in have.items() if name in accepted}
    homeless = sorted(name for name, part in have.items() if name not in accepted and part is not None)
    missing = loading.lacking(cls, {*parts, *given})
    if missing:
        raise ConfigError(
            f"{cls.__name__} needs {', '.join(missing)}, which this {type(pipe).__name__} does not have; pass "
            f"`{missing[0]}=...`."
        )
    if homeless:
        logger.warning("%s has no place for %s of this %s.", cls.__name__, ", ".join(homeless), type(pipe).__name__)
    carried = carried_by(pipe)
    options = {name: value for name, value in carried.items() if name in accepted and name not in given}
    nothing = dict.fromkeys(loading.absent(cls, {*parts, *given}))
    built = cls(**{**nothing, **options, **parts, **given})
    state = {name: value for name, value in carried.items() if name not in accepted}
    built.__dict__.update(_carried_options=state, _name_or_path=pipe.name_or_path)
    built.set_progress_bar_config(**pipe.__dict__.get("_progress_bar_config", {}))
    cast(built, types, shared=parts)
    return built


def carried_by(pipe: Any) -> dict[str, Any]:
    """Return what a pipeline was built with beside its components, and what it carries for other classes."""
    own = {name: value for name, value in pipe.config.items() if not name.startswith("_")}
    own = {name: value for name, value in own.items() if name not in pipe.components}
    return {**pipe.__dict__.get("_carried_options", {}), **own}


def cast(pipe: Any, types: Mapping[str, torch.dtype | None], *, shared: Iterable[str]) -> None:
    """Cast the networks of a pipeline in place, with a warning about those that another pipeline shares.

    Args:
        types: by component, "default" for the rest; None leaves a network as it is.
    """
    check_known("torch_dtype", types, ["default", *pipe.components])
    changed = []
    for name, module in pipe._networks.items():
        dtype = types.get(name, types.get("default"))
        if dtype is not None and any(p.is_floating_point() and p.dtype != dtype for p in module.parameters()):
            module.to(dtype)
            changed += [name] if name in shared else []
    if changed:
        logger.warning(
            "%s: cast in place, so the pipeline that these are shared with sees it too. Build a copy with "
            "from_pretrained to keep both types.",
            ", ".join(changed),
        )
