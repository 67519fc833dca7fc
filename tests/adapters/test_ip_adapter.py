"""IP-Adapters on a UNet: published files, what they attach, and that nothing is left of them."""

from __future__ import annotations

import copy
import hashlib

import pytest
import torch
import torch._dynamo.testing
from diffusers.image_processor import IPAdapterMaskProcessor as PeerMasks

import langevin
from langevin.adapters import ip_adapter as adapters
from langevin.adapters.stack import Stack
from langevin.core.errors import ConfigError, InputError, WeightsError
from langevin.core.weights_io import Entry
from langevin.models.attention_processor import AttnProcessor, AttnProcessor2_0, IPAdapterAttnProcessor
from langevin.nn.ip_processors import downsample_mask, masks_of
from langevin.weights.dialects.ip_adapter import parse, probe
from tests.data.published_configs import SD15, SDXL
from tests.pipelines import ip_adapters as ip
from tests.pipelines import tiny

VIT_H = {"embeds": 1024, "sees": 1280, "face": 512}
SD = {**VIT_H, "width": 768, "inner": 768}
XL = {**VIT_H, "width": 1280, "inner": 1280}
PUBLISHED = [
    ("ip-adapter_sd15", "sd", "base", SD, 4),
    ("ip-adapter-plus_sd15", "sd", "plus", {**SD, "tokens": 16}, 16),
    ("ip-adapter-plus-face_sd15", "sd", "plus", {**SD, "tokens": 16}, 16),
    ("ip-adapter-full-face_sd15", "sd", "full-face", SD, None),
    ("ip-adapter_sdxl", "xl", "base", {**XL, "embeds": 1280}, 4),
    ("ip-adapter_sdxl_vit-h", "xl", "base", XL, 4),
    ("ip-adapter-plus_sdxl_vit-h", "xl", "plus", {**XL, "tokens": 16}, 16),
    ("ip-adapter-faceid_sd15", "sd", "faceid", SD, 4),
    ("ip-adapter-faceid-portrait_sd15", "sd", "faceid", {**SD, "tokens": 16}, 16),
    ("ip-adapter-faceid_sdxl", "xl", "faceid", XL, 4),
    ("ip-adapter-faceid-plusv2_sd15", "sd", "faceid-plus", SD, 4),
    ("ip-adapter-faceid-plusv2_sdxl", "xl", "faceid-plus", {**XL, "inner": 2048}, 4),
]
"""Name of a published file, its family, kind, widths, and tokens per picture."""


@pytest.fixture(scope="module")
def full_size():
    """UNets of both families without values."""
    with torch.device("meta"):
        return {
            "sd": langevin.UNet2DConditionModel(**SD15),
            "xl": langevin.UNet2DConditionModel(**SDXL),
        }


@pytest.fixture
def unet():
    """A tiny UNet."""
    torch.manual_seed(0)
    return langevin.UNet2DConditionModel(**tiny.UNET).eval()


def pictures(rows: int = 2, count: int = 1, width: int = ip.EMBEDS) -> list[torch.Tensor]:
    """Return the embeddings of pictures for one adapter."""
    return [torch.randn(rows, count, width, generator=torch.Generator().manual_seed(9))]


def run(unet, shown=None, **more) -> torch.Tensor:
    """Return what a UNet makes of fixed input, with embeddings of pictures or without."""
    generator = torch.Generator().manual_seed(4)
    x, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, tiny.WIDTH, generator=generator)
    added = {} if shown is None else {"added_cond_kwargs": {"image_embeds": shown}}
    with torch.no_grad():
        return unet(x, 7, text, **added, **more).sample


def digest(module) -> str:
    """Return a hash of names and values of a state dict."""
    found = hashlib.sha256()
    for name, value in module.state_dict().items():
        found.update(name.encode() + value.numpy().tobytes())
    return found.hexdigest()


