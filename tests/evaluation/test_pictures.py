"""Folders of pictures measured: with the picturebook's eyes, and with an extractor of the test's own."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from langevin.core.errors import ConfigError, InputError
from langevin.evaluation.features import Clip, ClipScore, Preprocessing, chosen, edits, fingerprint
from langevin.evaluation.folders import Shown, answering, kept_in, natural, read
from langevin.evaluation.pictures import Look, Seen, compare, evaluate, evaluate_edits
from langevin.picturebook import model_folder
from langevin.picturebook.captions import describe
from langevin.picturebook.features import AsAsked, CheckerFeatures, clip
from langevin.picturebook.world import render, sample_scene


class Colours:
    """Mean colours and their spread: an extractor as anybody can write one."""

    name, policy = "colours", "none"

    def __call__(self, pictures):
        pixels = [torch.from_numpy(np.asarray(picture).reshape(-1, 3) / 255) for picture in pictures]
        return torch.stack([torch.cat([p.mean(0), p.std(0)]) for p in pixels])


class Bright:
    """A judge of the test's own."""

    name, about = "brightness", "the mean of all pixels"

    def __call__(self, pictures, prompts):
        return torch.tensor([float(np.asarray(picture).mean()) for picture in pictures])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Ten scenes of the picturebook in a folder, each with its caption beside it."""
    folder, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(3)
    prompts: list[str] = []
    while len(prompts) < 10:
        scene = sample_scene(rng)
        text = describe(scene, rng)
        if text not in prompts:
            Image.fromarray(render(scene)).save(folder / f"{len(prompts)}.png")
            (folder / f"{len(prompts)}.txt").write_text(text)
            prompts.append(text)
    return folder


@pytest.fixture(scope="module")
def eyes() -> Clip:
    return clip()


def test_clip_prefers_the_right_caption_and_the_checker_sees_it(world, eyes) -> None:
    pictures = read(world)
    right = evaluate(pictures, Look(judges=[ClipScore(eyes), AsAsked()], resamples=50))
    turned = [
        Shown(s.name, s.path, other.prompt) for s, other in zip(pictures, pictures[1:] + pictures[:1], strict=True)
    ]
    wrong = evaluate(turned, Look(judges=[ClipScore(eyes), AsAsked()], resamples=50))
    for good, bad in zip(right.figures, wrong.figures, strict=True):
        assert good.low > bad.high and good.count == 10, good.name
    assert "shortest side to 64, bicubic; middle 64 x 64" in right.about["judged by"]


def test_clip_score_is_100_times_the_mean_cosine(world, eyes) -> None:
    pictures = read(world)
    found = evaluate(pictures, Look(judges=[ClipScore(eyes)], batch=3, resamples=20)).figures[0].value
    one, two = eyes([s.open() for s in pictures]), eyes.read([s.prompt for s in pictures])
    assert found == pytest.approx(100 * torch.cosine_similarity(one, two).mean().item(), abs=1e-4)


def test_preprocessing_is_that_of_transformers(eyes) -> None:
    clips = importlib.import_module("transformers.models.clip")
    processor = getattr(clips, "CLIPImageProcessorPil", clips.CLIPImageProcessor)
    rng = np.random.default_rng(0)
    for config in (
        json.loads((model_folder() / "clip" / "preprocessor_config.json").read_text()),
        {"size": {"height": 40, "width": 30}, "do_center_crop": False, "image_mean": [0.5] * 3, "image_std": [0.2] * 3},
        {"size": {"shortest_edge": 50}, "crop_size": {"height": 40, "width": 48}, "resample": 2, "do_normalize": False},
    ):
        for size in ((90, 201), (200, 71), (64, 64)):
            picture = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
            ours = Preprocessing.read(config)([picture])
            theirs = processor(**config)(picture, return_tensors="pt")["pixel_values"]
            assert torch.allclose(ours, theirs, atol=1e-6), (config, size)


def test_policies_are_told_and_faulty_ones_refused() -> None:
    assert Preprocessing.read({"size": 224, "image_mean": [0], "image_std": [1]}).policy == (
        "shortest side to 224, bicubic; middle 224 x 224"
    )
    box = {"size": {"height": 4, "width": 3}, "do_center_crop": False, "do_normalize": False, "resample": 2}
    assert Preprocessing.read(box).policy == "to 3 x 4, bilinear"
    as_it_is = Preprocessing.read({"do_resize": False, "do_center_crop": False, "do_normalize": False})
    assert as_it_is.policy == "none: pictures must have the model's size"
    with pytest.raises(InputError, match="different sizes"):
        as_it_is([Image.new("RGB", (2, 3)), Image.new("RGB", (3, 2))])
    with pytest.raises(ConfigError, match="no image_mean"):
        Preprocessing.read({})
    with pytest.raises(ConfigError, match="shortest_edge or height and width"):
        Preprocessing.read({"size": {"longest_edge": 3}})
    with pytest.raises(ConfigError, match="'clip_text_model' network"):
        Clip.from_pretrained(model_folder() / "text_encoder")


def test_one_file_of_weights_is_fetched() -> None:
    names = ["config.json", "merges.txt", "model.safetensors", "pytorch_model.bin", "flax_model.msgpack", "onnx/a.json"]
    assert chosen(names) == ["config.json", "merges.txt", "model.safetensors"]
    assert chosen(["vocab.json", "pytorch_model.bin"]) == ["vocab.json", "pytorch_model.bin"]


def test_long_prompts_are_cut_and_named(eyes) -> None:
    assert eyes.cut(["a red house", "a red house " * 20]) == ["a red house " * 20]
    with pytest.raises(InputError, match=r"'astronaut'.*name a CLIP"):
        eyes.read(["an astronaut"])


def test_edits_follow_their_captions(eyes) -> None:
    rng = np.random.default_rng(1)
    scenes = [sample_scene(rng) for _ in range(12)]
    before, after = (list(map(Image.fromarray, map(render, part))) for part in (scenes[:6], scenes[6:]))
    old, new = ([describe(scene, rng) for scene in part] for part in (scenes[:6], scenes[6:]))
    right, turned = edits(eyes, before, after, old, new), edits(eyes, before, after, new, old)
    assert torch.allclose(right.directional, -turned.directional) and (right.directional > 0.3).all()
    still = edits(eyes, before, before, old, new)
    assert torch.allclose(still.directional, torch.zeros(6).double()) and torch.allclose(
        still.kept, torch.ones(6).double()
    )
    with pytest.raises(InputError, match=r"\[6, 6, 6, 5\]"):
        edits(eyes, before, after, old, new[:5])


def test_edits_of_folders_pair_by_name(world, eyes, tmp_path) -> None:
    pictures = read(world)
    turned = [Shown(a.name, b.path, b.prompt) for a, b in zip(pictures, pictures[1:] + pictures[:1], strict=True)]
    result = evaluate_edits(pictures, turned, Look(resamples=50), eyes)
    assert [each.name for each in result.figures] == ["directional similarity", "picture similarity"]
    assert result.figures[0].low > 0.3 and result.figures[0].count == 10
    with pytest.raises(InputError, match=r"1 edited pictures have no picture of their name .* 2 edited .* no caption"):
        evaluate_edits(pictures, [Shown("x.png", world), Shown("0.png", world)], Look(), eyes)


def test_batches_parts_and_order_change_nothing(world) -> None:
    pictures = read(world)
    look = Look(Colours(), [Bright()], batch=4)
    whole, by_one = look.at(pictures), Look(Colours(), [Bright()], batch=1).at(pictures[::-1])
    parts = look.at(pictures[7:]) + look.at(pictures[:7])
    for other in (by_one, parts):
        assert other.features.keys == whole.features.keys and torch.equal(other.features.rows, whole.features.rows)
        assert other.scores["brightness"].by_prompt == whole.scores["brightness"].by_prompt
        assert other.sizes == {"64x64": 10}
    with pytest.raises(InputError, match="looked at in the same way"):
        _ = whole + Seen()


def test_other_sizes_are_said_and_few_pictures_too(world, tmp_path) -> None:
    Image.open(world / "0.png").resize((80, 40)).save(tmp_path / "a.png")
    Image.open(world / "1.png").save(tmp_path / "b.png")
    for k in range(2, 6):
        Image.open(world / f"{k}.png").save(tmp_path / f"{k}.png")
    result = evaluate(read(tmp_path), Look(Colours(), resamples=20), against=read(world))
    assert [each.name for each in result.figures] == ["FID", "KID", "precision", "recall"]
    assert result.about["pictures"] == "5 of 64x64, 1 of 80x40; 10 of 64x64"
    assert "sizes differ" in str(result) and "6 pictures are few for 6 features" in str(result)
    assert json.loads(json.dumps(result.to_dict()))["about"]["features"] == "colours; resized: none"


def test_one_picture_is_too_few(world, tmp_path) -> None:
    Image.open(world / "0.png").save(tmp_path / "0.png")
    with pytest.raises(InputError, match="at least two pictures"):
        evaluate(read(tmp_path), Look(Colours()), against=read(world))
    with pytest.raises(InputError, match="at least two pictures"):
        evaluate(answering(read(tmp_path), ["a cat"]), Look(judges=[Bright()]))
    with pytest.raises(InputError, match="nothing to measure"):
        evaluate(read(world), Look(Colours()))
    with pytest.raises(InputError, match="nothing to measure"):
        compare(read(world), read(world), Look(Colours()))
    with pytest.raises(InputError, match=r"No prompt is known for 0\.png"):
        evaluate(read(tmp_path), Look(judges=[Bright()]))


def test_a_spoilt_copy_is_worse(world, tmp_path) -> None:
    good = read(world)
    for shown in good:
        Image.fromarray(np.asarray(shown.open()) // 3).save(tmp_path / shown.name)
    spoilt = answering(read(tmp_path), [str(shown.prompt) for shown in good])
    result, rows = compare(good, spoilt, Look(CheckerFeatures(), [Bright()], resamples=60), against=good)
    assert [each.verdict for each in result.figures] == ["better"] * 3
    assert len(rows["brightness"]) == 10 and all(a > b for _, a, b in rows["brightness"])
    assert "several figures err more often" in str(result) and "A is" in str(result)
    few, _ = compare(good[:4], spoilt[:4], Look(judges=[Bright()], resamples=60))
    assert few.figures[0].verdict == "no difference seen" and "below 6 prompts no verdict" in str(few)
    even, _ = compare(good, good, Look(judges=[Bright()], resamples=60))
    assert even.figures[0].verdict == "no difference seen" and "resampling sees no spread" in str(even)
    assert even.to_dict()["figures"][0]["verdict"] == "no difference seen"


def test_prompts_come_from_where_pictures_keep_them(tmp_path) -> None:
    def save(name: str, **texts: str) -> None:
        info = PngImagePlugin.PngInfo()
        for key, value in texts.items():
            info.add_text(key, value)
        Image.new("RGB", (4, 4)).save(tmp_path / name, pnginfo=info)

    save("10.png", langevin=json.dumps({"prompt": "ten"}))
    save("2.png", parameters="two, three\nNegative prompt: x\nSteps: 3, Seed: 1")
    save("3.png", langevin=json.dumps({"prompt": "said elsewhere"}))
    save("4.png")
    save("sheet.png", langevin=json.dumps({"prompt": "ten", "seeds": [1, 2]}))
    (tmp_path / "3.txt").write_text("three\n")
    found = read(tmp_path)
    assert [(shown.name, shown.prompt) for shown in found] == [
        ("2.png", "two, three"), ("3.png", "three"), ("4.png", None), ("10.png", "ten"),
    ]  # fmt: skip
    assert [shown.name for shown in answering(found, ["ten", "three"])] == ["3.png", "10.png"]
    with pytest.raises(InputError, match="no picture of 1 of the 2 prompts, such as 'four'"):
        answering(found, ["ten", "four"])
    assert kept_in(tmp_path / "4.png") == {} and natural("a2") < natural("a10")


def test_pictures_without_prompts_answer_by_order() -> None:
    pictures = [Shown(f"{k}.png", None) for k in range(4)]
    assert [shown.prompt for shown in answering(pictures, ["a", "b"])] == ["a", "a", "b", "b"]
    for prompts in (["a", "b", "c"], list("abcdef")):
        with pytest.raises(InputError, match=r"has 4 pictures, which keep no prompts, and there are \d prompts"):
            answering(pictures, prompts)


def test_faulty_folders_are_named(tmp_path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read(tmp_path / "none")
    with pytest.raises(InputError, match="holds no picture"):
        read(tmp_path)
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"a\.png cannot be read as a picture"):
        read(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "x"}\nno json\n')
    with pytest.raises(InputError, match=r"(?s)cannot be evaluated:.*line 2: no JSON.*b\.png does not exist"):
        read(tmp_path)


def test_a_fingerprint_is_of_pixels_and_shape() -> None:
    one = Image.new("RGB", (2, 3), "red")
    assert fingerprint(one) == fingerprint(one.copy()) != fingerprint(Image.new("RGB", (3, 2), "red"))
