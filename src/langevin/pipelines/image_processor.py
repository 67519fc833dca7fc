"""Pictures into and out of a pipeline: the documented image processor, thin over `core.images`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from ..core.config import ConfigMixin, register_to_config
from ..core.errors import InputError, check_choice
from ..core.images import ImageInput, decode, from_array, to_images, to_tensor
from ..core.logging import get_logger

if TYPE_CHECKING:
    from PIL.Image import Image

logger = get_logger(__name__)
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")


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
        self, image: ImageInput, height: int | None = None, width: int | None = None, resize_mode: str = "default"
    ) -> torch.Tensor:
        """Return pictures as a tensor (batch, channels, height, width) in [-1, 1] (or [0, 1] without `do_normalize`).

        Tensors with `vae_latent_channels` channels are latents and are returned as they are.

        Args:
            height, width: of the result in pixels; None takes the picture's own, rounded down to a multiple of
                `vae_scale_factor`.
        """
        check_choice("resize_mode", resize_mode, ["default"])
        many: list[Any] = list(image) if isinstance(image, (list, tuple)) else [image]
        if not many:
            raise InputError("An empty list of pictures was given.")
        if all(_is_pil(one) for one in many):
            many = [self._picture(one, height, width) for one in many]
            pixels = self.pil_to_tensor(many)
        else:
            pixels = to_tensor(image)
            if isinstance(many[0], torch.Tensor) and pixels.shape[1] == self.config.vae_latent_channels:
                return pixels
            if self.config.do_resize:
                pixels = self.resize(pixels, *self.get_default_height_width(pixels, height, width))
        if self.config.do_normalize:
            if pixels.min() < 0:
                logger.warning("The pictures hold values below 0; they are taken for [-1, 1] and not scaled again.")
            else:
                pixels = self.normalize(pixels)
        return (pixels >= 0.5).to(pixels.dtype) if self.config.do_binarize else pixels

    def _picture(self, image: Image, height: int | None, width: int | None) -> Image:
        """Return one PIL picture upright, converted and resized."""
        if self.config.do_convert_rgb or image.mode not in ("RGB", "L"):
            image = decode(image)
        if self.config.do_resize:
            image = self.resize(image, *self.get_default_height_width(image, height, width))
        return self.convert_to_grayscale(image) if self.config.do_convert_grayscale else image

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
        """Return height and width, the picture's own where None, rounded down to a multiple of `vae_scale_factor`."""
        if _is_pil(image):
            own_width, own_height = image.size
        else:
            own_height, own_width = image.shape[-2:] if isinstance(image, torch.Tensor) else image.shape[-3:-1]
        factor = self.config.vae_scale_factor
        return (height or own_height) // factor * factor, (width or own_width) // factor * factor

    def resize(self, image: Any, height: int, width: int) -> Any:
        """Return a PIL picture, array (batch, height, width, channels) or tensor at another size."""
        if _is_pil(image):
            from PIL.Image import Resampling

            resample = Resampling[self.config.resample.upper()]
            return image.resize((width, height), resample=resample, reducing_gap=self.config.reducing_gap)
        if isinstance(image, np.ndarray):
            return self.pt_to_numpy(self.resize(self.numpy_to_pt(image), height, width))
        return functional.interpolate(image, size=(height, width))

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


def _is_pil(image: Any) -> bool:
    return hasattr(image, "getbands") and hasattr(image, "resize")
