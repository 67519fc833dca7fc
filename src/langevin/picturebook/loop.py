"""The training loop of all stages: resumable, scheduled by time or steps, with averaged weights and a curve on disk.

Step k draws its batch from a generator seeded with (seed, k), so weights and optimizer state are all there is to keep.
Under `torchrun` each process draws its own batch and takes the step of their mean gradient; the first writes files.

It is not `training/trainer.py`, whose runs are counted in steps and whose batches are collated of single examples with
streams of their own. Here a budget may be minutes, over all restarts, from which the decay of the learning rate
follows; a stage draws a whole batch at once from one stream; and some weights have a second optimizer.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed
from torch import Tensor, nn

from ..core.errors import NonFiniteError
from ..core.files import atomic_file, atomic_write

DECAY = 0.15
"""Share of a run, at its end, over which the learning rate falls to zero."""


@dataclass(frozen=True)
class Budget:
    """How long a stage trains in all, runs before a restart included: a number of minutes or a number of steps."""

    minutes: float = 0.0
    steps: int | None = None

    def progress(self, step: int, seconds: float) -> float:
        """Return the share of the budget that is spent; 1 and more is all of it."""
        spent, given = (seconds / 60, self.minutes) if self.steps is None else (step, self.steps)
        return spent / given if given else 1.0


@dataclass(frozen=True)
class Recipe:
    """The optimizer's numbers: warm-up, a constant learning rate, and a decay at the end.

    AdamW, and Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for the weights that `Stage.matrices` names,
    scaled to AdamW's step (Liu et al. 2025, arXiv 2502.16982).
    `average` is the decay of the exponential moving average of the weights; with 0 it is the weights themselves.
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
        """Return the learning rate: warm-up, constant, then 1 - sqrt decay (Haegele et al. 2024, arXiv 2405.18392)."""
        warm = min(1.0, (step + 1) / self.warmup)
        late = max(0.0, progress - (1 - DECAY)) / DECAY
        return self.lr * warm * (1 - math.sqrt(min(late, 1.0)))


