"""Guidance as a conversation, classifier-free guidance and its rescaling."""

from __future__ import annotations

import pytest
import torch

from langevin.diffusion import CFG, Branch, guided
from langevin.diffusion.guidance import NEGATIVE, NOTHING, PICTURE, POSITIVE, DualCFG, alone, rescaled

G = torch.Generator().manual_seed(3)
POS, NEG = (torch.randn(2, 3, 4, 4, generator=G) for _ in range(2))


def answer(asked: list):
    def predict(branches):
        asked.append(branches)
        return tuple(POS if b.condition == "positive" else NEG for b in branches)

    return predict


def test_cfg_asks_both_branches_once() -> None:
    asked: list = []
    result = guided(CFG(7.5), POS, None, answer(asked))
    assert asked == [(NEGATIVE, POSITIVE)]
    assert torch.equal(result, NEG + 7.5 * (POS - NEG))


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_cfg_that_is_off_asks_one_branch(scale: float) -> None:
    asked: list = []
    assert guided(CFG(scale), POS, None, answer(asked)) is POS
    assert asked == [(POSITIVE,)] and not CFG(scale).active
    assert guided(alone, POS, None, answer(asked)) is POS


def test_a_tensor_scale_is_per_image() -> None:
    scale = torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1)
    result = guided(CFG(scale), POS, None, answer([]))
    assert torch.allclose(result[0], POS[0]) and torch.allclose(result[1], NEG[1] + 3 * (POS[1] - NEG[1]))


def test_members_are_weighted_against_the_negative() -> None:
    """Liu et al. 2022, eq. 11; one member of weight 1 is the ordinary guidance, also where it is rescaled."""
    members = {"cat": POS, "dog": POS.flip(0)}
    guidance = CFG(3.0, members=(("cat", 0.75), ("dog", torch.tensor(-0.5))))
    result = guided(guidance, POS, None, lambda wanted: tuple(members.get(b.condition, NEG) for b in wanted))
    assert torch.allclose(result, NEG + 3.0 * (0.75 * (POS - NEG) - 0.5 * (POS.flip(0) - NEG)), atol=1e-5)
    one = CFG(3.0, rescale=0.7, members=(("positive", 1.0),))
    plain = guided(CFG(3.0, rescale=0.7), POS, None, answer([]))
    assert torch.allclose(guided(one, POS, None, answer([])), plain, atol=1e-5)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_a_prompt_and_a_picture(rescale: float) -> None:
    """Brooks et al. 2023, eq. 3."""
    picture = POS.flip(0)
    known = {POSITIVE: POS, PICTURE: picture, NOTHING: NEG}
    result = guided(DualCFG(4.0, 1.5, rescale), POS, None, lambda wanted: tuple(known[b] for b in wanted))
    plain = NEG + 1.5 * (picture - NEG) + 4.0 * (POS - picture)
    assert torch.allclose(result, rescaled(plain, POS, rescale), atol=1e-5)


def test_rescaling_restores_the_deviation() -> None:
    guided_prediction = NEG + 9.0 * (POS - NEG)
    full = rescaled(guided_prediction, POS, 1.0)
    assert torch.allclose(full.std(dim=(1, 2, 3)), POS.std(dim=(1, 2, 3)), rtol=1e-5)
    assert torch.equal(rescaled(guided_prediction, POS, 0.0), guided_prediction)
    mixed = guided(CFG(9.0, rescale=0.7), POS, None, answer([]))
    assert torch.allclose(mixed, 0.7 * full + 0.3 * guided_prediction, atol=1e-5)


@pytest.mark.parity
def test_rescaling_is_the_peers() -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    prediction = NEG + 9.0 * (POS - NEG)
    assert torch.equal(rescaled(prediction, POS, 0.7), rescale_noise_cfg(prediction, POS, guidance_rescale=0.7))


def test_a_later_branch_may_depend_on_an_earlier_prediction() -> None:
    def two_turns(x, step):
        (first,) = yield (POSITIVE,)
        (second,) = yield (Branch("negative", sample=x + first),)
        return first - second

    asked: list = []
    assert torch.equal(guided(two_turns, POS, None, answer(asked)), POS - NEG)
    assert torch.equal(asked[1][0].sample, POS + POS)
