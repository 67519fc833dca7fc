"""Score-based and discrete schedulers against the peer: whole trajectories with equal generators."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

import langevin
from langevin.core.rng import normal
from langevin.diffusion import sample
from tests.schedulers.oracle import EVERY, difference, each, peer, seeded

pytestmark = pytest.mark.parity
COUNTS = (4, 11, 25, 50)
SHAPE = (1, 3, 4, 4)


def old(name: str):
    """Return a class that the peer has put aside."""
    from diffusers.schedulers import deprecated

    return getattr(deprecated, name)


def score(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """A toy score: that of data of unit variance, and something of the network's own."""
    return (-x + 0.3 * torch.tanh(x.roll(1, -1))) / (1.0 + float(sigma) ** 2)


def first(scale: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(SHAPE, generator=seeded(7), dtype=torch.float32) * scale).to(dtype)


def thinned(*options):
    """Return the product of options with step counts in turn, as many of them as `EVERY` says."""
    cases = ((*case, count) for case, count in zip(itertools.product(*options), itertools.cycle(COUNTS), strict=False))
    return itertools.islice(cases, 0, None, EVERY)


def worst(mine: list[torch.Tensor], reference: list[torch.Tensor]) -> float:
    """Return the largest difference of two trajectories."""
    assert len(mine) == len(reference)
    return max(map(difference, mine, reference))


@pytest.mark.parametrize("corrections", [0, 1, 2])
def test_score_sde_ve(corrections: int) -> None:
    """Predictor and corrector, in the loop of the documentation and through the plan.

    In float64: a step far down from 1348 is a small difference of large numbers, which float32 rounds in both.
    """
    for snr, (low, high), eps, count in thinned((0.1, 0.16), ((0.01, 1348.0), (0.05, 50.0)), (1e-5, 1e-3)):
        config = {"snr": snr, "sigma_min": low, "sigma_max": high, "sampling_eps": eps, "correct_steps": corrections}
        ours, theirs = langevin.ScoreSdeVeScheduler(**config), peer("ScoreSdeVeScheduler")(**config)
        assert ours.init_noise_sigma == theirs.init_noise_sigma
        runs = []
        for scheduler in each(ours, theirs):
            scheduler.set_timesteps(count)
            scheduler.set_sigmas(count)
            generator, x = seeded(), first(high, torch.float64)
            samples = [x]
            for sigma, t in zip(ours.sigmas, scheduler.timesteps, strict=True):
                for _ in range(corrections):
                    x = scheduler.step_correct(score(x, sigma), x, generator=generator).prev_sample
                    samples.append(x)
                x, mean = scheduler.step_pred(score(x, sigma), t, x, generator=generator).to_tuple()
                samples += [mean, x]
            samples.pop()
            runs.append((samples, generator.get_state()))
        assert difference(ours.timesteps, theirs.timesteps) < 1e-6
        assert difference(ours.discrete_sigmas, theirs.discrete_sigmas) < 1e-6
        (mine, state), (reference, their_state) = runs
        assert worst(mine, reference) < 1e-5, (config, count)
        assert torch.equal(state, their_state)
        generator, plan = seeded(), ours.plan(count)
        assert len(plan.steps) == count * (1 + corrections)
        result = sample(
            lambda x, step: score(x, step.level.sigma),
            first(high, torch.float64),
            plan,
            noise=lambda: normal(SHAPE, generator=generator, dtype=torch.float64),  # noqa: B023
        )
        assert difference(result, mine[-1]) < 1e-5
        assert torch.equal(generator.get_state(), their_state)


def test_score_sde_ve_ends_and_noising() -> None:
    ours, theirs = langevin.ScoreSdeVeScheduler(), peer("ScoreSdeVeScheduler")()
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(7, 1e-3)
        scheduler.set_sigmas(7, 0.1, 30.0, 1e-3)
    assert difference(ours.timesteps, theirs.timesteps) < 1e-6
    assert difference(ours.discrete_sigmas, theirs.discrete_sigmas) < 1e-6
    x, noise, t = torch.randn(2, 3, 4, 4, generator=seeded(2)), torch.randn(2, 3, 4, 4), torch.tensor([1, 5])
    assert difference(ours.add_noise(x, noise, t), theirs.add_noise(x, noise, t)) < 1e-6
    ours, theirs = langevin.ScoreSdeVeScheduler(), peer("ScoreSdeVeScheduler")()
    assert difference(ours.add_noise(x, noise, t * 300), theirs.add_noise(x, noise, t * 300)) < 1e-6
    assert len(ours) == len(theirs) and difference(ours.timesteps, theirs.timesteps) < 1e-6


