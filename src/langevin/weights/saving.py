"""Networks written into one file in their authors' own layout."""

from __future__ import annotations

import json
import os
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import WeightsError, check_choice
from ..core.files import atomic_file
from ..core.logging import get_logger
from ..core.report import some
from ..core.weights_io import write_pickled, write_safetensors
from .checkpoint import Reverted
from .detect import FAMILIES
from .family import CONFIGS, Config, Family, Place
from .layouts.clip import canonical

logger = get_logger(__name__)
ARCHITECTURES = {
    "stable_diffusion": "stable-diffusion-v1",
    "stable_diffusion_2": "stable-diffusion-v2",
    "stable_diffusion_xl": "stable-diffusion-xl-v1-base",
    "stable_diffusion_xl_refiner": "stable-diffusion-xl-v1-refiner",
}
"""Family -> its name in the metadata that other programs read (Stability's modelspec)."""
SUFFIXES = (".safetensors", ".ckpt")


def save(
    components: Any,
    path: str | os.PathLike,
    *,
    layout: str | None = None,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> list[str]:
    """Write networks into one file in their authors' layout, and return the names of the components in it.

    Args:
        components: a pipeline, or component -> network; parts without weights are passed over.
        path: a .safetensors file, which also keeps the configurations, or a .ckpt file.
        layout: name of the family, told from the networks when None.
        dtype: type of floating-point weights, None to keep theirs.
        metadata: further strings for a .safetensors file.
    Raises:
        InputError: for another suffix, or an unknown layout.
        WeightsError: when a network does not fit the layout.
    """
    path = Path(path)
    check_choice("The suffix of a single file", path.suffix, SUFFIXES)
    given = dict(components if isinstance(components, Mapping) else components.components)
    networks = {name: part for name, part in given.items() if isinstance(part, nn.Module)}
    family = family_named(layout) if layout is not None else family_of(networks)
    places = {place.component: place for place in family.places if place.component in networks}
    if not places:
        held = ", ".join(place.component for place in family.places)
        raise WeightsError(f"the layout {family.name} holds {held}, and none of them was given")
    left_out = sorted(set(networks) - set(places))
    if left_out:
        logger.warning("The layout %s has no place for %s; it is not written.", family.name, some(left_out))
    written: list[Any] = [reverted(networks[name], place, dtype=dtype) for name, place in places.items()]
    tensors = ChainMap(*written, _marks(family, given.get("scheduler")))
    configs = {name: described(networks[name]) for name in places}
    words = {"format": "pt", CONFIGS: json.dumps(configs, sort_keys=True), **_modelspec(family, given, configs)}
    with atomic_file(path) as partial:
        if path.suffix == ".ckpt":
            copied = {name: value.detach().cpu().clone() for name, value in tensors.items()}
            write_pickled(partial, {"state_dict": copied})
        else:
            write_safetensors(partial, tensors, {**words, **(metadata or {})})
    return list(places)


def reverted(network: nn.Module, place: Place, *, dtype: torch.dtype | None = None) -> Reverted:
    """Return a network's tensors under the names that its authors give them, made one by one when asked for."""
    rules = place.layout.rules(described(network))
    state = network.state_dict()
    spelt = dict(zip(canonical(rules, state), state.values(), strict=True))
    return Reverted(spelt, rules, prefix=place.prefix, dtype=dtype)


def described(network: nn.Module) -> Config:
    """Return the configuration of a network of this library or of transformers as plain values."""
    config: Any = network.config
    if isinstance(config, Mapping):
        return {key: value for key, value in config.items() if not key.startswith("_")}
    dull = ("transformers_version", "architectures", "model_type", "dtype", "torch_dtype", "_name_or_path")
    return {key: value for key, value in config.to_diff_dict().items() if key not in dull}


def family_named(name: str) -> Family:
    """Return the family called `name`.

    Raises:
        InputError: naming the nearest one.
    """
    known = {family.name: family for family in FAMILIES}
    check_choice("layout", name, known)
    return known[name]


def family_of(networks: Mapping[str, nn.Module]) -> Family:
    """Return the family whose layout networks are written in.

    Raises:
        WeightsError: when there is none for them.
    """
    unet, vae = networks.get("unet"), networks.get("vae")
    if unet is None and type(vae).__name__ == "AutoencoderKL":
        return family_named("autoencoder_kl")
    if type(unet).__name__ != "UNet2DConditionModel":
        held = ", ".join(f"{name} ({type(part).__name__})" for name, part in networks.items())
        raise WeightsError(f"no layout is known for {held or 'nothing'}; pass `layout`")
    assert unet is not None
    config, encoder = described(unet), networks.get("text_encoder")
    if config.get("addition_embed_type") == "text_time":
        refines = encoder is None and ("text_encoder_2" in networks or config["cross_attention_dim"] == 1280)
        return family_named("stable_diffusion_xl_refiner" if refines else "stable_diffusion_xl")
    second = config.get("use_linear_projection") if encoder is None else described(encoder).get("hidden_act") == "gelu"
    return family_named("stable_diffusion_2" if second else "stable_diffusion")


def _marks(family: Family, scheduler: Any) -> dict[str, Tensor]:
    """Return the empty tensors by which SDXL files say that they predict v, and that their noise reaches zero SNR."""
    config = getattr(scheduler, "config", {})
    if family.name != "stable_diffusion_xl" or config.get("prediction_type") != "v_prediction":
        return {}
    return {"v_pred": torch.zeros(0), **({"ztsnr": torch.zeros(0)} if config.get("rescale_betas_zero_snr") else {})}


def _modelspec(family: Family, given: Mapping[str, Any], configs: Mapping[str, Config]) -> dict[str, str]:
    """Return the metadata by which other programs tell what a file is."""
    found: dict[str, str | None] = {"architecture": ARCHITECTURES.get(family.name)}
    kind = getattr(given.get("scheduler"), "config", {}).get("prediction_type")
    found["prediction_type"] = {"v_prediction": "v", "epsilon": "epsilon"}.get(str(kind))
    side, stages = configs.get("unet", {}).get("sample_size"), len(configs.get("vae", {}).get("block_out_channels", ()))
    if isinstance(side, int) and stages:
        found["resolution"] = "x".join([str(side * 2 ** (stages - 1))] * 2)
    return {f"modelspec.{name}": value for name, value in found.items() if value is not None}
