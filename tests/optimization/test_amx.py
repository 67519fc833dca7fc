"""The attention kernel for AMX: as exact as torch's, whatever the shapes, and chosen where it can be."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from langevin import DiffusionPipeline
from langevin.core import native
from langevin.core.errors import ConfigError, MissingDependencyError
from langevin.nn import amx
from langevin.nn.attention import Attention
from langevin.nn.backends import attend, attention_backend
from langevin.optimization import plan
from langevin.optimization.chosen import AmxAttention
from langevin.picturebook import model_folder
from tests.models.tiny import noise

BF16 = torch.bfloat16
able = amx.supported() and shutil.which(os.environ.get("CXX") or "g++") is not None
needs_amx = pytest.mark.skipif(not able, reason="needs a processor with AMX, and a C++ compiler")

SHAPES = {
    "self": (2, 3, 256, 256, 40),
    "wide": (1, 2, 256, 300, 160),
    "widest": (1, 1, 64, 512, 256),
    "narrow": (1, 2, 700, 513, 8),
    "odd": (2, 1, 333, 77, 72),
    "few keys": (1, 4, 1024, 5, 64),
    "one query": (1, 1, 1, 4096, 64),
}


def given(batch: int, heads: int, queries: int, keys: int, size: int) -> list[torch.Tensor]:
    """Queries, keys and values as attention makes them: heads beside each other in memory."""
    lengths = enumerate((queries, keys, keys))
    return [noise(batch, length, heads, size, seed=i).to(BF16).transpose(1, 2) for i, length in lengths]


def far(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative L2 distance."""
    return float((found.double() - wanted).norm() / wanted.norm())


