"""The laboratory finds what is planted: each fault of a toy sampler turns its row, and a sound one has no fault."""

from __future__ import annotations

import importlib
import json
import math

import pytest
import torch

import langevin
from langevin.core.errors import ConfigError, InputError
from langevin.diffusion.process import Level
from langevin.evaluation.analytic import Gaussian
from langevin.evaluation.convergence import moments, sampled, weak_error
from langevin.evaluation.driving import Bench
from langevin.evaluation.report import Curve, Finding, Report, plain
from langevin.evaluation.samplers import check
from langevin.evaluation.schedule import Unreadable

QUICK = {"steps": 8, "ladder": (8, 16), "samples": 2000}


class Toy:
    """The Euler method on exploding levels, as a user would write it, with places to break."""

    order = 1

    def __init__(self, *, gain: float = 1.0, repeat: bool = False, idle: bool = False, leak: bool = False, low=0.02):
        self.gain, self.repeat, self.idle, self.leak, self.low, self.spoilt = gain, repeat, idle, leak, low, 0.0

    def set_timesteps(self, num_inference_steps, device=None):
        levels = torch.exp(torch.linspace(math.log(40.0), math.log(self.low), num_inference_steps, dtype=torch.float64))
        self.sigmas = torch.cat([levels, levels.new_zeros(1)])
        self.timesteps = torch.arange(num_inference_steps, 0, -1)
        if self.repeat:
            self.timesteps[1] = self.timesteps[0]
        self.init_noise_sigma, self.at = 40.0, 0

    def scale_model_input(self, sample, timestep):
        return sample / (self.sigmas[self.at] ** 2 + 1) ** 0.5

    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        a, b = self.sigmas[self.at], self.sigmas[self.at + 1]
        self.at += 1
        if self.idle and self.at == 3:
            return (sample,)
        if self.leak:
            self.spoilt += 0.01
        if self.idle and self.at == 4:
            a = self.sigmas[self.at - 2]
        return (sample + self.gain * (b - a) * model_output + self.spoilt,)

    def add_noise(self, sample, noise, timesteps):
        return sample + noise * self.sigmas[int(len(self.timesteps) - timesteps[0])].float()


def row(report: Report, words: str) -> Finding:
    (found,) = [f for f in report.findings if words in f.what]
    return found


def test_a_sound_toy_has_no_fault() -> None:
    toy = Toy()
    report = check(toy, **QUICK)
    assert report.only("fault") == () and report.ok
    assert "exploding levels read from sigmas" in report.about
    assert row(report, "observed order").figure == pytest.approx(1.0, abs=0.3)
    assert "no `plan`" in row(report, "against the table").meaning
    assert "set_begin_index" in row(report, "not finished").meaning
    assert not hasattr(toy, "sigmas"), "the object passed in was changed"


@pytest.mark.parametrize(
    ("broken", "words", "verdict"),
    [
        ({"gain": 0.9}, "distance to the data", "fault"),
        ({"gain": 0.9}, "samples on the way", "fault"),
        ({"gain": 0.9}, "observed order", "fault"),
        ({"repeat": True}, "asked in a row", "note"),
        ({"repeat": True}, "numbers of steps with repeated", "note"),
        ({"idle": True}, "changes no later sample", "note"),
        ({"leak": True}, "the same object run twice", "fault"),
    ],
)  # fmt: skip
def test_planted_faults_are_found(broken, words: str, verdict: str) -> None:
    assert row(check(Toy(**broken), **QUICK), words).verdict == verdict


def test_wrong_input_scaling_and_noising_are_found() -> None:
    class Wrong(Toy):
        def scale_model_input(self, sample, timestep):
            return super().scale_model_input(sample, timestep) * 1.01

        def add_noise(self, sample, noise, timesteps):
            return super().add_noise(sample, noise, timesteps) + 0.1 * noise * self.sigmas[0].float()

    report = check(Wrong(), space="exploding", **QUICK)
    assert row(report, "scale_model_input").verdict == "fault" and row(report, "add_noise").verdict == "note"


def test_an_image_that_depends_on_its_neighbours_is_found() -> None:
    class Mixing(Toy):
        def step(self, model_output, timestep, sample, generator=None, return_dict=True):
            (after,) = super().step(model_output, timestep, sample)
            return (after + 1e-3 * after.mean(),)

    assert row(check(Mixing(), **QUICK), "against a batch").verdict == "fault"


def test_a_wrong_amount_of_noise_is_found() -> None:
    class Noisy(Toy):
        def step(self, model_output, timestep, sample, generator=None, return_dict=True):
            (after,) = super().step(model_output, timestep, sample)
            more = self.at < len(self.timesteps)
            return (after + 0.5 * more * torch.randn(after.shape, generator=generator, dtype=after.dtype),)

    report = check(Noisy(), steps=8, ladder=(8, 16), samples=2000)
    assert row(report, "distance to the data's").verdict == "note"
    assert len(report.curves) == 1 and "of samples" in report.curves[0].what


