"""The documented protocol: `step` against the table, and what a run may not depend on or leave behind."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from ..core.rng import seeded
from ..diffusion.process import noised
from .convergence import distance
from .lab import PICTURE, Lab, judged, unchecked
from .report import Finding
from .schedule import Unreadable


def look_at_protocol(lab: Lab) -> Iterator[Finding]:
    """Compare `step` with the table, one image with a batch, one run with the next, `add_noise` with the levels."""
    for what, look in (
        ("`step` by hand against the table", agreement),
        ("images alone against a batch, one generator each", splits),
        ("the same object run twice", again),
        ("scale_model_input against the level", scaling),
        ("add_noise against the level", noising),
    ):
        try:
            yield look(lab, what)
        except Exception as error:
            yield unchecked("protocol", what, error)


def agreement(lab: Lab, what: str) -> Finding:
    """Run by hand and by the table with equal draws."""
    x, model, results = lab.begin(2), lab.model(), []
    for run in (lab.bench.by_table, lab.bench.by_hand):
        generators = [seeded(1), seeded(2)] if lab.bench.takes_generator else None
        results.append(run(lab.steps, model, x, generator=generators))
    return judged(
        "protocol", what, distance(*results), 1e-9, "A loop of one's own and the table are the same run.",
        "A loop of one's own and the table end at different samples.",
    )  # fmt: skip


def splits(lab: Lab, what: str) -> Finding:
    """Run three images together, and each alone."""
    x, model = lab.begin(3), lab.model()

    def run(rows: list[int]) -> Tensor:
        generators = [seeded(10 + k) for k in rows] if lab.bench.takes_generator else None
        return lab.bench.by_hand(lab.steps, model, x[rows], generator=generators)

    alone = torch.cat([run([k]) for k in range(3)])
    return judged(
        "protocol", what, distance(run([0, 1, 2]), alone), 1e-6,
        "An image does not depend on its neighbours in the batch.",
        "An image changes with its neighbours in the batch, so a seed does not name a picture.",
    )  # fmt: skip


def again(lab: Lab, what: str) -> Finding:
    """Run one object twice, with `set_timesteps` between."""
    scheduler, ends = copy.deepcopy(lab.bench.scheduler), []
    for _ in range(2):
        scheduler.set_timesteps(lab.steps, **lab.bench.shape)
        ends.append(lab.bench.by_hand(lab.steps, lab.model(), lab.begin(), generator=seeded(1), scheduler=scheduler))
    return judged(
        "protocol", what, distance(*ends), 0.0, "Nothing of a run is left behind in the next one.",
        "Something of a run is left behind in the next one, or draws do not come from the generator.",
    )  # fmt: skip


def scaling(lab: Lab, what: str) -> Finding:
    """Compare the factor of the network's input with what brings samples to the variance the network knows."""
    schedule = lab.bench.schedule(lab.steps)
    if schedule.space != "exploding" or all(call.in_scale == 1.0 for call in schedule.calls):
        worst = max(abs(call.in_scale - 1.0) for call in schedule.calls)
    else:
        scaled = schedule.prediction.scaling
        data = float(getattr(scaled, "data", 1.0))
        worst = max(abs(call.in_scale * call.level.spread(data) - 1.0) for call in schedule.calls)
    return judged(
        "protocol", what, worst, 1e-3, "The network sees samples of the variance that it was trained on.",
        "The network sees samples of another variance than its level says.",
    )  # fmt: skip


def noising(lab: Lab, what: str) -> Finding:
    """Compare `add_noise` at the run's own timesteps with the levels."""
    scheduler = lab.bench.ready(lab.steps)
    add = getattr(scheduler, "add_noise", None) or getattr(scheduler, "scale_noise", None)
    if add is None:
        raise Unreadable("it has neither `add_noise` nor `scale_noise`.")
    calls, times = lab.bench.schedule(lab.steps).calls, scheduler.timesteps
    if len(times) != len(calls):
        raise Unreadable("`timesteps` does not hold one entry per call.")
    data, noise = PICTURE.float(), torch.ones(1, 3, 4, 4)
    worst, where = 0.0, 0
    for k in dict.fromkeys((0, len(calls) // 3, 2 * len(calls) // 3)):
        time = times[k : k + 1]
        try:
            result = add(data, time, noise) if add.__name__ == "scale_noise" else add(data, noise, time)
        except Exception as error:
            raise Unreadable(f"it does not take the run's own timesteps ({error}).") from error
        gap = distance(result, noised(data, noise, calls[k].level)) / calls[k].level.norm
        if gap > worst:
            worst, where = gap, k
    return judged(
        "protocol", what, worst, 1e-4, "A picture noised to a timestep lies at the level of that step.",
        f"A picture noised to timestep {calls[where].timestep:g} does not lie at the level of call {where}: a run that "
        "starts from a picture starts beside its level.", verdict="note",
    )  # fmt: skip
