"""Recorded calls of a network: equal to plain ones, recorded anew when anything changed, plain where they must be."""

from __future__ import annotations

import copy
import inspect
import logging
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from langevin import DiffusionPipeline, UNet2DConditionModel, picturebook
from langevin.core.errors import ConfigError
from langevin.diffusion.sampling import FiniteWatch
from langevin.nn.attention import Attention
from langevin.nn.processors import AttnProcessor, named_attentions
from langevin.optimization import graphs, kept
from langevin.optimization.graphs import CudaRecording, Rehearsal, Replay, Replayed, mapped
from langevin.optimization.plan import optimize
from langevin.pipelines import sampling
from tests.adapters.loras import diffusers, halves
from tests.models.tiny import TINY, noise


@pytest.fixture
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**TINY).eval()


@torch.no_grad()
def call(unet: nn.Module, step: int = 0, *, side: int = 8, **more: Any) -> Tensor:
    weight = next(unet.parameters())
    given = [noise(2, 4, side, side, seed=step), torch.tensor(float(9 * step)), noise(2, 7, 16, seed=step + 50)]
    return unet(*(one.to(weight.device, weight.dtype) for one in given), **more).sample


def plain(unet: nn.Module, step: int = 0, **more: Any) -> Tensor:
    """Return what the network says without a recording."""
    bare = copy.deepcopy(unet)
    graphs.detach(bare)
    return call(bare, step, **more)


class Tape(TorchDispatchMode):
    """Writes down every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.lines.append((func, (args, kwargs or {}), made))
        return made


class Taped:
    """A recording on the CPU that runs no Python of the network: its operations, on the very tensors that it met."""

    device = "cpu"
    made = 0

    def __init__(self, call: Callable[[], Any], pool: Any) -> None:
        Taped.made += 1
        self.tape = Tape()
        with self.tape:
            self.output = call()

    def play(self) -> Any:
        now: dict[int, Any] = {}

        def meant(value: Any) -> Any:
            return now.get(id(value), value)

        for func, given, made in self.tape.lines:
            args, kwargs = tree_map(meant, given)
            found = func(*args, **kwargs)
            now.update(zip(map(id, tree_leaves(made)), tree_leaves(found), strict=True))
        return mapped(self.output, meant)


def residuals(step: int) -> dict[str, Any]:
    """Return what a ControlNet would add at a step."""
    sizes = [(32, 8), (32, 8), (32, 4), (64, 4)]
    maps = tuple(noise(2, width, side, side, seed=step + i) for i, (width, side) in enumerate(sizes))
    return {"down_block_additional_residuals": maps, "mid_block_additional_residual": noise(2, 64, 4, 4, seed=step)}


def test_replays_equal_plain_calls_and_outputs_stay(unet) -> None:
    wanted = [call(unet, step) for step in range(5)]
    signature = inspect.signature(unet.forward)
    replay = graphs.attach(unet, Rehearsal)
    found = [call(unet, step) for step in range(5)]
    assert all(map(torch.equal, found, wanted)) and replay.played == 4
    assert inspect.signature(unet.forward) == signature
    graphs.detach(unet)
    assert "forward" not in vars(unet) and torch.equal(call(unet), wanted[0])


def test_a_recording_computes_from_its_buffers_alone(unet) -> None:
    """An output that is not cloned is overwritten, and inputs are read at the time of the call."""
    replay = graphs.attach(unet, Rehearsal)
    for step in range(2):
        call(unet, step)
    ((recording, buffers),) = replay.forms.values()
    stale = recording.play().sample
    before = stale.clone()
    buffers[0].mul_(2)
    recording.play()
    assert not torch.equal(stale, before)
    text = noise(2, 7, 16, seed=50)
    with torch.no_grad():
        first = unet(noise(2, 4, 8, 8), torch.tensor(0.0), text).sample
        text.mul_(3)
        second = unet(noise(2, 4, 8, 8), torch.tensor(0.0), text).sample
    assert replay.played == 3 and not torch.equal(first, second)


def test_residuals_are_inputs(unet) -> None:
    wanted = [call(unet, step, **residuals(step)) for step in range(4)]
    replay = graphs.attach(unet, Rehearsal)
    assert all(torch.equal(call(unet, step, **residuals(step)), wanted[step]) for step in range(4))
    assert replay.played == 3
    assert torch.equal(call(unet), plain(unet)) and replay.played == 3


def test_every_form_has_its_recording_and_the_oldest_goes(unet, monkeypatch) -> None:
    monkeypatch.setattr(graphs, "LIMIT", 2)
    replay = graphs.attach(unet, Rehearsal)
    sides = [4 * (k + 1) for k in range(graphs.LIMIT + 1)]
    for side in sides:
        for step in range(2):
            assert torch.equal(call(unet, step, side=side), plain(unet, step, side=side))
    assert replay.played == len(sides) and len(replay.forms) == graphs.LIMIT
    call(unet, side=sides[-1])
    assert replay.played == len(sides) + 1
    call(unet, side=sides[0])
    assert replay.played == len(sides) + 1


def a_lora(unet: UNet2DConditionModel) -> None:
    unet.load_lora_adapter(diffusers({"unet": halves(unet, strength=3.0)}))


def a_fused_lora(unet: UNet2DConditionModel) -> None:
    a_lora(unet)
    unet.fuse_lora()


def another_type(unet: UNet2DConditionModel) -> None:
    unet.to(torch.float64)


def another_processor(unet: UNet2DConditionModel) -> None:
    unet.set_attn_processor(Doubled())


def weights_in_place(unet: UNet2DConditionModel) -> None:
    with torch.no_grad():
        unet.conv_in.weight.mul_(2)


def freeu(unet: UNet2DConditionModel) -> None:
    unet.enable_freeu(0.5, 0.5, 1.5, 1.5)


def token_merging(unet: UNet2DConditionModel) -> None:
    unet.enable_token_merging(0.5)


class Doubled(AttnProcessor):
    """What this test adds to the library's processors."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return 2 * super().__call__(*args, **kwargs)


