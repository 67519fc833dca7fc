"""The training loop of every recipe: batches, gradients, the average, checkpoints, and what is told on the way.

A run is a function of its task, its data and its seed. Its state is the number of steps done, the trained weights,
their average and the optimizer's state; everything random follows from the seed and the position in the run
(`streams`), so a run that was killed and resumed ends with the bits of one that was not.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, InputError, NonFiniteError, check_choice
from ..core.imports import require
from ..core.logging import get_logger
from ..core.progress import progress_bar
from ..core.rng import fresh
from ..optimization.learning_rates import factor
from . import checkpoints
from .average import Average, Decay
from .copies import Copies
from .divided import asked, plainly
from .lines import Lines
from .machine import accelerator, give_back, machine
from .shares import share_of
from .streams import BucketOrder, Draw, Order, Stream, Streams

logger = get_logger(__name__)
LOG = "log.jsonl"
POLICIES = ("stop", "skip")
LONG = 100
"""Steps from which it pays to settle the heap."""


class Losses(NamedTuple):
    """What a batch costs.

    Attributes:
        rows: the loss of every row, already weighed; their sum over the number of examples is what is minimised.
        level: the number of the noise level of every row.
        plain: the loss of every row before it was weighed, without a gradient; None where nothing is weighed.
    """

    rows: Tensor
    level: Tensor
    plain: Tensor | None = None


class Task(Protocol):
    """What a recipe trains.

    Attributes:
        networks: those that hold trained parameters, by name; the trainer puts the prepared ones in their place.
    """

    networks: dict[str, nn.Module]

    def groups(self) -> list[dict[str, Any]]:
        """Return the groups of trained parameters, as optimizers take them."""

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move what is not trained to a device, in the type that it computes in."""

    def losses(self, batch: Any, draw: Draw) -> Losses:
        """Return what a batch costs, with the random numbers of its examples."""

    def save(self, folder: Path) -> None:
        """Write the trained weights into a folder."""

    def load(self, folder: Path) -> None:
        """Read the trained weights that `save` wrote."""


class Examples(Protocol):
    """What a task is trained on."""

    def __len__(self) -> int:
        """Return the number of examples."""

    def example(self, number: int, stream: Stream) -> Any:
        """Return an example; all that is random in it comes from its streams."""

    def collate(self, examples: Sequence[Any]) -> Any:
        """Return a batch."""


