"""Components of a living pipeline: shared, replaced, compiled, moved; foreign schedulers; memory switches."""

from __future__ import annotations

from dataclasses import dataclass

import diffusers
import numpy as np
import pytest
import torch

import langevin
from langevin import StableDiffusionPipeline
from langevin.core.errors import ConfigError, InputError, MissingDependencyError
from langevin.core.imports import is_available
from langevin.pipelines.base import DiffusionPipeline
from tests.pipelines import tiny

CALL = {"prompt": "a cat", "num_inference_steps": 4, "output_type": "np", "seed": 1}


def test_components_are_shared_with_another_pipeline(pipe) -> None:
    other = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    assert other.unet is pipe.unet and other.scheduler is pipe.scheduler
    other.set_progress_bar_config(disable=True)
    assert np.array_equal(other(**CALL).images, pipe(**CALL).images)


def test_every_component_can_be_replaced(pipe) -> None:
    before = pipe(**CALL).images
    torch.manual_seed(9)
    pipe.vae = langevin.AutoencoderKL(**tiny.VAE).eval()
    assert not np.array_equal(before, pipe(**CALL).images)
    pipe.scheduler = langevin.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    assert pipe.config.scheduler == ["diffusers", "EulerDiscreteScheduler"]
    assert pipe.components["vae"] is pipe.vae


@pytest.mark.parity
def test_the_tiny_autoencoder(pipe, peer_sd, tmp_path) -> None:
    widths = {"encoder_block_out_channels": (16, 16), "decoder_block_out_channels": (16, 16)}
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    diffusers.AutoencoderTiny(**widths, **blocks).save_pretrained(tmp_path)
    pictures = []
    for library, one in ((diffusers, peer_sd), (langevin, pipe)):
        parts = {**one.components, "vae": library.AutoencoderTiny.from_pretrained(tmp_path)}
        parts["scheduler"] = tiny.scheduler(library, "DDIMScheduler")
        small = type(one)(**parts, requires_safety_checker=False)
        small.set_progress_bar_config(disable=True)
        call = {"num_inference_steps": 2, "output_type": "np"}
        pictures.append(small("a cat", generator=torch.Generator().manual_seed(0), **call).images)
    assert pictures[0].shape == pictures[1].shape == (1, 16, 16, 3)
    assert np.abs(pictures[0] - pictures[1]).max() <= 1e-4


def test_a_compiled_network(pipe, tmp_path) -> None:
    before = pipe(**CALL).images
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    assert np.abs(pipe(**CALL).images - before).max() <= 1e-5
    assert pipe.config.unet == ["diffusers", "UNet2DConditionModel"]
    pipe.save_pretrained(tmp_path)
    assert type(StableDiffusionPipeline.from_pretrained(tmp_path).unet).__name__ == "UNet2DConditionModel"


@dataclass
class Answer:
    """What the documented traced module returns."""

    sample: torch.Tensor


class Plain(torch.nn.Module):
    """A module with nothing but `in_channels`, `device` and `forward`, as the documentation shows."""

    def __init__(self, unet) -> None:
        super().__init__()
        self.in_channels = unet.config.in_channels
        self.device = unet.device
        self.__dict__["unet"] = unet

    def forward(self, latent_model_input, t, encoder_hidden_states):
        return Answer(self.unet(latent_model_input, t, encoder_hidden_states, return_dict=False)[0])


def test_a_plain_module(pipe) -> None:
    pipe.suits_processor = False  # which changes layers of networks that it finds
    before = pipe(**CALL).images
    pipe.unet = Plain(pipe.unet)
    assert np.array_equal(pipe(**CALL).images, before)


