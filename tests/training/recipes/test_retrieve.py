"""Real pictures of a class by caption: from folders and datasets, filled up, and taken by Custom Diffusion."""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path
from typing import ClassVar

import pytest
from PIL import Image

from langevin.core.errors import ConfigError, InputError
from langevin.core.records import Problems, pictures_in
from langevin.training.recipes.retrieve import run, said
from langevin.training.recipes.subject import read_class
from tests.pipelines import tiny

CAPTIONS = ("a cat", "a dog", "Two CATS on a mat", "concatenated", "a wooden pot", "the cat's bowl", "cat")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a folder of pictures with captions, a damaged one among them."""
    folder = tmp_path / "source"
    folder.mkdir()
    for k, caption in enumerate(CAPTIONS):
        tiny.picture(k, (9, 7)).save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text(caption)
    (folder / "2.png").write_bytes(b"no picture")
    return folder


def take(source: Path, out: Path, count: int, *flags: str) -> Path:
    words = ["--class_prompt", "cat", "--class_data_dir", str(out), "--num_class_images", str(count)]
    return run([*words, f"--data_dir={source}", *flags])


@pytest.mark.parametrize(
    ("phrase", "captions", "found"),
    [
        ("cat", "a Cat.", "a Cat."),
        ("cat", "concatenated", None),
        ("box", ["a bag", "two boxes"], "two boxes"),
        ("wooden pot", "a wooden  pot", "a wooden  pot"),
        ("wooden pot", "a pot, wooden", None),
        ("c.t", "a cat", None),
        ("cat", None, None),
        ("cat", [None, 3], None),
    ],
)
def test_captions_that_say_a_class(phrase, captions, found) -> None:
    assert said(phrase, captions) == found


def test_pictures_are_taken_by_caption_and_damaged_ones_passed_over(source, tmp_path) -> None:
    found = read_class(take(source, tmp_path / "out", 200))
    assert [row.columns["text"] for row in found.rows] == ["a cat", "the cat's bowl", "cat"]
    assert [row.columns["source"] for row in found.rows] == ["0.png", "5.png", "6.png"]
    for row, k in zip(found.rows, (0, 5, 6), strict=True):
        assert Image.open(row.columns["image"]).tobytes() == tiny.picture(k, (9, 7)).tobytes()


def test_a_folder_is_filled_up(source, tmp_path) -> None:
    out = take(source, tmp_path / "out", 1)
    first = {path: path.read_bytes() for path in pictures_in(out)}
    assert [path.name for path in first] == ["00000.png"]
    take(source, out, 2)
    assert [row.columns["text"] for row in read_class(out).rows] == ["a cat", "the cat's bowl"]
    assert all(path.read_bytes() == content for path, content in first.items())
    take(tmp_path / "gone", out, 2)
    assert len(pictures_in(out)) == 2


def test_a_list_with_errors_is_refused_and_pictures_without_captions_passed_over(source, tmp_path) -> None:
    (source / "0.txt").unlink()
    assert read_class(take(source, tmp_path / "out", 1)).rows[0].columns["text"] == "the cat's bowl"
    (source / "metadata.jsonl").write_text("no JSON")
    with pytest.raises(Problems, match=r"metadata\.jsonl, line 1: no JSON"):
        take(source, tmp_path / "other", 1)


class Table(list):
    """Rows of a dataset that is read on the way, as `datasets` gives them, with pictures as they are asked for."""

    read = 0
    features: ClassVar = {"image": types.SimpleNamespace(decode=True), "said": "text"}

    def cast_column(self, column: str, kind: types.SimpleNamespace) -> Table:
        assert column == "image" and not kind.decode
        return self

    def __iter__(self):
        for row in super().__iter__():
            Table.read += 1
            yield row


def test_a_dataset_is_read_no_further_than_it_takes(source, tmp_path, monkeypatch) -> None:
    rows = [
        {"image": {"bytes": (source / f"{k}.png").read_bytes(), "path": None}, "said": [text, "other"]}
        for k, text in enumerate(CAPTIONS)
    ]

    def load_dataset(name, config, *, streaming, split, cache_dir):
        if split != "train":
            raise ValueError(f"Bad split: {split}")
        assert streaming and (name, config, cache_dir) == ("some/set", "small", None)
        return Table(rows)

    fake = types.SimpleNamespace(load_dataset=load_dataset, Image=types.SimpleNamespace)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.setattr("langevin.training.recipes.retrieve.require", lambda name, **why: fake)
    words = ["--class_prompt=cat", f"--class_data_dir={tmp_path / 'out'}", "--dataset_name=some/set"]
    words += ["--dataset_config_name=small"]
    found = read_class(run([*words, "--caption_column=said", "--num_class_images=2"]))
    assert [row.columns["text"] for row in found.rows] == ["a cat", "the cat's bowl"] and Table.read == 6
    with pytest.raises(InputError, match=r"no column 'sayd'; did you mean 'said'"):
        run([*words, "--caption_column=sayd"])
    with pytest.raises(InputError, match="cannot be loaded: Bad split: tset"):
        run([*words, "--dataset_split=tset"])


def test_a_real_dataset_is_read(source, tmp_path) -> None:
    importlib.import_module("datasets")
    lines = [{"file_name": f"{k}.png", "said": text} for k, text in enumerate(CAPTIONS) if k != 2]
    for path in source.glob("*.txt"):
        path.unlink()
    (source / "2.png").unlink()
    (source / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["--class_prompt=cat", f"--class_data_dir={tmp_path / 'out'}", f"--dataset_name={source}"]
    words += [f"--cache_dir={tmp_path / 'cache'}"]
    found = read_class(run([*words, "--caption_column=said", "--num_class_images=2"]))
    assert [row.columns["text"] for row in found.rows] == ["a cat", "the cat's bowl"]
    assert Image.open(found.rows[0].columns["image"]).tobytes() == tiny.picture(0, (9, 7)).tobytes()
    with pytest.raises(InputError, match=r"no column 'sayd'; did you mean 'said'"):
        run([*words, "--caption_column=sayd"])
    with pytest.raises(InputError, match="cannot be loaded"):
        run([*words, "--dataset_split=tset"])


@pytest.mark.parametrize(
    ("flags", "error", "words"),
    [
        (["--class_prompt="], ConfigError, "class_prompt is missing"),
        (["--class_data_dir="], ConfigError, "class_data_dir is missing"),
        (["--num_class_images=0"], InputError, "at least 1"),
        (["--dataset_name=some/set"], ConfigError, "either dataset_name, a hub dataset, or data_dir"),
        (["--data_dir=nowhere"], InputError, "does not exist"),
        (["--class_prompt=bird"], InputError, "says 'bird'"),
        (["--caption_column=txt"], InputError, "no column 'txt'; did you mean 'text'"),
        (["--class_promt=bird"], ConfigError, "did you mean 'class_prompt'"),
    ],
)
def test_what_is_wrong_is_said(flags, error, words, source, tmp_path) -> None:
    with pytest.raises(error, match=words):
        take(source, tmp_path / "out", 3, *flags)


def test_the_documented_command_says_what_is_missing(tmp_path) -> None:
    words = f"--class_prompt cat --class_data_dir {tmp_path}/real_reg/samples_cat --num_class_images 200".split()
    with pytest.raises(ConfigError, match="Name where the pictures come from"):
        run(words)
