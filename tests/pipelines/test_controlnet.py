"""ControlNet pipelines by themselves: what is asked when, how calls are checked, and where we differ from the peer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import langevin
from langevin.core.errors import ConfigError, InputError
from langevin.diffusion.guidance import NEGATIVE, POSITIVE, Branch
from langevin.diffusion.table import Step
from langevin.families.control import DOWN, INSIDE, MIDDLE, Adapter, Control, ControlNet
from langevin.families.denoiser import ModelCall
from langevin.families.sd import Text
from tests.no_reading import NoReading
from tests.pipelines import tiny
from tests.pipelines.controls import controlnets, several
from tests.pipelines.pairs import results, twins

EDGES = [tiny.picture(11), tiny.picture(12), tiny.picture(13), tiny.picture(14)]
CALL = {"prompt": "a cat", "num_inference_steps": 4, "output_type": "np", "seed": 5}


@pytest.fixture
def build(our_sd):
    """Return a function from a task's name, a number of ControlNets and options to a pipeline of this library."""

    def made(task: str = "", count: int = 1, **options):
        nets = [controlnets(seed=k, **options)[1] for k in range(count)]
        cls = getattr(langevin, f"StableDiffusionControlNet{task}Pipeline")
        pipe = cls(**our_sd.components, controlnet=nets if count > 1 else nets[0], requires_safety_checker=False)
        pipe.scheduler = tiny.scheduler(langevin, "DDIMScheduler")
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return made


class Counted:
    """Counts the rows of every call of a network and hands the call on."""

    def __init__(self, net) -> None:
        self.net, self.rows, self.config = net, [], net.config

    def __call__(self, sample, *args, **kwargs):
        self.rows.append(len(sample))
        return self.net(sample, *args, **kwargs)


def step_of(index: int, count: int = 4) -> Step:
    return Step(index, count, 500, None, None, 1.0, index == count - 1)