@dataclass(frozen=True)
class Run:
    """How a task is trained.

    Attributes:
        folder: where checkpoints, the log and the results go.
        steps: optimizer steps.
        seed: of all that is random; None draws one.
        batch: examples per batch of one process.
        accumulated: batches per optimizer step.
        lr_scheduler, warmup: see `optimization.learning_rates`; the rates themselves are those of the task's groups.
        lr_shape: `cycles` or `power` of the schedule.
        optimizer: from groups of parameters to their optimizer.
        max_grad_norm: gradients longer than this are shortened to it; None leaves them.
        mixed_precision: "no", "fp16" or "bf16"; None is what accelerate was configured for.
        average: decay of the moving average of the weights; None keeps none.
        checkpoint_every: optimizer steps between two checkpoints; None makes none.
        checkpoint_limit: how many are kept; None keeps all.
        resume: name of a checkpoint, or "latest".
        on_nonfinite: "stop" raises when a loss is not finite, "skip" leaves the step out and says so.
        workers: processes that prepare batches.
        log_every: optimizer steps between two readings of the losses.
        trackers: "tensorboard", "wandb" or others that accelerate knows, which get the figures and previews too.
        tracker_folder: where tensorboard's files go; `logs` in the folder of the run where None.
        project: what the trackers call the run.
        settings: what they show beside it.
        buckets: the numbers of the examples that a step may see together; None mixes all.
    """

    folder: Path
    steps: int
    seed: int | None = None
    batch: int = 1
    accumulated: int = 1
    lr_scheduler: str = "constant"
    warmup: int = 0
    lr_shape: Mapping[str, float] = field(default_factory=dict)
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] = torch.optim.AdamW
    max_grad_norm: float | None = 1.0
    mixed_precision: str | None = None
    average: Decay | None = None
    checkpoint_every: int | None = 500
    checkpoint_limit: int | None = None
    resume: str | None = None
    on_nonfinite: str = "stop"
    workers: int = 0
    log_every: int = 10
    trackers: tuple[str, ...] = ()
    tracker_folder: Path | None = None
    project: str = "training"
    settings: Mapping[str, Any] = field(default_factory=dict)
    buckets: Sequence[Sequence[int]] | None = None

    def __post_init__(self) -> None:
        check_choice("on_nonfinite", self.on_nonfinite, POLICIES)
        for name in ("steps", "batch", "accumulated", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must be at least 1.")

    def rate(self, step: int) -> float:
        """Return the factor of the learning rates at an optimizer step."""
        return factor(self.lr_scheduler, step, warmup=self.warmup, total=self.steps, **self.lr_shape)


class Trainer:
    """Trains a task.

    Attributes:
        watch: called after every optimizer step with the trainer, such as for previews.
        before: called once, with the untrained networks in their places and before a checkpoint is read.
        after: called after every checkpoint.
        order: which examples are seen when.
        weights: where the weights of the networks lie.
        step: optimizer steps that were done.
    """

    def __init__(
        self, task: Task, data: Examples, run: Run, *, watch: Iterable[Callable[[Trainer], None]] = ()
    ) -> None:
        if not len(data):
            raise InputError("There are no examples to train on.")
        self.task, self.data, self.run, self.watch = task, data, run, list(watch)
        self.before: list[Callable[[Trainer], None]] = []
        self.after: list[Callable[[Trainer], None]] = []
        self.accelerator = accelerator(run)
        self.precision, self.main = self.accelerator.mixed_precision, self.accelerator.is_main_process
        self.step = 0
        self.found = checkpoints.find(run.folder, run.resume) if run.resume else None
        self.streams = Streams(seed_of(run.seed, self.found))
        sizes = (len(data), run.batch, run.accumulated, self.accelerator.num_processes)
        self.order = BucketOrder(self.streams, *sizes, run.buckets) if run.buckets else Order(self.streams, *sizes)
        self.weights = weights_of(self.accelerator, run)
        self.parameters = trained(task)
        self.optimizer = self.weights.checked(run.optimizer(task.groups()))
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.average: Average | None = None
        self.log = Log(run.folder / LOG)

    # ---- the loop ---------------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train from where the run stands to its last step.

        Raises:
            NonFiniteError: when a loss is not finite; names the step and the examples.
        """
        self.run.folder.mkdir(parents=True, exist_ok=True)
        if self.main:
            checkpoints.sweep(self.run.folder)
        self._prepare()
        if self.run.trackers:
            plain = {name: v for name, v in self.run.settings.items() if isinstance(v, (bool, int, float, str))}
            self.accelerator.init_trackers(self.run.project, plain)
        for look in self.before:
            look(self)
        if self.found is not None:
            self._resume(self.found)
        if self.main:
            self.log.cut(self.step)
        batches = self._batches()
        heap = settled_heap() if self.run.steps - self.step >= LONG else nullcontext()
        with heap, progress_bar(total=self.run.steps, initial=self.step, desc="Steps", disable=not self.main) as bar:
            while self.step < self.run.steps:
                self._advance(batches)
                bar.update()
                if self.step % self.run.log_every == 0 or self.step == self.run.steps:
                    bar.set_postfix(loss=f"{self._tell():.4g}")
                for look in self.watch:
                    look(self)
                if self.run.checkpoint_every and self.step % self.run.checkpoint_every == 0:
                    self.checkpoint()
        if self.main:
            checkpoints.keep(self.run.folder, self.run.checkpoint_limit)  # a kill may have come before it
        self.weights = self.weights.joined(self.average)
        self.task.networks.update(self.bare)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    def _prepare(self) -> None:
        """Bring networks, optimizer and average to where they are trained, and the rest of the task to the device."""
        kinds = {"fp16": torch.float16, "bf16": torch.bfloat16}
        dtype = kinds.get(self.accelerator.mixed_precision, torch.float32)
        self.bare = dict(self.task.networks)
        self.task.place(self.accelerator.device, dtype)
        self.task.networks.update(self.weights.prepare(self.bare))
        self.parameters = self.weights.own(self.parameters)
        for group in self.optimizer.param_groups:
            group["params"] = self.weights.own(group["params"])
        self.optimizer = self.accelerator.prepare(self.optimizer)
        self.average = Average(self.parameters, self.run.average) if self.run.average else None

    def _batches(self) -> Iterator[Any]:
        """Return this process's batches from the present step on."""
        from torch.utils.data import DataLoader

        batches = partial(self.order.batches, self.accelerator.process_index, self.step, self.run.steps)
        feed = Feed(self.data, self.streams, batches)
        options: dict[str, Any] = {"prefetch_factor": 4} if self.run.workers else {}
        loader: Any = DataLoader(
            feed,  # type: ignore[arg-type]
            batch_sampler=feed,
            collate_fn=feed.collate,
            num_workers=self.run.workers,
            pin_memory=self.accelerator.device.type == "cuda",
            **options,
        )
        return iter(loader)

    def _advance(self, batches: Iterator[Any]) -> None:
        """Take one optimizer step."""
        if self.accelerator.mixed_precision != self.precision:
            raise ConfigError(
                f"This run computes in {self.precision!r}, and another one, which was made in this process later, in "
                f"{self.accelerator.mixed_precision!r}; finish one run before the next is made."
            )
        torch.manual_seed(self.streams.number("layers", self.step, self.accelerator.process_index))
        self._set_rates()
        total = torch.zeros((), device=self.accelerator.device)
        for number in range(self.run.accumulated):
            positions, batch = next(batches)
            last = number == self.run.accumulated - 1
            apart = nullcontext() if last else self.weights.apart(self.task.networks)
            with apart, self.accelerator.autocast():
                draw = Draw(self.streams, positions, self.accelerator.device)
                rows = self.task.losses(to_device(batch, self.accelerator.device), draw).rows
                loss = rows.sum() / len(positions) / self.run.accumulated
                self.accelerator.backward(loss)
            total = total + loss.detach()
        if self.step < 1:
            self._diagnose()
        length = None
        if self.run.max_grad_norm is not None:
            length = self.weights.clip(self.parameters, self.run.max_grad_norm)
        if self._wanted(total):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()
        self.log.add(self.step, total, length, self.rates[0] * self.run.rate(self.step))
        self.step += 1

    def _set_rates(self) -> None:
        share = self.run.rate(self.step)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * share

    def _wanted(self, loss: Tensor) -> bool:
        """Tell whether the step is to be taken: with `skip`, or on the CPU, a loss is looked at before it."""
        skip = self.run.on_nonfinite == "skip"
        if not skip and loss.device.type != "cpu":
            return True
        loss = self.accelerator.reduce(loss, "mean")
        if bool(torch.isfinite(loss)):
            return True
        size = self.order.step_size
        seen = {self.order.example(position) for position in range(self.step * size, (self.step + 1) * size)}
        what = f"The loss is {float(loss)} at step {self.step}, for the examples {sorted(seen)}"
        if not skip:
            raise NonFiniteError(f"{what}. Look at them, lower the learning rate, or pass on_nonfinite='skip'.",
                                 module="loss", step=self.step)  # fmt: skip
        logger.warning("%s; the step is left out.", what)
        return False

    def _diagnose(self) -> None:
        """Warn of trained parameters that no gradient reaches; several processes would wait for it."""
        named = {f"{part}.{name}": p for part, net in self.bare.items() for name, p in net.named_parameters()}
        names = {id(p): name for name, p in zip(named, self.weights.own([*named.values()]), strict=True)}
        idle = [names.get(id(p), "?") for p in self.parameters if p.grad is None]
        if len(idle) == len(self.parameters):
            raise ConfigError("No trained parameter has a gradient: the loss does not depend on any of them.")
        if idle:
            shown = ", ".join(idle[:5]) + (", ..." if len(idle) > 5 else "")
            if self.accelerator.num_processes > 1:
                raise ConfigError(f"Several processes need a gradient of every trained parameter; {shown} get none.")
            logger.warning("%d of %d trained parameters get no gradient: %s", len(idle), len(self.parameters), shown)

    def _tell(self) -> float:
        """Write the log up to the present step and return the last loss."""
        points = self.log.close(lambda loss: float(self.accelerator.reduce(loss, "mean")), write=self.main)
        for point in points:
            if not math.isfinite(point["loss"]) and self.run.on_nonfinite == "stop":
                raise NonFiniteError(
                    f"The loss was {point['loss']} at step {point['step']}; lower the learning rate, or pass "
                    "on_nonfinite='skip'.",
                    module="loss",
                    step=point["step"],
                )
        for point in points if self.run.trackers else ():
            self.accelerator.log({name: value for name, value in point.items() if name != "step"}, step=point["step"])
        return points[-1]["loss"] if points else math.nan

    def settle(self) -> None:
        """Make the average of the weights, if there is one, the weights, and let go of what only steps need."""
        if self.average is not None:
            self.average.put(self.average.values)
            self.average = None
        self.optimizer.state.clear()
        give_back()

    @contextmanager
    def averaged(self) -> Iterator[bool]:
        """Context in which the networks hold the average of their weights, if there is one, whole and on the device.

        While the run lasts, all processes enter it together. It tells whether this is the process that has them.
        """
        average = self.average.applied() if self.average is not None else nullcontext()
        with average, self.weights.whole(self.accelerator.device):
            yield self.main

    @contextmanager
    def looking(self) -> Iterator[bool]:
        """Context in which the networks are as they would be used: averaged, in evaluation, and without wrappers.

        Draws from torch's own generators in it change nothing after it. For the rest see `averaged`.
        """
        training = {name: network.training for name, network in self.bare.items()}
        prepared, device = dict(self.task.networks), self.accelerator.device
        self.task.networks.update(self.bare)
        try:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), self.averaged() as main:
                for network in self.bare.values():
                    network.eval()
                yield main
        finally:
            self.task.networks.update(prepared)
            for name, network in self.bare.items():
                network.train(training[name])

    def show(self, name: str, picture: Any) -> None:
        """Hand a PIL picture to the trackers that take pictures."""
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.writer.add_image(name, np.asarray(picture), self.step, dataformats="HWC")
            elif tracker.name == "wandb":
                wandb = require("wandb", why="The tracker wandb")
                tracker.log({name: wandb.Image(picture)}, step=self.step)

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Write a checkpoint of the present step, and delete old ones once it was read back."""
        self._tell()
        average = {} if self.average is None else self.average.state()
        kept = self.weights.collected([self.optimizer.state_dict(), average])
        with self.weights.whole():
            if self.main:
                facts = {"seed": self.streams.seed, "steps": self.run.steps, "examples": len(self.data)}
                facts["step_size"] = self.order.step_size
                checkpoints.save(self.run.folder, self.step, partial(self._write, *kept), facts)
                checkpoints.keep(self.run.folder, self.run.checkpoint_limit)
        for look in self.after:
            look(self)
        self.accelerator.wait_for_everyone()

    def _write(self, optimizer: Mapping[str, Any], average: dict[str, Tensor], folder: Path) -> None:
        """Write all that a run consists of."""
        self.task.save(folder)
        scaler = self.accelerator.scaler
        state = {"optimizer": optimizer, "scaler": None if scaler is None else scaler.state_dict()}
        torch.save(state, folder / "optimizer.bin")
        if average:
            from safetensors.torch import save_file

            save_file(average, folder / "average.safetensors")

    def _resume(self, found: checkpoints.Checkpoint) -> None:
        """Go on from a checkpoint."""
        if found.facts["examples"] != len(self.data):
            raise ConfigError(
                f"{found.folder} was trained on {found.facts['examples']} examples and there are {len(self.data)} now; "
                "a run is resumed with the data it began with."
            )
        with plainly(), self.weights.whole(changed=True):
            self.task.load(found.folder)
        state = torch.load(found.folder / "optimizer.bin", map_location="cpu", weights_only=True)
        for number, kept in state["optimizer"]["state"].items():
            for name, value in kept.items():
                kept[name] = share_of(value, self.parameters[number])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            from safetensors.torch import load_file

            if not (found.folder / "average.safetensors").is_file():
                raise ConfigError(f"{found.folder} has no average of the weights; resume without `use_ema`.")
            self.average.restore(load_file(found.folder / "average.safetensors"))
        if self.main and found.facts.get("step_size", self.order.step_size) != self.order.step_size:
            logger.warning(
                "%s was trained on %d examples per optimizer step, and now there are %d: it goes on, but not as it "
                "would have.",
                found.folder, found.facts["step_size"], self.order.step_size,
            )  # fmt: skip
        self.step = found.step
        logger.info("Going on from %s.", found.folder)


class Log(Lines):
    """The figures of every step of a run."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.open: list[tuple[int, Tensor, Tensor | None, float]] = []

    def add(self, step: int, loss: Tensor | float, length: Tensor | None, rate: float) -> None:
        """Remember the figures of a step without reading them."""
        self.open.append((step, torch.as_tensor(loss), length, rate))

    def close(self, read: Callable[[Tensor], float], *, write: bool) -> list[dict[str, Any]]:
        """Read what was added since the last time, write it if asked, and return it."""
        points = [
            {"step": step, "loss": read(loss), "lr": rate, **({} if length is None else {"grad_norm": float(length)})}
            for step, loss, length, rate in self.open
        ]
        self.open = []
        if write and points:
            self.write(points)
        return points


