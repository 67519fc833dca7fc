"""`langevin generate --prompts`: the same bytes by any number of processes, continued after a kill and an interrupt."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from langevin.cli import crew, main, spread
from langevin.cli.fingerprint import fingerprint
from langevin.cli.request import Request
from tests.cli.conftest import facts, refused, run

PROMPTS = ["a cat", "a red house, night", "ein Häuschen"]
OPTIONS = ["--steps", "2", "--scheduler", "euler-ancestral", "--negative-prompt", "a dog", "--size", "24x16"]
OPTIONS += ["--guidance-scale", "3", "--seed", "7", "--num-images", "2"]
NAMES = [f"{number}-{variant}.png" for number in ("0001-a-cat", "0002-a-red-house-night", "0003-ein-häuschen")
         for variant in (1, 2)]  # fmt: skip


@pytest.fixture(scope="module")
def asked(tmp_path_factory, model) -> list[str]:
    """The command without its number of processes and output."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.tsv"
    path.write_text("Category\tPrompt\n" + "".join(f"-\t{prompt}\n" for prompt in PROMPTS), encoding="utf-8")
    return ["--prompts", str(path), "--model", model, *OPTIONS]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, asked) -> Path:
    """The pictures by one process."""
    folder = tmp_path_factory.mktemp("one") / "new"
    with pytest.raises(SystemExit) as leaving:
        main(["generate", *asked, "--processes", "1", "--output", str(folder)])
    assert leaving.value.code == 0
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pictures_are_those_of_single_calls_and_say_what_made_them(capsys, tmp_path, drawn, asked) -> None:
    assert sorted(content(drawn)) == [*NAMES, "sheet.png"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = ["--output", str(tmp_path), *asked[2:], "--num-images", "1", "--seed", "10"]
        (alone,) = run(capsys, PROMPTS[1], *one)
    finally:
        torch.set_num_threads(threads)
    assert Image.open(alone).tobytes() == Image.open(drawn / NAMES[3]).tobytes()
    found = facts(str(drawn / NAMES[3]))
    extra = {"asked": {"scheduler": "EulerAncestralDiscreteScheduler", "size": [24, 16]}, "threads": 1}
    assert found == {**facts(alone), **extra, "fingerprint": fingerprint([Path(asked[3])])}
    assert facts(str(drawn / "sheet.png"))["seeds"] == [7, 8, 9, 10, 11, 12]


def test_three_processes_are_interrupted_and_two_go_on_of_which_one_is_killed(
    capsys, monkeypatch, tmp_path, drawn, asked
) -> None:
    def report(outcome, *more, before=spread.report) -> None:
        before(outcome, *more)
        raise KeyboardInterrupt

    command = ["generate", *asked, "--output", str(tmp_path)]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as leaving:
        patch.setattr(spread, "report", report)
        main([*command, "--processes", "3"])
    assert leaving.value.code == 130 and spread.CONTINUE in capsys.readouterr().err
    there = content(tmp_path)
    assert 0 < len(there) <= 3 and there.items() <= content(drawn).items()
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in there}
    taken = []

    def take(worker, task, message, *, before=crew.Worker.take) -> None:
        before(worker, task, message)
        taken.append(task)
        if len(taken) == len(NAMES) - len(there):
            worker.process.kill()

    monkeypatch.setattr(crew.Worker, "take", take)
    with pytest.raises(SystemExit) as leaving:
        main([*command, "--processes", "2"])
    out, err = capsys.readouterr()
    assert leaving.value.code == 0 and f"{len(NAMES)} pictures, {len(there)} of them there" in err
    assert "was ended by SIGKILL" in err and len(taken) == len(NAMES) - len(there) + 1 and taken[-1] == taken[-2]
    assert [Path(line).name for line in out.splitlines()] == [*NAMES, "sheet.png"]
    assert content(tmp_path) == content(drawn)
    assert before == {name: (tmp_path / name).stat().st_mtime_ns for name in there}


