"""Pipeline files written for diffusers: on the peer and here, unchanged, with equal pictures."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

import langevin
from langevin.core.errors import ConfigError, InputError
from tests.compat.conftest import FILES, ours, theirs
from tests.pipelines import tiny
from tests.pipelines.conftest import quiet

PROMPTS = ["a cat", "a big dog"]


def noise(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def over(cls, pipe, **parts):
    """Build a pipeline class over another one's components."""
    return quiet(cls(**{**pipe.components, "image_encoder": None, "requires_safety_checker": False, **parts}))


def gap(one, other) -> float:
    """Return the largest difference of two batches of pictures in [0, 1]."""
    one, other = (np.stack([np.asarray(image, dtype=np.float64) for image in images]) for images in (one, other))
    return float(np.abs(one - other).max())


@pytest.fixture
def loops(sd_folder, peer_sd):
    """The pipeline with the loop written out, the peer's and ours."""
    peer = quiet(theirs("own_loop").FadingGuidancePipeline(**peer_sd.components, requires_safety_checker=False))
    return peer, ours(sd_folder, "own_loop", requires_safety_checker=False)


def drawn(pipes, scheduler: str, *, eta: float = 0.0, seeds: list[int] | None = None, **call):
    made = []
    for library, pipe in zip((diffusers, langevin), pipes, strict=True):
        pipe.scheduler = tiny.scheduler(library, scheduler)
        settings = {"num_inference_steps": 4, "output_type": "np", **call}
        settings["generator"] = noise() if seeds is None else [noise(seed) for seed in seeds]
        made.append(pipe(PROMPTS, eta=eta, **settings).images)
    return made


@pytest.mark.parity
@pytest.mark.parametrize("scheduler", tiny.SCHEDULERS)
def test_a_loop_of_its_own_draws_the_peers_pictures(loops, scheduler) -> None:
    assert gap(*drawn(loops, scheduler, guidance_rescale=0.3, negative_prompt=["a dog", "t"])) <= 1e-4


@pytest.mark.parity
def test_options_of_a_loop_of_its_own(loops) -> None:
    assert gap(*drawn(loops, "DDIMScheduler", eta=0.7, num_images_per_prompt=2)) <= 1e-4
    assert gap(*drawn(loops, "EulerDiscreteScheduler", height=16, width=32, clip_skip=1)) <= 1e-4
    assert gap(*drawn(loops, "DDIMScheduler", guidance_scale=1.0)) <= 1e-4
    assert gap(*drawn(loops, "DDIMScheduler", eta=0.5, seeds=[1, 2])) <= 1e-4
    plain = drawn(loops, "DDIMScheduler")[1]
    assert gap(plain, drawn(loops, "DDIMScheduler", fade=0.0)[1]) > 1e-3, "the file's own code decides"


def test_a_loop_of_its_own_has_the_documented_properties_and_callbacks(loops) -> None:
    _, pipe = loops
    pipe.scheduler = tiny.scheduler(langevin, "DDIMScheduler")
    seen = []

    def callback(inner, step, timestep, tensors):
        seen.append((step, inner.guidance_scale, inner.num_timesteps, inner.do_classifier_free_guidance))
        inner._interrupt = step == 1
        return tensors

    pipe(PROMPTS, num_inference_steps=4, guidance_scale=3.0, callback_on_step_end=callback, generator=noise())
    assert seen == [(0, 3.0, 4, True), (1, 3.0, 4, True)]
    seen.clear()
    cutoff = langevin.SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=9)
    pipe(PROMPTS, num_inference_steps=4, callback_on_step_end=cutoff, generator=noise())
    assert pipe.interrupt is False, "a new call begins uninterrupted"
    with pytest.raises(InputError, match="latents"):
        pipe(PROMPTS, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["latent"])


@pytest.mark.parity
def test_old_files_draw_the_peers_pictures(sd_folder, peer_sd) -> None:
    options = {"prompts": PROMPTS, "weights": [1.0, 2.0], "output_type": "np", "steps": 3}
    made = []
    for library, build in ((diffusers, None), (langevin, ours)):
        parts = {"scheduler": tiny.scheduler(library, "PNDMScheduler", steps_offset=0)}
        if build is None:
            known = {**peer_sd.components, **parts}
            pipe = theirs("old_style").BlendedPromptsPipeline(**known, requires_safety_checker=False)
        else:
            pipe = ours(sd_folder, "old_style", **parts, requires_safety_checker=False)
        assert pipe.scheduler.config.steps_offset == 1 and pipe.learns_words and pipe.vae_scale_factor == 2
        with pytest.warns(FutureWarning, match="num_inference_steps"):
            made.append(quiet(pipe)(**options, generator=noise()))
        assert quiet(pipe)(**{**options, "output_type": "pil"}, generator=noise()).images[0].size == (8, 8)
    assert gap(made[0].images, made[1].images) <= 1e-4
    assert made[1]["weights"] == [1.0, 2.0]


