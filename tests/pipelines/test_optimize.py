"""`optimize` and what it leaves as it was; float32 products in calls on a CPU that converts the type of weights."""

from __future__ import annotations

import copy
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import langevin
from langevin.core.errors import ConfigError
from langevin.nn import amx, group_norm
from langevin.optimization import heap, layers, plan, processor
from langevin.optimization.offload import Offload
from langevin.picturebook import model_folder
from tests.adapters import loras
from tests.models.tiny import TINY
from tests.pipelines.conftest import quiet

BF16 = torch.bfloat16
CALL = {"prompt": "a red house", "num_inference_steps": 2, "output_type": "np", "seed": 0}
CPU = torch.device("cpu")
CONV = {"packed convolutions"}


@pytest.fixture(autouse=True)
def converts_both(monkeypatch):
    """A processor that multiplies in neither half-precision type, and as torch has it in float32."""
    monkeypatch.setattr(processor, "CONVERTED", frozenset(processor.HALF))
    monkeypatch.setattr(processor, "HANDED", frozenset())
    monkeypatch.setattr(processor, "JOINED", frozenset())
    for kernel in (amx, group_norm):
        monkeypatch.setattr(kernel, "supported", lambda: False)


@pytest.fixture
def pipe():
    return quiet(langevin.StableDiffusionPipeline.from_pretrained(model_folder()))


def draw(pipe, **call) -> np.ndarray:
    return pipe(**CALL, **call).images


def changed(pipe) -> set[str]:
    kinds = set(layers.ORIGINAL) - set(heap.KEEPING.values())
    return {type(m).__name__ for net in pipe._networks.values() for m in net.modules() if type(m) in kinds}


def what(report) -> dict[str, set[str]]:
    """Return network -> steps, of those that this file is about."""
    kinds = {step.name for step in (plan.ChannelsLast, plan.Widened, plan.Packed, plan.Compiled)}
    found = [change for change in report if change.what in kinds]
    return {change.network: {c.what for c in found if c.network == change.network} for change in found}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_the_picture_stays_and_everything_can_be_undone(pipe, tmp_path):
    plain = draw(pipe)
    layout = {n: (p.stride(), p.clone()) for n, p in pipe.unet.named_parameters()}
    pipe.save_pretrained(tmp_path / "before")
    report = pipe.optimize()
    assert what(report) == {"unet": CONV, "vae": CONV} and changed(pipe) == {"PackedConv2d"}
    assert "unet: packed convolutions" in str(report) and all(change.why for change in report)
    again = pipe.optimize()
    assert not again and str(again) == "Nothing was left to do."
    assert np.abs(draw(pipe) - plain).max() < 1e-4
    assert not any("_packing" in vars(m) for net in pipe._networks.values() for m in net.modules())
    pipe.save_pretrained(tmp_path / "after")
    assert contents(tmp_path / "after") == contents(tmp_path / "before")
    twin = copy.deepcopy(pipe.unet)
    pipe.deoptimize()
    plan.deoptimize(twin)
    for network in (pipe.unet, twin):
        assert all(p.stride() == layout[n][0] and torch.equal(p, layout[n][1]) for n, p in network.named_parameters())
        assert not plan.done(network)
    assert not changed(pipe) and (draw(pipe) == plain).all()


def test_a_network_of_its_own():
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 3)).requires_grad_(False)
    x = torch.randn(1, 4, 9, 9)
    plain = net(x)
    assert [c.network for c in plan.optimize(net)] == ["Sequential"]
    drawn = net(x)
    torch.testing.assert_close(drawn, plain)
    assert drawn.is_contiguous(memory_format=torch.channels_last) and net[0].weight.is_contiguous()
    assert not plan.optimize(nn.Linear(4, 4)) and not plan.optimize(nn.ReLU())
    already = nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last)
    assert what(plan.optimize(already)) == {"Conv2d": {"packed convolutions"}}
    plan.deoptimize(already)
    assert already.weight.is_contiguous(memory_format=torch.channels_last)


def test_calls_multiply_in_float32_where_the_processor_converts(pipe, monkeypatch):
    pipe.to(BF16)
    classes = []
    watch = {"callback_on_step_end": lambda p, *rest: classes.append(changed(p)) or {}}
    wide = draw(pipe, **watch)
    assert classes[0] == {"WideLinear", "WideConv2d"} and not changed(pipe)
    pipe.suits_processor = False
    plain = draw(pipe, **watch)
    assert classes[-1] == set()
    assert 0 < np.linalg.norm(wide - plain) <= 1e-2 * np.linalg.norm(plain)
    pipe.suits_processor = True
    monkeypatch.setattr(processor, "CONVERTED", frozenset({torch.float16}))
    packed = draw(pipe, **watch)
    assert np.linalg.norm(packed - plain) <= 1e-2 * np.linalg.norm(plain) and classes[-1] == {"PackedConv2d"}
    assert not changed(pipe)
    assert not any("_packing" in vars(m) for net in pipe._networks.values() for m in net.modules())


def test_it_follows_the_type_of_the_weights(pipe):
    pipe.optimize()
    pipe.to(BF16)
    report = what(pipe.optimize())
    assert report == {name: {"float32 products"} for name in ("unet", "vae", "text_encoder")}
    narrow = draw(pipe)
    pipe.to(torch.float32)
    assert not pipe.optimize() and changed(pipe) == {"PackedConv2d"}
    pipe.deoptimize()
    assert np.linalg.norm(narrow - draw(pipe)) < 2e-2 * np.linalg.norm(narrow)


