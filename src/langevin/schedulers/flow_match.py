"""Schedulers for flow matching: straight paths from data to noise, Lipman et al. 2022 (2210.02747)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from torch import Tensor, float32

from ..core.errors import InputError
from ..core.rng import Generators
from ..diffusion import Ask, Grid, Level, Prediction
from ..diffusion import grid as grids
from ..diffusion.levels import on_paths
from ..diffusion.prediction import reversed_flow
from ..diffusion.process import flow
from ..diffusion.solvers import FirstOrder, Heun, Renoising
from .base import Device, GridNoising, Numbers, SchedulerMixin, Stepped, When


class FlowMatchScheduler(SchedulerMixin):
    """Base: levels sigma in (0, 1], shifted towards noise, told to the network as num_train_timesteps * sigma.

    Attributes:
        shift: factor of the odds sigma / (1 - sigma), unless shifting is dynamic.
    """

    grid_options = ("mu",)
    noise_dtype = float32
    predicts = "flow_prediction"
    choices = {"time_shift_type": ("exponential", "linear")}

    def _setup(self) -> None:
        self.set_shift(self.config.shift)
        super()._setup()

    def set_shift(self, shift: float) -> None:
        """Use another shift from the next `set_timesteps` on."""
        if not shift > 0:
            raise InputError(f"shift is {shift}; it must be above 0, and 1 leaves the levels as they are.")
        self.shift = float(shift)

    def _prediction(self) -> Prediction:
        return replace(super()._prediction(), scaling=reversed_flow if self._inverted else None)

    @property
    def _inverted(self) -> bool:
        """Whether the network is told 1 - sigma, which `sigmas` holds too."""
        return bool(self._own("invert_sigmas"))

    def _sigma(self, level: Level) -> float:
        return level.alpha if self._inverted else level.sigma

    def _grid(self, ask: Ask) -> Grid:
        steps, inverted, mu = len(self), self._inverted, ask.options.get("mu")
        dynamic = bool(self._own("use_dynamic_shifting"))
        if (mu is not None) != (dynamic and (ask.count is not None or ask.sigmas is not None)):
            raise InputError(
                "`mu`, the shift for the size of the picture, belongs to use_dynamic_shifting=True with a number of "
                "steps or sigmas: it is needed there and has no effect elsewhere."
            )
        shift = self.shift if mu is None else grids.dynamic_shift(mu, self.config.time_shift_type)
        if ask.timesteps is not None and inverted:
            ask = replace(ask, timesteps=[steps - t for t in ask.timesteps])
        low = float(grids.shifted(np.array(1 / steps), 1.0 if dynamic else self.config.shift))
        shape = {"terminal": self._own("shift_terminal"), "schedule": self._sigma_schedule()}
        sigmas = on_paths(ask, steps, shift, low=low, **shape)
        return (*(flow(steps * (1 - sigma if inverted else sigma), sigma) for sigma in sigmas), flow(-1, 0.0))

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None, sigmas: Numbers = None,
                      mu: float | None = None, timesteps: Numbers = None) -> None:  # fmt: skip
        """Choose the schedule of the next run; `sigmas` are the levels of the steps, `mu` the dynamic shift."""
        super().set_timesteps(num_inference_steps, device, timesteps=timesteps, sigmas=sigmas, mu=mu)

    def scale_noise(self, sample: Tensor, timestep: When, noise: Tensor | None = None) -> Tensor:
        """Return (1 - sigma) * sample + sigma * noise at the levels of their timesteps in the current schedule."""
        if noise is None:
            raise InputError("scale_noise needs `noise`, drawn in the sample's shape.")
        return GridNoising.add_noise(self, sample, noise, timestep)

    def step(self, model_output: Tensor, timestep: When, sample: Tensor, s_churn: float = 0.0, s_tmin: float = 0.0,
             s_tmax: float = math.inf, s_noise: float = 1.0, generator: Generators = None,
             return_dict: bool = True) -> Stepped:  # fmt: skip
        """Return the sample at which the network is to be asked next; churn would leave the path and is an error."""
        if s_churn:
            raise InputError(
                f"s_churn is {s_churn}, but added noise would leave the straight path from data to noise; use "
                "stochastic_sampling=True of FlowMatchEulerDiscreteScheduler for fresh noise on the path."
            )
        return self._step(model_output, timestep, sample, return_dict=return_dict, generator=generator)


class FlowMatchEulerDiscreteScheduler(FlowMatchScheduler):
    """Euler steps along the flow; `stochastic_sampling` goes to the data and back up with fresh noise instead.

    Levels of `set_timesteps` are shifted (by `shift`, or with `use_dynamic_shifting` by `mu`), then stretched to end at
    `shift_terminal`, then respaced between their ends as Karras, exponential or beta levels. Own timesteps are taken as
    they are, own sigmas like those of a number of steps. With `invert_sigmas` the network is told 1 - sigma and
    predicts the direction from noise to data, and `sigmas` are counted from the noise.
    """

    def __init__(self, num_train_timesteps: int = 1000, shift: float = 1.0, use_dynamic_shifting: bool = False,
                 base_shift: float | None = 0.5, max_shift: float | None = 1.15, base_image_seq_len: int | None = 256,
                 max_image_seq_len: int | None = 4096, invert_sigmas: bool = False, shift_terminal: float | None = None,
                 use_karras_sigmas: bool = False, use_exponential_sigmas: bool = False, use_beta_sigmas: bool = False,
                 time_shift_type: str = "exponential", stochastic_sampling: bool = False) -> None: ...  # fmt: skip

    def _solver(self) -> FirstOrder | Renoising:
        return Renoising(draw_last=True) if self.config.stochastic_sampling else FirstOrder()

    def stretch_shift_to_terminal(self, t: np.ndarray | Tensor) -> np.ndarray | Tensor:
        """Return the levels stretched so that the last is `shift_terminal`."""
        return grids.stretched(t, self.config.shift_terminal)


class FlowMatchHeunDiscreteScheduler(FlowMatchScheduler):
    """Heun's method along the flow: an Euler step and its correction by the mean of both directions."""

    order = 2
    solver = Heun()

    def __init__(self, num_train_timesteps: int = 1000, shift: float = 1.0) -> None: ...
