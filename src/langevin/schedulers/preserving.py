"""Samplers in the variance-preserving view: DDPM, DDIM, RePaint, the pseudo numerical methods and LCM."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..core.errors import InputError
from ..core.logging import get_logger
from ..core.outputs import BaseOutput
from ..core.rng import Generators
from ..diffusion import Ask, Grid, Level, Prediction, noised, solvers
from ..diffusion import grid as grids
from ..diffusion.known import blend
from ..diffusion.levels import at_times, on_angles, upwards
from ..diffusion.parallel import step_each
from ..diffusion.prediction import Boundary
from ..diffusion.rows import cast
from .base import Device, DrawingScheduler, GridNoising, Numbers, SchedulerOutput, Stepped, When, number
from .trained import TrainedScheduler

logger = get_logger(__name__)


class DDPMScheduler(DrawingScheduler, TrainedScheduler):
    """Ancestral sampling with the posterior mean of the paper and a choice of variances.

    The "_log" variances differ from the plain ones only in how other implementations store them.
    """

    choices = {"variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned",
                                 "learned_range")}  # fmt: skip

    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
                 beta_schedule: str = "linear", trained_betas: Numbers = None, variance_type: str = "fixed_small",
                 clip_sample: bool = True, prediction_type: str = "epsilon", thresholding: bool = False,
                 dynamic_thresholding_ratio: float = 0.995, clip_sample_range: float = 1.0,
                 sample_max_value: float = 1.0, timestep_spacing: str = "leading", steps_offset: int = 0,
                 rescale_betas_zero_snr: bool = False) -> None:  # fmt: skip
        self.variance_type = variance_type

    def _solver(self) -> solvers.Posterior:
        return solvers.Posterior(self.config.variance_type.removesuffix("_log"))


class DDPMParallelScheduler(DDPMScheduler):
    """DDPM with steps of many timesteps at once, for Picard iterations: Shih et al. 2023 (2305.16317)."""

    _is_ode_scheduler = False

    def batch_step_no_noise(self, model_output: Tensor, timesteps: Tensor, sample: Tensor) -> Tensor:
        """Return the mean of the step of each row of the batch at its own timestep, shape (batch, ...)."""
        return step_each(self._table(), [self._position(t) for t in timesteps.tolist()], sample, model_output)


class UnCLIPScheduler(TrainedScheduler):
    """DDPM's posterior over both ends of a table of cosine betas and even steps between: unCLIP (2204.06125)."""

    _compatibles = ()
    choices = {"variance_type": ("fixed_small_log", "learned_range")}

    def __init__(self, num_train_timesteps: int = 1000, variance_type: str = "fixed_small_log",
                 clip_sample: bool = True, clip_sample_range: float | None = 1.0, prediction_type: str = "epsilon",
                 beta_schedule: str = "squaredcos_cap_v2") -> None: ...  # fmt: skip

    def _solver(self) -> solvers.Posterior:
        return solvers.Posterior(self.config.variance_type.removesuffix("_log"))

    def _spaced(self, count: int) -> np.ndarray:
        return grids.linspace(count, len(self) - 1) if count > 1 else np.array([len(self) - 1])

    def step(self, model_output: Tensor, timestep: When, sample: Tensor, prev_timestep: When | None = None,
             generator: Generators = None, return_dict: bool = True) -> Stepped:  # fmt: skip
        """Return the sample at `prev_timestep`, by default the next timestep of the schedule."""
        remote = isinstance(prev_timestep, Tensor) and prev_timestep.device.type != "cpu"
        if prev_timestep is None or remote:
            return self._step(model_output, timestep, sample, return_dict=return_dict, generator=generator)
        t, after = int(number(timestep)), int(number(prev_timestep))
        if not -1 <= after < t < len(self):
            raise InputError(f"prev_timestep is {after}; it must be in [-1, {t - 1}], below the timestep {t}.")
        end = self.process.level(after) if after >= 0 else self._end()
        plan = self._table()
        move = plan.move(self._solver().row(self.process.level(t), end, last=after < 0))
        drawing = self._drawing(model_output, sample, generator, None)
        return self._follow(move, plan.begin(), model_output, sample, drawing, return_dict=return_dict)