@needs_amx
@pytest.mark.parametrize("strength", [0.2, 1.0, 30.0])
@pytest.mark.parametrize("masked", ["", "one", "each", "first keys"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_is_as_exact_as_torch(shape, masked, strength, monkeypatch) -> None:
    monkeypatch.setattr(amx, "FEWEST", 1)
    q, k, v = given(*shape)
    mask = None
    if masked:
        mask = noise(shape[0] if masked == "each" else 1, 1, 1, shape[3], seed=9).to(BF16)
        hide = torch.arange(shape[3]) < 2 * shape[3] // 3 if masked == "first keys" else torch.arange(shape[3]) % 5 == 1
        mask = mask.masked_fill(hide, -torch.inf)
    scale = strength * shape[4] ** -0.5
    more = None if mask is None else mask.double()
    wanted = F.scaled_dot_product_attention(*(x.double() for x in (q, k, v)), attn_mask=more, scale=scale)
    assert amx.fits(q, k, v, mask)
    found = attend(q, k, v, mask, scale=scale, backend="amx")
    theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    assert found.shape == wanted.shape and found.dtype == BF16
    assert far(found, wanted) < max(3e-3, 1.5 * far(theirs, wanted))


@needs_amx
def test_what_sees_nothing_is_zero_and_what_is_no_number_stays_none(monkeypatch) -> None:
    monkeypatch.setattr(amx, "FEWEST", 1)
    q, k, v = given(1, 2, 40, 50, 16)
    nothing = torch.full((1, 1, 1, 50), -torch.inf, dtype=BF16)
    assert not amx.by_amx(q, k, v, nothing, 1.0).any()
    q[0, 0, 5] = torch.nan
    assert torch.equal(amx.by_amx(q, k, v, None, 1.0).isnan(), torch.isnan(attend(q, k, v)))
    v[0, 1, 7] = torch.inf
    assert not amx.by_amx(q, k, v, None, 1.0)[0, 1].isfinite().any()


@needs_amx
def test_the_number_of_threads_changes_nothing() -> None:
    q, k, v = given(2, 3, 256, 256, 40)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(amx.by_amx(q, k, v, None, 0.2))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_what_the_kernel_does_not_take() -> None:
    q, k, v = given(1, 2, 1024, 1024, 40)
    row = torch.zeros(1, 1, 1, 1024, dtype=BF16)
    assert amx.fits(q, k, v, None) and amx.fits(q, k, v, row)
    assert not amx.fits(q.float(), k.float(), v.float(), None)
    assert not amx.fits(q, k, v, row.bool()) and not amx.fits(q, k, v, row.expand(1, 1, 1024, 1024))
    assert not amx.fits(q, k[:, :, :1], v[:, :, :1], None) and not amx.fits(q, k, v[..., :8], None)
    assert not amx.fits(q.transpose(2, 3).contiguous().transpose(2, 3), k, v, None)
    assert not amx.fits(*given(1, 1, 1024, 1024, 257), None)
    with torch.enable_grad():
        assert not amx.fits(q.clone().requires_grad_(), k, v, None)


@needs_amx
def test_pictures_are_those_of_torch_up_to_rounding_and_it_is_undone() -> None:
    pipe = DiffusionPipeline.from_pretrained(model_folder(), torch_dtype=BF16)
    pipe.set_progress_bar_config(disable=True)
    call: dict = {"prompt": "a red house", "num_inference_steps": 4, "seed": 0, "height": 256, "width": 256}
    call["output_type"] = "pt"
    pipe.suits_processor = False
    pipe.optimize()
    plain = pipe(**call).images
    assert {c.network for c in pipe.optimize(kernels=True) if c.what == "compiled kernels"} == {"unet", "vae"}
    kinds = {type(m) for m in pipe.unet.modules() if isinstance(m, Attention)}
    assert kinds == {AmxAttention}
    assert 0 < (pipe(**call).images - plain).abs().mean() < 0.02
    with attention_backend("eager"):
        assert next(m for m in pipe.unet.modules() if isinstance(m, Attention))._backend(None) is None
    pipe.deoptimize()
    assert {type(m) for m in pipe.unet.modules() if isinstance(m, Attention)} == {Attention}


@needs_amx
def test_calls_use_it_unasked_where_it_can_be_had(monkeypatch) -> None:
    pipe = DiffusionPipeline.from_pretrained(model_folder(), torch_dtype=BF16)
    pipe.set_progress_bar_config(disable=True)
    seen: list[set[type]] = []

    def look(pipe, *rest) -> dict:
        seen.append({type(m) for m in pipe.unet.modules() if isinstance(m, Attention)})
        return {}

    def draw() -> None:
        pipe("a red house", num_inference_steps=1, callback_on_step_end=look)

    draw()
    monkeypatch.setenv("CXX", "no-such-compiler")
    draw()
    monkeypatch.delenv("CXX")
    pipe.suits_processor = False
    draw()
    assert seen == [{AmxAttention}, {Attention}, {Attention}]


def test_where_the_kernel_does_not_work_torch_computes_and_a_warning_says_so(monkeypatch, caplog) -> None:
    monkeypatch.setattr(amx, "KERNEL", replace(amx.KERNEL, here=lambda: False))
    q, k, v = given(1, 2, 256, 256, 40)
    with caplog.at_level("WARNING", logger="langevin"):
        for _ in range(2):
            assert torch.equal(attend(q, k, v, backend="amx"), attend(q, k, v))
    told = f"Torch computes instead: {amx.KERNEL.why} needs {amx.KERNEL.needs}, and this is none."
    assert [record.getMessage() for record in caplog.records] == [told]


def test_it_is_refused_elsewhere(monkeypatch) -> None:
    pipe = DiffusionPipeline.from_pretrained(model_folder())
    with pytest.raises(ConfigError, match=r"unet.*'compiled kernels', which is for networks with norms or"):
        pipe.optimize(kernels=True)
    monkeypatch.setattr(amx, "KERNEL", replace(amx.KERNEL, here=lambda: False))
    with pytest.raises(ConfigError, match="needs Linux on an x86 processor with AMX"), attention_backend("amx"):
        pass


@needs_amx
def test_without_a_compiler_nothing_is_changed(monkeypatch, tmp_path) -> None:
    native.forget()
    monkeypatch.setenv("LANGEVIN_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    pipe = DiffusionPipeline.from_pretrained(model_folder(), torch_dtype=BF16)
    with pytest.raises(MissingDependencyError, match="no-such-compiler"):
        pipe.optimize(kernels=True)
    assert not plan.done(pipe.unet)
