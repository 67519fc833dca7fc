"""The training loop: exact resume, independence of the split, and what goes wrong."""

from __future__ import annotations

import gc
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from langevin.core.errors import ConfigError, InputError, NonFiniteError, WeightsError
from langevin.training import checkpoints
from langevin.training.trainer import LONG, Run
from tests.training.line import Line, Points, bits, trainer


class Stopped(Exception):
    """Interrupts a run."""


def stop_at(step: int):
    def stop(run) -> None:
        if run.step == step:
            raise Stopped

    return stop


def interrupted(folder: Path, step: int, **options) -> None:
    with pytest.raises(Stopped):
        trainer(folder, watch=[stop_at(step)], **options).fit()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    """A run that nothing interrupted."""
    run = trainer(tmp_path_factory.mktemp("whole"))
    run.fit()
    return run


@pytest.mark.parametrize("step", [1, 3, 5, 8, 11])
def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not(step: int, whole, tmp_path) -> None:
    interrupted(tmp_path, step)
    run = trainer(tmp_path, resume="latest")
    run.fit()
    assert bits(run) == bits(whole)


def test_a_run_learns(whole) -> None:
    losses = [json.loads(line)["loss"] for line in (whole.run.folder / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 12 and losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(("batch", "accumulated", "workers"), [(4, 1, 0), (1, 4, 0), (2, 2, 2)])
def test_the_split_into_batches_and_workers_changes_nothing(batch, accumulated, workers, tmp_path) -> None:
    """Without dropout, whose draws belong to a batch; sums in another order differ by rounding."""
    runs = []
    for name, options in {"one": {}, "two": {"batch": batch, "accumulated": accumulated, "workers": workers}}.items():
        task = Line()
        task.net[2].p = 0.0
        runs.append(trainer(tmp_path / name, task=task, **options))
        runs[-1].fit()
    for one, other in zip(*(run.task.net.parameters() for run in runs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    rates = [[json.loads(line)["lr"] for line in (run.run.folder / "log.jsonl").open()] for run in runs]
    assert rates[0] == rates[1]


def test_one_step_equals_a_step_by_hand(tmp_path) -> None:
    task, data = Line(), Points()
    task.net[2].p = 0.0
    run = trainer(tmp_path, task=task, data=data, steps=1, warmup=0, lr_scheduler="constant", max_grad_norm=None)
    other = Line()
    other.net[2].p = 0.0
    weights = list(other.net.parameters())
    pairs = [run.order.example(p) for p in range(4)]
    batch = torch.stack([data.example(number, run.streams.at(p)) for p, number in enumerate(pairs)])
    noise = torch.stack([torch.randn(1, generator=run.streams.stream("noise", p)) for p in range(4)])
    loss = (other.net(batch[:, :1] + 0.01 * noise) - batch[:, 1:]).square().mean()
    gradients = torch.autograd.grad(loss, weights)
    # the first step of AdamW moves by lr * g / (|g| + eps) after a decay of lr * 0.01
    expected = [w * (1 - 0.05 * 0.01) - 0.05 * g / (g.abs() + 1e-8) for w, g in zip(weights, gradients, strict=True)]
    run.fit()
    for found, wanted in zip(task.net.parameters(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals")
def test_kills_at_any_moment_change_nothing(tmp_path) -> None:
    """Processes are killed at random moments, within saves too, until one is done."""
    quiet = subprocess.run([sys.executable, "-m", "tests.training.line", str(tmp_path / "one"), "0"])
    assert quiet.returncode == 0
    moments, kills = random.Random(0), 0
    folder = tmp_path / "other"
    while not (folder / "bits").exists():
        with subprocess.Popen([sys.executable, "-m", "tests.training.line", str(folder), "0.02"]) as process:
            begun = time.monotonic()
            while not list(folder.glob("*checkpoint-*")) and process.poll() is None and time.monotonic() < begun + 120:
                time.sleep(0.01)
            if kills < 6:
                time.sleep(moments.uniform(0, 0.5))
                process.kill()
                kills += 1
        assert kills == 6 or process.returncode in (0, -signal.SIGKILL)
    assert (folder / "bits").read_bytes() == (tmp_path / "one" / "bits").read_bytes()
    assert not list(folder.glob(".*partial"))


# Checkpoints ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [LONG - 1, LONG])
def test_long_runs_leave_the_heap_alone_and_give_it_back(steps: int, tmp_path) -> None:
    seen: set[bool] = set()
    before = gc.get_freeze_count()
    with pytest.raises(Stopped):
        watch = [lambda _: seen.add(gc.get_freeze_count() > before), stop_at(2)]
        trainer(tmp_path, watch=watch, steps=steps, checkpoint_every=None).fit()
    assert seen == {steps == LONG} and gc.get_freeze_count() <= before


def test_old_checkpoints_go_after_the_new_one_was_read(tmp_path, monkeypatch) -> None:
    trainer(tmp_path, checkpoint_limit=1).fit()
    assert [c.step for c in checkpoints.all_in(tmp_path)] == [12]
    monkeypatch.setattr(checkpoints.Checkpoint, "damage", lambda self: ["net.safetensors is missing"])
    with pytest.raises(WeightsError, match="damaged"):
        trainer(tmp_path, steps=16, checkpoint_limit=1).fit()
    assert 12 in [c.step for c in checkpoints.all_in(tmp_path)]


def test_the_latest_checkpoint_is_the_latest_whole_one(tmp_path, caplog) -> None:
    trainer(tmp_path).fit()
    (tmp_path / "checkpoint-12" / "net.safetensors").write_bytes(b"short")
    found = checkpoints.find(tmp_path, "latest")
    assert found is not None and found.step == 8
    with pytest.raises(WeightsError, match=r"net.safetensors has 5 bytes instead of \d+"):
        checkpoints.find(tmp_path, "checkpoint-12")
    weights = tmp_path / "checkpoint-8" / "net.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(WeightsError, match=r"content of net\.safetensors has changed"):
        checkpoints.find(tmp_path, "checkpoint-8")
    (tmp_path / "checkpoint-4" / "optimizer.bin").unlink()
    with pytest.raises(WeightsError, match=r"optimizer\.bin is missing"):
        checkpoints.find(tmp_path, "checkpoint-4")


def test_names_of_checkpoints(tmp_path) -> None:
    assert checkpoints.find(tmp_path, "latest") is None
    with pytest.raises(InputError, match="holds no checkpoint"):
        checkpoints.find(tmp_path, "checkpoint-4")
    trainer(tmp_path).fit()
    with pytest.raises(InputError, match="did you mean 'checkpoint-8'"):
        checkpoints.find(tmp_path, "checkpoint-5")
    assert checkpoints.find(tmp_path, str(tmp_path / "checkpoint-8")).step == 8
    (tmp_path / "checkpoint-16").mkdir()
    assert [c.step for c in checkpoints.all_in(tmp_path)] == [4, 8, 12]
    (tmp_path / "checkpoint-16" / "state.json").write_text("{}")
    with pytest.raises(ConfigError, match="not the state of a checkpoint"):
        checkpoints.all_in(tmp_path)
    with pytest.raises(InputError, match="at least 1"):
        checkpoints.keep(tmp_path, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": Points(11)}, "10 examples and there are 11 now"),
        ({"seed": 4}, "has the seed 3, not 4"),
    ],
)
def test_a_run_goes_on_as_it_began(options: dict, words: str, tmp_path) -> None:
    interrupted(tmp_path, 5)
    with pytest.raises(ConfigError, match=words):
        trainer(tmp_path, resume="latest", **options).fit()


def test_an_average_that_was_not_kept_cannot_be_resumed(tmp_path) -> None:
    interrupted(tmp_path, 5, average=None)
    with pytest.raises(ConfigError, match="use_ema"):
        trainer(tmp_path, resume="latest").fit()
    run = trainer(tmp_path, resume="latest", average=None, seed=None)
    assert run.streams.seed == 3
    run.fit()


# What goes wrong -----------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_and_names_the_examples(tmp_path) -> None:
    with pytest.raises(NonFiniteError, match=r"nan at step 0, for the examples \[.*\b6\b") as stopped:
        trainer(tmp_path, data=Points(broken=[6]), batch=10, accumulated=1).fit()
    assert stopped.value.step == 0


def test_steps_with_a_bad_loss_can_be_left_out(tmp_path, caplog) -> None:
    run = trainer(tmp_path, data=Points(broken=[6]), on_nonfinite="skip")
    run.fit()
    assert all(torch.isfinite(p).all() for p in run.task.net.parameters())
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").open()]
    assert 0 < sum(loss != loss for loss in losses) < 12


def test_parameters_that_no_gradient_reaches_are_named(tmp_path, monkeypatch) -> None:
    told = []
    monkeypatch.setattr("langevin.training.trainer.logger.warning", lambda text, *parts: told.append(text % parts))
    trainer(tmp_path, task=Line(idle=True), steps=1).fit()
    assert told == ["1 of 5 trained parameters get no gradient: net.idle"]


def test_nothing_to_train_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="Nothing is to be trained"):
        trainer(tmp_path, task=Line(locked=True))
    with pytest.raises(InputError, match="no examples"):
        trainer(tmp_path, data=Points(0))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch": 0}, {"on_nonfinite": "stopp"}])
def test_settings_are_checked(wrong: dict, tmp_path) -> None:
    with pytest.raises(InputError):
        Run(tmp_path, **{"steps": 3, **wrong})