class DDIMScheduler(TrainedScheduler):
    """The first-order deterministic sampler, with `eta` between it and ancestral sampling."""

    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
                 beta_schedule: str = "linear", trained_betas: Numbers = None, clip_sample: bool = True,
                 set_alpha_to_one: bool = True, steps_offset: int = 0, prediction_type: str = "epsilon",
                 thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995, clip_sample_range: float = 1.0,
                 sample_max_value: float = 1.0, timestep_spacing: str = "leading",
                 rescale_betas_zero_snr: bool = False) -> None: ...  # fmt: skip

    def _solver(self, eta: float = 0.0, use_clipped_model_output: bool = False) -> solvers.FirstOrder:
        return solvers.FirstOrder(eta=eta, split=not use_clipped_model_output)

    def step(self, model_output: Tensor, timestep: When, sample: Tensor, eta: float = 0.0,
             use_clipped_model_output: bool = False, generator: Generators = None, variance_noise: Tensor | None = None,
             return_dict: bool = True) -> Stepped:  # fmt: skip
        """Return the sample one step less noisy.

        Args:
            eta: 0 draws nothing; 1 is ancestral sampling.
            use_clipped_model_output: recompute eps from the clipped data instead of keeping the network's.
            variance_noise: the noise itself, instead of a draw from `generator`.
        """
        options = {"eta": eta, "use_clipped_model_output": use_clipped_model_output}
        draw = {"generator": generator, "noise": variance_noise}
        return self._step(model_output, timestep, sample, return_dict=return_dict, **draw, **options)


class DDIMParallelScheduler(DDIMScheduler):
    """DDIM with steps of many timesteps at once, for Picard iterations: Shih et al. 2023 (2305.16317)."""

    _is_ode_scheduler = True

    def batch_step_no_noise(self, model_output: Tensor, timesteps: Tensor, sample: Tensor, eta: float = 0.0,
                            use_clipped_model_output: bool = False) -> Tensor:  # fmt: skip
        """Return each row of the batch after the step at its own timestep, shape (batch, ...); `eta` must be 0."""
        if eta:
            raise InputError(f"eta is {eta}, but steps of many timesteps at once draw no noise; eta must be 0.")
        plan = self._table(0, {"use_clipped_model_output": use_clipped_model_output})
        return step_each(plan, [self._position(t) for t in timesteps.tolist()], sample, model_output)


class DDIMInverseScheduler(TrainedScheduler):
    """DDIM from data to noise: section 4.3 of the paper. The network is told the timestep at the end of each step."""

    _compatibles = ()
    renamed_options = {"set_alpha_to_zero": "set_alpha_to_one"}
    solver = solvers.FirstOrder(split=True)

    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
                 beta_schedule: str = "linear", trained_betas: Numbers = None, clip_sample: bool = True,
                 set_alpha_to_one: bool = True, steps_offset: int = 0, prediction_type: str = "epsilon",
                 clip_sample_range: float = 1.0, timestep_spacing: str = "leading",
                 rescale_betas_zero_snr: bool = False) -> None: ...  # fmt: skip

    def _grid(self, ask: Ask) -> Grid:
        times, sigmas = grids.downwards("timesteps", ask.timesteps), grids.downwards("sigmas", ask.sigmas)
        return upwards(super()._grid(replace(ask, timesteps=times, sigmas=sigmas)))


