"""Keys and values that cross-attention keeps: equal to what is computed, forgotten in time, never used wrongly."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from langevin import DiffusionPipeline, UNet2DConditionModel, picturebook
from langevin.optimization import kept, layers
from langevin.optimization.plan import deoptimize, optimize
from tests.adapters.loras import diffusers, halves
from tests.models.tiny import TINY, noise

LAYERS = 4


@pytest.fixture
def text() -> Tensor:
    return noise(2, 7, 16, seed=1)


@pytest.fixture
def unet() -> UNet2DConditionModel:
    """A network that keeps keys and values."""
    torch.manual_seed(0)
    network = UNet2DConditionModel(**TINY).eval()
    assert kept.attach(network) == LAYERS == len(kept.attentions(network))
    return network


def test_optimize_does_it_on_the_cpu_and_takes_it_back(text) -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**TINY).eval()
    wanted = call(unet, text)
    assert kept.KeptText.name in [change.what for change in optimize(unet)]
    found = [call(unet, text) for _ in range(2)]
    assert known(unet) == [1] * LAYERS and (found[1] - wanted).abs().max() < 1e-5
    deoptimize(unet)
    assert all(layer.kept is None for layer in kept.attentions(unet)) and torch.equal(call(unet, text), wanted)
    assert not kept.KeptText().applies(unet, torch.device("cuda"), torch.float32)
    assert not kept.KeptText().applies(nn.Linear(2, 2), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_class_of_projection_is_another_result(unet, text, dtype) -> None:
    """Linear layers that multiply in float32 for one call must not leave their keys to the next."""
    unet.to(dtype)
    before = call(unet, text.to(dtype))
    text = text.to(dtype)
    for change in (layers.widen, lambda network: layers.restore(network.modules(), layers.WIDE.values())):
        call(unet, text)
        change(unet)
        assert torch.equal(call(unet, text), plain(unet, text))
    assert torch.equal(call(unet, text), before)


@torch.no_grad()
def call(unet: nn.Module, text: Tensor, **more: Any) -> Tensor:
    return unet(noise(2, 4, 8, 8).to(text.dtype), 5, text, **more).sample


def plain(unet: UNet2DConditionModel, text: Tensor, **more: Any) -> Tensor:
    """Return what the network gives where nothing is kept."""
    bare = copy.deepcopy(unet)
    kept.detach(bare)
    return call(bare, text, **more)


def known(unet: UNet2DConditionModel) -> list[int]:
    """Return how many contexts each layer knows."""
    return [len(layer.kept) for layer in kept.attentions(unet)]  # type: ignore[arg-type]


def counted(unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets longer whenever a layer computes keys and values."""
    calls: list[int] = []
    for layer in kept.attentions(unet):
        own = layer.keys_values
        monkeypatch.setattr(layer, "keys_values", lambda *given, own=own: calls.append(1) or own(*given))
    return calls


def test_they_are_computed_once_and_are_the_same(unet, text, monkeypatch) -> None:
    wanted = plain(unet, text)
    calls = counted(unet, monkeypatch)
    assert all(torch.equal(call(unet, text), wanted) for _ in range(3))
    assert len(calls) == LAYERS and known(unet) == [1] * LAYERS
    kept.detach(unet)
    assert torch.equal(call(unet, text), wanted) and len(calls) == 2 * LAYERS