def test_the_pictures_are_found_by_their_prompts_when_they_are_judged(capsys, tmp_path, drawn) -> None:
    (tmp_path / "some.txt").write_text("\n".join(PROMPTS[:2]))
    with pytest.raises(SystemExit) as leaving:
        main(["evaluate", str(drawn), "--prompts", str(tmp_path / "some.txt"), "--resamples", "50", "--json"])
    out, err = capsys.readouterr()
    assert leaving.value.code == 0, err
    figures = {figure["name"]: figure for figure in json.loads(out)["figures"]}
    assert figures["CLIP score"]["count"] == 2 and json.loads(out)["about"]["pictures"] == "4 of 24x16"


def test_a_whole_folder_needs_no_process(capsys, monkeypatch, drawn, asked) -> None:
    monkeypatch.setattr(crew, "Worker", None)
    paths = run(capsys, *asked, "--output", str(drawn))
    assert [Path(path).name for path in paths] == [*NAMES, "sheet.png"]


@pytest.mark.parametrize(
    "more, message",
    [
        (["--steps", "3"], "steps 2, now 3"),
        (["--seed", "8"], "seed 7, now 8"),
        (["--scheduler", "euler"], "--scheduler 'EulerAncestralDiscreteScheduler', now 'EulerDiscreteScheduler'"),
        (["--size", "16"], "--size [24, 16], now [16, 16]"),
        (["--threads", "2"], "threads 1, now 2"),
        (["--num-images", "1"], "another list"),
        (["--negative-prompt", "x"], "negative_prompt 'a dog', now 'x'"),
    ],
)
def test_other_settings_are_not_mixed(capsys, drawn, asked, more, message) -> None:
    error = refused(capsys, *asked, *more, "--output", str(drawn))
    assert message in error and "--overwrite" in error and "another --output" in error


def test_what_is_no_picture_of_the_request_is_drawn_anew_when_told_so(capsys, tmp_path, drawn, asked) -> None:
    for name, data in content(drawn).items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / NAMES[0]).write_bytes((drawn / NAMES[0]).read_bytes()[:-30])
    Image.new("RGB", (8, 8)).save(tmp_path / NAMES[1])
    (tmp_path / "0009-a-tree.png").write_bytes(b"kept")
    error = refused(capsys, *asked, "--output", str(tmp_path))
    for name, why in zip(
        [*NAMES[:2], "0009-a-tree.png"], ["is no whole", "does not say", "is of another"], strict=True
    ):
        assert f"{name} {why}" in error
    found = spread.missing(*pictures(asked, tmp_path), overwrite=True)
    assert [picture.path.name for picture in found] == NAMES[:2]
    assert (tmp_path / "0009-a-tree.png").read_bytes() == b"kept"


def pictures(asked: list[str], folder: Path) -> tuple[list, list[dict]]:
    """Return the pictures of the command, and what the ones that were drawn say."""
    request = Request(prompts=asked[1], seed=7, num_images=2, output=str(folder))
    listed = spread.listed(request)
    there = facts(str(folder / NAMES[5]))
    changed = ({"prompt": one.request.prompt, "seed": one.request.seed} for one in listed)
    return listed, [{k: v for k, v in {**there, **some}.items() if k not in spread.OF_THE_MODEL} for some in changed]


@pytest.mark.parametrize(
    "more, message",
    [
        (["a cat"], "PROMPT is for a single prompt"),
        (["--grid", "steps=1,2"], "--grid is for a single prompt"),
        (["--image", "x.png"], "--image is for a single prompt"),
        (["--output", "x.png"], "name a folder"),
        (["--processes", "0"], "at least 1"),
        (["--threads", "-1"], "at least 1"),
        (["--lora", ":1"], "--lora is ':1'"),
        (["--scheduler", "eulr"], "did you mean 'euler'"),
        (["--seed", str(2**64 - 5)], "out of bounds"),
        (["--model", "nowhere/at/all"], "does not exist"),
    ],
)
def test_mistakes_are_said_before_a_process_begins(capsys, monkeypatch, tmp_path, asked, more, message) -> None:
    monkeypatch.setattr(crew, "Worker", None)
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *asked, *more)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [["--processes", "2"], ["--threads", "2"], ["--overwrite"]])
def test_options_of_many_prompts_need_them(capsys, option) -> None:
    assert f"{option[0]} needs --prompts" in refused(capsys, "a cat", *option)


