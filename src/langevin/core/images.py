"""Pictures between PIL, numpy and tensors: one decoder and one encoder for the whole library."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import torch

from .errors import InputError, NonFiniteError, check_choice

if TYPE_CHECKING:
    from PIL.Image import Image

ImageInput = Union["Image", np.ndarray, torch.Tensor, Sequence["Image"], Sequence[np.ndarray], Sequence[torch.Tensor]]
Colour = tuple[int, int, int] | str | None
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
WHITE = (255, 255, 255)
LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey: ITU-R BT.601, the ones of PIL's mode L."""
DOWNLOAD_LIMIT = 256 * 2**20
"""Bytes that `load_image` takes from a URL."""


def upright(source: Any) -> Image:
    """Return a picture in its own mode, turned as its EXIF orientation says.

    Args:
        source: a path, an open binary file, or a PIL image.

    Raises:
        InputError: when the file is missing, is no picture, or is too large to be decoded safely.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if isinstance(source, (str, os.PathLike)) or hasattr(source, "read"):
        name = source if isinstance(source, (str, os.PathLike)) else "The file"
        try:
            source = Image.open(source)
            source.load()
        except FileNotFoundError:
            raise InputError(f"{name} does not exist.") from None
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"{name} cannot be read as a picture ({error}).") from error
    if not isinstance(source, Image.Image):
        raise InputError(f"A picture was expected, not {type(source).__name__}.")
    if 0 in source.size:
        raise InputError(f"The picture has no pixels; its size is {source.width} x {source.height}.")
    return ImageOps.exif_transpose(source)


def decode(source: Any, *, background: Colour = WHITE) -> Image:
    """Return an upright RGB picture from a path or a PIL image of any mode.

    EXIF orientation is applied; 16-bit and float pictures are scaled to 8 bits. Modes "I" and "F" say nothing about
    their range: values up to 255 are taken for 8 bits, larger ones for 16, and floats up to 1 for the unit range.

    Args:
        background: colour, as (red, green, blue) in 0..255 or by name, that transparent pixels are laid over.
            None refuses pictures with transparent pixels.

    Raises:
        InputError: when the file is missing or is no picture, or for transparency with `background=None`.
    """
    from PIL import Image, ImageColor

    picture = upright(source)
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = Image.fromarray(_eight_bits(np.asarray(picture, dtype=np.float64), picture.mode))
    if picture.mode == "La":
        picture = picture.convert("LA")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        if background is None:
            if np.asarray(picture.getchannel("A")).min() < 255:
                raise InputError("The picture has transparent pixels; name a `background` colour to lay it over.")
            return picture.convert("RGB")
        colour = ImageColor.getrgb(background) if isinstance(background, str) else background
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (*colour[:3], 255)), picture)
    return picture.convert("RGB")


def _eight_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """Return the values of a picture in mode I, I;16 or F in 0..255."""
    check_finite(torch.from_numpy(values))
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise InputError(f"A picture in mode {mode} holds values from {low:g} to {high:g}; scale it to 0..255 first.")
    if mode.startswith("I;16") or high > 255:
        values = values / 257
    elif mode == "F" and high <= 1:
        values = values * 255
    return values.round().astype(np.uint8)


def load_image(image: str | os.PathLike | Image, convert_method: Callable[[Image], Image] | None = None) -> Image:
    """Return a picture from a path, an http(s) URL or a PIL image, upright.

    Args:
        convert_method: receives the upright picture in its own mode, and its result is returned. None converts to RGB
            (transparency over white).

    Raises:
        InputError: when nothing can be read there.
    """
    picture = upright(download(image) if isinstance(image, str) and "://" in image else image)
    return decode(picture) if convert_method is None else convert_method(picture)


def download(url: str) -> Any:
    """Return the bytes behind an http(s) URL as a file; InputError when it cannot be reached or is too large."""
    import io
    import urllib.request

    if not url.startswith(("http://", "https://")):
        raise InputError(f"{url} cannot be loaded: a path, an http:// or an https:// address was expected.")
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            data = response.read(DOWNLOAD_LIMIT + 1)
    except OSError as error:
        raise InputError(f"{url} cannot be loaded ({error}).") from error
    if len(data) > DOWNLOAD_LIMIT:
        raise InputError(f"{url} is larger than {DOWNLOAD_LIMIT // 2**20} MiB.")
    return io.BytesIO(data)


def sort_out(images: Any, *, what: str = "picture") -> tuple[str, list[Any]]:
    """Return "pil", "np" or "pt" and the list of pictures, which are of that one kind.

    Raises:
        InputError: for an empty list, for a list of several kinds, and for anything else.
    """
    from PIL import Image

    many = list(images) if isinstance(images, (list, tuple)) else [images]
    if not many:
        raise InputError(f"An empty list of {what}s was given.")
    types = {"pil": Image.Image, "np": np.ndarray, "pt": torch.Tensor}
    kinds = {next((kind for kind, cls in types.items() if isinstance(one, cls)), type(one).__name__) for one in many}
    if kinds <= set(types) and len(kinds) == 1:
        return kinds.pop(), many
    if kinds <= set(types):
        raise InputError(f"A list of {what}s must hold one kind; got {sorted(kinds)}. Convert them to one.")
    hint = " Open files with load_image." if "str" in kinds or any(isinstance(one, os.PathLike) for one in many) else ""
    raise InputError(f"A {what} is a PIL image, an array or a tensor, not {sorted(kinds - set(types))[0]}.{hint}")


def to_tensor(images: ImageInput, *, background: Colour = WHITE) -> torch.Tensor:
    """Return pictures as a float tensor (batch, channels, height, width).

    PIL pictures and integer arrays become [0, 1]: 8 bits / 255, 16 bits / 65535. Float arrays (height, width),
    (height, width, channels) or (batch, height, width, channels), and float tensors (height, width), (channels, height,
    width) or (batch, channels, height, width), keep their values. Arrays of two or four channels hold alpha and are
    laid over `background`, as in `decode`; tensors of four channels stay, they may be latents.

    Raises:
        InputError: for an empty list, several kinds or sizes in one list, or axes in another order.
        NonFiniteError: for NaN and infinity.
    """
    kind, many = sort_out(images)
    if isinstance(images, (list, tuple)):
        return stack([to_tensor(one, background=background) for one in many])
    if kind == "pil":
        picture: Any = images
        plain = picture.mode in ("L", "RGB") and not picture.has_transparency_data
        array = np.array(upright(picture) if plain else decode(picture, background=background))
        return to_tensor(array)
    pixels = torch.from_numpy(np.array(images)) if kind == "np" else torch.as_tensor(images)
    if pixels.ndim not in (2, 3, 4) or 0 in pixels.shape:
        raise InputError(f"A picture has 2, 3 or 4 axes and some pixels; got the shape {tuple(pixels.shape)}.")
    if pixels.ndim == 2:
        return unit(pixels)[None, None]
    pixels = unit(pixels if pixels.ndim == 4 else pixels[None])
    if kind == "pt":
        return pixels
    if pixels.shape[-1] > 4:
        raise InputError(f"An array has its channels (1 to 4) as last axis; got {tuple(pixels.shape)}, move them.")
    return without_alpha(pixels.movedim(-1, 1), background)


def stack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return tensors (batch, channels, height, width) of one size as one.

    Raises:
        InputError: when the sizes differ.
    """
    sizes = {tuple(t.shape[1:]) for t in tensors}
    if len(sizes) > 1:
        raise InputError(f"Pictures of one call must have one size; got {sorted(sizes)} (channels, height, width).")
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def unit(values: torch.Tensor) -> torch.Tensor:
    """Return integers scaled to [0, 1] in float32, and floats as they are (double becomes float32).

    Raises:
        InputError: for integers of unknown range.
        NonFiniteError: for NaN and infinity.
    """
    if values.is_floating_point():
        check_finite(values)
        return values.float() if values.dtype == torch.float64 else values
    scales = {torch.bool: 1, torch.uint8: 255, torch.uint16: 65535}
    if values.dtype not in scales:
        raise InputError(f"Pictures of {values.dtype} have no known range; use uint8, uint16 or float.")
    return values.float() / scales[values.dtype]


