"""The ControlNet on edges: how it is trained, how agreement is measured, and what the shipped weights do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from langevin import ControlNetModel, StableDiffusionControlNetPipeline
from langevin.core.errors import InputError
from langevin.picturebook import GUIDANCE_SCALE, control, control_folder, data, edges, model_folder
from langevin.picturebook.captions import parse
from langevin.picturebook.checker import check
from langevin.picturebook.loop import Budget, Recipe, fit
from langevin.picturebook.scores import generate
from langevin.picturebook.steering import outlines_of
from langevin.picturebook.world import HELD_OUT_COLOURS
from langevin.pipelines.control_images import canny, control_tensor
from tests.picturebook.test_train import resume, tiny_unet


def tiny_stage(folder) -> control.ControlStage:
    torch.manual_seed(0)
    unet = tiny_unet()
    latents, states = torch.randn(10, 4, 8, 8).half(), torch.randn(20, 5, 16).half()
    outlines = torch.rand(10, 32, 32) < 0.1
    stage = control.ControlStage(
        folder, latents, states, outlines, unet=unet, untold=torch.zeros(5, 16), shown=states[:2].float(),
        shown_outlines=outlines[:2],
    )  # fmt: skip
    stage.recipe = Recipe(lr=1e-3, batch=4, warmup=2, average=0.9)
    return stage


def test_a_stopped_run_resumes_bit_for_bit(tmp_path):
    resume(tiny_stage, tmp_path)


def test_the_control_learns_and_the_denoiser_stays(tmp_path):
    stage = tiny_stage(tmp_path)
    unet, model = ({k: v.clone() for k, v in each.state_dict().items()} for each in (stage.unet, stage.model))
    list(fit(stage, Budget(steps=3)))
    assert all(torch.equal(value, unet[name]) for name, value in stage.unet.state_dict().items())
    # Layers behind the zero layers move only when those have moved.
    for name in ("controlnet_down_blocks.0.weight", "controlnet_cond_embedding.conv_in.weight", "conv_in.weight"):
        assert not torch.equal(stage.model.state_dict()[name], model[name]), name


def test_the_untrained_control_predicts_what_the_denoiser_does(tmp_path):
    stage = tiny_stage(tmp_path)
    x0, t, states, picture = stage.batch(torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        alone = stage.unet(x0, t, states, return_dict=False)[0].float()
    assert torch.equal(stage.predict(x0, t, states, picture), alone)


def test_half_of_the_captions_are_left_out_and_no_edges(tmp_path):
    stage = tiny_stage(tmp_path)
    stage.recipe = replace(stage.recipe, batch=1000)
    _, _, states, picture = stage.batch(torch.Generator().manual_seed(0))
    assert 0.45 < (states == 0).all(dim=(1, 2)).float().mean() < 0.55
    assert picture.shape == (1000, 3, 32, 32) and set(picture.unique().tolist()) == {0.0, 1.0}
    assert (picture.sum((1, 2, 3)) > 0).all()


def test_the_edges_belong_to_the_latents(tmp_path):
    stage = tiny_stage(tmp_path)
    x0, _, _, picture = stage.batch(torch.Generator().manual_seed(1))
    for latent, shown in zip(x0, picture, strict=True):
        row = int((stage.latents.float() * stage.scale - latent).abs().amax((1, 2, 3)).argmin())
        assert torch.equal(shown[0] > 0, stage.outlines[row])


# Agreement


def square(side: int = 20, shift: int = 0) -> np.ndarray:
    """Return the outline of a square, bool (1, 32, 32)."""
    picture = np.zeros((1, 32, 32), dtype=bool)
    a, b = 4 + shift, 4 + shift + side - 1
    picture[0, [a, b], a : b + 1] = True
    picture[0, a : b + 1, [a, b]] = True
    return picture


def test_agreement_forgives_one_pixel_and_not_two():
    assert edges.agreement(square(), square()) == 1
    assert edges.agreement(square(shift=1), square()) == 1
    assert edges.agreement(square(shift=2), square()) < 0.3


def test_agreement_punishes_what_is_missing_and_what_is_too_much():
    half = square()
    half[0, 14:] = False
    share = half.sum() / square().sum()
    assert edges.agreement(half, square()) == pytest.approx(2 * share / (1 + share), abs=0.03)
    assert edges.agreement(np.ones_like(half), square()) < 0.4
    assert edges.agreement(np.zeros_like(half), square()) == 0
    assert edges.agreement(np.zeros_like(half), np.zeros_like(half)) == 1


def test_agreement_refuses_pictures_of_other_sizes():
    with pytest.raises(InputError, match=r"\(1, 32, 32\)"):
        edges.agreement(square(), square()[:, :16])


def test_edges_of_scenes_are_thin_and_lie_where_colours_meet():
    for task in edges.tasks(6):
        assert task.outline.shape == (64, 64) and task.outline.dtype == bool
        assert 0.01 < task.outline.mean() < 0.3
        change = np.abs(np.diff(task.picture.astype(int), axis=0)).max(2)[:, 1:-1]
        beside = np.maximum(change[:-1], change[1:])[task.outline[1:-1, 1:-1]]
        assert np.median(beside) > 0


def test_fresh_scenes_do_not_depend_on_their_number():
    few, many = edges.tasks(2), edges.tasks(4)
    assert [task.caption for task in few] == [task.caption for task in many[:2]]
    assert (few[1].picture == many[1].picture).all()
    assert (edges.tasks(1, seed=1)[0].picture != few[0].picture).any()


def test_fresh_scenes_are_seeded_beyond_any_training_set():
    assert edges.FRESH * data._CHUNK > 10**8


def test_other_colours_are_other_and_the_rest_is_the_same():
    for task in edges.tasks(20):
        asked, other = parse(task.caption), parse(task.recoloured)
        assert [wish.kind for wish in sorted_things(asked)] == [wish.kind for wish in sorted_things(other)]
        pairs = zip(sorted_things(asked), sorted_things(other), strict=True)
        assert all(one.colour != two.colour for one, two in pairs)
        assert not {(wish.colour, wish.kind) for wish in other.things} & HELD_OUT_COLOURS


def sorted_things(request):
    return sorted(request.things, key=lambda wish: wish.kind)


def test_training_and_pipelines_see_the_same_condition():
    task = edges.tasks(1)[0]
    trained = edges.condition(torch.from_numpy(task.outline[None]))
    for given in (edges.outline_picture(task.outline), canny(Image.fromarray(task.picture), 50, 100)):
        assert torch.equal(control_tensor(given, 64, 64, 1), trained)


# The shipped weights


def test_the_shipped_folder_is_small_and_in_half_precision():
    folder = control_folder()
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 10 * 2**20
    with safe_open(folder / "diffusion_pytorch_model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118


def test_pictures_follow_the_edges():
    net = ControlNetModel.from_pretrained(control_folder())
    pipe = StableDiffusionControlNetPipeline.from_pretrained(model_folder(), controlnet=net)
    pipe.set_progress_bar_config(disable=True)
    given = edges.tasks(12)
    texts = [task.caption if number % 2 else "" for number, task in enumerate(given)]
    wanted = np.stack([task.outline for task in given])
    shown = [edges.outline_picture(outline) for outline in wanted]
    pictures = generate(pipe, texts, steps=12, guidance_scale=GUIDANCE_SCALE, batch=12, conditions=shown)
    made = outlines_of(pictures)
    reached = edges.agreement(made, wanted).mean()
    chance = np.mean([edges.agreement(made, np.roll(wanted, turn, axis=0)).mean() for turn in range(1, 12)])
    # The shipped weights reach 0.89 here, with captions and with edges alone; chance is 0.28.
    assert reached > 0.75 and chance < 0.4, (reached, chance)
    told = [number for number, text in enumerate(texts) if text]
    verdicts = check([pictures[number] for number in told], [texts[number] for number in told])
    assert sum(verdict.kinds_right for verdict in verdicts) >= 5, verdicts
