"""Picture prompts: IP-Adapters loaded into a pipeline, and what a call shows them (Ye et al. 2023, 2308.06721)."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapters import ip_adapter as adapters
from ..core.errors import ConfigError, InputError, check_known
from ..core.files import is_local, missing, resolve_file, resolve_folder, safe_join
from ..core.hub import HUB_OPTIONS
from ..core.imports import require
from ..core.logging import get_logger
from ..families.common import dtype_of
from ..families.conditioning import Conditioning, Conditions, Scheduled, is_member
from ..nn.ip_processors import masks_of
from ..weights.dialects.ip_adapter import IPAdapter, Kind, parse, read
from . import loading
from .files import Choices
from .inputs import Call, check_finite
from .pictures import upright_pictures

logger = get_logger(__name__)
Source = str | os.PathLike | Mapping[str, Any]
Place = tuple[Source, str | None, str | None]
"""Where an adapter is: source, subfolder and file name."""
Shown = tuple[Tensor, Tensor | None]
"""Embeddings of pictures for the prompts and, with guidance, for the negative prompts, (rows, pictures, ...)."""
SLACK = 0.05
"""How far the aspect ratio of a mask may be from the picture's."""
ADDED = "_picture_parts_added"
"""Name in a pipeline's `__dict__` of the components that were loaded with an adapter."""


def load(pipe: Any, places: Sequence[Place], folder: str | None, hub: Mapping[str, Any]) -> None:
    """Load adapters and the picture encoder beside them into a pipeline; see `IPAdapterMixin.load_ip_adapter`."""
    check_known(f"{type(pipe).__name__}.load_ip_adapter", hub, [*HUB_OPTIONS, "subfolder", "weight_name"])
    if "ip_adapter_image" not in inspect.signature(type(pipe).__call__).parameters:
        raise ConfigError(
            f"{type(pipe).__name__} takes no picture prompts; pipelines whose call has `ip_adapter_image` do, such as "
            "StableDiffusionPipeline."
        )
    unet = pipe._part("unet")
    found = [fetch(source, subfolder, name, hub) for source, subfolder, name in places]
    new = parts_of(pipe, places[0], folder, found, hub)
    for adapter in found:
        check_encoder(adapter, new.get("image_encoder", getattr(pipe, "image_encoder", None)))
    adapters.attach(unet, found)
    pipe.__dict__.setdefault(ADDED, set()).update(new)
    for name, part in new.items():
        setattr(pipe, name, part)


def unload(pipe: Any) -> None:
    """Remove the adapters of a pipeline, and what was loaded with them."""
    if not adapters.detach(pipe._part("unet")):
        logger.warning("There is no IP-Adapter to unload.")
    for name in pipe.__dict__.pop(ADDED, ()):
        setattr(pipe, name, None)


def parts_of(pipe: Any, place: Place, folder: str | None, found: Sequence[IPAdapter], hub: Any) -> dict[str, Any]:
    """Return the encoder and its picture processor, those of them that a pipeline lacks and has a place for."""
    new: dict[str, Any] = {}
    encoder = getattr(pipe, "image_encoder", None)
    if encoder is None and folder is not None and "image_encoder" in pipe.components:
        where = encoder_folder(place[0], place[1], folder, hub)
        if where is not None:
            new["image_encoder"] = encoder = load_encoder(pipe, where)
        elif any(not adapter.kind.face for adapter in found):
            logger.warning(
                "There is no picture encoder in %r beside the IP-Adapter; pass image_encoder_folder, or set "
                "`pipe.image_encoder` to the CLIPVisionModelWithProjection that it was trained with.",
                folder,
            )
    if encoder is not None and pipe.components.get("feature_extractor", encoder) is None:
        transformers = require("transformers", why="Picture prompts", extra="torch")
        side = encoder.config.image_size
        new["feature_extractor"] = transformers.CLIPImageProcessor(size=side, crop_size=side)
    return new


def load_encoder(pipe: Any, folder: Path) -> Any:
    """Return the picture encoder in a local folder, in the type and on the device of the UNet."""
    choices = Choices({"default": dtype_of(pipe.unet, torch.float32)})
    listed = {folder.name: ("transformers", "CLIPVisionModelWithProjection")}
    encoder = loading.load_components(listed, folder.parent, choices)[folder.name]
    return encoder.to(pipe._execution_device)