def test_score_sde_vp() -> None:
    for (low, high), eps, _, count in thinned(((0.1, 20), (0.2, 10.0)), (1e-3, 1e-2), (1, 2)):
        config = {"beta_min": low, "beta_max": high, "sampling_eps": eps}
        ours, theirs = langevin.ScoreSdeVpScheduler(**config), old("ScoreSdeVpScheduler")(**config)
        runs = []
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(count)
            generator, x, samples = seeded(), first(1.0), []
            for t in scheduler.timesteps:
                x, mean = scheduler.step_pred(torch.tanh(x), x, t, generator=generator)
                samples.append(mean)
            runs.append((samples, generator.get_state()))
        (mine, state), (reference, their_state) = runs
        assert worst(mine, reference) < 2e-5, (config, count)
        assert torch.equal(state, their_state)
        generator = seeded()
        result = sample(
            lambda x, step: torch.tanh(x),
            first(1.0),
            ours.plan(count),
            noise=lambda: normal(SHAPE, generator=generator),  # noqa: B023
        )
        assert difference(result, mine[-1]) < 1e-5


def test_karras_ve() -> None:
    """The loop of the documentation, in float64; the levels are ours in both, see the list of deviations."""
    for churn, noise, count in thinned((0.0, 10.0, 80), (1.0, 1.007)):
        config = {"s_churn": churn, "s_noise": noise}
        ours, theirs = langevin.KarrasVeScheduler(**config), old("KarrasVeScheduler")(**config)
        assert ours.init_noise_sigma == theirs.init_noise_sigma and ours.order == theirs.order
        runs = []
        for scheduler in each(ours, theirs):
            scheduler.set_timesteps(count)
            generator, x, samples = seeded(), first(100.0, torch.float64), []
            for t in scheduler.timesteps.tolist():
                sigma, below = float(ours.schedule[t]), float(ours.schedule[t - 1]) if t else 0.0
                hat, raised = scheduler.add_noise_to_input(x, sigma, generator)
                step = scheduler.step(raised * score(hat, raised), raised, below, hat)
                if below:
                    output = below * score(step.prev_sample, below)
                    step = scheduler.step_correct(output, raised, below, hat, step.prev_sample, step.derivative)
                x = step.prev_sample
                samples += [hat, x]
                parts = step.derivative, step.pred_original_sample
            runs.append((samples, generator.get_state(), parts))
        assert worst(runs[0][0], runs[1][0]) < 1e-9, (config, count)
        assert worst(runs[0][2], runs[1][2]) < 1e-9
        assert torch.equal(runs[0][1], runs[1][1])


def test_vq_diffusion_tables_and_posterior() -> None:
    for classes, steps, alpha in itertools.product((3, 17), (10, 100), ((0.99999, 9e-6), (0.98, 5e-6))):
        config = {"num_vec_classes": classes, "num_train_timesteps": steps}
        config |= {"alpha_cum_start": alpha[0], "alpha_cum_end": alpha[1]}
        ours, theirs = langevin.VQDiffusionScheduler(**config), peer("VQDiffusionScheduler")(**config)
        for letter, kind in itertools.product("abc", ("", "cumprod_")):
            name = f"log_{kind}{letter}t"
            assert torch.allclose(getattr(ours, name), getattr(theirs, name), atol=1e-6, rtol=1e-6), name
        assert (ours.num_embed, ours.mask_class) == (theirs.num_embed, theirs.mask_class)
        tokens = torch.randint(0, classes, (2, 9), generator=seeded(3))
        log_data = torch.log_softmax(torch.randn(2, classes - 1, 9, generator=seeded(4)), dim=1)
        for t in (0, 1, steps // 2, steps - 1):
            mine, reference = (s.q_posterior(log_data, tokens, t) for s in (ours, theirs))
            assert float((mine.exp() - reference.exp()).abs().max()) < 1e-5
            known = reference > -60
            assert torch.allclose(mine[known], reference[known], rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("steps", [4, 25, 100])
def test_vq_diffusion(steps: int) -> None:
    """All tokens of a whole run are equal."""
    config = {"num_vec_classes": 9, "num_train_timesteps": steps}
    runs = []
    for scheduler in (langevin.VQDiffusionScheduler(**config), peer("VQDiffusionScheduler")(**config)):
        scheduler.set_timesteps(steps)
        generator, x, samples = seeded(), torch.full((2, 12), 8), []
        weights = torch.randn(9, 8, generator=seeded(1))
        for t in scheduler.timesteps:
            logits = weights[x] + 0.5 * weights[x.roll(1, 1)] + float(t) / 50
            x = scheduler.step(torch.log_softmax(logits.mT.float(), dim=1), t, x, generator=generator).prev_sample
            samples.append(x)
        runs.append(SimpleNamespace(samples=samples, times=scheduler.timesteps, state=generator.get_state()))
    assert torch.equal(runs[0].times, runs[1].times)
    assert all(torch.equal(a, b) for a, b in zip(runs[0].samples, runs[1].samples, strict=True))
    assert torch.equal(runs[0].state, runs[1].state)
    assert bool((runs[0].samples[-1] < 8).all())
