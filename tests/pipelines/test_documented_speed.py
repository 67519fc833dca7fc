"""What the documentation of speed and devices shows: tracing, channels_last, xformers, no float64, HPUs."""

from __future__ import annotations

import functools
import sys
import types
from dataclasses import dataclass
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import langevin
from langevin.core.errors import InputError, MissingDependencyError
from langevin.core.imports import is_available
from langevin.nn.processors import named_attentions
from langevin.picturebook import model_folder
from tests.pipelines import tiny
from tests.pipelines.conftest import quiet
from tests.pipelines.test_sd_edit import build

CALL = {"prompt": "a red house", "num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "np", "seed": 0}


@pytest.fixture(scope="module")
def loaded():
    return langevin.StableDiffusionPipeline.from_pretrained(model_folder())


@pytest.fixture
def book(loaded):
    """The shipped model, free to be changed but for its weights."""
    pipe = langevin.StableDiffusionPipeline(**loaded.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# torch.jit.trace -----------------------------------------------------------------------------------------------------


@dataclass
class UNet2DConditionOutput:
    sample: torch.Tensor


class TracedUNet(torch.nn.Module):
    """As the documentation has it, over a traced network and what the pipeline reads of the one before."""

    def __init__(self, traced, unet) -> None:
        super().__init__()
        self.traced, self.in_channels, self.device = traced, unet.config.in_channels, unet.device

    def forward(self, latent_model_input, t, encoder_hidden_states):
        return UNet2DConditionOutput(sample=self.traced(latent_model_input, t, encoder_hidden_states)[0])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_traced_unet_draws_the_same_picture(book, tmp_path) -> None:
    wanted = book(**CALL).images
    unet = book.unet.eval()
    unet.to(memory_format=torch.channels_last)
    unet.forward = functools.partial(unet.forward, return_dict=False)

    def inputs():
        size, width = unet.config.sample_size, unet.config.cross_attention_dim
        return torch.randn(2, 4, size, size), torch.rand(1) * 999, torch.randn(2, 77, width)

    with torch.inference_mode():
        traced = torch.jit.trace(unet, inputs())
        other = inputs()
        assert torch.allclose(traced(*other)[0], unet(*other)[0], atol=1e-5)
        traced.save(tmp_path / "unet_traced.pt")
        book.unet = TracedUNet(torch.jit.load(tmp_path / "unet_traced.pt"), unet)
        made = book([CALL["prompt"]], **{name: value for name, value in CALL.items() if name != "prompt"}).images
    del unet.forward
    unet.to(memory_format=torch.contiguous_format)
    assert np.abs(made - wanted).max() <= 1e-4


# channels_last -------------------------------------------------------------------------------------------------------


def test_the_strides_that_the_documentation_prints() -> None:
    with torch.device("meta"):
        unet = langevin.UNet2DConditionModel(cross_attention_dim=768)
    assert unet.conv_out.state_dict()["weight"].stride() == (2880, 9, 3, 1)
    unet.to(memory_format=torch.channels_last)
    assert unet.conv_out.state_dict()["weight"].stride() == (2880, 1, 960, 320)


# xformers ------------------------------------------------------------------------------------------------------------


def test_xformers_computes_attention_while_it_is_enabled(book, monkeypatch) -> None:
    """A stand-in with the package's call and layout, (batch, tokens, heads, width)."""
    asked = []

    def attention(query, key, value, attn_bias=None, p=0.0, scale=None, op=None):
        asked.append(query.shape)
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_bias, scale=scale).transpose(1, 2)

    package, ops = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    package.__spec__, ops.__spec__ = ModuleSpec("xformers", None), ModuleSpec("xformers.ops", None)
    package.__path__, package.ops, ops.memory_efficient_attention = [], ops, attention
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    wanted = book(**CALL).images
    assert not asked
    book.enable_xformers_memory_efficient_attention()
    assert np.abs(book(**CALL).images - wanted).max() <= 1e-4
    in_unet = [shape for shape in asked if shape[2] == 4]
    assert len(in_unet) >= 2 * len(book.unet.attn_processors)
    asked.clear()
    book.disable_xformers_memory_efficient_attention()
    assert np.array_equal(book(**CALL).images, wanted) and not asked


@pytest.mark.skipif(is_available("xformers"), reason="xformers is installed")
def test_xformers_that_is_not_installed_is_said(book) -> None:
    with pytest.raises(MissingDependencyError, match="pip install xformers"):
        book.enable_xformers_memory_efficient_attention()
    book.disable_xformers_memory_efficient_attention()


def test_a_kernel_of_xformers_that_is_asked_for_is_said_not_to_be_used(book, monkeypatch, caplog_ours) -> None:
    monkeypatch.setattr(book.unet, "set_attention_backend", lambda name: None)
    book.unet.enable_xformers_memory_efficient_attention(attention_op="flash")
    assert [record.message for record in caplog_ours.records] == [
        "attention_op='flash' is not used: xformers picks the kernel for each input"
    ]


# Slices --------------------------------------------------------------------------------------------------------------


def slices_of(network: torch.nn.Module) -> set[int | None]:
    return {layer.slice_size for _, layer in named_attentions(network)}


def test_attention_in_slices_draws_the_same_picture(book) -> None:
    """The UNet has four heads, the autoencoder one."""
    wanted = book(**CALL).images
    for size, unet, vae in (("auto", 2, 1), ("max", 1, 1), (1, 1, 1), (2, 2, None), (4, 4, None), (None, None, None)):
        book.enable_attention_slicing(size)
        assert slices_of(book.unet) == {unet} and slices_of(book.vae) == {vae}
        assert np.abs(book(**CALL).images - wanted).max() <= 1e-4
    book.enable_attention_slicing()
    assert slices_of(book.unet) == {2}
    book.disable_attention_slicing()
    assert np.array_equal(book(**CALL).images, wanted)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "between 1 and 4"),
        (-1, "between 1 and 4"),
        (5, "is 5, must be between 1 and 4"),
        ("half", "'half'; valid: 'auto', 'max', a number or None"),
        (True, "valid"),
        (1.5, "valid"),
    ],
)
def test_slices_that_are_none_change_nothing(book, size, words) -> None:
    book.enable_attention_slicing("max")
    with pytest.raises(InputError, match=words):
        book.enable_attention_slicing(size)
    assert slices_of(book.unet) == slices_of(book.vae) == {1}
    book.disable_attention_slicing()


