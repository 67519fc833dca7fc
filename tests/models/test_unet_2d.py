"""UNet2DModel against the peer, for every kind of block and embedding at tiny width."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from langevin.core.errors import ConfigError, InputError
from langevin.models.unets.unet_2d import UNet2DModel
from tests.models.pairs import difference, pair

TOLERANCE = 1e-5
TINY: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 4,
}
SCORE: dict[str, Any] = {**TINY, "time_embedding_type": "fourier", "mid_block_scale_factor": 2**0.5}


def blocks(down: tuple[str, str], up: tuple[str, str]) -> dict[str, Any]:
    return {"down_block_types": down, "up_block_types": up}


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ddpm": ({"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "attention_head_dim": None}, {}),
    "resnet-resampling": (
        {
            "downsample_type": "resnet",
            "upsample_type": "resnet",
            "attn_norm_num_groups": 4,
            "mid_block_scale_factor": 3.0,
        },
        {},
    ),
    "no-resampling-type": ({"downsample_type": None, "upsample_type": None}, {}),
    "scale-shift": ({"resnet_time_scale_shift": "scale_shift", "act_fn": "gelu"}, {}),
    "no-attention": ({"add_attention": False, "center_input_sample": True}, {}),
    "resnet-blocks": (blocks(("ResnetDownsampleBlock2D", "DownBlock2D"), ("UpBlock2D", "ResnetUpsampleBlock2D")), {}),
    "no-middle": ({"mid_block_type": None}, {}),
    "labels": ({"num_class_embeds": 5}, {"class_labels": torch.tensor([1, 3])}),
    "label-levels": ({"class_embed_type": "timestep"}, {"class_labels": torch.tensor([1, 3])}),
    "label-vectors": ({"class_embed_type": "identity"}, {"class_labels": torch.ones(2, 128)}),
    "learned-time": ({"time_embedding_type": "learned", "num_train_timesteps": 20}, {"timestep": torch.tensor(7)}),
    "fourier": ({"time_embedding_type": "fourier"}, {"timestep": torch.tensor([0.37, 12.0])}),
    "skip": (
        {**SCORE, **blocks(("SkipDownBlock2D", "AttnSkipDownBlock2D"), ("AttnSkipUpBlock2D", "SkipUpBlock2D"))},
        {"timestep": torch.tensor(3.37)},
    ),
    "skip-attention-outside": (
        {
            **SCORE,
            **blocks(("AttnSkipDownBlock2D", "SkipDownBlock2D"), ("SkipUpBlock2D", "AttnSkipUpBlock2D")),
            "norm_num_groups": None,
        },
        {"timestep": torch.tensor(3.37)},
    ),
}


def inputs(**given: Any) -> dict[str, Any]:
    sample = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    return {"sample": sample, "timestep": torch.tensor([7, 650]), **given}


@pytest.fixture(scope="module")
def peer() -> type:
    return importlib.import_module("diffusers").UNet2DModel


@pytest.mark.parity
@pytest.mark.parametrize("variant", VARIANTS)
def test_variant(variant: str, peer: type) -> None:
    config, given = VARIANTS[variant]
    theirs, ours = pair(peer, UNet2DModel, {**TINY, **config})
    with torch.no_grad():
        assert difference(theirs(**inputs(**given)).sample, ours(**inputs(**given)).sample) <= TOLERANCE


@pytest.mark.parity
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("variant", ["ddpm", "skip"])
def test_gradients(variant: str, checkpointing: bool, peer: type) -> None:
    config, given = VARIANTS[variant]
    theirs, ours = pair(peer, UNet2DModel, {**TINY, **config})
    if checkpointing:
        ours.enable_gradient_checkpointing()
    for model in (theirs, ours):
        model.train()
        model(**inputs(**given)).sample.square().mean().backward()
    expected = dict(theirs.named_parameters())
    for name, value in ours.named_parameters():
        if expected[name].grad is None:
            assert value.grad is None, name
        else:
            assert difference(expected[name].grad, value.grad) <= TOLERANCE, name


def test_default_configuration_builds() -> None:
    with torch.device("meta"):
        UNet2DModel()


@pytest.mark.parametrize("variant", ["ddpm", "skip"])
def test_compiles_as_one_graph(variant: str) -> None:
    config, given = VARIANTS[variant]
    model = UNet2DModel(**{**TINY, **config}).eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(**inputs(**given)).sample, model(**inputs(**given)).sample, atol=1e-6)


def test_saved_and_loaded_again(tmp_path: Any, peer: type) -> None:
    theirs, ours = pair(peer, UNet2DModel, TINY)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        expected = ours(**inputs()).sample
        assert torch.equal(UNet2DModel.from_pretrained(tmp_path / "theirs")(**inputs()).sample, expected)
        assert torch.equal(UNet2DModel.from_pretrained(tmp_path / "ours")(**inputs()).sample, expected)
        assert difference(peer.from_pretrained(tmp_path / "ours")(**inputs()).sample, expected) <= TOLERANCE


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"down_block_types": ("AttnDownBlok2D", "DownBlock2D")}, "'AttnDownBlock2D'"),
        ({"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}, "no block of this model"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "'UNetMidBlock2D'"),
        ({"block_out_channels": (32,)}, "block_out_channels has 1 values"),
        ({"time_embedding_type": "learned"}, "num_train_timesteps"),
        ({"time_embedding_type": "fourrier"}, "'fourier'"),
        ({"class_embed_type": "projection"}, "class_embed_type"),
        ({"downsample_type": "convolution"}, "downsample_type"),
    ],
)
def test_wrong_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        UNet2DModel(**{**TINY, **options})


def test_wrong_inputs() -> None:
    model = UNet2DModel(**TINY).eval()
    labelled = UNet2DModel(**TINY, num_class_embeds=5)
    with pytest.raises(InputError, match="in_channels"):
        model(**inputs(sample=torch.zeros(2, 4, 16, 16)))
    with pytest.raises(InputError, match="no class embedding"):
        model(**inputs(class_labels=torch.tensor([1, 2])))
    with pytest.raises(InputError, match="needs class_labels"):
        labelled(**inputs())
    with pytest.raises(InputError, match="timestep has 3 values"):
        model(**inputs(timestep=torch.tensor([1, 2, 3])))