def check_finite(values: torch.Tensor, what: str = "The picture") -> None:
    """Raise NonFiniteError when a tensor holds NaN or infinity."""
    if not torch.isfinite(values).all():
        raise NonFiniteError(f"{what} holds NaN or infinity.")


def check_axes(pixels: torch.Tensor) -> None:
    """Raise InputError for a picture tensor (batch, channels, height, width) whose channels seem to come last."""
    if pixels.shape[-1] in (1, 3, 4) and pixels.shape[1] > 4:
        raise InputError(f"A tensor has channels before height and width; got {tuple(pixels.shape)}, permute it.")


def without_alpha(pixels: torch.Tensor, background: Colour = WHITE) -> torch.Tensor:
    """Return pixels (batch, 1 to 4 channels, height, width); alpha, the second or fourth, is laid over a colour.

    Raises:
        InputError: for transparent pixels with `background=None`, or for colours outside [0, 1].
    """
    if pixels.shape[1] in (1, 3):
        return pixels
    from PIL import ImageColor

    colours, alpha = pixels[:, :-1], pixels[:, -1:]
    if pixels.min() < 0 or pixels.max() > 1:
        raise InputError("Pictures with alpha must lie in [0, 1].")
    if background is None:
        if alpha.min() < 1:
            raise InputError("The picture has transparent pixels; name a `background` colour to lay it over.")
        return colours
    base = torch.tensor(ImageColor.getrgb(background) if isinstance(background, str) else background)[:3] / 255
    base = base[None, :, None, None].to(pixels)
    return colours * alpha + (base if colours.shape[1] == 3 else luminance(base)) * (1 - alpha)


