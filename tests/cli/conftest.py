"""A tiny model on disk, and the command run in this process."""

from __future__ import annotations

import json

import pytest
from PIL import Image

import langevin
from langevin.cli import main
from tests.pipelines import tiny


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    """The folder of a tiny random Stable Diffusion pipeline."""
    folder = tmp_path_factory.mktemp("model")
    tiny.stable_diffusion(langevin, folder).save_pretrained(folder / "pipeline")
    return str(folder / "pipeline")


def run(capsys: pytest.CaptureFixture, *argv: str) -> list[str]:
    """Run `langevin generate` and return the paths that it prints."""
    with pytest.raises(SystemExit) as leaving:
        main(["generate", *argv])
    out, err = capsys.readouterr()
    assert leaving.value.code == 0, err
    return out.splitlines()


def refused(capsys: pytest.CaptureFixture, *argv: str) -> str:
    """Run a `langevin generate` that must fail with one message and status 2, and return the message."""
    with pytest.raises(SystemExit) as leaving:
        main(["generate", *argv])
    out, err = capsys.readouterr()
    assert leaving.value.code == 2 and out == "" and "Traceback" not in err
    return err


def facts(path: str) -> dict:
    """Return what a picture says that it was made with."""
    with Image.open(path) as picture:
        return json.loads(picture.text["langevin"])
