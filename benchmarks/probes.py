"""One measurement in one process: `python -m benchmarks.probes ROW LIBRARY FOLDER` prints its figures as JSON.

Nothing here imports a library before the row asks for it, so that the import itself can be measured.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .load import load
from .lora import lora
from .train import ROWS as TRAININGS

SCHEDULERS = (
    "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "IPNDMScheduler", "LMSDiscreteScheduler",
    "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler",
    "SASolverScheduler", "EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler", "LCMScheduler",
)  # fmt: skip
UNET = {
    "sample_size": 32,
    "block_out_channels": (32, 64),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 64,
    "attention_head_dim": 8,
    "norm_num_groups": 16,
}


def seconds(call: Callable[[], Any]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def clocked(call: Callable[[], Any], repeats: int) -> float:
    """Return the median time of one call in seconds, after one call that is not counted."""
    call()
    return statistics.median(seconds(call) for _ in range(repeats))


def imports(library: str, folder: Path) -> dict[str, float]:
    """The class of a pipeline, after torch: seconds and modules. Units: s, count."""
    import torch  # noqa: F401

    before, start = len(sys.modules), time.perf_counter()
    importlib.import_module(library).StableDiffusionPipeline  # noqa: B018
    return {"import, s": time.perf_counter() - start, "import, modules": len(sys.modules) - before}


def scheduler(library: str, folder: Path) -> dict[str, float]:
    """A schedule of 50 steps, and one public `step` on a tensor so small that its arithmetic is nothing. Unit: us."""
    import torch

    found = {}
    for name in SCHEDULERS:
        sampler = getattr(importlib.import_module(library), name)()
        start, output = torch.ones(1, 4, 8, 8), torch.full((1, 4, 8, 8), 0.1)
        schedules, steps = [], []
        for _ in range(20):
            begun = time.perf_counter()
            sampler.set_timesteps(50)
            times, x, scale = list(sampler.timesteps), start, getattr(sampler, "scale_model_input", lambda x, t: x)
            ready = time.perf_counter()
            for t in times:
                scale(x, t)
                x = sampler.step(output, t, x, return_dict=False)[0]
            schedules.append(ready - begun)
            steps.append((time.perf_counter() - ready) / len(times))
        found[f"{name}, us per schedule"] = statistics.median(schedules[1:]) * 1e6
        found[f"{name}, us per step"] = statistics.median(steps[1:]) * 1e6
    return found


def scheduler_host(library: str, folder: Path) -> dict[str, float]:
    """One step of every public scheduler class, whole and beyond its tensor arithmetic; see `host`. Unit: us."""
    import torch

    from .host import host_times, names

    torch.set_num_threads(1)
    with torch.no_grad():
        found = [host_times(library, name) for name in names()]
    return {metric: value for times in found for metric, value in times.items()}


def unet(library: str, folder: Path) -> dict[str, float]:
    """Load a small UNet and call it on a batch of two, in float32. Unit: milliseconds."""
    import torch

    cls = importlib.import_module(library).UNet2DConditionModel
    start = time.perf_counter()
    model = cls.from_pretrained(folder / "unet").eval()
    loaded = time.perf_counter() - start
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 32, 32, generator=generator)
    text = torch.randn(2, 77, 64, generator=generator)
    with torch.no_grad():
        torch.save(model(x, 500, text).sample, folder / f"unet-{library}.pt")
        call = clocked(lambda: model(x, 500, text), 30)
    return {"UNet load, ms": loaded * 1e3, "UNet call, ms": call * 1e3}


ROWS = {
    "import": imports,
    "load": load,
    "lora": lora,
    "scheduler": scheduler,
    "scheduler-host": scheduler_host,
    "unet": unet,
    **TRAININGS,
}


def main() -> None:
    """Run one row for one library."""
    row, library, folder = sys.argv[1:4]
    print(json.dumps(ROWS[row](library, Path(folder))))


if __name__ == "__main__":
    main()
