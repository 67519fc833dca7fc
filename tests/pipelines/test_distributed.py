"""The documented ways to share prompts among processes, run with real ones: accelerate's split, and ranks of torch."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from langevin import DiffusionPipeline
from langevin.picturebook import model_folder

pytest.importorskip("accelerate")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "distributed_inference"


@pytest.fixture
def one_thread():
    """Compute with one thread, as the processes do: the number of threads decides the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_processes_share_prompts_by_accelerate_and_by_torch(tmp_path, one_thread) -> None:
    port = str(20_000 + os.getpid() % 10_000)
    given = {"OMP_NUM_THREADS": "1", "MASTER_PORT": port, "MASTER_ADDR": "localhost", "CUDA_VISIBLE_DEVICES": ""}
    pipe = DiffusionPipeline.from_pretrained(model_folder())
    pipe.set_progress_bar_config(disable=True)
    expected = {}
    for way, ranks in (("with_accelerate", [{"RANK": "0"}, {"RANK": "1"}]), ("with_torch", [{}])):
        folder = tmp_path / way
        folder.mkdir()
        script = EXAMPLES / f"{way}.py"
        more = {"WORLD_SIZE": "2"} if len(ranks) > 1 else {}
        runs = [
            subprocess.Popen(
                [sys.executable, str(script)],
                cwd=folder,
                env={**os.environ, **given, **more, **rank, **({"LOCAL_RANK": rank["RANK"]} if rank else {})},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in ranks
        ]
        for run in runs:
            _, err = run.communicate()
            assert run.returncode == 0, err
        prompts = runpy.run_path(str(script))["PROMPTS"]
        for number, prompt in enumerate(prompts):
            if prompt not in expected:
                call = {"num_inference_steps": 10, "guidance_scale": 2.0, "seed": number}
                expected[prompt] = pipe(prompt, **call).images[0].tobytes()
            assert Image.open(folder / f"result_{number}.png").tobytes() == expected[prompt]