# Pictures of a call --------------------------------------------------------------------------------------------------


def encode(pipe: Any, image: Any, device: torch.device | str | None, *, hidden: bool) -> tuple[Tensor, Tensor]:
    """Return what the picture encoder sees in pictures and in nothing; see `IPAdapterMixin.encode_image`."""
    encoder, pixels = pipe._part("image_encoder"), image
    if not isinstance(image, Tensor):
        reader = pipe._part("feature_extractor")
        pixels = reader(images=upright_pictures(image), return_tensors="pt").pixel_values
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    pixels = pixels.to(device or pipe._execution_device, dtype_of(encoder, torch.float32))
    if not hidden:
        seen = encoder(pixels).image_embeds
        return seen, torch.zeros_like(seen)
    both = [encoder(one, output_hidden_states=True).hidden_states[-2] for one in (pixels, torch.zeros_like(pixels))]
    return both[0], both[1]


def shown(
    pipe: Any, images: Any, embeds: Sequence[Tensor] | None, device: torch.device | str | None, *, guided: bool
) -> list[Shown]:
    """Return the embeddings of every adapter, worked out from pictures or taken from those that were given."""
    device = device or pipe._execution_device
    kinds = kinds_of(pipe.unet)
    if embeds is not None:
        halves = [rows.to(device).chunk(2) if guided else (None, rows.to(device)) for rows in embeds]
        return [(positive, negative) for negative, positive in halves]
    found = []
    with torch.no_grad():
        for kind, image in zip(kinds, per_adapter(images, kinds), strict=True):
            seen, nothing = encode(pipe, image, device, hidden=kind.hidden)
            found.append((seen[None], nothing[None] if guided else None))
    return found


def told(pipe: Any, call: Call, conditions: Conditions) -> Conditions:
    """Return the conditioning of every branch with a call's picture prompts."""
    guided = any(state is not None and not is_member(name) for name, state in conditions.items())
    images, embeds = call.get("ip_adapter_image"), call.get("ip_adapter_image_embeds")
    pairs = shown(pipe, images, embeds, call.device, guided=guided)
    dtype = conditions["positive"].at(0).text.dtype  # type: ignore[union-attr]
    full = [[None if rows is None else rows_of(rows.to(call.device, dtype), call) for rows in pair] for pair in pairs]

    def each(name: str, state: Conditioning | Scheduled | None) -> Conditioning | Scheduled | None:
        if isinstance(state, Scheduled):
            return replace(state, states=tuple(each(name, one) for one in state.states))
        pictures = tuple(seen if is_member(name) else nothing for seen, nothing in full)
        return None if state is None else replace(state, pictures=pictures)

    return {name: each(name, state) for name, state in conditions.items()}


def check(pipe: Any, call: Call) -> None:
    """Check the picture prompts of a call against the adapters that are loaded, before any work.

    Raises:
        ConfigError: when no adapter is loaded, or the picture encoder is missing.
        InputError: for another number of pictures than adapters, wrong shapes, or masks that do not fit.
    """
    images, embeds = call.get("ip_adapter_image"), call.get("ip_adapter_image_embeds")
    masks = (call.get("cross_attention_kwargs") or {}).get("ip_adapter_masks")
    if images is not None and embeds is not None:
        raise InputError("Both `ip_adapter_image` and `ip_adapter_image_embeds` were given; pass one of them.")
    if images is None and embeds is None:
        raise InputError("`ip_adapter_masks` were given and no picture prompt; pass `ip_adapter_image` too.")
    name = "ip_adapter_image" if embeds is None else "ip_adapter_image_embeds"
    unet = pipe._part("unet")
    if adapters.attached(unet) is None:
        raise ConfigError(f"`{name}` needs a loaded IP-Adapter, and this pipeline has none; see `load_ip_adapter`.")
    kinds, scales = kinds_of(unet), next(iter(adapters.processors(unet).values())).scale
    if embeds is None:
        counts = [count(one) for one in per_adapter(images, kinds)]
        check_sources(pipe, kinds)
    else:
        check_embeds(embeds, unet, call, guided=pipe._is_guided(call.get("guidance_scale", 0.0)))
        counts = [rows.shape[1] for rows in embeds]
    rows = masks_of(masks, counts)
    for mask in rows:
        if mask is not None:
            check_aspect(mask, call)
    for i, scale in enumerate(scales):
        if isinstance(scale, tuple) and (rows[i] is None or len(scale) != counts[i]):
            raise InputError(
                f"IP-Adapter {i} has {len(scale)} scales, one per picture, and {counts[i]} picture(s) "
                f"{'without' if rows[i] is None else 'with'} masks; pass a mask for every picture, or one scale."
            )


