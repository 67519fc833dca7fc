"""Whether the file that a run wrote is what it trained: both predict, and so did the network before it was trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import LangevinError, WeightsError
from ..core.files import atomic_write
from ..core.logging import get_logger
from .trainer import Trainer

logger = get_logger(__name__)
FILE = "proof.json"
TOLERANCE = {"no": 1e-4, "fp16": 5e-3, "bf16": 3e-2}
"""Precision of a run -> how far two predictions may differ, as a share of the largest value of a prediction."""


@dataclass(frozen=True)
class Result:
    """What the comparison found; all differences are the largest of a prediction.

    Attributes:
        file: what was loaded.
        precision: of the run.
        gap: between the network in memory and the loaded one.
        allowed: what it may be.
        effect: between the trained network and the untrained one.
        noise: between two predictions of the same network.
        verdict: "proven", "idle" for a training that changed nothing, "failed", or "left out".
        why: why it failed or was left out.
    """

    file: str
    precision: str
    gap: float | None = None
    allowed: float | None = None
    effect: float | None = None
    noise: float | None = None
    verdict: str = "failed"
    why: str = ""


class Proof:
    """Compares what a run saved with what it trained, by the UNet's prediction in a call of the pipeline.

    The call of both pipelines has the same noise; its first step is compared, so every network that the UNet is told
    by takes part: text encoders with new words, adapters, ControlNets.

    Args:
        pipe: the pipeline that holds the trained networks.
        call: arguments of its call.
        load: from the folder of the result to a pipeline with it; None loads the folder as a pipeline.
        file: in that folder, for messages.
    """

    def __init__(
        self, pipe: Any, call: Mapping[str, Any], load: Callable[[Path], Any] | None = None, *, file: str = ""
    ) -> None:
        self.pipe, self.call, self.file = pipe, call, file
        self.load = type(pipe).from_pretrained if load is None else load
        self.start: Tensor | None = None

    def begin(self, run: Trainer) -> None:
        """Remember what the untrained network says."""
        with run.looking() as main:
            if main:
                try:
                    self.start = self.predicted(run, self.pipe)
                except LangevinError as error:
                    logger.warning("What is saved will not be compared with what is trained: %s", error)

    def check(self, run: Trainer, folder: Path) -> Result | None:
        """Load what lies in a folder, compare it, write `proof.json`, and return what was found.

        Without a prediction from before the training nothing is compared.

        Raises:
            WeightsError: when it cannot be loaded, or is not what was trained. It stays where it is.
        """
        if self.start is None:
            return None
        place, precision = str(folder / self.file), run.precision
        with run.looking():
            here, again = (self.predicted(run, self.pipe) for _ in range(2))
        try:
            loaded = alike(self.load(folder), self.pipe)
            with run.looking():
                there = self.predicted(run, loaded)
        except torch.OutOfMemoryError:
            logger.warning("There is no memory to load %s beside what was trained, so it is not compared.", place)
            result = Result(place, precision, verdict="left out", why="there was no memory for it")
        except LangevinError as error:
            result = Result(place, precision, why=f"it cannot be loaded: {error}")
        else:
            result = compared(place, precision, self.start, [here, again, there])
        values = {**asdict(result), "file": self.file or "the folder"}
        atomic_write(folder / FILE, json.dumps(values, indent=1))
        if result.verdict == "failed":
            raise WeightsError(
                f"{place} is not what was trained: {result.why}. It is kept as it is; the checkpoints beside it are "
                "not concerned, and `--resume_from_checkpoint=latest` writes it anew."
            )
        if result.verdict == "idle":
            logger.warning("Training changed nothing: %s predicts what the untrained network does.", place)
        return result

    def predicted(self, run: Trainer, pipe: Any) -> Tensor:
        """Return what the UNet of a pipeline says in the first step of the call, in float32 on the CPU.

        It is asked in the context `Trainer.looking`.
        """
        seen: list[Tensor] = []
        hook = pipe.unet.register_forward_hook(lambda net, args, output: seen.append(output[0].detach().float().cpu()))
        pipe.set_progress_bar_config(disable=True)
        try:
            with torch.no_grad(), run.accelerator.autocast():
                pipe(**self.call, num_inference_steps=2, seed=0)
        finally:
            hook.remove()
        return seen[0]


def compared(file: str, precision: str, start: Tensor, predictions: list[Tensor]) -> Result:
    """Return what follows from predictions: before training, after it twice, and of the loaded network.

    The loaded network must also be nearer to the trained one than to the untrained one, however little was learned.
    """
    here, again, there = predictions
    if there.shape != here.shape:
        return Result(file, precision, why=f"it predicts {tuple(there.shape)} and not {tuple(here.shape)}")
    gap, noise, effect = apart(there, here), apart(again, here), apart(here, start)
    allowed = TOLERANCE.get(precision, TOLERANCE["bf16"]) * here.abs().max().item()
    if effect > 4 * noise:
        allowed = min(allowed, max(effect / 2, 4 * noise))
    measured = (gap, allowed, effect, noise)
    if not gap <= allowed:
        why = f"its predictions differ by {gap:.3g}, {allowed:.3g} is allowed"
        return Result(file, precision, *measured, why=why)
    return Result(file, precision, *measured, verdict="proven" if effect > noise else "idle")


def apart(one: Tensor, other: Tensor) -> float:
    """Return the largest difference of two tensors."""
    return (one - other).abs().max().item()


def alike(pipe: Any, other: Any) -> Any:
    """Return a pipeline after moving its networks to where those of another one are, in their types."""
    for name, module in pipe.components.items():
        model = other.components.get(name)
        if isinstance(module, nn.Module) and isinstance(model, nn.Module):
            like = next(model.parameters())
            module.to(like.device, like.dtype).eval()
    return pipe
