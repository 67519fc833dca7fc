"""What a file is: told from names, shapes and metadata of published checkpoints, without values."""

from __future__ import annotations

import pytest
import torch

from langevin.core.errors import WeightsError
from langevin.core.weights_io import Entry
from langevin.weights.detect import FAMILIES, detect, recognise
from langevin.weights.header import Header
from langevin.weights.known import probe_original
from tests.weights.published import FILES, facts_of, header, tensors

EXPECTED = {
    "sd-1.5": ("stable_diffusion", "text-to-image", "epsilon", 512, "StableDiffusionPipeline"),
    "sd-1.5-inpainting": ("stable_diffusion", "inpainting", "epsilon", 512, "StableDiffusionInpaintPipeline"),
    "sd-1.5-instruct-pix2pix": (
        *("stable_diffusion", "instruction", "epsilon", 512),
        "StableDiffusionInstructPix2PixPipeline",
    ),
    "sd-2.1": ("stable_diffusion_2", "text-to-image", "v_prediction", 768, "StableDiffusionPipeline"),
    "sd-2-depth": ("stable_diffusion_2", "depth", "epsilon", 512, "StableDiffusionDepth2ImgPipeline"),
    "sd-2-inpainting": ("stable_diffusion_2", "inpainting", "epsilon", 512, "StableDiffusionInpaintPipeline"),
    "sd-x4-upscaler": ("stable_diffusion_2", "upscaling", "v_prediction", 512, "StableDiffusionUpscalePipeline"),
    "stable-unclip-h": ("stable_diffusion_2", "unclip", "v_prediction", 768, "StableUnCLIPImg2ImgPipeline"),
    "stable-unclip-l": ("stable_diffusion_2", "unclip", "v_prediction", 768, "StableUnCLIPImg2ImgPipeline"),
    "sdxl-base": ("stable_diffusion_xl", "text-to-image", "epsilon", 1024, "StableDiffusionXLPipeline"),
    "sdxl-inpainting": ("stable_diffusion_xl", "inpainting", "epsilon", 1024, "StableDiffusionXLInpaintPipeline"),
    "sdxl-instruct-pix2pix": (
        *("stable_diffusion_xl", "instruction", "epsilon", 1024),
        "StableDiffusionXLInstructPix2PixPipeline",
    ),
    "sdxl-refiner": ("stable_diffusion_xl_refiner", "refiner", "epsilon", 1024, "StableDiffusionXLImg2ImgPipeline"),
}


@pytest.mark.parametrize("name", FILES)
def test_published_checkpoints_are_recognised(name) -> None:
    facts = facts_of(header(name))
    found = (facts.family, facts.kind, facts.prediction_type, facts.image_size, facts.pipeline)
    assert found == EXPECTED[name]
    assert facts.dtype == torch.float16 and not facts.zero_snr and facts.reasons
    assert bool(facts.doubts) == (name == "sd-2.1"), "only there two kinds have the same shapes"
    text = facts.explain()
    assert facts.pipeline in text and all(reason in text for reason in facts.reasons)


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_of_one_family_only(name) -> None:
    assert len([family for family in FAMILIES if family.recognise(header(name)) is not None]) == 1


@pytest.mark.parametrize("name", ["sd-1.5", "sd-2.1", "sdxl-base", "sdxl-refiner"])
def test_a_unet_alone_is_told_by_the_text_that_it_attends_to(name) -> None:
    facts = facts_of(header(name, only="model.diffusion_model."))
    assert facts.family == FILES[name][0]
    bare = header(name, only="model.diffusion_model.").under("model.diffusion_model.")
    assert facts_of(bare).family == FILES[name][0]


def test_an_autoencoder_alone() -> None:
    for one in (header("sd-1.5", only="first_stage_model."), header("sd-1.5").under("first_stage_model.")):
        facts = facts_of(one)
        assert (facts.family, facts.pipeline) == ("autoencoder_kl", None)
        assert "0.18215" in facts.doubts[0]


def marked(name: str, *marks: str) -> Header:
    """Return the header of a published checkpoint with empty tensors beside it."""
    own = header(name)
    return Header({**own.shapes, **dict.fromkeys(marks, (0,))}, own.dtypes)


