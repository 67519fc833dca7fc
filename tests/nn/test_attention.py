"""Attention: backends agree, the peer agrees, documented processors and users' own work."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from langevin.core.errors import ConfigError, InputError, MissingDependencyError
from langevin.core.imports import is_available
from langevin.models.unets.unet_2d_condition import UNet2DConditionModel
from langevin.nn import backends
from langevin.nn import processors as P
from langevin.nn.attention import Attention
from langevin.nn.backends import attend
from langevin.nn.transformer import BasicTransformerBlock, FeedForward
from tests.models.tiny import TINY, noise


def call(model: nn.Module, **more: Any) -> Tensor:
    with torch.no_grad():
        return model(noise(2, 4, 8, 8), 5, noise(2, 7, 16, seed=1), **more).sample


@pytest.fixture
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**TINY).eval()


MASKS = {
    "none": None,
    "boolean": noise(2, 1, 1, 9) > -0.5,
    "additive": noise(2, 1, 1, 9),
    "full": noise(2, 4, 5, 9) > -1,
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("backend", ["sdpa", "eager", "eager_fp32"])
@pytest.mark.parametrize("slice_size", [None, 1, 3, 100])
def test_backends_agree(mask: str, backend: str, slice_size: int | None) -> None:
    q, k, v = noise(2, 4, 5, 8), noise(2, 4, 9, 8, seed=1), noise(2, 4, 9, 8, seed=2)
    scores = q @ k.transpose(-1, -2) * 0.3
    given = MASKS[mask]
    if given is not None:
        scores = scores.masked_fill(~given, float("-inf")) if given.dtype == torch.bool else scores + given
    expected = scores.softmax(-1) @ v
    out = attend(q, k, v, given, scale=0.3, backend=backend, slice_size=slice_size)
    assert torch.allclose(out, expected, atol=1e-6)


def test_default_backend_can_be_changed_for_a_while() -> None:
    assert backends.get_attention_backend() == "sdpa"
    with backends.attention_backend("math"):
        assert backends.get_attention_backend() == "eager"
    assert backends.get_attention_backend() == "sdpa"
    with pytest.raises(ConfigError, match="'eager'"):
        backends.set_attention_backend("eagre")


def test_fp32_scores_survive_where_half_precision_overflows() -> None:
    attn = Attention(16, heads=2, dim_head=8, upcast_attention=True).to(torch.float16)
    with torch.no_grad():
        attn.to_q.weight.mul_(600)
        attn.to_k.weight.mul_(600)
    attn.backend = "eager"
    x = noise(1, 6, 16).half()
    assert torch.isfinite(attn(x)).all()
    attn.upcast_attention = False
    assert not torch.isfinite(attn(x)).all()


KINDS: dict[str, dict[str, Any]] = {
    "self": {"query_dim": 32, "heads": 4, "dim_head": 8},
    "cross": {"query_dim": 32, "cross_attention_dim": 16, "heads": 4, "dim_head": 8},
    "tokens": {
        "query_dim": 32,
        "heads": 1,
        "dim_head": 32,
        "norm_num_groups": 8,
        "eps": 1e-6,
        "bias": True,
        "residual_connection": True,
        "rescale_output_factor": 2.0,
    },
    "added": {
        "query_dim": 32,
        "cross_attention_dim": 32,
        "heads": 4,
        "dim_head": 8,
        "added_kv_proj_dim": 32,
        "norm_num_groups": 8,
        "bias": True,
        "upcast_softmax": True,
        "residual_connection": True,
        "cross_attention_norm": "group_norm",
    },
}
KINDS["added-only"] = {**KINDS["added"], "only_cross_attention": True}


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [False, True])
def test_module_equals_the_peer(kind: str, masked: bool) -> None:
    peer = importlib.import_module("diffusers.models.attention_processor")
    options, added = KINDS[kind], kind.startswith("added")
    theirs = peer.Attention(**options, processor=peer.AttnAddedKVProcessor() if added else None).eval()
    ours = Attention(**options).eval()
    ours.load_state_dict(theirs.state_dict())
    x = noise(2, 32, 4, 4) if added or kind == "tokens" else noise(2, 9, 32)
    context = noise(2, 7, 32 if added else 16, seed=1) if added or kind == "cross" else None
    mask = None
    if masked:
        keys = 16 if kind == "tokens" else 9 if context is None else 7
        mask = (noise(2, 1, keys, seed=2) < 0) * -10000.0
    if masked and kind == "added-only":
        pytest.skip("the peer pads the mask for keys that this kind does not have")
    choices = [ours.get_processor(), P.AttnProcessor(), P.SlicedAttnProcessor(3)]
    with torch.no_grad():
        expected = theirs(x, context, attention_mask=mask)
        for processor in choices:
            ours.set_processor(processor)
            assert torch.allclose(ours(x, context, mask), expected, atol=2e-6), processor


class OwnProcessor:
    """The attention of a user, written with the documented helpers of the module."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        strength: float = 1.0,
    ) -> Tensor:
        self.calls += 1
        batch, length, _ = hidden_states.shape if encoder_hidden_states is None else encoder_hidden_states.shape
        attention_mask = attn.prepare_attention_mask(attention_mask, length, batch)
        q = attn.head_to_batch_dim(attn.to_q(hidden_states))
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if attn.norm_cross and encoder_hidden_states is not None:
            source = attn.norm_encoder_hidden_states(source)
        k, v = attn.head_to_batch_dim(attn.to_k(source)), attn.head_to_batch_dim(attn.to_v(source))
        weights = attn.get_attention_scores(q, k, attention_mask)
        out = attn.to_out[0](attn.batch_to_head_dim(torch.bmm(weights, v))) * strength
        return attn.to_out[1](out) / attn.rescale_output_factor


