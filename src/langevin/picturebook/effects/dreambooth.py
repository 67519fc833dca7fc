"""DreamBooth on the picturebook: a purple cat, which training never showed, is learned from five pictures as "sks cat".

Beside the subject its class is asked for, in colours that the model knows, before training and after, with the same
noise: what is lost was forgotten.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .cats import KIND, Judged, cases, judged, subject
from .common import Effect, drawn, share, shipped, trained, write_pictures

WORDS = f"sks {KIND}"
"""What the subject is called."""
PICTURES = 5
"""Pictures of the subject."""
CLASS_PICTURES = 40
"""Pictures of its class that the model draws itself, for prior preservation."""
CASES = 50
"""Prompts of the subject, and as many of its class."""
GOAL, LOST = 80.0, 5.0
"""Percent of prompts that show the subject; percentage points that the class may lose."""
SHARED: dict[str, Any] = {
    "instance_prompt": f"a {WORDS}",
    "resolution": 64,
    "center_crop": True,
    "cache_latents": True,
    "train_batch_size": 5,
    "lr_warmup_steps": 0,
    "checkpointing_steps": 1000,
    "mixed_precision": "no",
    "report_to": "none",
    "seed": 0,
}
"""The settings that all runs have."""
PRIOR: dict[str, Any] = {
    "with_prior_preservation": True,
    "class_prompt": f"a white {KIND}",
    "num_class_images": CLASS_PICTURES,
    "prior_loss_weight": 0.2,
}
"""Those of prior preservation; pictures of "a cat", in all colours, would speak against a purple one."""
OWN: dict[str, dict[str, Any]] = {
    "dreambooth": {"learning_rate": 1e-4, "max_train_steps": 60},
    "dreambooth_lora": {"learning_rate": 2e-3, "max_train_steps": 60},
}
"""Recipe -> its own settings."""
BEST = ("dreambooth", "dreambooth with prior preservation")
"""The variants that the goal of the subject is for."""
SEEDS = (0, 1000)
"""Of the pictures of the subject's prompts and of the class's."""


def class_pictures(folder: Path, count: int) -> Path:
    """Let the shipped model draw its class with its own guidance, where the recipe would take the pipeline's."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, picture in enumerate(drawn(shipped(), [PRIOR["class_prompt"]] * count, seed=5000)):
        picture.save(folder / f"{k:05d}.png")
    return folder


def learned(recipe: str, data: dict[str, str], flags: dict[str, Any], output: Path) -> tuple[Any, float]:
    """Train a recipe, and return the pipeline that its documentation loads, and the minutes of the training."""
    from ...pipelines.stable_diffusion import StableDiffusionPipeline

    result, minutes = trained(recipe, data, flags, output)
    if recipe == "dreambooth":
        return StableDiffusionPipeline.from_pretrained(result), minutes
    pipe = shipped()
    pipe.load_lora_weights(result)
    return pipe, minutes


def both(pipe: Any, count: int) -> tuple[Judged, Judged]:
    """Return what prompts of the subject show, and prompts of its class."""
    return judged(pipe, cases(count, WORDS), SEEDS[0]), judged(pipe, cases(count), SEEDS[1])


def measure(folder: Path, steps: int | None) -> Effect:
    """Train both recipes with and without prior preservation, and judge the subject and the class."""
    count = CASES if steps is None else min(CASES, 2 * steps)
    data = {"instance_data_dir": str(write_pictures(folder / "subject", subject(PICTURES)))}
    kept = {"class_data_dir": str(class_pictures(folder / "class", CLASS_PICTURES if steps is None else 2))}
    runs = {"before": both(shipped(), count)}
    figures: dict[str, Any] = {"prompts": [case.text for case in cases(min(count, 10), WORDS)]}
    for recipe, own in OWN.items():
        for prior in (False, True):
            name = f"{recipe} with prior preservation" if prior else recipe
            flags = {**SHARED, **own, **(PRIOR if prior else {})}
            if steps is not None:
                flags |= {"max_train_steps": steps, **({"num_class_images": 2} if prior else {})}
            pipe, minutes = learned(recipe, {**data, **(kept if prior else {})}, flags, folder / name.replace(" ", "-"))
            runs[name] = both(pipe, count)
            figures[f"minutes, {name}"] = minutes
    shares, before = [], sum(runs["before"][1].shown)
    for name, (cat, others) in runs.items():
        shares += [
            share(f"{name}: the subject is shown", cat.shown, GOAL if name in BEST else None),
            share(f"{name}: subject, all right", cat.right),
            share(f"{name}: cats of other colours are shown", others.shown),
            share(f"{name}: cats of other colours, all right", others.right),
        ]
        figures[f"points that the class lost, {name}"] = round(100 * (before - sum(others.shown)) / count, 1)
    figures["points that the class may lose"] = LOST
    row = slice(0, 10)
    shown = [picture for cat, others in runs.values() for picture in (*cat.pictures[row], *others.pictures[row])]
    return Effect("dreambooth", shares, figures, {**SHARED, **PRIOR, **OWN}, {"dreambooth": shown})
