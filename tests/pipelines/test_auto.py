"""Auto pipelines and from_pipe: the class that is meant, over the same components."""

from __future__ import annotations

import importlib
import json
import shutil

import diffusers
import numpy as np
import pytest
import torch

import langevin
from langevin.core.errors import ConfigError, InputError
from langevin.pipelines import auto
from langevin.registry import PIPELINES
from tests.pipelines import tiny
from tests.pipelines.test_components import Doubler

TASKS = {cls.__name__: task for task, cls in auto.AUTO.items()}
CALL = {"prompt": "a cat", "num_inference_steps": 3, "output_type": "np", "seed": 1}
OURS = {row.name for row in PIPELINES}


def peers(name: str) -> dict[str, type]:
    """Return the peer's mapping behind an auto pipeline: checkpoint kind -> class."""
    home = importlib.import_module("diffusers.pipelines.auto_pipeline")
    word = name.removeprefix("AutoPipelineFor").upper().replace("INPAINTING", "INPAINT")
    return getattr(home, f"AUTO_{word}_PIPELINES_MAPPING")


def pairs() -> list[tuple[str, str, str, bool]]:
    """Return (auto pipeline, class given, class that the peer builds, whether a ControlNet is passed)."""
    kinds = {kind: {name: peers(name)[kind].__name__ for name in TASKS if kind in peers(name)} for kind in ALL}
    found = []
    for kind, classes in kinds.items():
        for given in {other[name] for other in (classes, kinds[kind.removesuffix("-controlnet")]) for name in other}:
            controlled = kind.endswith("-controlnet") and "ControlNet" not in given
            found += [(name, given, wanted, controlled) for name, wanted in classes.items()]
    return [one for one in sorted(set(found)) if {one[1], one[2]} <= OURS]


ALL = [family + control for family in ("stable-diffusion", "stable-diffusion-xl") for control in ("", "-controlnet")]


@pytest.mark.parity
@pytest.mark.parametrize(("name", "given", "wanted", "controlled"), pairs())
def test_the_class_is_the_peers(name, given, wanted, controlled) -> None:
    options = {"controlnet": object()} if controlled else {}
    row, without = getattr(auto, name)._choose(auto.row_of(given), options)
    assert (row.name, without) == (wanted, set())


def test_a_task_has_one_class_per_family() -> None:
    wanted = [*TASKS.values(), *(f"{control}-{task}" for control in auto.CONTROLS for task in TASKS.values())]
    found = [(row.family, row.task) for row in PIPELINES if row.task in wanted]
    assert len(found) == len(set(found)) and {"controlnet"} <= set(auto.CONTROLS)
    assert [auto.task_of(auto.row_of(name)) for name in ("StableDiffusionControlNetPipeline", "DDPMPipeline")] == [
        "text-to-image",
        "generation",
    ]


@pytest.mark.parity
@pytest.mark.parametrize("name", TASKS)
def test_a_folder_is_loaded_for_the_task(sd_folder, name) -> None:
    theirs = getattr(diffusers, name).from_pretrained(sd_folder)
    ours = getattr(langevin, name).from_pretrained(sd_folder, torch_dtype=torch.float32)
    assert type(ours).__name__ == type(theirs).__name__
    assert ours.name_or_path == str(sd_folder) and ours.config.requires_safety_checker is False
    control = langevin.ControlNetModel.from_unet(ours.unet)
    controlled = getattr(langevin, name).from_pretrained(sd_folder, controlnet=control)
    assert controlled.controlnet is control and "ControlNet" in type(controlled).__name__


@pytest.mark.parity
@pytest.mark.parametrize("name", TASKS)
def test_a_pipeline_is_turned_to_the_task(pipe, peer_sd, name) -> None:
    control = langevin.ControlNetModel.from_unet(pipe.unet)
    ours = turned(getattr(langevin, name), pipe, control)
    theirs = turned(getattr(diffusers, name), peer_sd, diffusers.ControlNetModel.from_unet(peer_sd.unet))
    assert [type(one).__name__ for one in ours] == [type(one).__name__ for one in theirs]
    for one in ours:
        for part, value in pipe.components.items():
            assert getattr(one, part) is value
    assert ours[2].controlnet is control


