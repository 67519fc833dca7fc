"""A picture on its way into a network: resized, cropped, mirrored, in [-1, 1], and what was done to it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.errors import InputError, check_choice
from ...core.images import decode

ORIENTATION = 0x0112
"""The EXIF tag of how a picture is turned; from 5 on it lies on its side."""
FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")


@dataclass(frozen=True)
class Frame:
    """Where a picture was cut, in pixels after resizing.

    Attributes:
        original: height and width of the picture as it was.
        resized: height and width before the crop.
        top, left: of the crop.
        mirrored: whether it was mirrored after the crop.
        target: height and width of the crop.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    top: int
    left: int
    mirrored: bool
    target: tuple[int, int]

    @property
    def corner(self) -> tuple[int, int]:
        """Top and left of the crop as it is seen: in the mirrored picture, where it is mirrored."""
        far = self.resized[1] - self.target[1] - self.left
        return self.top, far if self.mirrored else self.left


@dataclass(frozen=True)
class Framing:
    """How pictures are brought to one size: the shorter side to it, then a crop.

    Attributes:
        height, width: in pixels.
        centre: crop the middle instead of a random place.
        mirror: mirror half of the pictures.
        filter: of resizing, a name in `FILTERS`.
    """

    height: int
    width: int
    centre: bool = False
    mirror: bool = False
    filter: str = "bilinear"

    def __post_init__(self) -> None:
        check_choice("image_interpolation_mode", self.filter, FILTERS)
        if self.height < 1 or self.width < 1:
            raise InputError(f"The resolution is {self.height} x {self.width}; it must be at least 1 x 1.")

    def place(self, size: tuple[int, int], stream: torch.Generator) -> Frame:
        """Return where a picture of (height, width) is cut.

        Three numbers are drawn whatever the options: top, left, mirror.
        """
        scale = max(self.height / size[0], self.width / size[1])
        resized = (max(self.height, round(size[0] * scale)), max(self.width, round(size[1] * scale)))
        chances = torch.rand(3, generator=stream, dtype=torch.float64).tolist()
        room = (resized[0] - self.height, resized[1] - self.width)
        top, left = (
            free // 2 if self.centre else int(chance * (free + 1)) for free, chance in zip(room, chances, strict=False)
        )
        return Frame(size, resized, top, left, self.mirror and chances[2] < 0.5, (self.height, self.width))

    def cut(self, picture: Any, frame: Frame) -> Tensor:
        """Return a PIL picture framed, (3, height, width) in [-1, 1]."""
        from PIL import Image

        height, width = frame.resized
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling[self.filter.upper()])
        picture = picture.crop((frame.left, frame.top, frame.left + self.width, frame.top + self.height))
        values = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div_(127.5).sub_(1)
        return values.flip(-1) if frame.mirrored else values

    def __call__(
        self, pictures: Mapping[str, Any], stream: torch.Generator, size: tuple[int, int] | None = None
    ) -> tuple[dict[str, Tensor], Frame]:
        """Return the pictures of one example, all framed alike, and the frame.

        Args:
            size: height and width of further pictures of the example, which are known already.

        Raises:
            InputError: when they have different sizes.
        """
        sizes = {name: (picture.height, picture.width) for name, picture in pictures.items()}
        sizes |= {} if size is None else {"the others": size}
        if len(set(sizes.values())) > 1:
            raise InputError(f"The pictures of one example have different sizes: {sizes}")
        frame = self.place(next(iter(sizes.values())), stream)
        return {name: self.cut(picture, frame) for name, picture in pictures.items()}, frame


def opened(source: Any, name: str) -> Any:
    """Return a picture of a record as PIL in RGB: a path, what `datasets` keeps of an encoded picture, or PIL.

    Raises:
        InputError: when it cannot be read; names the example.
    """
    try:
        return decode(located(source))
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def content(source: Any) -> str:
    """Return a hash of a picture of a record: of its encoded bytes, or of the pixels of a PIL picture."""
    file = located(source)
    data = file.read_bytes() if isinstance(file, Path) else file.getvalue() if hasattr(file, "getvalue") else None
    if data is None:
        picture = decode(file)
        data = repr(picture.size).encode() + picture.tobytes()
    return blake2b(data, digest_size=16).hexdigest()


def size_of(source: Any) -> tuple[int, int]:
    """Return the height and width of a picture of a record, upright, without decoding it."""
    from PIL import Image

    file = located(source)
    header = file if isinstance(file, Image.Image) else Image.open(file)
    lies = header.getexif().get(ORIENTATION, 1) >= 5
    return (header.width, header.height) if lies else (header.height, header.width)


def located(source: Any) -> Any:
    """Return a picture of a record as what PIL opens: a path or a file; a PIL picture stays."""
    if isinstance(source, Mapping) and {"bytes", "path"} >= set(source):
        source = io.BytesIO(source["bytes"]) if source.get("bytes") else source.get("path")
    return Path(source) if isinstance(source, str) else source
