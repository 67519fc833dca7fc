"""The checker says yes to true pictures and no to false prompts, also when a decoder has softened the picture."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from langevin.core.errors import InputError, WeightsError
from langevin.picturebook import checker
from langevin.picturebook.captions import Request, Wish, parse, request_of
from langevin.picturebook.checker import Found, Sight, check, judge, load_detector, look
from langevin.picturebook.decoys import UNKNOWN, add_decoy
from langevin.picturebook.detector import DetectorStage, spoil
from langevin.picturebook.loop import Budget, fit
from langevin.picturebook.scores import accuracy, prompts
from langevin.picturebook.world import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_COLOURS,
    HELD_OUT_RELATIONS,
    KINDS,
    Scene,
    Thing,
    render,
    sample_scene,
)


def pair(first: tuple[str, str], second: tuple[str, str], relation: str) -> Scene:
    """Return a scene of two (colour, kind) things."""
    places = ((0.27, 0.5), (0.73, 0.5)) if relation == "left of" else ((0.5, 0.27), (0.5, 0.73))
    things = tuple(
        Thing(kind, colour, "big", 1, x, y, 26 / 64)
        for (colour, kind), (x, y) in zip((first, second), places, strict=True)
    )
    return Scene(things, relation, "meadow", "flat", seed=3)


@pytest.fixture(scope="module")
def scores() -> dict[str, float]:
    return accuracy(n=200, seed=77)


@pytest.mark.parametrize("kind", ["single", "pair", "held-out"])
def test_true_pictures_are_accepted_and_false_prompts_refused(scores: dict[str, float], kind: str) -> None:
    assert scores[kind] >= 0.97
    assert scores[f"{kind} background"] >= 0.97
    assert scores[f"{kind} refused"] >= 0.98


def test_each_claim_is_judged_by_itself() -> None:
    picture = render(pair(("yellow", "sun"), ("red", "house"), "above"))
    asked = [
        "a red house under a yellow sun, meadow",
        "a yellow sun over a red house",
        "a blue house under a yellow sun",
        "a red house above a yellow sun",
        "a red house left of a yellow sun",
        "a red cat under a yellow sun",
        "a red house",
        "two red houses",
        "a house under a sun, night",
    ]
    verdicts = check([picture] * len(asked), asked)
    claims = [(v.kinds_right, v.colours_right, v.relation_right, v.background_right, v.all_right) for v in verdicts]
    assert claims == [
        (True, True, True, True, True),
        (True, True, True, True, True),
        (True, False, True, True, False),
        (True, True, False, True, False),
        (True, True, False, True, False),
        (False, False, False, True, False),
        (False, False, False, True, False),
        (False, False, False, True, False),
        (True, True, True, False, True),
    ]


def test_things_are_found_where_they_are() -> None:
    sight = look([render(pair(("purple", "kite"), ("white", "car"), "left of"))])[0]
    found = {thing.kind: thing for thing in sight.found}
    assert set(found) == {"kite", "car"}
    assert (found["kite"].colour, found["car"].colour) == ("purple", "white")
    assert found["kite"].x == pytest.approx(0.27, abs=0.04) and found["car"].x == pytest.approx(0.73, abs=0.04)
    assert all(thing.y == pytest.approx(0.5, abs=0.04) for thing in sight.found)
    assert (sight.background, sight.style) == ("meadow", "flat")


def test_an_empty_or_noisy_picture_shows_nothing() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    empty = np.stack([render(Scene((), None, name, "flat")) for name in ("meadow", "sea", "night", "plain")])
    assert not any(verdict.all_right for verdict in check(np.concatenate([noise, empty]), ["a red house"] * 8))
    assert all(sight.found == () for sight in look(empty))


def test_lumps_and_mixed_up_things_are_not_taken_for_things() -> None:
    rng = np.random.default_rng(11)
    accepted = []
    for background in BACKGROUNDS:
        for colour in COLOURS:
            scene = Scene((), None, background, "flat", seed=int(rng.integers(1000)))
            canvas = render(scene)
            add_decoy(canvas, Thing(UNKNOWN, colour, "big", 1, 0.5, 0.5, 34 / 64), scene, rng)
            accepted.append(any(thing.kind in KINDS for thing in look([canvas])[0].found))
    assert np.mean(accepted) <= 0.2


def test_softened_pictures_are_still_read() -> None:
    rng = np.random.default_rng(5)
    scenes = [sample_scene(rng) for _ in range(150)]
    clean = checker.to_pictures([render(scene) for scene in scenes])
    spoiled = spoil(clean, torch.Generator().manual_seed(0))
    verdicts = check(spoiled, [request_of(scene) for scene in scenes])
    assert np.mean([verdict.all_right for verdict in verdicts]) >= 0.9


def test_every_form_of_picture_gives_the_same_answer() -> None:
    from PIL import Image

    scene = pair(("orange", "cat"), ("blue", "bird"), "left of")
    array = render(scene)
    tensor = torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1)[None].float()
    forms = [[Image.fromarray(array)], [array], array[None], array[None] / 255.0, tensor, [render(scene, 128)]]
    for form in forms:
        assert check(form, ["an orange cat left of a blue bird"])[0].all_right


def test_two_things_of_one_kind_are_told_apart_by_colour_and_place() -> None:
    sight = Sight((Found("car", "red", 0.7, 0.5, 1.0), Found("car", "blue", 0.3, 0.5, 1.0)), "plain", "flat")
    assert judge(sight, parse("a blue car left of a red car")).all_right
    verdict = judge(sight, parse("a red car left of a blue car"))
    assert verdict.kinds_right and not verdict.all_right
    assert judge(sight, Request((Wish("car", None, None, 2),))).all_right
    assert not judge(sight, parse("two red cars")).all_right


def test_evaluation_prompts_are_fixed_and_of_their_kind() -> None:
    for kind in ("single", "pair", "held-out"):
        assert prompts(50, kind, seed=1) == prompts(50, kind, seed=1)
        assert prompts(50, kind, seed=1) != prompts(50, kind, seed=2)
        assert prompts(50, kind, seed=1)[:20] == prompts(20, kind, seed=1)
    single = [parse(text) for text in prompts(200, "single")]
    assert all(len(request.things) == 1 and request.things[0].count == 1 for request in single)
    assert all(len(parse(text).things) == 2 for text in prompts(200, "pair"))
    for request in (parse(text) for text in prompts(200, "held-out")):
        kinds = tuple(wish.kind for wish in request.things)
        new_colour = any((wish.colour, wish.kind) in HELD_OUT_COLOURS for wish in request.things)
        assert new_colour or (kinds[0], request.relation, kinds[1]) in HELD_OUT_RELATIONS
    for request in single:
        assert (request.things[0].colour, request.things[0].kind) not in HELD_OUT_COLOURS
    with pytest.raises(InputError, match="'pair'"):
        prompts(3, "pairs")


def test_the_shipped_weights_are_small() -> None:
    assert checker.WEIGHTS.stat().st_size < 2_000_000
    assert sum(parameter.numel() for parameter in load_detector().parameters()) <= 400_000


def test_bad_input_names_the_cure(tmp_path) -> None:
    picture = render(pair(("yellow", "sun"), ("red", "house"), "above"))
    with pytest.raises(InputError, match="one prompt per picture"):
        check([picture], ["a cat", "a house"])
    with pytest.raises(InputError, match="'hous'"):
        check([picture], ["a hous"])
    with pytest.raises(InputError, match="RGB"):
        look([picture[..., 0]])
    with pytest.raises(InputError, match=r"\(N, 3, H, W\)"):
        look(torch.zeros(3, 64, 64))
    with pytest.raises(WeightsError, match="--stage checker"):
        load_detector(tmp_path / "checker.safetensors")


def test_a_few_steps_of_training_lower_the_loss_and_are_written(tmp_path) -> None:
    torch.manual_seed(0)
    stage = DetectorStage(tmp_path)
    stage.recipe = replace(stage.recipe, batch=24, warmup=1)
    list(fit(stage, Budget(steps=12), log_every=-1))
    losses = [point["loss"] for point in json.loads((tmp_path / "checker.json").read_text())]
    assert len(losses) == 12 and np.mean(losses[-3:]) < 0.8 * losses[0]
    stage.write(tmp_path / stage.product)
    picture = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        made, read = (each(picture) for each in (stage.model, load_detector(tmp_path / stage.product)))
    assert all(torch.allclose(a, b, rtol=0, atol=0.02) and a.std() > 0.02 for a, b in zip(made, read, strict=True))
