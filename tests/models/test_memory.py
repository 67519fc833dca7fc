"""Layerwise casting and forward chunking: the results of what they say they do, undone without a trace."""

from __future__ import annotations

import copy

import diffusers
import pytest
import torch

import langevin
from langevin.core.errors import ConfigError, InputError, WeightsError
from langevin.models.autoencoders.autoencoder_kl import AutoencoderKL
from langevin.models.unets.unet_2d_condition import UNet2DConditionModel
from langevin.nn.casting import Cast
from langevin.optimization.plan import deoptimize, optimize
from tests.adapters import loras
from tests.pipelines import tiny

SMALL, WIDE = torch.float8_e4m3fn, torch.bfloat16


@pytest.fixture
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**tiny.UNET).eval()


def computed(unet, dtype=torch.float32, rows=2):
    torch.manual_seed(1)
    sample, context = torch.randn(rows, 4, 8, 8), torch.randn(rows, 5, tiny.WIDTH)
    with torch.no_grad():
        return unet(sample.to(dtype), torch.tensor(3), context.to(dtype)).sample


@pytest.mark.parametrize("dtype", [torch.float32, WIDE])
def test_casting_computes_with_the_rounded_weights_and_is_undone(unet, dtype) -> None:
    unet.to(dtype)
    plain, names = copy.deepcopy(unet), list(unet.state_dict())
    before = unet.get_memory_footprint()
    unet.enable_layerwise_casting(storage_dtype=SMALL)
    stored = {name for name, p in unet.named_parameters() if p.dtype == SMALL}
    assert list(unet.state_dict()) == names and unet.dtype == dtype
    assert unet.get_memory_footprint() < 0.6 * before
    for name, parameter in plain.named_parameters():
        if name in stored:
            parameter.data = parameter.data.to(SMALL).to(dtype)
    result = computed(unet, dtype)
    assert torch.equal(result, computed(plain, dtype))
    assert torch.equal(computed(copy.deepcopy(unet), dtype), result)
    unet.disable_layerwise_casting()
    assert not any(isinstance(module, Cast) for module in unet.modules())
    assert {p.dtype for p in unet.parameters()} == {dtype}
    assert torch.equal(computed(unet, dtype), result)


@pytest.mark.parity
@pytest.mark.parametrize("name, config", [("UNet2DConditionModel", tiny.UNET), ("AutoencoderKL", tiny.VAE)])
@pytest.mark.parametrize("pattern", [None, ("conv_in", "time_emb")])
def test_the_same_weights_are_stored_small_as_there(name, config, pattern) -> None:
    ours, theirs = (getattr(library, name)(**config).eval() for library in (langevin, diffusers))
    found = []
    for model in (ours, theirs):
        model.enable_layerwise_casting(SMALL, WIDE, skip_modules_pattern=pattern)
        found.append({key for key, p in model.named_parameters() if p.dtype == SMALL})
    assert found[0] == found[1]
    assert ours.dtype == theirs.dtype == WIDE


def test_a_pipeline_draws_with_stored_weights_and_saves_them(unet, tmp_path) -> None:
    unet.enable_layerwise_casting(skip_modules_classes=(torch.nn.Conv2d,))
    assert unet.conv_in.weight.dtype == unet.conv_in._parameters["weight"].dtype == torch.float32
    assert unet.time_embedding.linear_1._parameters["weight"].dtype == SMALL
    unet.save_pretrained(tmp_path)
    again = UNet2DConditionModel.from_pretrained(tmp_path)
    assert again.dtype == torch.float32
    assert torch.equal(computed(again), computed(unet))


def test_casting_refuses_what_would_be_lost(unet) -> None:
    with pytest.raises(ConfigError, match=r"storage_dtype is torch\.int8; give a floating-point type of 8 bits"):
        unet.enable_layerwise_casting(torch.int8)
    with pytest.raises(ConfigError, match=r"compute_dtype is torch\.float8_e5m2; .*torch\.bfloat16"):
        unet.enable_layerwise_casting(compute_dtype=torch.float8_e5m2)
    with pytest.raises(ConfigError, match="is being trained"):
        unet.train().enable_layerwise_casting()
    unet.eval().enable_layerwise_casting()
    with pytest.raises(ConfigError, match="disable_layerwise_casting"):
        unet.enable_layerwise_casting()
    unet.disable_layerwise_casting()
    optimize(unet)
    with pytest.raises(ConfigError, match="deoptimize"):
        unet.enable_layerwise_casting()
    deoptimize(unet)
    unet.enable_layerwise_casting()
    assert not unet.conv_in._parameters["weight"].requires_grad


def test_adapters_work_unfused(unet) -> None:
    unet.enable_layerwise_casting()
    plain = computed(unet)
    state = {}
    for path, (down, up) in loras.halves(unet).items():
        state |= {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}
    unet.load_lora_adapter(state, prefix=None, adapter_name="style")
    assert not torch.allclose(computed(unet), plain, atol=1e-3)
    with pytest.raises(ConfigError, match="Use them unfused"):
        unet.fuse_lora()
    unet.delete_adapters("style")
    assert torch.equal(computed(unet), plain)
    assert unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q._parameters["weight"].dtype == SMALL


def test_quantised_weights_count_what_they_hold_and_are_not_written(unet, tmp_path) -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    before, weight = unet.get_memory_footprint(), unet.conv_in.weight.data
    unet.conv_in.weight = torch.nn.Parameter(TwoTensor(weight, weight.clone()))
    assert unet.get_memory_footprint() == before + weight.nbytes
    with pytest.raises(WeightsError, match=r"'conv_in.weight' is quantised \(.*\), which weight files do not hold"):
        unet.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_weights_quantised_by_torchao_draw(unet) -> None:
    torchao = pytest.importorskip("torchao.quantization")
    plain, before = computed(unet), unet.get_memory_footprint()
    torchao.quantize_(unet, torchao.Int8WeightOnlyConfig())
    assert unet.dtype == torch.float32
    assert unet.get_memory_footprint() < 0.85 * before
    changed = (computed(unet) - plain).abs().mean()
    assert 0 < changed < 0.02 * plain.abs().mean()


@pytest.mark.parametrize("size, dim", [(None, 0), (1, 0), (7, 1), (64, 1)])
def test_chunks_give_the_same_result(unet, size, dim) -> None:
    whole = computed(unet)
    calls = []
    block = unet.mid_block.attentions[0].transformer_blocks[0]
    block.ff.register_forward_hook(lambda module, args, output: calls.append(args[0].shape))
    unet.enable_forward_chunking(size, dim)
    assert torch.allclose(computed(unet), whole, atol=1e-5)
    assert len(calls) > 1 or size == 64
    calls.clear()
    unet.disable_forward_chunking()
    assert torch.equal(computed(unet), whole)
    assert len(calls) == 1


def test_chunks_that_make_no_sense_are_refused(unet) -> None:
    with pytest.raises(InputError, match="`chunk_size` is 0"):
        unet.enable_forward_chunking(0)
    with pytest.raises(InputError, match="dim is 2; valid: 0, 1"):
        unet.enable_forward_chunking(1, dim=2)
    with pytest.raises(ConfigError, match="AutoencoderKL has no transformer blocks"):
        AutoencoderKL(**tiny.VAE).enable_forward_chunking()
