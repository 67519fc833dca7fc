"""The sampling loop never waits for the device, whatever the scheduler, and adds few launches to the network's.

A tensor of the device "meta" has no values: reading one raises, and every tensor that a step makes on the CPU, to be
copied over, is seen. So this holds for every accelerator. Noise is drawn on the device here; a stream on the CPU, which
is the default, costs stochastic samplers one copy per draw.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import langevin
from langevin import DiffusionPipeline, UNet2DConditionModel, picturebook
from langevin.diffusion.guidance import CFG
from langevin.diffusion.sampling import FiniteWatch, sample
from langevin.families.denoiser import Denoiser
from langevin.families.sd import Text
from langevin.optimization.graphs import Replay
from langevin.pipelines import sampling
from langevin.registry import SCHEDULERS
from tests.models.tiny import TINY

META = torch.device("meta")
NOT_ONE = {"KarrasDiffusionSchedulers", "SchedulerMixin"}
TOKENS = {"VQDiffusionScheduler"}
"""Has no table and no samples of numbers."""
NAMES = [row.name for row in SCHEDULERS if row.name not in NOT_ONE | TOKENS]
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in NAMES),
    ("DDIMScheduler", {"thresholding": True, "clip_sample": False}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"thresholding": True}),
    ("UniPCMultistepScheduler", {"thresholding": True}),
    ("DDPMScheduler", {"prediction_type": "v_prediction"}),
]
READ = FiniteWatch.close
WAITS = ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero", "aten::equal")


class Watched(TorchDispatchMode):
    """Notes what would wait for a device, and counts operations that launch something.

    Attributes:
        waits: readings, and tensors on the CPU.
        launches: operations by name, without those that only look at memory in another way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.launches: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, made = func._schema.name, func(*args, **(kwargs or {}))
        seen = [leaf for leaf in tree_leaves((args, kwargs, made)) if isinstance(leaf, Tensor)]
        if name in WAITS or any(leaf.device != META for leaf in seen):
            self.waits.append(name)
        if not func.is_view and not name.startswith("aten::empty"):
            self.launches[name] += 1
        return made


class Silent(torch.nn.Module):
    """Stands for a network, and launches nothing."""

    dtype = torch.float32

    def forward(self, x: Tensor, time: Tensor, **options: Any) -> tuple[Tensor]:
        return (torch.empty_like(x),)


def run(scheduler: Any, unet: Any, *, steps: int) -> Watched:
    """Run the loop with guidance, as a pipeline does, on a device without values."""
    plan, x = scheduler.plan(steps), torch.empty(1, 4, 8, 8, device=META)
    conditions = {name: Text(torch.empty(1, 7, 16, device=META)) for name in ("positive", "negative")}
    with torch.no_grad(), Watched() as watched:
        sample(Denoiser(unet, conditions, CFG()), x, plan, noise=lambda: torch.empty_like(x), check="unet")
    return watched


@pytest.fixture(autouse=True)
def unread(monkeypatch) -> None:
    """Leave out the one reading of a run, after its last step."""
    monkeypatch.setattr(FiniteWatch, "close", lambda watch: None)


@pytest.mark.parametrize("name, options", VARIANTS, ids=lambda one: one if isinstance(one, str) else "-".join(one))
def test_no_step_waits(name: str, options: dict[str, Any]) -> None:
    assert run(getattr(langevin, name)(**options), Silent(), steps=6).waits == []


def test_no_network_waits() -> None:
    with META:
        unet = UNet2DConditionModel(**TINY).eval()
    watched = run(langevin.EulerDiscreteScheduler(), unet, steps=2)
    assert watched.waits == [] and watched.launches.total() > 200


def test_what_waits_is_seen() -> None:
    with Watched() as watched:
        torch.empty(2, device=META) * torch.tensor(2.0).to(META)
    assert watched.waits
    with pytest.raises(RuntimeError, match="meta"):
        torch.empty((), device=META).item()


def per_step(name: str) -> float:
    """Return how many operations a step has beside the network's, once all past predictions are there."""
    long, short = (run(getattr(langevin, name)(), Silent(), steps=steps).launches.total() for steps in (20, 10))
    return (long - short) / 10


LAUNCHES = {
    "EulerDiscreteScheduler": 9,
    "DDIMScheduler": 12,
    "PNDMScheduler": 12,
    "DPMSolverMultistepScheduler": 12,
}
"""Two of them are the look for values that are not finite."""


@pytest.mark.parametrize("name, most", LAUNCHES.items())
def test_guidance_and_step_are_few_launches(name: str, most: int) -> None:
    assert 0 < per_step(name) <= most


# On a device ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("asked", [{}, {"graphs": True}, {"kernels": True}, {"kernels": True, "graphs": True}], ids=str)
def test_no_step_waits_on_a_cuda_device(asked: dict[str, bool], monkeypatch) -> None:
    """The second run, in which nothing is recorded or compiled any more; CUDA raises where the host would wait."""
    pipe = DiffusionPipeline.from_pretrained(picturebook.model_folder()).to("cuda")
    pipe.set_progress_bar_config(disable=True)
    pipe.optimize(**asked)

    def call() -> None:
        stream = torch.Generator("cuda").manual_seed(0)
        pipe("a red house", num_inference_steps=6, generator=stream, output_type="latent")

    strict, loop, close = [], sampling.sample, READ
    monkeypatch.setattr(FiniteWatch, "close", lambda watch: torch.cuda.set_sync_debug_mode("default") or close(watch))

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        torch.cuda.set_sync_debug_mode("error")
        strict.append(torch.cuda.get_sync_debug_mode())
        try:
            return loop(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    for name in NAMES:
        pipe.scheduler = getattr(langevin, name)()
        monkeypatch.setattr(sampling, "sample", loop)
        call()
        monkeypatch.setattr(sampling, "sample", watched)
        call()
    assert strict == [2] * len(NAMES)
    assert not asked.get("graphs") or (isinstance(pipe.unet.forward, Replay) and pipe.unet.forward.played > 0)
