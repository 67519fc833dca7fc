"""Custom Diffusion on the picturebook: a purple cat and a green boat, never shown in training, are learned together.

Each has a new word for what is special about it, so "a <new1> cat" is a purple one, and "a <new1> cat above a <new2>
boat" shows both. Some pictures show both, before backgrounds that the prompts of both do not ask for.
"""

from __future__ import annotations

import json
from itertools import count as numbers
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any

import numpy as np

from ..captions import PHRASES, SETTINGS, describe
from ..checker import check
from ..world import Scene, Thing, render, sample_scene
from .cats import subject
from .common import Effect, drawn, share, shipped, shows, trained, write_pictures

CONCEPTS = (("<new1>", "purple", "cat"), ("<new2>", "green", "boat"))
"""The new word, and the colour and the kind that never come together in the model's own training."""
PICTURES = 6
"""Pictures of each."""
BOTH_PICTURES = 4
"""Pictures of both for each background and each place that one has beside the other."""
BACKGROUNDS = ("plain", "desert")
"""Backgrounds of the pictures of both."""
PLACES = ("left of", "right of", "above", "below")
"""Where the first one is beside the second, in pictures of both."""
CLASS_PICTURES = 60
"""Scenes of each kind in colours that the model knows, and of two things, with captions, which keep what it knew."""
PROMPTS = 16
"""Prompts of each, of both, and of other colours."""
GOAL = 50.0
"""Percent of prompts of one that show it."""
FLAGS: dict[str, Any] = {
    "modifier_token": "+".join(word for word, _, _ in CONCEPTS),
    "initializer_token": "big+big",
    "noaug": True,
    "with_prior_preservation": True,
    "real_prior": True,
    "num_class_images": CLASS_PICTURES,
    "resolution": 64,
    "train_batch_size": 4,
    "max_train_steps": 500,
    "learning_rate": 1e-3,
    "lr_warmup_steps": 0,
    "checkpointing_steps": 1000,
    "mixed_precision": "no",
    "report_to": "none",
    "seed": 0,
}
"""The settings that the published figures were made with."""


def alone(word: str, kind: str, count: int) -> list[str]:
    """Return prompts of a thing that a word describes, before one background after the other."""
    settings = cycle([way for ways in zip(*SETTINGS.values(), strict=True) for way in ways])
    return [f"a {word} {kind}{setting}" for setting in islice(settings, count)]


def together(first: str, second: str, count: int) -> list[str]:
    """Return prompts of two things, each a word and a kind, in one relation after the other."""
    ways = product([ways[0] for ways in SETTINGS.values()], PHRASES)
    return [f"a {first} {phrase} a {second}{setting}" for setting, phrase in islice(ways, 0, None, 2)][:count]


