"""`langevin evaluate` and `langevin compare`: what they print, what they write, and how they fail."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from langevin.cli import main
from langevin.picturebook import model_folder
from langevin.picturebook.captions import describe
from langevin.picturebook.world import render, sample_scene

FEW = ("--resamples", "30")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """`good`: eight scenes; `grey`: the same without colour; `p.tsv`: their prompts."""
    folder, rng = tmp_path_factory.mktemp("place"), np.random.default_rng(4)
    lines: dict[str, str] = {}
    for name in ("good", "grey"):
        (folder / name).mkdir()
    while len(lines) < 8:
        scene = sample_scene(rng)
        text = describe(scene, rng)
        if text not in lines:
            picture = Image.fromarray(render(scene))
            picture.save(folder / "good" / f"{len(lines)}.png")
            picture.convert("L").save(folder / "grey" / f"{len(lines)}.png")
            lines[text] = f"{text}\t{'first' if len(lines) < 5 else 'second'}"
    (folder / "p.tsv").write_text("\n".join(["Prompt\tCategory", *lines.values()]))
    return folder


def run(capsys, *argv: str, status: int = 0) -> str:
    with pytest.raises(SystemExit) as leaving:
        main(argv)
    printed = capsys.readouterr()
    assert leaving.value.code == status, printed.err
    return printed.err if status else printed.out


def test_evaluate_prints_every_figure_with_its_interval(capsys, place) -> None:
    options = ("--prompts", str(place / "p.tsv"), "--against", str(place / "good"), *FEW)
    printed = run(capsys, "evaluate", str(place / "grey"), *options)
    for word in ("CLIP score", "as asked", "FID", "KID", "precision", "recall", "95 % interval", "shortest side to 64"):
        assert word in printed
    facts = json.loads(run(capsys, "evaluate", str(place / "grey"), *options, "--features", "checker", "--json"))
    assert [each["count"] for each in facts["figures"]] == [8] * 6
    assert "checker" in facts["about"]["features"] and "CLIP" in facts["about"]["judged by"]


def test_a_category_is_evaluated_alone(capsys, place) -> None:
    options = ("--prompts", str(place / "p.tsv"), *FEW, "--json")
    facts = json.loads(run(capsys, "evaluate", str(place / "good"), *options, "--category", "second"))
    assert facts["figures"][0]["count"] == 3


def test_another_clip_is_taken_from_its_folder(capsys, place) -> None:
    folder = str(model_folder() / "clip")
    facts = json.loads(
        run(
            capsys, "evaluate", str(place / "good"), "--prompts", str(place / "p.tsv"), "--clip", folder, *FEW, "--json"
        )
    )
    assert [each["name"] for each in facts["figures"]] == ["CLIP score"] and folder in facts["about"]["judged by"]


def test_compare_gives_a_verdict_and_a_sheet(capsys, place, tmp_path) -> None:
    sides = (str(place / "good"), str(place / "grey"))
    options = ("--prompts", str(place / "p.tsv"), "--output", str(tmp_path), *FEW)
    facts = json.loads(run(capsys, "compare", *sides, *options, "--json", "--against", str(place / "good")))
    assert facts["figures"][0]["name"] == "CLIP score" and facts["figures"][0]["verdict"] == "better"
    assert [each["name"] for each in facts["figures"]] == ["CLIP score", "as asked, %", "FID", "KID"]
    with Image.open(facts["sheet"]) as sheet:
        assert sheet.height > 8 * 128
    printed = run(capsys, "compare", *reversed(sides), *options)
    assert "worse" in printed and "comparison-2.png" in printed


def test_edits_are_measured_by_their_captions(capsys, place, tmp_path) -> None:
    lines = [line.split("\t")[0] for line in (place / "p.tsv").read_text().splitlines()[1:]]
    for name, shift in (("before", 0), ("after", 1)):
        (tmp_path / name).mkdir()
        for k in range(8):
            source = (k + shift) % 8
            Image.open(place / "good" / f"{source}.png").save(tmp_path / name / f"{k}.png")
            (tmp_path / name / f"{k}.txt").write_text(lines[source])
    sides = (str(tmp_path / "after"), "--edited-from", str(tmp_path / "before"))
    assert "directional similarity" in run(capsys, "evaluate", *sides, *FEW)
    assert "leave out --against" in run(capsys, "evaluate", *sides, "--against", str(tmp_path / "after"), status=2)


def test_prompts_that_are_too_long_are_told(capsys, place, tmp_path) -> None:
    for k, text in enumerate(["a red house", "a red house" + ", in the meadow" * 20]):
        Image.open(place / "good" / f"{k}.png").save(tmp_path / f"{k}.png")
        (tmp_path / f"{k}.txt").write_text(text)
    folder = str(model_folder() / "clip")
    assert "CLIP reads 32 tokens; 1 prompts are longer" in run(
        capsys, "evaluate", str(tmp_path), "--clip", folder, *FEW
    )


@pytest.mark.parametrize(
    "words, message",
    [
        (("evaluate", "good"), "nothing to measure; give --prompts"),
        (("evaluate", "good", "--category", "first"), "give --prompts too"),
        (("evaluate", "goo"), "did you mean 'good'"),
        (("evaluate", "good", "--prompts", "p.tsv", "--category", "secon"), "did you mean 'second'"),
        (("evaluate", "good", "--prompts", "p.tsv", "--device", "cup"), "did you mean 'cpu'"),
        (("evaluate", "good", "--prompts", "p.tsv", "--clip", "./none"), "does not exist"),
        (("evaluate", "good", "--prompts", "p.tsv", "--resamples", "3"), "at least 20"),
        (("compare", "good", "grey"), "good has pictures without prompts; give --prompts"),
        (("compare", "good", "grey", "--prompts", "p.tsv", "--output", "a.jpg"), "written as PNG"),
    ],
)
def test_what_cannot_be_done_is_said(capsys, place, monkeypatch, words, message) -> None:
    monkeypatch.chdir(place)
    assert message in run(capsys, *words, status=2)


def test_different_prompts_are_not_compared(capsys, place, tmp_path) -> None:
    for side, text in (("a", "a cat"), ("b", "a bird")):
        (tmp_path / side).mkdir()
        Image.open(place / "good" / "0.png").save(tmp_path / side / "0.png")
        (tmp_path / side / "0.txt").write_text(text)
    assert "show different prompts" in run(capsys, "compare", str(tmp_path / "a"), str(tmp_path / "b"), status=2)
