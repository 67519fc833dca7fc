"""Controls, tiny and video autoencoders in their authors' layouts: names, shapes, options and values, both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from langevin.weights.checkpoint import Reverted
from langevin.weights.family import Layout
from langevin.weights.header import Header, matching
from langevin.weights.layouts import controls, ldm, tiny, video
from langevin.weights.rules import Move
from tests.weights.published import facts_of

pytestmark = pytest.mark.parity
CONTROL, UNET = "control_model.", "model.diffusion_model."
XL_CONTROL = {
    "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VIDEO_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "latent_channels": 4,
}
TINY_CONTROL = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 768,
    "conditioning_embedding_out_channels": (4, 8, 8, 16),
}


class Case(NamedTuple):
    """A published network: the peer's class and options, our layout, and how its file is recognised."""

    model: str
    options: dict[str, Any]
    layout: Layout
    family: str
    prefix: str = ""


CASES = {
    "controlnet": Case("ControlNetModel", {"cross_attention_dim": 768}, controls.CONTROLNET, "controlnet", CONTROL),
    "controlnet-xl": Case("ControlNetModel", XL_CONTROL, controls.CONTROLNET, "controlnet", CONTROL),
    "adapter": Case("T2IAdapter", {}, controls.ADAPTER, "t2i_adapter"),
    "adapter-grey": Case("T2IAdapter", {"in_channels": 1}, controls.ADAPTER, "t2i_adapter", "adapter."),
    "adapter-xl": Case(
        "T2IAdapter", {"adapter_type": "full_adapter_xl", "downscale_factor": 16}, controls.ADAPTER, "t2i_adapter"
    ),
    "adapter-light": Case(
        "T2IAdapter",
        {"adapter_type": "light_adapter", "channels": [320, 640, 1280], "num_res_blocks": 4},
        controls.ADAPTER,
        "t2i_adapter",
    ),
    "tiny": Case("AutoencoderTiny", {}, tiny.TINY, "autoencoder_tiny", "taesd_"),
    "video-unet": Case("UNetSpatioTemporalConditionModel", {}, video.UNET, "stable_video_diffusion", UNET),
    "video-vae": Case("AutoencoderKLTemporalDecoder", VIDEO_VAE, video.VAE, ""),
}  # fmt: skip


def built(case: Case, device: str = "meta") -> Any:
    import diffusers

    with torch.device(device):
        return getattr(diffusers, case.model)(**case.options)


@cache
def published(name: str) -> Any:
    return built(CASES[name])


@cache
def filed(name: str) -> dict[str, Tensor]:
    """Return the tensors of a published network under its authors' names, without values."""
    network = published(name)
    return dict(Reverted(network.state_dict(), CASES[name].layout.rules(network.config)))


def carried_out(moves: Iterable[Move], file: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that moves make of a file."""
    made = {}
    for move in moves:
        made |= move.carry(file)
    return made


@pytest.fixture(params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_name_and_shape_of_a_published_network_has_its_place(name: str) -> None:
    case, network, file = CASES[name], published(name), filed(name)
    state, rules = network.state_dict(), case.layout.rules(network.config)
    assert len(file) == len(state)
    plan = rules.plan(file)
    assert not plan.foreign and not plan.partial
    assert {name: value.shape for name, value in carried_out(plan.moves, file).items()} == {
        name: tensor.shape for name, tensor in state.items()
    }


def test_shapes_tell_the_options(name: str) -> None:
    case, network = CASES[name], published(name)
    found = case.layout.infer(Header({name: tuple(value.shape) for name, value in filed(name).items()}))
    told = {name: list(v) if isinstance(v, (tuple, list)) else v for name, v in found.items()}
    wanted = {name: network.config[name] for name in found}
    assert told == {name: list(v) if isinstance(v, (tuple, list)) else v for name, v in wanted.items()}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.family])
def test_a_file_is_recognised_by_its_names(name: str) -> None:
    case = CASES[name]
    facts = facts_of(Header({case.prefix + name: tuple(value.shape) for name, value in filed(name).items()}))
    assert facts.family == case.family
    assert facts.reasons and case.family in facts.explain()


SMALL: dict[str, tuple[Case, Callable[..., Any]]] = {
    "controlnet": (CASES["controlnet"]._replace(options=TINY_CONTROL), controls.infer_controlnet),
    "adapter": (CASES["adapter"]._replace(options={"channels": [8, 16], "num_res_blocks": 3}), controls.infer_adapter),
    "tiny": (
        CASES["tiny"]._replace(
            options={
                "encoder_block_out_channels": (8, 16), "decoder_block_out_channels": (16, 8),
                "num_encoder_blocks": (1, 2), "num_decoder_blocks": (2, 1),
            }
        ),
        tiny.infer_tiny,
    ),
}  # fmt: skip


@pytest.mark.parametrize("small", SMALL)
def test_values_come_back_bit_by_bit(small: str) -> None:
    case, infer = SMALL[small]
    torch.manual_seed(0)
    state = built(case, "cpu").state_dict()
    network = built(case)
    rules = case.layout.rules(network.config)
    file = {name: value.clone() for name, value in Reverted(state, rules).items()}
    again = case.layout.rules(infer(Header({name: tuple(value.shape) for name, value in file.items()})))
    moved = carried_out(again.plan(file).moves, file)
    assert moved.keys() == state.keys()
    assert all(torch.equal(moved[name], state[name]) for name in state)


def test_a_controlnet_is_converted_as_by_the_peer() -> None:
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    case = SMALL["controlnet"][0]
    torch.manual_seed(1)
    network = built(case, "cpu")
    file = dict(Reverted(network.state_dict(), controls.controlnet_rules(network.config), prefix="control_model."))
    theirs = convert_controlnet_checkpoint(dict(file), dict(network.config))
    assert theirs.keys() == network.state_dict().keys()
    assert all(torch.equal(theirs[name], value) for name, value in network.state_dict().items())


def test_layers_over_time_stand_beside_those_of_pictures() -> None:
    network = published("video-unet")
    pictures = {source for each in ldm.unet_rules({"addition_embed_type": "x", **network.config}).rules
                for source in each.sources}  # fmt: skip
    both = {source for each in video.unet_rules(network.config).rules for source in each.sources}
    assert pictures < both
    assert all("time_" in name for name in both - pictures)
    names = {f"input_blocks.1.1.{name}" for name in ("time_stack.0.attn1.to_q.weight", "time_pos_embed.0.weight")}
    assert names < filed("video-unet").keys()
    (family,) = video.FAMILIES
    stray = ("conditioner.embedders.3.encoder.conv_in.weight", "model_ema.decay")
    assert list(matching([*stray, "conditioner.embedders.9.x"], family.ignored)) == list(stray)