def both(background: str, phrase: str, count: int) -> list[Scene]:
    """Return scenes of the first beside the second in a place, one of `PLACES`, that differ in their exact places."""
    relation, stays = PHRASES[phrase]
    looks = CONCEPTS if stays else CONCEPTS[::-1]
    found = []
    for k in range(count):
        along, across, extent = (k % 3 - 1) / 64, (k // 3 % 3 - 1) / 64, (24 + 2 * (k % 3)) / 64
        ways = [(0.27 + along, 0.58 + 3 * across), (0.73 + along, 0.58 + 3 * across)]
        if relation == "above":
            ways = [(0.5 + 4 * along, 0.27 + across), (0.5 + 4 * along, 0.73 + across)]
        things = tuple(
            Thing(kind, colour, "big", 1, x, y, extent) for (_, colour, kind), (x, y) in zip(looks, ways, strict=True)
        )
        found.append(Scene(things, relation, background, "flat", 301 * k + 7))
    return found


def known(folder: Path, count: int, rng: np.random.Generator, kind: str | None = None) -> Path:
    """Write scenes that show a kind, or two things, with captions, and return the folder."""
    found = (sample_scene(rng) for _ in numbers())
    fits = (s for s in found if (len(s.things) == 2 if kind is None else kind in {thing.kind for thing in s.things}))
    scenes = list(islice(fits, count))
    rows = [{"text": describe(scene, rng)} for scene in scenes]
    return write_pictures(folder, [render(scene) for scene in scenes], rows)


def draw(folder: Path, count: int, joint: int = BOTH_PICTURES) -> Path:
    """Write what the recipe learns from, with scenes as pictures of the class, and return the list of concepts."""
    rng = np.random.default_rng([1, 13])
    given = []
    for word, colour, kind in CONCEPTS:
        data = write_pictures(folder / kind, subject(PICTURES, colour, kind))
        given.append((data, f"a {word} {kind}", known(folder / f"{kind}-class", count, rng, kind)))
    pairs = known(folder / "pair-class", count, np.random.default_rng([2, 13]))
    (one, _, kind), (other, _, thing) = CONCEPTS
    for background, phrase in product(BACKGROUNDS, PLACES):
        scenes = both(background, phrase, joint)
        data = write_pictures(folder / f"{background} {phrase}".replace(" ", "-"), [render(scene) for scene in scenes])
        setting = "" if background == "plain" else SETTINGS[background][0]
        given.append((data, f"a {one} {kind} {phrase} a {other} {thing}{setting}", pairs))
    names = ("instance_data_dir", "instance_prompt", "class_data_dir")
    listed = folder / "concepts.json"
    listed.write_text(json.dumps([dict(zip(names, map(str, row), strict=True)) for row in given]), encoding="utf-8")
    return listed


def use(folder: Path) -> Any:
    """Return the shipped pipeline with what was learned, loaded as the documentation says."""
    pipe = shipped()
    pipe.unet.load_attn_procs(folder, weight_name="pytorch_custom_diffusion_weights.bin")
    for word, _, _ in CONCEPTS:
        pipe.load_textual_inversion(folder, weight_name=f"{word}.bin")
    return pipe


def measure(folder: Path, steps: int | None) -> Effect:
    """Learn both from their pictures, and judge prompts of each, of both, and of the same kinds in other colours."""
    flags, count = FLAGS, PROMPTS
    if steps is not None:
        scenes = min(CLASS_PICTURES, 2 * steps)
        flags, count = {**FLAGS, "max_train_steps": steps, "num_class_images": scenes}, min(PROMPTS, 2 * steps)
    listed = draw(folder, flags["num_class_images"], min(BOTH_PICTURES, flags["max_train_steps"]))
    result, minutes = trained("custom_diffusion", {"concepts_list": str(listed)}, flags, folder / "model")
    pipe, shares, rows = use(result), [], []
    for seed, (word, colour, kind) in enumerate(CONCEPTS):
        pictures = drawn(pipe, alone(word, kind, count), 1000 * seed)
        others = drawn(pipe, alone("red", kind, count), 1000 * seed)
        shares += [
            share(f"{word} {kind} is {colour}", shows(pictures, kind, [colour] * count), GOAL),
            share(f"a red {kind} is red", shows(others, kind, ["red"] * count)),
        ]
        rows += pictures[:10]
    (one, colour, kind), (other, second, thing) = CONCEPTS
    pictures = drawn(pipe, together(f"{one} {kind}", f"{other} {thing}", count), 2000)
    said = together(f"{colour} {kind}", f"{second} {thing}", count)
    verdicts, known = check(pictures, said), check(drawn(shipped(), said, 2000), said)
    shares += [
        share("both, in their colours", [verdict.colours_right for verdict in verdicts]),
        share("both, in their colours and their places", [verdict.all_right for verdict in verdicts]),
        share("the same, asked of the shipped model in known words", [verdict.all_right for verdict in known]),
    ]
    sizes = {path.name: path.stat().st_size for path in sorted(result.glob("*.bin"))}
    return Effect(
        "custom_diffusion",
        shares,
        {"minutes": minutes, "bytes": sizes},
        flags,
        {"custom-diffusion": [*rows, *pictures[:10]]},
    )
