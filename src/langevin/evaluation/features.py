"""Pictures into numbers: what a feature extractor is, how pictures come to its size, and CLIP as one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.errors import ConfigError, InputError
from ..core.files import is_local, read_json, resolve_file, resolve_folder
from ..core.hub import fetch_chosen

if TYPE_CHECKING:
    from PIL.Image import Image

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
FILTERS = ("nearest", "Lanczos", "bilinear", "bicubic", "box", "Hamming")
"""PIL's resampling filters by number. All but the first smooth what they shrink."""


class Extractor(Protocol):
    """What turns pictures into features; any object that does can take the place of CLIP.

    Attributes:
        name: what it is, for the record of a result.
        policy: how pictures come to its size, in words, for the same record: figures of different ways do not compare.
    """

    name: str
    policy: str

    def __call__(self, pictures: Sequence[Image]) -> Tensor:
        """Return the features of RGB pictures, (pictures, features)."""
        ...


class Judge(Protocol):
    """What scores pictures by their prompts, higher for better. `name`: of the figure; `about`: what judges."""

    name: str
    about: str

    def __call__(self, pictures: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        """Return one score per picture."""
        ...


@dataclass(frozen=True)
class Preprocessing:
    """The steps of CLIP's `preprocessor_config.json`.

    Attributes:
        size: of the shortest side in pixels, or (height, width), or None for no resizing.
        crop: (height, width) of the middle that is kept, or None.
        resample: PIL's number of the filter.
        mean, spread: of the channels, which are shifted and scaled by them.
    """

    size: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    resample: int
    mean: tuple[float, ...]
    spread: tuple[float, ...]

    @classmethod
    def read(cls, config: dict[str, Any]) -> Preprocessing:
        """Return the steps that a configuration names.

        Raises:
            ConfigError: for a size that is neither.
        """
        size = config.get("size", 224) if config.get("do_resize", True) else None
        if isinstance(size, dict):
            size = size["shortest_edge"] if "shortest_edge" in size else _box(size)
        crop = config.get("crop_size", 224) if config.get("do_center_crop", True) else None
        scaled = config.get("do_normalize", True)
        mean, spread = (
            config.get(key) if scaled else value for key, value in (("image_mean", (0,)), ("image_std", (1,)))
        )
        if mean is None or spread is None:
            raise ConfigError("preprocessor_config.json normalises, and has no image_mean or image_std; add them.")
        box = None if crop is None else (crop, crop) if isinstance(crop, int) else _box(crop)
        return cls(size, box, config.get("resample", 3), tuple(mean), tuple(spread))

    @property
    def policy(self) -> str:
        """The steps in words."""
        steps = []
        if isinstance(self.size, int):
            steps.append(f"shortest side to {self.size}, {FILTERS[self.resample]}")
        elif self.size is not None:
            steps.append(f"to {self.size[1]} x {self.size[0]}, {FILTERS[self.resample]}")
        if self.crop is not None:
            steps.append(f"middle {self.crop[1]} x {self.crop[0]}")
        return "; ".join(steps) or "none: pictures must have the model's size"

    def __call__(self, pictures: Sequence[Image]) -> Tensor:
        """Return RGB pictures as float32 (pictures, 3, height, width), shifted and scaled.

        Raises:
            InputError: when nothing brings pictures of different sizes to one.
        """
        arrays = [np.asarray(self._cropped(self._resized(picture))) for picture in pictures]
        if len({array.shape for array in arrays}) > 1:
            raise InputError(
                "Pictures of different sizes came to an extractor that does not resize; make them one size."
            )
        pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
        mean, spread = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (self.mean, self.spread))
        return (pixels - mean) / spread

    def _resized(self, picture: Image) -> Image:
        if self.size is None:
            return picture
        if isinstance(self.size, int):
            short = min(picture.size)
            wide, high = (int(self.size * side / short) for side in picture.size)
            return picture.resize((wide, high), self.resample)
        return picture.resize((self.size[1], self.size[0]), self.resample)

    def _cropped(self, picture: Image) -> Image:
        if self.crop is None:
            return picture
        top, left = (picture.height - self.crop[0]) // 2, (picture.width - self.crop[1]) // 2
        return picture.crop((left, top, left + self.crop[1], top + self.crop[0]))


def _box(size: dict[str, int]) -> tuple[int, int]:
    if not {"height", "width"} <= set(size):
        raise ConfigError(
            f"preprocessor_config.json has the size {size}; shortest_edge or height and width were expected."
        )
    return size["height"], size["width"]