def test_own_processor(unet: UNet2DConditionModel) -> None:
    expected = call(unet, encoder_attention_mask=torch.tensor([[1] * 4 + [0] * 3, [1] * 7]))
    own = OwnProcessor()
    unet.set_attn_processor(own)
    out = call(unet, encoder_attention_mask=torch.tensor([[1] * 4 + [0] * 3, [1] * 7]))
    assert torch.allclose(out, expected, atol=1e-5)
    assert own.calls == len(unet.attn_processors)
    assert not torch.allclose(call(unet, cross_attention_kwargs={"strength": 0.0}), call(unet), atol=1e-3)


@pytest.mark.parity
def test_processors_of_the_peer_work_here(unet: UNet2DConditionModel) -> None:
    peer = importlib.import_module("diffusers.models.attention_processor")
    expected = call(unet)
    for processor in (peer.AttnProcessor(), peer.AttnProcessor2_0(), peer.SlicedAttnProcessor(2)):
        unet.set_attn_processor(processor)
        assert torch.allclose(call(unet), expected, atol=1e-5)


@pytest.mark.parity
def test_documented_keys(unet: UNet2DConditionModel) -> None:
    peer = importlib.import_module("diffusers").UNet2DConditionModel(**TINY)
    assert set(unet.attn_processors) == set(peer.attn_processors)
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor" in unet.attn_processors


def test_processors_from_a_dictionary(unet: UNet2DConditionModel) -> None:
    chosen = {name: P.AttnProcessor() if "attn2" in name else P.AttnProcessor2_0() for name in unet.attn_processors}
    unet.set_attn_processor(chosen)
    assert unet.attn_processors == chosen
    name = next(iter(chosen))
    with pytest.raises(ConfigError, match="missing"):
        unet.set_attn_processor({name: P.AttnProcessor()})
    with pytest.raises(ConfigError, match="did you mean"):
        unet.set_attn_processor({**chosen, name.replace("down", "donw"): P.AttnProcessor()})
    with pytest.raises(ConfigError, match="callable"):
        unet.set_attn_processor(3)
    unet.set_default_attn_processor()
    assert all(type(p) is P.AttnProcessor for p in unet.attn_processors.values())


def test_processor_with_weights_is_trained_and_saved(unet: UNet2DConditionModel) -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Parameter(torch.ones(()))

        def forward(self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
                    attention_mask: Tensor | None = None, temb: Tensor | None = None) -> Tensor:  # fmt: skip
            return attn.compute(hidden_states, encoder_hidden_states, attention_mask) * self.gate

    expected = call(unet)
    unet.set_attn_processor({name: Gate() for name in unet.attn_processors})
    assert torch.allclose(call(unet), expected, atol=1e-6)
    assert sum(name.endswith("processor.gate") for name in unet.state_dict()) == len(unet.attn_processors)
    unet.set_attn_processor(P.AttnProcessor2_0())
    assert not any("processor" in name for name in unet.state_dict())


@pytest.mark.parity
@pytest.mark.parametrize("context", [None, 16])
@pytest.mark.parametrize("train_q_out", [False, True])
def test_custom_diffusion(context: int | None, train_q_out: bool) -> None:
    peer = importlib.import_module("diffusers.models.attention_processor")
    options = {"train_kv": True, "train_q_out": train_q_out, "hidden_size": 32, "cross_attention_dim": context}
    theirs = peer.Attention(32, context, heads=4, dim_head=8)
    ours = Attention(32, context, heads=4, dim_head=8)
    ours.load_state_dict(theirs.state_dict())
    theirs.set_processor(peer.CustomDiffusionAttnProcessor(**options))
    ours.set_processor(P.CustomDiffusionAttnProcessor(**options))
    ours.load_state_dict(theirs.state_dict())
    text = None if context is None else noise(2, 7, 16, seed=1)
    outputs = [attn(noise(2, 9, 32), text) for attn in (theirs, ours)]
    assert torch.allclose(*outputs, atol=1e-6)
    for out in outputs:
        out.square().sum().backward()
    a, b = (attn.processor.to_k_custom_diffusion.weight.grad for attn in (theirs, ours))
    assert torch.allclose(a, b, atol=1e-4)


