"""From a pipeline's arguments to the sampling loop: the plan of a run, and the loop with progress and callbacks."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ..core.logging import get_logger
from ..core.rng import normal
from ..diffusion.sampling import Denoise, Edit, sample
from ..diffusion.table import Plan
from .callbacks import StepHook
from .foreign import foreign_plan
from .inputs import Call
from .runs import RunState

logger = get_logger(__name__)


def plan_of(call: Call, **options: Any) -> Plan:
    """Return the plan of a run, from the pipeline's scheduler and the call's steps, timesteps, sigmas and eta.

    A scheduler that only has the documented `step` protocol is driven on a copy and draws its own noise. `eta` goes to
    the samplers that know it; others ignore it with a warning.

    Args:
        options: further options of the sampler's step; those at None are left out.
    """
    scheduler = call.pipe._part("scheduler")
    options = {name: value for name, value in options.items() if value is not None}
    known = getattr(scheduler, "step_options", None)
    if known is None:
        known = inspect.signature(scheduler.step).parameters
    eta = call.get("eta", 0.0)
    if "eta" in known:
        options["eta"] = eta
    elif eta:
        logger.warning("eta=%s has no effect: %s does not know it.", eta, type(scheduler).__name__)
    own: dict[str, Any] = {name: call.get(name) for name in ("timesteps", "sigmas")}
    steps = call["num_inference_steps"] if all(levels is None for levels in own.values()) else None
    if hasattr(scheduler, "plan"):
        return scheduler.plan(steps, **own, **options)
    place: dict[str, Any] = {"generator": call.rng, "device": call.device}
    return foreign_plan(scheduler, steps, **own, **place, **options)  # type: ignore[return-value]


def denoise(run: RunState, model: Denoise, x: Tensor, plan: Plan, *, after: Iterable[Edit] = ()) -> Tensor:
    """Run the sampling loop with the pipeline's progress bar and the run's callbacks, and return the last sample.

    Args:
        after: edits of the sample after each step, before the callbacks see it.

    Raises:
        NonFiniteError: naming the step, when the network returns NaN or infinity.
    """
    call = run.call
    run.values["num_timesteps"] = len(plan.steps)

    def noise() -> Tensor:
        return normal(x.shape, generator=call.rng, device=x.device, dtype=plan.noise_dtype or x.dtype)

    with call.pipe.progress_bar(total=len(plan.steps)) as bar:
        return sample(model, x, plan, noise=noise, after=after, on_step=StepHook(run, model, bar), check="unet")