CHANGES = [a_lora, a_fused_lora, another_type, another_processor, freeu, token_merging]


@pytest.mark.parametrize("change", [*CHANGES, weights_in_place])
def test_a_changed_network_is_recorded_anew(change: Callable, unet, monkeypatch) -> None:
    """Values that change in place are read by the recording that is there."""
    monkeypatch.setattr(Doubled, "__module__", AttnProcessor.__module__)
    monkeypatch.setattr(Taped, "made", 0)
    replay = graphs.attach(unet, Taped)
    before = [call(unet, step) for step in range(2)]
    change(unet)
    found = [call(unet, step) for step in range(3)]
    assert all(torch.equal(found[step], plain(unet, step)) for step in range(3))
    assert not torch.allclose(found[0], before[0].to(found[0].dtype), atol=1e-9) and replay.played >= 3
    assert Taped.made == (1 if change is weights_in_place else 2)


def test_weights_of_adapters_follow_without_a_new_recording(unet) -> None:
    a_lora(unet)
    graphs.attach(unet, Taped)
    for factor in (1.0, 0.5):
        unet.set_adapters("default_0", factor)
        found = [call(unet, step) for step in range(3)]
        assert all(torch.equal(found[step], plain(unet, step)) for step in range(3))
    unet.delete_adapters("default_0")
    assert torch.equal(call(unet), plain(unet))


class Counting(AttnProcessor):
    """A user's processor that remembers how often it was called."""

    calls = 0

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.calls += 1
        return super().__call__(attn, hidden_states, *args, **kwargs) * self.calls


def a_hook(unet: UNet2DConditionModel) -> dict[str, Any]:
    unet.mid_block.register_forward_hook(lambda module, given, out: out * 2)
    return {}


def a_processor(unet: UNet2DConditionModel) -> dict[str, Any]:
    unet.set_attn_processor(Counting())
    return {}


def another_module(unet: UNet2DConditionModel) -> dict[str, Any]:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    unet.conv_act = nn.Sequential(unet.conv_act, Twice())
    return {}


