"""The loop: order of events, edits, early ends, non-finite outputs, no reading of tensors."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import langevin
from langevin.core.errors import ConfigError, InputError, NonFiniteError
from langevin.diffusion import Stop, noised, sample
from langevin.diffusion.sampling import FiniteWatch
from tests.no_reading import NoReading

X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def half(x: torch.Tensor, step) -> torch.Tensor:
    return 0.5 * x


def plan(name: str = "DDIMScheduler", steps: int = 4, **options):
    return getattr(langevin, name)().plan(steps, **options)


def test_order_of_events() -> None:
    events = []

    def note(what):
        def edit(x, step):
            events.append((what, step.index))
            return x

        return edit

    def denoise(x, step):
        events.append(("network", step.index))
        return 0.5 * x

    sample(denoise, X, plan(steps=2), before=[note("a"), note("b")], after=[note("c"), note("d")],
           on_step=lambda step, x: events.append(("end", step.index)))  # fmt: skip
    names = ["a", "b", "network", "c", "d", "end"]
    assert events == [(n, k) for k in range(2) for n in names]


def test_steps_describe_the_run() -> None:
    steps = plan(steps=4).steps
    assert [s.index for s in steps] == [0, 1, 2, 3] and {s.count for s in steps} == {4}
    assert [s.last for s in steps] == [False, False, False, True]
    assert [s.timestep for s in steps] == [750, 500, 250, 0]
    assert all(a.after == b.level for a, b in itertools.pairwise(steps))
    assert all(s.in_scale == 1.0 for s in steps)
    euler = plan("EulerDiscreteScheduler").steps
    assert all(s.in_scale == pytest.approx((1 + s.level.sigma**2) ** -0.5) for s in euler)


def test_calls_are_numbered_by_the_step_they_belong_to() -> None:
    heun = plan("HeunDiscreteScheduler", 3)
    assert heun.numbers == (0, 0, 1, 1, 2) and heun.part(1).numbers == (0, 1, 1, 2)
    assert plan(steps=3).numbers == (0, 1, 2)


def test_a_plan_comes_worked_out() -> None:
    """So that mistakes are found before the first call of the network, and the first step costs what others do."""
    assert {"rows", "steps", "moves"} <= set(vars(plan(steps=3)))


def test_a_part_lies_within_the_run() -> None:
    whole = plan(steps=4)
    assert whole.part(1, 3).steps[0].timestep == 500 and len(whole.part(0).steps) == 4
    assert whole.part(1).part(1, 2).steps[0].timestep == 250
    for first, end in ((0, 5), (2, 2), (-1, 2), (4, None)):
        with pytest.raises(InputError, match="asked of a run that has 4"):
            whole.part(first, end)


def test_a_picture_is_settled_where_the_sample_is_after_the_step() -> None:
    step = plan(steps=4).steps[1]
    assert torch.equal(plan(steps=4).settle(step, X, X.flip(0)), noised(X, X.flip(0), step.after))
    assert step.after.t == 250


def test_edits_and_callbacks_change_the_sample() -> None:
    whole = sample(half, X, plan())
    assert torch.equal(sample(half, X, plan(), after=[lambda x, step: x * 1.0]), whole)
    assert not torch.equal(sample(half, X, plan(), before=[lambda x, step: x * 0.9]), whole)
    kept = sample(half, X, plan(), on_step=lambda step, x: torch.zeros_like(x) if step.last else None)
    assert torch.equal(kept, torch.zeros_like(X))


def test_stop_returns_what_there_is() -> None:
    seen = []

    def until_two(step, x):
        seen.append(x)
        if step.index == 1:
            raise Stop

    assert torch.equal(sample(half, X, plan(), on_step=until_two), seen[-1]) and len(seen) == 2


def test_a_nan_names_network_and_step() -> None:
    def broken(x, step):
        return x * float("nan") if step.index == 2 else x

    with pytest.raises(NonFiniteError, match="eye returned NaN or infinity at step 2") as caught:
        sample(broken, X, plan(), check="eye")
    assert caught.value.step == 2 and caught.value.module == "eye"
    assert torch.isnan(sample(broken, X, plan(), check=None)).any()


def test_the_watch_on_an_accelerator_reads_once_at_the_end() -> None:
    """Meta tensors stand for an accelerator: nothing may be read from them until the end."""
    watch = FiniteWatch("eye")
    for k in range(3):
        watch.see(torch.ones(2, device="meta"), k)
    assert [(step, mark.device.type) for step, mark in watch.seen] == [(k, "meta") for k in range(3)]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_the_mark_of_a_step_tells_whether_it_was_finite(bad) -> None:
    largest = torch.full((3, 5), torch.finfo(torch.float16).max, dtype=torch.float16)
    assert FiniteWatch.mark(largest) == 0
    outputs = [largest, largest.clone(), largest.clone()]
    outputs[1][2, 3] = outputs[2][0, 0] = bad
    watch = FiniteWatch("eye")
    watch.seen = [(4 + k, FiniteWatch.mark(output)) for k, output in enumerate(outputs)]
    with pytest.raises(NonFiniteError, match="step 5"):
        watch.close()
    watch.close()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DDIMScheduler", {"eta": 0.5}), ("DDPMScheduler", {}), ("PNDMScheduler", {}),
        ("EulerDiscreteScheduler", {"s_churn": 2.0}),
        ("EulerAncestralDiscreteScheduler", {}), ("DPMSolverMultistepScheduler", {}),
    ],
)  # fmt: skip
def test_the_loop_never_waits_for_the_device(name: str, options: dict) -> None:
    table = plan(name, 5, **options)
    table.steps  # noqa: B018
    with NoReading():
        sample(half, X, table, noise=lambda: torch.ones_like(X), check=None)


def test_half_precision_is_stepped_in_float32() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        result = sample(half, X.to(dtype), plan(steps=20))
        assert result.dtype == dtype
        assert torch.allclose(result.float(), sample(half, X, plan(steps=20)), atol=0.05)
    assert sample(half, X.double(), plan()).dtype == torch.float64


def test_stochastic_plans_need_noise() -> None:
    assert plan(eta=0.5).stochastic and not plan().stochastic
    with pytest.raises(InputError, match="pass `noise`"):
        sample(half, X, plan(eta=0.5))


def test_starts() -> None:
    euler = plan("EulerDiscreteScheduler", 10)
    assert torch.equal(euler.start(X), X * euler.init_noise_sigma)
    level = euler.tail(0.5).steps[0].level
    assert torch.equal(euler.tail(0.5).start(X, X), noised(X, X, level))
    assert len(euler.tail(0.5).steps) == 5 and len(euler.tail(0.01).steps) == 1 and len(euler.tail(1.0).steps) == 10
    for bad in (0.0, -0.1, 1.1):
        with pytest.raises(InputError, match="strength"):
            euler.tail(bad)
    with pytest.raises(InputError, match="before `slice`"):
        euler.slice(end=0.5).tail(0.5)
    with pytest.raises(InputError, match="No step"):
        euler.slice(start=0.5, end=0.5)
    with pytest.raises(InputError, match="between 0 and 1"):
        euler.slice(start=1.5)
    continuous = langevin.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction")
    with pytest.raises(InputError, match="not training steps"):
        continuous.plan(10).slice(end=0.5)


def test_preview_of_the_data() -> None:
    run = plan(steps=3).begin()
    assert run.x0 is None
    run.advance(X, 0.5 * X, 0)
    level = plan(steps=3).steps[0].level
    assert torch.allclose(run.x0, ((X - level.sigma * 0.5 * X) / level.alpha).clamp(-1, 1), atol=1e-5)


class Calls(TorchDispatchMode):
    """Writes down the operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_step_of_the_sample_and_the_output_alone_is_their_sum() -> None:
    for name in ("FlowMatchEulerDiscreteScheduler", "EulerDiscreteScheduler"):
        run = plan(name).begin()
        with Calls() as calls:
            run.advance(X, X, 0)
        assert calls.names == ["add"], name


