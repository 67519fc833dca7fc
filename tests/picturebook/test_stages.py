"""Training and measuring from the command line: every stage takes a step, and what it writes can be loaded."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from langevin import ControlNetModel, StableDiffusionPipeline
from langevin.core.errors import InputError
from langevin.picturebook import adapters_folder, clip, data, evaluate, model_folder, train, unseen
from langevin.picturebook.adapters import StyleStage
from langevin.picturebook.captions import describe
from langevin.picturebook.data import cached
from langevin.picturebook.denoiser import DenoiserStage
from langevin.picturebook.loop import Budget
from langevin.picturebook.world import render, sample_scene

COUNT = 8


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Let previews and the search for latents take one step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DenoiserStage, "preview_steps", 1)
        patch.setattr(StyleStage, "descent", 1)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder in which a training set of few scenes is drawn."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "data").mkdir()
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(COUNT)]
    np.save(folder / "data" / "pictures.npy", np.stack([render(scene) for scene in scenes]))
    np.save(folder / "data" / "facts.npy", np.array([data.facts_of(scene) for scene in scenes]))
    lines = ["\t".join(describe(scene, rng) for _ in range(data.CAPTIONS)) for scene in scenes]
    (folder / "data" / "captions.txt").write_text("\n".join(lines))
    return folder


def run(folder, stage: str, *more: str) -> None:
    common = ("--scenes", str(COUNT), "--batch", "2", "--steps", "1", "--threads", str(torch.get_num_threads()))
    train.main(["--stage", stage, "--folder", str(folder), *common, *more])


@pytest.fixture(scope="module")
def trained(folder):
    """Return the folder after all stages of a pipeline have made a step."""
    run(folder, "all")
    return folder


def test_all_stages_make_a_pipeline(trained) -> None:
    for stage in ("clip", "text", "autoencoder", "unet", "decoder"):
        assert [point["step"] for point in json.loads((trained / f"{stage}.json").read_text())] == [1], stage
    pipe = StableDiffusionPipeline.from_pretrained(trained / "model", torch_dtype=torch.float32)
    kept = torch.load(trained / "unet.pt", weights_only=True)
    for weight, mean in zip(pipe.unet.parameters(), kept["average"], strict=True):
        assert torch.allclose(weight, mean, atol=1e-3, rtol=1e-3)
    shipped = {file.relative_to(model_folder()) for file in model_folder().rglob("*") if file.is_file()}
    assert {file.relative_to(trained / "model") for file in (trained / "model").rglob("*") if file.is_file()} == shipped


def test_a_control_is_trained_on_a_pipeline_folder_and_written(trained, tmp_path, capsys) -> None:
    run(trained, "control", "--start", str(trained / "model"), "--output", str(tmp_path / "edges"))
    assert ControlNetModel.from_pretrained(tmp_path / "edges").config.conditioning_embedding_out_channels
    assert (trained / "control-1.png").is_file() and f"{tmp_path / 'edges'}: " in capsys.readouterr().out


def test_new_weights_make_caches_stale(trained) -> None:
    """Training an encoder further deletes what was worked out with the old one; what did not change is kept."""
    old = {name: (trained / "data" / name).stat().st_mtime_ns for name in ("latents.npy", "states.npy", "tokens.npy")}
    run(trained, "autoencoder", "--steps", "2")
    assert not (trained / "data" / "latents.npy").exists()
    assert old["states.npy"] == (trained / "data" / "states.npy").stat().st_mtime_ns
    run(trained, "text", "--steps", "2")
    assert not (trained / "data" / "states.npy").exists()
    assert old["tokens.npy"] == (trained / "data" / "tokens.npy").stat().st_mtime_ns


def test_a_cache_of_another_size_is_made_anew(tmp_path) -> None:
    made = []

    def compute(rows):
        made.append(rows.tolist())
        return rows[:, None].float()

    for count in (3, 3, 5):
        assert cached(tmp_path / "numbers.npy", (count, 1), 2, compute).flatten().tolist() == list(range(count))
    assert made == [[0, 1], [2], [0, 1], [2, 3], [4]]


def test_the_training_set_is_drawn_once_and_anew_when_more_is_asked(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(data, "_CHUNK", 3)
    monkeypatch.setattr(data, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers))
    drawn = data.load(tmp_path / "data", 4)
    assert len(drawn) == len(drawn.pictures) == len(drawn.facts) == 6 and len(drawn.captions[0]) == data.CAPTIONS
    assert sorted(os.listdir(tmp_path / "data")) == ["captions.txt", "facts.npy", "pictures.npy"]
    made = (tmp_path / "data" / "facts.npy").stat().st_mtime_ns
    assert len(data.load(tmp_path / "data", 6)) == 6 and (tmp_path / "data" / "facts.npy").stat().st_mtime_ns == made
    more = data.load(tmp_path / "data", 7)
    assert len(more) == 9 and np.array_equal(more.pictures[:6], drawn.pictures) and more.captions[:6] == drawn.captions


@pytest.mark.parametrize("stage", ["style", "word"])
def test_an_adapter_is_trained_and_written_as_the_shipped_one_is(stage: str, tmp_path) -> None:
    run(tmp_path, stage)
    assert (tmp_path / f"{stage}-1.png").is_file()
    pipe = StableDiffusionPipeline.from_pretrained(model_folder(), torch_dtype=torch.float32)
    if stage == "style":
        file, like = tmp_path / "sepia.safetensors", adapters_folder() / "sepia.safetensors"
        pipe.load_lora_weights(tmp_path, weight_name=file.name)
        ours, shipped = load_file(file), load_file(like)
        assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in shipped.items()}
        assert all(tensor.any() and tensor.dtype == torch.float16 for tensor in ours.values())
    else:
        file, like = tmp_path / "mika.safetensors", adapters_folder() / "mika.safetensors"
        pipe.load_textual_inversion(tmp_path, weight_name=file.name)
        assert unseen.WORD in pipe.tokenizer.get_vocab()
    assert file.stat().st_size == pytest.approx(like.stat().st_size, rel=0.05)


def test_adapters_train_on_the_cpu(tmp_path) -> None:
    with pytest.raises(InputError, match="leave out --device cuda"):
        run(tmp_path, "word", "--device", "cuda")


def test_minutes_and_steps_exclude_each_other_and_none_is_a_budget(capsys) -> None:
    with pytest.raises(SystemExit):
        train.parser().parse_args(["--minutes", "1", "--steps", "1"])
    assert "not allowed with" in capsys.readouterr().err
    assert Budget(minutes=0).progress(0, 0.0) == Budget(steps=0).progress(0, 0.0) == 1


def test_the_seed_of_the_command_line_draws_other_batches(tmp_path) -> None:
    losses = []
    for seed in (0, 1, 0):
        folder = tmp_path / str(len(losses))
        training = train.Training(folder, budget=Budget(steps=1), recipe={"batch": 2}, seed=seed)
        training.train("checker", report=lambda line: None)
        losses.append(json.loads((folder / "checker.json").read_text())[0]["loss"])
    assert losses[0] == losses[2] != losses[1]


# Measuring


def measure(capsys, *words: str) -> str:
    evaluate.main([*words, "--steps", "1", "--threads", str(torch.get_num_threads())])
    return capsys.readouterr().out


def test_prompts_are_scored_and_written(tmp_path, capsys) -> None:
    said = measure(capsys, "--prompts", "2", "--output", str(tmp_path))
    assert [line.split(":")[0].strip() for line in said.splitlines()[:3]] == ["single", "pair", "held-out"]
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert [(score["kind"], score["count"]) for score in scores] == [("single", 2), ("pair", 2), ("held-out", 2)]
    assert sorted(os.listdir(tmp_path)) == ["held-out.png", "pair.png", "scores.json", "single.png"]


def test_control_is_scored_and_written(tmp_path, capsys) -> None:
    said = measure(capsys, "--control", "--prompts", "3", "--output", str(tmp_path))
    assert "encoded and decoded" in said and "chance" in said and "things" in said
    scores = {score["name"]: score for score in json.loads((tmp_path / "scores.json").read_text())}
    assert scores["encoded and decoded"]["percent"] > 90 > scores["chance"]["percent"]
    assert scores["chance"]["right"] is None and scores["edges alone"]["right"] is not None


def test_the_checker_is_scored(capsys) -> None:
    said = measure(capsys, "--checker", "--prompts", "20")
    assert "single refused" in said and all(" %" in line for line in said.splitlines()[:-1])


def test_tokens_are_those_of_all_wordings(trained) -> None:
    training = train.Training(trained, count=COUNT)
    assert training.ids.shape == (COUNT, data.CAPTIONS, 32) and training.ids.dtype == torch.int64
    for row, wordings in zip(training.ids, training.scenes.captions, strict=True):
        assert [training.words.decode(ids, skip_special_tokens=True).strip() for ids in row] == [
            training.words.decode(training.words(text).input_ids, skip_special_tokens=True).strip() for text in wordings
        ]
    assert torch.equal(clip.tokens(training.caches, training.scenes, training.words), training.ids)
