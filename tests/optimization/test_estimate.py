"""The rehearsal of a call: what it counts is what a real run allocates and computes, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from langevin import DiffusionPipeline
from langevin.core.errors import ConfigError, InputError
from langevin.optimization import plan, processor
from langevin.optimization.estimate import Ledger, workspace
from langevin.optimization.offload import Offload
from langevin.picturebook import model_folder
from tests.live_bytes import LiveBytes

CALL = {"prompt": "a red house", "num_inference_steps": 3, "height": 128, "width": 128}


@pytest.fixture(scope="module")
def pipe():
    pipe = DiffusionPipeline.from_pretrained(model_folder())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def estimated(pipe, **call):
    return pipe.estimate(timed=False, **CALL | call)


def by_name(estimate):
    return {stage.name: stage for stage in estimate.stages}


@pytest.fixture(scope="module")
def plain(pipe):
    return by_name(estimated(pipe))


def test_bytes_and_operations_are_those_of_a_real_network(pipe, plain) -> None:
    shapes = (2, 4, 32, 32), (2, 24, pipe.unet.config.cross_attention_dim)
    sample, context = (torch.zeros(shape) for shape in shapes)
    with torch.no_grad(), FlopCounterMode(display=False) as flops, LiveBytes() as live:
        pipe.unet(sample, torch.tensor(1), context)
    assert plain["unet"].calls == 3
    assert plain["unet"].flops == pytest.approx(3 * flops.get_total_flops(), rel=0.02)
    # What the kernels of convolutions hold beside their tensors counts in the estimate alone.
    assert live.peak <= plain["unet"].activations <= 1.25 * live.peak


def test_the_decoder_counts_what_its_convolutions_copy(pipe, plain) -> None:
    with torch.no_grad(), LiveBytes() as live:
        pipe.vae.decode(torch.zeros(1, 4, 32, 32))
    assert 1.1 * live.peak < plain["vae.decode"].activations < 1.6 * live.peak
    maps, result, kernel = torch.empty(1, 24, 8, 8), torch.empty(1, 20, 8, 8), torch.empty(20, 24, 3, 3)
    convolution = torch.ops.aten.convolution.default
    assert workspace(convolution, [maps, kernel], [result]) == 4 * 64 * max(32 + 32 - 20, 32)
    last = maps.contiguous(memory_format=torch.channels_last)
    assert workspace(convolution, [last, kernel], [result]) == 0


def test_weights_are_those_of_all_networks(pipe, plain) -> None:
    weights = sum(x.nbytes for net in pipe._networks.values() for x in [*net.parameters(), *net.buffers()])
    assert {stage.weights for stage in plain.values()} == {weights}
    assert list(plain) == ["text_encoder", "unet", "vae.decode"]


def test_nothing_of_the_pipeline_changes(pipe) -> None:
    before = pipe(**CALL, seed=0, output_type="np").images
    networks = {name: (network, dict(network.__dict__)) for name, network in pipe._networks.items()}
    stream = torch.Generator().manual_seed(3)
    state = stream.get_state()
    estimated(pipe, generator=stream)
    assert torch.equal(stream.get_state(), state)
    for name, (network, held) in networks.items():
        assert getattr(pipe, name) is network
        assert network.__dict__.keys() == held.keys()
    assert (pipe(**CALL, seed=0, output_type="np").images == before).all()


def test_numbers_and_slices_of_the_decoder_count_as_they_act(pipe, plain) -> None:
    pipe.enable_vae_slicing()
    try:
        four = by_name(estimated(pipe, num_images_per_prompt=4, guidance_scale=1.0, num_inference_steps=2))
    finally:
        pipe.disable_vae_slicing()
    assert four["unet"].flops == pytest.approx(4 * plain["unet"].flops / 3, rel=0.02)
    assert four["text_encoder"].calls == 1
    assert four["vae.decode"].flops == 4 * plain["vae.decode"].flops
    assert four["vae.decode"].activations < 1.3 * plain["vae.decode"].activations


def test_slices_of_attention_count_as_they_act(pipe) -> None:
    large = {"height": 256, "width": 256, "num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent"}
    pipe.unet.set_attention_backend("eager")
    try:
        whole = by_name(estimated(pipe, **large))["unet"]
        pipe.enable_attention_slicing("max")
        sliced = by_name(estimated(pipe, **large))["unet"]
    finally:
        pipe.disable_attention_slicing()
        pipe.unet.reset_attention_backend()
    assert sliced.activations < 0.5 * whole.activations
    assert sliced.flops == whole.flops


@pytest.mark.parametrize("way", [{}, {"blocks": True, "ahead": False}])
def test_offloaded_weights_count_while_they_are_there(pipe, way) -> None:
    own = pipe.unet.get_memory_footprint()
    pipe._offload = Offload(torch.device("cpu"), **way)
    try:
        counted = by_name(estimated(pipe, num_inference_steps=1))["unet"].weights
    finally:
        pipe.remove_all_hooks()
    assert 0.05 * own < counted < 0.6 * own if way else counted == own


def test_the_table_names_every_stage_and_a_time(pipe) -> None:
    estimate = pipe.estimate(**CALL)
    lines = str(estimate).splitlines()
    assert lines[0] == "StableDiffusionPipeline on cpu in float32"
    assert [line.split()[0] for line in lines[1:]] == ["stage", "text_encoder", "unet", "vae.decode", "all"]
    assert estimate.peak == max(stage.peak for stage in estimate.stages)
    assert estimate.seconds > estimate.stages[1].seconds > 0
    assert estimated(pipe).seconds is None


def test_mistakes_are_those_of_the_call(pipe) -> None:
    with pytest.raises(ConfigError, match="num_inference_steps"):
        pipe.estimate(num_inference_step=3)
    with pytest.raises(InputError, match="height"):
        pipe.estimate(height=65, timed=False)


def test_questions_about_values_are_answered_with_yes() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    ledger = Ledger(torch.device("cpu"))
    with ledger, FakeTensorMode(), ledger:
        x = torch.empty(1000)
        assert torch.isfinite(x).all()
        assert ledger.now == 4000
    del x
    assert ledger.now == 0


def test_copies_of_packed_convolutions_count(plain, monkeypatch) -> None:
    for types in ("HANDED", "JOINED", "CONVERTED"):
        monkeypatch.setattr(processor, types, frozenset())
    pipe = DiffusionPipeline.from_pretrained(model_folder())
    pipe.set_progress_bar_config(disable=True)
    copied = sum(layer.weight.numel() for net in (pipe.unet, pipe.vae) for layer in plan.convolutions(net))
    pipe.optimize()
    assert estimated(pipe).stages[0].weights == plain["unet"].weights + 4 * copied
    pipe.deoptimize()
    pipe.to(torch.bfloat16)
    unasked = estimated(pipe).stages[0].weights
    pipe.suits_processor = False
    assert unasked == estimated(pipe).stages[0].weights + 2 * copied
