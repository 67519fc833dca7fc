"""The shipped style and word change the pictures in the way they were made for, and leave no trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import langevin
from langevin.picturebook import GUIDANCE_SCALE, adapters_folder, model_folder
from langevin.picturebook.checker import check, look
from langevin.picturebook.scores import generate
from langevin.picturebook.unseen import LOOK, WORD, distance, sepia, style_lesson, word_lesson

SCENES = (
    "a red house in a meadow",
    "two small blue fish",
    "a yellow kite over a green car",
    "a purple mushroom, desert",
)
CAST = ("a {} in a meadow", "a small {} at night", "a {} to the left of a red house", "a big {} in the snow")


@pytest.fixture(scope="module")
def pipe():
    made = langevin.StableDiffusionPipeline.from_pretrained(model_folder(), torch_dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


def draw(pipe, texts, steps=8, **options):
    return generate(pipe, texts, steps=steps, guidance_scale=GUIDANCE_SCALE, batch=8, **options)


def test_a_style_that_training_never_showed(pipe) -> None:
    before = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
    plain = draw(pipe, SCENES[:1], steps=2)
    pipe.load_lora_weights(adapters_folder(), weight_name="sepia.safetensors", adapter_name="sepia")
    assert np.array_equal(draw(pipe, SCENES[:1], steps=2, cross_attention_kwargs={"scale": 0.0})[0], plain[0])
    far = {}
    for scale in (0.0, 0.5, 1.0):
        pictures = draw(pipe, SCENES, cross_attention_kwargs={"scale": scale})
        far[scale] = [distance(picture) for picture in pictures]
    assert np.mean(far[0.0]) > np.mean(far[0.5]) > np.mean(far[1.0])
    assert all(there < 0.7 * here for here, there in zip(far[0.0], far[1.0], strict=True)), far
    kinds = [verdict.kinds_right for verdict in check(pictures, SCENES)]
    assert sum(kinds) >= 3, kinds
    pipe.unload_lora_weights()
    after = pipe.unet.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_a_word_for_what_training_never_showed(pipe) -> None:
    texts = [text.format("cat") for text in CAST]
    neutral, plain = draw(pipe, texts), draw(pipe, texts[:1], steps=2)
    pipe.load_textual_inversion(adapters_folder(), weight_name="mika.safetensors")
    learned = draw(pipe, [text.format(WORD) for text in CAST])
    pipe.unload_textual_inversion()
    shown = [[{(thing.colour, thing.kind) for thing in sight.found} for sight in look(p)] for p in (neutral, learned)]
    hits = [sum(LOOK in things for things in each) for each in shown]
    assert hits[0] == 0 and hits[1] >= 3, shown
    assert ("red", "house") in shown[1][2]
    assert np.array_equal(draw(pipe, texts[:1], steps=2)[0], plain[0])


def test_the_files_are_small_and_say_what_they_are() -> None:
    sizes = {file.name: file.stat().st_size for file in adapters_folder().iterdir()}
    assert set(sizes) == {"sepia.safetensors", "mika.safetensors"}
    assert sizes["sepia.safetensors"] < 1_000_000 and sizes["mika.safetensors"] < 8_000


def test_lessons_show_what_is_to_be_learned() -> None:
    lesson = style_lesson(6)
    assert all(distance(picture) < 2 for picture in lesson.pictures)
    assert not any("sepia" in caption for caption in lesson.captions)
    cast = word_lesson(6)
    assert all(WORD in caption and "purple cat" not in caption for caption in cast.captions)
    assert all(any((t.colour, t.kind) == LOOK for t in sight.found) for sight in look(list(cast.pictures)))
    grey = np.full((4, 4, 3), 90, dtype=np.uint8)
    assert distance(grey) > 5 and np.array_equal(sepia(sepia(grey)).shape, grey.shape)
