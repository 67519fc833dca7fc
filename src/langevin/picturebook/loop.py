"""The training loop of all stages: resumable, scheduled by time or by steps, with averaged weights and a curve on disk.

Step k draws its batch from a generator seeded with (seed, k), so the weights and the optimizer's state are all there is to keep.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.errors import NonFiniteError
from ..core.files import atomic_file, atomic_write

DECAY = 0.15
"""Share of a run, at its end, over which the learning rate falls to zero."""


@dataclass(frozen=True)
class Budget:
    """How long a stage trains in all, runs before a restart included: a number of minutes or a number of steps."""

    minutes: float | None = None
    steps: int | None = None

    def progress(self, step: int, seconds: float) -> float:
        """Return the share of the budget that is spent."""
        return step / self.steps if self.steps is not None else seconds / 60 / (self.minutes or 1e-9)


@dataclass(frozen=True)
class Recipe:
    """The optimizer's numbers: AdamW with warm-up, a constant learning rate, and a decay at the end.

    `average` is the decay of the exponential moving average of the weights; 0 keeps the weights themselves.
    """

    lr: float
    batch: int
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    warmup: int = 100
    clip: float = 1.0
    average: float = 0.0
    seed: int = 0

    def lr_at(self, step: int, progress: float) -> float:
        """Return the learning rate: linear warm-up, constant, then 1 - sqrt decay (Haegele et al. 2024, arXiv 2405.18392)."""
        warm = min(1.0, (step + 1) / self.warmup)
        late = max(0.0, progress - (1 - DECAY)) / DECAY
        return self.lr * warm * (1 - math.sqrt(min(late, 1.0)))


class Average:
    """An exponential moving average of a model's parameters, warmed up so that early noise is forgotten."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = list(model.parameters())
        self.kept = [p.detach().clone() for p in self.live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the live weights."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.kept, self.live, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the live weights and the averaged ones; twice restores both."""
        for live, kept in zip(self.live, self.kept, strict=True):
            held = live.clone()
            live.copy_(kept)
            kept.copy_(held)


class Stage:
    """One thing to train. A subclass gives the model, the recipe, the loss of a batch, and pictures to look at.

    Attributes:
        name: names the checkpoint and the curve.
        model: holds every trained parameter.
        folder: where the checkpoint, curve and pictures go.
    """

    name: str
    model: nn.Module
    recipe: Recipe
    folder: Path

    def loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw a batch and return its loss under "loss", beside other figures for the curve."""
        raise NotImplementedError

    def preview(self, step: int) -> None:
        """Write pictures that show how far training is."""


def stream(seed: int, step: int) -> torch.Generator:
    """Return the random stream of one step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def save(path: Path, stage: Stage, optimizer: torch.optim.Optimizer, average: Average, *, step: int, seconds: float) -> None:
    """Write a checkpoint whole or not at all."""
    state = {
        "step": step,
        "seconds": seconds,
        "model": stage.model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.kept,
    }
    with atomic_file(path) as partial:
        torch.save(state, partial)


def restore(path: Path, stage: Stage, optimizer: torch.optim.Optimizer, average: Average) -> tuple[int, float]:
    """Load the checkpoint if there is one; return the steps and seconds it has behind it."""
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    stage.model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    for kept, saved in zip(average.kept, state["average"], strict=True):
        kept.copy_(saved)
    return state["step"], state["seconds"]


def averaged_weights(stage: Stage, path: Path) -> None:
    """Give the stage's model the averaged weights of a checkpoint (the weights themselves where nothing was averaged)."""
    state = torch.load(path, weights_only=True)
    stage.model.load_state_dict(state["model"])
    if stage.recipe.average:
        with torch.no_grad():
            for live, kept in zip(stage.model.parameters(), state["average"], strict=True):
                live.copy_(kept)


class Curve:
    """The figures of a run: sums between two writes, points kept as JSON."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        points = json.loads(path.read_text()) if path.exists() else []
        self.points = [point for point in points if point["step"] <= step]
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, figures: dict[str, Tensor]) -> None:
        """Add the figures of one step without reading them."""
        for name, figure in figures.items():
            self.sums[name] = self.sums.get(name, 0) + figure.detach()
        self.count += 1

    def point(self, step: int, **figures: float) -> dict[str, float]:
        """Close a point of the curve: the means since the last one, and `figures`."""
        means = {name: float(total) / self.count for name, total in self.sums.items()}
        self.points.append({"step": step, **means, **figures})
        self.sums, self.count = {}, 0
        atomic_write(self.path, json.dumps(self.points))
        return self.points[-1]


def update(stage: Stage, optimizer: torch.optim.Optimizer, average: Average, loss: Callable, *, step: int, lr: float) -> dict:
    """Take one optimizer step and return the figures of its batch."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    figures = loss(stream(stage.recipe.seed, step))
    figures["loss"].backward()
    nn.utils.clip_grad_norm_(stage.model.parameters(), stage.recipe.clip, foreach=True)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    average.update(step)
    return figures


def fit(
    stage: Stage, budget: Budget, *, save_every: float = 120, preview_every: float = 300, log_every: float = 20
) -> Iterator[str]:
    """Train `stage` until `budget` is spent, going on from its checkpoint; yields a line of progress now and then.

    Periods are in seconds. When the generator ends, the model holds the averaged weights.

    Raises:
        NonFiniteError: when the loss is not finite; the checkpoint keeps the last good state.
    """
    stage.model.train()
    recipe, path = stage.recipe, stage.folder / f"{stage.name}.pt"
    stage.folder.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(
        stage.model.parameters(), lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True
    )
    average = Average(stage.model, recipe.average)
    step, before = restore(path, stage, optimizer, average)
    curve = Curve(stage.folder / f"{stage.name}.json", step)
    start = saved = shown = logged = time.monotonic()
    first = logged_step = step
    while (progress := budget.progress(step, before + time.monotonic() - start)) < 1:
        curve.add(update(stage, optimizer, average, stage.loss, step=step, lr=recipe.lr_at(step, progress)))
        step += 1
        now = time.monotonic()
        seconds = before + now - start
        if now - logged > log_every or step == first + 1:
            rate = recipe.batch * (step - logged_step) / (now - logged)
            point = curve.point(step, seconds=seconds, rate=rate, lr=recipe.lr_at(step, progress))
            if not math.isfinite(point["loss"]):
                raise NonFiniteError(f"The loss of {stage.name} is {point['loss']} at step {step}.", module=stage.name, step=step)
            yield f"{stage.name} {step}: {_line(point)}, {rate:.0f} samples/s, {_left(seconds, progress)}"
            logged, logged_step = now, step
        if now - saved > save_every:
            save(path, stage, optimizer, average, step=step, seconds=seconds)
            saved = now
        if now - shown > preview_every:
            with averaged(stage, average):
                stage.preview(step)
            shown = time.monotonic()
    save(path, stage, optimizer, average, step=step, seconds=before + time.monotonic() - start)
    if recipe.average:
        average.swap()
    stage.model.eval()
    stage.preview(step)


def _line(point: dict[str, float]) -> str:
    """Return a point's figures as text."""
    return ", ".join(f"{k} {v:.4g}" for k, v in point.items() if k not in ("step", "seconds", "rate", "lr"))


def _left(seconds: float, progress: float) -> str:
    """Return the time that the rest of the budget takes."""
    return f"{seconds * (1 - progress) / progress / 60:.1f} min left" if progress > 1e-3 else "just begun"


class averaged:  # noqa: N801 - reads as a verb: with averaged(stage, average)
    """Context in which a stage's model is in evaluation mode and holds the averaged weights."""

    def __init__(self, stage: Stage, average: Average) -> None:
        self.stage, self.average = stage, average if stage.recipe.average else None

    def __enter__(self) -> None:
        self.stage.model.eval()
        if self.average:
            self.average.swap()

    def __exit__(self, *_: object) -> None:
        if self.average:
            self.average.swap()
        self.stage.model.train()
