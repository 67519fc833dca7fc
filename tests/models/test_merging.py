"""Token merging: what is merged and where it goes, the authors' own numbers, and their package on our networks."""

from __future__ import annotations

import pytest
import tomesd
import torch
from tomesd.merge import bipartite_soft_matching_random2d

import langevin
from langevin.core.errors import ConfigError, InputError
from langevin.nn.merging import TokenMerging, merging, split
from langevin.picturebook import model_folder
from tests.pipelines import tiny

CALL = {"prompt": "a red house", "num_inference_steps": 2, "output_type": "np", "seed": 0, "guidance_scale": 2.0}


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return langevin.UNet2DConditionModel(**tiny.UNET).eval()


@pytest.fixture
def given():
    torch.manual_seed(1)
    return torch.randn(2, 4, 8, 8), 10, torch.randn(2, 7, tiny.WIDTH)


@pytest.fixture(scope="module")
def book():
    pipe = langevin.StableDiffusionPipeline.from_pretrained(model_folder())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (2, 2)])
@pytest.mark.parametrize("drawn", [True, False])
def test_one_position_of_each_cell_stays(size, drawn):
    movable, kept = split(size, drawn, torch.device("cpu"))
    height, width = size
    assert len(kept) == (height // 2) * (width // 2)
    assert sorted([*movable.tolist(), *kept.tolist()]) == list(range(height * width))
    cells = {(int(k) // width // 2, int(k) % width // 2) for k in kept}
    assert len(cells) == len(kept)


def test_positions_look_drawn():
    height = width = 64
    kept = split((height, width), True, torch.device("cpu"))[1]
    kept = kept[((kept // width // 2) * width + kept % width // 2).argsort()]
    offsets = (kept // width % 2) * 2 + kept % 2
    counts = torch.bincount(offsets, minlength=4)
    assert (counts - 256).abs().max() < 60
    same = (offsets[1:] == offsets[:-1]).float().mean()
    assert 0.15 < same < 0.35


@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
@pytest.mark.parametrize("count", [0, 3, 10, 1000])
def test_the_authors_numbers(size, count):
    torch.manual_seed(count)
    x, y = torch.randn(2, 2, size[0] * size[1], 5)
    height, width = size
    theirs = bipartite_soft_matching_random2d(x, width, height, 2, 2, count, no_rand=True)
    ours = merging(x, size, count, drawn=False)
    assert ours[0](y).shape[1] == y.shape[1] - min(count, y.shape[1] - (height // 2) * (width // 2))
    assert torch.allclose(ours[1](ours[0](y) ** 2), theirs[1](theirs[0](y) ** 2), atol=1e-6)


def test_equal_tokens_lose_nothing():
    rows, columns = torch.arange(4)[:, None] // 2, torch.arange(4)[None, :] // 2
    cell = (rows * 2 + columns).flatten()
    x, y = torch.randn(4, 3)[cell][None], torch.randn(4, 5)[cell][None]
    merge, spread = merging(x, (4, 4), 12)
    assert merge(y).shape == (1, 4, 5)
    assert torch.allclose(spread(merge(y)), y, atol=1e-6)


def test_only_the_first_level_and_back(unet, given):
    with torch.no_grad():
        plain = unet(*given).sample
        unet.enable_token_merging(0.5)
        assert {shrunk for shrunk, block in unet._transformers() if block.merging is not None} == {1}
        made = unet(*given).sample
        assert torch.isfinite(made).all() and not torch.allclose(made, plain)
        unet.enable_token_merging(0.01)
        assert torch.allclose(unet(*given).sample, plain, atol=1e-6)
        unet.enable_token_merging(0.5, cross=True, feed_forward=True)
        assert not torch.allclose(unet(*given).sample, made)
        unet.disable_token_merging()
        assert torch.equal(unet(*given).sample, plain)


def test_one_graph(unet, given):
    unet.enable_token_merging(0.5)
    with torch.no_grad():
        made = torch.compile(unet, backend="eager", fullgraph=True)(*given).sample
        assert torch.allclose(made, unet(*given).sample, atol=1e-6)


def test_the_package_of_the_authors_works_on_pipelines(book):
    plain = book(**CALL).images
    tomesd.apply_patch(book, ratio=0.5, max_downsample=2)
    try:
        made = book(**CALL).images
        assert abs(made - plain).max() > 1e-3
        book(**CALL, cross_attention_kwargs={})
    finally:
        tomesd.remove_patch(book)
    assert (book(**CALL).images == plain).all()


def test_our_own_agrees_with_the_package(book, monkeypatch):
    tomesd.apply_patch(book, ratio=0.5, max_downsample=2, use_rand=False)
    try:
        wanted = book(**CALL).images
    finally:
        tomesd.remove_patch(book)
    book.enable_token_merging(0.5, 2)
    merged = [block for _, block in book.unet._transformers() if block.merging is not None]
    assert merged
    for block in merged:
        block.merging = TokenMerging(0.5, drawn=False)
    made = book(**CALL).images
    book.disable_token_merging()
    assert abs(made - wanted).max() < 1e-4


def test_what_cannot_be_is_said(unet):
    for ratio in (0, 0.8, -1):
        with pytest.raises(InputError, match="ratio"):
            unet.enable_token_merging(ratio)
    with pytest.raises(ConfigError, match="max_downsample=1"):
        unet.enable_token_merging(0.5, 0)
    pixels = langevin.UNet2DConditionModel(
        **{**tiny.UNET, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
           "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
    )  # fmt: skip
    with pytest.raises(ConfigError, match="max_downsample=2"):
        pixels.enable_token_merging(0.5)
