"""The tasks of a latent family. A task is another start, a constraint or further channels; the loop is the same.

Each is a function of a pipeline and a call, so that it serves every family and every control.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from ..diffusion.table import Plan
from ..families.conditioning import Conditions
from ..families.denoiser import Attachment
from ..families.latents import LatentSpace, spread_rows
from .inputs import Call
from .pictures import Picture
from .runs import RunState, running
from .sampling import plan_of


class Start(NamedTuple):
    """A run that is about to begin.

    Attributes:
        run: its state.
        call: the call, which knows the steps of the run.
        plan: the run.
        attach: what the pipeline's controls attach to the network's calls.
        conditions: the conditioning of every branch.
        place: device and type of the samples: the type of the conditioning.
    """

    run: RunState
    call: Call
    plan: Plan
    attach: Sequence[Attachment]
    conditions: Conditions
    place: dict[str, Any]


@contextmanager
def started(pipe: Any, call: Call, space: LatentSpace) -> Iterator[Start]:
    """Open the run of a call: its plan, its controls, and then its prompts, encoded."""
    plan = part_of(plan_of(call), call)
    call = call.planned(plan)
    scale = (call.get("cross_attention_kwargs") or {}).get("scale")
    with running(call) as run, pipe._adapters_scaled(scale):
        attach = pipe._attachments(call, space, plan)
        conditions = pipe._with_pictures(call, pipe._conditions(call, space))
        place = {"device": call.device, "dtype": conditions["positive"].at(0).text.dtype}
        yield Start(run, call, plan, attach, conditions, place)


def starting_noise(call: Call, space: LatentSpace, place: dict[str, Any]) -> Tensor:
    """Return the noise that was given as `latents`, or draw it."""
    given = call.get("latents")
    return space.noise(call.images, rng=call.rng, **place) if given is None else given.to(**place)


def text_to_image(pipe: Any, call: Call, picture: Picture | None = None) -> Any:
    """Draw from noise alone; with a picture that the network sees, at its size."""
    space = pipe._space(call, picture)
    pipe._check_channels(space, pipe.adds)
    with started(pipe, call, space) as start:
        channels = pipe._channels_beside(call, space, picture, start.place)
        x = start.plan.start(starting_noise(call, space, start.place))
        return pipe._finish(call, space, pipe._sample(start, x, channels=channels))


def image_to_image(pipe: Any, call: Call) -> Any:
    """Start from a noised picture (Meng et al. 2022), or with `denoising_start` from one that is noised already."""
    picture = pipe._picture(call)
    space = pipe._space(call, picture)
    pipe._check_channels(space, pipe.adds)
    if keeps_all(call):
        return unchanged(pipe, call, space, picture)
    with started(pipe, call, space) as start:
        channels = pipe._channels_beside(call, space, picture, start.place)
        x = picture.latents(call, space, start.place)
        if call.get("denoising_start") is None:
            x = start.plan.start(starting_noise(call, space, start.place), x)
        return pipe._finish(call, space, pipe._sample(start, x, channels=channels))


def part_of(plan: Plan, call: Call) -> Plan:
    """Return the part of a run that a call asks for: by fractions of the training schedule, else by strength."""
    start, end = call.get("denoising_start"), call.get("denoising_end")
    if start is None and call.get("strength") is not None:
        plan = plan.tail(call["strength"])
    return plan if start is None and end is None else plan.slice(start, end)


def keeps_all(call: Call) -> bool:
    """Tell whether a call asks for the picture as it was given: a strength of 0."""
    return call.get("strength") == 0 and call.get("denoising_start") is None


def unchanged(pipe: Any, call: Call, space: LatentSpace, picture: Picture) -> Any:
    """Return what was given, for a strength of 0."""
    if picture.latent or call["output_type"] == "latent":
        place = {"device": call.device, "dtype": pipe.dtype}
        return pipe._finish(call, space, picture.latents(call, space, place))
    return pipe._deliver(call, spread_rows(picture.pixels, call.images))
