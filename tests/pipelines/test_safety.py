"""The safety checker: the peer's verdicts, flags that are returned, and nothing that happens by surprise."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker as PeerChecker

import langevin
from langevin import StableDiffusionPipeline
from langevin.core.errors import ConfigError
from langevin.pipelines.safety import blacken
from tests.pipelines import tiny
from tests.pipelines.conftest import quiet

CALL = {"prompt": ["a cat", "a dog"], "num_inference_steps": 2, "output_type": "np"}


@pytest.fixture(scope="module")
def checked(checked_folder):
    return quiet(StableDiffusionPipeline.from_pretrained(checked_folder))


@pytest.fixture(scope="module")
def peer_checked(checked_folder):
    return quiet(diffusers.StableDiffusionPipeline.from_pretrained(checked_folder))


def suspicious(checker, first: float, care: float) -> None:
    """Set thresholds so that some pictures are flagged."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        checker.concept_embeds.copy_(torch.randn(checker.concept_embeds.shape, generator=generator))
        checker.special_care_embeds.copy_(torch.randn(checker.special_care_embeds.shape, generator=generator))
        checker.concept_embeds_weights.fill_(first)
        checker.special_care_embeds_weights.fill_(care)


@pytest.mark.parity
def test_the_verdicts_are_the_peers() -> None:
    theirs, ours = tiny.checker(PeerChecker), tiny.checker(langevin.StableDiffusionSafetyChecker)
    ours.load_state_dict(theirs.state_dict())
    pixels = torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 3
    some = 0
    for first in np.linspace(0.0, 0.9, 31):
        for care in (0.2, 0.4, 2.0):
            for checker in (theirs, ours):
                suspicious(checker, float(first), care)
            _, expected = theirs(pixels, torch.ones(40, 3, 2, 2))
            images, flags = ours(clip_input=pixels, images=torch.ones(40, 3, 2, 2))
            assert flags == expected
            assert [bool(image.any()) for image in images] == [not flag for flag in flags]
            some += 0 < sum(flags) < 40
    assert some > 5, "the thresholds must divide the pictures"


@pytest.mark.parity
@pytest.mark.parametrize("threshold", [2.0, -2.0])
def test_pictures_and_flags_equal_the_peers(checked, peer_checked, threshold) -> None:
    results = []
    for library, pipe in ((diffusers, peer_checked), (langevin, checked)):
        suspicious(pipe.safety_checker, threshold, 2.0)
        pipe.scheduler = tiny.scheduler(library, "DDIMScheduler")
        results.append(pipe(**CALL, generator=torch.Generator().manual_seed(0)))
    theirs, ours = results
    assert ours.nsfw_content_detected == theirs.nsfw_content_detected == [threshold < 0] * 2
    assert np.abs(ours.images - theirs.images).max() <= 1e-4
    assert ours.images.any() == (threshold > 0)


def test_any_function_of_the_signature_serves(checked) -> None:
    def own(images, clip_input):
        assert images.min() >= 0 and images.max() <= 1 and clip_input.shape == (2, 3, 32, 32)
        images[1] = 0.25
        return images, [False, True]

    pipe = quiet(StableDiffusionPipeline(**{**checked.components, "safety_checker": own}))
    plain = quiet(StableDiffusionPipeline(**{**checked.components, "safety_checker": None}))
    images, flags = pipe(**CALL, seed=0, return_dict=False)
    unchecked = plain(**CALL, seed=0)
    assert flags == [False, True] and unchecked.nsfw_content_detected is None
    assert np.array_equal(images[0], unchecked.images[0]) and np.allclose(images[1], 0.25)


def test_latents_are_not_checked(checked) -> None:
    assert checked(**{**CALL, "output_type": "latent"}).nsfw_content_detected is None


def test_the_checker_is_never_silently_off(checked, caplog_ours) -> None:
    parts = {**checked.components, "safety_checker": None}
    StableDiffusionPipeline(**parts, requires_safety_checker=False)
    assert "unchecked" not in caplog_ours.text
    StableDiffusionPipeline(**parts)
    assert "unchecked" in caplog_ours.text
    with pytest.raises(ConfigError, match="feature_extractor"):
        StableDiffusionPipeline(**{**checked.components, "feature_extractor": None})


def test_published_weight_names_load(checked_folder, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(checked_folder / "safety_checker" / "model.safetensors")
    inner = "vision_model.vision_model."
    renamed = {k.replace("vision_model.", inner, 1) if inner not in k else k: v for k, v in weights.items()}
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((checked_folder / "safety_checker" / "config.json").read_text())
    loaded = langevin.StableDiffusionSafetyChecker.from_pretrained(tmp_path)
    expected = langevin.StableDiffusionSafetyChecker.from_pretrained(checked_folder / "safety_checker")
    assert all(torch.equal(v, expected.state_dict()[k]) for k, v in loaded.state_dict().items())


def test_blackening_works_on_arrays_and_tensors() -> None:
    for images in (np.ones((2, 4, 4, 3)), torch.ones(2, 3, 4, 4), [np.ones((4, 4, 3))] * 2):
        blacken(images, [False, True])
        assert images[0].all() and not images[1].any()