def test_a_step_that_raises_is_a_row_and_not_an_end() -> None:
    class Failing(Toy):
        def step(self, model_output, timestep, sample, generator=None, return_dict=True):
            raise RuntimeError("out of paper")

    report = check(Failing(), space="exploding", **QUICK)
    assert not report.ok and any("out of paper" in f.meaning for f in report.findings)


def test_what_cannot_be_read_is_said() -> None:
    class Mute(Toy):
        def set_timesteps(self, num_inference_steps, device=None):
            super().set_timesteps(num_inference_steps)
            self.timesteps = self.timesteps.float() + 0.5
            del self.sigmas

        def scale_model_input(self, sample, timestep):
            return sample

    report = check(Mute(), **QUICK)
    assert report.about == "cannot be examined" and "no `alphas_cumprod`" in report.findings[0].meaning
    with pytest.raises(ConfigError, match="no `step`"):
        Bench(type("Half", (), {"set_timesteps": lambda self, n: None})())
    with pytest.raises(ConfigError, match="did you mean 'generator'"):
        Bench(Toy(), options={"generater": 1})
    with pytest.raises(InputError, match="count from 1"):
        check(Toy(), steps=0)


def test_levels_of_the_training_table_are_read() -> None:
    class Preserving(Toy):
        def set_timesteps(self, num_inference_steps, device=None):
            self.alphas_cumprod = langevin.DDIMScheduler().alphas_cumprod
            self.timesteps = torch.linspace(999, 0, num_inference_steps).round().long()

        scale_model_input = None

    schedule = Bench(Preserving()).schedule(5)
    plan = langevin.DDIMScheduler(timestep_spacing="linspace").plan(5)
    assert schedule.source == "alphas_cumprod" and schedule.space == "preserving"
    assert [c.level.sigma for c in schedule.calls] == pytest.approx([s.level.sigma for s in plan.steps])


def test_moments_are_those_of_many_draws() -> None:
    bench = Bench(langevin.EulerAncestralDiscreteScheduler())
    mean, deviation = moments(bench.plan(6), Gaussian())
    drawn = sampled(bench, Gaussian(), 6, count=40_000, seed=1)
    assert drawn.sigmas(mean, deviation) < 4
    wrong = weak_error((mean, deviation), Gaussian(), Level(-1, 1.0, 0.0))
    assert wrong == pytest.approx(abs(deviation - 0.2), rel=1e-6)


def test_draws_at_some_number_of_steps_alone_are_followed_too() -> None:
    """RePaint goes back, and draws, only in runs of more steps than a jump is long."""
    plans = [langevin.RePaintScheduler().plan(steps) for steps in (8, 16)]
    assert [plan.stochastic for plan in plans] == [False, True]
    reports = [check(langevin.RePaintScheduler(), **QUICK) for _ in range(2)]
    assert reports[0] == reports[1] and "mean and deviation at the end" in reports[0].curves[0].what


def test_moments_refuse_what_is_not_affine() -> None:
    plan = langevin.DDPMScheduler(clip_sample_range=0.15).plan(6)
    with pytest.raises(Unreadable, match="not affine"):
        moments(plan, Gaussian())


def test_the_wasted_call_of_a_default_is_found() -> None:
    """PNDM's last timestep is 0 and its run ends at the level of timestep 0: the last call is for nothing."""
    report = check(langevin.PNDMScheduler(skip_prk_steps=True), **QUICK)
    wasted = row(report, "changes no later sample")
    assert wasted.figure == 1 and "[8]" in wasted.meaning and report.ok
    sound = check(langevin.PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=True), **QUICK)
    assert row(sound, "changes no later sample").figure == 0


def test_slopes() -> None:
    curve = Curve("x", (10, 20, 40), (10, 20, 40), (1.0, 0.25, 0.0625), 1e-9)
    assert curve.order == pytest.approx(2.0)
    assert Curve("x", (10, 20, 40), (10, 20, 40), (1.0, 0.25, 1e-12), 1e-9).order == pytest.approx(2.0)
    assert Curve("x", (10, 20), (10, 20), (1e-12, 1e-12), 1e-9).order is None


def test_reports_are_text_and_json() -> None:
    report = check(langevin.DDIMScheduler(), **QUICK)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["ok"] and data["name"] == "DDIMScheduler" and len(data["schedule"]) == 8
    assert data["curves"][0]["order"] == pytest.approx(report.curves[0].order)
    text = str(report)
    for words in ("DDIMScheduler, 8 steps", "calls", "exactness", "errors by number of steps", "schedule", "0 fault"):
        assert words in text
    assert "... " in str(check(langevin.DDIMScheduler(), **{**QUICK, "steps": 16}))
    assert plain({"a": (math.inf, 1.0)}) == {"a": ["inf", 1.0]}


@pytest.mark.parity
@pytest.mark.parametrize("name", ["EulerDiscrete", "KDPM2Discrete", "FlowMatchEulerDiscrete"])
def test_the_laboratory_drives_foreign_classes(name: str) -> None:
    diffusers = importlib.import_module("diffusers")
    report = check(getattr(diffusers, f"{name}Scheduler")(), **QUICK)
    assert report.only("fault") == ()
    assert row(report, "observed order").figure > 0.7
