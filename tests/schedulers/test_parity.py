"""The six schedulers against the peer over the product of their options: whole trajectories, tables, noising."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.schedulers.oracle import (
    COUNTS,
    KINDS,
    NAMES,
    SHAPE,
    SPACINGS,
    STABLE,
    counted,
    difference,
    failures,
    first_noise,
    network,
    pair,
    product,
    seeded,
    timeless,
)

pytestmark = pytest.mark.parity
BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")


def bounds(kind):
    return {"none": {}, "clip": {"clip_sample": True, "clip_sample_range": 1.5}, "threshold": {
        "clip_sample": False, "thresholding": True, "sample_max_value": 2.0, "dynamic_thresholding_ratio": 0.9,
    }}[kind] | ({"clip_sample": False} if kind == "none" else {})  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddpm(spacing: str, kind: str) -> None:
    def cases():
        for bound, variance, offset, zero in itertools.product(
            ("none", "clip", "threshold"), ("fixed_small", "fixed_small_log", "fixed_large"), (0, 1), (False, True)
        ):
            if zero and kind == "epsilon" and spacing != "leading":
                continue  # rejected: no information about the data
            if variance == "fixed_large" and (spacing == "trailing" or (spacing == "leading" and offset)):
                continue  # a deviation: no noise in the last step
            yield bounds(bound) | {
                "timestep_spacing": spacing, "prediction_type": kind, "variance_type": variance, "steps_offset": offset,
                "rescale_betas_zero_snr": zero,
            }  # fmt: skip

    assert failures("DDPMScheduler", counted(cases(), stochastic=True)) == []


@pytest.mark.parametrize("schedule", [*BETAS, "sigmoid", "laplace"])
def test_ddpm_betas_and_learned_range(schedule: str) -> None:
    cases = product(
        beta_schedule=[schedule],
        prediction_type=KINDS,
        timestep_spacing=["leading", "linspace"],
        clip_sample=[True, False],
    )
    assert failures("DDPMScheduler", counted(cases, stochastic=True)) == []
    learned = product(
        beta_schedule=[schedule],
        variance_type=["learned_range"],
        prediction_type=KINDS,
        timestep_spacing=["leading", "linspace"],
    )
    assert failures("DDPMScheduler", counted(learned, stochastic=True, doubled=True)) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim_leading(eta: float, kind: str) -> None:
    def cases():
        for bound, one, offset, zero, clipped in itertools.product(
            ("none", "clip", "threshold"), (True, False), (0, 1), (False, True), (False, True)
        ):
            config = bounds(bound) | {
                "prediction_type": kind, "set_alpha_to_one": one, "steps_offset": offset,
                "rescale_betas_zero_snr": zero,
            }  # fmt: skip
            yield config, {"eta": eta, "use_clipped_model_output": clipped, "stochastic": True}

    turns = ((n, config, run) for (config, run), n in zip(cases(), itertools.cycle(COUNTS), strict=False))
    assert failures("DDIMScheduler", turns, limit=3e-5) == []


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_ddim_other_spacings_agree_where_the_stride_is_whole(spacing: str) -> None:
    """With trailing spacing and a divisor of the table, the peer's fixed stride hits the next timestep."""
    cases = product(
        prediction_type=KINDS, timestep_spacing=[spacing], clip_sample=[True, False], set_alpha_to_one=[True, False]
    )
    steps = (4, 25, 50) if spacing == "trailing" else (1,)
    turns = ((n, config, {}) for config, n in zip(cases, itertools.cycle(steps), strict=False))
    assert failures("DDIMScheduler", turns) == []


@pytest.mark.parametrize("schedule", BETAS)
def test_ddim_betas(schedule: str) -> None:
    cases = product(beta_schedule=[schedule], prediction_type=KINDS, rescale_betas_zero_snr=[False, True])
    assert failures("DDIMScheduler", counted(cases)) == []


def test_pndm() -> None:
    """Runge-Kutta start at strides that halve; without it any."""
    whole = product(
        skip_prk_steps=[True],
        set_alpha_to_one=[True, False],
        steps_offset=[0, 1],
        beta_schedule=BETAS,
        timestep_spacing=["leading"],
    )
    assert failures("PNDMScheduler", counted(whole), limit=3e-5) == []
    even = product(skip_prk_steps=[False], set_alpha_to_one=[True, False], steps_offset=[0, 1], beta_schedule=BETAS)
    turns = ((n, config, {}) for config, n in zip(even, itertools.cycle((4, 5, 11, 25, 50)), strict=False))
    assert failures("PNDMScheduler", turns, limit=3e-5) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", ["", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
