"""The documented protocol: user loops, files, configurations carried between classes, errors."""

from __future__ import annotations

import copy
import json
import threading

import pytest
import torch

import langevin
from langevin.core.errors import ConfigError, InputError
from langevin.schedulers.base import KarrasDiffusionSchedulers, SchedulerMixin, SchedulerOutput
from tests.schedulers.oracle import NAMES, SHAPE, STABLE, first_noise, network, peer, planned, protocol, seeded

PNDM_FILE = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.8.0.dev0", "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "clip_sample": False, "num_train_timesteps": 1000, "set_alpha_to_one": False,
    "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None,
}  # fmt: skip


def make(name: str, **config):
    return getattr(langevin, name)(**config)


def test_the_documented_loop() -> None:
    scheduler = langevin.DDPMScheduler()
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.tolist() == list(range(980, -1, -20))
    input = torch.randn((1, 3, 4, 4))
    for t in scheduler.timesteps:
        with torch.no_grad():
            noisy_residual = network(input, t)
        previous_noisy_sample = scheduler.step(noisy_residual, t, input).prev_sample
        input = previous_noisy_sample
    assert torch.isfinite(input).all()


def test_the_documented_latent_loop() -> None:
    for name in NAMES:
        scheduler = make(name, **STABLE)
        latents = torch.randn(SHAPE, generator=seeded()) * scheduler.init_noise_sigma
        scheduler.set_timesteps(5)
        for t in scheduler.timesteps:
            latent_model_input = torch.cat([latents] * 2)
            latent_model_input = scheduler.scale_model_input(latent_model_input, timestep=t)
            noise_pred = network(latent_model_input, t)
            uncond, text = noise_pred.chunk(2)
            latents = scheduler.step(uncond + 7.5 * (text - uncond), t, latents).prev_sample
        assert torch.isfinite(latents).all()


def test_one_step_without_a_schedule() -> None:
    """The documentation's first example steps an untouched scheduler at timestep 2, and at 1."""
    x = first_noise()
    for name in NAMES:
        result = make(name).step(model_output=network(x, 2), timestep=2, sample=x)
        assert isinstance(result, SchedulerOutput) and result.prev_sample.shape == x.shape
        assert make(name).step(network(x, 1), 1, x).prev_sample.shape == x.shape


@pytest.mark.parametrize("name", NAMES)
def test_training_table_before_a_schedule(name: str) -> None:
    scheduler = make(name)
    assert scheduler.num_inference_steps is None and len(scheduler) == 1000
    assert scheduler.timesteps[0] == 999 and scheduler.timesteps[-1] == 0
    if name != "PNDMScheduler":
        assert scheduler.timesteps.tolist() == list(range(999, -1, -1))
    assert scheduler.order == 1 and scheduler.begin_index is None and scheduler.step_index is None


def test_results_as_tuples() -> None:
    for name in NAMES:
        scheduler = make(name)
        scheduler.set_timesteps(4)
        x, t = first_noise(), scheduler.timesteps[0]
        result = scheduler.step(network(x, t), t, x, return_dict=False)
        assert isinstance(result, tuple) and len(result) == len(
            peer_result(name, x)
        )  # as many entries as the documentation says
        full = scheduler.step(network(x, t), t, x)
        assert full.pred_original_sample.shape == x.shape and full["prev_sample"] is full[0]


def peer_result(name: str, x: torch.Tensor) -> tuple:
    scheduler = peer(name)()
    scheduler.set_timesteps(4)
    return scheduler.step(network(x, 0), scheduler.timesteps[0], x, return_dict=False)


def test_options_of_a_step_may_change_within_a_run() -> None:
    """What is remembered stays, and each step is that of a run which has its options throughout."""
    changing, chosen = make("LMSDiscreteScheduler", **STABLE), (4, 4, 3, 2)
    changing.set_timesteps(5)
    remembered, x = [], first_noise()
    for k, (t, order) in enumerate(zip(changing.timesteps, chosen, strict=False)):
        output = network(x, t)
        remembered.insert(0, output)
        row = changing.plan(5, order=order).rows[k]
        wanted = row.sample * x + sum(c * eps for c, eps in zip(row.outputs, remembered, strict=False))
        x = changing.step(output, t, x, order=order).prev_sample
        assert torch.allclose(x, wanted, atol=1e-5)
    with pytest.raises(InputError, match="combines 4 predictions, but 2 are known"):
        changing.step(x, changing.timesteps[4], x, order=4)


