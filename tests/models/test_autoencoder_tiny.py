"""TAESD: agreement with the peer, tiles, and what is refused."""

from __future__ import annotations

import pytest
import torch

from langevin import AutoencoderTiny
from langevin.core.errors import ConfigError

SMALL = {
    "encoder_block_out_channels": (16, 16, 16),
    "decoder_block_out_channels": (16, 16, 16),
    "num_encoder_blocks": (1, 2, 2),
    "num_decoder_blocks": (2, 2, 1),
}
VARIANTS = {
    "TAESD": {},
    "TAESDXL": {"scaling_factor": 1.0, "latent_magnitude": 3, "latent_shift": 0.5, "force_upcast": False},
    "sixteen latents": {"latent_channels": 16, "shift_factor": 0.0},
    "small": {**SMALL, "act_fn": "silu", "upsample_fn": "bilinear"},
}


@pytest.mark.parity
@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_agrees_with_the_peer(name: str) -> None:
    from diffusers import AutoencoderTiny as Peer

    torch.manual_seed(0)
    theirs, ours = Peer(**VARIANTS[name]).eval(), AutoencoderTiny(**VARIANTS[name]).eval()
    ours.load_state_dict(theirs.state_dict())
    config = {key: value for key, value in theirs.config.items() if not key.startswith("_")}
    assert {key: value for key, value in ours.config.items() if not key.startswith("_")} == config
    x = torch.rand(2, 3, 32, 24) * 2 - 1
    z = theirs.encode(x).latents
    torch.testing.assert_close(ours.encode(x).latents, z, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.decode(4 * z).sample, theirs.decode(4 * z).sample, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.scale_latents(9 * z), theirs.scale_latents(9 * z), atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.unscale_latents(z), theirs.unscale_latents(z), atol=1e-6, rtol=0)
    torch.testing.assert_close(ours(x).sample, theirs(x).sample, atol=1e-5, rtol=0)


@torch.no_grad()
def test_tiles_equal_the_whole_away_from_the_seams() -> None:
    torch.manual_seed(0)
    model = AutoencoderTiny(**SMALL).eval()
    z, x = torch.randn(1, 4, 40, 40), torch.randn(1, 3, 160, 160)
    decoded, encoded = model.decode(z).sample, model.encode(x).latents
    model.enable_tiling(tile_sample_min_size=96, tile_overlap_factor=0.5, ramp="cosine")
    tiled = model.decode(z).sample
    assert tiled.shape == decoded.shape and (tiled - decoded).abs().mean() < 0.02 * decoded.abs().mean()
    torch.testing.assert_close(tiled[..., :32, :32], decoded[..., :32, :32], atol=1e-5, rtol=0)
    tiled = model.encode(x).latents
    assert tiled.shape == encoded.shape and (tiled - encoded).abs().mean() < 0.1 * encoded.abs().mean()


@pytest.mark.parity
@torch.no_grad()
def test_tiles_follow_the_peer_up_to_the_shape_of_the_ramp() -> None:
    from diffusers import AutoencoderTiny as Peer

    torch.manual_seed(0)
    theirs, ours = Peer(**SMALL).eval(), AutoencoderTiny(**SMALL).eval()
    ours.load_state_dict(theirs.state_dict())
    z = torch.randn(1, 4, 40, 40)
    for model in (theirs, ours):
        model.enable_tiling()
        model.tile_sample_min_size, model.tile_latent_min_size, model.tile_overlap_factor = 64, 16, 0.25
        model.spatial_scale_factor = 4
    a, b = theirs.decode(z).sample, ours.decode(z).sample
    assert (a - b).abs().max() < 0.1 * a.abs().max()


def test_gradients_and_checkpointing() -> None:
    model = AutoencoderTiny(**SMALL)
    model.enable_gradient_checkpointing()
    model.decode(model.encode(torch.randn(1, 3, 16, 16)).latents).sample.mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_published_configuration_loads_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    config = {"_class_name": "AutoencoderTiny", "block_out_channels": [64, 64, 64, 64], "latent_channels": 4}
    model = AutoencoderTiny.from_config(config)
    assert model.config.block_out_channels == (64, 64, 64, 64) and not caplog.records


def test_wrong_options_are_named() -> None:
    with pytest.raises(ConfigError, match=r"num_encoder_blocks has 2 items, encoder_block_out_channels 4"):
        AutoencoderTiny(num_encoder_blocks=(1, 3))
    with pytest.raises(ValueError, match="did you mean 'nearest'"):
        AutoencoderTiny(upsample_fn="nearst")