def test_a_traced_network(pipe) -> None:
    unet = pipe.unet
    inputs = (torch.randn(2, 4, 8, 8), torch.rand(1) * 999, torch.randn(2, 77, tiny.WIDTH))

    class Traceable(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = unet

        def forward(self, sample, timestep, encoder_hidden_states):
            return self.inner(sample, timestep, encoder_hidden_states, return_dict=False)

    before = pipe(**CALL).images
    with torch.no_grad():
        traced = torch.jit.trace(Traceable(), inputs)
    plain = Plain(unet)
    plain.__dict__["unet"] = lambda sample, t, text, return_dict: traced(sample, t.float().reshape(1), text)
    pipe.unet = plain
    assert np.abs(pipe(**CALL).images - before).max() <= 1e-4


@pytest.mark.parity
@pytest.mark.parametrize("name", [*tiny.SCHEDULERS, "HeunDiscreteScheduler", "LMSDiscreteScheduler"])
def test_a_foreign_scheduler_serves_and_stays_as_it_was(pipe, peer_sd, name) -> None:
    pipe.scheduler = tiny.scheduler(diffusers, name)
    peer_sd.scheduler = tiny.scheduler(diffusers, name)
    state = {k: str(v) for k, v in vars(pipe.scheduler).items()}
    call = {"prompt": ["a cat", "a dog"], "num_inference_steps": 4, "output_type": "np"}
    ours = pipe(**call, generator=torch.Generator().manual_seed(2)).images
    theirs = peer_sd(**call, generator=torch.Generator().manual_seed(2)).images
    assert np.abs(ours - theirs).max() <= 1e-4
    assert {k: str(v) for k, v in vars(pipe.scheduler).items()} == state


def test_a_foreign_scheduler_must_take_what_is_asked(pipe) -> None:
    pipe.scheduler = tiny.scheduler(diffusers, "DDIMScheduler")
    with pytest.raises(ConfigError, match="takes no own `timesteps`"):
        pipe("a", timesteps=[500, 1])
    before = pipe(**CALL).images
    assert not np.array_equal(before, pipe(**CALL, eta=1.0).images), "eta reaches a foreign DDIM"


def test_scheduler_options_are_corrected_on_a_copy(our_sd, caplog_ours) -> None:
    given = langevin.DDIMScheduler(**tiny.TABLE)
    pipe = StableDiffusionPipeline(**{**our_sd.components, "scheduler": given}, requires_safety_checker=False)
    assert (pipe.scheduler.config.steps_offset, pipe.scheduler.config.clip_sample) == (1, False)
    assert (given.config.steps_offset, given.config.clip_sample) == (0, True)
    assert "steps_offset=0, clip_sample=True" in caplog_ours.text
    assert StableDiffusionPipeline(**pipe.components, requires_safety_checker=False).scheduler is pipe.scheduler


@pytest.mark.parametrize(
    ("args", "kwargs", "dtype"),
    [
        (("cpu", torch.bfloat16), {}, torch.bfloat16),
        ((torch.bfloat16,), {}, torch.bfloat16),
        ((torch.bfloat16, torch.device("cpu")), {"silence_dtype_warnings": True}, torch.bfloat16),
        ((), {"torch_device": "cpu", "torch_dtype": torch.float64}, torch.float64),
        ((), {"device": "cpu"}, torch.float32),
    ],
    ids=str,
)
def test_to_moves_and_casts_in_place(sd_folder, args, kwargs, dtype) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(sd_folder)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.to(*args, **kwargs) is pipe
    assert pipe.dtype == pipe.unet.dtype == pipe.vae.dtype == pipe.text_encoder.dtype == dtype
    assert pipe.device == torch.device("cpu")
    assert np.isfinite(pipe(**CALL).images).all()


def test_to_refuses_contradictions(pipe) -> None:
    with pytest.raises(ConfigError, match="two values for device"):
        pipe.to("cpu", device="meta")
    with pytest.raises(ConfigError, match="two values for dtype"):
        pipe.to(dtype=torch.float32, torch_dtype=torch.float16)
    with pytest.raises(ConfigError, match="two values for device: cpu and meta"):
        pipe.to("cpu", "meta")
    with pytest.raises(ConfigError, match="did you mean 'dtype'"):
        pipe.to(dtyp=torch.float16)


@pytest.mark.parametrize("device", [0, "cuda", "cuda:1", "mps"])
def test_to_names_the_devices_that_are_here(pipe, monkeypatch, device) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"finds no such (CUDA|MPS) device here; there is 'cpu'"):
        pipe.to(device)
    with pytest.raises(InputError, match="did you mean 'cuda'"):
        pipe.to(device="cuba")


def test_memory_switches_keep_the_picture(pipe) -> None:
    before = pipe(**CALL, num_images_per_prompt=2).images
    switches = ["attention_slicing", "vae_slicing", "vae_tiling"]
    for name in switches:
        getattr(pipe, f"enable_{name}")()
    pipe.enable_attention_slicing(1)
    after = pipe(**CALL, num_images_per_prompt=2).images
    for name in switches:
        getattr(pipe, f"disable_{name}")()
    assert np.abs(before - after).max() <= 1e-4
    assert np.abs(before - pipe(**CALL, num_images_per_prompt=2).images).max() <= 1e-6


def test_switches_that_nothing_offers_are_errors(pipe) -> None:
    pipe.vae = torch.nn.Identity()
    with pytest.raises(ConfigError, match="No component of this StableDiffusionPipeline offers `enable_slicing`"):
        pipe.enable_vae_slicing()
    pipe.vae = None
    with pytest.raises(ConfigError, match="no vae"):
        pipe.enable_vae_slicing()
    if not is_available("xformers"):
        with pytest.raises(MissingDependencyError, match="xformers"):
            pipe.enable_xformers_memory_efficient_attention()
        pipe.disable_xformers_memory_efficient_attention()


def test_progress_bar(pipe, capsys) -> None:
    with pytest.raises(ConfigError, match="either"):
        pipe.progress_bar()
    pipe.set_progress_bar_config(desc="drawing")
    pipe(**CALL)
    assert "drawing: 100%" in capsys.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    assert list(pipe.progress_bar([1, 2])) == [1, 2]
    assert capsys.readouterr().err == ""


class Doubler(DiffusionPipeline):
    """A pipeline of a user."""

    _optional_components = ("extra",)

    def __init__(self, unet, scheduler, extra=None, gain: float = 2.0) -> None:
        self.register_modules(unet=unet, scheduler=scheduler, extra=extra)
        self.register_to_config(gain=gain)

    def __call__(self, x: float) -> float:
        return self.config.gain * x


def test_a_pipeline_of_a_user_saves_and_loads(tmp_path) -> None:
    own = Doubler(tiny.pixel_unet(langevin), langevin.DDPMScheduler(), gain=3.0)
    own.save_pretrained(tmp_path)
    again = Doubler.from_pretrained(tmp_path)
    assert again(2.0) == 6.0 and again.extra is None and again.unet.config.sample_size == 8
    assert Doubler.from_pretrained(tmp_path, gain=1.0)(2.0) == 2.0
    with pytest.raises(ConfigError, match="did you mean 'gain'"):
        Doubler.from_pretrained(tmp_path, gian=1.0)


def test_pictures_from_arrays() -> None:
    images = DiffusionPipeline.numpy_to_pil(np.ones((2, 4, 6, 3), dtype=np.float32))
    assert [image.size for image in images] == [(6, 4)] * 2
