"""Pictures into and out of a pipeline: the documented image processor, thin over `core.images`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from ..core.config import ConfigMixin, register_to_config
from ..core.errors import InputError, check_choice
from ..core.images import ImageInput, check_axes, decode, from_array, sort_out, to_grey, to_images, to_tensor, upright
from ..core.logging import get_logger
from .regions import Box, crop_box

if TYPE_CHECKING:
    from PIL.Image import Image

logger = get_logger(__name__)
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming", "linear")
ALIASES = {"linear": "bilinear"}
RESIZE_MODES = ("default", "fill", "crop")
SLACK = 1e-3
"""How far a float picture may leave [-1, 1] by rounding."""


class VaeImageProcessor(ConfigMixin):
    """Resize, convert and scale pictures for an autoencoder, and the way back.

    Args:
        do_resize: bring pictures to a multiple of `vae_scale_factor`.
        vae_scale_factor: pixels per latent and side.
        vae_latent_channels: tensors with this many channels are latents and pass unchanged.
        resample: filter for PIL pictures, one of `FILTERS`.
        reducing_gap: Pillow's speed-up for strong reductions.
        do_normalize: scale [0, 1] to [-1, 1].
        do_binarize: make every value 0 or 1, for masks.
        do_convert_rgb, do_convert_grayscale: convert PIL pictures; one of the two at most.
    """

    config_name = "preprocessor_config.json"

    @register_to_config
    def __init__(
        self,
        do_resize: bool = True,
        vae_scale_factor: int = 8,
        vae_latent_channels: int = 4,
        resample: str = "lanczos",
        reducing_gap: int | None = None,
        do_normalize: bool = True,
        do_binarize: bool = False,
        do_convert_rgb: bool = False,
        do_convert_grayscale: bool = False,
    ) -> None:
        check_choice("resample", resample, FILTERS)
        if do_convert_rgb and do_convert_grayscale:
            raise InputError("`do_convert_rgb` and `do_convert_grayscale` exclude each other.")

    def preprocess(
        self,
        image: ImageInput,
        height: int | None = None,
        width: int | None = None,
        resize_mode: str = "default",
        crops_coords: Box | None = None,
    ) -> torch.Tensor:
        """Return pictures as a tensor (batch, channels, height, width) in [-1, 1] (or [0, 1] without `do_normalize`).

        Tensors with `vae_latent_channels` channels are latents and are returned as they are; a PIL picture or an array
        with alpha is laid over white. EXIF orientation is applied.

        Args:
            height, width: of the result in pixels; None takes the first picture's own, rounded down to a multiple of
                `vae_scale_factor`.
            resize_mode: "default" stretches, "fill" keeps the aspect ratio and fills the margin from the picture's
                border, "crop" keeps it and cuts; the latter two for PIL pictures only.
            crops_coords: (left, top, right, bottom) to cut out before resizing.

        Raises:
            InputError: for an empty or mixed list, values outside [-1, 1], or a picture smaller than a latent.
            NonFiniteError: for NaN and infinity.
        """
        kind, many = sort_out(image)
        check_mode(resize_mode, kind == "pil")
        if is_latents(image, self.config.vae_latent_channels):
            return to_tensor(image)
        if kind == "pil":
            pixels = self._from_pictures(many, height, width, resize_mode, crops_coords)
        else:
            pixels = self._from_values(image, height, width, crops_coords)
        if pixels.min() < -1 - SLACK or pixels.max() > 1 + SLACK:
            raise InputError(
                f"The pictures hold values from {pixels.min():g} to {pixels.max():g}; floats must lie in [0, 1] or "
                "[-1, 1]. Divide by 255, clip, or give uint8."
            )
        if self.config.do_normalize:
            if pixels.min() < 0:
                logger.warning("The pictures hold values below 0; they are taken for [-1, 1] and not scaled again.")
            else:
                pixels = self.normalize(pixels)
        return self.binarize(pixels) if self.config.do_binarize else pixels

    def _from_pictures(
        self, many: Sequence[Image], height: int | None, width: int | None, resize_mode: str, box: Box | None
    ) -> torch.Tensor:
        """Return PIL pictures upright, converted, cut and resized, in [0, 1]."""
        many = [self._converted(one) for one in many]
        many = many if box is None else [one.crop(box) for one in many]
        if self.config.do_resize:
            size = self._size(many[0], height, width)
            many = [self.resize(one, *size, resize_mode) for one in many]
        if self.config.do_convert_grayscale:
            many = [self.convert_to_grayscale(one) for one in many]
        return self.pil_to_tensor(many)

    def _converted(self, image: Image) -> Image:
        """Return a picture upright, in RGB or, where it is grey and may stay so, in mode L."""
        image = upright(image)
        plain = image.mode in ("RGB", "L") and not image.has_transparency_data
        return decode(image) if self.config.do_convert_rgb or not plain else image

    def _from_values(self, image: ImageInput, height: int | None, width: int | None, box: Box | None) -> torch.Tensor:
        """Return arrays or tensors converted, cut and resized."""
        pixels = to_grey(image) if self.config.do_convert_grayscale else to_tensor(image)
        check_axes(pixels)
        if self.config.do_convert_rgb and pixels.shape[1] == 1:
            pixels = pixels.expand(-1, 3, -1, -1)
        if box is not None:
            left, top, right, bottom = box
            pixels = pixels[..., top:bottom, left:right]
        return self.resize(pixels, *self._size(pixels, height, width)) if self.config.do_resize else pixels

    def _size(self, image: Any, height: int | None, width: int | None) -> tuple[int, int]:
        """Return the height and width to resize to, which must not be zero."""
        size = self.get_default_height_width(image, height, width)
        if 0 in size:
            factor = self.config.vae_scale_factor
            raise InputError(f"The picture would become {size} pixels; give height and width of at least {factor}.")
        return size

    def postprocess(
        self, image: torch.Tensor, output_type: str = "pil", do_denormalize: Sequence[bool] | None = None
    ) -> Any:
        """Return decoded pictures in [-1, 1] as "pil", "np", "pt" or "latent".

        Args:
            do_denormalize: per picture, whether it is in [-1, 1] (True) or already in [0, 1].
        """
        if not isinstance(image, torch.Tensor):
            raise InputError(f"postprocess takes a tensor, not {type(image).__name__}.")
        flags = [self.config.do_normalize] * len(image) if do_denormalize is None else list(do_denormalize)
        if output_type != "latent" and not all(flags):
            image = torch.stack([row if flag else row * 2 - 1 for row, flag in zip(image, flags, strict=True)])
        return to_images(image, output_type)

    def get_default_height_width(
        self, image: Any, height: int | None = None, width: int | None = None
    ) -> tuple[int, int]:
        """Return height and width, the picture's own where None, rounded down to a multiple of `vae_scale_factor`.

        Args:
            image: PIL picture, array (batch, height, width) with or without channels, tensor (..., height, width).
        """
        if _is_pil(image):
            own_width, own_height = image.size
        else:
            own_height, own_width = image.shape[-2:] if isinstance(image, torch.Tensor) else image.shape[1:3]
        factor = self.config.vae_scale_factor
        return (height or own_height) // factor * factor, (width or own_width) // factor * factor

    def resize(self, image: Any, height: int, width: int, resize_mode: str = "default") -> Any:
        """Return a PIL picture, array (batch, height, width, channels) or tensor at another size.

        PIL pictures are resampled with the configured filter, arrays and tensors take the nearest pixel.
        """
        check_mode(resize_mode, _is_pil(image))
        if resize_mode != "default":
            return self._centred(image, height, width, cover=resize_mode == "crop")
        if _is_pil(image):
            return self._resample(image, height, width, reducing_gap=self.config.reducing_gap)
        if isinstance(image, np.ndarray):
            return self.pt_to_numpy(self.resize(self.numpy_to_pt(image), height, width))
        return functional.interpolate(image, size=(height, width))

    def _resample(self, image: Image, height: int, width: int, **options: Any) -> Image:
        from PIL.Image import Resampling

        resample = Resampling[ALIASES.get(self.config.resample, self.config.resample).upper()]
        return image.resize((width, height), resample=resample, **options)

    def _centred(self, image: Image, height: int, width: int, *, cover: bool) -> Image:
        """Return the picture resized in its aspect ratio and centred on an RGB canvas.

        With `cover` it fills the canvas and what sticks out is cut. Otherwise all of it is seen, and the margin on two
        sides continues its border.
        """
        from PIL import Image as pil

        by_width = (width / height > image.width / image.height) == cover
        wide = width if by_width else max(image.width * height // image.height, 1)
        high = max(image.height * width // image.width, 1) if by_width else height
        image = self._resample(image, high, wide)
        canvas = pil.new("RGB", (width, height))
        left, top = width // 2 - wide // 2, height // 2 - high // 2
        canvas.paste(image, (left, top))
        right, below = width - left - wide, height - top - high
        strips = [
            ((left, height), (0, 0, 0, high), (0, 0)),
            ((right, height), (wide, 0, wide, high), (width - right, 0)),
            ((width, top), (0, 0, wide, 0), (0, 0)),
            ((width, below), (0, high, wide, high), (0, height - below)),
        ]
        for size, line, place in strips:
            if min(size) > 0:
                canvas.paste(image.resize(size, box=line), place)
        return canvas

    @staticmethod
    def get_crop_region(mask_image: Image, width: int, height: int, pad: int = 0) -> Box:
        """Return the box (left, top, right, bottom) around a mask in the ratio width : height.

        Everything that is not black counts; transparent pixels are black. An empty mask gives the whole picture.
        """
        return crop_box(np.asarray(decode(mask_image, background="black").convert("L")), width, height, pad)

    def apply_overlay(self, mask: Image, init_image: Image, image: Image, crop_coords: Box | None = None) -> Image:
        """Return `init_image` with `image` in the white part of the mask; grey mixes the two.

        Args:
            crop_coords: (left, top, right, bottom), where on `init_image` the whole of `image` belongs. White parts of
                the mask outside of it become black.

        Raises:
            InputError: when mask and `init_image` differ in size, or `image` from both without `crop_coords`.
        """
        from PIL import Image as pil
        from PIL import ImageChops

        if mask.size != init_image.size or (crop_coords is None and image.size != init_image.size):
            raise InputError(
                f"Mask {mask.size}, original {init_image.size} and picture {image.size} must have one size."
            )
        if crop_coords is not None:
            left, top, right, bottom = crop_coords
            part = self.resize(image, bottom - top, right - left, "crop")
            image = pil.new("RGB", init_image.size)
            image.paste(part, (left, top))
        kept = init_image.convert("RGB")
        kept.putalpha(ImageChops.invert(mask.convert("L")))
        kept = kept.convert("RGBa").convert("RGBA")  # rounds as blending with premultiplied alpha does
        return pil.alpha_composite(image.convert("RGBA"), kept).convert("RGB")

    @staticmethod
    def binarize(image: Any) -> Any:
        """Return 1 where an array or tensor is 0.5 or more, else 0, in its own type."""
        return (image >= 0.5).to(image.dtype) if isinstance(image, torch.Tensor) else (image >= 0.5).astype(image.dtype)

    @staticmethod
    def convert_to_rgb(image: Image) -> Image:
        """Return the picture upright in RGB; transparency is laid over white."""
        return decode(image)

    @staticmethod
    def convert_to_grayscale(image: Image) -> Image:
        """Return the picture upright in grey."""
        return image if image.mode == "L" else decode(image).convert("L")

    @staticmethod
    def blur(image: Image, blur_factor: int = 4) -> Image:
        """Return the picture blurred with a Gaussian of `blur_factor` pixels."""
        from PIL import ImageFilter

        return image.filter(ImageFilter.GaussianBlur(blur_factor))

    @staticmethod
    def pil_to_tensor(images: Sequence[Image]) -> torch.Tensor:
        """Return PIL pictures of one size and mode as a tensor (batch, channels, height, width) in [0, 1]."""
        arrays = [np.asarray(image, dtype=np.float32) / 255 for image in images]
        return to_tensor([array if array.ndim == 3 else array[..., None] for array in arrays])

    @classmethod
    def pil_to_numpy(cls, images: Image | Sequence[Image]) -> np.ndarray:
        """Return PIL pictures as an array (batch, height, width, channels) in [0, 1]."""
        many: list[Any] = list(images) if isinstance(images, (list, tuple)) else [images]
        return cls.pt_to_numpy(cls.pil_to_tensor(many))

    @staticmethod
    def numpy_to_pil(images: np.ndarray) -> list[Image]:
        """Return an array (batch, height, width, channels) in [0, 1] as PIL pictures."""
        return from_array(images)

    @staticmethod
    def numpy_to_pt(images: np.ndarray) -> torch.Tensor:
        """Return an array (batch, height, width, channels) as a tensor (batch, channels, height, width)."""
        return torch.from_numpy(np.ascontiguousarray(images if images.ndim == 4 else images[..., None])).movedim(-1, 1)

    @staticmethod
    def pt_to_numpy(images: torch.Tensor) -> np.ndarray:
        """Return a tensor (batch, channels, height, width) as an array (batch, height, width, channels)."""
        return images.movedim(1, -1).float().cpu().numpy()

    @staticmethod
    def normalize(images: Any) -> Any:
        """Scale [0, 1] to [-1, 1]."""
        return 2.0 * images - 1.0

    @staticmethod
    def denormalize(images: Any) -> Any:
        """Scale [-1, 1] to [0, 1] and clip."""
        return (images / 2 + 0.5).clip(0, 1)


class IPAdapterMaskProcessor(VaeImageProcessor):
    """Masks that say where a picture prompt counts: grey, black and white, brought to the size of the result.

    The options are those of `VaeImageProcessor`.
    """

    @register_to_config
    def __init__(
        self,
        do_resize: bool = True,
        vae_scale_factor: int = 8,
        resample: str = "lanczos",
        do_normalize: bool = False,
        do_binarize: bool = True,
        do_convert_grayscale: bool = True,
    ) -> None:
        super().__init__(
            do_resize=do_resize,
            vae_scale_factor=vae_scale_factor,
            resample=resample,
            do_normalize=do_normalize,
            do_binarize=do_binarize,
            do_convert_grayscale=do_convert_grayscale,
        )

    @staticmethod
    def downsample(mask: torch.Tensor, batch_size: int, num_queries: int, value_embed_dim: int) -> torch.Tensor:
        """Return a mask (1, height, width) at the resolution of an attention, (batch, num_queries, value_embed_dim)."""
        from ..nn.ip_processors import downsample_mask

        return downsample_mask(mask, num_queries)[..., None].expand(batch_size, -1, value_embed_dim)


def _is_pil(image: Any) -> bool:
    return hasattr(image, "getbands") and hasattr(image, "resize")


def is_latents(image: Any, channels: int) -> bool:
    """Tell whether a caller's picture is latents: tensors with the latents' number of channels, as documented."""
    many = image if isinstance(image, (list, tuple)) else [image]
    return all(isinstance(one, torch.Tensor) and one.ndim > 2 and one.shape[-3] == channels for one in many)


def check_mode(resize_mode: str, pil: bool) -> None:
    """Raise InputError for a way to resize that is unknown, or that pictures other than PIL's do not know."""
    check_choice("resize_mode", resize_mode, RESIZE_MODES)
    if not pil and resize_mode != "default":
        raise InputError(f"resize_mode={resize_mode!r} is for PIL pictures; arrays and tensors know 'default'.")
