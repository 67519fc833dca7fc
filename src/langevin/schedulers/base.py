"""The documented scheduler protocol, a stateful skin over plans and rows."""

from __future__ import annotations

import copy
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from ..core.config import options_of, register_to_config
from ..core.errors import ConfigError, InputError, check_choice, check_count, check_known
from ..core.logging import get_logger
from ..core.outputs import BaseOutput
from ..core.pretrained import PretrainedConfig
from ..core.rng import Generators, normal
from ..diffusion import Ask, Grid, Level, Plan, Prediction, Run, Solver, Time
from ..diffusion.process import noised_each
from ..diffusion.rows import Move, Noise, cast
from ..diffusion.table import same

logger = get_logger(__name__)
SCHEDULER_CONFIG_NAME = "scheduler_config.json"
CHOICES: Mapping[str, Sequence[Any]] = {
    "timestep_spacing": ("linspace", "leading", "trailing", "k_diffusion"),
    "interpolation_type": ("linear", "log_linear"),
    "timestep_type": ("discrete", "continuous"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "solver_order": (1, 2, 3),
    "solver_type": ("midpoint", "heun"),
    "time_shift_type": ("exponential",),
}
"""The valid values of options, where a class does not list its own."""
RELATED: Mapping[str, Sequence[str]] = {
    "algorithm_type": ("deis", "dpmsolver", "dpmsolver++"),
    "solver_type": ("logrho", "midpoint", "heun", "bh1", "bh2"),
}
"""Types of related samplers; where a class lacks one, its own default replaces it in a configuration carried over."""
SIGMA_OPTIONS = {
    "use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential", "use_beta_sigmas": "beta",
    "use_lu_lambdas": "lu",
}  # fmt: skip

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

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


Numbers = Sequence[float] | None
Device = torch.device | str | None
When = Time | Tensor
"""A timestep, as `timesteps` holds it or as a host number."""
Stepped = SchedulerOutput | tuple[Tensor, ...]
"""What `step` returns: with `return_dict=False` a tuple."""


def changed(scheduler: Any, *, solver: Any = None, grid: Callable[[Grid], Grid] | None = None) -> Any:
    """Return a copy of the scheduler whose runs use another solver, or the levels that a function makes of its grid.

    Pipelines take it as any other: `pipe.scheduler = pipe.scheduler.using(solver=Restart(...))`. It has no
    configuration of its own and cannot be saved.

    Args:
        solver: a `diffusion.table.Solver`; options of `step` that were meant for the scheduler's own are errors.
        grid: gets the levels that the configuration means, the end included, and returns those to visit.
    """
    made = copy.copy(scheduler)
    made._used = (*scheduler._used, {"solver": solver, "grid": grid})
    if solver is not None:
        if getattr(solver, "place", made) is None:
            solver = replace(solver, place=partial(placed, scheduler))
        made._solver = partial(fixed, solver, scheduler.step_options)
    if grid is not None:
        made._grid = lambda ask: grid(scheduler._grid(ask))
    made.save_config = made.save_pretrained = refused
    made.num_inference_steps = None
    made._forget(None)
    return made


def placed(scheduler: Any, level: Level) -> Level:
    """Return the level that the scheduler makes of its own sigma for `level`, where it takes sigmas as they are."""
    try:
        own = type(scheduler)._grid(scheduler, Ask(sigmas=(scheduler._sigma(level), 0.0)))[0]
    except InputError:
        return level
    return own if math.isclose(own.ratio, level.ratio, rel_tol=1e-6) else level


def fixed(solver: Solver, defaults: Mapping[str, Any], **options: Any) -> Solver:
    """Return `solver`; raise ConfigError for options of `step` that were meant for another one."""
    if lost := [name for name, value in options.items() if value != defaults[name]]:
        raise ConfigError(f"{', '.join(lost)}: no option of the solver set by `using`; give it to that solver.")
    return solver


def refused(*args: Any, **options: Any) -> NoReturn:
    """Raise ConfigError in place of saving."""
    raise ConfigError(
        "A scheduler made by `using` cannot be saved: a configuration names no solver and no grid function. "
        "Save the scheduler that it was made from, and call `using` after loading."
    )


class SchedulerMixin(PretrainedConfig):
    """Base of schedulers; the parameters of a class's `__init__` are its configuration.

    A subclass says which grid, solver and prediction its configuration means (`_grid`, `_solver`, `_prediction`).
    `plan` turns that into a table without touching the object, and the documented protocol (`set_timesteps`, `step`,
    ...) walks through the table with its position and history on the object. Positions are integers: `step` looks a
    timestep up by value only when it is not the expected next one, and then starts a new run there.

    Attributes:
        order: network calls per step, as the documentation counts them.
        solver: what writes the rows, if it depends on no option.
        predicts: the kind of prediction where the configuration has no `prediction_type`.
        choices: the valid values of options, beside `CHOICES`.
        step_options: keyword options of `step` that change the rows, with their defaults: those of `_solver`.
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
    solver: ClassVar[Solver]
    predicts: ClassVar[str] = "epsilon"
    choices: ClassVar[Mapping[str, Any]] = {}
    step_options: ClassVar[Mapping[str, Any]] = {}
    grid_options: ClassVar[tuple[str, ...]] = ()
    scales_input: float | None = None
    whole_timesteps: ClassVar[bool] = False
    noise_dtype: ClassVar[torch.dtype | None] = None
    tuple_holds_data: ClassVar[bool] = False
    output_class: ClassVar[type] = SchedulerOutput
    _compatibles: ClassVar[tuple[str, ...]] = ()
    _used: tuple[Mapping[str, Any], ...] = ()

    num_inference_steps: int | None
    _levels: Grid | None

    def __init_subclass__(cls, **options: Any) -> None:
        """Register the parameters of the class's `__init__` as its configuration, those of `_solver` as options."""
        super().__init_subclass__(**options)
        shape = inspect.signature(cls._solver).parameters.values()
        cls.step_options = {given.name: given.default for given in shape if given.default is not given.empty}
        if "__init__" in vars(cls) and not hasattr(cls.__init__, "__wrapped__"):
            cls.__init__ = register_to_config(cls.__init__)  # type: ignore[method-assign]

    def _grid(self, ask: Ask) -> Grid:
        """Return the grid of the steps, timesteps or sigmas that are asked for; with none the training table."""
        raise NotImplementedError

    def _solver(self, **options: Any) -> Solver:
        """Return what writes the rows under the given options of `step`."""
        return self.solver

    def _prediction(self) -> Prediction:
        """Return how the network's output is read, by the options of the configuration that this class has."""
        kind, variance, threshold = self._own("prediction_type", self.predicts), self._own("variance_type"), None
        if self._own("thresholding"):
            threshold = (self.config.dynamic_thresholding_ratio, self.config.sample_max_value)
        clip = self._own("clip_sample_range", 1.0) if self._own("clip_sample") else None
        learned = variance if variance in ("learned", "learned_range") else None
        return Prediction(kind, clip=clip, threshold=threshold, variance=learned)

    def _init_sigma(self, grid: Grid) -> float:
        return 1.0

    def _own(self, name: str, default: Any = None) -> Any:
        """Return the option `name` of the configuration if this class has it, else `default`."""
        return self.config[name] if name in options_of(type(self)) else default

    def _setup(self) -> None:
        """Check the configuration and start without a schedule; called by every `__init__`."""
        self._check()
        self._prediction()
        self._solver()
        self.num_inference_steps = None
        self._device: torch.device | None = None
        self._forget(None)

    def _check(self) -> None:
        """Check the values of options, and replace the types of related samplers."""
        options = options_of(type(self))
        if "num_train_timesteps" in options:
            check_count("num_train_timesteps", self.config.num_train_timesteps)
        for name, valid in {**CHOICES, **self.choices}.items():
            value = self._own(name)
            if value in RELATED.get(name, ()) and value not in valid:
                logger.info("%s=%r is taken as %r.", name, value, options[name].default)
                self.register_to_config(**{name: options[name].default})
            elif name in options:
                check_choice(name, value, valid)
        if len(chosen := [name for name in SIGMA_OPTIONS if self._own(name)]) > 1:
            raise ConfigError(f"{' and '.join(chosen)} exclude each other; switch on one of them.")

    def _sigma_schedule(self) -> str | None:
        """Return the name of the configured sigma schedule, if any."""
        return next((SIGMA_OPTIONS[name] for name in SIGMA_OPTIONS if self._own(name)), None)

    def plan(self, num_inference_steps: int | None = None, *, timesteps: Numbers = None, sigmas: Numbers = None,
             **options: Any) -> Plan:  # fmt: skip
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
        ask = Ask(num_inference_steps, timesteps, sigmas, shape)
        if shape and ask.open:
            raise InputError(f"{', '.join(shape)} shape a new schedule; pass num_inference_steps too.")
        grid = self._current() if ask.open else self._grid(ask)
        return self._plan(grid, options).ready()

    def _plan(self, grid: Grid, options: Mapping[str, Any]) -> Plan:
        shape = {"scale_input": self.scales_input, "train_steps": len(self), "noise_dtype": self.noise_dtype}
        shape["place"] = getattr(getattr(self, "process", None), "level", None)
        return Plan(grid, self._solver(**options), self._prediction(), init_noise_sigma=self._init_sigma(grid), **shape)

    using = changed

    def turned_into(self, cls: type[Any], **changes: Any) -> Any:
        """Return a scheduler of `cls` with this one's configuration, changed so, and what `using` gave this one."""
        made = cls.from_config(self.config, **changes)
        for used in self._used:
            made = made.using(**used)
        return made

    def _current(self) -> Grid:
        """Return the grid that is set, or the training table."""
        if self._levels is None:
            self._levels = self._grid(Ask())
        return self._levels

    def _table(self, first: int = 0, options: Mapping[str, Any] | None = None) -> Plan:
        """Return the plan of the current grid from network call `first` on, with the given options of `step`."""
        if not first and not options and (whole := self._tables.get((0,))):
            return whole
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
        self._times: Tensor | None = None
        self._run: Run | None = None
        self._chosen: Mapping[str, Any] = {}
        self._begin: int | None = None
        self._first = self._next = 0

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None, timesteps: Numbers = None,
                      sigmas: Numbers = None, **options: Any) -> None:  # fmt: skip
        """Choose the schedule of the next run and put `timesteps` on `device`; see `plan` for the other arguments."""
        if all(given is None for given in (num_inference_steps, timesteps, sigmas)):
            raise InputError("set_timesteps needs num_inference_steps, timesteps or sigmas.")
        plan = self.plan(num_inference_steps, timesteps=timesteps, sigmas=sigmas, **options)
        self._forget(plan.grid)
        self._tables[(0,)] = plan
        self._device = torch.device(device) if device is not None else None
        self.num_inference_steps = len(plan.grid) - 1

    def set_num_inference_steps(self, *args: Any, **kwargs: Any) -> None:
        """The same as `set_timesteps`."""
        self.set_timesteps(*args, **kwargs)

    @property
    def timesteps(self) -> Tensor:
        """The timesteps of the network calls, noisiest first; before `set_timesteps` the training table."""
        if self._times is None:
            times = [step.timestep for step in self._table().steps]
            whole = self.whole_timesteps and all(isinstance(t, int) for t in times)
            dtype = torch.int64 if whole else torch.float32
            self._times = torch.tensor(times, dtype=dtype, device=self._device or "cpu")
        return self._times

    @timesteps.setter
    def timesteps(self, values: Tensor) -> None:
        values = torch.as_tensor(values)
        if values.cpu().tolist() != self.timesteps.cpu().tolist():
            self.set_timesteps(timesteps=values.cpu().tolist())
        self._device, self._times = values.device, values

    @property
    def sigmas(self) -> Tensor:
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
        """Set the position in `timesteps` at which the next run begins; InputError outside the schedule."""
        count = len(self._table().steps)
        if not 0 <= begin_index < count:
            raise InputError(f"begin_index is {begin_index}, but the schedule has positions 0 to {count - 1}.")
        self._begin, self._run = int(begin_index), None

    @property
    def step_index(self) -> int | None:
        """The position of the next step; None before the first one."""
        return None if self._run is None else self._next

    def _position(self, timestep: When) -> int:
        """Return the position of `timestep`: the expected next one if it can be that, else the last with its value.

        An accelerator's tensor is taken at its word while a run lasts, since reading it would wait for the device.
        """
        plan = self._table()
        expected = self._next if self._run is not None else self._begin
        if expected is not None and expected < len(plan.steps):
            remote = isinstance(timestep, Tensor) and not timestep.is_cpu
            if remote or same(number(timestep), plan.steps[expected].timestep):
                return expected
        value = number(timestep)
        return 0 if same(value, plan.steps[0].timestep) else plan.position(value)

    def previous_timestep(self, timestep: When) -> Time:
        """Return the timestep that follows `timestep` towards clean data, -1 after the last."""
        return self._table().rows[self._position(timestep)].after.t

    def scale_model_input(self, sample: Tensor, timestep: When | None = None) -> Tensor:
        """Return the sample as the network wants it at `timestep`."""
        if self.scales_input is None:
            return sample
        if timestep is None:
            raise InputError(f"{type(self).__name__}.scale_model_input needs the timestep.")
        return sample * self._table().steps[self._position(timestep)].in_scale

    def step(self, model_output: Tensor, timestep: When, sample: Tensor, return_dict: bool = True) -> Stepped:
        """Return the sample at which the network is to be asked next."""
        return self._step(model_output, timestep, sample, return_dict=return_dict)

    def _step(self, model_output: Tensor, timestep: When, sample: Tensor, *, return_dict: bool,
              generator: Generators = None, noise: Tensor | None = None, **options: Any) -> Stepped:  # fmt: skip
        """Make the step at `timestep`; `noise` replaces the draw from `generator`."""
        position, run = self._position(timestep), self._run
        if run is None or position != self._next:
            self._first, self._chosen = position, options
            run = self._run = self._table(position, options).begin()
        elif options != self._chosen:
            run.moves, self._chosen = self._table(self._first, options).moves, options
        move = run.moves[position - self._first]
        drawing = self._drawing(model_output, sample, generator, noise) if move.draws else None
        result = self._follow(move, run, model_output, sample, drawing, return_dict=return_dict)
        self._next = position + 1
        return result

    def _follow(self, move: Move, run: Run, output: Tensor, sample: Tensor, drawing: Noise | None, *,
                return_dict: bool) -> Stepped:  # fmt: skip
        """Return the result of `move` in `run`."""
        previous = run.apply(move, sample, output, drawing)
        if not (return_dict or self.tuple_holds_data):
            return (previous,)
        data = cast(run.x0, sample.dtype)
        return self.output_class(previous, data) if return_dict else (previous, data)

    def _drawing(self, output: Tensor, sample: Tensor, generator: Generators, noise: Tensor | None) -> Noise:
        if noise is not None:
            return lambda: noise
        kind = {"device": output.device, "dtype": self.noise_dtype or output.dtype}
        return partial(normal, sample.shape, generator=generator, **kind)

    @property
    def compatibles(self) -> list[type[SchedulerMixin]]:
        """The scheduler classes that read this one's configuration, itself included."""
        package, names = sys.modules[__name__.partition(".")[0]], {type(self).__name__, *self._compatibles}
        return [getattr(package, name) for name in dir(package) if name in names]

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


class DrawingScheduler(SchedulerMixin):
    """Base of schedulers that draw noise and have no options of `step` beside its generator."""

    def step(self, model_output: Tensor, timestep: When, sample: Tensor, generator: Generators = None,
             return_dict: bool = True) -> Stepped:  # fmt: skip
        """Return the sample at which the network is to be asked next; noise is drawn from `generator`."""
        return self._step(model_output, timestep, sample, return_dict=return_dict, generator=generator)


class GridNoising(SchedulerMixin):
    """Base of schedulers whose `add_noise` goes by the levels of the schedule that is set."""

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the samples noised to the levels of their timesteps in the current schedule.

        Before `set_timesteps` the schedule is the training table.
        """
        steps = self._table().steps
        levels = [steps[self._position(t)].level for t in torch.as_tensor(timesteps).reshape(-1)]
        return noised_each(original_samples, noise, levels)


def number(timestep: When) -> float:
    """Return a timestep as a host number."""
    if isinstance(timestep, Tensor) and timestep.numel() != 1:
        raise InputError(f"`timestep` must be a single number, but its shape is {tuple(timestep.shape)}.")
    return float(timestep)