def test_euler(levels: str, kind: str) -> None:
    def cases(zero):
        for config in product(
            timestep_spacing=SPACINGS, steps_offset=[0, 1], timestep_type=["discrete", "continuous"],
            rescale_betas_zero_snr=[zero], final_sigmas_type=["zero", "sigma_min"], bounded=[False, True],
        ):  # fmt: skip
            ends = {"sigma_min": 0.05, "sigma_max": 30.0} if config.pop("bounded") else {}
            if (ends and not levels) or (levels and config["steps_offset"]):
                continue
            yield config | ends | ({levels: True} if levels else {}) | {"prediction_type": kind}

    assert failures("EulerDiscreteScheduler", counted(cases(False)), labels=2e-6, limit=2e-5) == []
    # at sigma = 4096 the peer's x - sigma * eps cancels in float32
    assert failures("EulerDiscreteScheduler", counted(cases(True)), labels=2e-6, limit=1e-4, rounded=True) == []


@pytest.mark.parametrize("kind", KINDS)
def test_euler_churn(kind: str) -> None:
    churn = {"s_churn": 3.0, "s_tmin": 0.1, "s_tmax": 50.0, "s_noise": 1.01, "stochastic": True}
    cases = product(prediction_type=[kind], use_karras_sigmas=[False, True], beta_schedule=BETAS[:2])
    assert failures("EulerDiscreteScheduler", counted(cases, **churn), labels=2e-6, limit=2e-5) == []


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_euler_ancestral(kind: str) -> None:
    cases = product(timestep_spacing=SPACINGS, steps_offset=[0, 1], beta_schedule=BETAS[:2], prediction_type=[kind])
    assert failures("EulerAncestralDiscreteScheduler", counted(cases, stochastic=True), limit=2e-5) == []


DPM_KINDS = (*KINDS, "flow_prediction")
ALGORITHMS = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")


@pytest.mark.parametrize(
    ("algorithm", "kind"), [(a, k) for a in ALGORITHMS for k in DPM_KINDS if k != "flow_prediction" or a.endswith("++")]
)
def test_dpm_solver_options(algorithm: str, kind: str) -> None:
    """Every option of the solver, on spacings and flow levels."""

    def cases():
        for config in product(
            solver_order=[1, 2, 3], solver_type=["midpoint", "heun"], lower_order_final=[True, False],
            euler_at_final=[False, True], final_sigmas_type=["zero", "sigma_min"], timestep_spacing=SPACINGS,
        ):  # fmt: skip
            if config["final_sigmas_type"] == "zero" and not algorithm.endswith("++"):
                continue  # both reject
            if algorithm.startswith("sde") and config["solver_order"] == 3:
                continue  # a deviation
            flow = {"use_flow_sigmas": True, "flow_shift": 3.0} if kind == "flow_prediction" else STABLE
            yield config | flow | {"algorithm_type": algorithm, "prediction_type": kind}

    assert failures("DPMSolverMultistepScheduler", counted(cases(), stochastic=True), limit=5e-5) == []


@pytest.mark.parametrize("levels", ["use_karras_sigmas", "use_lu_lambdas", "use_exponential_sigmas", "use_beta_sigmas"])
def test_dpm_levels(levels: str) -> None:
    """Sigma schedules; where timesteps differ on purpose by less than one, the network does not look at them."""
    cases = [
        {levels: True, "final_sigmas_type": final, "solver_order": order, "prediction_type": kind} | STABLE
        for final, order, kind in itertools.product(("zero", "sigma_min"), (1, 2, 3), KINDS)
        if not (final == "sigma_min" and order == 3)  # NaN in the peer, whose last step has no length
    ]
    exact = levels in ("use_karras_sigmas", "use_lu_lambdas")
    turns = [
        (n, c, {"model": network if exact else timeless})
        for c, n in zip(cases, itertools.cycle((4, 11, 25)), strict=False)
    ]
    bound = {"labels": 1e-6} if exact else {"labels": 1.1 / 998}
    assert failures("DPMSolverMultistepScheduler", turns, limit=2e-5, **bound) == []


def test_dpm_thresholding_offsets_clipped_lambda_and_learned_variance() -> None:
    cases = product(
        thresholding=[True], sample_max_value=[3.0], algorithm_type=["dpmsolver++", "dpmsolver"],
        timestep_spacing=SPACINGS,
        final_sigmas_type=["sigma_min"], steps_offset=[0, 1], prediction_type=KINDS,
    )  # fmt: skip
    assert failures("DPMSolverMultistepScheduler", counted(c | STABLE for c in cases), limit=5e-5) == []
    cosine = product(
        beta_schedule=["squaredcos_cap_v2"], lambda_min_clipped=[-5.1], timestep_spacing=SPACINGS, prediction_type=KINDS
    )
    assert failures("DPMSolverMultistepScheduler", counted(cosine), limit=2e-5) == []
    learned = product(variance_type=["learned", "learned_range"])  # the peer splits only noise predictions
    assert failures("DPMSolverMultistepScheduler", counted(learned, doubled=True)) == []
    zero = product(rescale_betas_zero_snr=[True], prediction_type=["sample", "v_prediction"], timestep_spacing=SPACINGS)
    assert failures("DPMSolverMultistepScheduler", counted(zero), limit=2e-5) == []