class Feed:
    """The examples and the batches of one process, as a DataLoader takes them: every batch tells its positions."""

    def __init__(
        self, data: Examples, streams: Streams, batches: Callable[[], Iterator[list[tuple[int, int]]]]
    ) -> None:
        self.data, self.streams, self.batches = data, streams, batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self.batches()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, Any]:
        number, position = key
        return position, self.data.example(number, self.streams.at(position))

    def collate(self, examples: list[tuple[int, Any]]) -> tuple[list[int], Any]:
        """Return positions and batch."""
        return [position for position, _ in examples], self.data.collate([example for _, example in examples])


def seed_of(given: int | None, found: checkpoints.Checkpoint | None) -> int:
    """Return the seed of a run, the same in all processes: the given one, that of the checkpoint, or one drawn.

    Raises:
        ConfigError: when the checkpoint has another one than the given one.
        MissingDependencyError: without accelerate.
    """
    if found is not None:
        seed = found.facts["seed"]
        if given not in (None, seed):
            raise ConfigError(f"The run to resume has the seed {seed}, not {given}; leave `seed` out.")
        return seed
    state = machine()
    seed = torch.tensor(fresh().initial_seed() % 2**31 if given is None else given, device=state.device)
    if state.num_processes > 1:
        torch.distributed.broadcast(seed, 0)
    return int(seed)


def weights_of(accelerator: Any, run: Run) -> Copies:
    """Return where the weights of a run lie, as accelerate is configured.

    Raises:
        ConfigError: where the run does something else than the configuration says.
    """
    division = asked()
    if division is None:
        return Copies(accelerator)
    from .sharded import Sharded

    division.check(accumulated=run.accumulated, clipping=run.max_grad_norm)
    return Sharded(accelerator, division)


def trained(task: Task) -> list[nn.Parameter]:
    """Return the trained parameters of a task.

    Raises:
        ConfigError: when there are none.
    """
    found = [parameter for group in task.groups() for parameter in group["params"]]
    if not found:
        raise ConfigError("Nothing is to be trained: every parameter is locked.")
    return found


@contextmanager
def settled_heap() -> Iterator[None]:
    """Context in which Python's collector of cycles leaves out what there was before it.

    Else it walks through all modules and packages every 15 steps of the row `train-lora` of `python -m benchmarks`,
    which is 3 percent of the time of such a run. Once before, it takes as long as it would have then.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def to_device(batch: Any, device: torch.device) -> Any:
    """Return a batch with its tensors on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: to_device(part, device) for name, part in batch.items()}
    return batch
