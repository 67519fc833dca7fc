"""Textual inversion on a tiny pipeline: the word alone is trained, it loads as documented, and a run can be resumed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import langevin
from langevin.core.errors import ConfigError, InputError
from langevin.core.records import Problems
from langevin.training.recipes import textual_inversion
from langevin.weights.dialects.textual_inversion import read
from tests.training.recipes.places import model, pictures, trained

WORD = (textual_inversion.WordSettings, textual_inversion.train)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the folders of a tiny pipeline and of three pictures."""
    return model(tmp_path_factory.mktemp("base")), pictures(tmp_path_factory.mktemp("subject"), 3)


def run(places, folder: Path, *flags: str) -> Path:
    words = [f"--pretrained_model_name_or_path={places[0]}", f"--train_data_dir={places[1]}", f"--output_dir={folder}"]
    words += ["--placeholder_token=<toy>", "--initializer_token=cat", "--learning_rate=0.05"]
    return trained(WORD, words, *flags)


def held(folder: Path) -> torch.Tensor:
    """Return the vectors of the word in a folder, which both files hold alike."""
    (one,), (other,) = (read(folder / f"learned_embeds.{ending}") for ending in ("safetensors", "bin"))
    assert one.word == other.word == "<toy>" and one.vectors[""].equal(other.vectors[""])
    return one.vectors[""]


@pytest.mark.parametrize("count", [1, 3])
def test_the_word_loads_and_changes_the_picture(count: int, places, tmp_path) -> None:
    folder = run(places, tmp_path, f"--num_vectors={count}", "--learnable_property=style")
    assert (folder / "token_identifier.txt").read_text() == "<toy>"
    assert (folder / "type_of_concept.txt").read_text() == "style"
    pipe = langevin.StableDiffusionPipeline.from_pretrained(places[0])
    table = pipe.text_encoder.get_input_embeddings().weight
    begun = table[pipe.tokenizer.convert_tokens_to_ids("cat</w>")].detach()
    pipe.load_textual_inversion(folder)
    vectors = held(folder)
    assert vectors.shape == (count, 32) and all((row - begun).abs().max() > 0.01 for row in vectors)
    assert pipe.tokenizer.tokenize(pipe.maybe_convert_prompt("a <toy>", pipe.tokenizer))[1] == "<toy>"
    one, other = (
        pipe(f"a {word}", num_inference_steps=2, seed=0, output_type="pt").images for word in ("cat", "<toy>")
    )
    assert (one - other).abs().max() > 1e-3


def test_all_that_the_model_knew_stays_as_it_was(places, tmp_path) -> None:
    folder = run(places, tmp_path, "--num_vectors=2", "--save_as_full_pipeline", "--gradient_checkpointing")
    base, whole = (langevin.StableDiffusionPipeline.from_pretrained(path) for path in (places[0], folder))
    name = "embeddings.token_embedding.weight"
    for part in ("unet", "vae", "text_encoder"):
        before, after = (getattr(pipe, part).state_dict() for pipe in (base, whole))
        assert set(before) == set(after)
        assert all(tensor.equal(after[key][: len(tensor)]) for key, tensor in before.items() if tensor.dim())
        assert all(tensor.shape == after[key].shape for key, tensor in before.items() if not key.endswith(name))
    table = whole.text_encoder.get_input_embeddings().weight
    assert table[-2:].equal(held(folder)) and len(table) == len(whole.tokenizer) == len(base.tokenizer) + 2
    assert whole.maybe_convert_prompt("<toy>", whole.tokenizer) == "<toy> <toy>_1"


def test_a_run_that_goes_on_ends_as_one_that_did_not_stop(places, tmp_path) -> None:
    flags = ("--checkpointing_steps=2", "--num_vectors=2", "--random_flip", "--lr_scheduler=cosine")
    whole = run(places, tmp_path / "whole", *flags)
    shutil.copytree(whole / "checkpoint-2", tmp_path / "cut" / "checkpoint-2")
    (tmp_path / "cut" / "log.jsonl").write_text("".join((whole / "log.jsonl").open().readlines()[:3]))
    again = run(places, tmp_path / "cut", *flags, "--resume_from_checkpoint=latest")
    assert held(again).equal(held(whole)) and not held(again).equal(held(again / "checkpoint-2"))
    assert held(again).equal(held(again / "checkpoint-4"))
    assert (again / "log.jsonl").read_bytes() == (whole / "log.jsonl").read_bytes()