def luminance(pixels: torch.Tensor) -> torch.Tensor:
    """Return the grey, (batch, 1, height, width), of pixels with one or three channels.

    Raises:
        InputError: for another number of channels.
    """
    check_axes(pixels)
    if pixels.shape[1] == 1:
        return pixels
    if pixels.shape[1] != 3:
        raise InputError(f"Grey is made of one or three channels, not {pixels.shape[1]}.")
    weights = torch.tensor(LUMINANCE, dtype=pixels.dtype, device=pixels.device)
    return (pixels * weights[:, None, None]).sum(1, keepdim=True)


def to_grey(images: ImageInput) -> torch.Tensor:
    """Return the grey of pictures or masks, (batch, 1, height, width); transparency is laid over black.

    Arrays are (height, width), (batch, height, width), or have one, three or four channels as last axis; tensors are
    (height, width), (batch, height, width), or have one or three channels as second or last axis. A tensor (3, height,
    width) therefore is three masks. Values are scaled as in `to_tensor`.
    """
    kind, many = sort_out(images)
    if len(many) > 1:
        return stack([to_grey(one) for one in many])
    (one,) = many
    if kind == "pil":
        return to_tensor(decode(one, background="black").convert("L"))
    pixels = torch.from_numpy(np.array(one)) if kind == "np" else one
    shape, counts, last = tuple(pixels.shape), (1, 3, 4) if kind == "np" else (1, 3), False
    if len(shape) == 2:
        pixels = pixels[None, None]
    elif len(shape) == 3:
        last = shape[-1] in counts if kind == "np" else shape[-1] == 1 != shape[0]
        pixels = pixels[None] if last else pixels[:, None]
    elif len(shape) == 4:
        last = shape[1] not in (1, 3) or (kind == "np" and shape[-1] in counts)
    pixels = pixels.movedim(-1, 1) if last else pixels
    if pixels.ndim != 4 or pixels.shape[1] not in counts or 0 in shape:
        raise InputError(f"Axes {shape} are not those of a mask: (height, width), with batch and one channel at most.")
    return luminance(without_alpha(unit(pixels), "black"))


def to_images(tensor: torch.Tensor, output_type: str = "pil") -> Any:
    """Return decoded pictures in [-1, 1], (batch, channels, height, width), as the documented output types.

    "pil": list of PIL pictures; "np": float array (batch, height, width, channels) in [0, 1]; "pt": tensor in [0, 1];
    "latent": the tensor itself.

    Raises:
        NonFiniteError: instead of a black picture.
    """
    check_choice("output_type", output_type, OUTPUT_TYPES)
    if output_type == "latent":
        return tensor
    if not torch.isfinite(tensor).all():
        raise NonFiniteError("The decoded picture holds NaN or infinity; decode in float32 or bfloat16.", module="vae")
    pixels = (tensor / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return pixels
    array = pixels.movedim(1, -1).float().cpu().numpy()
    return array if output_type == "np" else from_array(array)


def from_array(array: np.ndarray) -> list[Image]:
    """Return PIL pictures from a float array (batch, height, width, channels) in [0, 1]."""
    from PIL import Image

    array = array if array.ndim == 4 else array[None]
    array = (array * 255).round().astype(np.uint8)
    return [Image.fromarray(a[..., 0] if a.shape[-1] == 1 else a) for a in array]


def grid(images: Sequence[Image], rows: int, cols: int, resize: int | None = None) -> Image:
    """Return one picture with `images` laid out row by row.

    Every cell has the size of the first picture, or is a square of `resize` pixels, to which all are brought. Without
    `resize` larger pictures are cut at their cell by the next one.

    Raises:
        InputError: when there are no pictures, or more than cells.
    """
    from PIL import Image

    if len(images) > rows * cols or not images:
        raise InputError(f"{len(images)} pictures do not fit a grid of {rows} x {cols}.")
    wide, high = images[0].size if resize is None else (resize, resize)
    sheet = Image.new("RGB", (cols * wide, rows * high), "white")
    places = ((column * wide, row * high) for row in range(rows) for column in range(cols))
    for image, place in zip(images, places, strict=False):
        picture = decode(image)
        sheet.paste(picture if resize is None else picture.resize((wide, high)), place)
    return sheet
