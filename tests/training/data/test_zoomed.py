"""Pictures at drawn sizes: where they stand in the frame, what captions say, and that the rest does not count."""

from __future__ import annotations

import pytest
import torch

from langevin.core.records import Record, Records
from langevin.diffusion.objective import Objective
from langevin.training.data.examples import Captions, PictureExamples
from langevin.training.data.framing import Framing
from langevin.training.data.joined import Joined
from langevin.training.data.zoomed import WORDS, Zoomed, placed
from langevin.training.latent import whole_cells
from langevin.training.streams import Streams
from tests.pipelines import tiny


def examples(said: list[str], sizes: tuple[float, float], count: int = 1) -> Zoomed:
    rows = [Record(str(k), {"image": tiny.picture(k, (40, 30)), "text": "a cat"}) for k in range(count)]
    captions = Captions(lambda text: said.append(text) or torch.zeros(1))
    return Zoomed(PictureExamples(Records("here", rows), Framing(20, 20), captions=captions), sizes)


def test_captions_say_what_is_drawn_small_or_large() -> None:
    said: list[str] = []
    data, streams = examples(said, (0.4, 1.4)), Streams(0)
    shares = [data.example(0, streams.at(k))["where"].mean().item() for k in range(200)]
    assert {text.removeprefix("a cat") for text in said} == {"", *(f", {w}" for words in WORDS.values() for w in words)}
    for share, text in zip(shares, said, strict=True):
        small, large = (any(word in text for word in WORDS[kind]) for kind in ("small", "large"))
        assert 0.16 - 1e-6 <= share <= 1 and (share < 0.37 if small else share > 0.35)
        assert not large or share == 1
    assert min(shares) < 0.2 and sum(share == 1 for share in shares) > 50


def test_a_picture_of_full_size_is_as_without() -> None:
    said: list[str] = []
    data, stream = examples(said, (1.0, 1.0)), Streams(0).at(3)
    found, plain = data.example(0, stream), data.pictures.example(0, stream)
    assert found["pixels"].equal(plain["pixels"]) and found["where"].eq(1).all() and said == ["a cat", "a cat"]
    assert data.collate([found, found])["where"].shape == (2, 1, 20, 20) and len(data) == 1


def test_a_picture_is_placed_in_the_frame() -> None:
    picture = torch.arange(1, 13.0).reshape(1, 3, 4).expand(3, 3, 4)
    frame, where = placed(picture, (5, 6), (0.99, 0.0))
    assert frame[:, 2:, :4].equal(picture) and frame.sum() == picture.sum()
    assert where[:, 2:, :4].eq(1).all() and where.sum() == 12
    frame, where = placed(picture, (2, 3), (0.0, 0.99))
    assert frame.equal(picture[:, :2, 1:]) and where.eq(1).all()


def test_what_is_no_picture_does_not_count() -> None:
    where = torch.zeros(1, 1, 8, 8)
    where[..., 1:8, :6] = 1
    cells = whole_cells(where, torch.zeros(1, 4, 4, 4))
    assert cells[0, 0].tolist() == [[0] * 4, *[[1, 1, 1, 0]] * 3]
    said, wanted = torch.randn(1, 4, 4, 4), torch.zeros(1, 4, 4, 4)
    cost = Objective().cost(said, wanted, cells)
    torch.testing.assert_close(cost, said[..., 1:, :3].square().mean()[None])
    assert Objective().cost(torch.where(cells > 0, said, 100 * said), wanted, cells).equal(cost)


def test_parts_are_joined_one_after_the_other() -> None:
    parts = [examples([], (1.0, 1.0), count) for count in (2, 3)]
    data, stream = Joined(parts), Streams(0).at(0)
    assert len(data) == 5
    for number, (part, own) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]):
        assert data.example(number, stream)["pixels"].equal(parts[part].example(own, stream)["pixels"])
    with pytest.raises(IndexError):
        data.example(5, stream)
