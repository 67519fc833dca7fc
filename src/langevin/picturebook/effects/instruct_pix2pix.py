"""InstructPix2Pix on the picturebook: "make the cat blue" changes the cat and nothing else.

Pairs are drawn: a scene, and the same scene with another colour of one thing. A scene's picture is a function of the
scene, so the two differ in that thing's colour alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, permutations
from pathlib import Path
from typing import Any

import numpy as np

from ...core.images import from_array
from .. import GUIDANCE_SCALE, STEPS
from ..captions import PLURALS, request_of
from ..checker import Sight, judge, look
from ..scores import generate
from ..world import COLOURS, HELD_OUT_COLOURS, Scene, render, sample_scene
from .common import BASE, Effect, share, trained, write_pictures

SCENES, COLOURINGS = 900, 4
"""Scenes to learn from, and how often each is drawn with another colour of a thing; every two of them are two pairs."""
CASES = 52
"""Scenes to edit that training has not drawn."""
TRAINED, JUDGED = 1, 2
"""Seeds of the scenes to learn from and of those to judge by."""
GOAL = 70.0
"""Percent of edits that are right in everything."""
IMAGE_GUIDANCE = 1.5
"""Weight of the picture to edit."""
NEAR = 4
"""How many pixels a thing may lie beside its place."""
LIKE = 8.0
"""How far the pixels beside the things may be from what they were, on average, of 255."""
FLAGS: dict[str, Any] = {
    **BASE,
    "max_train_steps": 3000,
    "learning_rate": 4e-4,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 0,
    "conditioning_dropout_prob": 0.05,
    "use_ema": True,
    "original_image_column": "image",
    "edited_image_column": "after",
    "checkpointing_steps": 100,
}
"""The settings that the published figures were made with."""


@dataclass(frozen=True)
class Edit:
    """A scene, the instruction to change it, and what should become of it."""

    before: Scene
    text: str
    after: Scene


@dataclass(frozen=True)
class Outcome:
    """What an edit did: the things that were there, and only they, have the colours that they should have, lie where
    they lay, and stand before what they stood before."""

    kinds: bool
    colours: bool
    places: bool
    background: bool

    @property
    def right(self) -> bool:
        """Whether all of it is as it should be."""
        return self.kinds and self.colours and self.places and self.background


def _coloured(scene: Scene, index: int, colour: str) -> Edit:
    """Return the edit that gives a thing of a scene a colour."""
    thing = scene.things[index]
    things = [replace(one, colour=colour) if k == index else one for k, one in enumerate(scene.things)]
    name = thing.kind if thing.count == 1 else PLURALS[thing.kind]
    return Edit(scene, f"make the {name} {colour}", replace(scene, things=tuple(things)))


def _places(seed: int) -> Iterator[tuple[Scene, int, list[str]]]:
    """Draw scenes without end, the number of a thing in each, and other colours that training may show on it, mixed."""
    rng = np.random.default_rng([seed, 8])
    while True:
        scene = sample_scene(rng)
        index = int(rng.integers(len(scene.things)))
        thing = scene.things[index]
        free = [c for c in COLOURS if c != thing.colour and (c, thing.kind) not in HELD_OUT_COLOURS]
        yield scene, index, [str(colour) for colour in rng.permutation(free)]


def lessons(scenes: int) -> list[Edit]:
    """Return the pairs to learn from: all ways from one colouring of a scene to another one."""
    pairs = []
    for scene, index, free in islice(_places(TRAINED), scenes):
        drawn = [scene, *(_coloured(scene, index, colour).after for colour in free[: COLOURINGS - 1])]
        pairs += [_coloured(one, index, other.things[index].colour) for one, other in permutations(drawn, 2)]
    return pairs


def cases(count: int, colour: str = "blue") -> list[Edit]:
    """Return edits of scenes that training has not drawn, in which a thing is to take a colour."""
    found = (_coloured(scene, index, colour) for scene, index, free in _places(JUDGED) if colour in free)
    return list(islice(found, count))


def draw(folder: Path, pairs: Sequence[Edit]) -> Path:
    """Write pairs as a folder that the recipe reads, and return it."""
    after = write_pictures(folder / "after", [render(edit.after) for edit in pairs])
    names = sorted(path.name for path in after.glob("*.png"))
    rows = [
        {"after_file_name": f"after/{name}", "edit_prompt": edit.text} for name, edit in zip(names, pairs, strict=True)
    ]
    return write_pictures(folder, [render(edit.before) for edit in pairs], rows)


def beside(scene: Scene) -> np.ndarray:
    """Return which pixels (64, 64) lie beside all things of a scene, and not near one."""
    beside = np.ones((64, 64), dtype=bool)
    for thing in scene.things:
        reach = 32 * thing.extent + 2
        for x, y in thing.centres:
            left, top = (max(0, round(64 * centre - reach)) for centre in (x, y))
            beside[top : round(64 * y + reach), left : round(64 * x + reach)] = False
    return beside


def _placed(scene: Scene, sight: Sight) -> bool:
    """Tell whether every thing of a scene is seen where it should be."""
    return all(
        any(f.kind == thing.kind and max(abs(f.x - x), abs(f.y - y)) <= NEAR / 64 for f in sight.found)
        for thing in scene.things
        for x, y in thing.centres
    )


def outcomes(pairs: Sequence[Edit], pictures: Sequence[Any]) -> list[Outcome]:
    """Judge edited pictures, PIL or uint8 (64, 64, 3), by the checker and by their pixels."""
    found = []
    for edit, picture, sight in zip(pairs, pictures, look(pictures), strict=True):
        verdict = judge(sight, request_of(edit.after))
        change = np.abs(np.asarray(picture, dtype=np.float32) - render(edit.before))
        alike = float(change[beside(edit.before)].mean()) <= LIKE
        places = _placed(edit.after, sight)
        found.append(
            Outcome(verdict.kinds_right, verdict.colours_right, places, verdict.background_right and alike)
        )
    return found


def shown(pairs: Sequence[Edit]) -> list[Any]:
    """Return the pictures to edit."""
    return from_array(np.stack([render(edit.before) for edit in pairs]) / 255)


def edited(pipe: Any, pairs: Sequence[Edit], **options: Any) -> list[Any]:
    """Return what a pipeline makes of the pictures to edit."""
    options = {"guidance_scale": GUIDANCE_SCALE, "image_guidance_scale": IMAGE_GUIDANCE, **options}
    texts = [edit.text for edit in pairs]
    return generate(pipe, texts, steps=STEPS, batch=16, conditions=shown(pairs), **options)


def measure(folder: Path, steps: int | None) -> Effect:
    """Train on drawn pairs, let the result make a thing blue in pictures that it does not know, and judge."""
    from ...pipelines.stable_diffusion_edit import StableDiffusionInstructPix2PixPipeline

    flags, scenes, count = FLAGS, SCENES, CASES
    if steps is not None:
        flags = {**FLAGS, "max_train_steps": steps}
        scenes, count = min(SCENES, 2 * steps), min(CASES, 2 * steps)
    data = {"train_data_dir": str(draw(folder / "data", lessons(scenes)))}
    result, minutes = trained("instruct_pix2pix", data, flags, folder / "model")
    return judged(StableDiffusionInstructPix2PixPipeline.from_pretrained(result), count, flags, minutes)


def judged(pipe: Any, count: int, flags: dict[str, Any], minutes: float) -> Effect:
    """Let a pipeline make a thing blue in pictures, and return what it achieved."""
    from ..steering import reconstruct

    pairs = cases(count)
    made = edited(pipe, pairs)
    ceiling = reconstruct(pipe.vae, np.stack([render(edit.after) for edit in pairs]))
    found, best = outcomes(pairs, made), outcomes(pairs, ceiling)
    sides: dict[str, list[bool]] = {"one thing": [], "two things": []}
    for edit, one in zip(pairs, found, strict=True):
        sides["one thing" if len(edit.before.things) == 1 else "two things"].append(one.right)
    row = slice(0, 10)
    return Effect(
        "instruct_pix2pix",
        [
            share("make it blue, all right", [one.right for one in found], GOAL),
            *(share(f"make it blue in pictures of {name}", side) for name, side in sides.items() if side),
            share("things right", [one.kinds for one in found]),
            share("colours right", [one.colours for one in found]),
            share("places kept", [one.places for one in found]),
            share("background kept", [one.background for one in found]),
            share("true pictures, encoded and decoded, all right", [one.right for one in best]),
        ],
        {"minutes": minutes, "instructions": [edit.text for edit in pairs[row]]},
        flags,
        {"edits": [*shown(pairs[row]), *made[row], *ceiling[row]]},
    )