@pytest.mark.parametrize(("name", "family", "kind", "sizes", "tokens"), PUBLISHED, ids=lambda value: str(value)[:32])
def test_published_files(full_size, name, family, kind, sizes, tokens) -> None:
    unet = full_size[family]
    context = unet.config.cross_attention_dim
    shapes = ip.projection(kind, context, **sizes)
    state = {"image_proj": shapes, "ip_adapter": ip.attention(unet, lora=128 if "faceid" in kind else 0)}
    state = {
        f"{part}.{key}": torch.empty(s, device="meta") for part, inside in state.items() for key, s in inside.items()
    }
    found = parse(state)
    assert (found.kind.name, found.tokens, len(found.attention)) == (kind, tokens, 16 if family == "sd" else 70)
    module = adapters.projection_of(found)
    assert {key: tuple(value.shape) for key, value in module.state_dict().items()} == found.shapes
    seen = probe({key: Entry(value.dtype, tuple(value.shape), 0, 0) for key, value in state.items()}, {})
    assert (seen.kind, seen.dialect, seen.family) == ("ip-adapter", kind, {"sd": "sd1", "xl": "sdxl"}[family])
    assert seen.details["attentions"] == len(found.attention)
    given = torch.empty(2, *((257, 1280) if kind in ("plus", "full-face") else (sizes["embeds"],)), device="meta")
    if found.kind.face:
        given = torch.empty(2, 512, device="meta")
    if kind == "faceid-plus":
        module.clip_embeds = torch.empty(2, 1, 257, 1280, device="meta")
    assert module(given).shape == (2, tokens or 257, context)
    if found.lora:
        layers = found.lora_of(adapters.numbered(unet))["unet"]
        assert len(layers) == 4 * len(adapters.numbered(unet))
        assert all(unet.get_submodule(path).weight.shape[1] == p.tensors["down"].shape[1] for path, p in layers.items())


def test_nothing_is_left_of_an_adapter(unet) -> None:
    names, before, hash_before, config = list(unet.state_dict()), run(unet), digest(unet), dict(unet.config)
    kept = unet.attn_processors
    adapters.attach(unet, [parse(ip.adapter("plus", unet)), parse(ip.adapter("base", unet))])
    shown = [torch.randn(2, 1, 5, ip.SEES), *pictures()]
    assert not torch.allclose(run(unet, shown), before, atol=1e-3)
    assert torch.equal(run(unet), before), "without pictures the network is as without adapters"
    assert list(unet.state_dict()) == names and digest(unet) == hash_before and dict(unet.config) == config
    unet.load_state_dict(unet.state_dict())
    assert adapters.detach(unet) and not adapters.detach(unet)
    assert all(unet.attn_processors[name] is kept[name] for name in kept) and unet.encoder_hid_proj is None
    assert digest(unet) == hash_before and torch.equal(run(unet), before)
    assert {name for name, _ in unet.named_modules()} == {name for name, _ in copy.deepcopy(unet).named_modules()}
    assert not any("_ip" in name for name, _ in unet.named_parameters())


def test_a_network_is_saved_without_its_adapters(unet, tmp_path) -> None:
    hash_before = digest(unet)
    adapters.attach(unet, [parse(ip.adapter("base", unet))])
    unet.save_pretrained(tmp_path)
    assert digest(langevin.UNet2DConditionModel.from_pretrained(tmp_path)) == hash_before


def test_an_adapter_keeps_its_own_state_dict(unet) -> None:
    state = ip.adapter("base", unet)
    adapters.attach(unet, [parse(state)])
    processor = adapters.processors(unet)[adapters.numbered(unet)[1]]
    assert torch.equal(processor.state_dict()["to_k_ip.0.weight"], state["ip_adapter"]["1.to_k_ip.weight"])
    assert unet.encoder_hid_proj.state_dict()
    with pytest.raises(RuntimeError, match="Missing"):
        processor.load_state_dict({})


def test_a_second_load_replaces_the_first(unet) -> None:
    adapters.attach(unet, [parse(ip.adapter("plus", unet, seed=1))])
    adapters.attach(unet, [parse(ip.adapter("base", unet, seed=2))])
    second = run(unet, pictures())
    adapters.detach(unet)
    adapters.attach(unet, [parse(ip.adapter("base", unet, seed=2))])
    assert torch.equal(run(unet, pictures()), second)


def test_one_scale_serves_all_adapters(unet) -> None:
    adapters.attach(unet, [parse(ip.adapter("base", unet, seed=k)) for k in range(2)])
    for scale in (0.6, {"up": 0.6, "down": 0.6, "mid": 0.6}, [0.6, 0.6]):
        adapters.set_scale(unet, scale)
        assert {p.scale for p in adapters.processors(unet).values()} == {(0.6, 0.6)}


def test_adapters_move_with_the_network(unet) -> None:
    adapters.attach(unet, [parse(ip.adapter("base", unet))])
    adapters.set_scale(unet, 0.6)
    unet.to(torch.bfloat16)
    processor = next(iter(adapters.processors(unet).values()))
    assert processor.to_k_ip[0].weight.dtype == torch.bfloat16 and processor.scale == (0.6,)
    assert processor.scale_0.dtype == torch.float32, "half precision rounds a scale"


