"""Host time of a scheduler's step beyond its tensor arithmetic, for every public scheduler class.

A run of the documented loop is timed whole, on a tensor so small that a call of torch is all overhead. What its steps
call in torch to compute (reads, sums, draws, outputs) is recorded once and timed alone, with the same arguments and in
the same order; moving, reshaping and making tensors from host numbers is not counted as arithmetic. The difference is
what the scheduler itself costs. The peer is held against the arithmetic of ours, since both compute the same.
"""

from __future__ import annotations

import importlib
import inspect
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .measures import seconds

STEPS = 20
SHAPE = (1, 4, 8, 8)
CLASSES = 9
"""Classes of tokens, the mask included."""
MOVES = {
    "__get__", "__getitem__", "as_tensor", "contiguous", "cpu", "detach", "double", "expand", "flatten", "float",
    "reshape", "size", "split", "tensor", "to", "tolist", "unsqueeze", "view",
}  # fmt: skip
"""Calls that compute nothing."""
OPTIONS: dict[str, dict[str, Any]] = {"VQDiffusionScheduler": {"num_vec_classes": CLASSES}}
STEPPED: dict[str, dict[str, Any]] = {"RePaintScheduler": {"jump_length": 3, "jump_n_sample": 2}}
"""Options of `set_timesteps` where the documented ones need more steps."""

Loop = Callable[[], None]
Given = dict[str, Any]


class Arithmetic(TorchFunctionMode):
    """Records the calls that compute: function, arguments, keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], tuple, Given]] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Given | None = None) -> Any:
        result, kwargs = func(*args, **(kwargs or {})), kwargs or {}
        whole = isinstance(result, Tensor) or (isinstance(result, tuple) and any(isinstance(v, Tensor) for v in result))
        if whole and getattr(func, "__name__", "") not in MOVES:
            self.calls.append((func, args, kwargs))
        return result

    def again(self) -> None:
        """Make the same calls once more."""
        for func, args, kwargs in self.calls:
            func(*args, **kwargs)

    def idle(self) -> None:
        """Walk through the calls without making them."""
        for func, args, kwargs in self.calls:
            nothing(func, args, kwargs)


def nothing(*args: Any) -> None:
    """Do nothing."""


# ---- the documented loops, each over a fresh schedule ---------------------------------------------------------------


def plain(sampler: Any, x: Tensor, output: Tensor, given: Given) -> Loop:
    """The loop of most schedulers."""
    times = list(sampler.timesteps)

    def loop() -> None:
        now = x
        for t in times:
            now = sampler.step(output, t, now, **given, return_dict=False)[0]

    return loop


def repaint(sampler: Any, x: Tensor, output: Tensor, given: Given) -> Loop:
    """Steps with the picture and its mask, and steps back up."""
    times, mask = [int(t) for t in sampler.timesteps], torch.ones_like(x)

    def loop() -> None:
        now, before = x, times[0] + 1
        for t in times:
            if t < before:
                now = sampler.step(output, t, now, x, mask, **given).prev_sample
            else:
                now = sampler.undo_step(now, before, **given)
            before = t

    return loop


def score_ve(sampler: Any, x: Tensor, output: Tensor, given: Given) -> Loop:
    """A correction and a prediction at every timestep; both together are counted as one step."""
    sampler.set_sigmas(STEPS)
    times = list(sampler.timesteps)

    def loop() -> None:
        now = x
        for t in times:
            now = sampler.step_correct(output, now, **given).prev_sample
            now = sampler.step_pred(output, t, now, **given).prev_sample

    return loop


def score_vp(sampler: Any, x: Tensor, output: Tensor, given: Given) -> Loop:
    """Predictions alone."""
    times = list(sampler.timesteps)

    def loop() -> None:
        now = x
        for t in times:
            now = sampler.step_pred(output, now, t, **given)[0]

    return loop


def karras_ve(sampler: Any, x: Tensor, output: Tensor, given: Given) -> Loop:
    """Noise up, Euler's step and its correction at every timestep; all together are counted as one step."""
    levels = [0.0, *map(float, sampler.schedule)]

    def loop() -> None:
        now = x
        for k in range(STEPS, 0, -1):
            raised, hat = sampler.add_noise_to_input(now, levels[k], **given)
            made = sampler.step(output, hat, levels[k - 1], raised)
            now = made.prev_sample
            if k > 1:
                now = sampler.step_correct(output, hat, levels[k - 1], raised, now, made["derivative"]).prev_sample

    return loop


LOOPS: dict[str, Callable[..., Loop]] = {
    "KarrasVeScheduler": karras_ve,
    "RePaintScheduler": repaint,
    "ScoreSdeVeScheduler": score_ve,
    "ScoreSdeVpScheduler": score_vp,
}


def names() -> list[str]:
    """Return every public scheduler class of this library."""
    registry = importlib.import_module("langevin.registry")
    return [row.name for row in registry.SCHEDULERS if row.name.endswith("Scheduler")]


class Bench:
    """A scheduler of either library and what its loop is fed; a generator where its steps take one."""

    def __init__(self, library: str, name: str) -> None:
        package = importlib.import_module(library)
        cls = getattr(package, name, None) or getattr(package.schedulers, name)
        self.sampler = cls(**OPTIONS.get(name, {}))
        self.name, self.shape = name, STEPPED.get(name, {})
        self.x, self.output = torch.full(SHAPE, 0.5), torch.full(SHAPE, 0.1)
        if name == "VQDiffusionScheduler":
            self.x = torch.full((1, 16), CLASSES - 1)
            self.output = torch.full((1, CLASSES - 1, 16), 1.0 / (CLASSES - 1)).log()
        step = getattr(self.sampler, "step", None) or self.sampler.step_pred
        draws = "generator" in inspect.signature(step).parameters or name == "KarrasVeScheduler"
        self.given: Given = {"generator": torch.Generator().manual_seed(0)} if draws else {}

    def loop(self) -> Loop:
        """Return the documented loop over a schedule of `STEPS` steps that is set anew."""
        self.sampler.set_timesteps(STEPS, **self.shape)
        return LOOPS.get(self.name, plain)(self.sampler, self.x, self.output, self.given)


def recorded(name: str) -> Arithmetic:
    """Return the arithmetic of one run of our scheduler."""
    bench = Bench("langevin", name)
    bench.loop()()
    loop, arithmetic = bench.loop(), Arithmetic()
    with arithmetic:
        loop()
    return arithmetic


def host_times(
    library: str, name: str, rounds: int = 60, middle: Callable[[list[float]], float] = statistics.median
) -> dict[str, float]:
    """Return the time per step, whole and beyond the arithmetic, in microseconds, over `rounds` runs.

    Nothing where the library lacks the class or a package that it needs.

    Args:
        middle: what is taken of the runs: their median, or `min` on a machine that others use.
    """
    arithmetic = recorded(name)
    try:
        bench = Bench(library, name)
        bench.loop()()
    except (AttributeError, ImportError):
        return {}
    kinds: dict[str, list[float]] = {"whole": [], "again": [], "idle": []}
    for _ in range(rounds):
        calls = {"whole": bench.loop(), "again": arithmetic.again, "idle": arithmetic.idle}
        for kind, call in calls.items():
            kinds[kind].append(seconds(call))
    turns = len(bench.sampler.timesteps)
    whole, again, idle = (middle(times) / turns * 1e6 for times in kinds.values())
    return {f"{name}, us per step": whole, f"{name}, us beyond arithmetic": whole - (again - idle)}