def an_object(unet: UNet2DConditionModel) -> dict[str, Any]:
    return {"deep_features": unet.new_deep_features(1)}


def a_scale(unet: UNet2DConditionModel) -> dict[str, Any]:
    a_lora(unet)
    return {"cross_attention_kwargs": {"scale": 0.5}}


@pytest.mark.parametrize("unfit", [a_hook, a_processor, another_module, an_object, a_scale])
def test_what_no_graph_holds_is_called_plainly_and_said_once(unfit: Callable, unet, caplog) -> None:
    more = unfit(unet)
    twin = copy.deepcopy(unet)
    theirs = copy.deepcopy(more)
    wanted = [call(twin, step, **theirs) for step in range(4)]
    replay = graphs.attach(unet, Rehearsal)
    with caplog.at_level(logging.WARNING, "langevin"):
        found = [call(unet, step, **more) for step in range(4)]
    assert all(map(torch.equal, found, wanted)) and replay.played == 0
    assert [record.message for record in caplog.records if "without a graph" in record.message] == [
        f"UNet2DConditionModel is called without a graph: {why}." for why in replay.told
    ]
    assert len(replay.told) == 1


@contextmanager
def patched(unet: UNet2DConditionModel) -> Iterator[None]:
    """Change the network for one call, as guidance by a perturbed network does."""
    layer = next(layer for _, layer in named_attentions(unet))
    before = layer.processor
    layer.set_processor(AttnProcessor())
    yield
    layer.set_processor(before)


def test_a_network_that_changes_at_every_call_is_left_alone(unet, caplog, monkeypatch) -> None:
    monkeypatch.setattr(graphs, "PATIENCE", 3)
    replay = graphs.attach(unet, Rehearsal)
    with caplog.at_level(logging.WARNING, "langevin"):
        for step in range(graphs.PATIENCE):
            assert torch.equal(call(unet, step), plain(unet, step))
            with patched(unet):
                assert torch.equal(call(unet, step), plain(unet, step))
    assert replay.played == 0 and [r.message for r in caplog.records] == [
        "UNet2DConditionModel is called without a graph: it changes at every call."
    ]


def test_numbers_in_place_of_a_tensor_cost_no_recording(unet) -> None:
    replay = graphs.attach(unet, Rehearsal)
    x, text = noise(2, 4, 8, 8), noise(2, 7, 16)
    with torch.no_grad():
        found = [unet(x, step, text).sample for step in range(12)]
    assert replay.played == 0 and not torch.equal(*found[:2])


def test_gradients_flow_through_plain_calls(unet) -> None:
    replay = graphs.attach(unet, Rehearsal)
    for _ in range(3):
        unet(noise(2, 4, 8, 8), torch.tensor(5), noise(2, 7, 16)).sample.sum().backward()
    assert unet.conv_in.weight.grad.abs().sum() > 0 and replay.played == 0 and not replay.forms


def test_copies_have_recorded_nothing(unet) -> None:
    replay = graphs.attach(unet, Rehearsal)
    for step in range(3):
        call(unet, step)
    for twin in (copy.deepcopy(unet), pickle.loads(pickle.dumps(unet))):
        assert isinstance(twin.forward, Replay) and twin.forward.network is twin and not twin.forward.forms
        assert torch.equal(call(twin, 1), call(unet, 1))
    assert replay.played == 4 and replay.network is unet


def test_failures_and_other_devices_are_plain_calls(unet, caplog) -> None:
    class Failing(Rehearsal):
        tries = 0

        def __init__(self, call: Callable[[], Any], pool: Any) -> None:
            Failing.tries += 1
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    wanted = call(unet)
    with caplog.at_level(logging.WARNING, "langevin"):
        for record in (Failing, CudaRecording):
            graphs.attach(unet, record)
            assert all(torch.equal(call(unet), wanted) for _ in range(4))
    assert Failing.tries == 1 and [record.message.partition(": ")[2] for record in caplog.records] == [
        "recording failed (operation not permitted when stream is capturing).",
        "it is on cpu, and graphs are recorded on cuda.",
    ]


