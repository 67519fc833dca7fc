"""Pipelines of this library and of the peer over the same tiny weights, built once."""

from __future__ import annotations

import logging

import diffusers
import pytest
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker as PeerChecker

import langevin
from tests.pipelines import tiny, tiny_xl


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory):
    """A Stable Diffusion folder that the peer wrote, without a safety checker."""
    folder = tmp_path_factory.mktemp("sd")
    tiny.stable_diffusion(diffusers, folder).save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def checked_folder(tmp_path_factory):
    """A Stable Diffusion folder that the peer wrote, with a safety checker."""
    folder = tmp_path_factory.mktemp("checked")
    parts = {"safety_checker": tiny.checker(PeerChecker), "feature_extractor": tiny.feature_extractor()}
    pipe = tiny.stable_diffusion(diffusers, folder, **parts, requires_safety_checker=True)
    pipe.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def peer_sd(sd_folder):
    """The peer's pipeline; tests set its scheduler."""
    pipe = quiet(diffusers.StableDiffusionPipeline.from_pretrained(sd_folder))
    # The attribute that clip_skip reads there and that this version of transformers no longer has.
    pipe.text_encoder.__dict__["text_model"] = pipe.text_encoder
    return pipe


@pytest.fixture(scope="session")
def our_sd(sd_folder):
    """This library's pipeline over the same folder; tests set its scheduler."""
    return quiet(langevin.StableDiffusionPipeline.from_pretrained(sd_folder))


@pytest.fixture(scope="session")
def xl_folder(tmp_path_factory):
    """A Stable Diffusion XL folder that the peer wrote."""
    folder = tmp_path_factory.mktemp("xl")
    tiny_xl.base(diffusers, folder).save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def refiner_folder(tmp_path_factory):
    """A Stable Diffusion XL refiner that the peer wrote."""
    folder = tmp_path_factory.mktemp("refiner")
    tiny_xl.refiner(diffusers, folder).save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def xl(xl_folder):
    """The peer's Stable Diffusion XL pipeline and this library's over one folder; tests build their own over them."""
    return pair_of(xl_folder)


@pytest.fixture(scope="session")
def xl_refiner(refiner_folder):
    """The peer's refiner and this library's over one folder; tests build their own over them."""
    return pair_of(refiner_folder)


def pair_of(folder):
    """Load a folder as the peer's pipeline and as this library's."""
    return tuple(quiet(library.DiffusionPipeline.from_pretrained(folder)) for library in (diffusers, langevin))


@pytest.fixture
def pipe(our_sd):
    """This library's pipeline over shared components, free to be changed, with a deterministic sampler."""
    fresh = quiet(langevin.StableDiffusionPipeline(**our_sd.components, requires_safety_checker=False))
    fresh.scheduler = tiny.scheduler(langevin, "DDIMScheduler")
    return fresh


def quiet(pipe):
    """Hide the progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def caplog_ours(caplog):
    """The log of this library, which does not propagate by itself."""
    logger = logging.getLogger("langevin")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
