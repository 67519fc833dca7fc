"""Products by oneDNN: equal to torch's up to rounding, used where they are for, and taken back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import langevin
from langevin.core.errors import ConfigError
from langevin.nn import amx, group_norm, tiles
from langevin.nn.attention import Attention
from langevin.nn.backends import attend, attention_backend
from langevin.nn.transformer import FeedForward
from langevin.optimization import chosen, heap, layers, plan, processor, products
from langevin.picturebook import model_folder
from tests.adapters import loras
from tests.models.tiny import TINY, noise
from tests.pipelines.conftest import quiet

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
TYPES = [F32, BF16] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else [F32]
"""In which oneDNN multiplies here."""
TOLERANCE = {F32: 2e-6, BF16: 1e-2}


@pytest.fixture(autouse=True)
def hands_over(monkeypatch):
    """A processor whose products oneDNN computes faster, and that multiplies in bfloat16."""
    monkeypatch.setattr(processor, "HANDED", frozenset({F32, BF16}))
    monkeypatch.setattr(processor, "JOINED", frozenset({F32, BF16}))
    for kernel in (amx, group_norm):
        monkeypatch.setattr(kernel, "supported", lambda: False)
    monkeypatch.setattr(processor, "CONVERTED", frozenset({F16}))


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative L2 distance."""
    return float((a.double() - b.double()).norm() / b.double().norm())


SHAPES = {"square": (128, 128, 160), "one tile": (300, 130, 64), "many tiles": (70, 40000, 8), "odd": (257, 131, 63)}


