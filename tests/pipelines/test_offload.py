"""Networks that wait on the CPU: the same pictures, nothing used that is away, and nothing lost.

There is no accelerator here. The carrier of these tests keeps true weights for its pretended device, and leaves values
that are not numbers where they wait; whatever computes with them gives no picture.
"""

from __future__ import annotations

import threading

import pytest
import torch

import langevin
from langevin.core.errors import ConfigError, InputError
from langevin.nn.compiled import bare
from langevin.optimization.offload import Carrier, Offload, accelerator, own_tensors
from tests.adapters import loras
from tests.pipelines.conftest import quiet

CALL = {"prompt": "a cat", "num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "np", "seed": 0}
CPU = torch.device("cpu")
WAYS = {
    "models": {},
    "sequential": {"blocks": True, "ahead": False},
    "blocks": {"blocks": True},
    "half": {"blocks": True, "resident": 0.5},
    "all": {"blocks": True, "resident": 1.0},
}


class Poison(Carrier):
    """Counts what is sent, and what is on the pretended device at most."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.truth: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.sent = 0

    def pack(self, tensor):
        if tensor.data_ptr() in self.truth and self.truth[tensor.data_ptr()][0] is not None:
            return tensor
        left = torch.full_like(tensor, torch.nan) if tensor.is_floating_point() else torch.full_like(tensor, 10**6)
        self.truth[left.data_ptr()] = (left, tensor.clone())
        return left

    def send(self, tensors):
        self.sent += sum(tensor.nbytes for tensor in tensors)
        return [self.truth[tensor.data_ptr()][1].clone() if tensor.numel() else tensor for tensor in tensors]


def offloaded(pipe, **way) -> Poison:
    carrier = Poison()
    pipe._offload = Offload(CPU, carrier=carrier, **way)
    pipe._offload.attach(pipe._networks)
    return carrier


@pytest.fixture
def own(sd_folder):
    """A pipeline whose weights nobody else uses."""
    pipe = quiet(langevin.StableDiffusionPipeline.from_pretrained(sd_folder))
    pipe.scheduler = langevin.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    return pipe


def bytes_of(pipe) -> int:
    return sum(t.nbytes for network in pipe._networks.values() for m in network.modules() for t in own_tensors(m))


@pytest.mark.parametrize("way", WAYS)
def test_pictures_are_those_without(own, way):
    wanted = own(**CALL).images
    offloaded(own, **WAYS[way])
    for _ in range(2):
        assert (own(**CALL).images == wanted).all()


@pytest.mark.parametrize("way", ["models", "sequential", "blocks"])
def test_stable_diffusion_xl_and_its_switches(xl_folder, way):
    pipe = quiet(langevin.DiffusionPipeline.from_pretrained(xl_folder))
    pipe.enable_attention_slicing(1)
    pipe.enable_vae_slicing()
    pipe.enable_vae_tiling()
    wanted = pipe(**{**CALL, "prompt": ["a cat", "a dog"]}).images
    offloaded(pipe, **WAYS[way])
    assert (pipe(**{**CALL, "prompt": ["a cat", "a dog"]}).images == wanted).all()


def test_image_to_image_encodes(own):
    pipe = quiet(langevin.StableDiffusionImg2ImgPipeline(**own.components, requires_safety_checker=False))
    call = {**CALL, "image": own(**CALL).images, "strength": 0.7}
    wanted = pipe(**call).images
    offloaded(pipe, **WAYS["sequential"])
    assert (pipe(**call).images == wanted).all()


def test_nothing_is_there_after_a_call_and_all_is_back_after_the_end(own):
    before = {name: value.clone() for name, value in own.unet.state_dict().items()}
    offloaded(own, **WAYS["blocks"])
    own(**CALL)
    assert not own._offload._aboard
    assert all(torch.isnan(value).all() for value in own.unet.state_dict().values() if value.is_floating_point())
    truth = own._offload.carrier.truth
    own.remove_all_hooks()
    for name, value in own.unet.state_dict().items():
        assert torch.equal(truth[value.data_ptr()][1], before[name])
    assert own._offload is None
    assert not any(module._forward_pre_hooks for module in own.unet.modules())


def test_whole_networks_come_once_per_call(own):
    carrier = offloaded(own)
    own(**CALL)
    assert carrier.sent == bytes_of(own)


def test_what_stays_is_sent_once(own):
    carrier = offloaded(own, **WAYS["all"])
    own(**CALL)
    first = carrier.sent
    assert 0.9 * bytes_of(own) < first <= bytes_of(own)
    own(**CALL)
    assert carrier.sent == first


def test_a_resident_half_saves_half_of_the_copies(own):
    sent = {}
    for share in (0.0, 0.5):
        carrier = offloaded(own, blocks=True, resident=share)
        own(**CALL)
        first = carrier.sent
        own(**CALL)
        sent[share] = carrier.sent - first
        offload, kept = own._offload, sum(unit.bytes for unit in own._offload.units if unit.stays)
        assert 0.3 * share * bytes_of(own) <= kept <= share * bytes_of(own)
        for network in own._networks.values():
            for module in network.modules():
                for tensor in own_tensors(module):
                    tensor.data = offload.carrier.truth.get(tensor.data_ptr(), (None, tensor.data))[1]
        own._offload = None
        for hook in offload._hooks:
            hook.remove()
    assert sent[0.5] < 0.75 * sent[0.0]


def test_the_next_block_is_on_its_way(own):
    offloaded(own, **WAYS["blocks"])
    own(**CALL)
    offload, needed = own._offload, []
    need = offload._need

    def watched(unit):
        needed.append(unit.sent is not None)
        need(unit)

    offload._need = watched
    own(**CALL)
    assert sum(needed) > 0.95 * len(needed), needed


@pytest.mark.parametrize("way", ["models", "sequential"])
def test_a_lora_that_is_loaded_later_is_brought_too_and_makes_little_slower(own, way):
    adapter = loras.diffusers({"unet": loras.halves(own.unet, loras.UNET, seed=0, strength=3.0)})
    plain = own(**CALL).images
    own.load_lora_weights(adapter)
    wanted = own(**CALL).images
    assert abs(wanted - plain).max() > 1e-3
    own.unload_lora_weights()
    carrier = offloaded(own, **WAYS[way])
    assert (own(**CALL).images == plain).all()
    first = carrier.sent
    own.load_lora_weights(adapter)
    assert (own(**CALL).images == wanted).all()
    assert carrier.sent - first < 1.5 * first


def test_what_was_changed_on_the_device_is_kept(own):
    carrier = offloaded(own)
    unit = next(unit for unit in own._offload.units if unit.name == "unet")
    own._offload._need(unit)
    weight = own.unet.conv_in.weight
    with torch.no_grad():
        weight.mul_(2)
    wanted = weight.detach().clone()
    own._offload.free()
    assert torch.isnan(weight).all()
    assert torch.equal(carrier.truth[weight.data_ptr()][1], wanted)


def test_a_compiled_network_moves_whole_and_not_in_blocks(own):
    own.suits_processor = False  # which leaves compiled networks alone
    wanted = own(**CALL).images
    own.unet = torch.compile(own.unet, backend="eager", fullgraph=True)
    with pytest.raises(ConfigError, match="enable_model_cpu_offload"):
        offloaded(own, **WAYS["blocks"])
    offloaded(own)
    assert (own(**CALL).images == wanted).all()
    assert torch.isnan(bare(own.unet).conv_in.weight).all()


def test_two_threads_do_not_share_networks_that_move(own):
    offloaded(own)
    found = []

    def other(pipe, index, timestep, values):
        def call():
            try:
                pipe(**CALL)
            except ConfigError as error:
                found.append(str(error))

        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        return values

    own(**CALL, callback_on_step_end=other)
    assert found and "one call at a time" in found[0]


def test_what_cannot_be_is_said(pipe):
    for enable in (pipe.enable_model_cpu_offload, pipe.enable_sequential_cpu_offload, pipe.enable_block_offload):
        with pytest.raises(ConfigError, match="accelerator"):
            enable(device="cpu")
        with pytest.raises(InputError, match="cuda"):
            enable(device="cuda")
    with pytest.raises(ConfigError, match="resident is 2"):
        Offload(CPU, resident=2)
    assert pipe._offload is None


def test_one_device_is_meant(monkeypatch):
    monkeypatch.setattr("langevin.optimization.offload.present", torch.device)
    assert accelerator(1, "cuda") == torch.device("cuda:1")
    assert accelerator(None, "cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="two devices"):
        accelerator(1, "cuda:0")


def test_a_pipeline_that_offloads_computes_there_and_is_not_moved(own, monkeypatch):
    offloaded(own)
    monkeypatch.setattr("langevin.pipelines.base.present", torch.device)
    own._offload.device = torch.device("cuda")
    assert own._execution_device == torch.device("cuda")
    with pytest.raises(ConfigError, match="remove_all_hooks"):
        own.to("cuda")
