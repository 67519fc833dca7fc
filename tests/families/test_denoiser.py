"""What a run works out once: the conditioning of its branches, until a callback or the prompt changes it."""

from __future__ import annotations

import torch
from torch import Tensor

from langevin.diffusion.guidance import CFG
from langevin.diffusion.process import Level
from langevin.diffusion.table import Step
from langevin.families.common import Kept
from langevin.families.conditioning import Scheduled
from langevin.families.denoiser import Denoiser
from langevin.families.sd import Text


def step_of(index: int) -> Step:
    return Step(index, 4, 900 - index, Level(900 - index, 0.6, 0.8), Level(899 - index, 0.8, 0.6), 1.0, index == 3)


def text(value: float) -> Text:
    return Text(torch.full((2, 3, 4), value))


def denoiser(**conditions: Text | Scheduled) -> tuple[Denoiser, list[Tensor]]:
    """Return a denoiser of a network that predicts nothing, and what the network was told at each step."""
    told: list[Tensor] = []

    def network(sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor]:
        told.append(encoder_hidden_states)
        return (torch.zeros_like(sample),)

    return Denoiser(network, conditions, CFG(2.0)), told  # type: ignore[arg-type]


def run(model: Denoiser, *steps: int) -> None:
    for index in steps:
        model(torch.zeros(2, 4, 8, 8), step_of(index))


def test_a_kept_function_is_called_again_for_other_objects_alone() -> None:
    calls: list[tuple] = []
    kept = Kept(lambda *given: calls.append(given) or len(calls))
    one, equal = [1], [1]
    assert (kept(), kept(), kept(one), kept(one), kept(equal), kept(equal, one), kept(one)) == (1, 1, 2, 2, 3, 4, 5)


def test_the_branches_are_joined_once() -> None:
    model, told = denoiser(positive=text(1.0), negative=text(0.0))
    run(model, 0, 1, 2)
    assert told[0] is told[1] is told[2]
    assert told[0][:, 0, 0].tolist() == [0, 0, 1, 1]


def test_a_callback_and_a_prompt_that_changes_are_seen() -> None:
    model, told = denoiser(positive=Scheduled((text(1.0), text(5.0)), (0, 1, 1)), negative=text(0.0))
    run(model, 0, 1, 2)
    assert [rows[-1, 0, 0].item() for rows in told] == [1, 5, 5] and told[1] is told[2]
    model.replace(2, prompt_embeds=text(7.0).text)
    run(model, 3)
    assert told[3][:, 0, 0].tolist() == [0, 0, 7, 7]
