"""The report of a run: a page of its own, made of the files of the folder, for whole runs and broken ones."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from langevin.core.errors import ConfigError, InputError, NonFiniteError
from langevin.core.logging import get_logger
from langevin.training import report
from langevin.training.charts import MOST, Line, chart, number, powers, smoothed, thinned, ticks
from langevin.training.heldout import BINS
from langevin.training.recipes import RECIPES, run
from tests.training.line import Points, trainer
from tests.training.test_trainer import Stopped, stop_at

ALONE = {"meta", "img"}
"""Elements that stand without an end."""


class Page(HTMLParser):
    """Reads a page: its text, its elements, and whether each of them ends where it should."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict]] = []
        self.words = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ALONE:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.words += data

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.found if name == tag]


def page(folder: Path) -> Page:
    """Return the report of a folder, after checking that nothing in it is fetched from elsewhere or runs."""
    text = report.write(folder).read_text()
    assert "http" not in text and "@import" not in text and "url(" not in text
    found = Page(text)
    assert not found.all("script") and not found.all("link")
    return found


def jsonl(file: Path, points: list[dict]) -> None:
    file.write_text("".join(json.dumps(point) + "\n" for point in points))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a run of 200 steps, which remembers its examples from step 100 on."""
    place = tmp_path / "a <b> run"
    (place / "previews").mkdir(parents=True)
    log = [{"step": k, "loss": 1 / (k + 1), "lr": 1e-4, "grad_norm": 2.0 - k / 100} for k in range(200)]
    jsonl(place / "log.jsonl", log)
    looks = []
    for step, level in ((0, 1.0), (100, 0.5), (200, 0.6)):
        bins = [level * (k + 1) for k in range(BINS - 1)] + [10 + step / 100]
        looks.append({"step": step, "loss": sum(bins) / BINS, "bins": bins})
    jsonl(place / "heldout.jsonl", looks)
    for step in (50, 100, 150, 200, 9):
        Image.new("RGB", (32, 16), (step, 0, 0)).save(place / "previews" / f"step-{step}.png")
    settings = {"validation_prompt": "a <i>cat</i> | a dog", "max_grad_norm": 1.0, "seed": 0, "rank": None}
    settings |= {"train_data_dir": "</p><script>alert(1)</script>", "max_train_steps": 200, "scale_lr": False}
    (place / "settings.json").write_text(json.dumps(settings))
    return place


def test_a_report_says_what_stands_out(folder) -> None:
    found = page(folder)
    for said in (
        "a <b> run",
        "Trained on </p><script>alert(1)</script>",
        "The held-out loss fell by 29.1%, from 5.5 at step 0 to 3.9 at step 200.",
        "Its lowest value was at step 100, and it rose by 16.4% since",
        "It rose at 1 of 10 ranges of noise: 90 to 100%.",
        "At 50% of the steps the gradient was longer than 1 and shortened.",
        "The saved file is not proven: the run has not ended",
        "Rows: a <i>cat</i>; a dog",
        "Off or unset: rank, scale_lr",
    ):
        assert said in found.words, said
    assert len(found.all("svg")) == 5 and not found.all("i")[0].get("onload")
    assert [image["alt"] for image in found.all("img")] == [f"pictures after step {k}" for k in (200, 150, 100, 50, 9)]
    assert all(image["src"].startswith("data:image/png;base64,") for image in found.all("img"))
    assert "1 earlier ones" in found.words


def test_large_pictures_are_linked(folder, monkeypatch) -> None:
    monkeypatch.setattr(report, "EMBEDDED", 100)
    kinds = [image["src"] for image in page(folder).all("img")]
    assert kinds[0].startswith("data:") and kinds[1:] == [f"previews/step-{k}.png" for k in (150, 100, 50, 9)]


@pytest.mark.parametrize(
    ("verdict", "said"),
    [("proven", "predicts what was trained: the largest difference is 0.001"), ("idle", "training changed nothing"),
     ("failed", "is not proven: it cannot be loaded <x>")],
)  # fmt: skip
def test_a_report_says_whether_the_file_is_proven(verdict, said, folder) -> None:
    result = {"verdict": verdict, "gap": 0.001, "effect": 0.2, "why": "it cannot be loaded <x>"}
    (folder / "proof.json").write_text(json.dumps(result))
    assert said in page(folder).words


def test_a_report_of_a_log_alone(tmp_path) -> None:
    jsonl(tmp_path / "log.jsonl", [{"step": 0, "loss": math.nan, "lr": 0.0}])
    found = page(tmp_path)
    assert "1 losses were not finite." in found.words and "No values." in found.words
    assert "heldout_share or heldout_data_dir" in found.words and len(found.all("svg")) == 1
    (tmp_path / "log.jsonl").write_text("")
    assert "none" in page(tmp_path).words
    with (tmp_path / "log.jsonl").open("w") as file:
        file.write('{"step": 0, "loss": 2.0, "lr": 0.1}\n{"step": 1, "lo')
    assert number(2.0) in page(tmp_path).words


def test_a_report_can_be_written_again_from_the_command_line(folder, tmp_path) -> None:
    first = page(folder)
    (folder / "report.html").unlink()
    assert run("report", [str(folder)]) == folder / "report.html"
    assert Page((folder / "report.html").read_text()).words == first.words
    with pytest.raises(InputError, match=r"has no log\.jsonl"):
        run("report", [str(tmp_path)])
    for words in ([], [str(folder), "more"], ["--help"]):
        with pytest.raises(InputError, match="takes one word"):
            run("report", words)
    (folder / "settings.json").write_text("{")
    with pytest.raises(ConfigError, match=r"settings\.json is not a JSON file"):
        run("report", [str(folder)])
    assert "report" not in RECIPES


# While a run goes on -------------------------------------------------------------------------------------------------


def test_a_run_writes_its_report_at_checkpoints_and_however_it_ends(tmp_path) -> None:
    seen = []

    def look(run) -> None:
        seen.append((run.step, (tmp_path / "report.html").exists()))
        if run.step in (2, 6):
            get_logger("langevin.training").warning("something at step %d", run.step // 4)

    run = trainer(tmp_path, watch=[look, stop_at(7)])
    with pytest.raises(Stopped), report.kept(run):
        run.fit()
    assert seen == [(k, k > 4) for k in range(1, 8)]
    assert [json.loads(line) for line in (tmp_path / "warnings.jsonl").open()] == [
        {"step": 2, "text": "something at step 0"}, {"step": 6, "text": "something at step 1"}
    ]  # fmt: skip
    again = trainer(tmp_path, watch=[look], resume="latest")
    with report.kept(again):
        again.fit()
    assert len((tmp_path / "warnings.jsonl").read_text().splitlines()) == 2
    get_logger("langevin.training").warning("after it")
    assert "after it" not in (tmp_path / "warnings.jsonl").read_text()
    assert "something at step 1" in page(tmp_path).words


def test_a_run_that_breaks_leaves_a_report(tmp_path) -> None:
    run = trainer(tmp_path, data=Points(broken=[3]), log_every=1)
    with pytest.raises(NonFiniteError), report.kept(run):
        run.fit()
    assert (tmp_path / "report.html").exists() == (tmp_path / "log.jsonl").exists()


def test_a_report_that_cannot_be_written_ends_no_run(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(report, "page", lambda files: json.loads("{"))
    run = trainer(tmp_path)
    with report.kept(run):
        run.fit()
    assert "could not be written" in (tmp_path / "warnings.jsonl").read_text()


# Charts --------------------------------------------------------------------------------------------------------------


def test_marks_of_axes_are_round_and_within() -> None:
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.0212, 0.0288) == [0.022, 0.024, 0.026, 0.028]
    assert ticks(-1, 1) == [-1, -0.5, 0, 0.5, 1]
    assert [round(10**value) for value in powers(0, 3)] == [1, 10, 100, 1000]
    assert [round(10**value, 3) for value in powers(-1, 0)] == [0.1, 0.2, 0.5, 1]
    assert [number(value) for value in (0, 1e-4, 2e-5, 12345.678, 0.25)] == ["0", "0.0001", "2e-5", "1.235e4", "0.25"]


def test_long_lines_are_thinned_and_keep_their_peaks() -> None:
    points = [(k, 1.0 + (k == 777)) for k in range(10_000)]
    found = thinned(points)
    assert len(found) <= MOST + 2 and (777, 2.0) in found and found == sorted(found)


def test_a_smoothed_line_begins_at_its_first_value_and_leaves_out_what_is_not_finite() -> None:
    found = smoothed([(0, 4.0), (1, math.inf), (2, 4.0), (3, 8.0)], share=1.0)
    assert [step for step, _ in found] == [0, 2, 3]
    assert found[0][1] == found[1][1] == 4.0 and 4.0 < found[2][1] < 8.0


def test_a_chart_stays_within_its_frame() -> None:
    import re

    points = [(k, math.sin(k)) for k in range(500)] + [(500, 1e9)]
    for line in (Line(points, "a<b", "red", faint=True), Line(points[:1], "one", "red"), Line([(0, 3.0)] * 2, "", "")):
        text = chart([line], label="x")
        places = re.findall(r"(-?[\d.]+),(-?[\d.]+)", re.search(r'points="([^"]*)"', text)[1])
        assert all(0 <= float(x) <= 640 and 0 <= float(y) <= 300 for x, y in places)
        assert "nan" not in text
    assert "a&lt;b" in chart([Line(points, "a<b", "red"), Line(points, "c", "red")], label="x", log=True)
