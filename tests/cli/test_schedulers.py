"""`langevin schedulers`: what it prints, what it accepts, and how it fails; and the commands of docs/laboratory.md."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

import langevin
from langevin import registry
from langevin.cli import main
from langevin.cli.laboratory import find, literal, parse
from langevin.core.errors import ConfigError, InputError

ROOT = Path(__file__).resolve().parents[2]
OWN = '''
import torch

class Mine:
    """Euler's method; `gain` other than 1 breaks it."""

    def __init__(self, gain=1.0):
        self.gain = gain

    def set_timesteps(self, num_inference_steps, device=None):
        self.sigmas = torch.cat([torch.logspace(1.6, -1.6, num_inference_steps, dtype=torch.float64), torch.zeros(1)])
        self.timesteps, self.at = torch.arange(num_inference_steps), 0

    def step(self, model_output, timestep, sample):
        change = self.sigmas[self.at + 1] - self.sigmas[self.at]
        self.at += 1
        return (sample + self.gain * change * model_output,)
'''


def run(capsys: pytest.CaptureFixture, *argv: str, status: int = 0) -> str:
    """Run a command that must leave with `status` and return what it printed."""
    with pytest.raises(SystemExit) as leaving:
        main(["schedulers", *argv])
    printed = capsys.readouterr()
    assert leaving.value.code == status, printed.err
    return printed.out + printed.err


def test_list_names_every_sampler(capsys) -> None:
    lines = run(capsys, "list").splitlines()
    assert [line.split()[0] for line in lines[1:]] == [
        row.name for row in registry.SCHEDULERS if row.name.endswith("Scheduler")
    ]
    (euler,) = [line for line in lines if line.startswith("EulerDiscreteScheduler ")]
    assert re.search(r"exploding +epsilon, sample, v.* 1 +s_churn, s_noise +\d+ more", euler)
    (ancestral,) = [line for line in lines if line.startswith("EulerAncestralDiscreteScheduler ")]
    assert " always " in ancestral


def test_show_prints_levels_and_coefficients(capsys) -> None:
    text = run(capsys, "show", "dpm-solver", "--steps", "4", "--option", "use_karras_sigmas=true")
    assert "4 steps: preserving levels" in text and "c m1" in text and "x0, newest first" in text
    assert "c saved" not in text, "columns without a number are left out"
    assert len([line for line in text.splitlines() if re.match(r"\d +", line)]) == 4
    assert "noise" in run(capsys, "show", "ddim", "-o", "eta=0.5").splitlines()[2]


def test_check_prints_a_report(capsys) -> None:
    text = run(capsys, "check", "euler", "--steps", "8")
    assert "EulerDiscreteScheduler, 8 steps" in text and " 0 fault" in text


def test_check_reads_files(capsys, tmp_path) -> None:
    langevin.DDIMScheduler(timestep_spacing="trailing").save_pretrained(tmp_path)
    for name in (str(tmp_path), str(tmp_path / "scheduler_config.json")):
        scheduler, rest = find(name, ["eta=0.5", "clip_sample=false"])
        assert scheduler.config.timestep_spacing == "trailing" and scheduler.config.clip_sample is False
        assert rest == {"eta": 0.5}


def test_check_takes_a_class_of_ones_own(capsys, tmp_path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    data = json.loads(run(capsys, "check", f"{file}:Mine", "--steps", "8", "--json"))
    assert data["ok"] and data["name"] == "Mine"
    text = run(capsys, "check", f"{file}:Mine", "--steps", "8", "-o", "gain=0.9", status=1)
    assert "must end at the data and does not" in text
    assert "Mine, 5 steps" in run(capsys, "show", f"{file}:Mine", "--steps", "5", "-o", "gain=1")
    with pytest.raises(InputError, match="did you mean 'Mine'"):
        find(f"{file}:Mnie")
    with pytest.raises(InputError, match=r"mine\.py:ClassName"):
        find(str(file))
    with pytest.raises(InputError, match="does not exist"):
        find("absent.py:Mine")
    (tmp_path / "nameless.json").write_text("{}")
    with pytest.raises(InputError, match="names no class"):
        find(str(tmp_path / "nameless.json"))
    file.write_text("1 / 0")
    with pytest.raises(InputError, match=r"cannot be run .ZeroDivisionError: division by zero.; `python"):
        find(f"{file}:Mine")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["check", "eulr"], "did you mean 'euler'"),
        (["check", "euler", "-o", "s_chrun=1"], "did you mean 's_churn'"),
        (["check", "euler", "-o", "s_churn"], "write key=value"),
        (["check", "euler", "--space", "flat"], "space is 'flat'"),
        (["show", "vq-diffusion"], "cannot be built"),
        (["show", "euler", "-o", "timesteps=[9, 1]"], "does not accept 'timesteps'"),
        (["plot", "euler", "--output", "a.jpg"], "a.png"),
        (["plot", *["euler"] * 9, "--output", "a.png"], "1 to 8"),
    ],
)
def test_mistakes_are_one_message(capsys, argv, message) -> None:
    text = run(capsys, *argv, status=2)
    assert message in text and "Traceback" not in text


def test_options_are_literals() -> None:
    assert parse(["a=1", "b=true", "c=None", "d=karras", "e=[1, 2]", "f=a=b"]) == {
        "a": 1, "b": True, "c": None, "d": "karras", "e": [1, 2], "f": "a=b",
    }  # fmt: skip
    assert literal("0.5") == 0.5
    with pytest.raises(ConfigError, match="eta"):
        find("euler", ["eta=1"])


def test_plot_writes_a_picture(capsys, tmp_path) -> None:
    importlib.import_module("matplotlib")
    file = tmp_path / "grids.png"
    assert str(file) in run(capsys, "plot", "ddim", "ddpm", "--output", str(file), "--steps", "6")
    with Image.open(file) as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 20)) > 20
    assert "grids-2.png" in run(capsys, "plot", "ddim", "--output", str(file), "--steps", "6")
    text = run(capsys, "plot", "ddim", "--output", str(file / "a.png"), "--steps", "2", status=2)
    assert "a.png cannot be written (" in text and "choose another --output" in text


def test_plot_without_matplotlib_says_what_to_install(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr("langevin.core.imports.is_available", lambda name: False)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    text = run(capsys, "plot", "ddim", "--output", str(tmp_path / "a.png"), status=2)
    assert "pip install matplotlib" in text


def documented() -> list[list[str]]:
    """Return the words of every `langevin schedulers` line of docs/laboratory.md."""
    text = (ROOT / "docs" / "laboratory.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [words[2:] for words in lines if words[:2] == ["langevin", "schedulers"]]


@pytest.mark.parametrize("words", documented(), ids=" ".join)
def test_the_commands_of_the_documentation_run(words, capsys, tmp_path, monkeypatch) -> None:
    if words[0] == "plot":
        importlib.import_module("matplotlib")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "laboratory.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "mine.py").write_text(example[1])
    (tmp_path / "model" / "scheduler").mkdir(parents=True)
    langevin.DDIMScheduler().save_pretrained(tmp_path / "model" / "scheduler")
    run(capsys, *words)