class RePaintScheduler(TrainedScheduler):
    """Inpainting by DDIM steps that put the known part back, and jumps back up (2201.09865).

    In the documented loop `timesteps` holds the jumps too: an entry above the one before it, p, asks for
    `undo_step(sample, p)`. In `plan` the rows climb by themselves, and `langevin.diffusion.known.keep_known` puts the
    known part back; with `resample=False` the rows are the steps alone.
    """

    _compatibles = ()
    grid_options = ("jump_length", "jump_n_sample")

    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
                 beta_schedule: str = "linear", eta: float = 0.0, trained_betas: Numbers = None,
                 clip_sample: bool = True) -> None: ...  # fmt: skip

    def _solver(self, resample: bool = True) -> solvers.Resampling:
        return solvers.Resampling(solvers.FirstOrder(eta=self.config.eta, split=True), resample=resample)

    def _grid(self, ask: Ask) -> Grid:
        flat, length, repeats = super()._grid(ask), *(ask.options.get(name, 10) for name in self.grid_options)
        return flat if ask.open else solvers.climbing(flat, solvers.jumps(len(flat) - 1, length, repeats))

    def set_timesteps(self, num_inference_steps: int | None = None, jump_length: int = 10, jump_n_sample: int = 10,
                      device: Device = None, timesteps: Numbers = None, sigmas: Numbers = None) -> None:  # fmt: skip
        """Choose the schedule: jumps of `jump_length` steps, between which the steps are made `jump_n_sample` times."""
        options = {"jump_length": jump_length, "jump_n_sample": jump_n_sample}
        super().set_timesteps(num_inference_steps, device, timesteps, sigmas, **options)
        times = sorted({level.t for level in self._current()[:-1]})
        self.num_inference_steps = len(times)
        walk = solvers.jumps(len(times), jump_length, jump_n_sample)
        self._times = torch.tensor([times[k] for k in walk], device=self._device or "cpu")

    def step(self, model_output: Tensor, timestep: When, sample: Tensor, original_image: Tensor, mask: Tensor,
             generator: Generators = None, return_dict: bool = True) -> Stepped:  # fmt: skip
        """Return the sample one step less noisy; where `mask` is 1 it is the original image, noised to its level."""
        z, options = self._drawing(model_output, sample, generator, None)(), {"resample": False}
        unknown, data = self._step(model_output, timestep, sample, return_dict=False, noise=z, **options)
        known = noised(original_image, z, self._table(0, options).rows[self._next - 1].after)
        previous = blend(unknown, known, mask)
        return SchedulerOutput(previous, data) if return_dict else (previous, data)  # type: ignore[return-value]

    def undo_step(self, sample: Tensor, timestep: When, generator: Generators = None) -> Tensor:
        """Return a sample that has come through the step at `timestep` with noise back up to that timestep."""
        row = self._table(0, {"resample": False}).rows[self._position(number(timestep))]
        keep, fresh = solvers.rise(row.after, row.level)
        return keep * sample + fresh * self._drawing(sample, sample, generator, None)()


