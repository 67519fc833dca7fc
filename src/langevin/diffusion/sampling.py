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

    On the CPU it raises at once. On an accelerator it keeps a number for every step, which is 0 for a finite output and
    NaN for another, and reads them in `close`, so that the loop never waits for the device.
    """

    def __init__(self, module: str) -> None:
        self.module = module
        self.seen: list[tuple[int, torch.Tensor]] = []

    def see(self, output: torch.Tensor, step: int) -> None:
        """Look at the output of a step."""
        if output.device.type != "cpu":
            self.seen.append((step, self.mark(output)))
        elif not torch.isfinite(output).all():
            self.fail(step)

    @staticmethod
    def mark(output: torch.Tensor) -> torch.Tensor:
        """Return 0 for an output that is finite, and NaN for another."""
        return (output * 0).sum()

    def close(self) -> None:
        """Raise when an earlier step was not finite."""
        if self.seen:
            steps, marks = zip(*self.seen, strict=True)
            self.seen.clear()
            found = torch.stack(marks).isnan().tolist()
            if True in found:
                self.fail(steps[found.index(True)])

    def fail(self, step: int) -> None:
        """Raise NonFiniteError for `step`."""
        raise NonFiniteError(
            f"The {self.module} returned NaN or infinity at step {step} (counted from 0); "
            "run it in float32 or bfloat16 instead of float16, or see which weights are bad by loading it with "
            "check_finite=True.",
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