class Crew:
    """The processes that train together: one, unless `torchrun` started more."""

    def __init__(self) -> None:
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = torch.distributed.get_rank() if together else 0
        self.size = torch.distributed.get_world_size() if together else 1

    @torch.no_grad()
    def mean(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        if self.size > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            torch.distributed.all_reduce(flat)
            flat.div_(self.size)
            parts = flat.split([tensor.numel() for tensor in tensors])
            torch._foreach_copy_(tensors, [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])


class Stage:
    """One thing to train. A subclass gives the model, the recipe, the loss of a batch, and pictures to look at.

    Attributes:
        name: names the checkpoint and the curve.
        budget: how long it trains unless something else is asked for; minutes are those of two cores.
        stale: the caches, in the folder of data, that its training makes worthless.
        product: the name of what `write` makes; None where the stages after it or the export make use of it instead.
        model: holds every trained parameter.
        folder: where the checkpoint, curve and pictures go.
        device: where the model is and the batches go; random numbers are always drawn on the CPU.
    """

    name: str
    recipe: Recipe
    budget: Budget
    stale: tuple[str, ...] = ()
    product: str | None = None
    model: nn.Module
    folder: Path
    device: torch.device = torch.device("cpu")

    def to(self, device: torch.device) -> Stage:
        """Move the stage to a device and return it."""
        self.device = device
        self.model.to(device)
        return self

    def loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw a batch and return its loss under "loss", beside other figures for the curve."""
        raise NotImplementedError

    def preview(self, step: int) -> None:
        """Write pictures that show how far training is."""

    def write(self, path: Path) -> None:
        """Write what was trained as the package ships it, for a stage with a `product`."""
        raise NotImplementedError

    def matrices(self) -> Iterable[nn.Parameter]:
        """Return the contiguous weights that map features to features, for orthogonal updates; none by default."""
        return ()

    @property
    def checkpoint(self) -> Path:
        """The file that keeps the state of the stage's training."""
        return self.folder / f"{self.name}.pt"


@torch.no_grad()
def load_average(model: nn.Module, checkpoint: Path) -> None:
    """Give a model the averaged weights of a checkpoint."""
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    model.load_state_dict(state["model"])
    for weight, mean in zip(model.parameters(), state["average"], strict=True):
        weight.copy_(mean)


class State:
    """What a stage's training consists of at one moment: weights, their average, the optimizer, steps and seconds."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.recipe, self.crew = stage, stage.recipe, Crew()
        self.step, self.seconds = 0, 0.0
        self.weights = list(stage.model.parameters())
        self.mean = [weight.detach().clone() for weight in self.weights]
        self.inner = list(stage.matrices())
        known = {id(weight) for weight in self.inner}
        rest = [weight for weight in self.weights if id(weight) not in known]
        common = {"lr": self.recipe.lr, "weight_decay": self.recipe.weight_decay}
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, betas=self.recipe.betas, fused=True, **common)
        ]
        self.flat = [nn.Parameter(weight.detach().flatten(1)) for weight in self.inner]
        if self.flat:
            self.optimizers.append(torch.optim.Muon(self.flat, adjust_lr_fn="match_rms_adamw", **common))

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.stage.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": self.mean,
        }
        with atomic_file(self.stage.checkpoint) as partial:
            torch.save(state, partial)

    @torch.no_grad()
    def restore(self) -> None:
        """Go on from the checkpoint if there is one."""
        if self.stage.checkpoint.exists():
            state = torch.load(self.stage.checkpoint, weights_only=True, map_location="cpu")
            self.step, self.seconds = state["step"], state["seconds"]
            self.stage.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            for mean, saved in zip(self.mean, state["average"], strict=True):
                mean.copy_(saved)

    def update(self, lr: float, begun: float) -> dict[str, Tensor]:
        """Take one step on a fresh batch and return the batch's figures; `begun` is when training would have begun."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
        draw = self.step * self.crew.size + self.crew.rank
        stream = torch.Generator().manual_seed((self.recipe.seed * 1_000_003 + draw) % 2**63)
        figures = self.stage.loss(stream)
        figures["loss"].backward()
        seconds = torch.tensor(time.monotonic() - begun, device=self.stage.device)
        self.crew.mean([weight.grad for weight in self.weights if weight.grad is not None] + [seconds])
        self.seconds = float(seconds)
        nn.utils.clip_grad_norm_(self.weights, self.recipe.clip, foreach=True)
        for flat, weight in zip(self.flat, self.inner, strict=True):
            flat.grad = weight.grad.flatten(1)
        for optimizer in self.optimizers:
            optimizer.step()
        self.stage.model.zero_grad(set_to_none=True)
        self._average()
        self.step += 1
        return figures

    @torch.no_grad()
    def _average(self) -> None:
        """Move the mean towards the weights, faster at first so that early noise is forgotten."""
        decay = min(self.recipe.average, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.mean, self.weights, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights and their mean; twice restores both."""
        for weight, mean in zip(self.weights, self.mean, strict=True):
            held = weight.clone()
            weight.copy_(mean)
            mean.copy_(held)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context in which the model is in evaluation mode and holds the averaged weights."""
        self.stage.model.eval()
        self.swap()
        try:
            yield
        finally:
            self.swap()
            self.stage.model.train()


class Curve:
    """The figures of a run: sums since the last point, points kept as JSON."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        points = json.loads(path.read_text()) if path.exists() else []
        self.points = [point for point in points if point["step"] <= step]
        self._begin()

    def _begin(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count, self.since = 0, time.monotonic()

    def add(self, figures: dict[str, Tensor]) -> None:
        """Add the figures of one step without reading them."""
        for name, figure in figures.items():
            self.sums[name] = self.sums.get(name, 0) + figure.detach()
        self.count += 1

    def point(self, state: State, lr: float) -> str:
        """Close a point of the curve and return it as a line of text.

        Raises:
            NonFiniteError: when the mean loss is not finite.
        """
        means = {name: float(total) / self.count for name, total in self.sums.items()}
        name, step = state.stage.name, state.step
        if not math.isfinite(means["loss"]):
            raise NonFiniteError(f"The loss of {name} is {means['loss']} at step {step}.", module=name, step=step)
        rate = state.recipe.batch * state.crew.size * self.count / (time.monotonic() - self.since)
        self.points.append({"step": step, **means, "seconds": state.seconds, "rate": rate, "lr": lr})
        atomic_write(self.path, json.dumps(self.points))
        self._begin()
        return f"{name} {step}: {', '.join(f'{k} {v:.4g}' for k, v in means.items())}, {rate:.0f} samples/s"


class Every:
    """Tells when a number of seconds has passed since it last said so."""

    def __init__(self, seconds: float, *, at_once: bool = False) -> None:
        self.seconds = seconds
        self.last = -math.inf if at_once else time.monotonic()

    def __call__(self) -> bool:
        due = time.monotonic() - self.last > self.seconds
        if due:
            self.last = time.monotonic()
        return due


def fit(
    stage: Stage, budget: Budget, *, save_every: float = 120, preview_every: float = 300, log_every: float = 20
) -> Iterator[str]:
    """Train `stage` until `budget` is spent, going on from its checkpoint; yields a line of progress now and then.

    Periods are in seconds. When the iterator ends, the model holds the averaged weights.

    Raises:
        NonFiniteError: when the loss is not finite.
    """
    stage.folder.mkdir(parents=True, exist_ok=True)
    stage.model.train()
    state = State(stage)
    state.restore()
    curve = Curve(stage.folder / f"{stage.name}.json", state.step)
    log, keep, show = Every(log_every, at_once=True), Every(save_every), Every(preview_every)
    begun, first = time.monotonic() - state.seconds, state.crew.rank == 0
    while (progress := budget.progress(state.step, state.seconds)) < 1:
        lr = stage.recipe.lr_at(state.step, progress)
        curve.add(state.update(lr, begun))
        if not first:
            continue
        if log():
            left = state.seconds * (1 / max(progress, 1e-4) - 1) / 60
            yield f"{curve.point(state, lr)}, {left:.1f} min left"
        if keep():
            state.save()
        if show():
            with state.averaged():
                stage.preview(state.step)
    if first:
        state.save()
    state.swap()
    stage.model.eval()
    if first:
        stage.preview(state.step)
