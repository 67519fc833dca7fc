"""ControlNetModel against the peer, and what it promises beyond."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from langevin.core.errors import ConfigError, InputError
from langevin.models.controlnets.controlnet import ControlNetModel, ControlPicture
from langevin.models.unets.unet_2d_condition import UNet2DConditionModel
from tests.models.pairs import difference, pair, shake

TOLERANCE = 1e-5
TINY: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "conditioning_embedding_out_channels": (4, 8, 16, 24),
}
SD2: dict[str, Any] = {**TINY, "attention_head_dim": (2, 4), "use_linear_projection": True, "upcast_attention": True}
SDXL: dict[str, Any] = {
    **SD2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
}
UP: dict[str, Any] = {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
UP_SDXL: dict[str, Any] = {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
DRAW = torch.Generator().manual_seed(11)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=DRAW)


XL_ADDED = {"added_cond_kwargs": {"text_embeds": noise(2, 32), "time_ids": noise(2, 6) * 100}}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sd1": (TINY, {}),
    "sd2": (SD2, {}),
    "sdxl": (SDXL, XL_ADDED),
    "sdxl-small": ({**SDXL, "down_block_types": ("DownBlock2D",) * 2, "mid_block_type": "UNetMidBlock2D"}, XL_ADDED),
    "bgr": ({**TINY, "controlnet_conditioning_channel_order": "bgr"}, {}),
    "grey": ({**TINY, "conditioning_channels": 1}, {}),
    "two-halvings": (
        {**TINY, "conditioning_embedding_out_channels": (4, 8, 12)},
        {"controlnet_cond": noise(2, 3, 64, 64).sigmoid()},
    ),
    "odd-size": (TINY, {"sample": noise(2, 4, 13, 10), "controlnet_cond": noise(2, 3, 104, 80).sigmoid()}),
    "rounded-size": (TINY, {"sample": noise(2, 4, 8, 9), "controlnet_cond": noise(2, 3, 61, 67).sigmoid()}),
    "one-picture": (TINY, {"controlnet_cond": noise(1, 3, 128, 128).sigmoid()}),
    "shuffle": ({**TINY, "global_pool_conditions": True}, {}),
    "labels": ({**TINY, "num_class_embeds": 50}, {"class_labels": torch.tensor([3, 20])}),
    "label-vectors": (
        {**TINY, "class_embed_type": "projection", "projection_class_embeddings_input_dim": 24},
        {"class_labels": noise(2, 24)},
    ),
    "text": ({**TINY, "addition_embed_type": "text", "addition_embed_type_num_heads": 4}, {}),
    "heads": ({**TINY, "num_attention_heads": (8, 2)}, {}),
    "only-cross": ({**TINY, "only_cross_attention": True, "cross_attention_dim": 32}, {}),
    "depths": ({**TINY, "transformer_layers_per_block": ((1, 2), (1, 1))}, {}),
    "scale-shift": (
        {
            **TINY,
            "resnet_time_scale_shift": "scale_shift",
            "mid_block_scale_factor": 2,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "downsample_padding": 0,
            "act_fn": "gelu",
        },
        {},
    ),
    "simple": (
        {
            **TINY,
            "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            "mid_block_type": "UNetMidBlock2D",
        },
        {},
    ),
}


def inputs(config: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    usual = {
        "sample": noise(2, 4, 16, 16),
        "timestep": torch.tensor([7, 650]),
        "encoder_hidden_states": noise(2, 7, 32),
        "controlnet_cond": noise(2, config.get("conditioning_channels", 3), 128, 128).sigmoid(),
    }
    return {**usual, **given}


def flat(out: Any) -> list[torch.Tensor]:
    return [*out.down_block_res_samples, out.mid_block_res_sample]


def live(model: torch.nn.Module) -> torch.nn.Module:
    """Give the zero layers random values, so that there is something to compare."""
    with torch.no_grad():
        for value in model.parameters():
            if not value.any():
                value.normal_(std=0.1)
    return model


def live_pair(peer: type, config: dict[str, Any]) -> tuple[Any, Any]:
    theirs, ours = pair(peer, ControlNetModel, config)
    ours.load_state_dict(live(theirs).state_dict())
    return theirs, ours


@pytest.fixture(scope="module")
def diffusers() -> Any:
    return importlib.import_module("diffusers")


@pytest.mark.parity
@pytest.mark.parametrize("how", [{}, {"conditioning_scale": 0.7}, {"guess_mode": True, "conditioning_scale": 1.3}])
@pytest.mark.parametrize("family", FAMILIES)
def test_family(family: str, how: dict[str, Any], diffusers: Any) -> None:
    config, given = FAMILIES[family]
    theirs, ours = live_pair(diffusers.ControlNetModel, config)
    given = {**inputs(config, given), **how}
    with torch.no_grad():
        expected, found = flat(theirs(**given)), flat(ours(**given))
    assert [x.shape for x in expected] == [x.shape for x in found]
    assert all(x.abs().max() > 1e-3 for x in found)
    assert max(difference(a, b) for a, b in zip(expected, found, strict=True)) <= TOLERANCE


@pytest.mark.parity
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients(checkpointing: bool, diffusers: Any) -> None:
    theirs, ours = live_pair(diffusers.ControlNetModel, SDXL)
    if checkpointing:
        ours.enable_gradient_checkpointing()
        assert ours.is_gradient_checkpointing
    given = inputs(*FAMILIES["sdxl"])
    for model in (theirs, ours):
        model.train()
        sum(x.square().mean() for x in flat(model(**given))).backward()
    expected = dict(theirs.named_parameters())
    for name, value in ours.named_parameters():
        assert difference(expected[name].grad, value.grad) <= 1e-4, name


@pytest.mark.parity
@pytest.mark.parametrize(("config", "up"), [(TINY, UP), (SDXL, UP_SDXL), (SD2, UP)])
def test_from_unet(config: dict[str, Any], up: dict[str, Any], diffusers: Any) -> None:
    options = {k: v for k, v in config.items() if k != "conditioning_embedding_out_channels"}
    torch.manual_seed(0)
    their_unet = diffusers.UNet2DConditionModel(**options, **up)
    shake(their_unet)
    unet = UNet2DConditionModel(**options, **up)
    unet.load_state_dict(their_unet.state_dict())
    more = {"conditioning_channels": 4, "conditioning_embedding_out_channels": (4, 8, 16, 24)}
    theirs = diffusers.ControlNetModel.from_unet(their_unet, controlnet_conditioning_channel_order="bgr", **more)
    ours = ControlNetModel.from_unet(unet, controlnet_conditioning_channel_order="bgr", **more)
    ignored = {"_use_default_values", "_class_name"}
    assert {k: v for k, v in theirs.config.items() if k not in ignored} == {
        k: v for k, v in ours.config.items() if k not in ignored
    }
    expected, found = theirs.state_dict(), ours.state_dict()
    assert expected.keys() == found.keys()
    for name, value in found.items():
        if not name.startswith("controlnet_cond_embedding"):
            assert torch.equal(expected[name], value), name
    fresh = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    assert not torch.equal(fresh.conv_in.weight, unet.conv_in.weight)
    assert ours.conv_in.weight.data_ptr() != unet.conv_in.weight.data_ptr()


def test_untrained_controlnet_changes_nothing() -> None:
    unet = UNet2DConditionModel(**{k: v for k, v in TINY.items() if "conditioning" not in k}, **UP).eval()
    controlnet = ControlNetModel.from_unet(unet.to(torch.bfloat16))
    assert controlnet.dtype == torch.float32
    assert all(not x.any() for x in flat(controlnet(**inputs(TINY, {}))))


def test_a_unet_that_a_controlnet_cannot_follow_is_refused() -> None:
    options = {k: v for k, v in TINY.items() if "conditioning" not in k}
    for wrong in ({"time_cond_proj_dim": 8}, {"conv_in_kernel": 5}, {"center_input_sample": True}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            ControlNetModel.from_unet(UNet2DConditionModel(**options, **UP, **wrong))
    ControlNetModel.from_unet(UNet2DConditionModel(**options, **UP, dropout=0.1))
    renamed = UNet2DConditionModel(**options, **UP)
    renamed.conv_in = torch.nn.Sequential(renamed.conv_in)
    with pytest.raises(ConfigError, match=r"conv_in\.weight"):
        ControlNetModel.from_unet(renamed)


def test_residuals_fit_the_unet() -> None:
    unet = UNet2DConditionModel(**{k: v for k, v in SDXL.items() if "conditioning" not in k}, **UP_SDXL).eval()
    controlnet = live(ControlNetModel.from_unet(unet)).eval()
    given = inputs(*FAMILIES["sdxl"])
    down, mid = controlnet(**given, return_dict=False)
    del given["controlnet_cond"]
    with torch.no_grad():
        plain = unet(**given).sample
        led = unet(**given, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
    assert difference(plain, led) > 1e-3


@pytest.mark.parity
def test_image_and_projected_text_are_read(diffusers: Any) -> None:
    config = {**TINY, "addition_embed_type": "text_image"}
    theirs, ours = live_pair(diffusers.ControlNetModel, config)
    given = inputs(config, {"added_cond_kwargs": {"image_embeds": noise(2, 32), "text_embeds": noise(2, 32)}})
    other = {**given, "added_cond_kwargs": {"image_embeds": noise(2, 32), "text_embeds": noise(2, 32)}}
    with torch.no_grad():
        assert difference(theirs(**given)[1], theirs(**other)[1]) == 0
        assert difference(ours(**given)[1], ours(**other)[1]) > 1e-3
    config = {**TINY, "encoder_hid_dim": 48, "encoder_hid_dim_type": "text_proj"}
    given = inputs(config, {"encoder_hidden_states": noise(2, 7, 48)})
    with pytest.raises(RuntimeError, match="shapes"):
        diffusers.ControlNetModel(**config)(**given)
    assert live(ControlNetModel(**config))(**given).mid_block_res_sample.any()


def test_round_trip(tmp_path: Any) -> None:
    model = live(ControlNetModel(**SDXL)).eval()
    model.save_pretrained(tmp_path)
    again = ControlNetModel.from_pretrained(tmp_path)
    given = inputs(*FAMILIES["sdxl"])
    assert max(difference(a, b) for a, b in zip(flat(model(**given)), flat(again(**given)), strict=True)) <= 1e-6


@pytest.mark.parity
def test_the_peer_reads_what_we_save(tmp_path: Any, diffusers: Any) -> None:
    model = live(ControlNetModel(**TINY)).eval()
    model.save_pretrained(tmp_path)
    theirs = diffusers.ControlNetModel.from_pretrained(tmp_path)
    given = inputs(TINY, {})
    with torch.no_grad():
        assert max(difference(a, b) for a, b in zip(flat(theirs(**given)), flat(model(**given)), strict=True)) <= 1e-5


@pytest.mark.parametrize("family", ["sd1", "sdxl", "shuffle"])
def test_compiles_as_one_graph(family: str) -> None:
    config, given = FAMILIES[family]
    model = live(ControlNetModel(**config)).eval()
    given = inputs(config, given)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        for guess in (False, True):
            expected, found = flat(model(**given, guess_mode=guess)), flat(compiled(**given, guess_mode=guess))
            assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_a_picture_that_stays_is_read_once(order: str) -> None:
    model = live(ControlNetModel(**{**TINY, "controlnet_conditioning_channel_order": order})).eval()
    given, read = inputs(TINY, {}), []
    model.controlnet_cond_embedding.register_forward_hook(lambda *call: read.append(call))
    picture = ControlPicture(given["controlnet_cond"])
    shown = {**given, "controlnet_cond": picture}
    flat(model(**shown))
    assert picture.features is None, "a graph of gradients must not outlive its step"
    with torch.no_grad():
        expected = flat(model(**given))
        for _ in range(2):
            assert all(torch.equal(a, b) for a, b in zip(expected, flat(model(**shown)), strict=True))
        assert len(read) == 3
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert all(torch.equal(a, b) for a, b in zip(expected, flat(compiled(**shown)), strict=True))


def test_new_scale_does_not_recompile_each_time() -> None:
    model = live(ControlNetModel(**TINY)).eval()
    given = inputs(TINY, {})
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        for scale in (1.0, 0.9, 0.8, 0.35):
            compiled(**given, conditioning_scale=scale)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_memory_format_stays() -> None:
    model = live(ControlNetModel(**TINY)).eval().to(memory_format=torch.channels_last)
    given = inputs(TINY, {})
    for name in ("sample", "controlnet_cond"):
        given[name] = given[name].to(memory_format=torch.channels_last)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in flat(model(**given)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"controlnet_conditioning_channel_order": "bgrr"}, "'bgr'"),
        ({"conditioning_embedding_out_channels": None}, "16, 32, 96, 256"),
        ({"conditioning_embedding_out_channels": ()}, "16, 32, 96, 256"),
        ({"down_block_types": ("CrossAtnDownBlock2D", "DownBlock2D")}, "'CrossAttnDownBlock2D'"),
        ({"mid_block_type": "UNetMidBlock2DCross"}, "UNetMidBlock2DCrossAttn"),
        ({"num_attention_heads": (4,)}, "num_attention_heads has 1 values"),
        ({"addition_embed_type": "text_time"}, "addition_time_embed_dim"),
        ({"conditioning_chanels": 4}, "'conditioning_channels'"),
    ],
)
def test_wrong_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ControlNetModel(**{**TINY, **options})


def test_wrong_inputs() -> None:
    model = ControlNetModel(**TINY).eval()
    given = inputs(TINY, {})
    cases = [
        ({"controlnet_cond": noise(2, 4, 128, 128)}, "conditioning_channels"),
        ({"controlnet_cond": noise(3, 128, 128)}, "conditioning_channels"),
        ({"controlnet_cond": noise(3, 3, 128, 128)}, "3 pictures for a batch of 2"),
        (
            {"controlnet_cond": noise(2, 3, 64, 128)},
            r"\(64, 128\) and becomes \(8, 16\).*sample has \(16, 16\).* 8 times",
        ),
        ({"sample": noise(2, 9, 16, 16)}, "in_channels"),
        ({"encoder_hidden_states": None}, "encoder_hidden_states is None"),
        ({"encoder_hidden_states": noise(2, 7, 16)}, "cross_attention_dim"),
        ({"timestep_cond": noise(2, 12)}, "time_cond_proj_dim"),
        ({"cross_attention_kwargs": {"scael": 1.0}}, "scael"),
    ]
    for wrong, words in cases:
        with pytest.raises(InputError, match=words):
            model(**{**given, **wrong})


def test_builds_without_arguments() -> None:
    with torch.device("meta"):
        model = ControlNetModel()
    assert len(model.controlnet_down_blocks) == 12
