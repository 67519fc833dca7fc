"""Schedulers whose solvers step in lambda, half the log signal-to-noise ratio: DPM-Solver and its relatives."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from ..core.errors import ConfigError, InputError, check_choice
from ..core.logging import get_logger
from ..diffusion import grid as grids
from ..diffusion.grid import Grid
from ..diffusion.process import Level, Time, flow, preserving
from .trained import GridNoising

logger = get_logger(__name__)
RELATED = {
    "algorithm_type": ("deis", "dpmsolver", "dpmsolver++"),
    "solver_type": ("logrho", "midpoint", "heun", "bh1", "bh2"),
}
"""Types of related samplers; where a class lacks one, its own default replaces it in a configuration carried over."""
COMMON = {
    "solver_order": (1, 2, 3),
    "solver_type": ("midpoint", "heun"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "time_shift_type": ("exponential",),
}
"""The valid values of the options that most classes share."""


def check_choices(scheduler: Any) -> None:
    """Check the options that the class and `COMMON` list, and replace the types of related samplers."""
    parameters = inspect.signature(type(scheduler).__init__).parameters
    for name, valid in {**COMMON, **scheduler.choices}.items():
        value = scheduler._own(name)
        if value in RELATED.get(name, ()) and value not in valid:
            logger.info("%s=%r is taken as %r.", name, value, parameters[name].default)
            scheduler.register_to_config(**{name: parameters[name].default})
        elif name in parameters:
            check_choice(name, value, valid)


class LogSNRScheduler(GridNoising):
    """Base of schedulers on trained or flow noise levels whose timesteps stay above the end of the table.

    Attributes:
        choices: the valid values of options, beside `COMMON`.
    """

    grid_options = ("mu",)
    terminal_alpha_bar = 2.0**-24
    tuple_holds_data = False
    choices: ClassVar[Mapping[str, Sequence]] = {}

    def _setup(self) -> None:
        check_choices(self)
        if self._own("algorithm_type") in ("dpmsolver", "sde-dpmsolver") and self._own("final_sigmas_type") == "zero":
            raise ConfigError(
                f"algorithm_type={self.config.algorithm_type!r} predicts noise and cannot step to sigma = 0; "
                "set final_sigmas_type='sigma_min' or use a '++' algorithm."
            )
        if self.config.prediction_type == "flow_prediction" and not self.config.use_flow_sigmas:
            raise ConfigError("prediction_type='flow_prediction' needs use_flow_sigmas=True.")
        super()._setup()

    def _last(self) -> int:
        """Return the number of training steps whose lambda is not below `lambda_min_clipped`."""
        return int((-np.log(self.process.ratios) >= self._own("lambda_min_clipped", -math.inf)).sum())

    def _spaced(self, count: int) -> np.ndarray:
        spacing, offset = self._own("timestep_spacing", "linspace"), self._own("steps_offset", 0)
        return grids.spaced_open(spacing, count, len(self), last=self._last(), offset=offset)

    def _label(self, times: np.ndarray) -> Sequence[Time]:
        """Whole timesteps: rounded down on exponential and beta levels, else to the nearest."""
        return grids.whole(times, grids.floor if self._sigma_schedule() in ("exponential", "beta") else np.round)

    def _end_ratio(self) -> float:
        """Return sigma / alpha at the end: 0, or that of the first training step by `final_sigmas_type`.

        Classes without this option stop at that step on spacings, and go to 0 where the last level is at it already.
        """
        reached = self._sigma_schedule() or self.config.use_flow_sigmas
        final = self._own("final_sigmas_type", "zero" if reached else "sigma_min")
        return self.process.ratio(0) if final == "sigma_min" else 0.0

    def _end(self) -> Level:
        ratio = self._end_ratio()
        return flow(-1, ratio) if self.config.use_flow_sigmas else preserving(-1, ratio)

    def _flow_sigmas(self, count: int, shift: float) -> np.ndarray:
        """Return the flow noise levels of `count` steps: shifted, or those of a sigma schedule's ratios."""
        ratios = self._ratios(count)
        if ratios is not None:
            return ratios / (1 + ratios)
        return grids.shifted(np.linspace(1 - 1 / len(self), 0, count + 1)[:-1], shift)

    def _grid(
        self, count: int | None, timesteps: Sequence[Time] | None = None, sigmas: Sequence[float] | None = None, *,
        mu: float | None = None,
    ) -> Grid:  # fmt: skip
        if mu is not None and not self._own("use_dynamic_shifting"):
            raise InputError("`mu` sets the shift of dynamic shifting; it needs use_dynamic_shifting=True.")
        if not self.config.use_flow_sigmas:
            return super()._grid(count, timesteps, sigmas)
        if timesteps is not None or sigmas is not None:
            raise InputError("Flow sigmas follow from num_inference_steps; custom timesteps or sigmas cannot be given.")
        if count is not None:
            grids.check_count(count)
        shift = self.config.flow_shift if mu is None else math.exp(mu)
        return grids.at_flow(self._flow_sigmas(count or len(self), shift), len(self), self._end())

    def _sigma(self, level: Level) -> float:
        return level.sigma if self.config.use_flow_sigmas else level.ratio

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: torch.device | str | None = None, mu: float | None = None,
        timesteps: Sequence[Time] | None = None, sigmas: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        """Choose the schedule of the next run; `mu` is the logarithm of the shift under `use_dynamic_shifting`."""
        super().set_timesteps(num_inference_steps, device, timesteps=timesteps, sigmas=sigmas, mu=mu)
