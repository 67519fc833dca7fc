"""Adapter files in every dialect: what is read, what is refused, and what is written again."""

from __future__ import annotations

import json

import pytest
import torch

from langevin.core.errors import ConfigError, WeightsError
from langevin.core.weights_io import Entry
from langevin.weights.dialects.lora import nearest_name, read
from langevin.weights.dialects.naming import Names, extent, fits, lacking
from langevin.weights.dialects.parts import Parts
from langevin.weights.dialects.probe import probe
from langevin.weights.dialects.words import DIALECTS
from langevin.weights.dialects.writing import written
from langevin.weights.found import FAMILIES

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
UNET = {
    f"{ATTENTION}.to_q": (16, 16),
    f"{ATTENTION}.to_k": (16, 768),
    f"{ATTENTION}.to_out.0": (16, 16),
    "down_blocks.0.attentions.0.proj_in": (16, 16, 1, 1),
    "down_blocks.0.resnets.0.conv1": (16, 8, 3, 3),
    "down_blocks.0.resnets.0.norm1": (8,),
}
TEXT = {f"encoder.layers.0.self_attn.{name}_proj": (12, 12) for name in ("q", "k", "out")}
TARGETS = {"unet": Names(UNET), "text_encoder": Names(TEXT)}


def tensor(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def halves(stem: str, down: str, up: str, shape=(16, 16), rank: int = 4) -> dict[str, torch.Tensor]:
    """Return both halves of a layer under the names that a dialect has for them."""
    out, inner, *kernel = shape
    ones = (1,) * len(kernel)
    return {f"{stem}{down}": tensor(rank, inner, *kernel), f"{stem}{up}": tensor(out, rank, *ones)}


SPELLINGS = {
    "diffusers": (f"unet.{ATTENTION}.to_q", ".lora.down.weight", ".lora.up.weight"),
    "diffusers without prefix": (f"{ATTENTION}.to_q", ".lora.down.weight", ".lora.up.weight"),
    "old": (f"unet.{ATTENTION}.processor.to_q", "_lora.down.weight", "_lora.up.weight"),
    "old without prefix": (f"{ATTENTION}.processor.to_q", "_lora.down.weight", "_lora.up.weight"),
    "peft": (f"unet.{ATTENTION}.to_q", ".lora_A.weight", ".lora_B.weight"),
    "peft with a name": (f"unet.{ATTENTION}.to_q", ".lora_A.style.weight", ".lora_B.style.weight"),
    "peft's wrapper": (f"base_model.model.{ATTENTION}.to_q", ".lora_A.weight", ".lora_B.weight"),
    "peft's wrapper in a component": (f"unet.base_model.model.{ATTENTION}.to_q", ".lora_A.weight", ".lora_B.weight"),
    "kohya": (f"lora_unet_{ATTENTION.replace('.', '_')}_to_q", ".lora_down.weight", ".lora_up.weight"),
    "lycoris": (f"lycoris_{ATTENTION.replace('.', '_')}_to_q", ".lora_down.weight", ".lora_up.weight"),
}


@pytest.mark.parametrize("stem, down, up", SPELLINGS.values(), ids=SPELLINGS)
def test_a_layer_under_every_name(stem, down, up) -> None:
    state = halves(stem, down, up)
    found = read(state, TARGETS)
    parts = found.adapter["unet"][f"{ATTENTION}.to_q"]
    assert parts.algorithm == "lora" and parts.alpha is None
    assert torch.equal(parts.tensors["down"], state[f"{stem}{down}"])
    assert torch.equal(parts.tensors["up"], state[f"{stem}{up}"])
    assert sorted(found.report.applied) == sorted(state) == sorted(parts.stored)


@pytest.mark.parametrize(
    "stem, down, up",
    [
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", ".lora_linear_layer.down.weight", "up"),
        ("text_encoder.encoder.layers.0.self_attn.q_proj", ".lora_linear_layer.down.weight", "up"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.to_q", "_lora.down.weight", "up"),
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", ".lora_down.weight", "up"),
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", ".lora_down.weight", "up"),
        ("text_model.encoder.layers.0.self_attn.q_proj", ".lora_A.weight", ".lora_B.weight"),
    ],
)
def test_text_encoders_with_and_without_their_text_model(stem, down, up) -> None:
    up = down.replace("down", "up") if up == "up" else up
    found = read(halves(stem, down, up, (12, 12)), TARGETS)
    assert list(found.adapter["text_encoder"]) == ["encoder.layers.0.self_attn.q_proj"]


def test_to_out_of_the_first_dialect_is_the_linear_layer() -> None:
    found = read(halves(f"{ATTENTION}.processor.to_out", "_lora.down.weight", "_lora.up.weight"), TARGETS)
    assert list(found.adapter["unet"]) == [f"{ATTENTION}.to_out.0"]


KOHYA = "lora_unet_down_blocks_0_resnets_0_conv1"
MORE = {
    "loha": {"hada_w1_a": (16, 2), "hada_w1_b": (2, 72), "hada_w2_a": (16, 2), "hada_w2_b": (2, 72)},
    "loha with a core": {
        **{"hada_t1": (2, 2, 3, 3), "hada_w1_a": (2, 16), "hada_w1_b": (2, 8)},
        **{"hada_t2": (2, 2, 3, 3), "hada_w2_a": (2, 16), "hada_w2_b": (2, 8)},
    },
    "lokr": {"lokr_w1": (4, 2), "lokr_w2_a": (4, 3), "lokr_w2_b": (3, 36)},
    "lokr with a core": {"lokr_w1_a": (4, 1), "lokr_w1_b": (1, 2), "lokr_t2": (3, 3, 3, 3), "lokr_w2_a": (3, 4)}
    | {"lokr_w2_b": (3, 4)},
    "lokr, whole factors": {"lokr_w1": (4, 2), "lokr_w2": (4, 4, 3, 3)},
    "oft": {"oft_blocks": (4, 4, 4)},
    "oft by its old name": {"oft_diag": (4, 4, 4)},
    "full": {"diff": (16, 8, 3, 3), "diff_b": (16,)},
    "locon": {"lora_down.weight": (4, 8, 3, 3), "lora_up.weight": (16, 4, 1, 1)},
    "locon with a core": {"lora_down.weight": (4, 8, 1, 1), "lora_mid.weight": (4, 4, 3, 3)}
    | {"lora_up.weight": (16, 4, 1, 1)},
    "dora": {"lora_down.weight": (4, 8, 3, 3), "lora_up.weight": (16, 4, 1, 1), "dora_scale": (16, 1, 1, 1)},
}


@pytest.mark.parametrize("ends", MORE.values(), ids=MORE)
def test_algorithms_of_lycoris(ends) -> None:
    state = {f"{KOHYA}.{end}": tensor(*shape) for end, shape in ends.items()}
    state[f"{KOHYA}.alpha"] = torch.tensor(2.0)
    found = read(state, TARGETS)
    parts = found.adapter["unet"]["down_blocks.0.resnets.0.conv1"]
    assert parts.alpha == 2.0 and len(parts.tensors) == len(ends)
    assert set(found.report.applied) == set(state) and found.dialect == "kohya"


def test_norms_of_lycoris() -> None:
    stem = "lora_unet_down_blocks_0_resnets_0_norm1"
    state = {f"{stem}.w_norm": tensor(8), f"{stem}.b_norm": tensor(8)}
    parts = read(state, TARGETS).adapter["unet"]["down_blocks.0.resnets.0.norm1"]
    assert (parts.algorithm, set(parts.tensors)) == ("full", {"diff", "diff_bias"})
    assert written({"unet": {"down_blocks.0.resnets.0.norm1": parts}}, "kohya")[0].keys() == state.keys()


def test_names_of_the_original_checkpoint_are_asked_last() -> None:
    asked = []

    def more():
        asked.append(True)
        return {"input_blocks.1.1.transformer_blocks.0.attn2.to_q": f"{ATTENTION}.to_q"}

    targets = {"unet": Names(UNET, more)}
    read(halves(*SPELLINGS["kohya"]), targets)
    assert asked == []
    stem = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_q"
    found = read(halves(stem, ".lora_down.weight", ".lora_up.weight"), targets)
    assert list(found.adapter["unet"]) == [f"{ATTENTION}.to_q"] and asked == [True]


def test_flat_names_are_matched_and_never_guessed() -> None:
    names = {"a_b.c": (16, 16), "a.b_d": (16, 16)}
    for flat, path in (("a_b_c", "a_b.c"), ("a_b_d", "a.b_d")):
        found = read(halves(f"lora_unet_{flat}", ".lora_down.weight", ".lora_up.weight"), {"unet": Names(names)})
        assert list(found.adapter["unet"]) == [path]


# Alpha ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["old", "diffusers", "kohya"])
def test_alpha_beside_a_layer(name) -> None:
    stem, down, up = SPELLINGS[name]
    end = "_lora.alpha" if name == "old" else ".alpha"
    state = {**halves(stem, down, up), f"{stem}{end}": torch.tensor(3.0)}
    assert read(state, TARGETS).adapter["unet"][f"{ATTENTION}.to_q"].alpha == 3.0


@pytest.mark.parametrize(
    "config, alpha",
    [
        ({"unet.r": 4, "unet.lora_alpha": 8}, 8.0),
        ({"r": 4, "lora_alpha": 6}, 6.0),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn2.to_q": 2}}, 2.0),
        ({"unet.lora_alpha": 8, "unet.use_rslora": True}, 16.0),
        ({"text_encoder.lora_alpha": 8}, None),
    ],
)
def test_alpha_in_the_metadata(config, alpha) -> None:
    state = halves(*SPELLINGS["peft"])
    found = read(state, TARGETS, metadata={"lora_adapter_metadata": json.dumps(config)})
    assert found.adapter["unet"][f"{ATTENTION}.to_q"].alpha == alpha


def test_metadata_that_are_no_json() -> None:
    with pytest.raises(WeightsError, match="lora_adapter_metadata"):
        read(halves(*SPELLINGS["peft"]), TARGETS, metadata={"lora_adapter_metadata": "["})


# Refusing ------------------------------------------------------------------------------------------------------------


def test_a_wrong_prefix_names_the_right_one() -> None:
    state = halves(f"lora_unt_{ATTENTION.replace('.', '_')}_to_q", ".lora_down.weight", ".lora_up.weight")
    with pytest.raises(WeightsError, match=f"2 names lead to no layer.*lora_unet_{ATTENTION.replace('.', '_')}_to_q"):
        read(state, TARGETS)


def test_misspelt_halves_name_the_nearest() -> None:
    state = halves(*SPELLINGS["diffusers"])
    state |= halves(f"unet.{ATTENTION}.to_kk", ".lora.down.weight", ".lora.up.weight", (16, 768))
    with pytest.raises(WeightsError, match=rf"nothing was attached.*nearest: 'unet.{ATTENTION}.to_k.lora.down.weight'"):
        read(state, TARGETS)


def test_a_misspelt_end_names_the_nearest() -> None:
    stem = SPELLINGS["kohya"][0]
    with pytest.raises(WeightsError, match=rf"nearest: '{stem}.lora_down.weight'"):
        read(halves(stem, ".lora_dwn.weight", ".lora_up.weight"), TARGETS)


def test_one_half_is_not_a_layer() -> None:
    stem, down, up = SPELLINGS["kohya"]
    state = halves(stem, down, up)
    del state[f"{stem}{up}"]
    with pytest.raises(WeightsError, match=rf"1 tensor is missing \('{stem}.lora_up.weight'\)"):
        read(state, TARGETS)


def test_another_model_is_named() -> None:
    stem = f"lora_unet_{ATTENTION.replace('.', '_')}_to_k"
    with pytest.raises(WeightsError, match=r"another size.*\(16, 768\).*for SDXL"):
        read(halves(stem, ".lora_down.weight", ".lora_up.weight", (16, 2048)), TARGETS)
    flux = halves("transformer.single_transformer_blocks.0.attn.to_q", ".lora_A.weight", ".lora_B.weight")
    with pytest.raises(WeightsError, match="adapter for Flux"):
        read(flux, TARGETS)


@pytest.mark.parametrize(
    "end, name", [("ia3_l", "IA3"), ("a1.weight", "GLoRA"), ("boft_R", "BOFT"), ("oft_r.default", "OFT in PEFT")]
)
def test_other_algorithms_are_named(end, name) -> None:
    with pytest.raises(WeightsError, match=f"{name}.*not supported; supported: LoRA"):
        read({f"{KOHYA}.{end}": tensor(4, 4)}, TARGETS)


def test_blocks_of_boft_are_refused() -> None:
    with pytest.raises(WeightsError, match="BOFT"):
        read({f"{KOHYA}.oft_blocks": tensor(2, 4, 4, 4)}, TARGETS)


def test_two_algorithms_in_one_layer_are_refused() -> None:
    state = halves(*SPELLINGS["kohya"]) | {f"{SPELLINGS['kohya'][0]}.hada_w1_a": tensor(16, 2)}
    with pytest.raises(WeightsError, match="mixes"):
        read(state, TARGETS)


def test_two_adapters_in_one_file_are_refused() -> None:
    stem = SPELLINGS["peft"][0]
    state = halves(stem, ".lora_A.one.weight", ".lora_B.one.weight")
    state |= halves(stem, ".lora_A.two.weight", ".lora_B.two.weight")
    with pytest.raises(WeightsError, match="a file is one adapter"):
        read(state, TARGETS)


def test_an_absent_component_is_left_out_with_a_reason() -> None:
    text = halves("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", ".lora.down.weight", ".lora.up.weight")
    found = read(halves(*SPELLINGS["diffusers"]) | text, {"unet": Names(UNET)})
    assert found.report.ignored == dict.fromkeys(text, "there is no text_encoder here")
    with pytest.raises(WeightsError, match="no effect here: it is for text_encoder; here are: unet"):
        read(text, {"unet": Names(UNET)})


def test_textual_inversions_in_a_file_are_left_out() -> None:
    state = halves(*SPELLINGS["kohya"]) | {"bundle_emb.word.string_to_param.*": tensor(1, 768)}
    assert list(read(state, TARGETS).report.ignored) == ["bundle_emb.word.string_to_param.*"]


def test_an_alpha_alone_is_no_layer() -> None:
    stem = SPELLINGS["kohya"][0]
    state = {**halves(*SPELLINGS["kohya"]), f"{stem[:-1]}k.alpha": torch.tensor(1.0)}
    with pytest.raises(WeightsError, match=rf"1 name leads to no layer \('{stem[:-1]}k.alpha'"):
        read(state, TARGETS)


def test_the_nearest_name_of_a_whole_name() -> None:
    stem = SPELLINGS["kohya"][0]
    assert nearest_name(f"{stem}.lora_dwn.weight", TARGETS) == f"{stem}.lora_down.weight"
    assert nearest_name(f"{stem[:-1]}x.lora_down.weight", TARGETS) == f"{stem[:-1]}q.lora_down.weight"
    assert nearest_name("lora_dwn.weight", TARGETS) is None, "no layer stands before the end"
    assert nearest_name("nothing.like.it", TARGETS) is None


# Sizes ---------------------------------------------------------------------------------------------------------------

EXTENTS = {
    "lora": ({"down": (4, 8, 3, 3), "up": (16, 4, 1, 1)}, (16, 72)),
    "loha": ({"w1_a": (2, 16), "w1_b": (2, 8), "t1": (2, 2, 3, 3)}, (16, 72)),
    "lokr": ({"w1": (4, 2), "w2_a": (4, 3), "w2_b": (3, 36)}, (16, 72)),
    "full": ({"diff": (16, 8, 3, 3)}, (16, 72)),
}


@pytest.mark.parametrize("algorithm", EXTENTS)
def test_what_weight_the_parts_are_for(algorithm) -> None:
    shapes, size = EXTENTS[algorithm]
    assert extent(algorithm, shapes) == size
    assert fits(algorithm, shapes, (16, 8, 3, 3)) and not fits(algorithm, shapes, (16, 9, 3, 3))
    assert not fits(algorithm, shapes, (32, 8, 3, 3))


def test_rows_that_oft_is_for() -> None:
    assert fits("oft", {"blocks": (4, 4, 4)}, (16, 8)) and not fits("oft", {"blocks": (4, 4, 4)}, (32, 8))
    assert fits("oft", {"blocks": (4, 4)}, (16, 8)) and not fits("oft", {"blocks": (5, 5)}, (16, 8))
    assert extent("full", {"diff_bias": (16,)}) == (16, 0)


def test_what_a_layer_lacks() -> None:
    assert lacking("lokr", frozenset({"w1", "w2_a"})) == {"w2_b"}
    assert lacking("lokr", frozenset({"w1_a", "w1_b", "w2"})) == frozenset()
    assert lacking("lora", frozenset({"up"})) == {"down"}


# Writing -------------------------------------------------------------------------------------------------------------


def adapter(alpha: float | None = 2.0) -> dict[str, dict[str, Parts]]:
    """Return a LoRA of attentions in the UNet and the text encoder."""
    parts = Parts("lora", {"down": tensor(4, 16), "up": tensor(16, 4)}, alpha)
    text = Parts("lora", {"down": tensor(2, 12), "up": tensor(12, 2)}, alpha)
    return {"unet": {f"{ATTENTION}.to_q": parts}, "text_encoder": {"encoder.layers.0.self_attn.q_proj": text}}


def same(one, other) -> bool:
    """Tell whether two adapters hold the same values."""
    return {name: set(layers) for name, layers in one.items()} == {k: set(v) for k, v in other.items()} and all(
        parts.algorithm == other[name][path].algorithm
        and parts.alpha == other[name][path].alpha
        and parts.tensors.keys() == other[name][path].tensors.keys()
        and all(torch.equal(value, other[name][path].tensors[key]) for key, value in parts.tensors.items())
        for name, layers in one.items()
        for path, parts in layers.items()
    )


@pytest.mark.parametrize("alpha", [None, 2.0, 0.3])
@pytest.mark.parametrize("dialect", sorted(DIALECTS))
def test_written_and_read_again(dialect, alpha) -> None:
    given = adapter(alpha)
    if dialect == "diffusers-old":
        given.pop("text_encoder")
    alpha = alpha if alpha is None else float(torch.tensor(alpha))
    given = {c: {p: Parts(x.algorithm, x.tensors, alpha) for p, x in layers.items()} for c, layers in given.items()}
    state, metadata = written(given, dialect, metadata={"ss_network_dim": "4"})
    assert metadata["ss_network_dim"] == "4"
    found = read(state, TARGETS, metadata=metadata)
    assert found.dialect == dialect and same(found.adapter, given)


def test_ranks_and_alphas_by_layer_go_into_the_configuration() -> None:
    given = adapter(2.0)
    given["unet"][f"{ATTENTION}.to_out.0"] = Parts("lora", {"down": tensor(8, 16), "up": tensor(16, 8)}, 5.0)
    state, metadata = written(given, "peft")
    config = json.loads(metadata["lora_adapter_metadata"])
    assert config["unet.r"] == 4 and list(config["unet.rank_pattern"].values()) == [8]
    assert same(read(state, TARGETS, metadata=metadata).adapter, given)


@pytest.mark.parametrize("ends", MORE.values(), ids=MORE)
def test_lycoris_is_written_as_it_was(ends) -> None:
    state = {f"{KOHYA}.{end}": tensor(*shape) for end, shape in ends.items()} | {f"{KOHYA}.alpha": torch.tensor(2.0)}
    found, _ = written(read(state, TARGETS).adapter, "kohya")
    renamed = {name.replace("oft_diag", "oft_blocks"): value for name, value in state.items()}
    assert found.keys() == renamed.keys()
    assert all(torch.equal(value, renamed[name]) for name, value in found.items())


def test_magnitudes_take_the_shape_of_the_dialect() -> None:
    lora = {"down": tensor(4, 8, 3, 3), "up": tensor(16, 4, 1, 1)}
    given = {"unet": {"down_blocks.0.resnets.0.conv1": Parts("lora", {**lora, "magnitude": tensor(16, 1, 1, 1)})}}
    state, metadata = written(given, "peft")
    assert state["unet.down_blocks.0.resnets.0.conv1.lora_magnitude_vector"].shape == (1, 16, 1, 1)
    assert same(read(state, TARGETS, metadata=metadata).adapter, given)


def test_a_configuration_keeps_what_it_said_of_its_targets() -> None:
    given = {"lora_adapter_metadata": json.dumps({"unet.target_modules": "all-linear", "unet.use_rslora": True})}
    _, metadata = written({"unet": adapter()["unet"]}, "peft", metadata=given)
    config = json.loads(metadata["lora_adapter_metadata"])
    assert config["unet.target_modules"] == "all-linear" and config["unet.use_rslora"] is False


def test_a_network_that_is_no_component_has_no_prefix() -> None:
    state, _ = written({"": adapter(None)["unet"]}, "peft")
    assert all(name.startswith(ATTENTION) for name in state)
    with pytest.raises(WeightsError, match="no prefix for 'prior'; write it as 'diffusers'"):
        written({"prior": adapter()["unet"]}, "kohya")


def test_magnitudes_in_every_shape_are_read() -> None:
    stem = "unet.down_blocks.0.resnets.0.conv1"
    for shape in ((16,), (1, 16, 1, 1), (16, 1, 1, 1)):
        lora = halves(stem, ".lora_A.weight", ".lora_B.weight", (16, 8, 3, 3))
        parts = read({**lora, f"{stem}.lora_magnitude_vector": tensor(*shape)}, TARGETS).adapter["unet"]
        wanted = (16, 1) if len(shape) == 1 else (16, 1, 1, 1)
        assert tuple(parts["down_blocks.0.resnets.0.conv1"].tensors["magnitude"].shape) == wanted
    given = Parts("lora", {"down": tensor(4, 16), "up": tensor(16, 4), "magnitude": tensor(1, 16)})
    with pytest.raises(WeightsError, match="no words for a magnitude of the inputs"):
        written({"unet": {f"{ATTENTION}.to_q": given}}, "peft")


def test_what_a_dialect_cannot_say_is_an_error() -> None:
    loha = {f"{KOHYA}.{end}": tensor(*shape) for end, shape in MORE["loha"].items()}
    with pytest.raises(WeightsError, match=r"no words for 'w1_a' of LoHa.*'kohya'"):
        written(read(loha, TARGETS).adapter, "peft")
    with pytest.raises(WeightsError, match="attention projections of a UNet alone"):
        written(adapter(), "diffusers-old")
    with pytest.raises(ConfigError, match="did you mean 'kohya'"):
        written(adapter(), "kohia")


def test_biases_of_peft() -> None:
    parts = Parts("lora", {"down": tensor(4, 16), "up": tensor(16, 4), "bias": tensor(16)}, 2.0)
    given = {"unet": {f"{ATTENTION}.to_q": parts}}
    state, metadata = written(given, "peft")
    assert f"unet.{ATTENTION}.to_q.lora_B.bias" in state
    assert json.loads(metadata["lora_adapter_metadata"])["unet.lora_bias"] is True
    assert json.loads(written(adapter(), "peft")[1]["lora_adapter_metadata"])["unet.lora_bias"] is False
    assert same(read(state, TARGETS, metadata=metadata).adapter, given)


def test_kohya_numbers_the_first_text_encoder_beside_a_second() -> None:
    given = adapter()
    assert any(name.startswith("lora_te_text_model_encoder") for name in written(given, "kohya")[0])
    given["text_encoder_2"] = given["text_encoder"]
    names = written(given, "kohya")[0]
    assert {name.split("_text_model")[0] for name in names if "_te" in name} == {"lora_te1", "lora_te2"}


# Looking -------------------------------------------------------------------------------------------------------------


def look(state, metadata=None):
    """Look at a state dict as at the header of a file."""
    return probe({name: Entry(t.dtype, tuple(t.shape), 0, 0) for name, t in state.items()}, metadata or {})


def test_a_look_at_a_kohya_file() -> None:
    stem = f"lora_unet_{ATTENTION.replace('.', '_')}"
    state = halves(f"{stem}_to_k", ".lora_down.weight", ".lora_up.weight", (16, 768))
    state[f"{stem}_to_k.alpha"] = torch.tensor(1.0)
    found = look(state, {"ss_network_alpha": "1"})
    assert (found.kind, found.family, found.dialect) == ("lora", "sd1", "kohya")
    assert found.details["rank"] == 4 and found.details["alpha"] == "1" and found.details["targets"] == ["to_k"]
    assert found.details["algorithms"] == ["LoRA"]


def test_alpha_that_a_look_tells() -> None:
    state = halves(*SPELLINGS["peft"])
    config = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 8, "unet.r": 4})}
    assert look(state, config).details["alpha"] == 8 and look(state).details["alpha"] == "equal to the rank"
    stem = SPELLINGS["kohya"][0]
    own = {**halves(*SPELLINGS["kohya"]), f"{stem}.alpha": torch.tensor(1.0)}
    assert look(own).details["alpha"] == "one per layer"


