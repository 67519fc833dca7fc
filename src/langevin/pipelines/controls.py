"""What the pipelines with a control share: arguments given once or per network, pictures per network, their size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import lcm
from typing import Any

from torch import Tensor

from ..core.errors import ConfigError, InputError
from ..core.images import decode, sort_out, to_tensor, upright
from ..core.logging import get_logger
from ..families.common import option
from ..families.latents import LatentSpace, scale_factor
from ..models.several import one_each
from ..nn.compiled import like
from .control_images import control_tensor
from .image_processor import VaeImageProcessor, is_latents
from .inpainting import crop_of
from .inputs import Call
from .regions import pad_to_multiple

logger = get_logger(__name__)
Numbers = float | Sequence[float]
"""One number, or one per network."""


def several(networks: Any, together: type) -> Any:
    """Return a list of networks as the one network `together`, anything else as it is."""
    return together(networks) if isinstance(networks, (list, tuple)) else networks


def networks_of(network: Any) -> list[Any]:
    """Return the parts of several networks that act as one, compiled if that is compiled, or the only network."""
    parts = getattr(network, "parts", None)
    return [network] if parts is None else [like(network, part) for part in parts]


def per_network(name: str, value: Any, networks: Sequence[Any]) -> list[float]:
    """Return an argument, one number or one per network, as one per network.

    Raises:
        InputError: for a list of another length.
    """
    return [float(one) for one in one_each(name, value, networks, numbers=True)]


def per_network_pictures(
    name: str, value: Any, networks: Sequence[Any], prompts: int, *, by_prompt: bool = False
) -> list[Any]:
    """Return the control pictures of each network: one, or one per prompt.

    Several networks take a list with one entry each.

    Args:
        by_prompt: several networks also take a list with one list per prompt, which has one picture per network. Where
            lists fit both ways, this one counts.

    Raises:
        InputError: when there are none, or their number does not fit.
    """
    if value is None:
        raise InputError(f"No `{name}` was given; pass the picture that controls the result.")
    if len(networks) == 1:
        return checked([value])
    kind = f"{len(networks)} networks ({type(networks[0]).__name__})"
    if not isinstance(value, (list, tuple)):
        raise InputError(f"`{name}` is one {type(value).__name__} for {kind}; give a list with one picture for each.")
    lengths = [len(row) if isinstance(row, (list, tuple)) else None for row in value]
    if by_prompt and lengths == [len(networks)] * prompts:
        return checked([list(column) for column in zip(*value, strict=True)])
    if len(value) != len(networks):
        also = ", or one list per prompt with one for each" if by_prompt else ""
        raise InputError(f"`{name}` has {len(value)} entries for {kind}; give one for each, in their order{also}.")
    return checked(list(value))


def checked(pictures: list[Any]) -> list[Any]:
    """Return the pictures of each network; InputError where they are none, or of several kinds."""
    for picture in pictures:
        sort_out(picture, what="control picture")
    return pictures


def check_fits(network: Any, unet: Any, names: Sequence[str]) -> None:
    """Raise ConfigError when a network was made for another UNet than this one, by the configuration values `names`."""
    for name in names:
        theirs, ours = (everywhere(option(module, name), unet) for module in (network, unet))
        if None not in (theirs, ours) and theirs != ours:
            raise ConfigError(
                f"This {type(network).__name__} was made for a UNet with {name}={theirs}, and the pipeline's has "
                f"{name}={ours}; load one that was trained for the same family of models."
            )


def everywhere(value: Any, unet: Any) -> Any:
    """Return a configuration value per block as a list, one number standing for every block."""
    if isinstance(value, int):
        return [value] * len(option(unet, "block_out_channels", ()))
    return list(value) if isinstance(value, (list, tuple)) else value


def sized(call: Call, picture: Any, *, multiple: int = 1) -> Call:
    """Return the call with a height and a width: where it has none, the picture's own, down to whole latents.

    Args:
        picture: pictures of any kind; the first one counts. The size of latents is left open.
        multiple: pixels that the sides are multiples of, beside those of a latent.
    """
    given, pipe = call.given, call.pipe
    if None not in (given.get("height"), given.get("width")) or is_latents(picture, pipe._channels()):
        return call
    kind, many = sort_out(picture, what="control picture")
    own = upright(many[0]).size[::-1] if kind == "pil" else tuple(to_tensor(many[0]).shape[-2:])
    factor = lcm(scale_factor(pipe.vae), multiple)
    found = {}
    for name, side in zip(("height", "width"), own, strict=True):
        if given.get(name) is None:
            found[name] = max(side - side % factor, factor)
            if found[name] != side:
                logger.warning("The %s of the picture is %d; the result's is %d, which fits.", name, side, found[name])
    return replace(call, given={**given, **found})


def control_pixels(call: Call, picture: Any, space: LatentSpace, *, channels: int) -> Tensor:
    """Return a network's control pictures (pictures, channels, height, width) in [0, 1], at the place of the result.

    They are cut and gain the margin that the picture being changed is cut by and gains.

    Args:
        channels: of the network's condition.
    """
    height, width = space.visible or (space.height, space.width)
    if call.get("padding_mask_crop") is not None:
        picture = cut(call, picture, space)
    pixels = control_tensor(picture, height, width, call.images, channels=channels, per_prompt=call.per_prompt)
    return pad_to_multiple(pixels, scale_factor(space.vae))[0]


def cut(call: Call, picture: Any, space: LatentSpace) -> list[Any]:
    """Return the part of control pictures that `padding_mask_crop` asks to work on, at the size of the run.

    Raises:
        InputError: unless they are PIL pictures of the size of the picture being changed.
    """
    box = crop_of(call, (space.height, space.width))
    kind, many = sort_out(picture, what="control picture")
    many = [decode(one, background="black") for one in many] if kind == "pil" else many
    if kind != "pil" or any(one.size != upright(call["image"]).size for one in many):
        raise InputError("With `padding_mask_crop`, control pictures are PIL pictures of the size of `image`.")
    processor = VaeImageProcessor(vae_scale_factor=1)
    return [processor.resize(one.crop(box), space.height, space.width, "fill") for one in many]