@pytest.mark.parity
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"])
def test_a_loop_from_a_picture_draws_the_peers_pictures(sd_folder, peer_sd, scheduler) -> None:
    cls = theirs("picture_loop").RepeatedPicturePipeline
    pipes = quiet(cls(**peer_sd.components, requires_safety_checker=False)), ours(sd_folder, "picture_loop")
    made = []
    for library, pipe in zip((diffusers, langevin), pipes, strict=True):
        options = {} if scheduler != "HeunDiscreteScheduler" else {"timestep_spacing": "linspace"}
        pipe.scheduler = tiny.scheduler(library, scheduler, **options)
        made.append(pipe(PROMPTS, image=tiny.picture(), strength=0.6, generator=noise(), output_type="np"))
    assert gap(*made) <= 1e-4


@pytest.fixture(scope="module")
def clip():
    """A random CLIP model for the tests' tokenizer, and its picture processor."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(8)
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**text, "image_size": 32, "patch_size": 8}
    ids = {"vocab_size": 194, "bos_token_id": 192, "eos_token_id": 193, "pad_token_id": 193}
    config = CLIPConfig(text_config={**text, **ids}, vision_config=vision, projection_dim=16)
    return {"clip_model": CLIPModel(config).eval(), "feature_extractor": tiny.feature_extractor()}


@pytest.mark.parity
def test_components_that_the_caller_brings(sd_folder, peer_sd, clip) -> None:
    known = {name: peer_sd.components[name] for name in ("vae", "text_encoder", "tokenizer", "unet")}
    pipes = (
        quiet(
            theirs("clip_guided").GuidedByCLIP(**known, **clip, scheduler=tiny.scheduler(diffusers, "DDIMScheduler"))
        ),
        ours(sd_folder, "clip_guided", **clip, scheduler=tiny.scheduler(langevin, "DDIMScheduler")),
    )
    options = {"num_inference_steps": 3, "output_type": "np"}
    made = [pipe(PROMPTS, generator=noise(), **options).images for pipe in pipes]
    assert gap(*made) <= 1e-4
    without = pipes[1](PROMPTS, generator=noise(), clip_guidance_scale=0.0, **options).images
    assert gap(made[1], without) > 1e-3, "the model that the caller brought has an effect"
    assert set(pipes[1].components) == {*known, *clip, "scheduler"}


def test_missing_components_are_named(sd_folder) -> None:
    with pytest.raises(ConfigError, match="clip_model, feature_extractor, which GuidedByCLIP needs"):
        ours(sd_folder, "clip_guided")
    with pytest.raises(ConfigError, match="did you mean 'clip_model'"):
        ours(sd_folder, "clip_guided", clip_modle=1)


@pytest.mark.parity
def test_the_documented_one_step_pipeline(tmp_path) -> None:
    unet = tiny.pixel_unet(diffusers)
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "cifar")
    made = []
    for pipe in (
        theirs("one_step_unet").UnetSchedulerOneForwardPipeline(unet, diffusers.DDPMScheduler()),
        ours(tmp_path / "cifar", "one_step_unet"),
        type(ours(tmp_path / "cifar", "one_step_unet")).from_pretrained(tmp_path / "cifar", use_safetensors=True),
    ):
        torch.manual_seed(0)
        with torch.no_grad():
            model_output, step = [], pipe.scheduler.step

            def recorded(output, timestep, sample, step=step, kept=model_output):
                kept.append((output, sample))
                return step(output, timestep, sample, generator=noise())

            pipe.scheduler.step = recorded
            made.append((pipe(), *model_output[0]))
    for other in made[1:]:
        assert max(float((a - b).abs().max()) for a, b in zip(made[0], other, strict=True)) <= 1e-4


def test_a_file_sees_this_library_whatever_the_process_knows_as_diffusers(sd_folder) -> None:
    pipe = ours(sd_folder, "own_loop")
    assert isinstance(pipe, langevin.StableDiffusionPipeline)
    assert not isinstance(pipe, diffusers.DiffusionPipeline)
    assert type(pipe.unet) is langevin.UNet2DConditionModel
    assert "own_loop.py" in type(pipe).__call__.__doc__, "the example stands in the help"


def test_saved_with_its_code(sd_folder, tmp_path) -> None:
    pipe = ours(sd_folder, "own_loop", requires_safety_checker=False)
    pipe.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "own_loop.py").read_bytes() == (FILES / "own_loop.py").read_bytes()
    with pytest.raises(ConfigError, match="nothing was run"):
        langevin.DiffusionPipeline.from_pretrained(tmp_path / "saved")
    again = langevin.DiffusionPipeline.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert type(again) is type(pipe)
    plain = langevin.StableDiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert type(plain) is langevin.StableDiffusionPipeline, "a class that is asked for needs none of the code"


def test_a_call_around_the_librarys_own(pipe) -> None:
    class Twice(langevin.StableDiffusionPipeline):
        def __call__(self, prompt, **options):
            return [super(Twice, self).__call__(prompt, **options).images[0] for _ in range(2)]

    twice = quiet(Twice(**pipe.components, requires_safety_checker=False))
    options = {"num_inference_steps": 2, "seed": 3, "output_type": "np"}
    one, two = twice("a cat", **options)
    assert np.array_equal(one, two) and np.array_equal(one, pipe("a cat", **options).images[0])
    with pytest.raises(ConfigError, match="did you mean 'guidance_scale'"):
        twice("a cat", guidance_scal=3.0)