@pytest.mark.parametrize("tokens", [7, 8, 77])
def test_masked_keys_behind_them_change_rounding_alone(unet, tokens) -> None:
    text = noise(2, tokens, 16, seed=3)
    wanted = plain(unet, text)
    kept.attach(unet, pad=kept.PAD)
    found = [call(unet, text) for _ in range(2)]
    assert (found[0] - wanted).abs().max() < 1e-5 and torch.equal(*found)
    layer = kept.attentions(unet)[0]
    with torch.no_grad():
        k, _, mask = layer.kept(layer, text, None)
    assert k.shape[2] == -(-tokens // 8) * 8 and (mask is None) == (tokens % 8 == 0)


def changed_in_place(unet: UNet2DConditionModel, text: Tensor) -> None:
    text.mul_(-2)


def weights_in_place(unet: UNet2DConditionModel, text: Tensor) -> None:
    with torch.no_grad():
        kept.attentions(unet)[0].to_v.weight.mul_(3)


def weights_replaced(unet: UNet2DConditionModel, text: Tensor) -> None:
    layer = kept.attentions(unet)[0]
    layer.to_k = nn.Linear(16, layer.inner_dim, bias=False)


def there_and_back(unet: UNet2DConditionModel, text: Tensor) -> None:
    unet.to(torch.float16)
    unet.to(torch.float32)


def other_values(unet: UNet2DConditionModel, text: Tensor) -> None:
    weight = kept.attentions(unet)[0].to_v.weight
    weight.data = weight.data * 2


def a_lora(unet: UNet2DConditionModel, text: Tensor) -> None:
    unet.load_lora_adapter(diffusers({"unet": halves(unet, strength=3.0)}))


def a_fused_lora(unet: UNet2DConditionModel, text: Tensor) -> None:
    a_lora(unet, text)
    unet.fuse_lora()


def a_hook(unet: UNet2DConditionModel, text: Tensor) -> None:
    kept.attentions(unet)[0].to_k.register_forward_hook(lambda layer, given, out: out * 4)


def another_forward(unet: UNet2DConditionModel, text: Tensor) -> None:
    layer = kept.attentions(unet)[0].to_k
    layer.forward = lambda x: -nn.functional.linear(x, layer.weight)


@pytest.mark.parametrize(
    "change",
    [
        changed_in_place, weights_in_place, weights_replaced, there_and_back, other_values, a_lora, a_fused_lora,
        a_hook, another_forward,
    ],
)  # fmt: skip
def test_what_changes_is_computed_anew(change: Callable[..., None], unet, text) -> None:
    before = call(unet, text)
    change(unet, text)
    found = call(unet, text)
    assert torch.equal(found, plain(unet, text)) and not torch.equal(found, before)


def test_unfusing_gives_what_there_was(unet, text) -> None:
    before = call(unet, text)
    a_fused_lora(unet, text)
    call(unet, text)
    unet.unfuse_lora()
    unet.delete_adapters("default_0")
    assert torch.equal(call(unet, text), before)


def test_masks_gradients_inference_tensors_and_autocast_keep_nothing(unet, text) -> None:
    mask = torch.ones(2, 7)
    mask[:, 4:] = 0
    assert torch.equal(call(unet, text, encoder_attention_mask=mask), plain(unet, text, encoder_attention_mask=mask))
    unet(noise(2, 4, 8, 8), 5, text).sample.sum().backward()
    assert kept.attentions(unet)[0].to_k.weight.grad.abs().sum() > 0
    with torch.inference_mode():
        wanted = call(unet, text.clone())
    with torch.autocast("cpu", torch.bfloat16):
        call(unet, text)
    assert known(unet) == [0] * LAYERS
    assert torch.equal(wanted, call(unet, text))


def test_they_go_with_the_context_and_the_oldest_first(unet) -> None:
    texts = [noise(2, 7, 16, seed=k) for k in range(kept.LIMIT + 2)]
    for one in texts:
        call(unet, one)
    assert known(unet) == [kept.LIMIT] * LAYERS
    layer = kept.attentions(unet)[0]
    assert all(one in layer.kept._entries for one in texts[2:])
    del texts, one
    gc.collect()
    assert known(unet) == [0] * LAYERS


def test_copies_and_pickles_know_nothing(unet, text) -> None:
    call(unet, text)
    for twin in (copy.deepcopy(unet), pickle.loads(pickle.dumps(unet))):
        assert known(twin) == [0] * LAYERS and torch.equal(call(twin, text), call(unet, text))


def test_a_compiled_network_stays_one_graph(unet, text) -> None:
    wanted = call(unet, text)
    with torch.no_grad():
        compiled = torch.compile(unet, fullgraph=True, backend="aot_eager")
        found = compiled(noise(2, 4, 8, 8), torch.tensor(5), text).sample
    torch.testing.assert_close(found, wanted)
    assert torch.equal(call(unet, text), wanted)


def test_runs_in_threads_do_not_mix_and_leave_nothing() -> None:
    pipe = DiffusionPipeline.from_pretrained(picturebook.model_folder())
    pipe.set_progress_bar_config(disable=True)
    prompts = ["a red house", "a blue cat and a tree"]

    def run(prompt: str) -> Tensor:
        return pipe(prompt, num_inference_steps=2, seed=0, output_type="latent").images

    wanted = [run(prompt) for prompt in prompts]
    kept.attach(pipe.unet)
    seen: list[weakref.ref] = []
    own = kept.KeptContexts.__call__

    def watched(self, attn, context, mask):
        found = own(self, attn, context, mask)
        seen.append(weakref.ref(found[0]))
        return found

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(kept.KeptContexts, "__call__", watched)
        found = list(pool.map(run, prompts))
    gc.collect()
    assert all(map(torch.equal, found, wanted))
    assert len(seen) == 2 * 2 * len(kept.attentions(pipe.unet))
    assert len({id(one) for one in seen}) == 2 * len(kept.attentions(pipe.unet))
    assert all(one() is None for one in seen)