def kinds_of(unet: Any) -> tuple[Kind, ...]:
    """Return the kinds of the adapters of a UNet.

    Raises:
        ConfigError: when there are none.
    """
    present = adapters.attached(unet)
    if present is None:
        raise ConfigError("No IP-Adapter is loaded; call `load_ip_adapter` first.")
    return present.kinds


# Files ---------------------------------------------------------------------------------------------------------------


def spread(sources: Any, folders: Any, names: Any) -> list[Place]:
    """Return source, subfolder and file name of every adapter; one of them alone serves all.

    Raises:
        InputError: when lists differ in length.
    """
    columns = [list(one) if isinstance(one, (list, tuple)) else [one] for one in (sources, folders, names)]
    total = max(len(column) for column in columns)
    for what, column in zip(("repositories or files", "subfolders", "weight names"), columns, strict=True):
        if len(column) not in (1, total):
            raise InputError(f"{len(column)} {what} were given for {total} IP-Adapters; give one, or one for each.")
    full = [column * total if len(column) == 1 else column for column in columns]
    return list(zip(*full, strict=True))


def fetch(source: Source, folder: str | None, name: str | None, hub: Mapping[str, Any]) -> IPAdapter:
    """Read one adapter from where it is.

    Raises:
        InputError: when the file does not exist, or a folder's file is not named.
    """
    if isinstance(source, Mapping):
        return parse(source)
    path = Path(source).expanduser()
    if name is None and not path.is_file():
        if is_local(source) and not path.exists():
            raise missing(path)
        inside = safe_join(path, folder) if folder else path
        files = sorted(file.name for file in inside.glob("*") if file.suffix in (".bin", ".safetensors"))
        if len(files) != 1:
            there = f"; there are {', '.join(files)}" if files else ""
            raise InputError(f"`weight_name` says which file of {source} is the IP-Adapter; it is missing{there}.")
        name = files[0]
    return read(resolve_file(source, name or "", subfolder=folder or None, **hub))


def encoder_folder(source: Source, subfolder: str | None, name: str, hub: Mapping[str, Any]) -> Path | None:
    """Return the local folder of the picture encoder of a repository or beside a file, None where there is none."""
    if isinstance(source, Mapping):
        return None
    path = Path(source).expanduser()
    if path.is_file():
        source, subfolder = path.parent, None
    inside = name if "/" in name or not subfolder else f"{subfolder}/{name}"
    if not is_local(source):
        for weights in ("model*.safetensors*", "pytorch_model*.bin*"):
            root = resolve_folder(source, allow_patterns=[f"{inside}/*.json", f"{inside}/{weights}"], **hub)
            if any((root / inside).glob(weights)):
                return root / inside
        return None
    folder = safe_join(Path(source).expanduser(), inside)
    return folder if folder.is_dir() else None


def check_encoder(adapter: IPAdapter, encoder: Any) -> None:
    """Raise ConfigError when a picture encoder is not the one that an adapter was trained with, by its width."""
    kind = adapter.kind
    if encoder is None or kind.seen is None:
        return
    wanted = adapter.width(kind.seen)
    has = getattr(encoder.config, "hidden_size" if kind.hidden else "projection_dim", wanted)
    if has != wanted:
        raise ConfigError(
            f"{adapter.what} reads embeddings of {wanted} numbers, and the picture encoder gives {has}; it was trained "
            'with another one: pass image_encoder_folder, such as "models/image_encoder" for ViT-H, or set '
            "`pipe.image_encoder`."
        )


# Pictures ------------------------------------------------------------------------------------------------------------


