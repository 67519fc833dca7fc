"""Textual inversion on the picturebook: `<mika>`, a purple cat, which training never showed, from a few pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..unseen import BEGUN, WORD, word_lesson
from .cats import Judged, cases, judged
from .common import BASE, Effect, share, shipped, trained, write_pictures

PICTURES = 5
"""Pictures to learn from, for the goal."""
OTHERS: tuple[int, ...] = (20,)
"""Other numbers of pictures, to see what they change."""
CASES = 50
"""Prompts."""
GOAL = 60.0
"""Percent of prompts that show the character."""
FLAGS: dict[str, Any] = {
    **BASE,
    "placeholder_token": WORD,
    "initializer_token": " ".join(BEGUN),
    "num_vectors": 2,
    "caption_column": "text",
    "max_train_steps": 200,
    "learning_rate": 1e-2,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 10,
    "adam_weight_decay": 0.0,
    "checkpointing_steps": 1000,
}
"""The settings that the published figures were made with."""


def learned(folder: Path, pictures: int, flags: dict[str, Any], count: int) -> tuple[Judged, float]:
    """Train the word on some pictures, and return what prompts with it show, and the minutes of the training."""
    lesson = word_lesson(pictures)
    rows = [{"text": text} for text in lesson.captions]
    data = write_pictures(folder / f"{pictures}-pictures", lesson.pictures, rows)
    result, minutes = trained("textual_inversion", {"train_data_dir": str(data)}, flags, folder / f"{pictures}-word")
    pipe = shipped()
    pipe.load_textual_inversion(result)
    return judged(pipe, cases(count, WORD), 0), minutes


def measure(folder: Path, steps: int | None) -> Effect:
    """Train on five pictures and on more, and with ready-made captions, and judge what prompts with the word show."""
    flags = {**FLAGS, "max_train_steps": steps or FLAGS["max_train_steps"]}
    flags["lr_warmup_steps"] = min(flags["lr_warmup_steps"], flags["max_train_steps"])
    count = CASES if steps is None else min(CASES, 4 * steps)
    begun = judged(shipped(), cases(count, flags["initializer_token"]), 0)
    found, minutes = learned(folder, PICTURES, flags, count)
    shares = [
        share(f"{PICTURES} pictures: the cat is shown", found.shown, GOAL),
        share(f"{PICTURES} pictures: all right", found.right),
        share("before training: the cat is shown", begun.shown),
    ]
    figures: dict[str, Any] = {"minutes": minutes, "prompts": [case.text for case in cases(min(count, 10), WORD)]}
    for others in OTHERS if steps is None else ():
        more, figures[f"minutes, {others} pictures"] = learned(folder, others, flags, count)
        shares.append(share(f"{others} pictures: the cat is shown", more.shown))
        shares.append(share(f"{others} pictures: all right", more.right))
    row = slice(0, 10)
    return Effect("textual_inversion", shares, figures, flags, {"word": [*begun.pictures[row], *found.pictures[row]]})
