"""Tiny text encoders, built once."""

from __future__ import annotations

import logging

import pytest

from tests.prompts import towers


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    """A tokenizer that pads with the end token."""
    return towers.tokenizer(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="session")
def other_words(tmp_path_factory):
    """A tokenizer that pads with token 0."""
    return towers.tokenizer(tmp_path_factory.mktemp("other"), "!")


@pytest.fixture(scope="session")
def encoder():
    """One text encoder."""
    return towers.encoder()


@pytest.fixture(scope="session")
def second_encoder():
    """Another one, with pooled states."""
    return towers.second_encoder()


@pytest.fixture
def sd(words, encoder):
    """The tower of Stable Diffusion, fresh for every test."""
    return towers.tower(words, encoder)


@pytest.fixture
def sdxl(words, other_words, encoder, second_encoder):
    """The two towers of SDXL."""
    return [towers.deep_tower(words, encoder), towers.deep_tower(other_words, second_encoder)]


@pytest.fixture
def log(caplog):
    """The log of this library, which does not propagate by itself."""
    logger = logging.getLogger("langevin")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
