"""The picturebook's own eyes for `langevin.evaluation`: its CLIP, and the checker as an extractor and as a judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.errors import InputError
from ..evaluation.features import Clip
from . import model_folder
from .captions import parse
from .checker import check, load_detector, to_pictures

if TYPE_CHECKING:
    from PIL.Image import Image


class PicturebookClip(Clip):
    """The CLIP of the shipped model's folder. It refuses prompts in other words than it was trained on."""

    def read(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts.

        Raises:
            InputError: for a text that the picturebook does not know.
        """
        for text in texts:
            try:
                parse(text)
            except InputError as error:
                raise InputError(
                    f"{error}; for other prompts name a CLIP, such as openai/clip-vit-base-patch16."
                ) from error
        return super().read(texts)


def clip(*, device: str = "cpu") -> Clip:
    """Return the picturebook's CLIP.

    Raises:
        InputError: when this installation carries no model.
    """
    found = PicturebookClip.from_pretrained(model_folder() / "clip", device=device)
    found.name = "the picturebook's CLIP"
    return found


class CheckerFeatures:
    """The checker's pooled features, 224 numbers per picture: what it finds before it names things."""

    name = "the picturebook's checker"
    policy = "to 64 x 64, bilinear"

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image]) -> Tensor:
        """Return the features of RGB pictures, (pictures, 224)."""
        body = load_detector().body
        found = [body(to_pictures([picture])) for picture in pictures]
        return torch.cat([torch.cat([each.mean((2, 3)), each.amax((2, 3))], dim=1) for each in found])


class AsAsked:
    """100 for a picture that shows what its prompt says, things, colours and relation, and else 0."""

    name = "as asked, %"
    about = "the picturebook's checker"

    def __call__(self, pictures: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        """Return one score per picture.

        Raises:
            InputError: for a prompt that the picturebook does not know.
        """
        verdicts = [check([picture], [prompt])[0] for picture, prompt in zip(pictures, prompts, strict=True)]
        return torch.tensor([100.0 * verdict.all_right for verdict in verdicts], dtype=torch.float64)
