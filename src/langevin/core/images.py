"""Pictures between PIL, numpy and tensors: one decoder and one encoder for the whole library."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import torch

from .errors import InputError, NonFiniteError, check_choice

if TYPE_CHECKING:
    from PIL.Image import Image

ImageInput = Union["Image", np.ndarray, torch.Tensor, Sequence["Image"], Sequence[np.ndarray], Sequence[torch.Tensor]]
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def decode(source: Any, *, background: tuple[int, int, int] = (255, 255, 255)) -> Image:
    """Return an upright RGB picture from a path or a PIL image of any mode.

    EXIF orientation is applied, transparency is laid over `background`, 16-bit grey is scaled to 8 bits.

    Raises:
        InputError: when the file is missing or is no picture.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if isinstance(source, (str, os.PathLike)):
        try:
            source = Image.open(source)
            source.load()
        except FileNotFoundError:
            raise InputError(f"{source} does not exist.") from None
        except (UnidentifiedImageError, OSError) as error:
            raise InputError(f"{source} cannot be read as a picture ({error}).") from error
    if not isinstance(source, Image.Image):
        raise InputError(f"A picture was expected, not {type(source).__name__}.")
    picture = ImageOps.exif_transpose(source)
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        if values.max(initial=0) > 255:
            values = values / 257
        picture = Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        base = Image.new("RGBA", picture.size, (*background, 255))
        picture = Image.alpha_composite(base, picture)
    return picture.convert("RGB")


def load_image(image: str | os.PathLike | Image, convert_method: Any = None) -> Image:
    """Return an RGB picture from a path, a URL or a PIL image; `convert_method` maps the result."""
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        import io
        import urllib.request

        with urllib.request.urlopen(image, timeout=60) as response:
            from PIL import Image

            image = Image.open(io.BytesIO(response.read()))
    picture = decode(image)
    return convert_method(picture) if convert_method is not None else picture


def to_tensor(images: ImageInput) -> torch.Tensor:
    """Return pictures as a float tensor (batch, channels, height, width).

    PIL pictures and uint8 arrays become [0, 1]; float arrays (..., height, width, channels) and tensors
    (..., channels, height, width) keep their values.
    """
    if isinstance(images, torch.Tensor):
        return images if images.ndim == 4 else images[None] if images.ndim == 3 else images[None, None]
    if isinstance(images, np.ndarray):
        array = images if images.ndim == 4 else images[None] if images.ndim == 3 else images[None, ..., None]
        tensor = torch.from_numpy(np.ascontiguousarray(array)).movedim(-1, 1)
        return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.float()
    if isinstance(images, (list, tuple)):
        if not images:
            raise InputError("An empty list of pictures was given.")
        tensors = [to_tensor(image) for image in images]
        sizes = {tuple(t.shape[1:]) for t in tensors}
        if len(sizes) > 1:
            raise InputError(f"Pictures of one call must have one size; got {sorted(sizes)} (channels, height, width).")
        return torch.cat(tensors)
    return to_tensor(np.array(decode(images)))


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
    unit = (tensor / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return unit
    array = unit.movedim(1, -1).float().cpu().numpy()
    return array if output_type == "np" else from_array(array)


def from_array(array: np.ndarray) -> list[Image]:
    """Return PIL pictures from a float array (batch, height, width, channels) in [0, 1]."""
    from PIL import Image

    array = array if array.ndim == 4 else array[None]
    array = (array * 255).round().astype(np.uint8)
    return [Image.fromarray(a[..., 0] if a.shape[-1] == 1 else a) for a in array]


def grid(images: Sequence[Image], rows: int, cols: int, resize: int | None = None) -> Image:
    """Return one picture with `images` laid out row by row; `resize` makes every cell a square of that many pixels."""
    from PIL import Image

    if len(images) > rows * cols or not images:
        raise InputError(f"{len(images)} pictures do not fit a grid of {rows} x {cols}.")
    wide, high = images[0].size if resize is None else (resize, resize)
    sheet = Image.new("RGB", (cols * wide, rows * high), "white")
    places = ((column * wide, row * high) for row in range(rows) for column in range(cols))
    for image, place in zip(images, places, strict=False):
        sheet.paste(image if resize is None else image.resize((wide, high)), place)
    return sheet
