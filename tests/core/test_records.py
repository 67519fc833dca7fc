"""Examples of a folder, and everything that can be wrong with one, told at once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from langevin.core.errors import InputError
from langevin.core.records import Problems, Record, Records, read_folder, read_hub
from langevin.training.data.framing import opened


def picture(path: Path, size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path)
    return path


def lines(folder: Path, *rows: object, name: str = "metadata.jsonl") -> None:
    (folder / name).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def test_pictures_of_all_depths_with_texts_beside_them(tmp_path) -> None:
    for name in ("b.png", "a/c.JPG", "a/d.webp", ".hidden/e.png", "notes.md"):
        picture(tmp_path / name) if not name.endswith("md") else (tmp_path / name).write_text("no picture")
    (tmp_path / "b.txt").write_text(" a red house \n")
    found = read_folder(tmp_path)
    assert [row.name for row in found.rows] == ["a/c.JPG", "a/d.webp", "b.png"]
    assert found.rows[2].columns == {"image": tmp_path / "b.png", "text": "a red house"}
    assert found.checked("image") is found
    with pytest.raises(Problems, match=r"2 examples have no 'text', such as a/c\.JPG"):
        found.checked("image", "text")


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_metadata_names_pictures_and_further_columns(tmp_path, name) -> None:
    for file in ("one.png", "edges/one.png"):
        picture(tmp_path / file)
    row = {"file_name": "one.png", "edges_file_name": "edges/one.png", "text": "a house, red", "profile_name": "x"}
    if name.endswith("csv"):
        lines(tmp_path, ",".join(row), 'one.png,edges/one.png,"a house, red",x', name=name)
    else:
        lines(tmp_path, row, "", name=name)
    (found,) = read_folder(tmp_path).checked("image", "edges", "text", None).rows
    assert found.columns == {
        "image": tmp_path / "one.png",
        "edges": tmp_path / "edges/one.png",
        "text": "a house, red",
        "profile_name": "x",
    }


def test_everything_wrong_with_a_metadata_file_is_told_at_once(tmp_path) -> None:
    for file in ("one.png", "extra.png"):
        picture(tmp_path / file)
    lines(
        tmp_path,
        {"file_name": "one.png", "text": "a"},
        {"file_name": "gone.png", "text": "b"},
        {"text": "c"},
        {"file_name": "../one.png"},
        '{"file_name": "on',
        "[1, 2]",
    )
    with pytest.raises(Problems) as told:
        read_folder(tmp_path).checked("image", "caption")
    wanted = [
        "line 5: no JSON",
        "line 6: a JSON list",
        "line 2: gone.png does not exist",
        "line 3: there is no 'file_name'",
        "line 4: '../one.png' leads outside",
        "1 pictures are not in metadata.jsonl, such as extra.png",
        "no column 'caption'",
    ]
    assert len(told.value.found) == len(wanted)
    assert all(words in line for words, line in zip(wanted, told.value.found, strict=True))
    assert all(line in str(told.value) for line in told.value.found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,text\none.png,a\n", "no column 'file_name'"),
        ("file_name,text\none.png,a,b\n", "line 2: another number of cells"),
        ("file_name,text\none.png\n", "line 2: another number of cells"),
    ],
)
def test_broken_tables(tmp_path, text, words) -> None:
    picture(tmp_path / "one.png")
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(Problems, match=words):
        read_folder(tmp_path).checked("image")


def test_a_table_that_is_not_utf_8(tmp_path) -> None:
    picture(tmp_path / "one.png")
    (tmp_path / "metadata.csv").write_bytes("file_name,text\none.png,caf\xe9\n".encode("latin-1"))
    with pytest.raises(Problems, match=r"not UTF-8 .* at byte 26"):
        read_folder(tmp_path).checked("image")


def test_empty_folders_two_lists_and_folders_that_are_not_there(tmp_path) -> None:
    with pytest.raises(Problems, match=r"holds no picture; pictures end in \.png"):
        read_folder(tmp_path).checked("image")
    lines(tmp_path)
    lines(tmp_path, "file_name", name="metadata.csv")
    with pytest.raises(Problems, match=r"both metadata\.jsonl and metadata\.csv"):
        read_folder(tmp_path).checked("image")
    with pytest.raises(InputError, match="does not exist; did you mean"):
        read_folder(tmp_path.parent / f"{tmp_path.name}s")


def test_many_problems_are_counted() -> None:
    with pytest.raises(Problems, match=r"and 10 more") as told:
        Records("here", [Record("x", {"image": 1})], [f"problem {k}" for k in range(30)]).checked("image")
    assert len(told.value.found) == 30


def test_a_dataset_of_the_hubs_library_gives_its_rows(tmp_path) -> None:
    """The package loads a folder in its own layout as it loads a repository; pictures stay encoded at first."""
    import datasets

    shown = [picture(tmp_path / f"{k}.png", (8, 6 + k)) for k in range(3)]
    kinds = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    table = datasets.Dataset.from_dict({"image": [str(path) for path in shown], "text": list("abc")}, features=kinds)
    (tmp_path / "set").mkdir()
    table.to_parquet(tmp_path / "set" / "train.parquet")
    found = read_hub(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache")).checked("image", "text")
    assert len(found) == 3 and [row.columns["text"] for row in found.rows] == ["a", "b", "c"]
    sizes = [opened(row.columns["image"], row.name).size for row in found.rows[1:]]
    assert sizes == [(7, 8), (8, 8)] and found.rows[2].name == f"row 2 of {tmp_path / 'set'}"
    with pytest.raises(InputError, match="cannot be loaded"):
        read_hub(str(tmp_path / "set"), split="test", cache_dir=str(tmp_path / "cache"))
