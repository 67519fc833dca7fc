"""The sampling loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from ..core.errors import NonFiniteError
from .rows import Noise
from .table import Plan, Step

Denoise = Callable[[torch.Tensor, Step], torch.Tensor]
Edit = Callable[[torch.Tensor, Step], torch.Tensor]
OnStep = Callable[[Step, torch.Tensor], torch.Tensor | None]


class Stop(Exception):
    """Raised by `on_step` to end a run early; the sample so far, or the one given as `Stop(sample)`, is returned."""


class FiniteWatch:
    """Finds the first step whose output is not finite.

    On the CPU it raises at once. On an accelerator it writes the step's number into a tensor and reads it in `close`,
    so that the loop never waits for the device.
    """

    def __init__(self, module: str) -> None:
        self.module = module
        self.first: torch.Tensor | None = None

    def see(self, output: torch.Tensor, step: int) -> None:
        """Look at the output of a step."""
        finite = torch.isfinite(output).all()
        if output.device.type == "cpu":
            if not finite:
                self.fail(step)
            return
        here = torch.where(finite, -1, step)
        self.first = here if self.first is None else torch.where(self.first >= 0, self.first, here)

    def close(self) -> None:
        """Raise when an earlier step was not finite."""
        if self.first is not None and (step := int(self.first)) >= 0:
            self.fail(step)

    def fail(self, step: int) -> None:
        """Raise NonFiniteError for `step`."""
        raise NonFiniteError(
            f"The {self.module} returned NaN or infinity at step {step} (counted from 0); "
            "check its weights, or run it in float32 or bfloat16 instead of float16.",
            module=self.module,
            step=step,
        )


def sample(
    denoise: Denoise,
    x: torch.Tensor,
    plan: Plan,
    *,
    noise: Noise | None = None,
    before: Iterable[Edit] = (),
    after: Iterable[Edit] = (),
    on_step: OnStep | None = None,
    check: str | None = "denoiser",
) -> torch.Tensor:
    """Run `plan` from `x` and return the last sample.

    Args:
        denoise: the network's output for (sample, step); scaling by `step.in_scale` is its own affair.
        x: the first sample, see `Plan.start`.
        noise: returns standard normal draws in the sample's shape; needed by stochastic plans.
        before: edits of the sample before the network is asked, in order.
        after: edits of the sample after the step, in order.
        on_step: called last with (step, sample); may return another sample, or raise `Stop`.
        check: name of the network in the error about non-finite outputs; None does not look.

    Raises:
        NonFiniteError: when the network's output holds NaN or infinity; names the step.
    """
    before, after = tuple(before), tuple(after)
    run, watch = plan.begin(noise), FiniteWatch(check) if check else None
    for step in plan.steps:
        for edit in before:
            x = edit(x, step)
        output = denoise(x, step)
        if watch:
            watch.see(output, step.index)
        x = run.advance(x, output, step.index)
        for edit in after:
            x = edit(x, step)
        if on_step:
            try:
                replaced = on_step(step, x)
            except Stop as stop:
                x = stop.args[0] if stop.args else x
                break
            x = x if replaced is None else replaced
    if watch:
        watch.close()
    return x
