"""`langevin train` and the scripts of examples/: the same recipes, the same flags."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from langevin.cli import main
from langevin.training.recipes import RECIPES
from tests.training.recipes.places import FLAGS, model, pictures

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*/*.py"))


def called(capsys, *words: str) -> tuple[int, str, str]:
    """Return exit status, output and errors of a command."""
    with pytest.raises(SystemExit) as leaving:
        main(["train", *words])
    return leaving.value.code or 0, *capsys.readouterr()


def test_a_recipe_trains_by_its_name(tmp_path, capsys) -> None:
    base, shown = model(tmp_path), pictures(tmp_path / "shown", 2)
    out_dir = f"--output_dir={tmp_path / 'out'}"
    flags = [f"--pretrained_model_name_or_path={base}", f"--instance_data_dir={shown}", out_dir]
    status, out, _ = called(capsys, "dreambooth-lora", *flags, *FLAGS, "--instance_prompt", "a sks cat")
    assert status == 0 and out.splitlines()[-1] == f"Written to {tmp_path / 'out'}"
    assert (tmp_path / "out" / "pytorch_lora_weights.safetensors").is_file()


def test_every_recipe_has_its_help(capsys) -> None:
    for name in RECIPES:
        status, out, _ = called(capsys, name, "--help")
        assert status == 0 and out.startswith(f"usage: langevin train {name}") and "--learning_rate" in out


def test_wrong_names_and_flags_are_one_line(capsys) -> None:
    status, _, err = called(capsys, "dreambooth_lorra")
    assert status == 2 and "There is no recipe 'dreambooth_lorra'; did you mean 'dreambooth_lora'?" in err
    status, _, err = called(capsys, "dreambooth_lora", "--rnk=3")
    assert status == 2 and "does not accept 'rnk'; did you mean 'rank'?" in err and len(err.splitlines()) == 1
    status, _, err = called(capsys, "dreambooth_lora", "--rank=x")
    assert status == 2 and "invalid int value: 'x'" in err


def test_scripts_are_thin_and_stand_beside_what_they_need() -> None:
    assert SCRIPTS
    for script in SCRIPTS:
        assert len(script.read_text(encoding="utf-8").splitlines()) < 60
        assert (script.parent / "README.md").is_file() and (script.parent / "requirements.txt").is_file(), script


def test_a_script_says_what_is_wrong_in_one_line() -> None:
    script = ROOT / "examples" / "dreambooth" / "train_dreambooth_lora.py"
    done = subprocess.run([sys.executable, str(script), "--rnk=3"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: train_dreambooth_lora.py does not accept 'rnk'; did you mean 'rank'?\n"


def test_the_report_of_a_run_is_written_anew(tmp_path, capsys) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 0, "loss": 1.0, "lr": 0.1}\n')
    status, out, _ = called(capsys, "report", str(tmp_path))
    assert status == 0 and out == f"Written to {tmp_path / 'report.html'}\n"
    assert (tmp_path / "report.html").is_file()
    status, _, err = called(capsys, "report", str(tmp_path / "nothing"))
    assert status == 2 and "has no log.jsonl" in err