def chosen(listed: Sequence[str]) -> list[str]:
    """Return the files of a repository that make a CLIP, with one file of weights."""
    small = [name for name in listed if "/" not in name and name.endswith((".json", ".txt"))]
    return small + [name for name in WEIGHTS if name in listed][:1]


class Clip:
    """Both towers of a CLIP (Radford et al. 2021, arXiv 2103.00020): an extractor, and what the CLIP figures need.

    Its features are the projected embeddings of pictures, as they are.
    """

    def __init__(self, model: Any, tokenizer: Any, preprocessing: Preprocessing, *, name: str = "CLIP") -> None:
        self.model, self.tokenizer, self.preprocessing = model.eval(), tokenizer, preprocessing
        self.name, self.policy = name, preprocessing.policy

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike, *, device: str = "cpu", **hub: Any) -> Clip:
        """Load a CLIP from a folder or hub repository, such as "openai/clip-vit-base-patch16", in float32.

        Args:
            hub: see `core.hub.fetch_chosen`.

        Raises:
            InputError: when there is none. ConfigError: when it is another kind of network.
        """
        here = is_local(name_or_path)
        folder = resolve_folder(name_or_path) if here else fetch_chosen(os.fspath(name_or_path), chosen, **hub)
        kind = read_json(resolve_file(folder, "config.json")).get("model_type")
        if kind != "clip":
            raise ConfigError(
                f"{name_or_path} is a {kind!r} network; a CLIP with both towers (CLIPModel) was expected."
            )
        preprocessing = Preprocessing.read(read_json(resolve_file(folder, "preprocessor_config.json")))
        from transformers import CLIPModel, CLIPTokenizer

        model: Any = CLIPModel.from_pretrained(folder, dtype=torch.float32)
        return cls(model.to(device), CLIPTokenizer.from_pretrained(folder), preprocessing, name=os.fspath(name_or_path))

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image]) -> Tensor:
        """Return the projected embeddings of RGB pictures, (pictures, width)."""
        pixels = self.preprocessing(pictures).to(self.model.device)
        return self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Tensor:
        """Return the projected embeddings of texts, (texts, width); what is longer than the model reads is cut."""
        words = self.tokenizer(list(texts), padding="max_length", max_length=self.length, truncation=True,
                               return_tensors="pt")  # fmt: skip
        words = {name: words[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        return self.model.text_projection(self.model.text_model(**words).pooler_output)

    @property
    def length(self) -> int:
        """How many tokens of a text it reads."""
        return self.model.config.text_config.max_position_embeddings

    def cut(self, texts: Iterable[str]) -> list[str]:
        """Return the texts that are longer than it reads."""
        return [text for text in texts if len(self.tokenizer(text)["input_ids"]) > self.length]


class ClipScore:
    """100 times the cosine between a picture and its prompt (Hessel et al. 2021, arXiv 2104.08718).

    Figures are those of `torchmetrics`: no factor 2.5, and single pictures may score below 0.
    """

    name = "CLIP score"

    def __init__(self, clip: Clip) -> None:
        self.clip, self.about = clip, f"{clip.name}; resized: {clip.policy}"

    def __call__(self, pictures: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        """Return one score per picture."""
        return 100 * F.cosine_similarity(self.clip(pictures), self.clip.read(prompts)).double().cpu()


@dataclass(frozen=True)
class Edits:
    """How well pictures were edited.

    Attributes:
        directional: the cosine between the change of each picture and of its caption, in CLIP's space.
        kept: the cosine between a picture before and after.
    """

    directional: Tensor
    kept: Tensor


def edits(
    clip: Clip, before: Sequence[Image], after: Sequence[Image], captions_before: Sequence[str], captions: Sequence[str]
) -> Edits:
    """Measure edited pictures (Gal et al. 2021, arXiv 2108.00946, section 4.2).

    A picture or caption that did not change has no direction, and scores 0.

    Raises:
        InputError: when the numbers differ.
    """
    numbers = [len(each) for each in (before, after, captions_before, captions)]
    if len(set(numbers)) > 1 or not numbers[0]:
        raise InputError(f"Pictures and captions before and after must be as many; there are {numbers}.")
    one, two = (F.normalize(clip(pictures).double()) for pictures in (before, after))
    first, second = (F.normalize(clip.read(texts).double()) for texts in (captions_before, captions))
    return Edits(F.cosine_similarity(two - one, second - first).cpu(), F.cosine_similarity(two, one).cpu())


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Yield parts of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def fingerprint(picture: Image) -> str:
    """Return a hash of an RGB picture's pixels."""
    return hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()
