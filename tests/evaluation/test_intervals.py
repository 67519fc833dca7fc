"""Bootstrap intervals, verdicts, and prompt files."""

from __future__ import annotations

import importlib

import pytest
import torch

from langevin.core.errors import InputError
from langevin.evaluation.intervals import counts, measured, paired, student
from langevin.evaluation.prompt_files import Prompt, draw, read_prompts


def test_students_quantile() -> None:
    stats = importlib.import_module("scipy.stats")
    for freedom in (1, 2, 3, 5, 10, 100):
        assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.01)


def test_counts_are_drawn_with_replacement_and_by_the_seed() -> None:
    found = counts(7, resamples=500, seed=3)
    assert found.dtype == torch.float64 and (found.sum(1) == 7).all()
    assert found.var(0).mean() == pytest.approx(6 / 7, rel=0.1)
    assert torch.equal(found, counts(7, resamples=500, seed=3)) and not torch.equal(
        found, counts(7, resamples=500, seed=4)
    )


@pytest.mark.parametrize("n", [6, 30])
def test_of_100_intervals_95_hold_the_mean(n) -> None:
    generator = torch.Generator().manual_seed(n)
    held = 0
    for seed in range(500):
        found = measured("x", torch.randn(n, generator=generator), better="higher", resamples=400, seed=seed)
        held += found.low <= 0 <= found.high
    assert 0.92 < held / 500 < 0.98


def test_pairs_see_what_sets_do_not() -> None:
    """A gain of 0.2 under a spread of 1 between prompts is seen because each prompt is held against itself."""
    hard = torch.randn(40, generator=torch.Generator().manual_seed(0)).tolist()
    small = (0.1 * torch.randn(40, generator=torch.Generator().manual_seed(1))).tolist()
    one = {str(k): value for k, value in enumerate(hard)}
    two = {str(k): a + 0.2 + b for k, (a, b) in enumerate(zip(hard, small, strict=True))}
    gap = paired("score", two, one)
    assert gap.verdict == "better" and paired("score", one, two).verdict == "worse"
    assert paired("score", two, one, better="lower").verdict == "worse"
    assert gap.value == pytest.approx(gap.first - gap.second) and gap.low < gap.value < gap.high and gap.count == 40
    assert paired("score", one, dict(reversed(one.items()))).verdict == "no difference seen"


def test_five_pairs_give_no_verdict() -> None:
    one, two = ({str(k): k + gain for k in range(5)} for gain in (0, 1))
    assert paired("score", two, one).verdict == "no difference seen"
    one["5"], two["5"] = 0, 1
    assert paired("score", two, one).verdict == "better"


def test_what_cannot_be_compared_is_said() -> None:
    with pytest.raises(InputError, match="1 prompts have a score on one side only, such as 'c'"):
        paired("score", {"a": 1, "b": 2}, {"a": 1, "b": 2, "c": 3})
    with pytest.raises(InputError, match="at least two pictures"):
        paired("score", {"a": 1}, {"a": 1})


TABLE = """Prompt|Category|Challenge
A sign that says "Hi"|Arts|Writing & Symbols
"A ""b"" c"|Animals|Basic
a cat|Animals|
""".replace("|", "\t")
WANTED = [
    Prompt('A sign that says "Hi"', "Arts", "Writing & Symbols"),
    Prompt('A "b" c', "Animals", "Basic"),
    Prompt("a cat", "Animals"),
]


def test_prompt_files(tmp_path) -> None:
    tsv, csv, txt = (tmp_path / f"p.{ending}" for ending in ("tsv", "csv", "txt"))
    tsv.write_text(TABLE, encoding="utf-8-sig")
    csv.write_text('category,prompt\nArts,"one, two"\n')
    txt.write_text("a cat\n\n 고양이 \n")
    assert read_prompts(tsv) == WANTED
    assert read_prompts(csv) == [Prompt("one, two", "Arts")]
    assert [prompt.text for prompt in read_prompts(txt)] == ["a cat", "고양이"]


def test_prompts_are_drawn_by_category_count_and_seed() -> None:
    assert {p.text for p in draw(WANTED, category="Animals")} == {"a cat", 'A "b" c'}
    assert list(draw(WANTED, count=2, seed=5)) == list(draw(WANTED, count=2, seed=5))
    assert len({tuple(p.text for p in draw(WANTED, seed=seed)) for seed in range(20)}) > 3
    with pytest.raises(InputError, match="did you mean 'Animals'"):
        next(draw(WANTED, category="Animal"))
    with pytest.raises(InputError, match="4 prompts were asked of 3"):
        next(draw(WANTED, count=4))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("p.json", b"[]", "no file of prompts"),
        ("p.txt", b"\n", "it holds no prompt"),
        ("p.txt", b"\xff\xfe\xff", "is not UTF-8"),
        ("p.csv", b"text\na cat\n", "no column 'Prompt'; valid: text"),
        (
            "p.tsv",
            b"Prompt\tCategory\na\tx\n\ty\na\tz\n",
            "line 3: there is no prompt; line 4: the prompt of line 2 again",
        ),
    ],
)
def test_faulty_files_are_named_with_all_that_is_wrong(tmp_path, name, content, message) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_prompts(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read"):
        read_prompts(tmp_path / "other.txt")