def turned(cls, pipe, control) -> list:
    """Return a pipeline turned to a task plainly, with a ControlNet, from that one again, and without it again."""
    controlled = cls.from_pipe(pipe, controlnet=control)
    return [cls.from_pipe(pipe), controlled, cls.from_pipe(controlled), cls.from_pipe(controlled, controlnet=None)]


def test_nothing_is_loaded_or_copied(pipe) -> None:
    def storage(*pipes) -> set[tuple[int, int]]:
        return {(p.untyped_storage().data_ptr(), p.untyped_storage().nbytes())
                for one in pipes for module in one._networks.values() for p in module.parameters()}  # fmt: skip

    before = storage(pipe)
    image = langevin.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    inpaint = langevin.AutoPipelineForInpainting.from_pipe(image)
    again = langevin.StableDiffusionPipeline(**inpaint.components, requires_safety_checker=False)
    assert storage(pipe, image, inpaint, again) == before
    for name, module in pipe._networks.items():
        for key, value in module.state_dict().items():
            assert getattr(inpaint, name).state_dict()[key].data_ptr() == value.data_ptr()
    again.set_progress_bar_config(disable=True)
    assert np.array_equal(again(**CALL).images, pipe(**CALL).images)
    picture = tiny.picture()
    made = image(**CALL, image=picture, strength=0.6).images
    fresh = langevin.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    fresh.set_progress_bar_config(disable=True)
    assert np.array_equal(made, fresh(**CALL, image=picture, strength=0.6).images)


def test_options_and_the_progress_bar_are_carried(pipe, caplog_ours, capsys) -> None:
    caplog_ours.clear()
    other = langevin.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    assert other.config.requires_safety_checker is False and caplog_ours.text == ""
    other(**CALL, image=tiny.picture())
    assert capsys.readouterr().err == "", "the bar of the other pipeline is hidden"
    changed = langevin.StableDiffusionImg2ImgPipeline.from_pipe(pipe, requires_safety_checker=True)
    assert changed.config.requires_safety_checker is True and "no safety checker" in caplog_ours.text


def test_options_survive_a_class_that_does_not_know_them(caplog_ours) -> None:
    first = Doubler(tiny.pixel_unet(langevin), langevin.DDPMScheduler(), extra=torch.nn.Linear(1, 1), gain=3.0)
    middle = langevin.DDPMPipeline.from_pipe(first)
    assert "DDPMPipeline has no place for extra of this Doubler" in caplog_ours.text
    assert "gain" not in middle.config
    last = Doubler.from_pipe(middle)
    assert last.config.gain == 3.0 and last.extra is None and last.unet is first.unet
    assert Doubler.from_pipe(middle, gain=1.0).config.gain == 1.0


def test_options_of_sdxl_go_round(xl, xl_refiner) -> None:
    plain = langevin.StableDiffusionXLPipeline.from_pipe(xl[1], force_zeros_for_empty_prompt=False)
    assert langevin.AutoPipelineForInpainting.from_pipe(plain).config.force_zeros_for_empty_prompt is False
    refiner = langevin.StableDiffusionXLImg2ImgPipeline.from_pipe(xl_refiner[1], requires_aesthetics_score=True)
    text = langevin.AutoPipelineForText2Image.from_pipe(refiner)
    assert type(text) is langevin.StableDiffusionXLPipeline and "requires_aesthetics_score" not in text.config
    back = langevin.AutoPipelineForImage2Image.from_pipe(text)
    assert back.config.requires_aesthetics_score is True and back.text_encoder_2 is refiner.text_encoder_2


def test_components_are_replaced_and_added(pipe) -> None:
    euler = langevin.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    other = langevin.StableDiffusionImg2ImgPipeline.from_pipe(pipe, scheduler=euler)
    assert other.scheduler is euler and pipe.scheduler is not euler and other.unet is pipe.unet
    with pytest.raises(ConfigError, match=r"needs controlnet, which this StableDiffusionPipeline .* pass `controlnet="):
        langevin.StableDiffusionControlNetPipeline.from_pipe(pipe)


