"""From a pipeline's arguments to the sampling loop: the plan of a run, and the loop with progress and callbacks."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..core.logging import get_logger
from ..core.rng import Generators, normal
from ..diffusion.sampling import Denoise, sample
from ..diffusion.table import Plan
from .callbacks import StepHook
from .foreign import foreign_plan
from .inputs import Call
from .runs import RunState

logger = get_logger(__name__)


def plan_of(
    scheduler: Any,
    call: Call,
    num_inference_steps: int,
    *,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    eta: float = 0.0,
    **options: Any,
) -> Plan:
    """Return the plan of a run; a scheduler that only has the documented `step` protocol is driven on a copy.

    Args:
        call: the facts of the call; a foreign scheduler draws its own noise.
        timesteps, sigmas: replace the number of steps.
        eta: passed to the samplers that know it; others ignore it with a warning.
        options: further options of the sampler's step; those at None are left out.
    """
    options = {name: value for name, value in options.items() if value is not None}
    known = getattr(scheduler, "step_options", None)
    if known is None:
        known = inspect.signature(scheduler.step).parameters
    if "eta" in known:
        options["eta"] = eta
    elif eta:
        logger.warning("eta=%s has no effect: %s does not know it.", eta, type(scheduler).__name__)
    steps = num_inference_steps if timesteps is None and sigmas is None else None
    if hasattr(scheduler, "plan"):
        return scheduler.plan(steps, timesteps=timesteps, sigmas=sigmas, **options)
    place: dict[str, Any] = {"generator": call.rng, "device": call.device}
    return foreign_plan(scheduler, steps, timesteps=timesteps, sigmas=sigmas, **place, **options)  # type: ignore[return-value]


def denoise(run: RunState, model: Denoise, x: Tensor, plan: Plan, *, rng: Generators, **hook: Any) -> Tensor:
    """Run the sampling loop with the pipeline's progress bar and the run's callbacks, and return the last sample.

    Args:
        rng: stream of the noise that stochastic samplers add.
        hook: see `StepHook`.

    Raises:
        NonFiniteError: naming the step, when the network returns NaN or infinity.
    """
    run.values["num_timesteps"] = len(plan.steps)

    def noise() -> Tensor:
        return normal(x.shape, generator=rng, device=x.device, dtype=plan.noise_dtype or x.dtype)

    with run.pipe.progress_bar(total=len(plan.steps)) as bar:
        return sample(model, x, plan, noise=noise, on_step=StepHook(run, model, bar, **hook), check="unet")
