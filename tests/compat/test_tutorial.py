"""The documented tutorial of training, written for diffusers, runs on this library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

import langevin
from langevin.core.imports import is_available
from tests.pipelines import tiny

SCRIPT = Path(__file__).parent / "files" / "basic_training.py"


def test_the_tutorial_of_training(tmp_path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for k in range(8):
        tiny.picture(k, (40, 36)).save(pictures / f"{k}.png")
    command = [sys.executable, "-m", "langevin", "run", str(SCRIPT), str(pictures)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    losses = told["losses"]
    assert told["library"].startswith("langevin.") and len(losses) == 18
    assert sum(losses[12:16]) < 0.7 * sum(losses[:4]) and told["rate"] < 1e-6
    assert [call["repo_id"] for call in told["uploads"]] == ["someone/ddpm-butterflies-128"]
    folder = tmp_path / "ddpm-butterflies-128"
    assert sorted(path.name for path in (folder / "samples").iterdir()) == ["0000.png", "0007.png"]
    assert bool(list((folder / "logs").rglob("events.out.*"))) == is_available("tensorboard")
    pipe = langevin.DDPMPipeline.from_pretrained(folder)
    drawn = pipe(batch_size=2, generator=torch.manual_seed(0), num_inference_steps=2).images
    assert [picture.size for picture in drawn] == [(32, 32)] * 2