def test_tables_of_many_options_are_forgotten() -> None:
    scheduler = make("DDIMScheduler")
    scheduler.set_timesteps(2)
    t, x = scheduler.timesteps[0], first_noise()
    ends = [scheduler.step(x, t, x, eta=k / 100, variance_noise=x).prev_sample for k in range(100)]
    assert len(scheduler._tables) < 40
    assert torch.equal(scheduler.step(x, t, x, eta=0.01, variance_noise=x).prev_sample, ends[1])


@pytest.mark.parity
def test_alpha_at_the_end_of_a_run() -> None:
    for name in ("DDIMScheduler", "PNDMScheduler"):
        for one in (True, False):
            ours, theirs = make(name, set_alpha_to_one=one), peer(name)(set_alpha_to_one=one)
            assert torch.allclose(ours.final_alpha_cumprod, theirs.final_alpha_cumprod, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_set_num_inference_steps_is_the_same(name: str) -> None:
    one, two = make(name), make(name)
    one.set_timesteps(9)
    two.set_num_inference_steps(9)
    assert one.timesteps.tolist() == two.timesteps.tolist() and two.num_inference_steps == 9


@pytest.mark.parametrize("name", NAMES)
def test_starting_inside_the_schedule(name: str) -> None:
    """By position, by timestep, and through `part`: the same run, without history from before."""
    results = []
    for by in ("position", "timestep", "plan"):
        scheduler = make(name, **STABLE)
        scheduler.set_timesteps(10)
        x = first_noise()
        if by == "plan":
            results.append(planned(scheduler.plan(10).part(4), x=x, generator=seeded()))
            continue
        if by == "position":
            scheduler.set_begin_index(4)
            assert scheduler.begin_index == 4
        draw = {"generator": seeded()} if name in ("DDPMScheduler", "EulerAncestralDiscreteScheduler") else {}
        for t in scheduler.timesteps[4:]:
            x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x, **draw).prev_sample
        assert scheduler.step_index == len(scheduler.timesteps)
        results.append(x)
    assert torch.equal(results[0], results[1]) and torch.allclose(results[0], results[2], rtol=1e-6, atol=1e-6)


def test_order_of_look_ups() -> None:
    """A stateless sampler may be stepped in any order; numbers, tensors and float32 roundings find their place."""
    scheduler = langevin.DDIMScheduler()
    scheduler.set_timesteps(20)
    x = first_noise()
    a = scheduler.step(network(x, 500), 500, x).prev_sample
    scheduler.step(network(x, 100), torch.tensor(100), x)
    assert torch.equal(scheduler.step(network(x, 500), torch.tensor([500]), x).prev_sample, a)
    euler = langevin.EulerDiscreteScheduler(use_karras_sigmas=True)
    euler.set_timesteps(20)
    for t in euler.timesteps:
        euler.step(network(x, t), float(t), x)
    assert euler.previous_timestep(euler.timesteps[3]) == pytest.approx(float(euler.timesteps[4]))
    assert scheduler.previous_timestep(500) == 450 and scheduler.previous_timestep(0) == -1
    assert langevin.DDPMScheduler().previous_timestep(7) == 6


def test_errors_of_positions_and_timesteps() -> None:
    scheduler = langevin.EulerDiscreteScheduler()
    scheduler.set_timesteps(10)
    x = first_noise()
    with pytest.raises(InputError, match="nearest is 555"):
        scheduler.step(x, 550, x)
    with pytest.raises(InputError, match="single number"):
        scheduler.step(x, torch.tensor([1, 2]), x)
    with pytest.raises(InputError, match="positions 0 to 9"):
        scheduler.set_begin_index(10)
    with pytest.raises(InputError, match="needs the timestep"):
        scheduler.scale_model_input(x)
    with pytest.raises(InputError, match=r"0 \.\.\. 999"):
        langevin.DDPMScheduler().add_noise(x, x, torch.tensor([1000]))


