"""What every public sampler must do, over the registry: a class that is added is covered by being listed there."""

from __future__ import annotations

import inspect
import itertools

import pytest
import torch

from langevin import registry
from langevin.core.errors import ConfigError, InputError, LangevinError
from langevin.diffusion import sample
from langevin.evaluation.samplers import check
from tests.evaluation.contract import (
    APART,
    BY_HAND,
    BY_TABLE,
    IN_THE_LIMIT,
    LIMITS,
    NAMES,
    REPEATS,
    UPWARDS,
    bench_of,
    benches,
    declared,
    exact_noise,
    gaussian_run,
    most,
    some_counts,
)
from tests.no_reading import NoReading

everyone = pytest.mark.parametrize("name", NAMES)
by_hand = pytest.mark.parametrize("name", BY_HAND)
exact = pytest.mark.parametrize("name", [name for name in NAMES if name not in IN_THE_LIMIT])


def test_no_exception_outlives_its_need() -> None:
    known = {row.name for row in registry.SCHEDULERS}
    for table in (APART, BY_TABLE, IN_THE_LIMIT):
        assert set(table) <= known and all(len(reason.split()) >= 5 for reason in table.values()), table
    assert set(LIMITS) | set(REPEATS) <= known


@exact
def test_exact_noise_gives_the_data(name: str) -> None:
    """For every spacing and schedule of levels, and every place where a run may begin."""
    for options, bench in benches(name):
        for steps in (1, 2, 7):
            plan = bench.plan(steps)
            if plan.grid[-1].sigma > 0 and any(row.noise for row in plan.rows):
                continue  # fresh noise stays in the last sample
            for first in (k for k, step in enumerate(plan.steps) if step.level.sigma > 0):
                assert exact_noise(bench, steps, first) <= 1e-5, (options, steps, first)


@everyone
def test_calls_are_as_declared_and_no_timestep_is_asked_twice(name: str) -> None:
    for options, bench in benches(name):
        for steps in some_counts(name, options):
            if steps > most(name, options):
                with pytest.raises(LangevinError, match=str(steps)):
                    bench.plan(steps)
                continue
            times = [step.timestep for step in bench.plan(steps).steps]
            assert len(times) in declared(name, bench, steps), (options, steps, len(times))
            longest = max(len(list(group)) for _, group in itertools.groupby(times))
            assert longest <= REPEATS.get(name, bench.order), (options, steps)


@everyone
def test_mistakes_are_named(name: str) -> None:
    """A misspelt option, levels out of order, a place outside the run, a timestep that is not in the grid."""
    scheduler = bench_of(name).scheduler
    option = [*inspect.signature(type(scheduler).__init__).parameters][1]
    with pytest.raises(ConfigError, match=f"does not accept '{option[:-1]}'; did you mean '{option}"):
        type(scheduler)(**{option[:-1]: 1})
    with pytest.raises(ConfigError, match="does not accept 'noise_strength'"):
        scheduler.plan(5, noise_strength=1.0)
    for asked in ({"num_inference_steps": 0}, {"num_inference_steps": 2.5}):
        with pytest.raises(InputError, match="whole number of at least 1"):
            scheduler.set_timesteps(**asked)
    for values in ("timesteps", "sigmas"):
        with pytest.raises(InputError, match="ascend|alone" if name in UPWARDS else "descend|pass `sigmas`|only count"):
            scheduler.set_timesteps(**{values: [0.1, 0.5, 0.3]})
    scheduler.set_timesteps(7)
    calls = len(scheduler.plan().steps)
    for place in (-1, calls + 100):
        with pytest.raises(InputError, match=f"begin_index is {place}, but the schedule has positions 0 to"):
            scheduler.set_begin_index(place)
    if name in BY_HAND:
        x = torch.zeros(1, 3, 4, 4)
        with pytest.raises(InputError, match="is not in the schedule; the nearest is"):
            scheduler.step(x, 12345.5, x)


@everyone
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    bench, way = bench_of(name), {"by_hand": name in BY_HAND}
    alone = torch.cat([gaussian_run(bench, [k], **way) for k in range(3)])
    assert torch.allclose(gaussian_run(bench, [0, 1, 2], **way), alone, rtol=0, atol=1e-9)


@by_hand
def test_the_table_and_a_loop_by_hand_are_one(name: str) -> None:
    bench = bench_of(name)
    by_hand, by_table = (gaussian_run(bench, [0, 1], by_hand=hand, steps=9) for hand in (True, False))
    assert torch.allclose(by_hand, by_table, rtol=0, atol=1e-9)


@by_hand
def test_a_loop_by_hand_reads_nothing_from_the_device(name: str) -> None:
    """Meta tensors stand for an accelerator: they have no values, so whatever reads one fails."""
    scheduler = bench_of(name).scheduler
    scheduler.set_timesteps(5, device="meta")
    scheduler.set_begin_index(0)
    x = torch.empty(2, 3, 4, 4, device="meta")
    doubled = scheduler.plan(5).prediction.variance is not None
    with NoReading():
        for t in scheduler.timesteps:
            output = scheduler.scale_model_input(x, t) * 0.5
            x = scheduler.step(torch.cat([output, output], dim=1) if doubled else output, t, x).prev_sample
    assert x.device.type == "meta" and x.shape == (2, 3, 4, 4)


@everyone
def test_the_sampling_loop_reads_nothing_from_the_device(name: str) -> None:
    plan = bench_of(name).plan(5)
    plan.steps  # noqa: B018
    x = torch.full((2, 3, 4, 4), 0.5)
    doubled = plan.prediction.variance is not None
    with NoReading():
        sample(
            lambda x, step: torch.cat([x, x], dim=1) if doubled else 0.5 * x, x, plan,
            noise=lambda: torch.ones_like(x), check=None,
        )  # fmt: skip


@everyone
def test_the_laboratory_finds_no_fault(name: str) -> None:
    report = check(bench_of(name).scheduler, steps=10, ladder=(8, 16), samples=4000)
    assert report.only("fault") == ()
    assert {finding.topic for finding in report.findings} == {"calls", "ends", "exactness", "protocol", "errors"}