def call_of(rows: int = 2) -> ModelCall:
    return ModelCall(torch.randn(rows, 4, 8, 8), torch.tensor(5), Text(torch.randn(rows, 7, tiny.WIDTH)))


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({}, [2, 2, 2, 2]),
        ({"controlnet_conditioning_scale": 0.0}, []),
        ({"control_guidance_start": 0.5}, [2, 2]),
        ({"control_guidance_start": 0.1, "control_guidance_end": 0.9}, [2, 2]),
        ({"guess_mode": True, "control_guidance_end": 0.25}, [1]),
        ({"guidance_scale": 1.0}, [1, 1, 1, 1]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_network_without_weight_is_not_asked(build, settings, asked) -> None:
    pipe = build()
    pipe.controlnet = Counted(pipe.controlnet)
    pipe(**CALL, **settings, image=EDGES[0])
    assert pipe.controlnet.rows == asked


def test_without_weight_the_picture_is_that_without_a_control(build, pipe) -> None:
    plain = pipe(**CALL).images
    assert np.array_equal(plain, build()(**CALL, image=EDGES[0], controlnet_conditioning_scale=0.0).images)
    assert not np.array_equal(plain, build()(**CALL, image=EDGES[0]).images)


def test_controls_add_up() -> None:
    torch.manual_seed(0)
    net, other = controlnets(seed=0)[1], controlnets(seed=1)[1]
    picture, call = torch.rand(1, 3, 16, 16), call_of()
    call.options = {DOWN: (torch.ones(1), torch.ones(1), torch.ones(1), torch.ones(1)), MIDDLE: torch.ones(1)}
    separate = []
    for each in (net, other):
        alone = call_of()
        alone.sample, alone.cond = call.sample, call.cond
        ControlNet([Control(each, picture)])(alone, step_of(0), (NEGATIVE, POSITIVE))
        separate.append(alone.options[MIDDLE])
    with torch.no_grad():
        ControlNet([Control(net, picture), Control(other, picture)])(call, step_of(0), (NEGATIVE, POSITIVE))
    assert torch.allclose(call.options[MIDDLE], 1 + separate[0] + separate[1], atol=1e-5)
    assert len(call.options[DOWN]) == 4 and call.options[DOWN][0].shape[0] == 2


def test_guess_mode_leaves_every_branch_but_the_positive_ones() -> None:
    net = controlnets()[1]
    control = Control(net, torch.rand(1, 3, 16, 16), guess=True)
    call = call_of(3)
    with torch.no_grad():
        ControlNet([control])(call, step_of(0), (NEGATIVE, POSITIVE, Branch("positive 1")))
    middle = call.options[MIDDLE]
    assert not middle[0].any() and middle[1].any() and middle[2].any()
    alone = call_of(1)
    ControlNet([control])(alone, step_of(0), (NEGATIVE,))
    assert alone.options == {}


def test_the_host_never_waits_for_the_device() -> None:
    nets = [controlnets(seed=k)[1] for k in range(2)]
    picture, maps = torch.rand(1, 3, 16, 16), [torch.rand(1, 32, 8, 8)]
    attach = [
        ControlNet([Control(nets[0], picture, 0.5, end=0.6), Control(nets[1], picture, guess=True)]),
        Adapter(maps, 0.5),
    ]
    with torch.no_grad(), NoReading():
        for index in range(4):
            call = call_of()
            for one in attach:
                one(call, step_of(index), (NEGATIVE, POSITIVE))
            assert (INSIDE in call.options) == (index < 2) and MIDDLE in call.options


def test_pictures_are_repeated_and_read_once(build, monkeypatch) -> None:
    pictures, read = [], []
    pipe = build()
    pipe.controlnet.controlnet_cond_embedding.register_forward_hook(lambda *given: read.append(given))
    forward = type(pipe.controlnet).forward
    monkeypatch.setattr(
        type(pipe.controlnet),
        "forward",
        lambda self, *args, **kwargs: (pictures.append(kwargs["controlnet_cond"]), forward(self, *args, **kwargs))[1],
    )
    pipe(**CALL, image=EDGES[0])
    assert len(pictures) == 4 and all(one is pictures[0] for one in pictures) and len(pictures[0].pixels) == 2
    assert len(read) == 1


@pytest.mark.parametrize(
    ("count", "call", "words"),
    [
        (1, {"image": None}, "No `image` was given"),
        (1, {"image": [EDGES[0], np.zeros((16, 16, 3))]}, "one kind"),
        (1, {"image": "edges.png"}, "load_image"),
        (1, {"image": []}, "empty list"),
        (2, {"image": EDGES[0]}, "list with one picture for each"),
        (2, {"image": EDGES[:1]}, r"1 entries for 2 networks \(ControlNetModel\)"),
        (2, {"image": EDGES[:3]}, "3 entries for 2 networks"),
        (1, {"controlnet_conditioning_scale": "1"}, "finite number"),
        (1, {"controlnet_conditioning_scale": [1.0, 2.0]}, "2 values for 1 networks"),
        (2, {"image": EDGES[:2], "controlnet_conditioning_scale": [1.0]}, "1 values for 2 networks"),
        (2, {"image": EDGES[:2], "control_guidance_end": [1.0, 1.2]}, "between 0.0 and 1.0"),
        (1, {"control_guidance_start": 0.5, "control_guidance_end": 0.5}, "nothing lies between"),
        (1, {"guess_mode": 1}, "True or False"),
        (1, {"control_image": EDGES[0]}, "does not accept 'control_image'"),
    ],
)
def test_bad_calls_are_refused_before_any_work(build, monkeypatch, count, call, words) -> None:
    pipe = build(count=count)
    for name in ("unet", "text_encoder", "vae", "controlnet"):
        monkeypatch.setattr(getattr(pipe, name), "forward", None)
    with pytest.raises((InputError, ConfigError), match=words):
        pipe(**{**CALL, "image": EDGES[0], **call})


def test_a_number_of_pictures_that_fits_no_prompt_is_an_error(build) -> None:
    with pytest.raises(InputError, match="3 control images do not fit 1 prompts"):
        build()(**CALL, image=EDGES[:3])


@pytest.mark.parametrize("options", [{"cross_attention_dim": 48}, {"block_out_channels": (32, 32)}])
def test_a_network_for_another_unet_is_named(build, options) -> None:
    with pytest.raises(ConfigError, match=f"made for a UNet with {next(iter(options))}"):
        build(**options)(**CALL, image=EDGES[0])


def test_a_pipeline_without_a_network_says_so(build) -> None:
    pipe = build()
    pipe.controlnet = None
    with pytest.raises(ConfigError, match="has no controlnet"):
        pipe(**CALL, image=EDGES[0])


def test_a_network_can_be_named_when_a_folder_is_loaded(sd_folder, build) -> None:
    net = controlnets()[1]
    for given in (net, [net, net]):
        pipe = langevin.StableDiffusionControlNetPipeline.from_pretrained(
            sd_folder, controlnet=given, requires_safety_checker=False
        )
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = tiny.scheduler(langevin, "DDIMScheduler")
        images = pipe(**CALL, image=EDGES[0] if given is net else EDGES[:2]).images
        assert given is not net or np.abs(images - build()(**CALL, image=EDGES[0]).images).max() <= 1e-5
    with pytest.raises(ConfigError, match="controlnet"):
        langevin.StableDiffusionControlNetPipeline.from_pretrained(sd_folder)


def test_the_control_keeps_its_place_beside_a_picture_with_a_margin(build) -> None:
    pipe = build("Img2Img")
    size = (17, 15)
    made = pipe(**CALL, image=tiny.picture(1, size), control_image=tiny.picture(11, size), strength=0.5).images
    assert made.shape == (1, 15, 17, 3)
    seen = []
    pipe.controlnet.register_forward_pre_hook(lambda _, args, kw: seen.append(kw["controlnet_cond"]), with_kwargs=True)
    pipe(**CALL, image=tiny.picture(1, size), control_image=tiny.picture(11, size), strength=0.5)
    want = torch.from_numpy(np.asarray(tiny.picture(11, size), dtype=np.float32) / 255).movedim(-1, 0)
    assert torch.equal(seen[0].pixels[0, :, :15, :17], want)


def test_a_crop_of_a_picture_that_lies_on_its_side(build) -> None:
    pipe, size = build("Inpaint"), (50, 34)
    image = tiny.picture(1, size)
    call = {**CALL, "output_type": "pil", "mask_image": tiny.hole(size), "control_image": tiny.picture(11, size)}
    lying = image.transpose(Image.Transpose.ROTATE_90)
    lying.getexif()[0x0112] = 6
    pictures = [pipe(**call, image=one, padding_mask_crop=3).images[0] for one in (image, lying)]
    assert pictures[0].size == size and pictures[0].tobytes() == pictures[1].tobytes()
    with pytest.raises(InputError, match="control pictures are PIL pictures of the size of `image`"):
        pipe(**{**call, "control_image": EDGES[0]}, image=image, padding_mask_crop=3)


def test_pictures_of_a_prompt_language_and_of_alpha(build) -> None:
    pipe = build()
    made = pipe(**{**CALL, "prompt": "a cat AND a dog"}, prompt_syntax="a1111", guess_mode=True, image=EDGES[0]).images
    assert np.isfinite(made).all()
    clear = EDGES[0].convert("RGBA")
    clear.putalpha(0)
    black = pipe(**CALL, image=np.zeros((16, 16, 3), dtype=np.float32)).images
    assert np.array_equal(pipe(**CALL, image=clear).images, black)


def test_seeds_make_the_pictures_that_they_make_alone(build) -> None:
    pipe = build()
    both = pipe(**{**CALL, "prompt": ["a cat", "a dog"]}, image=EDGES[:2]).images
    alone = pipe(**{**CALL, "prompt": "a dog", "seed": 6}, image=EDGES[1]).images
    assert np.abs(both[1] - alone[0]).max() <= 1e-5


# Deliberate differences ---------------------------------------------------------------------------------------------


@pytest.mark.parity
def test_latents_are_the_noise_that_is_added_to_the_picture(peer_sd, our_sd) -> None:
    pair = twins("StableDiffusionControlNetImg2ImgPipeline", peer_sd, our_sd, controlnet=controlnets())
    call = {"latents": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), "prompt": "a cat"}
    call |= {"control_image": EDGES[0], "strength": 0.5}
    made = [results(pair, **call, image=tiny.picture(seed)) for seed in (1, 2)]
    assert np.array_equal(made[0][0], made[1][0]) and not np.array_equal(made[0][1], made[1][1])


