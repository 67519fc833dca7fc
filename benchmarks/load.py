"""A UNet of Stable Diffusion 1.5 from a float32 file of 3.4 GB to bfloat16, with the file in the system's cache."""

from __future__ import annotations

import importlib
import mmap
import os
import threading
import time
from pathlib import Path
from typing import Any

from .inference import OURS
from .seeded import network_folder

SHOWN = 7
"""Every so many weights are kept for the comparison of the two libraries, in parts."""


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


def prepare(folder: Path) -> None:
    """Read the files, so that the system's cache holds them, and take as much memory once and give it back.

    On a virtual machine, memory that nobody used lately comes from the host, which takes many times longer than what
    is measured. Whole large pages are taken, of which small ones can be made.
    """
    import torch

    piece = bytearray(1 << 22)
    for path in folder.iterdir():
        with open(path, "rb", buffering=0) as file:
            while file.readinto(piece):
                pass
    size = sum(path.stat().st_size for path in folder.iterdir())
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    torch.frombuffer(memory, dtype=torch.uint8).fill_(1)


KINDS: dict[str, tuple[str, bool]] = {
    "load with a cast": ("bfloat16", False),
    "load with a cast for the second time": ("bfloat16", True),
    "load as it is": ("float32", False),
}
"""What is loaded -> the type, and whether casts are kept where a library can; that is by `keep_cast=True` here."""


def load(library: str, folder: Path) -> dict[str, float]:
    """Load a UNet of 860 M weights with a cast and without, as each library does when nothing else is asked.

    Needs 9 GB. Ours looks at the values that it casts, and at none that stay in the file.

    Units: s, and GB of memory over GB of the result; a file that is mapped as it is takes none.
    """
    import torch

    where = network_folder(folder, "sd15", "unet")
    cls: Any = importlib.import_module(library).UNet2DConditionModel
    found, shown = {}, []
    for name, (kind, keep) in KINDS.items():
        given = {"torch_dtype": getattr(torch, kind)}
        if keep and library == OURS:
            given |= {"keep_cast": True}
            os.environ["LANGEVIN_CACHE"] = str(folder / "cache")
            cls.from_pretrained(where, **given)
        prepare(where)
        with Watch() as watch:
            start = time.perf_counter()
            unet = cls.from_pretrained(where, **given)
            seconds = time.perf_counter() - start
        size = sum(tensor.numel() * tensor.element_size() for tensor in unet.parameters()) / 1e9
        shown += [tensor.flatten()[:1000].float() for _, tensor in sorted(unet.state_dict().items())[::SHOWN]]
        found |= {f"{name}, s": seconds, f"{name}, peak over result": watch.peak / size}
        del unet
    torch.save(torch.cat(shown), folder / f"load-{library}.pt")
    return found