def test_slices_larger_than_the_heads_of_some_layers_change_nothing(book) -> None:
    deep = langevin.UNet2DConditionModel(**{**tiny.UNET, "attention_head_dim": (4, 8)})
    assert {layer.heads for _, layer in named_attentions(deep)} == {4, 8}
    book.unet = deep
    with pytest.raises(InputError, match="is 6, must be between 1 and 4"):
        book.enable_attention_slicing(6)
    assert slices_of(deep) == slices_of(book.vae) == {None}


# Devices -------------------------------------------------------------------------------------------------------------


class NoDouble(TorchDispatchMode):
    """Forbids float64 tensors, which devices such as MPS lack, but for table and numbers of a schedule on the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else [result]:
            double = isinstance(one, torch.Tensor) and one.dtype == torch.float64
            assert not double or (one.shape in ((), (1000,)) and one.device.type == "cpu"), func
        return result


@pytest.mark.parametrize("scheduler", sorted(cls.__name__ for cls in langevin.DDIMScheduler().compatibles))
def test_no_run_needs_float64(checked_folder, scheduler) -> None:
    pipe = quiet(langevin.StableDiffusionPipeline.from_pretrained(checked_folder))
    pipe.scheduler = getattr(langevin, scheduler).from_config(pipe.scheduler.config)
    picture = build("StableDiffusionImg2ImgPipeline", pipe, requires_safety_checker=True)
    with NoDouble():
        assert np.isfinite(pipe(**CALL).images).all()
        assert np.isfinite(picture(**CALL, image=tiny.picture(1), strength=0.7).images).all()


def test_that_float64_would_be_found() -> None:
    with NoDouble(), pytest.raises(AssertionError):
        torch.zeros(2, dtype=torch.float64)


def test_hpus_are_for_torch_to_find(book, monkeypatch) -> None:
    moved = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *args, **kwargs: moved.append((type(self), kwargs)) or self)
    assert book.to("hpu") is book
    assert len(moved) == len(book._networks) > 2
    assert {str(kwargs["device"]) for _, kwargs in moved} == {"hpu"}


# Compiling -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_halves_of_the_autoencoder_are_a_graph_each_and_one_more_for_other_sizes() -> None:
    """From 48 pixels on: for smaller maps torch's own convolution has a bound at which it compiles once more."""
    vae = langevin.AutoencoderKL(**tiny.VAE).eval()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    encode = torch.compile(lambda x: vae.encode(x).latent_dist.mode(), backend="eager", fullgraph=True)
    decode = torch.compile(lambda z: vae.decode(z).sample, backend="eager", fullgraph=True)
    for side, count in ((48, 2), (64, 4), (56, 4)):
        x = torch.rand(1, 3, side, side) * 2 - 1
        z = encode(x)
        assert torch.allclose(z, vae.encode(x).latent_dist.mode(), atol=1e-5)
        assert torch.allclose(decode(z), vae.decode(z).sample, atol=1e-5)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == count
