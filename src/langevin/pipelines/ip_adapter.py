"""Picture prompts: loading IP-Adapters into a pipeline, and what a call shows them (Ye et al. 2023, 2308.06721)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapters import ip_adapter as adapters
from ..adapters.ip_adapter import Weight
from ..core.errors import ConfigError, InputError, check_known
from ..core.files import is_local, resolve_file, resolve_folder, safe_join
from ..core.hub import HUB_OPTIONS
from ..core.logging import get_logger
from ..families.common import dtype_of
from ..families.conditioning import Conditioning, Conditions, Scheduled, is_member
from ..nn.ip_processors import masks_of
from ..weights.dialects.ip_adapter import IPAdapter, Kind, parse, read
from . import loading
from .inputs import Call, check_finite
from .pictures import upright_pictures

logger = get_logger(__name__)
Source = str | os.PathLike | Mapping[str, Any]
Shown = tuple[Tensor, Tensor | None]
"""Embeddings of pictures for the prompts and, with guidance, for the negative prompts, (rows, pictures, ...)."""
SLACK = 0.05
"""How far the aspect ratio of a mask may be from the picture's."""


class IPAdapterMixin:
    """Adds picture prompts to a pipeline."""

    components: Mapping[str, Any]
    unet: Any

    def load_ip_adapter(
        self,
        pretrained_model_name_or_path_or_dict: Source | Sequence[Source],
        subfolder: str | Sequence[str | None] | None = None,
        weight_name: str | Sequence[str] | None = None,
        image_encoder_folder: str | None = "image_encoder",
        low_cpu_mem_usage: bool | None = None,
        **hub: Any,
    ) -> None:
        """Load IP-Adapters in place of those that are loaded, with scale 1, and the picture encoder beside them.

        Args:
            pretrained_model_name_or_path_or_dict: a hub repository, a folder, a file, a state dict, or a list of them.
            subfolder: folder inside the repository, or one per adapter.
            weight_name: file name of the weights, or one per adapter.
            image_encoder_folder: folder of the encoder, inside `subfolder`, or inside the repository where the name has
                a slash. None loads none; an encoder that the pipeline has is kept.
            low_cpu_mem_usage: accepted as documented; loading never holds the weights twice.
            hub: `revision`, `cache_dir`, `local_files_only`, `token`, `force_download`, `proxies`.

        Raises:
            ConfigError: the pipeline takes no picture prompts, or its network no adapters.
            InputError: a file or folder does not exist, or the lists differ in length.
            WeightsError: a file is damaged, is no IP-Adapter, or is for another network. Nothing has changed then.
        """
        check_known(f"{type(self).__name__}.load_ip_adapter", hub, [*HUB_OPTIONS, "subfolder", "weight_name"])
        if "ip_adapter_image" not in call_arguments(self):
            raise ConfigError(
                f"{type(self).__name__} takes no picture prompts; pipelines whose call has `ip_adapter_image` do, such "
                "as StableDiffusionPipeline."
            )
        unet = self._part("unet")  # type: ignore[attr-defined]
        places = [*spread(pretrained_model_name_or_path_or_dict, subfolder, weight_name)]
        found = [fetch(source, folder, name, hub) for source, folder, name in places]
        new = self._picture_parts(places[0], image_encoder_folder, found, hub)
        for adapter in found:
            check_encoder(adapter, new.get("image_encoder", getattr(self, "image_encoder", None)))
        adapters.attach(unet, found)
        self.__dict__.setdefault("_picture_parts_added", set()).update(new)
        for name, part in new.items():
            setattr(self, name, part)

    def set_ip_adapter_scale(self, scale: Weight | Sequence[Weight]) -> None:
        """Set how much the pictures count beside the prompt: 0 not at all, 1 as the adapter was trained.

        Args:
            scale: one for all adapters, or a list with one for each. A scale is a number; a list of numbers, one per
                picture of an adapter whose pictures have masks; or numbers by block of the UNet, 0 for the others:
                `{"down": {"block_2": [0.0, 1.0]}, "up": {"block_0": [0.0, 1.0, 0.0]}}` (Wang et al. 2024, 2404.02733).

        Raises:
            ConfigError: when no adapter is loaded, or for a block that the UNet does not have.
            InputError: for another number of scales than adapters, or of numbers than transformers in a block.
        """
        adapters.set_scale(self._part("unet"), scale)  # type: ignore[attr-defined]

    def unload_ip_adapter(self) -> None:
        """Remove the IP-Adapters, and the encoder that was loaded with them; all is as it was before."""
        if not adapters.detach(self._part("unet")):  # type: ignore[attr-defined]
            logger.warning("There is no IP-Adapter to unload.")
        for name in self.__dict__.pop("_picture_parts_added", ()):
            setattr(self, name, None)

    def _picture_parts(
        self, place: tuple[Source, str | None, str | None], folder: str | None, found: Sequence[IPAdapter], hub: Any
    ) -> dict[str, Any]:
        """Return the encoder and its picture processor, those of them that the pipeline lacks and has a place for."""
        from ..core.imports import require

        new: dict[str, Any] = {}
        encoder = getattr(self, "image_encoder", None)
        if encoder is None and folder is not None and "image_encoder" in self.components:
            where = encoder_folder(place[0], place[1], folder, hub)
            if where is not None:
                new["image_encoder"] = encoder = self._load_encoder(where)
            elif any(not adapter.kind.face for adapter in found):
                logger.warning(
                    "There is no picture encoder in %r beside the IP-Adapter; pass image_encoder_folder, or set "
                    "`pipe.image_encoder` to the CLIPVisionModelWithProjection that it was trained with.",
                    folder,
                )
        lacks = "feature_extractor" in self.components and self.components["feature_extractor"] is None
        if encoder is not None and lacks:
            transformers = require("transformers", why="Picture prompts", extra="torch")
            side = encoder.config.image_size
            new["feature_extractor"] = transformers.CLIPImageProcessor(size=side, crop_size=side)
        return new

    def _load_encoder(self, folder: Path) -> Any:
        """Load the picture encoder of a local folder in the type and on the device of the UNet."""
        choices = loading.Choices({"default": dtype_of(self.unet, torch.float32)})
        listed = {folder.name: ("transformers", "CLIPVisionModelWithProjection")}
        encoder = loading.load_components(listed, folder.parent, choices)[folder.name]
        return encoder.to(self._execution_device)  # type: ignore[attr-defined]

    # Pictures of a call ----------------------------------------------------------------------------------------------

    def encode_image(
        self,
        image: Any,
        device: torch.device | str | None = None,
        num_images_per_prompt: int = 1,
        output_hidden_states: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return what the picture encoder sees in pictures, and in nothing for the negative prompts.

        Both are (pictures * num_images_per_prompt, width), or (..., tokens, width) with `output_hidden_states`, the
        states before the last layer; nothing is zeros, with `output_hidden_states` the states of a black picture.
        """
        encoder = self._part("image_encoder")  # type: ignore[attr-defined]
        pixels = image
        if not isinstance(image, Tensor):
            reader = self._part("feature_extractor")  # type: ignore[attr-defined]
            pixels = reader(images=upright_pictures(image), return_tensors="pt").pixel_values
        pixels = pixels[None] if pixels.ndim == 3 else pixels
        pixels = pixels.to(device or self._execution_device, dtype_of(encoder, torch.float32))  # type: ignore[attr-defined]
        if output_hidden_states:
            seen, nothing = (
                encoder(one, output_hidden_states=True).hidden_states[-2] for one in (pixels, torch.zeros_like(pixels))
            )
        else:
            seen = encoder(pixels).image_embeds
            nothing = torch.zeros_like(seen)
        return seen.repeat_interleave(num_images_per_prompt, 0), nothing.repeat_interleave(num_images_per_prompt, 0)

    def prepare_ip_adapter_image_embeds(
        self,
        ip_adapter_image: Any,
        ip_adapter_image_embeds: Sequence[Tensor] | None,
        device: torch.device | str | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
    ) -> list[Tensor]:
        """Return the embeddings of pictures, one tensor (rows, pictures, ...) per adapter.

        There are `num_images_per_prompt` rows and, with guidance, as many of the negative prompts before them. The
        result may be given to a call as `ip_adapter_image_embeds` when there is one row of each.

        Raises:
            ConfigError: when no adapter is loaded.
            InputError: when the pictures do not fit the adapters.
        """
        device = device or self._execution_device  # type: ignore[attr-defined]
        guided = do_classifier_free_guidance
        shown = self._shown(ip_adapter_image, ip_adapter_image_embeds, device, guided=guided)
        return [
            torch.cat([torch.cat([rows] * num_images_per_prompt) for rows in (nothing, seen) if rows is not None])
            for seen, nothing in shown
        ]

    def _shown(
        self, images: Any, embeds: Sequence[Tensor] | None, device: torch.device | str, *, guided: bool
    ) -> list[Shown]:
        """Return the embeddings of every adapter, worked out from pictures or taken from those that were given."""
        kinds = kinds_of(self.unet)
        if embeds is not None:
            halves = [rows.to(device).chunk(2) if guided else (None, rows.to(device)) for rows in embeds]
            return [(positive, negative) for negative, positive in halves]
        shown = []
        with torch.no_grad():
            for kind, image in zip(kinds, per_adapter(images, kinds), strict=True):
                seen, nothing = self.encode_image(image, device, 1, kind.hidden)
                shown.append((seen[None], nothing[None] if guided else None))
        return shown

    def _with_pictures(self, call: Call, conditions: Conditions) -> Conditions:
        """Return the conditioning of every branch with the call's picture prompts, if it has any."""
        images, embeds = call.get("ip_adapter_image"), call.get("ip_adapter_image_embeds")
        if images is None and embeds is None:
            return conditions
        guided = any(state is not None and not is_member(name) for name, state in conditions.items())
        shown = self._shown(images, embeds, call.device, guided=guided)
        given = [rows for pair in shown for rows in pair if rows is not None]
        dtype = conditions["positive"].at(0).text.dtype  # type: ignore[union-attr]
        spread_out = {id(rows): rows_of(rows.to(call.device, dtype), call) for rows in given}

        def told(name: str, state: Conditioning) -> Conditioning:
            column = [seen if is_member(name) else nothing for seen, nothing in shown]
            return replace(state, pictures=tuple(spread_out[id(rows)] for rows in column))

        def each(name: str, state: Conditioning | Scheduled) -> Conditioning | Scheduled:
            if isinstance(state, Scheduled):
                return replace(state, states=tuple(told(name, one) for one in state.states))
            return told(name, state)

        return {name: None if state is None else each(name, state) for name, state in conditions.items()}

    def _check_picture_prompts(self, call: Call) -> None:
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
            if masks is not None:
                raise InputError("`ip_adapter_masks` were given and no picture prompt; pass `ip_adapter_image` too.")
            return
        name = "ip_adapter_image" if embeds is None else "ip_adapter_image_embeds"
        unet = self._part("unet")  # type: ignore[attr-defined]
        if adapters.attached(unet) is None:
            raise ConfigError(f"`{name}` needs a loaded IP-Adapter, and this pipeline has none; see `load_ip_adapter`.")
        kinds, scales = kinds_of(unet), next(iter(adapters.processors(unet).values())).scale
        if embeds is None:
            counts = [count(one) for one in per_adapter(images, kinds)]
            check_sources(self, kinds)
        else:
            guided = self._is_guided(call.get("guidance_scale", 0.0))  # type: ignore[attr-defined]
            check_embeds(embeds, unet, call, guided=guided)
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


def call_arguments(pipe: Any) -> Mapping[str, Any]:
    """Return the arguments of a pipeline's call."""
    import inspect

    return inspect.signature(type(pipe).__call__).parameters


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


def spread(sources: Any, folders: Any, names: Any) -> list[tuple[Source, str | None, str | None]]:
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
    if name is None and not Path(source).expanduser().is_file():
        raise InputError(f"`weight_name` says which file of {source} is the IP-Adapter; it is missing.")
    return read(resolve_file(source, name or "", subfolder=folder or None, **hub))


def encoder_folder(source: Source, subfolder: str | None, name: str, hub: Mapping[str, Any]) -> Path | None:
    """Return the local folder of the picture encoder of a repository, None where it has none."""
    if isinstance(source, Mapping) or Path(source).expanduser().is_file():
        return None
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
    wanted = kind.width(adapter.shapes, kind.seen)
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