def test_what_has_no_place_is_reported(pipe, caplog_ours) -> None:
    control = langevin.ControlNetModel.from_unet(pipe.unet)
    controlled = langevin.StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=control)
    caplog_ours.clear()
    langevin.StableDiffusionPipeline.from_pipe(controlled)
    assert "StableDiffusionPipeline has no place for controlnet" in caplog_ours.text
    caplog_ours.clear()
    langevin.AutoPipelineForText2Image.from_pipe(controlled, controlnet=None)
    assert caplog_ours.text == "", "it was left out on purpose"


def test_types_stay_unless_asked(sd_folder, caplog_ours) -> None:
    pipe = langevin.StableDiffusionPipeline.from_pretrained(sd_folder, torch_dtype=torch.bfloat16)
    other = langevin.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    assert other.dtype == pipe.dtype == torch.bfloat16
    caplog_ours.clear()
    cast = langevin.AutoPipelineForInpainting.from_pipe(pipe, torch_dtype=torch.float32)
    assert cast.unet is pipe.unet and pipe.dtype == cast.vae.dtype == torch.float32
    assert "vae, text_encoder, unet: cast in place" in caplog_ours.text
    langevin.StableDiffusionPipeline.from_pipe(cast, torch_dtype={"vae": "bfloat16"})
    assert (pipe.vae.dtype, pipe.unet.dtype) == (torch.bfloat16, torch.float32)
    with pytest.raises(ConfigError, match="did you mean 'unet'"):
        langevin.StableDiffusionPipeline.from_pipe(cast, torch_dtype={"unte": "bfloat16"})


def test_a_subclass_of_a_user_is_of_the_family(pipe) -> None:
    class Mine(langevin.StableDiffusionPipeline):
        """A user's."""

    mine = Mine.from_pipe(pipe)
    assert type(langevin.AutoPipelineForImage2Image.from_pipe(mine)) is langevin.StableDiffusionImg2ImgPipeline


def test_mistakes_are_named(pipe, tmp_path, sd_folder) -> None:
    with pytest.raises(ConfigError, match=r"AutoPipelineForText2Image\.from_pretrained"):
        langevin.AutoPipelineForText2Image()
    pixels = langevin.DDPMPipeline(tiny.pixel_unet(langevin), langevin.DDPMScheduler())
    with pytest.raises(ConfigError, match="'unconditional', which has no pipeline for inpainting; it has: generation"):
        langevin.AutoPipelineForInpainting.from_pipe(pixels)
    with pytest.raises(ConfigError, match="did you mean 'requires_safety_checker'"):
        langevin.AutoPipelineForInpainting.from_pipe(pipe, require_safety_checker=False)
    with pytest.raises(ConfigError, match="AutoPipelineForInpainting"):
        langevin.DiffusionPipeline.from_pipe(pipe)
    with pytest.raises(ConfigError, match="not a UNet2DConditionModel"):
        langevin.StableDiffusionPipeline.from_pipe(pipe.unet)
    with pytest.raises(ConfigError, match="'UNet2DConditionModel', which this library does not have"):
        langevin.AutoPipelineForText2Image.from_pipe(pipe.unet)
    with pytest.raises(InputError, match="does not exist"):
        langevin.AutoPipelineForText2Image.from_pretrained("./no-such-folder")
    folder = tmp_path / "model"
    shutil.copytree(sd_folder, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "StableDifusionPipeline"}))
    with pytest.raises(ConfigError, match="did you mean 'StableDiffusionPipeline'"):
        langevin.AutoPipelineForText2Image.from_pretrained(folder)
    (folder / "model_index.json").unlink()
    with pytest.raises(InputError, match="is no pipeline"):
        langevin.AutoPipelineForText2Image.from_pretrained(folder)


def test_a_control_that_a_task_does_not_have_can_be_left_out() -> None:
    with pytest.raises(ConfigError, match="pass `adapter=None`"):
        auto.row_for(auto.row_of("StableDiffusionPipeline"), "inpainting", {"adapter"})


def test_an_auto_pipeline_is_not_built_itself() -> None:
    with pytest.raises(ConfigError, match=r"AutoPipelineForInpainting\.from_pretrained\(path\)"):
        langevin.AutoPipelineForInpainting()
