"""The doctor names all that is wrong with a folder at once, changes nothing, and writes what can be trained on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from langevin.core.errors import InputError
from langevin.core.records import Problems, Record, Records, read_folder
from langevin.training.data import doctor
from tests.pipelines import tiny


def picture(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Return a picture of a few coloured patches."""
    patches = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC)


def put(path: Path, seed: int, caption: str | None = "", *, size: tuple[int, int] = (64, 64), **options) -> Path:
    """Save a picture, with a caption beside it unless that is None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, size).save(path, **options)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption or f"picture {seed}")
    return path


def examined(folder: Path, **options) -> dict[str, tuple[str, ...]]:
    """Return what is found in a folder, by kind."""
    report = doctor.examine(read_folder(folder), resolution=64, **options)
    assert report.ok == all(doctor.KINDS[finding.kind].level != "error" for finding in report.findings)
    return {finding.kind: finding.examples for finding in report.findings}


def state(folder: Path) -> dict[str, tuple[bytes, float]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime) for path in files}


def test_a_whole_folder_has_no_findings(tmp_path) -> None:
    for k in range(3):
        put(tmp_path / f"{k}.png", k)
    assert examined(tmp_path) == {}


# ---- the corpus of broken folders -----------------------------------------------------------------------------------


def missing_column(folder: Path) -> None:
    rows = [{"file_name": put(folder / f"{k}.png", k, None).name, "caption": f"picture {k}"} for k in range(2)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def empty(folder: Path) -> None:
    (folder / "readme.txt").write_text("pictures follow")


def extra_rows(folder: Path) -> None:
    names = [put(folder / f"{k}.png", k, None).name for k in range(3)]
    rows = [names[0], names[1], names[1], "gone.png", "x" * 300 + ".png", "../up.png"]
    lines = [f"{name},picture {k}" for k, name in enumerate(rows)]
    (folder / "metadata.csv").write_text("file_name,text\n" + "\n".join([*lines, "a,b,c"]))


def corrupt(folder: Path) -> None:
    whole = put(folder / "half.jpg", 1, size=(300, 300)).read_bytes()
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    put(folder / "text.png", 2).write_text("no picture")
    put(folder / "nothing.png", 3).write_bytes(b"")


def for_print(folder: Path) -> None:
    put(folder / "one.jpg", 1)
    picture(2).convert("CMYK").save(folder / "press.jpg")
    (folder / "press.txt").write_text("on paper")


def huge(folder: Path) -> None:
    put(folder / "one.png", 1)
    put(folder / "wide.png", 2, size=(1200, 600))
    put(folder / "bomb.png", 3, size=(2000, 1500))


def unreadable(folder: Path) -> None:
    put(folder / "one.png", 1)
    (folder / "link.png").symlink_to(folder / "gone.png")
    put(folder / "latin.png", 2).with_suffix(".txt").write_bytes("caf\xe9".encode("latin-1"))


def single(folder: Path) -> None:
    put(folder / "only.png", 1, size=(40, 130))


CORPUS: dict[Callable[[Path], None], dict[str, list[str]]] = {
    missing_column: {"source": ["there is no column 'text'; valid: caption, image"]},
    empty: {"source": ["it holds no picture; pictures end in .png"], "unread": ["readme.txt (no picture has that"]},
    extra_rows: {
        "source": [
            "line 8: another number of cells",
            "line 5: gone.png does not exist",
            "line 6: xxx",
            "line 7: '../up.png' leads outside",
            "1 pictures are not in metadata.csv, such as 2.png",
        ],
        "unreadable": ["gone.png (", "xxx"],
        "twice": ["1.png"],
    },
    corrupt: {"unreadable": ["half.jpg (image file is truncated", "nothing.png (no picture", "text.png (no picture"]},
    for_print: {"print": ["press.jpg (CMYK)"]},
    huge: {
        "enormous": ["bomb.png (Image size (3000000 pixels) exceeds limit"],
        "huge": ["wide.png (1200 x 600)"],
    },
    unreadable: {
        "source": ["link.png leads to no file", "the text of latin.png cannot be read"],
        "uncaptioned": ["latin.png"],
    },
    single: {"few": ["only.png"], "tiny": ["only.png (40 x 130)"], "cropped": ["only.png (48.7%)"]},
}  # fmt: skip


@pytest.mark.parametrize("broken", CORPUS, ids=lambda broken: broken.__name__)
def test_everything_wrong_is_named_at_once_and_nothing_is_changed(broken, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_400_000)
    (tmp_path / "data").mkdir()
    broken(tmp_path / "data")
    before = state(tmp_path)
    found = examined(tmp_path / "data")
    assert state(tmp_path) == before
    wanted = CORPUS[broken]
    assert list(found) == [kind for kind in doctor.KINDS if kind in wanted]
    for kind, words in wanted.items():
        assert len(found[kind]) == len(words)
        assert all(part in said for part, said in zip(words, found[kind], strict=True)), found[kind]


@pytest.mark.parametrize("broken", [corrupt, for_print, single, huge], ids=lambda broken: broken.__name__)
def test_a_manifest_holds_what_is_good_and_can_be_trained_on(broken, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_400_000)
    folder = tmp_path / "data"
    broken(folder)
    put(folder / "a/good.png", 7, "a good one")
    put(folder / "a/copy.png", 7, "a copy")
    report = doctor.examine(read_folder(folder), resolution=64)
    good = sorted(one.record.name for one in report.good)
    assert "a/copy.png" in good and "a/good.png" not in good
    for place in (tmp_path / "manifest.jsonl", folder / "manifest.jsonl", folder / "metadata.jsonl"):
        assert doctor.write(report, place) == len(good)
        records = read_folder(folder if place.name == "metadata.jsonl" else place).checked("image", "text")
        assert [row.name for row in records.rows] == good
        assert {"width", "height", "bucket", "pixel_hash"} <= set(records.rows[0].columns)
        again = doctor.examine(records, resolution=64)
        assert again.ok and [one.bucket for one in again.seen] == [one.bucket for one in report.good]


def test_columns_named_as_a_manifest_names_its_own_are_kept(tmp_path) -> None:
    folder = tmp_path / "data"
    for k in range(3):
        put(folder / f"{k}.png", k, None)
    rows = [{"file_name": f"{k}.png", "text": str(k), "folder": f"f{k}", "left_out": f"l{k}"} for k in range(3)]
    rows[2]["text"] = None
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = read_folder(folder)
    assert [(row.columns["folder"], row.columns["left_out"]) for row in records.rows] == [
        (f"f{k}", f"l{k}") for k in range(3)
    ]
    for place in (tmp_path / "manifest.jsonl", folder / "manifest.jsonl"):
        assert doctor.write(doctor.examine(records, resolution=64), place) == 2
        again = read_folder(place).checked("image", "text")
        assert [(row.name, row.columns["folder"], row.columns["left_out"]) for row in again.rows] == [
            (f"{k}.png", f"f{k}", f"l{k}") for k in range(2)
        ]
        assert "langevin_manifest" not in again.columns()


def test_manifests_of_the_first_version_are_read(tmp_path) -> None:
    put(tmp_path / "data/0.png", 0, None)
    good = {"file_name": "0.png", "text": "0", "width": 64, "height": 64, "pixel_hash": "x"}
    lines = [good, {"file_name": "1.png", "left_out": "unreadable"}]
    lines = [{"folder": str(tmp_path / "data"), **line} for line in lines]
    (tmp_path / "old.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (row,) = read_folder(tmp_path / "old.jsonl").checked("image", "text").rows
    assert row.columns["image"] == tmp_path / "data/0.png" and not {"folder", "left_out"} & set(row.columns)


# ---- pictures -------------------------------------------------------------------------------------------------------


def test_peculiar_pictures(tmp_path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    put(tmp_path / "turned.jpg", 1, size=(80, 64), exif=turned)
    clear = picture(2).convert("RGBA")
    clear.putalpha(128)
    clear.save(tmp_path / "clear.png")
    opaque = picture(3).convert("RGBA")
    opaque.save(tmp_path / "opaque.png")
    profiles = {name: ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes() for name in ("sRGB", "LAB")}
    put(tmp_path / "usual.png", 4, icc_profile=profiles["sRGB"])
    put(tmp_path / "other.png", 5, icc_profile=profiles["LAB"])
    put(tmp_path / "odd.png", 6, icc_profile=b"nothing")
    put(tmp_path / "moving.gif", 8, save_all=True, append_images=[picture(9)])
    (tmp_path / "phone.HEIC").write_bytes(b"x")
    found = examined(tmp_path, caption=None)
    assert found.pop("profile") == ("odd.png (a profile that cannot be read)", "other.png (Lab identity built-in)")
    assert found == {
        "clear": ("clear.png (opacity from 50%)",),
        "moving": ("moving.gif (2 frames)",),
        "unread": ("phone.HEIC (a format that is not read)",),
        "turned": ("turned.jpg (orientation 6)",),
    }
    report = doctor.examine(read_folder(tmp_path), resolution=64)
    assert {one.record.name: one.size for one in report.seen}["turned.jpg"] == (80, 64)


def test_copies_likenesses_and_leaks(tmp_path) -> None:
    put(tmp_path / "train/a.png", 1)
    put(tmp_path / "train/b.bmp", 1)
    put(tmp_path / "train/c.jpg", 1, quality=60)
    put(tmp_path / "train/d.png", 2)
    put(tmp_path / "train/e.png", 3)
    put(tmp_path / "test/x.png", 2)
    put(tmp_path / "test/y.jpg", 3, quality=60)
    put(tmp_path / "test/z.png", 4)
    report = doctor.examine(read_folder(tmp_path / "train"), resolution=64, against=read_folder(tmp_path / "test"))
    found = {finding.kind: finding.examples for finding in report.findings}
    assert found.pop("repeated")
    assert found == {
        "leak": ("d.png (there: x.png)",),
        "same": ("b.bmp (as a.png)",),
        "near": ("a.png, c.jpg",),
        "near leak": ("e.png (there: y.jpg)",),
    }
    assert [one.record.name for one in report.good] == ["a.png", "c.jpg", "e.png"]
    assert not report.ok


def test_of_copies_the_one_with_a_caption_is_kept(tmp_path) -> None:
    put(tmp_path / "a.png", 1, None)
    put(tmp_path / "b.png", 1)
    put(tmp_path / "c.png", 2)
    report = doctor.examine(read_folder(tmp_path), resolution=64)
    assert [one.record.name for one in report.good] == ["b.png", "c.png"]


def test_pictures_that_changed_and_pictures_of_different_sizes(tmp_path) -> None:
    for k in range(3):
        put(tmp_path / f"{k}.png", k)
        put(tmp_path / f"edges/{k}.png", 10 + k, None, size=(64, 64 + k))
    lines = [{"file_name": f"{k}.png", "edges_file_name": f"edges/{k}.png", "text": f"{k}"} for k in range(3)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report = doctor.examine(read_folder(tmp_path), further=["edges"], resolution=64)
    (uneven,) = [finding for finding in report.findings if finding.kind == "uneven"]
    assert uneven.examples == ("1.png (image: 64 x 64, edges: 64 x 65)", "2.png (image: 64 x 64, edges: 64 x 66)")
    doctor.write(report, tmp_path / "manifest.jsonl")
    put(tmp_path / "0.png", 33)
    assert examined(tmp_path / "manifest.jsonl", further=["edges"])["changed"] == ("0.png",)


# ---- captions -------------------------------------------------------------------------------------------------------


def test_captions(tmp_path) -> None:
    tokenizer = tiny.tokenizer(tmp_path / "words")
    texts = [None, "", "a hill", ["a hill", "a sea"], 3, [], "cat " * tokenizer.model_max_length + "tail"]
    lines = []
    for k, text in enumerate(texts):
        put(tmp_path / f"data/{k}.png", k, None)
        lines.append({"file_name": f"{k}.png", "text": text})
    (tmp_path / "data/metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = examined(tmp_path / "data", tokenizer=tokenizer)
    (long,) = found.pop("long")
    assert long.startswith("6.png (") and "not seen: '" in long and long.endswith("tail')")
    assert found == {
        "uncaptioned": ("0.png",),
        "untold": ("4.png (3)", "5.png ([])"),
        "empty": ("1.png",),
        "repeated": ("2.png ('a hill', also of 3.png)",),
    }


# ---- reports and manifests ------------------------------------------------------------------------------------------


def test_a_report_says_it_all_and_long_lists_are_counted(tmp_path) -> None:
    for k in range(24):
        put(tmp_path / f"{k:02}.png", k, "the same", size=(30, 40))
    report = doctor.examine(read_folder(tmp_path), resolution=64)
    text = str(report)
    assert text.startswith(
        f"{tmp_path}: 24 examples, 24 of them good; 0 kinds of error, 1 kind of warning, 1 kind of note"
    )
    assert "warning: pictures smaller than the resolution (24). Find larger ones" in text and "  ... and 4 more" in text
    assert "and 4 more" in text and "56 x 72: 24 pictures, at most 3.6% cut away (00.png)" in text
    facts = json.loads(json.dumps(report.facts()))
    assert facts["ok"] and len(facts["findings"][0]["examples"]) == 24
    assert facts["examples"][0] == {
        "name": "00.png",
        "size": [40, 30],
        "bucket": [72, 56],
        "cut": pytest.approx(1 / 28),
        "barred": None,
    }


def test_manifests_that_cannot_be_written(tmp_path) -> None:
    put(tmp_path / "a.png", 1)
    records = read_folder(tmp_path)
    with pytest.raises(InputError, match=r"is a \.jsonl file"):
        doctor.check_manifest(records, tmp_path / "manifest.csv")
    (tmp_path / "there.jsonl").write_text("")
    with pytest.raises(InputError, match="exists and is kept"):
        doctor.check_manifest(records, tmp_path / "there.jsonl")
    with pytest.raises(InputError, match="hub dataset has none"):
        doctor.check_manifest(Records("hub", [Record("row 0", {"image": picture(1)})]), tmp_path / "m.jsonl")


def test_rows_of_a_hub_dataset_are_examined_too() -> None:
    rows = [Record(f"row {k} of it", {"image": picture(k), "text": f"{k}"}) for k in range(2)]
    rows.append(Record("row 2 of it", {"image": {"bytes": b"nothing", "path": None}, "text": "2"}))
    report = doctor.examine(Records("it", rows), resolution=64)
    assert [str(finding.kind) for finding in report.findings] == ["unreadable"]
    assert report.findings[0].examples == ("row 2 of it (no picture of a known format)",)


def test_pictures_that_nothing_names_are_left_out_by_the_manifest(tmp_path) -> None:
    extra_rows(tmp_path)
    report = doctor.examine(read_folder(tmp_path), resolution=64)
    (tmp_path / "metadata.csv").unlink()
    doctor.write(report, tmp_path / "metadata.jsonl")
    assert [row.name for row in read_folder(tmp_path).checked("image", "text").rows] == ["0.png", "1.png"]
    put(tmp_path / "new.png", 9)
    with pytest.raises(Problems, match=r"1 pictures are not in metadata\.jsonl, such as new\.png"):
        read_folder(tmp_path).checked("image")


def test_a_folder_that_may_not_be_opened_is_named(tmp_path, monkeypatch) -> None:
    put(tmp_path / "a.png", 1)
    put(tmp_path / "closed/b.png", 2)
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    (told,) = examined(tmp_path)["source"]
    assert told == f"{tmp_path / 'closed'} cannot be read (Permission denied); change its permissions or take it away"