def test_what_is_asked_for_is_done_or_refused(pipe):
    with pytest.raises(ConfigError, match=r"CUDA graphs.*to\('cuda'\)"):
        pipe.optimize(graphs=True)
    with pytest.raises(ConfigError, match=r"Linear.*compiled.*convolutional"):
        plan.optimize(nn.Linear(4, 4), compile=True)
    with pytest.raises(ConfigError, match="not both"):
        pipe.optimize(compile=True, graphs=True)
    assert not changed(pipe)


def test_another_device_is_another_plan():
    net = nn.Conv2d(4, 4, 3)
    plan.optimize(net)
    plan.optimize(net, device=torch.device("cuda"))
    assert plan.done(net) == () and type(net) is nn.Conv2d and net.weight.is_contiguous()
    assert what(plan.optimize(net.half(), device=torch.device("cuda"))) == {"Conv2d": {"channels last"}}


def test_adapters_before_and_after(pipe):
    def adapter(seed: int) -> dict:
        return loras.diffusers({"unet": loras.halves(pipe.unet, ("to_q", "conv1"), seed=seed, strength=3.0)})

    plain = draw(pipe)
    pipe.load_lora_weights(adapter(0), adapter_name="a")
    wanted = draw(pipe)
    pipe.optimize()
    assert np.abs(draw(pipe) - wanted).max() < 1e-4 < np.abs(wanted - plain).max()
    pipe.fuse_lora()
    assert np.abs(draw(pipe) - wanted).max() < 1e-4
    pipe.deoptimize()
    pipe.optimize()
    pipe.unfuse_lora()
    pipe.load_lora_weights(adapter(1), adapter_name="b")
    both = draw(pipe)
    pipe.deoptimize()
    assert np.abs(draw(pipe) - both).max() < 1e-4 < np.abs(wanted - both).max()
    pipe.unload_lora_weights()
    assert (draw(pipe) == plain).all()


def test_networks_that_wait(pipe):
    plain = draw(pipe)
    pipe._offload = Offload(CPU, blocks=True)
    assert what(pipe.optimize()) == {"unet": CONV, "vae": CONV}
    assert np.abs(draw(pipe) - plain).max() < 1e-4
    with pytest.raises(ConfigError, match="cannot be compiled"):
        pipe.optimize(compile=True)
    pipe.deoptimize()
    assert (draw(pipe) == plain).all()


def test_during_a_call_nothing_is_changed(pipe):
    errors = []

    def change(pipe, *rest) -> dict:
        for call in (pipe.optimize, pipe.deoptimize, lambda: plan.optimize(pipe.unet)):
            try:
                call()
            except ConfigError as error:
                errors.append(str(error))
        return {}

    pipe.to(BF16)
    draw(pipe, callback_on_step_end=change, callback_on_step_end_tensor_inputs=[])
    assert len(errors) == 6 and all("call of" in error for error in errors)
    assert pipe.optimize()


@pytest.mark.parametrize("optimized", [False, True])
def test_threads_share_a_pipeline(pipe, optimized):
    pipe.to(BF16)
    if optimized:
        pipe.optimize()
    wanted, found = draw(pipe), []
    threads = [threading.Thread(target=lambda: found.append(draw(pipe))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and all((pictures == wanted).all() for pictures in found)
    assert optimized or not changed(pipe)


def test_compiling_is_asked_for_and_undone(pipe, monkeypatch):
    """What is compiled is told by a backend that runs the graphs as they are."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **options: compiled(*args, **options, backend="eager"))
    plain = draw(pipe)
    assert what(pipe.optimize(compile=True)) == {
        "unet": {"channels last", "compiled"},
        "vae": {"channels last", "compiled"},
    }
    assert pipe.unet._compiled_call_impl is not None and pipe.vae.decoder._compiled_call_impl is not None
    assert not pipe.optimize(compile=True) and not pipe.optimize()
    with pytest.raises(ConfigError, match="compiled"):
        Offload(CPU, blocks=True).attach(pipe._networks)
    pipe.deoptimize()
    assert pipe.unet._compiled_call_impl is None is pipe.vae.decoder._compiled_call_impl
    assert (draw(pipe) == plain).all()


def test_several_controlnets_are_compiled_and_taken_back():
    unet = langevin.UNet2DConditionModel(sample_size=8, **TINY)
    net = langevin.MultiControlNetModel([langevin.ControlNetModel.from_unet(unet) for _ in range(2)])
    assert "compiled" in {change.what for change in plan.optimize(net, compile=True)}
    assert all(part._compiled_call_impl is not None for part in net.nets)
    plan.deoptimize(net)
    assert all(module._compiled_call_impl is None for module in net.modules())


def test_packed_weights_of_the_unet_are_gone_while_the_latents_are_decoded(pipe, monkeypatch):
    """They are a third of what a call takes at its end."""
    pipe.optimize()
    seen = []
    decode = pipe.vae.decode
    monkeypatch.setattr(pipe.vae, "decode", lambda *a, **k: (seen.append(kept(pipe.unet)), decode(*a, **k))[1])
    draw(pipe, callback_on_step_end=lambda p, *rest: seen.append(kept(p.unet)) or {})
    assert seen[0] > 0 and seen[-1] == 0
    draw(pipe)
    mask = np.zeros((64, 64), dtype=np.float32)
    mask[:32] = 1
    painted = langevin.StableDiffusionInpaintPipeline.from_pipe(pipe)
    quiet(painted)(**{**CALL, "image": np.zeros((64, 64, 3)), "mask_image": mask})
    assert seen[-1] == 0


def kept(network) -> int:
    """Return how many convolutions hold packed weights."""
    return sum("_packing" in vars(module) for module in network.modules())
