"""Score-based predictors and correctors, and diffusion over tokens, against what is known of them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import langevin
from langevin.core.errors import ConfigError, InputError
from langevin.diffusion import Plan, Prediction, sample
from langevin.diffusion.discrete import MaskAndReplace, gumbel_argmax, told_apart
from langevin.diffusion.process import Level, preserving
from langevin.diffusion.rows import langevin as langevin_step
from langevin.diffusion.rows import langevin_share
from langevin.diffusion.score_sde import ExplodingSDE, PreservingSDE
from langevin.diffusion.solvers import FirstOrder, ReverseDiffusion
from tests.schedulers.oracle import seeded

MEAN, DEVIATION = 0.7, 0.5


def gaussian(x: torch.Tensor, step) -> torch.Tensor:
    """The exact noise of a sample of Gaussian data."""
    level = step.level
    spread = level.spread(DEVIATION)
    return level.sigma * (x - level.alpha * MEAN) / spread**2


def drawing(shape, seed: int):
    generator = seeded(seed)
    return lambda: torch.randn(shape, generator=generator, dtype=torch.float64)


def moments(plan: Plan, count: int = 20000) -> tuple[float, float]:
    """Return mean and standard deviation of samples that start with the exact distribution of the first level."""
    a, draw = plan.steps[0].level, drawing((1, count), 3)
    x = a.alpha * (MEAN + DEVIATION * draw()) + a.sigma * draw()
    end = sample(gaussian, x, plan, noise=draw)
    return float(end.mean()), float(end.std())


def test_processes_know_their_times() -> None:
    for process in (ExplodingSDE(), PreservingSDE(), PreservingSDE(0.3, 5.0)):
        for t in (1e-3, 0.2, 0.9, 1.0):
            level = process.level(t)
            assert math.isclose(process.at(level.ratio).t, t, rel_tol=1e-9)
        grid = process.grid(5, 0.01)
        assert [round(level.t, 9) for level in grid] == [1.0, 0.7525, 0.505, 0.2575, 0.01, 0.0]
        assert grid[-1] == Level(0.0, 1.0, 0.0)
    assert math.isclose(PreservingSDE().level(1.0).alpha, math.exp(-5.025), rel_tol=1e-9)


def test_exact_score_gives_the_data() -> None:
    """The mean of reverse diffusion is exact for one data point, with noise on the way and corrections too."""
    scheduler = langevin.ScoreSdeVeScheduler()
    data = torch.full((2, 1, 4, 4), 0.3, dtype=torch.float64)
    for steps, corrections in itertools.product((1, 2, 7, 50), (0, 1)):
        plan, draw = scheduler.plan(steps, correct_steps=corrections), drawing(data.shape, 1)
        for part in (plan, plan.tail(0.5), plan.part(len(plan.steps) - 1)):
            x = part.start(draw(), data)
            x = sample(lambda x, step: (data - x) / step.level.sigma**2, x, part, noise=draw)
            assert float((x - data).abs().max()) < 1e-9
    heun = langevin.KarrasVeScheduler().plan(12)
    for first in range(len(heun.steps)):
        part, draw = heun.part(first), drawing(data.shape, 1)
        x = part.start(draw(), data)
        x = sample(lambda x, step: (data - x) / step.level.sigma, x, part, noise=draw)
        assert float((x - data).abs().max()) < 1e-9, first


def test_reverse_diffusion_has_the_mean_of_ancestral_sampling() -> None:
    grid = ExplodingSDE(0.1, 20.0).grid(6, 1e-5)
    ancestral, reverse = FirstOrder(eta=1.0).rows(grid), ReverseDiffusion().rows(grid)
    for a, b in zip(ancestral[:-1], reverse[:-1], strict=True):
        # x_0 = x - sigma * eps
        assert math.isclose(a.sample + a.outputs[0], b.sample, rel_tol=1e-12)
        assert math.isclose(-a.outputs[0] * a.level.sigma, b.outputs[0], rel_tol=1e-12)
        assert math.isclose(b.noise, math.sqrt(a.level.sigma**2 - a.after.sigma**2), rel_tol=1e-12)
        assert b.noise > a.noise
    assert reverse[-1].noise == 0.0


def test_predictors_converge_to_the_data() -> None:
    """Mean and deviation of Gaussian data with the exact score, up to the step size."""
    ve = langevin.ScoreSdeVeScheduler(sigma_max=20.0).plan(400, correct_steps=0)
    vp = langevin.ScoreSdeVpScheduler().plan(400)
    for plan in (ve, vp):
        plan = Plan(plan.grid, plan.solver, Prediction())
        mean, deviation = moments(plan, 4000)
        assert abs(mean - MEAN) < 0.05
        assert abs(deviation - DEVIATION) < 0.05


def test_corrections_keep_the_distribution_of_their_level() -> None:
    """Langevin dynamics at one level, from samples of that level: mean and deviation stay."""
    level = Level(0.0, 1.0, 2.0)
    draw, spread = drawing((200, 100), 5), level.spread(DEVIATION)
    x = MEAN + spread * draw()
    for _ in range(30):
        x = langevin_step(x, (MEAN - x) / spread**2, draw(), 0.1)
    assert abs(float(x.mean()) - MEAN) < 0.1
    assert abs(float(x.std()) / spread - 1) < 0.02


def test_langevin_share_is_that_of_the_paper_for_each_image() -> None:
    score, noise = torch.randn(3, 2, 4, generator=seeded(1)), torch.randn(3, 2, 4, generator=seeded(2))
    size = 0.5 * langevin_share(score, noise, 0.16) ** 2
    assert size.shape == (3, 1, 1)
    for k in range(3):
        wanted = 2 * (0.16 * float(noise[k].norm()) / float(score[k].norm())) ** 2
        assert math.isclose(float(size[k]), wanted, rel_tol=1e-5)
        alone = langevin_step(score[k : k + 1], score[k : k + 1], noise[k : k + 1], 0.16)
        assert torch.equal(langevin_step(score, score, noise, 0.16)[k : k + 1], alone)


@pytest.mark.parametrize("kind", ["score", "scaled_score"])
def test_scores_are_read_as_noise_and_data(kind: str) -> None:
    level, data, noise = preserving(3, 1.7), torch.tensor([[0.4]]), torch.tensor([[-1.1]])
    x = level.alpha * data + level.sigma * noise
    output = -noise if kind == "scaled_score" else -noise / level.sigma
    prediction = Prediction(kind)
    assert torch.allclose(prediction.data(x, output, level), data, atol=1e-6)
    assert torch.allclose(prediction.noise(x, output, level), noise, atol=1e-6)


def test_schedules_of_ones_own() -> None:
    ve, vp = langevin.ScoreSdeVeScheduler(), langevin.ScoreSdeVpScheduler()
    for scheduler in (ve, vp):
        assert [step.timestep for step in scheduler.plan(timesteps=[0.9, 0.5, 0.1]).steps][-1] == 0.1
        assert np.allclose([v.ratio for v in scheduler.plan(sigmas=[9.0, 1.0, 0.2]).grid], [9.0, 1.0, 0.2])
        with pytest.raises(InputError, match="descend"):
            scheduler.plan(timesteps=[0.1, 0.5])
        with pytest.raises(InputError, match="at least two levels"):
            scheduler.plan(sigmas=[9.0])
        with pytest.raises(InputError, match="not in the schedule"):
            scheduler.set_timesteps(4)
            scheduler._position(0.7777)
    karras = langevin.KarrasVeScheduler()
    with pytest.raises(InputError, match="num_inference_steps"):
        karras.plan(timesteps=[3, 2])
    assert [v.sigma for v in karras.plan(sigmas=[9.0, 1.0, 0.0]).grid] == [9.0, 1.0, 0.0]


# ---- tokens -------------------------------------------------------------------------------------------------------


def matrix(process: MaskAndReplace, t: int) -> np.ndarray:
    """Return Q_t of eq. 7 as a matrix, column by column the distribution after one step."""
    stay, replace, mask = np.exp(process.single[:, t])
    q = np.full((process.classes, process.classes), replace) + stay * np.eye(process.classes)
    q[-1, :-1], q[:-1, -1], q[-1, -1] = mask, 0.0, 1.0
    return q


PROCESS = MaskAndReplace(5, 12, (0.99, 1e-4), (1e-3, 0.99))


def test_products_are_those_of_the_matrices() -> None:
    product = np.eye(5)
    for t in range(12):
        q = matrix(PROCESS, t)
        assert np.allclose(q.sum(axis=0), 1.0)
        product = q @ product
        stay, replace, mask = np.exp(PROCESS.products[:, t])
        assert np.allclose(product[:-1, :-1], replace + stay * np.eye(4), atol=1e-12)
        assert np.allclose(product[-1, :-1], mask, atol=1e-12)
        data = torch.log(torch.rand(1, 4, 3, generator=seeded(t), dtype=torch.float64) + 0.1)
        forward = product[:, :-1] @ data.exp()[0].numpy()
        assert np.allclose(PROCESS.forward(data, t).exp()[0].numpy(), forward, atol=1e-9)


def test_posterior_is_bayes_rule() -> None:
    """For every token, every stride: sum over x_0 of q(x_s | x_t, x_0) p(x_0), with matrices."""
    tokens = torch.arange(5)[None]
    data = torch.log_softmax(torch.randn(1, 4, 5, generator=seeded(1), dtype=torch.float64), dim=1)
    for t, before in ((11, 10), (11, 3), (6, 5), (5, 0), (4, -1), (0, -1)):
        first = np.linalg.multi_dot([np.eye(5), *[matrix(PROCESS, k) for k in range(before, -1, -1)], np.eye(5)])
        second = np.linalg.multi_dot([np.eye(5), *[matrix(PROCESS, k) for k in range(t, before, -1)], np.eye(5)])
        whole, got = second @ first, PROCESS.posterior(data, tokens, t, before=before).exp()[0].numpy()
        for x_t in range(5):
            p = data.exp()[0, :, x_t].numpy()
            wanted = sum(p[k] * second[x_t] * first[:, k] / whole[x_t, k] for k in range(4))
            assert np.allclose(got[:, x_t], wanted, atol=1e-6)
            assert math.isclose(got[:, x_t].sum(), 1.0, rel_tol=1e-5)
    for t, before in ((3, 3), (12, 4), (3, -2)):
        with pytest.raises(InputError, match="outside the process"):
            PROCESS.posterior(data, tokens, t, before=before)


def test_tokens_are_drawn_with_their_probabilities() -> None:
    wanted = torch.tensor([0.1, 0.2, 0.7])
    draws = torch.rand(1, 3, 20000, generator=seeded(2))
    tokens = gumbel_argmax(wanted.log().reshape(1, 3, 1).expand(1, 3, 20000), draws)
    assert torch.allclose(tokens.flatten().bincount() / 20000, wanted, atol=0.02)
    ordinary, masked = told_apart(torch.tensor([[0, 2]]), 3)
    assert torch.equal(ordinary, torch.tensor([[[True, False], [False, False]]]))
    assert torch.equal(masked, torch.tensor([[[False, True]]]))


def test_vq_diffusion_protocol() -> None:
    scheduler = langevin.VQDiffusionScheduler(num_vec_classes=6)
    known = torch.log_softmax(torch.randn(3, 5, 7, generator=seeded(1)), dim=1)
    runs = []
    for rows in (slice(0, 3), slice(1, 2)):
        generators, x = [seeded(k) for k in range(3)][rows], torch.full((3, 7), 5)[rows]
        scheduler.set_timesteps(9)
        for t in scheduler.timesteps:
            x = scheduler.step(known[rows], t, x, generator=generators).prev_sample
        runs.append(x)
    assert torch.equal(runs[0][1:2], runs[1])
    for count in range(1, 101):
        scheduler.set_timesteps(count)
        assert len({*scheduler.timesteps.tolist()}) == count and scheduler.timesteps[0] == 99
    scheduler.set_timesteps(9)
    with pytest.raises(InputError, match="not in the schedule"):
        scheduler.step(known, 98, torch.full((3, 7), 5))
    with pytest.raises(InputError, match="no noise levels"):
        scheduler.plan(3)
    with pytest.raises(InputError, match="training steps"):
        scheduler.set_timesteps(101)
    assert MaskAndReplace(2).products.shape == (3, 101) and MaskAndReplace(2, 1).single.shape == (3, 1)
    for classes, steps in ((1, 100), (2, 0)):
        with pytest.raises(ConfigError, match="at least 2 and 1"):
            MaskAndReplace(classes, steps)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        langevin.VQDiffusionScheduler(num_vec_classes=6, alpha_cum_end=0.0)
    again = langevin.VQDiffusionScheduler.from_config(scheduler.config)
    assert again.config == scheduler.config and len(again) == 100