def test_the_last_sample_is_not_the_output_itself() -> None:
    """Also where the step goes to the data and the network predicts that: a caller may write into either."""
    for name in ("DDIMScheduler", "EulerDiscreteScheduler", "LCMScheduler"):
        options = {"clip_sample": False} if name == "DDIMScheduler" else {}
        run = getattr(langevin, name)(prediction_type="sample", **options).plan(1).begin(lambda: X)
        x, output = X.clone(), X.flip(0)
        end = run.advance(x, output, 0)
        assert end.data_ptr() not in (x.data_ptr(), output.data_ptr()), name


def test_noise_says_nothing_about_the_data_of_pure_noise() -> None:
    scheduler = langevin.DDIMScheduler(rescale_betas_zero_snr=True)
    with pytest.raises(ConfigError, match="says nothing about the data"):
        scheduler.step(X, 999, X)
    scheduler = langevin.DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert torch.isfinite(scheduler.step(X, 999, X).prev_sample).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["FlowMatchEulerDiscreteScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"]
)
def test_half_precision_is_rounded_once_per_step(name: str, dtype: torch.dtype) -> None:
    x, output = X.to(dtype), X.flip(0).to(dtype)
    runs = [plan(name).begin() for _ in range(2)]
    for index in range(2):
        wide = runs[1].advance(x.float(), output.float(), index)
        x = runs[0].advance(x, output, index)
        assert x.dtype == dtype and torch.equal(x, wide.to(dtype))
        assert runs[0].x0.dtype == torch.float32 and torch.equal(runs[0].x0, runs[1].x0)


def test_the_loop_compiles_to_one_graph() -> None:
    """A whole step is traced without a break: rows are host numbers."""
    table = plan("DPMSolverMultistepScheduler", 3)
    table.steps  # noqa: B018
    graphs = []

    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    step = torch.compile(lambda x: sample(half, x, table, check=None), backend=backend, fullgraph=True)
    assert torch.allclose(step(X), sample(half, X, table), atol=1e-6) and len(graphs) == 1