def test_an_adapter_comes_in_the_type_of_the_network(unet) -> None:
    adapters.attach(unet.half(), [parse(ip.adapter("base", unet))])
    assert {weight.dtype for weight in unet.parameters()} == {torch.float16}


def test_plain_processors_stay_plain(unet) -> None:
    unet.set_attn_processor(AttnProcessor())
    adapters.attach(unet, [parse(ip.adapter("base", unet))])
    assert {p.backend for p in adapters.processors(unet).values()} == {"eager"}
    plain = run(unet, pictures())
    adapters.detach(unet)
    assert {type(each) for each in unet.attn_processors.values()} == {AttnProcessor}
    unet.set_attn_processor(AttnProcessor2_0())
    adapters.attach(unet, [parse(ip.adapter("base", unet))])
    assert torch.allclose(run(unet, pictures()), plain, atol=1e-5)


def test_processors_of_others_are_not_overwritten(unet) -> None:
    class Mine:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
            return attn.compute(hidden_states, encoder_hidden_states, attention_mask)

    unet.set_attn_processor(Mine())
    with pytest.raises(ConfigError, match="Mine"):
        adapters.attach(unet, [parse(ip.adapter("base", unet))])


def test_replaced_processors_are_noticed(unet) -> None:
    adapters.attach(unet, [parse(ip.adapter("base", unet))])
    unet.set_attn_processor(AttnProcessor2_0())
    with pytest.raises(ConfigError, match="replaced"):
        adapters.set_scale(unet, 0.5)
    adapters.detach(unet)
    assert unet.encoder_hid_proj is None


def test_a_compiled_network_follows_the_scale(unet) -> None:
    adapters.attach(unet, [parse(ip.adapter("base", unet))])
    counted = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(unet, backend=counted, fullgraph=True)
    for scale in (1.0, 0.3, {"up": 0.5}):
        adapters.set_scale(compiled, scale)
        assert torch.allclose(run(compiled, pictures()), run(unet, pictures()), atol=1e-5)
    assert counted.frame_count == 1


BROKEN = [
    (lambda s: {}, "empty"),
    (lambda s: {"image_proj": s["image_proj"]}, "no `ip_adapter"),
    (lambda s: {"unet.down_blocks.0.lora": torch.zeros(1)}, "no `image_proj"),
    (lambda s: {**s, "image_proj": {"something.weight": torch.zeros(1)}}, "no kind that is known"),
    (lambda s: {**s, "image_proj": {**s["image_proj"], "extra.weight": torch.zeros(1)}}, "extra.weight"),
    (lambda s: {**s, "ip_adapter": {**s["ip_adapter"], "1.to_k_ipp.weight": torch.zeros(1)}}, "to_k_ipp"),
    (lambda s: {**s, "ip_adapter": {k: v for k, v in s["ip_adapter"].items() if k != "1.to_v_ip.weight"}}, "halves: 1"),
]


@pytest.mark.parametrize(("change", "words"), BROKEN, ids=[words for _, words in BROKEN])
def test_files_that_are_no_adapter(unet, change, words) -> None:
    with pytest.raises(WeightsError, match=words):
        parse(change(ip.adapter("base", unet)))


def test_adapters_of_other_networks(unet) -> None:
    before = run(unet)
    other = langevin.UNet2DConditionModel(**{**tiny.UNET, "layers_per_block": 2})
    wide = langevin.UNet2DConditionModel(**{**tiny.UNET, "cross_attention_dim": 40})
    for network, words in ((other, "6 cross-attentions"), (wide, r"needs \(32, 32\)")):
        with pytest.raises(WeightsError, match=words):
            adapters.attach(unet, [parse(ip.adapter("base", network))])
    lacking = ip.adapter("plus", unet)
    del lacking["image_proj"]["layers.0.1.1.weight"]
    with pytest.raises(WeightsError, match="lacks"):
        adapters.attach(unet, [parse(lacking)])
    other = ip.adapter("base", unet)
    other["image_proj"]["norm.weight"] = torch.zeros(3)
    with pytest.raises(WeightsError, match="does not hold the projection of a base"):
        adapters.attach(unet, [parse(other)])
    with pytest.raises(InputError, match="No IP-Adapter was given"):
        adapters.attach(unet, [])
    with pytest.raises(ConfigError, match="No IP-Adapter is loaded"):
        adapters.set_scale(unet, 1.0)
    with pytest.raises(ConfigError, match="UNet2DConditionModel"):
        adapters.attach(langevin.UNet2DModel(**tiny.PIXELS), [parse(ip.adapter("base", unet))])
    assert adapters.attached(unet) is None and torch.equal(run(unet), before)
    assert [adapters.family_of(count)[:23] for count in (16, 70, 4)] == [
        "Stable Diffusion 1 and ",
        "Stable Diffusion XL has",
        "",
    ]


