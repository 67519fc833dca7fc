"""The way between latents and pictures where the autoencoder's type is not the one that it works in."""

from __future__ import annotations

import torch

import langevin
from langevin.families.latents import LatentSpace
from tests.pipelines import tiny


def test_a_float16_autoencoder_whose_functions_were_replaced_works_in_float32() -> None:
    torch.manual_seed(0)
    vae = langevin.AutoencoderKL(**tiny.VAE).half().eval()
    space = LatentSpace(vae, 4, 16, 16, upcast=True)
    latents = torch.randn(1, 4, 8, 8, dtype=torch.float16)
    with torch.no_grad():
        plain, picture = space.decode(latents), torch.zeros(1, 3, 16, 16, dtype=torch.float16)
        encoded = space.encode(picture, 1, rng=None, mode=True)
        decode, encode = vae.decode, vae.encode
        vae.decode, vae.encode = lambda *given: decode(*given), lambda *given: encode(*given)
        assert plain.dtype == torch.float32 and torch.equal(space.decode(latents), plain)
        assert torch.equal(space.encode(picture, 1, rng=None, mode=True), encoded)
    assert vae.dtype == torch.float16 and "decode" in vars(vae)