def test_networks_that_something_else_runs_are_refused(unet) -> None:
    with pytest.raises(ConfigError, match="reduce-overhead"):
        graphs.attach(torch.compile(unet, backend="eager"))
    unet.forward = lambda *given: given
    with pytest.raises(ConfigError, match="was replaced"):
        graphs.attach(unet)


def test_it_is_a_step_for_unets_on_cuda_devices_alone(unet) -> None:
    step, cuda = Replayed(), torch.device("cuda")
    assert step.applies(unet, cuda, torch.float16) and not step.applies(unet, torch.device("cpu"), torch.float32)
    step.apply(unet)
    assert isinstance(unet.forward, Replay) and step.applies(unet, cuda, torch.float16)
    step.undo(unet)
    assert "forward" not in vars(unet)
    assert not step.applies(torch.compile(unet, backend="eager"), cuda, torch.float16)
    assert not step.applies(nn.Linear(2, 2), cuda, torch.float16)
    assert step.name not in [change.what for change in optimize(unet)]


def test_kept_keys_and_values_follow_the_buffers(unet) -> None:
    wanted = [call(unet, step) for step in range(4)]
    kept.attach(unet)
    replay = graphs.attach(unet, Rehearsal)
    assert all(torch.equal(call(unet, step), wanted[step]) for step in range(4)) and replay.played == 3


def test_threads_take_turns(unet) -> None:
    wanted = [plain(unet, step) for step in range(8)]
    replay = graphs.attach(unet, Rehearsal)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda step: call(unet, step), range(8)))
    assert all(map(torch.equal, found, wanted)) and replay.played >= 5


# In a pipeline ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe() -> DiffusionPipeline:
    found = DiffusionPipeline.from_pretrained(picturebook.model_folder())
    found.set_progress_bar_config(disable=True)
    return found


def test_a_run_whose_callback_replaces_the_prompt(pipe) -> None:
    other = pipe.encode_prompt("a blue cat", "cpu", 1, True)[:2]

    def replace(pipe: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds": torch.cat(other[::-1])} if step == 2 else {}

    def run() -> Tensor:
        more = {"callback_on_step_end": replace, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
        return pipe("a red house", num_inference_steps=5, seed=0, output_type="latent", **more).images

    wanted = run()
    replay = graphs.attach(pipe.unet, Rehearsal)
    try:
        assert torch.equal(run(), wanted) and replay.played == 4
    finally:
        graphs.detach(pipe.unet)


class NoWaiting(TorchDispatchMode):
    """Counts what makes the host wait for a device: reading a number, and shapes that follow from values."""

    NAMES = ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero", "aten::equal")

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name in self.NAMES or name == "aten::masked_select":
            self.waits.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("replayed", [False, True])
def test_the_loop_never_waits(replayed: bool, pipe, monkeypatch) -> None:
    """On the CPU the look for values that are not finite reads one number per step; on a GPU it reads at the end."""
    mode, looked, own, loop = NoWaiting(), [], FiniteWatch.see, sampling.sample

    def see(watch: FiniteWatch, output: Tensor, step: int) -> None:
        before = len(mode.waits)
        own(watch, output, step)
        looked.append(mode.waits[before:])
        del mode.waits[before:]

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        with mode:
            return loop(*args, **kwargs)

    monkeypatch.setattr(FiniteWatch, "see", see)
    monkeypatch.setattr(sampling, "sample", watched)
    if replayed:
        graphs.attach(pipe.unet, Rehearsal)
    pipe("a red house", num_inference_steps=4, seed=0, output_type="latent")
    graphs.detach(pipe.unet)
    assert mode.waits == []
    assert len(looked) == 4 and all(looked)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_graphs_equal_plain_calls(unet) -> None:
    unet.cuda()
    wanted = [call(unet, step) for step in range(5)]
    replay = graphs.attach(unet)
    found = [call(unet, step) for step in range(5)]
    assert replay.played == 4 and all(map(torch.equal, found, wanted))