@pytest.mark.parametrize("name", NAMES)
def test_errors_of_schedules_and_options(name: str) -> None:
    scheduler = make(name)
    with pytest.raises(InputError, match="only one of"):
        scheduler.set_timesteps(5, timesteps=[900, 10])
    with pytest.raises(InputError, match="needs num_inference_steps"):
        scheduler.set_timesteps()
    with pytest.raises(InputError, match="descend"):
        scheduler.set_timesteps(sigmas=[1.0, 2.0])
    with pytest.raises(InputError, match="in \\[0, 999\\]"):
        scheduler.set_timesteps(timesteps=[1000, 3])
    with pytest.raises(ConfigError, match="does not accept"):
        scheduler.plan(5, et=0.5)
    with pytest.raises(InputError, match="scaled_linear"):
        make(name, beta_schedule="scaledlinear")
    with pytest.raises(InputError, match="v_prediction"):
        make(name, prediction_type="v_predicton")
    for wrong in ({"beta_start": "x"}, {"beta_end": -0.1}, {"num_train_timesteps": -1}):
        with pytest.raises(InputError, match=f"`{next(iter(wrong))}` is .*; it must be"):
            make(name, **wrong)
    with pytest.raises(ConfigError, match="beta_start"):
        make(name, beta_strat=0.1)
    scheduler.set_timesteps(3)
    if name in ("DDPMScheduler", "DDIMScheduler"):
        with pytest.raises(InputError, match="only 1000"):
            scheduler.set_timesteps(1001)


def test_errors_of_single_classes() -> None:
    for name in ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler"):
        with pytest.raises(ConfigError, match="exclude each other"):
            make(name, use_karras_sigmas=True, use_beta_sigmas=True)
        with pytest.raises(InputError, match="karras"):
            make(name, use_karras_sigmas=True).set_timesteps(timesteps=[900, 3])
    with pytest.raises(ConfigError, match="sigma_min"):
        make("DPMSolverMultistepScheduler", algorithm_type="dpmsolver")
    with pytest.raises(InputError, match="dynamic"):
        make("DPMSolverMultistepScheduler", use_flow_sigmas=True).set_timesteps(5, mu=1.0)
    with pytest.raises(InputError, match="shape a new schedule"):
        make("DPMSolverMultistepScheduler", use_flow_sigmas=True, use_dynamic_shifting=True).plan(mu=1.0)
    assert make("DPMSolverMultistepScheduler", solver_type="bh2").config.solver_type == "midpoint"
    learned = make("DDPMScheduler", variance_type="learned_range")
    learned.set_timesteps(5)
    x = first_noise()
    with pytest.raises(InputError, match="no channels"):
        learned.step(x, learned.timesteps[0], x)
    with pytest.raises(InputError, match="6 output channels"):
        learned.step(torch.cat([x, x, x], dim=1), learned.timesteps[0], x)


def test_beta_sigmas_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from langevin.core import imports

    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    monkeypatch.setattr(imports, "is_available", lambda name: False)
    with pytest.raises(ImportError, match="pip install scipy"):
        langevin.EulerDiscreteScheduler(use_beta_sigmas=True).set_timesteps(5)


def test_timesteps_may_be_assigned() -> None:
    scheduler = langevin.DDIMScheduler()
    scheduler.set_timesteps(10)
    scheduler.timesteps = scheduler.timesteps[4:]
    assert scheduler.timesteps.tolist() == [500, 400, 300, 200, 100, 0] and scheduler.num_inference_steps == 6
    scheduler.timesteps = scheduler.timesteps.clone()
    assert len(protocol(scheduler)) == 6


def test_replaced_table_is_used() -> None:
    scheduler = langevin.DDIMScheduler(clip_sample=False)
    other = langevin.DDIMScheduler(clip_sample=False, beta_schedule="squaredcos_cap_v2")
    scheduler.alphas_cumprod = other.alphas_cumprod
    for s in (scheduler, other):
        s.set_timesteps(7)
    assert torch.equal(protocol(scheduler)[-1], protocol(other)[-1])


def test_chain_of_configurations() -> None:
    """Keys that a class does not know survive for the next one; defaults that nobody chose do not."""
    scheduler = langevin.PNDMScheduler.from_config(PNDM_FILE)
    assert scheduler.config.clip_sample is False
    for name in (
        "DDIMScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "DPMSolverMultistepScheduler",
    ):
        scheduler = getattr(langevin, name).from_config(scheduler.config)
        assert type(scheduler).__name__ == name
        assert scheduler.config.beta_schedule == "scaled_linear" and scheduler.config.steps_offset == 1
    assert scheduler.config.timestep_spacing == "linspace"
    back = langevin.DDIMScheduler.from_config(scheduler.config)
    assert back.config.clip_sample is False and back.config.set_alpha_to_one is False
    assert back.config.timestep_spacing == "leading"
    other = langevin.DDIMScheduler.from_config(scheduler.config, timestep_spacing="trailing")
    assert other.config.timestep_spacing == "trailing"