def test_dpm_dynamic_shift() -> None:
    ours, theirs = pair(
        "DPMSolverMultistepScheduler",
        use_flow_sigmas=True,
        use_dynamic_shifting=True,
        prediction_type="flow_prediction",
    )
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(9, mu=1.2)
    assert difference(ours.sigmas, theirs.sigmas) < 1e-6
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    assert ours.plan(9, mu=1.2).grid == ours.plan().grid


CUSTOM = (
    ("DDPMScheduler", {"timesteps": [900, 500, 10]}, {}),
    ("EulerDiscreteScheduler", {"timesteps": [999, 500, 10]}, {}),
    ("EulerDiscreteScheduler", {"sigmas": [14.6, 6.3, 3.8, 2.2, 1.3, 0.86, 0.56, 0.38, 0.23, 0.11, 0.0]}, {}),
    (
        "EulerDiscreteScheduler",
        {"sigmas": [10.0, 5.0, 1.0, 0.0]},
        {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"},
    ),
    ("DPMSolverMultistepScheduler", {"timesteps": [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]}, {}),
)


@pytest.mark.parametrize(("name", "schedule", "options"), CUSTOM)
def test_custom_schedules(name: str, schedule: dict, options: dict) -> None:
    from tests.schedulers.oracle import planned, protocol

    ours, theirs = pair(name, **STABLE, **options)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(**schedule)
    assert difference(ours.timesteps.float(), theirs.timesteps.float()) < 1e-6
    draw = [{"generator": seeded()} if name == "DDPMScheduler" else {} for _ in range(3)]
    mine, reference = protocol(ours, **draw[0]), protocol(theirs, **draw[1])
    assert max(map(difference, mine, reference)) < 1e-5
    assert difference(planned(ours.plan(**schedule), **draw[2]), mine[-1]) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_tables_and_noising(name: str) -> None:
    """betas, alphas_cumprod, add_noise and get_velocity, before and after set_timesteps."""
    for schedule, zero in itertools.product(BETAS, (False, True)):
        extra = {"rescale_betas_zero_snr": zero} if name != "PNDMScheduler" else {}
        ours, theirs = pair(name, beta_schedule=schedule, **extra)
        for table in ("betas", "alphas", "alphas_cumprod"):
            assert torch.equal(getattr(ours, table), getattr(theirs, table)), table
        x, noise = first_noise(), torch.randn(SHAPE, generator=seeded(3))
        if name != "DPMSolverMultistepScheduler" and name != "PNDMScheduler":
            t = theirs.timesteps[[100, 900]]
            assert difference(ours.add_noise(x, noise, t), theirs.add_noise(x, noise, t)) < 1e-6
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(20)
        t = theirs.timesteps[[3, 15]]
        assert difference(ours.add_noise(x, noise, t), theirs.add_noise(x, noise, t)) < 1e-6
        one = theirs.timesteps[4:5]
        assert difference(ours.add_noise(x, noise, one), theirs.add_noise(x, noise, one)) < 1e-6
        if hasattr(theirs, "get_velocity") and not name.startswith("Euler"):
            assert difference(ours.get_velocity(x, noise, t), theirs.get_velocity(x, noise, t)) < 1e-6


def test_trained_betas() -> None:
    betas = torch.linspace(0.001, 0.02, 200).tolist()
    for name in NAMES:
        ours, theirs = pair(name, trained_betas=betas, num_train_timesteps=200)
        assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
        assert len(ours) == len(theirs) == 200


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
def test_scaled_input(name: str) -> None:
    ours, theirs = pair(name, **STABLE)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(7)
    for t in theirs.timesteps:
        assert difference(ours.scale_model_input(first_noise(), t), theirs.scale_model_input(first_noise(), t)) < 1e-6
        theirs._step_index = None


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"]
)
def test_half_precision_stays_close(name: str) -> None:
    """In bfloat16 the peer rounds inside the step in some classes; agreement is that of the format."""
    from tests.schedulers.oracle import protocol

    ours, theirs = pair(name, **STABLE)
    results = []
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(8)
        x = (first_noise() * float(scheduler.init_noise_sigma)).bfloat16()
        options = {"generator": seeded()} if name == "DDPMScheduler" else {}
        results.append(protocol(scheduler, x=x, **options)[-1])
    assert results[0].dtype == torch.bfloat16
    assert difference(*results) < 0.05