def test_the_word_is_seen_on_the_way(places, tmp_path) -> None:
    looks = ["--validation_prompt=a <toy>|a cat", "--num_validation_images=1", "--validation_steps=2"]
    folder = run(places, tmp_path, *looks)
    from PIL import Image

    two, four = (Image.open(folder / "previews" / f"step-{k}.png") for k in (2, 4))
    assert two.crop((0, 16, 16, 32)).tobytes() == four.crop((0, 16, 16, 32)).tobytes()
    assert two.crop((0, 0, 16, 16)).tobytes() != four.crop((0, 0, 16, 16)).tobytes()


def test_a_word_begins_with_known_words(places, tmp_path) -> None:
    from langevin.adapters.textual_inversion import Place
    from langevin.training.words import begun

    pipe = langevin.StableDiffusionPipeline.from_pretrained(places[0])
    place = Place("text_encoder", pipe.tokenizer, pipe.text_encoder)
    cat, dog = place.embedding.weight.detach()[pipe.tokenizer.convert_tokens_to_ids(["cat</w>", "dog</w>"])]
    assert begun(place, "cat dog", 2).equal(torch.stack([cat, dog]))
    assert begun(place, "dog", 3).equal(torch.stack([dog] * 3))
    torch.testing.assert_close(begun(place, "cat dog"), ((cat + dog) / 2)[None])


def test_repeats_count_in_epochs(places) -> None:
    flags = {"train_data_dir": str(places[1]), "placeholder_token": "<toy>", "resolution": 16}
    pipe = langevin.StableDiffusionPipeline.from_pretrained(places[0])
    data = textual_inversion.WordSettings(**flags, repeats=7).examples(pipe.tokenizer)
    assert len(data) == 21 and data.records.rows[3] == data.records.rows[0]


def test_pictures_may_have_captions_that_say_the_word(places, tmp_path) -> None:
    folder = pictures(tmp_path / "told", 3)
    for k in range(3):
        (folder / f"{k}.txt").write_text(f"a <toy> in the snow {k}")
    settings = textual_inversion.WordSettings(
        train_data_dir=str(folder), placeholder_token="<toy>", resolution=16, caption_column="text"
    )
    pipe = langevin.StableDiffusionPipeline.from_pretrained(places[0])
    data = settings.examples(pipe.tokenizer)
    said = [data.captions.text(row.columns, torch.Generator(), row.name) for row in data.records.rows[:4]]
    assert said == ["a <toy> in the snow 0", "a <toy> in the snow 1", "a <toy> in the snow 2", said[0]]
    own = run((places[0], folder), tmp_path / "own", "--caption_column=text")
    kept = run((places[0], folder), tmp_path / "kept", "--caption_column=text", "--cache_latents", "--center_crop")
    assert held(kept).equal(
        held(run((places[0], folder), tmp_path / "plain", "--caption_column=text", "--center_crop"))
    )
    assert len(list((kept / "latents").iterdir())) == 1
    ready_made = run((places[0], folder), tmp_path / "ready-made")
    assert not held(own).equal(held(ready_made))


def test_captions_without_the_word_are_named(places, tmp_path) -> None:
    (pictures(tmp_path / "told", 3) / "1.txt").write_text("a <toy>")
    with pytest.raises(Problems, match="the caption does not say <toy>") as caught:
        run((places[0], tmp_path / "told"), tmp_path, "--caption_column=text")
    assert len(caught.value.found) == 2
    with pytest.raises(Problems, match="no column 'txt'; did you mean 'text'"):
        run((places[0], tmp_path / "told"), tmp_path, "--caption_column=txt")


@pytest.mark.parametrize(
    ("flags", "error", "words"),
    [
        (("--placeholder_token=",), ConfigError, "placeholder_token is missing"),
        (("--placeholder_token=my toy",), ConfigError, "a word has no spaces"),
        (("--initializer_token=",), ConfigError, "initializer_token is missing"),
        (("--learnable_property=stile",), InputError, "did you mean 'style'"),
        (("--num_vectors=0",), InputError, "at least 1"),
        (("--repeats=0",), InputError, "at least 1"),
        (("--train_data_dir=nowhere",), InputError, "does not exist"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(flags, error, words, places, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(textual_inversion, "pipeline", lambda settings: pytest.fail("loaded"))
    with pytest.raises(error, match=words):
        run(places, tmp_path, *flags)
    with pytest.raises(Problems, match="holds no picture"):
        run((places[0], tmp_path), tmp_path)


def test_words_that_cannot_be_learned(places, tmp_path) -> None:
    with pytest.raises(InputError, match="'cat</w>' is in the vocabulary"):
        run(places, tmp_path, "--placeholder_token=cat</w>")
    with pytest.raises(InputError, match="knows no words '猫'"):
        run(places, tmp_path, "--initializer_token=猫")