@pytest.mark.parametrize(
    ("scale", "error", "words"),
    [
        ([1.0, 0.5], InputError, "2 scales"),
        ("strong", InputError, "number"),
        (float("nan"), InputError, "finite"),
        ({"up": float("inf")}, InputError, "finite"),
        ({"upp": 1.0}, ConfigError, "did you mean 'up'"),
        ({"up": {"block_0": 1.0}}, ConfigError, "block_1"),
        ({"up": {"block_1": [1.0, 0.5, 0.2]}}, InputError, "3 weights for 2"),
    ],
)
def test_scales_that_make_no_sense(unet, scale, error, words) -> None:
    adapters.attach(unet, [parse(ip.adapter("base", unet))])
    with pytest.raises(error, match=words):
        adapters.set_scale(unet, scale)
    assert {p.scale for p in adapters.processors(unet).values()} == {(1.0,)}


def test_lora_layers_come_and_go_with_a_face(unet) -> None:
    hash_before, before = digest(unet), run(unet)
    adapters.attach(unet, [parse(ip.adapter("faceid", unet, lora=3))])
    assert Stack(unet).names == ["faceid_0"]
    assert not torch.allclose(run(unet), before, atol=1e-4), "the LoRA layers act on the text too"
    adapters.detach(unet)
    assert digest(unet) == hash_before and torch.equal(run(unet), before) and not Stack(unet).names


def test_a_lora_for_all_layers_leaves_out_those_of_adapters(unet) -> None:
    adapters.attach(unet, [parse(ip.adapter("base", unet))])
    unet.add_adapter({"r": 2, "target_modules": "all-linear"}, "one")
    unet.add_adapter({"r": 2, "target_modules": "all-linear"}, "two")
    layers = Stack(unet).layers("one")
    assert layers == Stack(unet).layers("two") and not any("processor" in path or "hid_proj" in path for path in layers)
    adapters.detach(unet)
    unet.delete_adapters(["one", "two"])
    unet.add_adapter({"r": 2, "target_modules": "all-linear"}, "alone")
    assert Stack(unet).layers("alone") == layers


def test_lora_layers_of_all_faces_or_of_none(unet) -> None:
    hash_before = digest(unet)
    good, bad = (ip.adapter("faceid", unet, lora=3, seed=k) for k in range(2))
    name = next(name for name in bad["ip_adapter"] if "lora.down" in name)
    bad["ip_adapter"][name] = bad["ip_adapter"][name][:, :5]
    with pytest.raises(ConfigError, match="made for another model"):
        adapters.attach(unet, [parse(good), parse(bad)])
    assert Stack(unet).names == [] and digest(unet) == hash_before and adapters.attached(unet) is None


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 64), (64, 40), (72, 104)])
def test_masks_shrink_as_the_peer_shrinks_them(height, width) -> None:
    mask = (torch.rand(1, height, width, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    for factor in (1, 2, 4, 8):
        positions = (height // factor) * (width // factor)
        theirs = PeerMasks.downsample(mask, 2, positions, 5)
        assert torch.equal(langevin.IPAdapterMaskProcessor.downsample(mask, 2, positions, 5), theirs)


def test_a_mask_of_another_shape_covers_every_position() -> None:
    assert downsample_mask(torch.ones(1, 10, 30), 35).shape == (1, 35)


def test_masks_that_do_not_fit() -> None:
    for masks, words in (([torch.ones(1, 1, 4, 4)] * 3, "3 entries"), ([torch.ones(4, 4), None], "shape")):
        with pytest.raises(InputError, match=words):
            masks_of(masks, [1, 1])


def test_a_processor_takes_the_documented_pair(unet) -> None:
    attn = unet.get_submodule(adapters.numbered(unet)[1])
    torch.manual_seed(1)
    processor = IPAdapterAttnProcessor(attn.inner_dim, tiny.WIDTH, num_tokens=(2,), scale=0.5)
    x, text, seen = torch.randn(2, 9, attn.inner_dim), torch.randn(2, 5, tiny.WIDTH), torch.randn(2, 1, 2, tiny.WIDTH)
    pair = processor(attn, x, (text, [seen]))
    assert torch.equal(pair, processor(attn, x, text, ip_hidden_states=[seen])) and pair.shape == x.shape
    with pytest.raises(InputError, match="2 entries for 1"):
        processor.scale = [1.0, 2.0]