def per_adapter(images: Any, kinds: Sequence[Kind]) -> list[Any]:
    """Return the pictures of each adapter from a call's: one picture, or a list with a picture or a list per adapter.

    Raises:
        InputError: for another number.
    """
    rows = list(images) if isinstance(images, (list, tuple)) else [images]
    if len(rows) != len(kinds):
        hint = "; several pictures of one adapter stand in a list inside the list" if len(kinds) == 1 else ""
        raise InputError(f"`ip_adapter_image` has {len(rows)} entries for {len(kinds)} IP-Adapters{hint}.")
    return rows


def count(image: Any) -> int:
    """Return how many pictures an adapter is shown."""
    if isinstance(image, (list, tuple)):
        if not image:
            raise InputError("`ip_adapter_image` has an empty list for an IP-Adapter.")
        return len(image)
    return len(image) if getattr(image, "ndim", 0) == 4 else 1


def rows_of(rows: Tensor, call: Call) -> Tensor:
    """Return embeddings with one row per picture of the result, from one row, one per prompt or one per picture."""
    if len(rows) == call.prompts and call.per_prompt > 1:
        return rows.repeat_interleave(call.per_prompt, 0)
    return rows.expand(call.images, *rows.shape[1:])


def check_sources(pipe: Any, kinds: Sequence[Kind]) -> None:
    """Raise InputError or ConfigError unless pictures can be turned into what the adapters read."""
    for i, kind in enumerate(kinds):
        if kind.face:
            raise InputError(
                f"IP-Adapter {i} ({kind.name}) reads embeddings of faces, as the package insightface makes them; pass "
                "`ip_adapter_image_embeds`."
            )
    for name in ("image_encoder", "feature_extractor"):
        if getattr(pipe, name, None) is None:
            raise ConfigError(
                f"`ip_adapter_image` needs `pipe.{name}`, and this pipeline has none; load the IP-Adapter with its "
                "image_encoder_folder, set it, or pass `ip_adapter_image_embeds`."
            )


def check_embeds(embeds: Any, unet: Any, call: Call, *, guided: bool) -> None:
    """Raise InputError unless embeddings have the documented shapes, one tensor per adapter."""
    kinds, layers = kinds_of(unet), adapters.projections(unet)
    if not isinstance(embeds, (list, tuple)) or len(embeds) != len(kinds):
        what = f"{len(embeds)} entries" if isinstance(embeds, (list, tuple)) else f"a {type(embeds).__name__}"
        raise InputError(f"`ip_adapter_image_embeds` is {what}; it must be a list with one tensor per IP-Adapter.")
    for i, (rows, kind, layer) in enumerate(zip(embeds, kinds, layers, strict=True)):
        check_finite(f"ip_adapter_image_embeds[{i}]", rows)
        width = layer.get_submodule(kind.given).in_features
        axes = ("pictures", "tokens", "width")[:: 1 if kind.hidden and not kind.face else 2]
        halves = 2 if guided else 1
        valid = rows.ndim == len(axes) + 1 and rows.shape[-1] == width and len(rows) % halves == 0
        if not valid or len(rows) // halves not in (1, call.prompts, call.images):
            rule = "first the negative rows, then as many of the prompts" if guided else "guidance is off"
            raise InputError(
                f"`ip_adapter_image_embeds[{i}]` has shape {tuple(rows.shape)}; this {kind.name} adapter reads (rows, "
                f"{', '.join(axes)}) with width {width}, and one row, or one per prompt ({rule})."
            )
        if kind.face and kind.hidden and layer.clip_embeds is None:
            layer.seen(rows)


def check_aspect(mask: Tensor, call: Call) -> None:
    """Raise InputError when a mask has another aspect ratio than the size that a call asks for."""
    height, width = call.get("height"), call.get("width")
    if height is None or width is None:
        return
    ratio, wanted = mask.shape[-1] / mask.shape[-2], width / height
    if abs(ratio / wanted - 1) > SLACK:
        raise InputError(
            f"A mask of `ip_adapter_masks` is {mask.shape[-2]}x{mask.shape[-1]} and the picture {height}x{width} "
            "(height x width); pass both to `IPAdapterMaskProcessor.preprocess`."
        )