class PNDMScheduler(TrainedScheduler):
    """Linear multistep sampling of order 4 that starts with Runge-Kutta steps, or without (PLMS, `skip_prk_steps`).

    The start asks the network more than once per step: `timesteps` holds n + 1 entries with PLMS and n + 9 with
    Runge-Kutta (for n >= 4).
    """

    tuple_holds_data = False

    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
                 beta_schedule: str = "linear", trained_betas: Numbers = None, skip_prk_steps: bool = False,
                 set_alpha_to_one: bool = False, prediction_type: str = "epsilon", timestep_spacing: str = "leading",
                 steps_offset: int = 0) -> None: ...  # fmt: skip

    def _solver(self) -> solvers.PseudoNumerical:
        return solvers.PseudoNumerical(middle=None if self.config.skip_prk_steps else self._middle)

    def _middle(self, a: Level, b: Level) -> Level:
        """Return the level of the whole training step half way between two."""
        return self.process.level(b.t + (a.t - b.t) // 2)


class IPNDMScheduler(GridNoising):
    """Adams-Bashforth of order up to 4 for v-predictions; timesteps are angles in quarter turns, from 1 down.

    `trained_betas` and `sigmas` are noise levels sigma in [0, 1] themselves, descending, the end of the run included.
    """

    predicts = "v_prediction"
    solver = solvers.AdamsBashforth()

    def __init__(self, num_train_timesteps: int = 1000, trained_betas: Numbers = None) -> None: ...

    def _grid(self, ask: Ask) -> Grid:
        return on_angles(ask, len(self), trained=self.config.trained_betas)

    def _sigma(self, level: Level) -> float:
        return level.sigma


@dataclass
class LCMSchedulerOutput(BaseOutput):
    """Result of `step`: the sample after the step, and the network's estimate of the data."""

    prev_sample: Tensor
    denoised: Tensor | None = None


@dataclass
class TCDSchedulerOutput(BaseOutput):
    """Result of `step`: the sample after the step, and before its fresh noise, at the level that noise starts from."""

    prev_sample: Tensor
    pred_noised_sample: Tensor | None = None


class LCMScheduler(DrawingScheduler, TrainedScheduler):
    """Multistep consistency sampling on the timesteps of a distillation: to the data, and back up with fresh noise."""

    grid_options = ("original_inference_steps", "strength")
    output_class: ClassVar[type] = LCMSchedulerOutput
    solver = solvers.Renoising()
    _compatibles = ()

    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012,
                 beta_schedule: str = "scaled_linear", trained_betas: Numbers = None,
                 original_inference_steps: int = 50, clip_sample: bool = False, clip_sample_range: float = 1.0,
                 set_alpha_to_one: bool = True, steps_offset: int = 0, prediction_type: str = "epsilon",
                 thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995, sample_max_value: float = 1.0,
                 timestep_spacing: str = "leading", timestep_scaling: float = 10.0,
                 rescale_betas_zero_snr: bool = False) -> None: ...  # fmt: skip

    def _prediction(self) -> Prediction:
        return replace(super()._prediction(), boundary=Boundary(self.config.timestep_scaling))

    def _end(self) -> Level:
        return Level(-1, 1.0, 0.0)

    def _origin(self, original: int | None, strength: float) -> np.ndarray:
        """Return the ascending times of the distillation, of the part `strength` of the table that is least noisy."""
        original = self.config.original_inference_steps if original is None else original
        return grids.distillation(original, len(self), strength)

    def _grid(self, ask: Ask) -> Grid:
        original, strength = ask.options.get("original_inference_steps"), ask.options.get("strength", 1.0)
        grids.check_strength(strength)
        if ask.count is not None:
            times = grids.distilled(ask.count, self._origin(original, strength))
            return at_times(self.process, times.tolist(), self._end())
        grid = super()._grid(ask)
        if ask.timesteps is not None and (foreign := {*ask.timesteps} - {*self._origin(original, 1.0)}):
            logger.warning("Timesteps %s are not among those of the distillation.", sorted(foreign, reverse=True))
        return grid[-1 - max(int((len(grid) - 1) * strength), 1) :]

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None,
                      original_inference_steps: int | None = None, timesteps: Numbers = None, strength: float = 1.0,
                      sigmas: Numbers = None) -> None:  # fmt: skip
        """Choose the schedule, out of the distillation's `original_inference_steps` below `strength` of the table."""
        options = {"original_inference_steps": original_inference_steps, "strength": strength}
        super().set_timesteps(num_inference_steps, device, timesteps, sigmas, **options)


class TCDScheduler(LCMScheduler):
    """Strategic stochastic sampling: each step goes past the next timestep by the share `eta`, and noise leads back.

    `eta` is the paper's gamma. With `original_inference_steps` given to `set_timesteps`, any timestep may be chosen.
    """

    output_class = TCDSchedulerOutput
    tuple_holds_data = False

    def _solver(self, eta: float = 0.3) -> solvers.Trajectory:
        return solvers.Trajectory(self.process.level, eta)

    def _prediction(self) -> Prediction:
        return Prediction(self.config.prediction_type)

    def _end(self) -> Level:
        return self.process.level(0)

    def _origin(self, original: int | None, strength: float) -> np.ndarray:
        return super()._origin(None, strength) if original is None else np.arange(int(len(self) * strength))

    def step(self, model_output: Tensor, timestep: When, sample: Tensor, eta: float = 0.3, generator: Generators = None,
             return_dict: bool = True) -> TCDSchedulerOutput | tuple[Tensor, ...]:  # fmt: skip
        """Return the sample one step less noisy; `eta` = 0 draws nothing."""
        previous = self._step(model_output, timestep, sample, return_dict=False, generator=generator, eta=eta)[0]
        row, run = self._run.moves[self._next - 1 - self._first].row, self._run  # type: ignore[union-attr]
        below = cast(run.mean / solvers.kept(row), sample.dtype)  # type: ignore[union-attr, operator]
        return TCDSchedulerOutput(previous, below) if return_dict else (previous, below)
