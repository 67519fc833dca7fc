"""One measurement in one process: `python -m benchmarks.probes ROW LIBRARY FOLDER SETTING` prints its figures as JSON.

Nothing here imports a library before the row asks for it, so that the import itself can be measured.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .inference import OPENVINO, OURS, PEER, Setting
from .inference import ROWS as INFERENCE
from .load import load
from .lora import lora
from .measures import peak
from .train import ROWS as TRAININGS

SCHEDULERS = (
    "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "IPNDMScheduler", "LMSDiscreteScheduler",
    "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler",
    "SASolverScheduler", "EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler", "LCMScheduler",
)  # fmt: skip


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


@dataclass(frozen=True)
class Row:
    """What a row measures, and what it needs.

    Attributes:
        run: measures for a library, with a folder that the rows of a run share.
        tolerance: dtype -> relative L2 difference of the two outputs that is allowed; nothing where none is compared.
        levels: those that the row has; a row of L0 alone takes no dtype either.
        large: takes gigabytes and minutes, and runs only when it is named.
        gpu: needs a GPU.
        rivals: level -> who takes part beside both libraries.
    """

    run: Callable[[str, Path, Setting], dict[str, float]]
    tolerance: Mapping[str, float] = field(default_factory=dict)
    levels: tuple[str, ...] = ("L0",)
    large: bool = False
    gpu: bool = False
    rivals: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def libraries(self, level: str) -> tuple[str, ...]:
        """Return who takes part at a level."""
        return (OURS, PEER, *self.rivals.get(level, ()))


def fixed(run: Callable[[str, Path], dict[str, float]]) -> Callable[[str, Path, Setting], dict[str, float]]:
    """Return a measurement that has no settings."""
    return lambda library, folder, setting: run(library, folder)


CALL = {"float32": 1e-5, "bfloat16": 1e-2}
"""What is allowed of one call of a network."""
CODED = {"float32": 5e-5, "bfloat16": 3e-2}
"""What is allowed of an autoencoder, which rounds more often from end to end. In channels_last, torch's group norm in
float32 alone brings 5e-6 at 192 pixels, by float64, in place of 1e-6."""
DRAWN = {"float32": 1e-4, "bfloat16": 2e-2}
"""What is allowed of a picture of two steps."""
LOSSLESS = ("L0", "L1")
ROWS = {
    "import": Row(fixed(imports)),
    "load": Row(fixed(load), {"float32": 0.0}, large=True),
    "lora": Row(fixed(lora), {"float32": 5e-3}, large=True),
    "scheduler": Row(fixed(scheduler)),
    "scheduler-host": Row(fixed(scheduler_host)),
    "unet": Row(INFERENCE["unet"], CALL, LOSSLESS),
    "text": Row(INFERENCE["text"], CALL, LOSSLESS),
    "step-sd15": Row(INFERENCE["step-sd15"], CALL, LOSSLESS, large=True, rivals={"L1": (OPENVINO,)}),
    "step-sdxl": Row(INFERENCE["step-sdxl"], CALL, LOSSLESS, large=True),
    "vae-encode": Row(INFERENCE["vae-encode"], CODED, LOSSLESS, large=True),
    "vae-decode": Row(INFERENCE["vae-decode"], CODED, LOSSLESS, large=True),
    "image-sd15": Row(INFERENCE["image-sd15"], DRAWN, (*LOSSLESS, "L2"), large=True),
    "offload": Row(INFERENCE["offload"], DRAWN, large=True, gpu=True),
    **{
        row: Row(fixed(run), {"float32": 1e-5}, large=row in ("train-bf16", "train-large"))
        for row, run in TRAININGS.items()
    },
}
"""Loaded weights agree in every bit, cast or not; of the changes that fusing makes to float16 weights the last bit may
differ; trainings are compared by the loss and the gradient of one batch."""


def main() -> None:
    """Run one row for one library."""
    row, library, folder, setting = sys.argv[1:5]
    told = Setting(**json.loads(setting))
    found = ROWS[row].run(library, Path(folder), told)
    name = " ".join(filter(None, (row, told.dtype if row in INFERENCE else "", told.option)))
    print(json.dumps(found | ({} if told.check else {f"{name}, peak GB": peak()})))


if __name__ == "__main__":
    main()
