"""`langevin data check`: everything that is wrong with a folder, its manifest and its contact sheet."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from langevin.cli import main
from langevin.core.errors import InputError
from langevin.core.records import Record, Records
from tests.pipelines import tiny
from tests.training.data.test_doctor import picture, put


def called(capsys, *words: object) -> tuple[int, str, str]:
    """Return exit status, output and errors of the command."""
    with pytest.raises(SystemExit) as leaving:
        main(["data", "check", *map(str, words)])
    return leaving.value.code or 0, *capsys.readouterr()


def test_a_whole_folder_and_its_files(tmp_path, capsys) -> None:
    for k in range(3):
        put(tmp_path / "data" / f"{k}.png", k, size=(64, 64 + 12 * k))
    files = ["--write", tmp_path / "manifest.jsonl", "--sheet", tmp_path / "sheet.png"]
    status, out, err = called(capsys, tmp_path / "data", "--resolution", 64, *files)
    assert status == 0 and "Pictures" in err
    assert out.startswith(f"{tmp_path / 'data'}: 3 examples, 3 of them good; 0 kinds of error")
    assert f"wrote {tmp_path / 'sheet.png'}: 3 of 3 pictures" in out
    assert f"wrote {tmp_path / 'manifest.jsonl'}: 3 good examples of 3" in out
    assert Image.open(tmp_path / "sheet.png").width > 500
    assert [line.split(":")[0] for line in out.splitlines() if " at most " in line] == ["  56 x 72", "  64 x 64"]
    status, out, _ = called(capsys, tmp_path / "data", "--resolution", 64, "--step-size", 2)
    assert [line.split(":")[0] for line in out.splitlines() if " at most " in line] == ["  56 x 72"]
    status, out, _ = called(capsys, tmp_path / "manifest.jsonl", "--resolution", 64, "--json")
    facts = json.loads(out)
    assert status == 0 and facts["ok"] and [example["size"][0] for example in facts["examples"]] == [64, 76, 88]
    status, _, err = called(capsys, tmp_path / "data", *files)
    assert status == 2 and "manifest.jsonl exists and is kept" in err
    status, _, err = called(capsys, tmp_path / "data", *files[2:])
    assert status == 2 and "sheet.png exists and is kept" in err
    status, _, err = called(capsys, tmp_path / "data", "--sheet", "sheet.gif")
    assert status == 2 and "is a .png file" in err


def test_errors_leave_with_status_1(tmp_path, capsys) -> None:
    put(tmp_path / "data/a.png", 1, None)
    status, out, _ = called(capsys, tmp_path / "data", "--resolution", 64, "--sheet", tmp_path / "sheet.png")
    assert status == 1 and "there is no column 'text'" in out
    status, out, _ = called(capsys, tmp_path / "data", "--resolution", 64, "--no-captions")
    assert status == 0 and "a single picture" in out
    (tmp_path / "empty").mkdir()
    status, out, _ = called(capsys, tmp_path / "empty", "--sheet", tmp_path / "none.png")
    assert status == 1 and "it holds no picture" in out and not (tmp_path / "none.png").exists()
    status, _, err = called(capsys, tmp_path / "dat")
    assert status == 2 and "did you mean 'data'" in err


def test_a_name_that_leads_nowhere_is_neither_a_folder_nor_a_dataset(tmp_path, capsys, monkeypatch) -> None:
    def absent(name: str, **_) -> Records:
        raise InputError(f"The dataset {name!r} cannot be loaded: there is none")

    monkeypatch.setattr("langevin.core.records.read_hub", absent)
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "pictures/a.png", 1)
    status, _, err = called(capsys, "picturs")
    assert status == 2
    assert "picturs is neither a folder (did you mean 'pictures'?) nor a dataset that can be loaded. The data" in err
    status, _, err = called(capsys, "quokka")
    assert status == 2 and "quokka is neither a folder nor a dataset" in err


def test_datasets_of_the_hub_are_read_by_their_splits(capsys, monkeypatch) -> None:
    asked = []

    def read_hub(name: str, *, split: str) -> Records:
        asked.append((name, split))
        rows = [Record(f"row {k} of {name}", {"image": picture(k), "text": str(k)}) for k in (2 * len(asked), 5)]
        return Records(name, rows)

    monkeypatch.setattr("langevin.core.records.read_hub", read_hub)
    status, out, _ = called(
        capsys, "some/dogs", "--resolution", 64, "--against", "some/dogs", "--against-split", "held"
    )
    assert asked == [("some/dogs", "train"), ("some/dogs", "held")]
    assert status == 1 and "row 5 of some/dogs (there: row 5 of some/dogs)" in out
    status, _, err = called(capsys, "some/dogs", "--write", "manifest.jsonl")
    assert status == 2 and "a hub dataset has none" in err


def test_tokens_splits_and_further_columns(tmp_path, capsys) -> None:
    tokenizer = tiny.tokenizer(tmp_path / "words")
    tokenizer.save_pretrained(tmp_path / "model" / "tokenizer")
    for k in range(2):
        put(tmp_path / "train" / f"{k}.png", k, "cat " * 100)
        put(tmp_path / "test" / f"{k}.png", k + 1)
    options = ["--tokenizer", tmp_path / "model", "--against", tmp_path / "test", "--resolution", 64]
    status, out, _ = called(capsys, tmp_path / "train", *options)
    assert status == 1 and "1.png (there: 0.png)" in out and "captions longer than the text encoder reads (2)" in out
    status, out, _ = called(capsys, tmp_path / "train", "--image-column", "image", "--image-column", "edges")
    assert status == 1 and "there is no column 'edges'" in out
    status, _, err = called(capsys, tmp_path / "train", "--tokenizer", tmp_path / "train")
    assert status == 2 and "No tokenizer can be loaded" in err