def test_backend_of_a_model(unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, seen = call(unet), []
    monkeypatch.setitem(backends.BACKENDS, "seen", lambda *args: seen.append(1) or backends.eager(*args))
    unet.set_default_attn_processor()
    unet.set_attention_backend("seen")
    assert torch.allclose(call(unet), expected, atol=1e-5)
    assert len(seen) == len(unet.attn_processors)
    unet.reset_attention_backend()
    call(unet)
    assert len(seen) == len(unet.attn_processors)
    with pytest.raises(ConfigError, match="sdpa"):
        unet.set_attention_backend("sdp")


@pytest.mark.skipif(is_available("xformers"), reason="xformers is installed")
def test_missing_xformers_is_said_at_once(unet: UNet2DConditionModel) -> None:
    for action in (unet.enable_xformers_memory_efficient_attention, P.XFormersAttnProcessor):
        with pytest.raises(MissingDependencyError, match="pip install xformers"):
            action()
    assert torch.isfinite(call(unet)).all()


def test_slices(unet: UNet2DConditionModel) -> None:
    expected = call(unet)
    count = len(unet.attn_processors)
    for size in ("auto", "max", 2, [1] * count):
        unet.set_attention_slice(size)
        assert torch.allclose(call(unet), expected, atol=1e-5)
    for wrong in (0, 5, [1], "half"):
        with pytest.raises(InputError, match="slice_size"):
            unet.set_attention_slice(wrong)
    unet.set_attention_slice(None)
    assert torch.equal(call(unet), expected)


def test_own_processor_compiles_as_one_graph(unet: UNet2DConditionModel) -> None:
    unet.set_attn_processor(P.AttnProcessor())
    torch._dynamo.reset()
    compiled = torch.compile(unet, backend="eager", fullgraph=True)
    assert torch.allclose(call(compiled), call(unet), atol=1e-6)


def test_mask_longer_than_the_keys_is_refused() -> None:
    with pytest.raises(InputError, match="keys"):
        Attention(16, heads=2, dim_head=8)(noise(1, 4, 16), attention_mask=torch.zeros(1, 1, 5))


def test_contradictory_options() -> None:
    with pytest.raises(ConfigError, match="added_kv_proj_dim"):
        Attention(16, heads=2, dim_head=8, only_cross_attention=True)
    with pytest.raises(ConfigError, match="'layer_norm'"):
        Attention(16, heads=2, dim_head=8, cross_attention_norm="layernorm")


def test_masks_of_few_dimensions_and_of_another_type() -> None:
    q, k, v = (noise(2, 4, 5, 8, seed=i) for i in range(3))
    mask = noise(5, 5, seed=3)
    expected = attend(q, k, v, mask.expand(2, 4, 5, 5), backend="eager")
    for found in (attend(q, k, v, mask.double()), attend(q, k, v, mask, slice_size=3)):
        assert torch.allclose(found, expected, atol=1e-5)


def test_tokens_are_normalised_like_the_map_they_are() -> None:
    attn = Attention(16, heads=2, dim_head=8, norm_num_groups=4).eval()
    x = noise(2, 16, 3, 5)
    tokens = attn(x.flatten(2).transpose(1, 2))
    assert torch.allclose(tokens, attn(x).flatten(2).transpose(1, 2), atol=1e-6)


def test_dropout_that_training_raises_takes_effect() -> None:
    x = noise(2, 6, 16)
    for layer in (Attention(16, heads=2, dim_head=8), FeedForward(16)):
        assert torch.equal(layer(x), layer(x))
        for module in layer.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.5
        assert not torch.equal(layer(x), layer(x))
        layer.eval()
        assert torch.equal(layer(x), layer(x))


@pytest.mark.parity
def test_a_block_without_a_context_equals_the_peer() -> None:
    peer = importlib.import_module("diffusers.models.attention")
    theirs, ours = peer.BasicTransformerBlock(16, 2, 8).eval(), BasicTransformerBlock(16, 2, 8).eval()
    ours.load_state_dict(theirs.state_dict())
    assert torch.allclose(ours(noise(2, 6, 16)), theirs(noise(2, 6, 16)), atol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize(("length", "out_dim"), [(7, 3), (7, 4), (5, 3)])
def test_documented_masks_equal_the_peer(length: int, out_dim: int) -> None:
    peer = importlib.import_module("diffusers.models.attention_processor")
    theirs, ours, mask = peer.Attention(16, heads=2, dim_head=8), Attention(16, heads=2, dim_head=8), noise(3, 1, 7)
    expected = theirs.prepare_attention_mask(mask, length, 3, out_dim=out_dim)
    assert torch.equal(ours.prepare_attention_mask(mask, length, 3, out_dim=out_dim), expected)


def test_what_documented_processors_may_ask_in_vain() -> None:
    attn = Attention(16, heads=2, dim_head=8)
    with pytest.raises(ConfigError, match="no norm_cross"):
        attn.norm_encoder_hidden_states(noise(1, 3, 16))
    with pytest.raises(ConfigError, match="needs hidden_size"):
        P.CustomDiffusionAttnProcessor()
    attn.set_processor(min)  # a function that does not say what it accepts
    assert attn._accepts is None
    assert repr(P.SlicedAttnProcessor(3)) == "SlicedAttnProcessor(3)" and repr(P.AttnProcessor()) == "AttnProcessor()"
