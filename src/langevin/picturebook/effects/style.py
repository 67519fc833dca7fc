"""A style as a LoRA on the picturebook: brown ink on paper, which training never showed, from pictures whose captions
say nothing of it.

A picture carries the style when its colours are nearer to the style's tones than a threshold: the one that as many
true pictures of the style miss as ordinary ones pass, both drawn by the world and seen through the autoencoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..checker import check
from ..scores import prompts, scenes
from ..steering import reconstruct
from ..unseen import distance, style_lesson
from ..world import render
from .common import BASE, Effect, drawn, share, shipped, trained, write_pictures

PICTURES = 600
"""Pictures to learn from."""
MEASURED, FIRST = 100, 96
"""True pictures of either kind that the threshold comes from, and where those of the style begin in the lesson; none
of them is learned from."""
CASES = 50
"""Prompts, half of one thing and half of two."""
GOAL, LARGEST = 80.0, 2**20
"""Percent of pictures that carry the style; bytes of the file."""
SEED = 3
"""Of the prompts."""
FLAGS: dict[str, Any] = {
    **BASE,
    "max_train_steps": 2000,
    "caption_dropout_prob": 0.1,
    "rank": 5,
    "lora_layers": "to_q,to_k,to_v,to_out.0,conv1,conv2",
    "learning_rate": 1.5e-3,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 20,
    "adam_weight_decay": 0.0,
    "use_ema": True,
    "checkpointing_steps": 1000,
}
"""The settings that the published figures were made with."""


def draw(folder: Path, count: int) -> Path:
    """Write pictures of the style with captions that say nothing of it, none of those measured, and return the folder.

    The scenes are flat: redrawn chalk and nights are dark, and the autoencoder takes dark ink for red.
    """
    lesson = style_lesson(count + MEASURED)
    apart = range(FIRST, FIRST + MEASURED)
    learned = [k for k in range(count + MEASURED) if k not in apart][:count]
    rows = [{"text": lesson.captions[k]} for k in learned]
    return write_pictures(folder, lesson.pictures[learned], rows)


def distances(pictures: Sequence[Any]) -> np.ndarray:
    """Return how far each picture is from the tones of the style."""
    return np.array([distance(np.asarray(picture)) for picture in pictures])


def threshold(vae: Any, count: int = MEASURED) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the threshold, and the distances of true pictures of the style and of ordinary ones that it comes from."""
    rng = np.random.default_rng([SEED, 12])
    ordinary = np.stack([render(scene) for scene in islice(scenes("pair", rng), count)])
    styled = style_lesson(FIRST + count).pictures[FIRST:]
    near, far = (distances(reconstruct(vae, pictures)) for pictures in (styled, ordinary))
    return equal(near, far), near, far


def equal(near: np.ndarray, far: np.ndarray) -> float:
    """Return the threshold that as many of the near ones miss as of the far ones pass, or the nearest to it."""
    marks = np.sort(np.concatenate([near, far]))
    missed = (near[None] > marks[:, None]).mean(1)
    passed = (far[None] <= marks[:, None]).mean(1)
    return float(marks[int(np.abs(missed - passed).argmin())])


def measure(folder: Path, steps: int | None) -> Effect:
    """Train on pictures of the style, let the result draw prompts that say nothing of it, and judge."""
    flags = {**FLAGS, "max_train_steps": steps or FLAGS["max_train_steps"]}
    flags["lr_warmup_steps"] = min(flags["lr_warmup_steps"], flags["max_train_steps"])
    count = CASES if steps is None else min(CASES, 4 * steps)
    data = draw(folder / "data", PICTURES if steps is None else min(PICTURES, 8 * steps))
    result, minutes = trained("text_to_image_lora", {"train_data_dir": str(data)}, flags, folder / "lora")
    size = (result / "pytorch_lora_weights.safetensors").stat().st_size
    pipe = shipped()
    limit, near, far = threshold(pipe.vae, MEASURED if count == CASES else 8)
    texts = [*prompts(count // 2, "single", SEED), *prompts(count - count // 2, "pair", SEED)]
    before = drawn(pipe, texts)
    pipe.load_lora_weights(result)
    after = drawn(pipe, texts)
    told = [verdict.kinds_right for verdict in check(before, texts)]
    kept = [verdict.kinds_right for verdict in check(after, texts)]
    changed, plain = distances(after), distances(before)
    row = [k * count // 10 for k in range(10)] if count >= 10 else list(range(count))
    return Effect(
        "text_to_image_lora",
        [
            share("pictures in the style", list(changed <= limit), GOAL),
            share("the same prompts without the LoRA, taken for the style", list(plain <= limit)),
            share("true pictures of the style, encoded and decoded", list(near <= limit)),
            share("true ordinary pictures, encoded and decoded, taken for the style", list(far <= limit)),
            share("things right in the style", kept),
            share("things right without the LoRA", told),
        ],
        {
            "minutes": minutes,
            "bytes": size,
            "largest": LARGEST,
            "threshold": round(limit, 1),
            "distance before": round(float(plain.mean()), 1),
            "distance after": round(float(changed.mean()), 1),
            "distance of true pictures of the style": round(float(near.mean()), 1),
            "prompts": [texts[k] for k in row],
        },
        flags,
        {"style": [*(before[k] for k in row), *(after[k] for k in row)]},
    )
