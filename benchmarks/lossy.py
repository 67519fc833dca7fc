"""What speed-ups that change the picture cost and bring, on the picturebook: `python -m benchmarks.lossy`.

Twenty prompts, half of them of one thing and half of two things in a relation, are drawn from the same seeds plainly
and with each switch. Told of each: the distance to the plain pictures, how many pictures show what their prompt says,
and the time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from langevin import StableDiffusionPipeline
from langevin.picturebook import GUIDANCE_SCALE, STEPS, model_folder
from langevin.picturebook.checker import check
from langevin.picturebook.scores import prompts

SWITCHES: dict[str, Callable[[Any], None]] = {
    "plain": lambda pipe: None,
    "deep cache, interval 2": lambda pipe: pipe.enable_deep_cache(2),
    "deep cache, interval 3": lambda pipe: pipe.enable_deep_cache(3),
    "deep cache, interval 5": lambda pipe: pipe.enable_deep_cache(5),
    "deep cache, interval 3, 1 layer": lambda pipe: pipe.enable_deep_cache(3, 1),
    "deep cache, interval 3, 3 layers": lambda pipe: pipe.enable_deep_cache(3, 3),
    "guidance interval": lambda pipe: pipe.enable_guidance_interval(),
    "both, interval 3": lambda pipe: (pipe.enable_deep_cache(3), pipe.enable_guidance_interval()),
}


def measure(pipe: Any, steps: int) -> None:
    """Print a line for every switch."""
    texts = [*prompts(10, "single"), *prompts(10, "pair")]
    call = {"num_inference_steps": steps, "guidance_scale": GUIDANCE_SCALE, "output_type": "np"}
    plain, before = None, 1.0
    pipe(texts[:1], **{**call, "num_inference_steps": 2}, seed=0)
    for name, switch in SWITCHES.items():
        pipe.disable_deep_cache()
        pipe.disable_guidance_interval()
        switch(pipe)
        begin = time.process_time()
        images = pipe(texts, **call, seed=list(range(20))).images
        took = time.process_time() - begin
        right = sum(verdict.all_right for verdict in check(images, texts))
        told = f"{name:>33}: {right} of 20 right, {took:5.1f} s of the processor"
        if plain is None:
            plain, before = images, took
            print(told, flush=True)
            continue
        ratio = -10 * np.log10(((images - plain) ** 2).mean(axis=(1, 2, 3)))
        told += f", {before / took:.2f} times as fast"
        print(f"{told}; {ratio.mean():.1f} dB from plain, {ratio.min():.1f} the farthest", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lossy", description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    torch.set_num_threads(1)
    pipe = StableDiffusionPipeline.from_pretrained(model_folder())
    pipe.set_progress_bar_config(disable=True)
    measure(pipe, parser.parse_args().steps)