class StandIn:
    """A crew that says what it was told to say."""

    outcomes: tuple = ()

    def __init__(self, tasks, begins) -> None:
        self.tasks, self.begins = tasks, begins

    def work(self):
        for outcome in self.outcomes:
            if outcome.task is not None and outcome.fault is None:
                Path(self.tasks[outcome.task]["path"]).touch()
            yield outcome


def test_the_exit_status_says_what_is_lacking(capsys, monkeypatch, tmp_path, asked) -> None:
    partial = tmp_path / f".{NAMES[0]}.x.partial"
    partial.touch()
    outcomes = [crew.Outcome(k) for k in range(5)]
    monkeypatch.setattr(StandIn, "outcomes", (*outcomes, crew.Outcome(5, fault="too dark")))
    monkeypatch.setattr(spread, "Crew", StandIn)
    with pytest.raises(SystemExit) as leaving:
        main(["generate", *asked, "--output", str(tmp_path), "--quiet"])
    out, err = capsys.readouterr()
    assert leaving.value.code == 1
    assert [Path(line).name for line in out.splitlines()] == NAMES[:5]
    assert f"1 pictures are lacking: {NAMES[5]} (too dark). The same command" in err
    assert not partial.exists(), "what a killed process left half written is taken away"


def test_a_reason_that_holds_for_every_picture_stops_the_run(capsys, monkeypatch, tmp_path, asked) -> None:
    monkeypatch.setattr(StandIn, "outcomes", tuple(crew.Outcome(k, fault="too dark") for k in range(6)))
    monkeypatch.setattr(spread, "Crew", StandIn)
    assert "The first pictures cannot be drawn: too dark" in refused(capsys, *asked, "--output", str(tmp_path), "-q")


def test_every_process_has_an_accelerator_of_its_own(monkeypatch) -> None:
    monkeypatch.setattr(spread, "pick_device", lambda name: "cuda" if name == "auto" else name)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    request = Request(prompts="x.txt", processes=3)
    assert spread.places(request) == ["cuda:0", "cuda:1", "cuda:0"]
    assert spread.places(replace(request, device="cuda:1")) == ["cuda:1"] * 3
    assert spread.stamped(request, "cuda:1", None)["device"] == "cuda", "which one drew it is chance"
    assert spread.places(replace(request, device="cpu", processes=None)) == ["cpu"]


def test_a_fingerprint_tells_weights_apart(tmp_path) -> None:
    file, again = tmp_path / "a" / "x", tmp_path / "b" / "x"
    for path in (file, again):
        path.parent.mkdir()
        path.write_bytes(bytes(3_000_000))
    assert fingerprint([file.parent]) == fingerprint([again.parent])
    again.write_bytes(bytes([1]) * 3_000_000)
    assert fingerprint([file.parent]) != fingerprint([again.parent])
    again.write_bytes(bytes(3_000_001))
    assert fingerprint([file]) != fingerprint([again])


def test_the_fingerprint_of_a_request_follows_its_model(tmp_path, model) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(json.dumps({}).encode())
    request = Request(prompts="x.txt", model=model)
    with_lora = replace(request, lora=(f"{weights}:0.5",))
    first = spread.stamped(with_lora, "cpu", 1)["fingerprint"]
    assert first != spread.stamped(request, "cpu", 1)["fingerprint"]
    weights.write_bytes(b"other")
    assert first != spread.stamped(with_lora, "cpu", 1)["fingerprint"]
