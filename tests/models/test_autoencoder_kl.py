"""The KL autoencoder: agreement with the peer, published configurations, tiles, slices, and what is refused."""

from __future__ import annotations

import pytest
import torch

from langevin import AutoencoderKL
from langevin.core.errors import ConfigError, InputError
from langevin.models.autoencoders.vae import DiagonalGaussianDistribution
from tests.models.pairs import pair

DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
TINY = {
    "block_out_channels": [32, 64],
    "down_block_types": [DOWN] * 2,
    "up_block_types": [UP] * 2,
    "sample_size": 32,
}
VARIANTS = {
    "default": {},
    "tiny": TINY,
    "attention in the stages": {
        **TINY,
        "down_block_types": [DOWN, "AttnDownEncoderBlock2D"],
        "up_block_types": ["AttnUpDecoderBlock2D", UP],
        "layers_per_block": 2,
    },
    "sixteen latents, no quantisation layers": {
        **TINY,
        "latent_channels": 16,
        "norm_num_groups": 16,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": False,
        "shift_factor": 0.0609,
        "scaling_factor": 1.5305,
    },
}
SD = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": [DOWN] * 4,
    "up_block_types": [UP] * 4,
    "layers_per_block": 2,
}
PUBLISHED = {
    "SD 1.5": {**SD, "sample_size": 512},
    "SD 2": {**SD, "sample_size": 768},
    "SDXL": {**SD, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
    "x4 upscaler": {
        **SD,
        "block_out_channels": [128, 256, 512],
        "down_block_types": [DOWN] * 3,
        "up_block_types": [UP] * 3,
        "sample_size": 256,
        "scaling_factor": 0.08333,
    },
    "SD 3": {**SD, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
}


def both(**options) -> tuple:
    """Return the peer's model and ours with the same weights."""
    from diffusers import AutoencoderKL as Peer

    return pair(Peer, AutoencoderKL, options)


def tiny(**options) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(**{**TINY, **options}).eval()


@pytest.mark.parity
@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_agrees_with_the_peer(name: str) -> None:
    theirs, ours = both(**VARIANTS[name])
    x = torch.randn(2, 3, 32, 24)
    a, b = theirs.encode(x).latent_dist, ours.encode(x).latent_dist
    torch.testing.assert_close(b.mean, a.mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(b.logvar, a.logvar, atol=1e-5, rtol=0)
    z = a.mean
    torch.testing.assert_close(ours.decode(z).sample, theirs.decode(z).sample, atol=1e-5, rtol=0)
    theirs, ours, x = theirs.double(), ours.double(), x.double()  # the way there and back adds up float32's rounding
    for model_in in ({}, {"sample_posterior": True}):
        one = theirs(x, generator=torch.Generator().manual_seed(3), **model_in).sample
        two = ours(x, generator=torch.Generator().manual_seed(3), **model_in).sample
        torch.testing.assert_close(two, one, atol=1e-10, rtol=0)


@pytest.mark.parity
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_have_the_same_names_and_shapes(name: str) -> None:
    from diffusers import AutoencoderKL as Peer

    with torch.device("meta"):
        theirs, ours = Peer(**PUBLISHED[name]), AutoencoderKL(**PUBLISHED[name])
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert (ours.tile_sample_min_size, ours.tile_latent_min_size, ours.tile_overlap_factor) == (
        theirs.tile_sample_min_size,
        theirs.tile_latent_min_size,
        theirs.tile_overlap_factor,
    )


@pytest.mark.parity
@pytest.mark.parametrize("size", [(64, 64), (40, 88)])
@torch.no_grad()
def test_tiles_agree_with_the_peer(size: tuple[int, int]) -> None:
    theirs, ours = both(**TINY)
    theirs.enable_tiling()
    ours.enable_tiling(statistics="tile")
    for model in (theirs, ours):
        model.enable_slicing()
    x = torch.randn(2, 3, *size)
    a, b = theirs.encode(x).latent_dist, ours.encode(x).latent_dist
    torch.testing.assert_close(b.mean, a.mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.decode(a.mean).sample, theirs.decode(a.mean).sample, atol=1e-5, rtol=0)


@pytest.mark.parity
@torch.no_grad()
def test_a_remainder_that_is_covered_gets_no_tile_of_its_own() -> None:
    """The peer decodes a sliver that the tile before it has already covered, from a sliver's worth of context."""
    theirs, ours = both(**TINY)
    z = torch.randn(1, 4, 28, 16)
    whole = ours.decode(z).sample
    ours.enable_tiling(statistics="tile")
    theirs.enable_tiling()
    mine, peers = ((model.decode(z).sample - whole).abs().mean() for model in (ours, theirs))
    assert mine < peers


@pytest.mark.parity
def test_the_gaussian_agrees_with_the_peer() -> None:
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution as Peer

    one, two = torch.randn(2, 8, 3, 5) * 3, torch.randn(2, 8, 3, 5)
    a, b = Peer(one), DiagonalGaussianDistribution(one)
    torch.testing.assert_close(b.kl(), a.kl())
    torch.testing.assert_close(b.kl(DiagonalGaussianDistribution(two)), a.kl(Peer(two)))
    torch.testing.assert_close(b.nll(two[:, :4]), a.nll(two[:, :4]))
    assert torch.equal(b.sample(torch.Generator().manual_seed(1)), a.sample(torch.Generator().manual_seed(1)))
    assert torch.equal(b.std, a.std) and torch.equal(b.var, a.var) and torch.equal(b.mode(), a.mode())


def test_a_deterministic_gaussian_is_its_mean() -> None:
    gaussian = DiagonalGaussianDistribution(torch.randn(2, 8, 3, 3), deterministic=True)
    assert torch.equal(gaussian.sample(), gaussian.mean) and gaussian.kl() == 0 and gaussian.nll(gaussian.mean) == 0


def test_sampling_leaves_the_global_stream_alone_and_takes_a_generator_per_picture() -> None:
    gaussian = DiagonalGaussianDistribution(torch.randn(2, 8, 3, 3))
    state = torch.get_rng_state()
    both = gaussian.sample([torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)])
    assert not torch.equal(gaussian.sample(), gaussian.sample())
    assert torch.equal(torch.get_rng_state(), state)
    second = DiagonalGaussianDistribution(gaussian.parameters[1:]).sample(torch.Generator().manual_seed(2))
    assert torch.equal(both[1:], second)


@torch.no_grad()
def test_slices_equal_the_batch() -> None:
    model, x = tiny(), torch.randn(3, 3, 16, 16)
    whole, latents = model(x).sample, model.encode(x).latent_dist.mean
    model.enable_slicing()
    torch.testing.assert_close(model(x).sample, whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.encode(x).latent_dist.mean, latents, atol=1e-5, rtol=0)
    model.disable_slicing()
    assert not model.use_slicing


@torch.no_grad()
def test_tile_options() -> None:
    model = tiny()
    model.enable_tiling(statistics="tile", tile_sample_min_size=16, tile_overlap_factor=0.5, ramp="cosine")
    assert (model.tile_sample_min_size, model.tile_latent_min_size) == (16, 8)
    for size in (1, 9, 23):
        assert model.decode(torch.randn(1, 4, size, size)).sample.shape == (1, 3, 2 * size, 2 * size)
    model.disable_tiling()
    assert not model.use_tiling
    with pytest.raises(InputError, match="tile_overlap_factor is 1"):
        model.enable_tiling(tile_overlap_factor=1)
    with pytest.raises(InputError, match="did you mean 'cosine'"):
        model.enable_tiling(ramp="cosin")
    assert model.tiled_decode(torch.randn(1, 4, 9, 9)).sample.shape == (1, 3, 18, 18)
    assert model.tiled_encode(torch.randn(1, 3, 18, 18)).latent_dist.mean.shape == (1, 4, 9, 9)


@torch.no_grad()
def test_return_forms() -> None:
    model, x = tiny(), torch.randn(1, 3, 8, 8)
    assert isinstance(model.encode(x, return_dict=False), tuple)
    assert torch.equal(model.decode(model.encode(x)[0].mode(), return_dict=False)[0], model(x)["sample"])
    assert model(x).to_tuple()[0].shape == x.shape


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    model, x = tiny().train(), torch.randn(1, 3, 16, 16)
    assert model.supports_gradient_checkpointing and not model.is_gradient_checkpointing
    gradients = []
    calls = []
    for step in range(3):
        if step == 1:
            model.enable_gradient_checkpointing()
        elif step == 2:
            model.enable_gradient_checkpointing(lambda block, *args: calls.append(block) or block(*args))
        model.zero_grad()
        model(x).sample.square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert len(calls) == 6, "two stages and the middle, in the encoder and in the decoder"
    for other in gradients[1:]:
        for a, b in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(a, b)
    model.disable_gradient_checkpointing()
    assert not model.is_gradient_checkpointing


def test_attention_backends_agree() -> None:
    model, x = tiny(), torch.randn(1, 3, 16, 16)
    assert list(model.attn_processors) == [
        "encoder.mid_block.attentions.0.processor",
        "decoder.mid_block.attentions.0.processor",
    ]
    with torch.no_grad():
        first = model(x).sample
        model.set_attention_backend("eager")
        torch.testing.assert_close(model(x).sample, first, atol=1e-5, rtol=0)
    model.reset_attention_backend()
    with pytest.raises(ConfigError, match="did you mean 'eager'"):
        model.set_attention_backend("eagr")


@torch.no_grad()
def test_channels_last_and_bfloat16() -> None:
    model, x = tiny(), torch.randn(1, 3, 16, 16)
    plain = model(x).sample
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)).sample, plain, atol=1e-5, rtol=0)
    assert model.to(torch.bfloat16)(x.bfloat16()).sample.dtype == torch.bfloat16


@torch.no_grad()
def test_it_compiles_to_one_graph() -> None:
    model, x = tiny(), torch.randn(1, 3, 16, 16)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x).sample, model(x).sample)


def test_wrong_input_is_named() -> None:
    with pytest.raises(InputError, match=r"picture batch of shape \(B, 3, H, W\).*\(1, 4, 8, 8\)"):
        tiny().encode(torch.zeros(1, 4, 8, 8))
    with pytest.raises(InputError, match=r"latent batch"):
        tiny().decode(torch.zeros(4, 8, 8))
    with pytest.raises(ConfigError, match="did you mean 'DownEncoderBlock2D'"):
        tiny(down_block_types=["DownEncoderBlok2D"] * 2)
    with pytest.raises(ConfigError, match="1 blocks and block_out_channels gives 2"):
        tiny(up_block_types=[UP])
    with pytest.raises(ConfigError, match="did you mean 'latent_channels'"):
        tiny(latent_chanels=4)
