"""Memory that decoders use again: what the C library is told, when it goes back, and that nothing else changes."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch

from langevin import AutoencoderKL
from langevin.optimization import heap, plan

pytestmark = pytest.mark.skipif(heap.library() is None, reason="the C library has no such settings")
SMALL = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 8,
}


@pytest.fixture
def told(monkeypatch) -> list:
    """What the C library is told, by a stand-in that writes it down."""
    written: list = []

    class Library:
        def mallopt(self, name: int, value: int) -> int:
            written.append((name, value))
            return 1

        def malloc_trim(self, pad: int) -> int:
            written.append("trim")
            return 1

    monkeypatch.setattr(heap, "library", Library)
    return written


KEEP, BACK = list(heap.KEEP.items()), [*heap.USUAL.items(), "trim"]


@torch.no_grad()
def test_an_autoencoder_and_back(told):
    torch.manual_seed(0)
    vae = AutoencoderKL(**SMALL).eval()
    latents, picture = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 16, 16)
    plain = vae.decode(latents).sample, vae.encode(picture).latent_dist.mean
    assert not told
    assert "kept heap" in {change.what for change in plan.optimize(vae)}
    assert (type(vae.encoder), type(vae.decoder)) == (heap.KeepingEncoder, heap.KeepingDecoder)
    found = vae.decode(latents).sample, vae.encode(picture).latent_dist.mean
    assert told == (KEEP + BACK) * 2
    for a, b in zip(found, plain, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    plan.deoptimize(vae)
    assert torch.equal(vae.decode(latents).sample, plain[0]) and len(told) == 2 * len(KEEP + BACK)


def test_the_last_thread_and_an_error_give_it_back(told):
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with heap.kept_heap():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)
    with pytest.raises(RuntimeError), heap.kept_heap():
        raise RuntimeError
    assert told == KEEP
    leave.set()
    thread.join()
    assert told == KEEP + BACK


def test_other_devices_and_compiled_ones_are_left_alone():
    step, vae = heap.KeptHeap(), AutoencoderKL(**SMALL)
    assert step.applies(vae, torch.device("cpu"), torch.float32)
    assert not step.applies(vae, torch.device("cuda"), torch.float32)
    assert not step.applies(torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.device("cpu"), torch.float32)
    vae.decoder.compile(backend="eager")
    assert not step.applies(vae, torch.device("cpu"), torch.float32)


FAULTS = """
import resource, torch
from langevin.optimization.heap import kept_heap
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(12_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def held():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("RssAnon")))
faults()
usual, before = faults(), held()
with kept_heap():
    faults()
    kept, inside = faults(), held()
print(usual, kept, inside - before, held() - before)
"""


def test_pages_are_taken_once_and_go_back():
    """Eight blocks of 48 MB, one after the other; pages may be larger than 4 kB."""
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    usual, kept, inside, after = map(int, run.stdout.split())
    assert kept < usual / 4
    assert inside > 40_000 and after < inside / 2


@torch.no_grad()
@pytest.mark.parametrize("optimized", [False, True])
def test_maps_that_a_hook_keeps_are_not_written_over(optimized) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(**SMALL).eval()
    if optimized:
        plan.optimize(vae)
    kept: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    heard = [name for name, part in vae.decoder.named_modules() if not list(part.children())]
    heard += ["up_blocks.0.resnets.0", "mid_block.resnets.0", "up_blocks.0"]
    for name in heard:
        hook = vae.decoder.get_submodule(name).register_forward_hook(
            lambda module, given, made, name=name: kept.append((name, made, made.clone()))
        )
        vae.decode(torch.randn(1, 4, 8, 8))
        hook.remove()
    changed = {name for name, made, copy in kept if not torch.equal(made, copy)}
    assert len(kept) >= len(heard) and not changed
