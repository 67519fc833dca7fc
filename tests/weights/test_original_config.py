"""The authors' YAML files: what they say of a model that shapes do not."""

from __future__ import annotations

import importlib
from io import BytesIO
from typing import Any

import pytest

from langevin.core.errors import ConfigError
from langevin.weights.original_config import options_of, read_original


def stated(**params: Any) -> dict[str, Any]:
    return {name: found for name, found in options_of({"model": {"params": params}}).items() if found}


def test_what_the_network_predicts() -> None:
    for written, kind in {"v": "v_prediction", "eps": "epsilon", "x0": "sample"}.items():
        assert stated(parameterization=written)["facts"] == {"prediction_type": kind}
    assert stated()["facts"] == {"prediction_type": "epsilon"} and stated(parameterization="other") == {}
    for target, kind in {"sgm.scaling.VScaling": "v_prediction", "sgm.scaling.EpsScaling": "epsilon"}.items():
        denoiser = {"params": {"scaling_config": {"target": target}}}
        assert stated(denoiser_config=denoiser)["facts"]["prediction_type"] == kind


def test_heads_and_levels_that_attend_to_text_only() -> None:
    sizes = {"model_channels": 32, "channel_mult": [1, 2]}

    def unet(**params: Any) -> dict[str, Any]:
        return stated(unet_config={"params": {**sizes, **params}}).get("unet", {})

    assert unet(num_head_channels=16) == {"attention_head_dim": [2, 4]}
    assert unet(num_heads=8) == {"attention_head_dim": 8} and unet() == {}
    assert unet(disable_self_attentions=[True, False]) == {"only_cross_attention": [True, False]}


def test_an_opened_file_and_one_that_is_no_yaml() -> None:
    importlib.import_module("yaml")
    assert read_original(BytesIO(b"model: {params: {linear_start: 0.5}}"))["model"]["params"] == {"linear_start": 0.5}
    with pytest.raises(ConfigError, match="not a YAML file"):
        read_original(BytesIO(b"model: ["))
    with pytest.raises(ConfigError, match=r"no `model\.params`"):
        read_original(BytesIO(b"- a list"))
