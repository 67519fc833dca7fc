"""Inception as the eyes of FID, as published figures have it, by the package torch-fidelity."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.imports import require
from ..weights.checkpoint import open_weights, read_tensors

if TYPE_CHECKING:
    from PIL.Image import Image

LAYER = "2048"
"""The features of FID (Heusel et al. 2017, arXiv 1706.08500): the pooled last layer."""
FILE = "pt_inception-2015-12-05-6726825d.pth"
"""What the published weights are called that FID is computed with."""


class Inception:
    """Inception v3 (Szegedy et al. 2015, arXiv 1512.00567) with the weights that FID was published with, in float32.

    The network, and the way that pictures come to 299 x 299, are those of torch-fidelity.

    Args:
        weights: file of its weights, such as the one that is published as `FILE`; read without running code from it.

    Raises:
        MissingDependencyError: without torch-fidelity.
        ConfigError: for weights of another network.
    """

    name, policy = "Inception v3", "to 299 x 299, bilinear as in TensorFlow 1"

    def __init__(self, weights: str | os.PathLike, *, device: str = "cpu") -> None:
        package = require("torch_fidelity", why="Inception")
        self.device = device
        with open_weights(weights) as source, TemporaryDirectory() as folder:
            file = Path(folder) / FILE
            torch.save({name: tensor.clone() for name, tensor in read_tensors(source).items()}, file)
            try:
                network: Any = package.FeatureExtractorInceptionV3(
                    "inception", [LAYER], feature_extractor_weights_path=str(file)
                )
            except RuntimeError as error:
                raise ConfigError(f"{weights} does not hold the weights of Inception ({FILE}): {error}") from error
        self.network = network.to(device).eval()

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image]) -> Tensor:
        """Return the features of RGB pictures of any sizes, (pictures, 2048)."""
        arrays = [torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures]
        found: list[Any] = [None] * len(arrays)
        for shape in {array.shape for array in arrays}:
            places = [k for k, array in enumerate(arrays) if array.shape == shape]
            (features,) = self.network(torch.stack([arrays[k] for k in places]).to(self.device))
            for k, row in zip(places, features, strict=True):
                found[k] = row
        return torch.stack(found)
