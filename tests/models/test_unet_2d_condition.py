"""UNet2DConditionModel against the peer, for every published family at tiny width."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from langevin.core.errors import ConfigError, InputError
from langevin.models.unets.unet_2d_condition import UNet2DConditionModel
from tests.models.pairs import difference, pair

TOLERANCE = 1e-5
TINY: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
}
SIMPLE: dict[str, Any] = {
    **TINY,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "resnet_time_scale_shift": "scale_shift",
    "out_channels": 8,
}
IF: dict[str, Any] = {
    **SIMPLE,
    "in_channels": 3,
    "out_channels": 6,
    "cross_attention_norm": "group_norm",
    "encoder_hid_dim": 48,
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 4,
    "act_fn": "gelu",
    "time_embedding_act_fn": "gelu",
}
SDXL: dict[str, Any] = {
    **TINY,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
}
SD2: dict[str, Any] = {**TINY, "attention_head_dim": (2, 4), "use_linear_projection": True, "upcast_attention": True}
K_BLOCKS: dict[str, Any] = {
    "in_channels": 8,
    "out_channels": 5,
    "block_out_channels": (32, 32, 64, 64),
    "down_block_types": ("KDownBlock2D", *("KCrossAttnDownBlock2D",) * 3),
    "mid_block_type": None,
    "up_block_types": (*("KCrossAttnUpBlock2D",) * 3, "KUpBlock2D"),
    "layers_per_block": 3,
    "norm_num_groups": None,
    "conv_in_kernel": 1,
    "conv_out_kernel": 1,
    "act_fn": "gelu",
    "attention_head_dim": 8,
    "cross_attention_dim": 48,
    "resnet_time_scale_shift": "scale_shift",
    "time_cond_proj_dim": 40,
    "time_embedding_type": "fourier",
    "timestep_post_act": "gelu",
}
DRAW = torch.Generator().manual_seed(7)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=DRAW)


TEXT = {"encoder_hidden_states": noise(2, 7, 32)}
WIDE_TEXT = {"encoder_hidden_states": noise(2, 7, 48)}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sd1": (TINY, TEXT),
    "sd1-odd-size": (TINY, {**TEXT, "sample": noise(2, 4, 13, 10)}),
    "sd2": (SD2, TEXT),
    "inpaint": ({**TINY, "in_channels": 9}, TEXT),
    "lcm": ({**TINY, "time_cond_proj_dim": 12}, {**TEXT, "timestep_cond": noise(2, 12)}),
    "x4-upscaler": (
        {**SD2, "in_channels": 7, "num_class_embeds": 50, "only_cross_attention": (True, False)},
        {**TEXT, "class_labels": torch.tensor([3, 20])},
    ),
    "latent-upscaler": (K_BLOCKS, {**WIDE_TEXT, "timestep": torch.tensor([0.3, -1.2]), "timestep_cond": noise(2, 40)}),
    "latent-upscaler-upright": (
        {**K_BLOCKS, "layers_per_block": 1, "upcast_attention": True},
        {**WIDE_TEXT, "timestep": 0.25, "timestep_cond": noise(2, 40), "sample": noise(2, 8, 24, 16)},
    ),
    "stable-unclip": (
        {**SD2, "class_embed_type": "projection", "projection_class_embeddings_input_dim": 24},
        {**TEXT, "class_labels": noise(2, 24)},
    ),
    "simple-projection-concat": (
        {
            **TINY,
            "class_embed_type": "simple_projection",
            "projection_class_embeddings_input_dim": 24,
            "class_embeddings_concat": True,
        },
        {**TEXT, "class_labels": noise(2, 24)},
    ),
    "sdxl": (SDXL, {**TEXT, "added_cond_kwargs": {"text_embeds": noise(2, 32), "time_ids": noise(2, 6) * 100}}),
    "unclip": ({**SIMPLE, "class_embed_type": "identity"}, {**TEXT, "class_labels": noise(2, 128)}),
    "kandinsky-2.1": (
        {
            **SIMPLE,
            "encoder_hid_dim": 48,
            "encoder_hid_dim_type": "text_image_proj",
            "addition_embed_type": "text_image",
        },
        {**WIDE_TEXT, "added_cond_kwargs": {"image_embeds": noise(2, 32), "text_embeds": noise(2, 32)}},
    ),
    "kandinsky-2.2": (
        {**SIMPLE, "encoder_hid_dim": 48, "encoder_hid_dim_type": "image_proj", "addition_embed_type": "image"},
        {"encoder_hidden_states": None, "added_cond_kwargs": {"image_embeds": noise(2, 48)}},
    ),
    "kandinsky-2.2-hint": (
        {
            **SIMPLE,
            "in_channels": 8,
            "encoder_hid_dim": 48,
            "encoder_hid_dim_type": "image_proj",
            "addition_embed_type": "image_hint",
        },
        {
            "sample": noise(2, 4, 16, 16),
            "encoder_hidden_states": None,
            "added_cond_kwargs": {"image_embeds": noise(2, 48), "hint": noise(2, 3, 128, 128)},
        },
    ),
    "if-I": (IF, WIDE_TEXT),
    "if-II": (
        {
            **IF,
            "in_channels": 6,
            "class_embed_type": "timestep",
            "only_cross_attention": True,
            "layers_per_block": (1, 2),
            "resnet_skip_time_act": True,
            "resnet_out_scale_factor": 0.7071,
            "mid_block_scale_factor": 0.7071,
        },
        {**WIDE_TEXT, "class_labels": torch.tensor([3.0, 20.0])},
    ),
    "fourier": ({**TINY, "time_embedding_type": "fourier", "timestep_post_act": "silu"}, TEXT),
    "plain-middle": ({**TINY, "mid_block_type": "UNetMidBlock2D", "center_input_sample": True}, TEXT),
    "no-middle": ({**TINY, "mid_block_type": None, "conv_in_kernel": 5, "conv_out_kernel": 1}, TEXT),
    "token-attention": (
        {**TINY, "down_block_types": ("CrossAttnDownBlock2D", "AttnDownBlock2D"),
         "up_block_types": ("AttnUpBlock2D", "CrossAttnUpBlock2D")},
        TEXT,
    ),
    "nested-depths": (
        {
            **TINY,
            "layers_per_block": (2, 1),
            "transformer_layers_per_block": ((1, 2), (1,)),
            "reverse_transformer_layers_per_block": ((1, 1), (2, 1, 1)),
        },
        TEXT,
    ),
    "context-per-block": (
        {**TINY, "cross_attention_dim": (32, 32), "only_cross_attention": (False, True), "flip_sin_to_cos": False},
        TEXT,
    ),
}  # fmt: skip


def inputs(config: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    sample = noise(2, config.get("in_channels", 4), 16, 16)
    return {"sample": sample, "timestep": torch.tensor([7, 650]), **given}


@pytest.fixture(scope="module")
def peer() -> type:
    return importlib.import_module("diffusers").UNet2DConditionModel


@pytest.mark.parity
@pytest.mark.parametrize("family", FAMILIES)
def test_family(family: str, peer: type) -> None:
    config, given = FAMILIES[family]
    theirs, ours = pair(peer, UNet2DConditionModel, config)
    given = inputs(config, given)
    with torch.no_grad():
        assert difference(theirs(**given).sample, ours(**given).sample) <= TOLERANCE


@pytest.mark.parity
@pytest.mark.parametrize("timestep", [7, 7.5, torch.tensor(7), torch.tensor([7])])
def test_timestep_forms(timestep: Any, peer: type) -> None:
    theirs, ours = pair(peer, UNet2DConditionModel, TINY)
    given = inputs(TINY, {**TEXT, "timestep": timestep})
    with torch.no_grad():
        assert difference(theirs(**given).sample, ours(**given).sample) <= TOLERANCE


@pytest.mark.parity
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["sd1", "if-II", "latent-upscaler"])
def test_gradients(family: str, checkpointing: bool, peer: type) -> None:
    config, given = FAMILIES[family]
    theirs, ours = pair(peer, UNet2DConditionModel, config)
    if checkpointing:
        ours.enable_gradient_checkpointing()
    given = inputs(config, given)
    for model in (theirs, ours):
        model.train()
        model(**given).sample.square().mean().backward()
    expected = dict(theirs.named_parameters())
    for name, value in ours.named_parameters():
        if expected[name].grad is None:
            assert value.grad is None, name
        else:
            assert difference(expected[name].grad, value.grad) <= TOLERANCE, name


@pytest.mark.parity
def test_mask_of_the_context(peer: type) -> None:
    theirs, ours = pair(peer, UNet2DConditionModel, TINY)
    keep = torch.ones(2, 7)
    keep[0, 4:] = 0
    given = inputs(TINY, TEXT)
    with torch.no_grad():
        expected = theirs(**given, encoder_attention_mask=keep).sample
        for mask in (keep, keep.bool(), (1 - keep[:, None]) * -10000.0):
            assert difference(expected, ours(**given, encoder_attention_mask=mask).sample) <= TOLERANCE
        assert difference(expected, ours(**given).sample) > 1e-4


@pytest.mark.parametrize("family", ["if-I", "if-II"])
def test_hidden_context_has_no_influence(family: str) -> None:
    config = {**FAMILIES[family][0], "addition_embed_type": None, "cross_attention_norm": None}
    model = UNet2DConditionModel(**config).eval()
    given = inputs(config, FAMILIES[family][1])
    keep = torch.ones(2, 7)
    keep[:, 5:] = 0
    other = given["encoder_hidden_states"].clone()
    other[:, 5:] += 1
    with torch.no_grad():
        expected = model(**given, encoder_attention_mask=keep).sample
        assert torch.equal(
            expected, model(**{**given, "encoder_hidden_states": other}, encoder_attention_mask=keep).sample
        )
        assert difference(expected, model(**given).sample) > 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model = UNet2DConditionModel(**SDXL).eval()
    given = inputs(*FAMILIES["sdxl"])
    with torch.no_grad():
        expected = model(**given).sample
        given = {
            **given,
            "sample": given["sample"].to(dtype),
            "encoder_hidden_states": given["encoder_hidden_states"].to(dtype),
            "added_cond_kwargs": {k: v.to(dtype) for k, v in given["added_cond_kwargs"].items()},
        }
        out = model.to(dtype)(**given).sample
    assert out.dtype == dtype
    assert difference(expected, out.float()) <= 0.1


def test_inputs_are_left_alone() -> None:
    model = UNet2DConditionModel(**SDXL).eval()
    given = inputs(*FAMILIES["sdxl"])
    given["down_intrablock_additional_residuals"] = [noise(2, 32, 8, 8), noise(2, 64, 8, 8)]
    leaves = torch.utils._pytree.tree_leaves(given)
    before = [leaf.clone() for leaf in leaves]
    with torch.no_grad():
        first = model(**given).sample
        assert torch.equal(first, model(**given).sample)
    assert all(torch.equal(a, b) for a, b in zip(leaves, before, strict=True))
    assert len(given["down_intrablock_additional_residuals"]) == 2


def test_control_residuals_need_the_middle() -> None:
    model = UNet2DConditionModel(**TINY).eval()
    maps = [noise(2, 32, 16, 16)] * 3 + [noise(2, 32, 8, 8)] + [noise(2, 64, 8, 8)] * 2
    with pytest.raises(InputError, match="down_intrablock_additional_residuals"):
        model(**inputs(TINY, TEXT), down_block_additional_residuals=maps)


@pytest.mark.parity
def test_residuals(peer: type) -> None:
    theirs, ours = pair(peer, UNet2DConditionModel, TINY)
    given = inputs(TINY, TEXT)
    shapes = [(2, 32, 16, 16)] * 3 + [(2, 32, 8, 8)] + [(2, 64, 8, 8)] * 2
    control = {
        "down_block_additional_residuals": tuple(noise(*shape) for shape in shapes),
        "mid_block_additional_residual": noise(2, 64, 8, 8),
    }
    adapter = {"down_intrablock_additional_residuals": [noise(2, 32, 16, 16), noise(2, 64, 8, 8)]}
    with torch.no_grad():
        for more in (control, adapter, {**control, **adapter}):
            fresh = [{k: list(v) if isinstance(v, list) else v for k, v in more.items()} for _ in range(2)]
            a = theirs(**given, **fresh[0]).sample
            b = ours(**given, **fresh[1]).sample
            assert difference(a, b) <= TOLERANCE
            assert difference(a, ours(**given).sample) > 1e-3


def test_adapter_residual_reaches_the_kept_map_of_plain_blocks(peer: type) -> None:
    theirs, ours = pair(peer, UNet2DConditionModel, SDXL)
    given = inputs(*FAMILIES["sdxl"])
    adapter = [noise(2, 32, 8, 8), noise(2, 64, 8, 8)]
    with torch.no_grad():
        a = theirs(**given, down_intrablock_additional_residuals=[x.clone() for x in adapter]).sample
        assert difference(a, ours(**given, down_intrablock_additional_residuals=adapter).sample) <= TOLERANCE


def test_default_configuration_builds() -> None:
    with torch.device("meta"):
        model = UNet2DConditionModel()
    assert model.config.block_out_channels == (320, 640, 1280, 1280)


def test_tuple_output() -> None:
    model = UNet2DConditionModel(**TINY).eval()
    given = inputs(TINY, TEXT)
    out = model(**given, return_dict=False)
    assert isinstance(out, tuple)
    assert torch.equal(out[0], model(**given).sample)


@pytest.mark.parametrize("family", ["sd1", "sd2", "token-attention", "kandinsky-2.2", "latent-upscaler"])
def test_memory_format_stays(family: str) -> None:
    config, given = FAMILIES[family]
    model = UNet2DConditionModel(**config).eval()
    given = inputs(config, given)
    formats = set()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            module.register_forward_hook(lambda m, args, out: formats.add(args[0].is_contiguous()))
    expected = model(**given).sample
    assert formats == {True}
    model.to(memory_format=torch.channels_last)
    given["sample"] = given["sample"].to(memory_format=torch.channels_last)
    out = model(**given).sample
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert difference(expected, out) <= TOLERANCE


@pytest.mark.parametrize("family", ["sd1", "sdxl", "if-II", "kandinsky-2.2-hint", "latent-upscaler"])
def test_compiles_as_one_graph(family: str) -> None:
    config, given = FAMILIES[family]
    model = UNet2DConditionModel(**config).eval()
    given = inputs(config, given)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(**given).sample, model(**given).sample, atol=1e-6)
        counters = torch._dynamo.utils.counters
        before = counters["stats"]["unique_graphs"]
        compiled(**{**given, "timestep": torch.full_like(given["timestep"], 30), "sample": given["sample"] + 1})
        assert counters["stats"]["unique_graphs"] == before


def test_new_sizes_recompile_once() -> None:
    model = UNet2DConditionModel(**TINY).eval()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        for i, (height, width) in enumerate(((16, 16), (24, 24), (32, 24), (24, 40))):
            sample = noise(2, 4, height, width)
            assert torch.allclose(
                compiled(sample, torch.tensor(i), **TEXT).sample, model(sample, i, **TEXT).sample, atol=1e-5
            )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_prompt_length_and_time_as_number_recompile_once() -> None:
    model = UNet2DConditionModel(**TINY).eval()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        for time, tokens in ((900, 7), (800, 7), (700, 14), (600, 21)):
            compiled(noise(2, 4, 16, 16), time, noise(2, tokens, 32))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"down_block_types": ("CrossAtnDownBlock2D", "DownBlock2D")}, "'CrossAttnDownBlock2D'"),
        ({"up_block_types": ("UpBlock2D", "CrossAttnDownBlock2D")}, "CrossAttnUpBlock2D"),
        ({"down_block_types": ("SkipDownBlock2D", "DownBlock2D")}, "SkipDownBlock2D"),
        ({"mid_block_type": "UNetMidBlock2DCross"}, "UNetMidBlock2DCrossAttn"),
        ({"block_out_channels": (32, 64, 64)}, "block_out_channels has 3 values"),
        ({"attention_head_dim": (4,)}, "attention_head_dim has 1 values"),
        ({"layers_per_block": (1, 2, 3)}, "layers_per_block"),
        ({"up_block_types": ("UpBlock2D",)}, "up_block_types names 1"),
        ({"only_cross_attention": (True,)}, "only_cross_attention"),
        ({"cross_attention_dim": (32,)}, "cross_attention_dim"),
        ({"transformer_layers_per_block": ((1, 2), (1, 1))}, "reverse_transformer_layers_per_block"),
        ({"class_embed_type": "projction"}, "'projection'"),
        ({"class_embed_type": "projection"}, "projection_class_embeddings_input_dim"),
        ({"addition_embed_type": "texttime"}, "'text_time'"),
        ({"addition_embed_type": "text_time"}, "addition_time_embed_dim"),
        ({"encoder_hid_dim_type": "image_proj"}, "encoder_hid_dim"),
        ({"encoder_hid_dim_type": "img_proj", "encoder_hid_dim": 4}, "'image_proj'"),
        ({"time_embedding_type": "sinusoidal"}, "positional"),
        ({"act_fn": "sillu"}, "'silu'"),
        ({"num_attention_heads": 8}, "attention_head_dim"),
        ({"cross_attention_nrom": "group_norm"}, "'cross_attention_norm'"),
        ({"up_block_types": ("KUpBlock2D", "CrossAttnUpBlock2D")}, r"blocks named K\.\.\."),
        ({"dual_cross_attention": True}, "dual_cross_attention"),
        ({"attention_type": "gated"}, "only 'default'"),
        ({"time_embedding_type": "fourier", "time_embedding_dim": 33}, "even number"),
        ({"encoder_hid_dim": 4, "cross_attention_dim": (32, 32)}, "one cross_attention_dim for all blocks"),
        (
            {
                "layers_per_block": 2,
                "transformer_layers_per_block": ((1,), (1, 1)),
                "reverse_transformer_layers_per_block": ((1, 1, 1), (1, 1, 1)),
            },
            "1 depths for a block of 2 layers",
        ),
    ],
)
def test_wrong_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        UNet2DConditionModel(**{**TINY, **options})


def test_wrong_inputs() -> None:
    model = UNet2DConditionModel(**TINY).eval()
    given = inputs(TINY, TEXT)
    cases = [
        ({"sample": noise(2, 3, 16, 16)}, "in_channels"),
        ({"sample": noise(4, 16, 16)}, "sample has shape"),
        ({"encoder_hidden_states": noise(2, 7, 16)}, "cross_attention_dim"),
        ({"encoder_hidden_states": noise(1, 7, 32)}, "1 rows for a batch of 2"),
        ({"encoder_hidden_states": None}, "encoder_hidden_states is None"),
        ({"timestep_cond": noise(2, 12)}, "time_cond_proj_dim"),
        ({"down_block_additional_residuals": (noise(2, 32, 16, 16),)}, "keeps 6"),
        ({"timestep": torch.tensor([1, 2, 3])}, "timestep has 3 values"),
    ]
    for wrong, words in cases:
        with pytest.raises(InputError, match=words):
            model(**{**given, **wrong})


def test_a_context_that_only_the_middle_reads_is_missed_too() -> None:
    model = UNet2DConditionModel(
        **{**TINY, "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    )
    with pytest.raises(InputError, match="encoder_hidden_states is None"):
        model(**{**inputs(TINY, TEXT), "encoder_hidden_states": None})


def test_sizes_of_the_latent_upscaler() -> None:
    model = UNet2DConditionModel(**K_BLOCKS).eval()
    given = inputs(*FAMILIES["latent-upscaler"])
    for height, width in ((20, 16), (8, 16)):
        with pytest.raises(InputError, match=f"sample is {height}x{width}; this model needs multiples of 8, at least"):
            model(**{**given, "sample": noise(2, 8, height, width)})
    with pytest.raises(InputError, match="encoder_hidden_states is None"):
        model(**{**given, "encoder_hidden_states": None})


def test_adapter_maps_reach_the_latent_upscaler() -> None:
    model = UNet2DConditionModel(**K_BLOCKS).eval()
    given = inputs(*FAMILIES["latent-upscaler"])
    maps = [noise(2, c, s, s) for c, s in ((32, 16), (32, 8), (64, 4), (64, 2))]
    with torch.no_grad():
        led = model(**given, down_intrablock_additional_residuals=maps).sample
        assert difference(model(**given).sample, led) > 1e-3


def test_unread_processor_keywords_are_refused() -> None:
    model = UNet2DConditionModel(**TINY).eval()
    with pytest.raises(InputError, match="scael"):
        model(**inputs(TINY, TEXT), cross_attention_kwargs={"scael": 1.0})
    model(**inputs(TINY, TEXT), cross_attention_kwargs={"scale": 1.0})


def test_layer_norm_on_the_context_fits_every_block() -> None:
    config = {**SIMPLE, "cross_attention_norm": "layer_norm"}
    assert UNet2DConditionModel(**config)(**inputs(config, TEXT)).sample.shape == (2, 8, 16, 16)


def test_labels_without_a_use_are_refused() -> None:
    with pytest.raises(InputError, match="class_labels were given"):
        UNet2DConditionModel(**TINY)(**inputs(TINY, TEXT), class_labels=torch.tensor([1, 2]))


def test_missing_condition_names_it() -> None:
    config, given = FAMILIES["sdxl"]
    model = UNet2DConditionModel(**config)
    given = inputs(config, given)
    with pytest.raises(InputError, match="time_ids"):
        model(**{**given, "added_cond_kwargs": {"text_embeds": noise(2, 32)}})
    with pytest.raises(InputError, match="80"):
        model(**{**given, "added_cond_kwargs": {"text_embeds": noise(2, 32), "time_ids": noise(2, 5)}})
    labelled = UNet2DConditionModel(**FAMILIES["x4-upscaler"][0])
    with pytest.raises(InputError, match="class_labels"):
        labelled(**inputs(FAMILIES["x4-upscaler"][0], TEXT))


@pytest.mark.slow
@pytest.mark.parity
def test_full_size_step(peer: type) -> None:
    """One call of the SD 1.5 UNet with random weights, at 32x32 latents."""
    with torch.device("meta"):
        theirs, ours = peer(cross_attention_dim=768).eval(), UNet2DConditionModel(cross_attention_dim=768).eval()
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, value in theirs.state_dict().items():
        fan_in = value[0].numel() if value.dim() > 1 else 1
        scale = 0.1 if fan_in == 1 else fan_in**-0.5
        weights[name] = torch.empty(value.shape).uniform_(-scale, scale, generator=generator)
    theirs.load_state_dict(weights, assign=True)
    ours.load_state_dict(weights, assign=True)
    given = {"sample": noise(1, 4, 32, 32), "timestep": 500, "encoder_hidden_states": noise(1, 77, 768)}
    with torch.no_grad():
        assert difference(theirs(**given).sample, ours(**given).sample) <= TOLERANCE