def test_keys_of_other_classes_have_no_effect() -> None:
    euler = langevin.EulerDiscreteScheduler(use_karras_sigmas=True, final_sigmas_type="sigma_min")
    ddim = langevin.DDIMScheduler.from_config(euler.config)
    assert ddim.config.use_karras_sigmas is True
    ddim.set_timesteps(5)
    plain = langevin.DDIMScheduler()
    plain.set_timesteps(5)
    assert torch.equal(ddim.sigmas, plain.sigmas)


@pytest.mark.parametrize("name", NAMES)
def test_files_are_read_by_the_peer_and_back(name: str, tmp_path) -> None:
    ours = make(name, **STABLE, prediction_type="v_prediction", steps_offset=1)
    ours.save_pretrained(tmp_path / "ours")
    saved = json.loads((tmp_path / "ours" / "scheduler_config.json").read_text())
    assert saved["_class_name"] == name and "_diffusers_version" in saved
    theirs = peer(name).from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    back = type(ours).from_pretrained(tmp_path / "theirs")
    keys = [k for k in ours.config if not k.startswith("_")]
    assert {k: back.config[k] for k in keys} == {k: ours.config[k] for k in keys} == {k: theirs.config[k] for k in keys}
    (tmp_path / "pipe").mkdir()
    ours.save_pretrained(tmp_path / "pipe" / "scheduler")
    again = langevin.DDIMScheduler.from_pretrained(tmp_path / "pipe", subfolder="scheduler", clip_sample=False)
    assert again.config.prediction_type == "v_prediction" and again.config.clip_sample is False


def test_printed_form() -> None:
    text = repr(langevin.PNDMScheduler.from_config(PNDM_FILE))
    assert text.startswith('PNDMScheduler {\n  "_class_name": "PNDMScheduler",') and '"skip_prk_steps": true' in text


def test_push_to_hub_uploads_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from langevin.core import hub

    seen = {}

    def upload(folder, **options):
        seen.update(options, files=sorted(path.name for path in folder.iterdir()))
        return "address"

    monkeypatch.setattr(hub, "push_folder", upload)
    assert langevin.DDIMScheduler().push_to_hub("my-controlnet-scheduler") == "address"
    assert seen["repo_id"] == "my-controlnet-scheduler" and seen["files"] == ["scheduler_config.json"]


def test_compatibles() -> None:
    classes = langevin.PNDMScheduler().compatibles
    assert {c.__name__ for c in classes} == {m.name for m in KarrasDiffusionSchedulers}
    assert all(issubclass(c, SchedulerMixin) for c in classes)
    assert [m.name for m in KarrasDiffusionSchedulers] == [m.name for m in peer_enum()]


def peer_enum():
    from diffusers.schedulers import KarrasDiffusionSchedulers as theirs

    return theirs


@pytest.mark.parametrize("name", NAMES)
def test_plans_do_not_touch_the_scheduler(name: str) -> None:
    """Threads that share one scheduler object are independent of each other and of its state."""
    scheduler = make(name, **STABLE)
    scheduler.set_timesteps(6)
    before = scheduler.timesteps.tolist()
    counts = [3, 5, 8, 4]
    alone = [planned(make(name, **STABLE).plan(n), generator=seeded(n)) for n in counts]
    together: dict[int, torch.Tensor] = {}

    def work(n: int) -> None:
        together[n] = planned(scheduler.plan(n), generator=seeded(n))

    threads = [threading.Thread(target=work, args=(n,)) for n in counts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(together[n], a) for n, a in zip(counts, alone, strict=True))
    assert scheduler.timesteps.tolist() == before and scheduler.step_index is None


def test_copies_are_independent() -> None:
    scheduler = langevin.DPMSolverMultistepScheduler()
    scheduler.set_timesteps(6)
    x, t = first_noise(), scheduler.timesteps[0]
    twin = copy.deepcopy(scheduler)
    scheduler.step(network(x, t), t, x)
    assert twin.step_index is None and scheduler.step_index == 1


def test_no_generator_leaves_the_global_stream_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for name in NAMES:
        scheduler = make(name)
        scheduler.set_timesteps(3)
        protocol(scheduler)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_list_of_generators_makes_each_image_alone() -> None:
    for name in ("DDPMScheduler", "EulerAncestralDiscreteScheduler"):
        scheduler = make(name)
        scheduler.set_timesteps(5)
        both = protocol(scheduler, generator=[seeded(1), seeded(2)])[-1]
        x = first_noise()[1:] * scheduler.init_noise_sigma
        alone = protocol(scheduler, x=x, generator=seeded(2))[-1]
        assert torch.allclose(both[1:], alone, rtol=1e-5, atol=1e-6)
