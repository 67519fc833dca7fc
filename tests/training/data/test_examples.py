"""Pictures and captions on their way into a batch: sizes, crops, and what the position decides."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from langevin.core.errors import InputError
from langevin.core.records import Record, Records
from langevin.training.data.examples import Captions, PictureExamples, sizes_of
from langevin.training.data.framing import Framing, opened
from langevin.training.streams import Streams

STREAMS = Streams(3)


def ramp(height: int, width: int) -> Image.Image:
    """Return a picture whose red is the column and whose green is the row."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


def data(shown, framing: Framing, captions: Captions | None = None, **options) -> PictureExamples:
    rows = [Record(f"example {k}", {"image": p, "text": f"a, b, c{k}"}) for k, p in enumerate(shown)]
    return PictureExamples(Records("here", rows), framing, captions=captions, **options)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40), st.booleans(), st.integers(0, 9))
def test_every_size_fits_every_frame(height, width, tall, wide, centre, position) -> None:
    framing = Framing(tall, wide, centre, filter="nearest")
    frame = framing.place((height, width), STREAMS.at(position)("frame"))
    resized = frame.resized
    assert resized[0] == tall or resized[1] == wide
    assert 0 <= frame.top <= resized[0] - tall and 0 <= frame.left <= resized[1] - wide
    assert framing.cut(ramp(height, width), frame).shape == (3, tall, wide)


def test_a_crop_is_where_the_frame_says_and_a_mirror_turns_it() -> None:
    framing, seen = Framing(8, 8, mirror=True), set()
    for position in range(40):
        pictures, frame = framing({"one": ramp(8, 20)}, STREAMS.at(position)("frame"))
        columns = ((pictures["one"][0, 0] + 1) * 127.5).round()
        wanted = torch.arange(frame.left, frame.left + 8.0)
        assert torch.equal(columns, wanted.flip(0) if frame.mirrored else wanted)
        seen.add((frame.left, frame.mirrored))
    assert len({left for left, _ in seen}) > 6 and {mirrored for _, mirrored in seen} == {True, False}


def test_the_crop_that_is_told_is_that_of_the_picture_as_it_is_seen() -> None:
    framing, told = Framing(8, 8, mirror=True), set()
    for position in range(20):
        for picture in (ramp(8, 20), ramp(24, 16)):
            pictures, frame = framing({"one": picture}, STREAMS.at(position)("frame"))
            seen = ImageOps.mirror(picture) if frame.mirrored else picture
            ((high, wide, top, left, *target),) = sizes_of([frame]).int().tolist()
            assert (high, wide, *target) == (picture.height, picture.width, 8, 8)
            cut = framing.cut(seen, replace(frame, top=top, left=left, mirrored=False))
            torch.testing.assert_close(cut, pictures["one"], atol=2 / 127.5, rtol=0)
            told.add((frame.mirrored, left))
    assert {mirrored for mirrored, left in told if left > 8} == {True, False}


def test_a_second_text_encoder_reads_the_same_text() -> None:
    captions = Captions(words, shuffle=True, second=lambda text: words(text) + 100)
    examples = data([ramp(9, 9)] * 3, Framing(8, 8), captions)
    batch = examples.collate([examples.example(k, STREAMS.at(k)) for k in range(3)])
    assert batch["ids"].shape == (3, 1) and torch.equal(batch["ids_2"], batch["ids"] + 100)


def test_pictures_of_one_example_are_framed_alike_or_refused() -> None:
    framing = Framing(8, 8, mirror=True)
    pictures, _ = framing({"one": ramp(10, 20), "two": ramp(10, 20)}, STREAMS.at(1)("frame"))
    assert torch.equal(pictures["one"], pictures["two"])
    examples = data([ramp(10, 20)], framing, pictures={"pixels": "image", "edges": "edges"})
    examples.records.rows[0].columns["edges"] = ramp(10, 21)
    with pytest.raises(InputError, match="example 0: The pictures of one example have different sizes"):
        examples.example(0, STREAMS.at(0))


def test_a_batch_of_pictures_and_controls() -> None:
    examples = data([ramp(10, 20), ramp(30, 12)], Framing(8, 8), pictures={"pixels": "image", "control": "image"})
    examples.ranged = ("control",)
    batch = examples.collate([examples.example(k, STREAMS.at(k)) for k in range(2)])
    assert batch["pixels"].shape == batch["control"].shape == (2, 3, 8, 8)
    torch.testing.assert_close(batch["control"], (batch["pixels"] + 1) / 2)
    sizes = sizes_of(batch["frames"])
    assert sizes[:, :2].tolist() == [[10, 20], [30, 12]] and sizes[:, 4:].tolist() == [[8, 8], [8, 8]]


def words(text: str) -> torch.Tensor:
    return torch.tensor([len(text)])


def texts(captions: Captions, value, count: int = 400) -> list[str]:
    return [captions.text({"text": value}, STREAMS.at(k)("caption"), "here") for k in range(count)]


def test_captions_are_dropped_drawn_and_shuffled_by_the_position() -> None:
    dropped = texts(Captions(words, dropout=0.25), "a house")
    assert dropped == texts(Captions(words, dropout=0.25), "a house")
    assert 0.18 < dropped.count("") / len(dropped) < 0.32 and set(dropped) == {"", "a house"}
    drawn = texts(Captions(words), ["one", "two", "three"])
    assert all(0.25 < drawn.count(name) / len(drawn) < 0.42 for name in ("one", "two", "three"))
    shuffled = texts(Captions(words, shuffle=True), "a, b,c")
    assert len(set(shuffled)) == 6 and all(sorted(text.split(", ")) == ["a", "b", "c"] for text in shuffled)
    assert set(texts(Captions(words, fixed="this"), "other")) == {"this"}


@pytest.mark.parametrize("value", [3, None, [], [1]])
def test_captions_that_are_no_texts_are_refused(value) -> None:
    with pytest.raises(InputError, match="here: 'text' holds"):
        texts(Captions(words), value, 1)


def test_pictures_come_as_paths_bytes_and_objects(tmp_path) -> None:
    picture = ramp(5, 7)
    picture.save(tmp_path / "one.png")
    held = io.BytesIO()
    picture.save(held, "PNG")
    sources = [tmp_path / "one.png", str(tmp_path / "one.png"), {"bytes": held.getvalue(), "path": None}, picture]
    sources.append({"bytes": None, "path": str(tmp_path / "one.png")})
    for source in sources:
        assert np.array_equal(np.asarray(opened(source, "here")), np.asarray(picture))
    (tmp_path / "two.png").write_bytes(held.getvalue()[:40])
    with pytest.raises(InputError, match=r"row 7: .*two\.png cannot be read"):
        opened(tmp_path / "two.png", "row 7")


@pytest.mark.parametrize("wrong", [{"height": 0}, {"width": 0}, {"filter": "lanczo"}])
def test_frames_that_cannot_be(wrong) -> None:
    with pytest.raises(InputError):
        Framing(**{"height": 8, "width": 8, **wrong})