def heads(queries: int, keys: int, d: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values as attention makes them: heads beside each other in memory."""
    lengths = enumerate((queries, keys, keys))
    return tuple(noise(2, length, 3, d, seed=i).to(dtype).transpose(1, 2) for i, length in lengths)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("strength", [0.2, 20.0])
def test_tiles_are_within_one_more_rounding_than_torch(shape, dtype, masked, strength, monkeypatch):
    """Small scores, and scores whose exponentials without a look at the greatest would be infinite."""
    monkeypatch.setattr(tiles, "FEWEST", 1)
    q, k, v = heads(*shape, dtype)
    mask = None
    if masked:
        mask = noise(2, 1, 1, shape[1], seed=9).to(dtype)
        mask[..., 5:] = mask[..., 5:].masked_fill(mask[..., 5:] > 1, -torch.inf)
    assert tiles.fits(q, k, v, mask)
    wide = None if mask is None else mask.double()
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=wide, scale=strength)
    plain = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=strength)
    found = attend(q, k, v, mask, scale=strength, backend="tiled")
    assert found.shape == plain.shape and found.dtype == dtype
    assert far(found, exact) <= max(1.6 * far(plain, exact), 2e-6)


def test_what_has_no_tiles_is_torchs(monkeypatch):
    monkeypatch.setattr(tiles, "FEWEST", 1 << 21)
    q, k, v = heads(128, 128, 160, F32)
    visible = torch.ones(2, 1, 128, 128, dtype=torch.bool).tril()
    few = tuple(x[:, :, :16] for x in (q, k, v))
    for given in ((q, k, v, visible), (q, k, v, visible[:, :, :1]), (*few, None), (q.half(), k.half(), v.half(), None)):
        assert not tiles.fits(*given)
        wanted = F.scaled_dot_product_attention(*given[:3], attn_mask=given[3])
        assert torch.equal(attend(*given, backend="tiled"), wanted)
    blind = torch.zeros(2, 1, 1, 128)
    blind[1] = -torch.inf
    assert tiles.fits(q, k, v, blind[:1]) and not tiles.fits(q, k, v, blind)
    asked = q.clone().requires_grad_()
    attend(asked, k, v, backend="tiled").sum().backward()
    assert asked.grad is not None and asked.grad.abs().max() > 0
    assert not tiles.fits(*(x.to("meta") for x in (q, k, v)), None)


def test_scores_below_and_above_what_exponentials_hold(monkeypatch):
    """Queries whose scores are all far below zero, all far above, and mixed, in one tile."""
    monkeypatch.setattr(tiles, "FEWEST", 1)
    q, k, v = heads(128, 128, 160, F32)
    k[..., 0], q[..., 0] = 100.0, torch.linspace(-30, 30, 128)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=0.1)
    assert far(attend(q, k, v, scale=0.1, backend="tiled"), exact) < 1e-4


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["geglu", "gelu"])
def test_feed_forward_networks(dtype, bias, kind):
    torch.manual_seed(0)
    net = FeedForward(24, activation_fn=kind, bias=bias).to(dtype).requires_grad_(False)
    x = noise(2, 7, 24).to(dtype)
    plain, exact = net(x), net.double()(x.double())
    net.to(dtype)
    assert {type(layer) for layer in products.quicken(net)} == {products.DirectLinear, products.DirectExpansion}
    for given in (x, x[:, ::2], x.transpose(0, 1)):
        assert far(net(given), net.float()(given.float())) < TOLERANCE[dtype]
        net.to(dtype)
    assert far(net(x), exact) <= max(1.2 * far(plain, exact), 1e-6)
    layers.restore(net.modules())
    assert torch.equal(net(x), plain)


def test_hooks_and_gradients_see_the_whole_projection():
    torch.manual_seed(0)
    net = FeedForward(24).requires_grad_(False)
    x, seen = noise(2, 7, 24), []
    plain = net(x)
    products.quicken(net)
    handle = net.net[0].proj.register_forward_hook(lambda layer, given, out: seen.append(out.shape))
    assert far(net(x), plain) < 1e-6 and seen == [(2, 7, 192)]
    handle.remove()
    net.net[0].proj.weight.requires_grad_()
    net(x).sum().backward()
    assert net.net[0].proj.weight.grad.abs().sum() > 0


def test_attention_leaves_the_choice_to_the_caller():
    torch.manual_seed(0)
    attn = Attention(64, heads=2, dim_head=32).requires_grad_(False)
    products.quicken(attn)
    assert type(attn) is chosen.TiledAttention and attn._backend(None) == "tiled"
    assert attn._backend("eager") == "eager"
    with attention_backend("eager"):
        assert attn._backend(None) is None
    attn.backend = "sdpa"
    assert attn._backend(None) == "sdpa"


@pytest.mark.parametrize("dtype", TYPES)
def test_a_network_and_back(dtype):
    torch.manual_seed(0)
    network = langevin.UNet2DConditionModel(sample_size=16, **TINY).to(dtype).eval()
    given = (noise(2, 4, 16, 16).to(dtype), 3, noise(2, 7, 16, seed=1).to(dtype))
    with torch.no_grad():
        plain = network(*given).sample
        before = {type(m) for m in network.modules()}
        report = plan.optimize(network)
        assert "oneDNN products" in {change.what for change in report}
        assert {products.DirectLinear, products.DirectExpansion, chosen.TiledAttention} <= {
            type(m) for m in network.modules()
        }
        assert far(network(*given).sample, plain) < (5e-6 if dtype == F32 else 2e-2)
        plan.deoptimize(network)
        assert {type(m) for m in network.modules()} == before
        assert torch.equal(network(*given).sample, plain)


@pytest.mark.parametrize("dtype", TYPES)
def test_calls_of_pipelines_use_them_unasked(dtype):
    pipe = quiet(langevin.StableDiffusionPipeline.from_pretrained(model_folder(), torch_dtype=dtype))
    call = {"prompt": "a red house", "num_inference_steps": 2, "output_type": "np", "seed": 0}
    seen = []
    kinds = set(layers.ORIGINAL) - set(heap.KEEPING.values())

    def look(pipe, *rest):
        seen.append({type(m) for net in pipe._networks.values() for m in net.modules()} & kinds)
        return {}

    quick = pipe(**call, callback_on_step_end=look).images
    fused = set(products.QUICK.values())
    assert seen[0] == (fused if dtype == F32 else fused | {layers.PackedConv2d})
    assert not {type(m) for net in pipe._networks.values() for m in net.modules()} & set(layers.ORIGINAL)
    pipe.suits_processor = False
    plain = pipe(**call, callback_on_step_end=look).images
    assert not seen[-1]
    assert (quick != plain).any() and far(*map(torch.from_numpy, (quick, plain))) < TOLERANCE[dtype]
    pipe.suits_processor = True
    pipe.unet.compile(backend="eager")
    pipe(**call, callback_on_step_end=look)
    assert not any(type(m) in layers.ORIGINAL for m in pipe.unet.modules())
    assert seen[-1] == seen[0] - {products.DirectExpansion}


def test_with_a_lora():
    pipe = quiet(langevin.StableDiffusionPipeline.from_pretrained(model_folder()))
    call = {"prompt": "a red house", "num_inference_steps": 2, "output_type": "np", "seed": 0}
    pipe.load_lora_weights(loras.peft({"unet": loras.halves(pipe.unet)}))
    pipe.suits_processor = False
    plain = pipe(**call).images
    pipe.suits_processor = True
    assert 0 < np.abs(pipe(**call).images - plain).max() < 1e-4


@pytest.mark.parametrize(
    ("listed", "capability", "wanted", "joined"),
    [
        ("vendor_id\t: AuthenticAMD\n", "AVX512", {F32, BF16}, {F32, BF16}),
        ("vendor_id\t: GenuineIntel\n", "AVX512", set(), {BF16}),
        ("vendor_id\t: AuthenticAMD\n", "AVX2", set(), set()),
    ],
)
def test_which_processors(monkeypatch, tmp_path, listed, capability, wanted, joined):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{listed}")
    monkeypatch.setattr(processor, "Path", lambda name: tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(processor, "converted", lambda: frozenset({F16}))
    assert processor.handed() == wanted and processor.joined() == joined


def test_an_unknown_backend_is_told_of_tiles():
    with pytest.raises(ConfigError, match="tiled"), attention_backend("tile"):
        pass
