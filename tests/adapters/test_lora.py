"""LoRA on a single network: the documented methods, dense differences by hand, new adapters for training."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace

import peft
import pytest
import torch

import langevin
from langevin.adapters.files import SAFE, open_source
from langevin.adapters.stack import Stack
from langevin.core.errors import ConfigError, InputError, WeightsError
from tests.adapters import loras
from tests.pipelines import tiny

PATH = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.0.resnets.0.conv1"


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return langevin.UNet2DConditionModel(**tiny.UNET).eval()


def call(unet) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    sample, text = (torch.randn(shape, generator=generator) for shape in ((1, 4, 8, 8), (1, 7, tiny.WIDTH)))
    with torch.no_grad():
        return unet(sample, 10, text).sample


def file_of(unet, seed: int = 0, **options) -> dict[str, torch.Tensor]:
    return loras.diffusers({"unet": loras.halves(unet, seed=seed, **options)})


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


# Dense differences ---------------------------------------------------------------------------------------------------


def kohya_layer(path: str, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
    stem = f"lora_unet_{path.replace('.', '_')}"
    return {f"{stem}.{end.replace('__', '.')}": value for end, value in tensors.items()}


def cayley(blocks: torch.Tensor) -> torch.Tensor:
    """Return the orthogonal factor of skew-symmetric blocks, as LyCORIS builds it; it multiplies transposed."""
    skew = blocks - blocks.transpose(-1, -2)
    eye = torch.eye(blocks.shape[-1])
    return torch.block_diag(*((eye + one) @ torch.linalg.inv(eye - one) for one in skew))


def cases(linear: torch.Tensor, conv: torch.Tensor):
    """Yield (name, path, tensors of a file, dense difference) for every algorithm, by formulas written out here."""
    out, inner = linear.shape
    rows, columns = conv.shape[:2]
    down, up, alpha = rand(4, inner), rand(out, 4), torch.tensor(2.0)
    lora = {"lora_down__weight": down, "lora_up__weight": up, "alpha": alpha}
    yield "lora", PATH, lora, 0.5 * up @ down
    yield "lora without alpha", PATH, {"lora_down__weight": down, "lora_up__weight": up}, up @ down
    down, up = rand(4, columns, 3, 3), rand(rows, 4, 1, 1)
    locon = {"lora_down__weight": down, "lora_up__weight": up, "alpha": alpha}
    yield "locon", CONV, locon, 0.5 * torch.einsum("or,ri...->oi...", up[..., 0, 0], down)
    down, mid = rand(4, columns, 1, 1), rand(4, 4, 3, 3)
    cp = {"lora_down__weight": down, "lora_mid__weight": mid, "lora_up__weight": up, "alpha": alpha}
    yield "locon with a core", CONV, cp, 0.5 * torch.einsum("or,rs...,si->oi...", up[..., 0, 0], mid, down[..., 0, 0])
    a, b, c, d = rand(out, 2), rand(2, inner), rand(out, 2, seed=1), rand(2, inner, seed=2)
    loha = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": alpha}
    yield "loha", PATH, loha, (a @ b) * (c @ d)
    one, two, three = rand(4, 2), rand(out // 4, 3), rand(3, inner // 2)
    lokr = {"lokr_w1": one, "lokr_w2_a": two, "lokr_w2_b": three, "alpha": alpha}
    yield "lokr", PATH, lokr, 2 / 3 * torch.kron(one, two @ three)
    whole = rand(out // 4, inner // 2)
    yield "lokr, whole", PATH, {"lokr_w1": one, "lokr_w2": whole, "alpha": alpha}, torch.kron(one, whole)
    yield "full", CONV, {"diff": rand(*conv.shape)}, rand(*conv.shape)
    down, up, size = rand(4, inner), rand(out, 4), rand(out, 1).abs()
    changed = linear + 0.5 * up @ down
    dora = {"lora_down__weight": down, "lora_up__weight": up, "alpha": alpha, "dora_scale": size}
    yield "dora", PATH, dora, size * changed / changed.norm(dim=1, keepdim=True) - linear
    blocks = 0.1 * rand(4, out // 4, out // 4)
    yield "oft", PATH, {"oft_blocks": blocks}, cayley(blocks).T @ linear - linear


def test_dense_differences(unet) -> None:
    for name, path, tensors, expected in cases(
        unet.get_submodule(PATH).weight.data, unet.get_submodule(CONV).weight.data
    ):
        layer = unet.get_submodule(path)
        before = layer.weight.data.clone()
        unet.load_lora_adapter(kohya_layer(path, **tensors), adapter_name="one")
        unet.fuse_lora()
        assert (layer.weight - before - expected).abs().max() < 2e-5, name
        unet.unload_lora()
        assert torch.equal(layer.weight, before), name


# The documented methods ----------------------------------------------------------------------------------------------


def test_load_attn_procs_and_back(unet, tmp_path) -> None:
    plain = call(unet)
    unet.load_attn_procs(file_of(unet))
    styled = call(unet)
    assert unet.active_adapters() == ["default_0"] and not torch.equal(styled, plain)
    unet.save_attn_procs(tmp_path)
    unet.unload_lora()
    assert torch.equal(call(unet), plain) and unet.active_adapters() == []
    unet.load_attn_procs(tmp_path)
    assert torch.equal(call(unet), styled)


def test_a_file_of_both_kinds_gives_its_unet(unet, caplog) -> None:
    text = {"text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight": rand(4, 8)}
    unet.load_attn_procs({**file_of(unet), **text, **{n.replace("down", "up"): rand(8, 4) for n in text}})
    assert unet.active_adapters() == ["default_0"]


def test_weights_active_ones_and_undoing(unet) -> None:
    plain = call(unet)
    for name, seed in (("one", 0), ("two", 5)):
        unet.load_lora_adapter(file_of(unet, seed), prefix="unet", adapter_name=name)
    two = call(unet)
    unet.set_adapter("one")
    one = call(unet)
    unet.set_adapters(["one", "two"], [{"down": 0.0, "mid": 0.0, "up": 0.0}, 1.0])
    assert torch.equal(call(unet), two) or (call(unet) - two).abs().max() < 1e-6
    unet.set_adapters("two", {"down": 0.0, "mid": 0.0, "up": {"block_1": 0.0}})
    assert (call(unet) - plain).abs().max() < 1e-6
    unet.disable_adapters()
    assert torch.equal(call(unet), plain)
    unet.enable_lora()
    unet.delete_adapters("two")
    assert unet.active_adapters() == ["one"] and torch.equal(call(unet), one)
    unet.fuse_lora(lora_scale=0.5, safe_fusing=True)
    assert (call(unet) - one).abs().max() > 1e-4
    unet.unfuse_lora()
    assert torch.equal(call(unet), one)
    with pytest.raises(ConfigError, match="no fused adapter"):
        unet.unfuse_lora()


def test_what_is_left_after_deleting(unet) -> None:
    for name, seed in (("one", 0), ("two", 5)):
        unet.load_lora_adapter(file_of(unet, seed), adapter_name=name)
    unet.set_adapters("two", 0.5)
    unet.delete_adapters("one")
    assert unet.active_adapters() == ["two"] and set(Stack(unet).weights("two").values()) == {0.5}
    unet.load_lora_adapter(file_of(unet), adapter_name="one")
    unet.set_adapters([])
    unet.delete_adapters("two")
    assert unet.active_adapters() == []
    unet.delete_adapters("one")
    assert Stack(unet).names == []


def test_one_kind_of_file_alone(unet, tmp_path) -> None:
    from safetensors.torch import save_file

    save_file(file_of(unet), tmp_path / "a.safetensors")
    torch.save(file_of(unet, 5), tmp_path / "b.bin")
    for safe, name in ((None, "a.safetensors"), (True, "a.safetensors"), (False, "b.bin")):
        assert open_source(tmp_path, use_safetensors=safe).what.endswith(name)
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(InputError, match=r"no adapter file \(\.safetensors\)"):
        open_source(tmp_path, use_safetensors=True)


def test_saved_in_the_names_of_peft(unet, tmp_path) -> None:
    unet.load_lora_adapter(loras.kohya({"unet": loras.halves(unet)}, alpha=1.0), adapter_name="style")
    styled = call(unet)
    unet.save_lora_adapter(tmp_path, adapter_name="style")
    source = open_source(tmp_path)
    assert f"{PATH}.lora_A.weight" in source.state and "lora_alpha" in source.metadata["lora_adapter_metadata"]
    unet.unload_lora()
    unet.load_lora_adapter(tmp_path, prefix=None)
    assert torch.equal(call(unet), styled)
    with pytest.raises(ConfigError, match="valid: default_0"):
        unet.save_lora_adapter(tmp_path, adapter_name="stule")


@pytest.mark.parity
def test_the_peer_reads_what_a_network_saves(unet, tmp_path) -> None:
    import diffusers

    theirs = diffusers.UNet2DConditionModel(**tiny.UNET).eval()
    theirs.load_state_dict(unet.state_dict())
    unet.load_lora_adapter(loras.kohya({"unet": loras.halves(unet)}, alpha=1.0), adapter_name="style")
    unet.save_lora_adapter(tmp_path / "ours", adapter_name="style")
    theirs.load_lora_adapter(tmp_path / "ours", prefix=None, adapter_name="style", weight_name=SAFE)
    assert (call(unet) - call(theirs)).abs().max() < 1e-5
    theirs.save_lora_adapter(tmp_path / "theirs", adapter_name="style")
    styled = call(unet)
    unet.unload_lora()
    unet.load_lora_adapter(tmp_path / "theirs", prefix=None)
    assert torch.equal(call(unet), styled)


def test_a_copy_of_a_network_saves_as_the_network_does(unet, tmp_path) -> None:
    half = {name: t.half() if t.ndim else t for name, t in loras.kohya({"unet": loras.halves(unet)}).items()}
    unet.load_lora_adapter(half)
    for name, model in (("one", unet), ("two", copy.deepcopy(unet))):
        model.save_attn_procs(tmp_path / name)
    one, two = (open_source(tmp_path / name).state for name in ("one", "two"))
    assert one.keys() == two.keys() == half.keys()
    assert all(two[name].dtype == tensor.dtype and torch.equal(two[name], tensor) for name, tensor in half.items())


def test_folders_of_peft(unet, tmp_path) -> None:
    import json

    from safetensors.torch import save_file

    state = loras.peft({"unet": loras.halves(unet)})
    save_file(
        {n.replace("unet.", "base_model.model."): t for n, t in state.items()}, tmp_path / "adapter_model.safetensors"
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 3, "lora_alpha": 6, "peft_type": "LORA"}))
    unet.load_lora_adapter(tmp_path)
    assert {parts.alpha for parts in Stack(unet).parts("default_0").values()} == {6.0}


def test_unknown_options_are_refused(unet) -> None:
    with pytest.raises(ConfigError, match="did you mean 'adapter_name'"):
        unet.load_lora_adapter(file_of(unet), adapter_nam="x")
    with pytest.raises(ConfigError, match="'names'"):
        unet.load_attn_procs(file_of(unet), names=())
    with pytest.raises(WeightsError, match="no effect here"):
        unet.load_lora_adapter({})


# New adapters --------------------------------------------------------------------------------------------------------


def test_a_new_adapter_changes_nothing_and_learns(unet) -> None:
    plain = call(unet)
    unet.requires_grad_(False)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_out.0"], init_lora_weights="gaussian")
    unet.add_adapter(config, "mine")
    assert torch.equal(call(unet), plain) and unet.active_adapters() == ["mine"]
    trained = [p for p in unet.parameters() if p.requires_grad]
    assert len(trained) == 2 * len(loras.targets(unet, ("to_q", "to_out.0")))
    loss = unet(rand(1, 4, 8, 8), 10, rand(1, 7, tiny.WIDTH)).sample.square().mean()
    loss.backward()
    assert all(p.grad is not None for p in trained)
    with torch.no_grad():
        for parameter in trained:
            parameter.sub_(100 * parameter.grad)
    assert not torch.equal(call(unet), plain)
    assert {parts.alpha for parts in Stack(unet).parts("mine").values()} == {8.0}


def test_options_of_a_new_adapter(unet) -> None:
    unet.add_adapter(SimpleNamespace(r=2, target_modules=r".*attn2\.to_[kv]", init_lora_weights=False))
    parts = Stack(unet).parts("default")
    assert all("attn2.to_" in path and part.alpha == 2 for path, part in parts.items())
    assert all(part.tensors["up"].abs().max() > 0 for part in parts.values())
    unet.add_adapter(
        {"r": 2, "target_modules": "all-linear", "exclude_modules": ["to_q"], "rank_pattern": {"to_k": 5}}, "b"
    )
    parts = Stack(unet).parts("b")
    assert parts[PATH.replace("to_q", "to_k")].tensors["down"].shape[0] == 5 and PATH not in parts
    for config, error, message in (
        ({"target_modules": ["to_q"]}, ConfigError, "needs 'r'"),
        ({"r": 0, "target_modules": ["to_q"]}, InputError, "at least 1"),
        ({"r": 2, "target_modules": ["to_qq"]}, ConfigError, "did you mean 'to_q'"),
        ({"r": 2, "target_modules": r".*\.to_qq"}, ConfigError, "names no layer; layers end in: .*to_q"),
        ({"r": 2, "target_modules": ["to_q"], "init_lora_weights": "gausian"}, ConfigError, "gaussian"),
        ({"r": 2, "target_modules": ["to_q"], "lora_dropout": 0.1}, ConfigError, "lora_dropout=0.1"),
    ):
        with pytest.raises(error, match=message):
            unet.add_adapter(config, "c")
    with pytest.raises(InputError, match="'b' is in use"):
        unet.add_adapter({"r": 2, "target_modules": ["to_q"]}, "b")
    assert Stack(unet).names == ["default", "b"]


def test_a_new_bias_begins_at_zero(unet) -> None:
    plain = call(unet)
    unet.add_adapter({"r": 2, "target_modules": ["to_out.0"], "lora_bias": True, "megatron_core": "x", "bias": "none"})
    biases = [part.tensors["bias"] for part in Stack(unet).parts("default").values()]
    assert biases and not any(bias.any() for bias in biases) and torch.equal(call(unet), plain)


def test_names_behind_a_prefix_of_ones_own(unet) -> None:
    state = {name.replace("unet.", "mine."): tensor for name, tensor in file_of(unet).items()}
    unet.load_lora_adapter(file_of(unet))
    styled = call(unet)
    unet.unload_lora()
    unet.load_lora_adapter(state, prefix="mine")
    assert torch.equal(call(unet), styled)
    with pytest.raises(WeightsError):
        unet.load_lora_adapter(state, prefix="yours", adapter_name="other")


def test_ways_of_writing(unet, tmp_path) -> None:
    unet.load_lora_adapter(loras.kohya({"unet": loras.halves(unet)}, alpha=1.0), adapter_name="style")
    state = open_source(loras.kohya({"unet": loras.halves(unet)}, alpha=1.0)).state
    unet.save_attn_procs(tmp_path / "a", safe_serialization=False, weight_name="x.pt")
    own = {"save_function": lambda tensors, path: torch.save(dict(tensors), path)}
    unet.save_attn_procs(tmp_path / "b", weight_name="y.pt", **own)
    for file in (tmp_path / "a" / "x.pt", tmp_path / "b" / "y.pt"):
        held = torch.load(file, weights_only=True)
        assert held.keys() == state.keys() and all(torch.equal(held[name], state[name]) for name in state)
    unet.save_attn_procs(tmp_path / "c", is_main_process=False)
    assert not (tmp_path / "c").exists()
    with pytest.raises(InputError, match="is a file; give the folder"):
        unet.save_attn_procs(tmp_path / "a" / "x.pt")
    with pytest.raises(ConfigError, match="safe_serialization=True"):
        unet.save_attn_procs(tmp_path / "d", safe_serialization=False, dialect="peft")


def test_room_is_made_before_the_first_adapter(unet, caplog) -> None:
    for rank in (0, True, 2.5):
        with pytest.raises(InputError, match="at least 1"):
            unet.enable_lora_hotswap(target_rank=rank)
    unet.load_lora_adapter(file_of(unet), adapter_name="style")
    with pytest.raises(ConfigError, match="check_compiled='ignore'"):
        unet.enable_lora_hotswap()
    with caplog.at_level(logging.WARNING, logger="langevin"):
        unet.enable_lora_hotswap(check_compiled="ignore")
        assert not caplog.records
        unet.enable_lora_hotswap(check_compiled="warn")
    assert "style was loaded before room was made" in caplog.text


def test_a_new_dora_begins_at_the_network(unet) -> None:
    plain = call(unet)
    unet.add_adapter({"r": 2, "target_modules": ["to_q", "conv1"], "use_dora": True})
    assert (call(unet) - plain).abs().max() < 1e-5