def test_families_are_called_as_everywhere() -> None:
    names = "transformer.joint_blocks.0.x_block.attn.qkv.lora_A.weight", "transformer.joint_blocks.0.x.lora_B.weight"
    found = look({name: tensor(4, 8) for name in names})
    assert found.family == "sd3" and found.family in FAMILIES
    assert "is a layer of Stable Diffusion 3" in found.reasons[-1]


def test_a_second_text_encoder_is_that_of_sdxl_and_dora_is_told() -> None:
    stem = "lora_te2_text_model_encoder_layers_0_self_attn_q_proj"
    found = look({**halves(stem, ".lora_down.weight", ".lora_up.weight"), f"{stem}.dora_scale": tensor(16, 1)})
    assert found.family == "sdxl" and found.details["algorithms"] == ["LoRA", "DoRA"]


def test_a_look_at_other_files() -> None:
    assert look({"down_blocks.0.resnets.0.conv1.weight": tensor(16, 8, 3, 3)}) is None
    assert look({}) is None
    found = look({f"{KOHYA}.{end}": tensor(*shape) for end, shape in MORE["lokr"].items()})
    assert found.details["algorithms"] == ["LoKr"] and found.family is None
    assert look({f"{KOHYA}.ia3_l": tensor(4)}).details["not supported"] == ["IA3"]
    half = look({f"{KOHYA}.lora_up.weight": tensor(16, 4, 1, 1)})
    assert "lacks down" in half.incomplete[0]
