"""The documented scheduler protocol, a stateful skin over plans and rows."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch

from ..core.config import ConfigMixin
from ..core.errors import InputError, check_known
from ..core.hub import HUB_OPTIONS
from ..core.outputs import BaseOutput
from ..core.push import PushToHubMixin
from ..core.rng import Generators, normal
from ..diffusion.grid import Grid
from ..diffusion.prediction import Prediction
from ..diffusion.process import Level, Time
from ..diffusion.table import Noise, Plan, Row, Run, Solver
from .using import changed

SCHEDULER_CONFIG_NAME = "scheduler_config.json"

KarrasDiffusionSchedulers = Enum(
    "KarrasDiffusionSchedulers",
    [
        "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler",
        "HeunDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
        "DEISMultistepScheduler", "UniPCMultistepScheduler", "DPMSolverSDEScheduler", "EDMEulerScheduler",
    ],
)  # fmt: skip
KarrasDiffusionSchedulers.__doc__ = "Names of the samplers that read each other's configurations, for type hints."


@dataclass
class SchedulerOutput(BaseOutput):
    """Result of `step`: the sample after the step, and the estimate of the data that the step was based on."""

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


class SchedulerMixin(PushToHubMixin, ConfigMixin):
    """Base of schedulers.

    A subclass says which grid, solver and prediction its configuration means (`_grid`, `_solver`, `_prediction`).
    `plan` turns that into a table without touching the object, and the documented protocol (`set_timesteps`, `step`,
    ...) walks through the table with its position and history on the object. Positions are integers: `step` looks a
    timestep up by value only when it is not the expected next one, and then starts a new run there.

    Attributes:
        order: network calls per step, as the documentation counts them.
        step_options: keyword options of `step` that change the rows, with their defaults.
        grid_options: keyword options of `set_timesteps` beyond the common ones.
        scales_input: standard deviation of the data, if samples live at alpha = 1 and are scaled to unit variance on
            their way into the network.
        whole_timesteps: whether `timesteps` are integers wherever the grid allows.
        noise_dtype: dtype of the noise that `step` draws; None means that of the model's output.
        tuple_holds_data: whether `return_dict=False` also returns the estimate of the data.
        output_class: what `step` returns, made of the sample and the estimate of the data.
    """

    config_name = SCHEDULER_CONFIG_NAME
    order: int = 1
    step_options: ClassVar[Mapping[str, Any]] = {}
    grid_options: ClassVar[tuple[str, ...]] = ()
    scales_input: float | None = None
    whole_timesteps: ClassVar[bool] = True
    noise_dtype: ClassVar[torch.dtype | None] = None
    tuple_holds_data: ClassVar[bool] = True
    output_class: ClassVar[type] = SchedulerOutput
    _compatibles: ClassVar[tuple[str, ...]] = tuple(member.name for member in KarrasDiffusionSchedulers)

    num_inference_steps: int | None
    _levels: Grid | None

    # ---- what a subclass says ----------------------------------------------------------------------------------------

    def _grid(
        self, count: int | None, timesteps: Sequence[Time] | None, sigmas: Sequence[float] | None, **options: Any
    ) -> Grid:
        """Return the grid of `count` steps, or of the given timesteps or sigmas; with none the training table."""
        raise NotImplementedError

    def _solver(self, **options: Any) -> Solver:
        raise NotImplementedError

    def _prediction(self) -> Prediction:
        raise NotImplementedError

    def _init_sigma(self, grid: Grid) -> float:
        return 1.0

    def _own(self, name: str, default: Any = None) -> Any:
        """Return the option `name` of the configuration if this class has it, else `default`."""
        return self.config[name] if name in own_options(type(self)) else default

    def _setup(self) -> None:
        """Check the configuration and start without a schedule; called by every `__init__`."""
        self._prediction()
        self._solver(**self.step_options)
        self.num_inference_steps = None
        self._device: torch.device | None = None
        self._begin: int | None = None
        self._forget(None)

    # ---- plans -------------------------------------------------------------------------------------------------------

    def plan(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Sequence[Time] | None = None,
        sigmas: Sequence[float] | None = None,
        **options: Any,
    ) -> Plan:
        """Return the table of a whole run; the object's own state is neither read nor changed if a schedule is named.

        Args:
            num_inference_steps: number of steps. Without this and the next two: what `set_timesteps` has set.
            timesteps: custom timesteps, descending.
            sigmas: custom noise levels sigma / alpha, descending, the level at the end of the run included.
            options: options of `step` (such as `eta`) and of `set_timesteps`.

        Raises:
            ConfigError: for an unknown option. InputError: for a schedule that cannot be run.
        """
        check_known(f"{type(self).__name__}.plan", options, [*self.step_options, *self.grid_options])
        shape = {name: options.pop(name) for name in self.grid_options if name in options}
        named = [v for v in (num_inference_steps, timesteps, sigmas) if v is not None]
        if len(named) > 1:
            raise InputError("Pass only one of num_inference_steps, timesteps and sigmas.")
        if shape and not named:
            raise InputError(f"{', '.join(shape)} shape a new schedule; pass num_inference_steps too.")
        grid = self._grid(num_inference_steps, timesteps, sigmas, **shape) if named else self._current()
        plan = self._plan(grid, options)
        self._prediction().check(plan.steps[0].level)
        return plan

    def _plan(self, grid: Grid, options: Mapping[str, Any]) -> Plan:
        return Plan(
            grid,
            self._solver(**{**self.step_options, **options}),
            self._prediction(),
            init_noise_sigma=self._init_sigma(grid),
            scale_input=self.scales_input,
            train_steps=len(self),
            noise_dtype=self.noise_dtype,
        )

    using = changed

    def _current(self) -> Grid:
        """Return the grid that is set, or the training table."""
        if self._levels is None:
            self._levels = self._grid(None, None, None)
        return self._levels

    def _table(self, first: int = 0, options: Mapping[str, Any] | None = None) -> Plan:
        """Return the plan of the current grid from network call `first` on, with the given options of `step`."""
        options = options or {}
        key = (first, *sorted((k, v) for k, v in options.items() if v != self.step_options[k]))
        if key not in self._tables:
            if len(self._tables) > 32:
                self._tables.clear()
            plan = self._plan(self._current(), options)
            self._tables[key] = plan.part(first) if first else plan
        return self._tables[key]

    def _forget(self, grid: Grid | None) -> None:
        """Take `grid` as the current one and forget every run."""
        self._levels = grid
        self._tables: dict[tuple, Plan] = {}
        self._times: torch.Tensor | None = None
        self._host: np.ndarray | None = None
        self._run: Run | None = None
        self._first = self._next = 0

    # ---- the documented protocol -------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[Time] | None = None,
        sigmas: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        """Choose the schedule of the next run and put `timesteps` on `device`; see `plan` for the other arguments."""
        if num_inference_steps is None and timesteps is None and sigmas is None:
            raise InputError("set_timesteps needs num_inference_steps, timesteps or sigmas.")
        plan = self.plan(num_inference_steps, timesteps=timesteps, sigmas=sigmas, **options)
        self._forget(plan.grid)
        self._tables[(0,)] = plan
        self._begin = None
        self._device = torch.device(device) if device is not None else None
        self.num_inference_steps = len(plan.grid) - 1

    def set_num_inference_steps(self, *args: Any, **kwargs: Any) -> None:
        """The same as `set_timesteps`."""
        self.set_timesteps(*args, **kwargs)

    @property
    def timesteps(self) -> torch.Tensor:
        """The timesteps of the network calls, noisiest first; before `set_timesteps` the training table."""
        if self._times is None:
            times = [step.timestep for step in self._table().steps]
            whole = self.whole_timesteps and all(isinstance(t, int) for t in times)
            dtype = torch.int64 if whole else torch.float32
            self._times = torch.tensor(times, dtype=dtype, device=self._device or "cpu")
        return self._times

    @timesteps.setter
    def timesteps(self, values: torch.Tensor) -> None:
        values = torch.as_tensor(values)
        if values.cpu().tolist() != self.timesteps.cpu().tolist():
            self.set_timesteps(timesteps=values.cpu().tolist())
        self._device, self._times = values.device, values

    @property
    def sigmas(self) -> torch.Tensor:
        """The noise levels sigma / alpha of the network calls, and of the end, float32 on the CPU."""
        levels = [*(step.level for step in self._table().steps), self._current()[-1]]
        return torch.tensor([self._sigma(level) for level in levels], dtype=torch.float32, device="cpu")

    def _sigma(self, level: Level) -> float:
        return level.ratio

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the first sample of a run from pure noise."""
        return self._table().init_noise_sigma

    @property
    def begin_index(self) -> int | None:
        """The position of the first step of the next run, or None if its timestep says it."""
        return self._begin

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Set the position in `timesteps` at which the next run begins.

        Raises:
            InputError: when the position is outside the schedule.
        """
        count = len(self._table().steps)
        if not 0 <= begin_index < count:
            raise InputError(f"begin_index is {begin_index}, but the schedule has positions 0 to {count - 1}.")
        self._begin, self._run = int(begin_index), None

    @property
    def step_index(self) -> int | None:
        """The position of the next step; None before the first one."""
        return None if self._run is None else self._next

    def _position(self, timestep: Time | torch.Tensor) -> int:
        """Return the position of `timestep`: the expected next one if it can be that, else the last with its value.

        An accelerator's tensor is taken at its word while a run lasts, since reading it would wait for the device.
        """
        steps = self._table().steps
        expected = self._next if self._run is not None else self._begin
        remote = isinstance(timestep, torch.Tensor) and timestep.device.type != "cpu"
        if expected is not None and expected < len(steps) and (remote or same(timestep, steps[expected].timestep)):
            return expected
        if same(timestep, steps[0].timestep):
            return 0
        if self._host is None:
            self._host = np.array([step.timestep for step in steps], dtype=np.float64)
        distance = np.abs(self._host - number(timestep))
        nearest = len(steps) - 1 - int(distance[::-1].argmin())
        if not same(timestep, steps[nearest].timestep):
            raise InputError(
                f"Timestep {number(timestep):g} is not in the schedule; the nearest is {steps[nearest].timestep:g}. "
                "Loop over `scheduler.timesteps`."
            )
        return nearest

    def previous_timestep(self, timestep: Time | torch.Tensor) -> Time:
        """Return the timestep that follows `timestep` towards clean data, -1 after the last."""
        return self._table().rows[self._position(timestep)].after.t

    def scale_model_input(self, sample: torch.Tensor, timestep: Time | torch.Tensor | None = None) -> torch.Tensor:
        """Return the sample as the network wants it at `timestep`."""
        if self.scales_input is None:
            return sample
        if timestep is None:
            raise InputError(f"{type(self).__name__}.scale_model_input needs the timestep.")
        return sample * self._table().steps[self._position(timestep)].in_scale

    def step(
        self, model_output: torch.Tensor, timestep: Time | torch.Tensor, sample: torch.Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """Return the sample at which the network is to be asked next."""
        return self._step(model_output, timestep, sample, return_dict=return_dict)

    def _step(
        self,
        model_output: torch.Tensor,
        timestep: Time | torch.Tensor,
        sample: torch.Tensor,
        *,
        return_dict: bool,
        generator: Generators = None,
        noise: torch.Tensor | None = None,
        **options: Any,
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """Make the step at `timestep`; `noise` replaces the draw from `generator`."""
        position = self._position(timestep)
        if self._run is None or position != self._next:
            self._first, self._run = position, self._table(position, options).begin()
        row = self._table(self._first, options).rows[position - self._first]
        drawing = self._drawing(model_output, sample, generator, noise)
        result = self._follow(row, self._run, model_output, sample, drawing, return_dict=return_dict)
        self._next = position + 1
        return result

    def _follow(
        self, row: Row, run: Run, output: torch.Tensor, sample: torch.Tensor, drawing: Noise, *, return_dict: bool
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """Return the result of `row` in `run`."""
        previous = run.apply(row, sample, output, drawing)
        data = run.x0.to(sample.dtype)  # type: ignore[union-attr]
        if return_dict:
            return self.output_class(previous, data)
        return (previous, data) if self.tuple_holds_data else (previous,)

    def _drawing(
        self, output: torch.Tensor, sample: torch.Tensor, generator: Generators, noise: torch.Tensor | None
    ) -> Noise:
        if noise is not None:
            return lambda: noise
        dtype = self.noise_dtype or output.dtype
        return lambda: normal(sample.shape, generator=generator, device=output.device, dtype=dtype)

    # ---- files -------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a scheduler from the configuration in a folder or hub repository, written by this class or another.

        Args:
            kwargs: options of the class, which win over the file, and hub options (`revision`, `cache_dir`, ...).
        """
        hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        config = cls.load_config(pretrained_model_name_or_path, subfolder=subfolder, **hub)
        return cls.from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write `scheduler_config.json` into `save_directory`."""
        self.save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    @property
    def compatibles(self) -> list[type[SchedulerMixin]]:
        """The scheduler classes that read this one's configuration, itself included."""
        from ..registry import ROWS

        modules = {row.name: row.module for row in ROWS}
        names = dict.fromkeys([type(self).__name__, *self._compatibles])
        package = __name__.split(".")[0]
        return [getattr(importlib.import_module(f"{package}.{modules[n]}"), n) for n in names if n in modules]

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


class DrawingScheduler(SchedulerMixin):
    """Base of schedulers that draw noise and have no options of `step` beside its generator."""

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Time | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """Return the sample at which the network is to be asked next; noise is drawn from `generator`."""
        return self._step(model_output, timestep, sample, return_dict=return_dict, generator=generator)


@cache
def own_options(cls: type) -> frozenset[str]:
    """Return the names of the options that the class's `__init__` takes."""
    return frozenset(inspect.signature(cls.__init__).parameters)  # type: ignore[misc]


def number(timestep: Time | torch.Tensor) -> float:
    """Return a timestep as a host number."""
    if isinstance(timestep, torch.Tensor) and timestep.numel() != 1:
        raise InputError(f"`timestep` must be a single number, but its shape is {tuple(timestep.shape)}.")
    return float(timestep)


def same(timestep: Time | torch.Tensor, other: Time) -> bool:
    """Tell whether two timesteps are equal up to float32 rounding."""
    return abs(number(timestep) - other) <= 1e-6 * max(1.0, abs(other))
