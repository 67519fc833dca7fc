"""The pictures that `langevin generate` starts from: read, checked against each other, brought to their size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError
from ..core.images import load_image
from ..pipelines.control_images import canny
from ..pipelines.masks import mask_tensor, outpaint
from ..pipelines.regions import Crop
from .request import Request, parse_margins, parse_size

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Sources:
    """The pictures of a call: where to start, what to paint anew (white), what to follow, what to speak of."""

    image: Image | None = None
    mask: Image | None = None
    control: Image | None = None
    prompt: Image | None = None

    def arguments(self, pipe: Any, size: tuple[int, int] | None) -> tuple[dict[str, Any], Crop | None]:
        """Return the arguments of a pipeline's call that hold pictures and sizes, and what to cut its results to.

        A picture to inpaint that is no whole number of latents gains a margin, so that every pixel keeps its place.

        Args:
            size: (width, height) of a picture that starts from none; those given have their own.
        """
        call: dict[str, Any] = {}
        control = getattr(pipe, "_control_name", "control_image")
        pictures = {"image": self.image, "mask_image": self.mask, control: self.control}
        crop = None
        if self.image is not None and self.mask is not None:
            across, down = (-side % pipe.vae_scale_factor for side in self.image.size)
            if across or down:
                crop = Crop(self.image.height, self.image.width)
                larger = {name: outpaint(one, right=across, bottom=down, fill="reflect")[0]
                          for name, one in pictures.items() if one is not None and name != "mask_image"}  # fmt: skip
                kept = self.mask.crop((0, 0, *larger["image"].size))
                pictures = {**larger, "mask_image": kept}
            size = pictures["image"].size  # type: ignore[union-attr]
        if size is not None and (self.image is None or self.mask is not None):
            call |= {"width": size[0], "height": size[1]}
        call |= {} if self.prompt is None else {"ip_adapter_image": self.prompt}
        return call | {name: one for name, one in pictures.items() if one is not None}, crop


def read(request: Request) -> Sources:
    """Return the pictures that a request names.

    Raises:
        InputError: for a file that is missing or no picture, sizes that differ, or a mask without any white.
    """
    size = parse_size(request.size)
    image = load_image(request.image) if request.image else None
    mask = read_mask(request.mask) if request.mask else None
    control = load_image(request.control) if request.control else None
    if image is not None and size is not None:
        if mask is not None:
            same_size("mask", mask, image)
            mask = mask.resize(size, 0)
        image = image.resize(size, 1)
    if image is not None and request.outpaint:
        image, mask = outpaint(image, *parse_margins(request.outpaint))
    if image is not None and mask is not None:
        same_size("mask", mask, image)
    if image is not None and control is not None:
        control = control if size is None else control.resize(size, 1)
        same_size("control picture", control, image)
    if control is not None and request.edges:
        control = canny(control).convert("RGB")
    prompt = load_image(request.image_prompt) if request.image_prompt else None
    return Sources(image, mask, control, prompt)


def read_mask(path: str) -> Image:
    """Return a mask in black and white.

    Raises:
        InputError: when no pixel is white.
    """
    from PIL import Image

    hole = mask_tensor(load_image(path, convert_method=lambda picture: picture))[0, 0] > 0
    if not hole.any():
        raise InputError(f"--mask {path} is black, so nothing would be painted; white is painted anew.")
    return Image.fromarray(hole.numpy()).convert("L")


def same_size(what: str, one: Image, image: Image) -> None:
    """Raise InputError unless two pictures have one size."""
    if one.size != image.size:
        raise InputError(
            f"The {what} is {one.width}x{one.height} and the picture {image.width}x{image.height} pixels; make them "
            "one size."
        )
