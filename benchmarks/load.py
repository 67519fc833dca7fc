"""A UNet of Stable Diffusion 1.5 from a float32 file of 3.4 GB to bfloat16, with the file in the system's cache."""

from __future__ import annotations

import importlib
import threading
import time
from pathlib import Path
from typing import Any

FOLDER = "load"
SHOWN = 7
"""Every so many weights are kept for the comparison of the two libraries, in parts."""


def write(folder: Path) -> None:
    """Write the folder of the network, if there is none yet; its weights are pieces of one random row."""
    import torch

    from langevin import UNet2DConditionModel
    from langevin.core.weights_io import write_safetensors

    if folder.exists():
        return
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, sample_size=64)
    shapes = {name: tensor.shape for name, tensor in unet.state_dict().items()}
    row = 0.02 * torch.randn(
        max(shape.numel() for shape in shapes.values()), generator=torch.Generator().manual_seed(0)
    )
    tensors = {name: row[: shape.numel()].view(shape) for name, shape in shapes.items()}
    unet.save_config(folder)
    write_safetensors(folder / "diffusion_pytorch_model.safetensors", tensors, {"format": "pt"})


class Watch:
    """The greatest memory of this process beyond what it had, without pages of files, in GB."""

    def __init__(self) -> None:
        self.before, self.peak, self.done = self.now(), 0.0, threading.Event()
        self.thread = threading.Thread(target=self._look)

    @staticmethod
    def now() -> float:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1e6

    def _look(self) -> None:
        while not self.done.wait(0.01):
            self.peak = max(self.peak, self.now() - self.before)

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self.done.set()
        self.thread.join()


def load(library: str, folder: Path) -> dict[str, float]:
    """Load a UNet of 860 M weights with a cast. Needs 6 GB. Units: s, and GB of memory over GB of the result."""
    import torch

    write(folder / FOLDER)
    cls: Any = importlib.import_module(library).UNet2DConditionModel
    with Watch() as watch:
        start = time.perf_counter()
        unet = cls.from_pretrained(folder / FOLDER, torch_dtype=torch.bfloat16)
        seconds = time.perf_counter() - start
    size = sum(tensor.numel() * tensor.element_size() for tensor in unet.parameters()) / 1e9
    shown = sorted(unet.state_dict().items())[::SHOWN]
    torch.save(torch.cat([tensor.flatten()[:1000].float() for _, tensor in shown]), folder / f"load-{library}.pt")
    return {"load with a cast, s": seconds, "load with a cast, peak over result": watch.peak / size}