def test_marks_of_v_prediction_and_zero_terminal_snr() -> None:
    facts = facts_of(marked("sdxl-base", "v_pred"))
    assert facts.prediction_type == "v_prediction" and not facts.zero_snr
    facts = facts_of(marked("sdxl-base", "v_pred", "ztsnr"))
    assert facts.zero_snr and "zero terminal SNR: yes" in facts.explain()


def test_metadata_settles_what_shapes_leave_open() -> None:
    facts = facts_of(header("sd-2.1", modelspec__prediction_type="epsilon", modelspec__resolution="512x512"))
    assert (facts.prediction_type, facts.image_size, facts.doubts) == ("epsilon", 512, ())
    facts = facts_of(header("sd-2.1", modelspec__architecture="stable-diffusion-v2-512"))
    assert (facts.prediction_type, facts.image_size, facts.preset) == ("epsilon", 512, "sd2")
    facts = facts_of(header("sd-2.1", modelspec__architecture="stable-diffusion-v2-768-v"))
    assert (facts.prediction_type, facts.doubts) == ("v_prediction", ())
    assert facts_of(header("sd-2.1", global_step="875000")).prediction_type == "epsilon"
    assert facts_of(header("sd-2.1", global_step="140000")).doubts == ()


@pytest.mark.parametrize("name, preset", [("sdxl-base", "sdxl-turbo"), ("sd-2.1", "sd2-turbo")])
def test_turbo_is_told_by_its_title(name, preset) -> None:
    facts = facts_of(header(name, modelspec__title="SDXL Turbo 1.0"))
    assert (facts.kind, facts.image_size, facts.preset) == ("turbo", 512, preset)
    assert facts.prediction_type == "epsilon" and facts.doubts == ()


def test_unknown_channels_and_widths_are_doubts() -> None:
    own = header("sd-1.5")
    name = "model.diffusion_model.input_blocks.0.0.weight"
    facts = facts_of(Header({**own.shapes, name: (320, 16, 3, 3)}))
    assert facts.pipeline is None and "16 channels" in facts.reasons[-1]


def wide(name: str, width: int) -> Header:
    """Return the header of a published UNet alone, with a text of another width."""
    own = header(name, only="model.diffusion_model.").shapes
    return Header({key: (shape[0], width) if "attn2.to_" in key else shape for key, shape in own.items()})


@pytest.mark.parametrize(
    "name, family",
    [("sd-1.5", "stable_diffusion"), ("sd-2.1", "stable_diffusion_2"), ("sdxl-base", "stable_diffusion_xl")],
)
def test_a_text_of_no_published_width_is_a_doubt(name, family) -> None:
    facts = facts_of(wide(name, 555))
    assert facts.family == family and "A text 555 wide is of no published version" in facts.doubts[0]


def test_an_autoencoder_of_videos_or_of_one_dimension_is_no_autoencoder_of_pictures() -> None:
    own = header("sd-1.5", only="first_stage_model.").shapes
    timed = "first_stage_model.decoder.up.0.block.0.time_stack.in_layers.0.weight"
    assert detect(Header({**own, timed: (128,)})) is None
    assert detect(Header({**own, "first_stage_model.decoder.conv_in.weight": (512, 4, 3)})) is None


def test_a_file_that_is_nothing_known_says_what_it_holds() -> None:
    assert detect(Header({"encoder.weight": (1,), "head.bias": (2,)})) is None
    with pytest.raises(WeightsError, match="encoder, head"):
        recognise(Header({"encoder.weight": (1,), "head.bias": (2,)}), "some.file")


def test_the_answer_to_a_look_at_a_file() -> None:
    entries = {key: Entry(torch.float16, tuple(value.shape), 0, 0) for key, value in tensors("sdxl-base").items()}
    found = probe_original(entries, {})
    assert (found.kind, found.family, found.dialect) == ("checkpoint", "sdxl", "original")
    assert list(found.details["components"]) == ["unet", "vae", "text_encoder", "text_encoder_2"]
    assert found.details["components"]["unet"] == 2_567_463_684
    assert found.details["pipeline"] == "StableDiffusionXLPipeline" and found.reasons
    assert found.details["absent"] == [] and found.details["also inside"] == []
    assert probe_original({"x": Entry(torch.float16, (1,), 0, 0)}, {}) is None