@pytest.mark.parity
def test_every_network_has_its_own_guess_mode(peer_sd, our_sd) -> None:
    nets = [controlnets(seed=0), controlnets(seed=1, global_pool_conditions=True)]
    theirs, ours = twins("StableDiffusionControlNetPipeline", peer_sd, our_sd, controlnet=several(nets))
    call = {"prompt": "a cat", "image": EDGES[:2], "controlnet_conditioning_scale": [0.0, 1.0]}
    together = results((theirs, ours), **call)
    alone = twins("StableDiffusionControlNetPipeline", peer_sd, our_sd, controlnet=nets[1])
    wanted = results(alone, **{**call, "image": EDGES[1], "controlnet_conditioning_scale": 1.0})
    assert np.abs(together[1] - wanted[1]).max() <= 1e-5 < np.abs(together[0] - together[1]).max()


@pytest.mark.parametrize("task", ["", "Img2Img"])
def test_lists_by_network_and_by_prompt(build, task) -> None:
    pipe = build(task, 2)
    call = {**CALL, "prompt": ["a cat", "a dog", "a cat"]}
    name = "control_image" if task else "image"
    call |= {"image": tiny.picture(1)} if task else {}
    one, two = [EDGES[0], EDGES[1], EDGES[2]], [EDGES[3], EDGES[2], EDGES[0]]
    by_prompt = [list(pair) for pair in zip(one, two, strict=True)]
    assert np.array_equal(pipe(**call, **{name: [one, two]}).images, pipe(**call, **{name: by_prompt}).images)


def test_a_control_picture_of_another_size_is_resized(build) -> None:
    made = build("Img2Img")(**CALL, image=tiny.picture(1, (32, 24)), control_image=EDGES[0]).images
    assert made.shape == (1, 24, 32, 3)
