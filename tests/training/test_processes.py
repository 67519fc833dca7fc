"""Several processes train as one does: the same examples, noise and learning rates, and one of them writes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from langevin.core.errors import ConfigError
from tests.training.line import trainer
from tests.training.recipes.places import model, pictures
from tests.training.warm import Warm, warm

pytestmark = pytest.mark.slow
TRAIN = "tests.training.splits:train"
RUN = "langevin.training.recipes:run"


@pytest.fixture(scope="module")
def ready() -> Iterator[Warm]:
    with warm() as process:
        yield process


def split(ready: Warm, folder: Path, processes: int, accumulated: int, batch: int, kind="plain", env=None, **options):
    """Train with a split and return the log, what was seen by position, and what every process ended with."""
    options |= {"accumulated": accumulated, "batch": batch}
    ready.run(folder, TRAIN, str(folder), options, kind, processes=processes, **(env or {}))
    seen: dict[str, list[float]] = {}
    for rank in range(processes):
        own = json.loads((folder / f"seen-{rank}.json").read_text())
        assert not set(own) & set(seen)
        seen |= own
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return log, seen, [torch.load(folder / f"weights-{rank}.pt") for rank in range(processes)]


@pytest.mark.parametrize(
    "splits",
    [[(1, 4, 1), (1, 1, 4), (2, 2, 1), (2, 1, 2), (4, 1, 1)], [(1, 6, 1), (3, 2, 1), (3, 1, 2)]],
    ids=["four", "six"],
)
def test_every_split_of_a_step_trains_alike(splits, ready, tmp_path) -> None:
    found = [split(ready, tmp_path / str(k), *parts) for k, parts in enumerate(splits)]
    log, seen, (first,) = found[0]
    assert [point["step"] for point in log] == list(range(12)) and log[0]["lr"] == 0 < log[1]["lr"] < log[2]["lr"]
    assert len(seen) == 12 * splits[0][0] * splits[0][1] * splits[0][2]
    for other, also, weights in found:
        assert [(point["step"], point["lr"]) for point in other] == [(point["step"], point["lr"]) for point in log]
        assert also == seen
        for point, wanted in zip(other, log, strict=True):
            assert point["loss"] == pytest.approx(wanted["loss"], abs=1e-6)
            assert point["grad_norm"] == pytest.approx(wanted["grad_norm"], abs=1e-5)
        for held in weights:
            assert all(torch.equal(one, two) for one, two in zip(held, weights[0], strict=True))
            assert all(torch.allclose(one, two, rtol=0, atol=1e-6) for one, two in zip(held, first, strict=True))


def test_a_run_goes_on_with_other_processes(ready, tmp_path) -> None:
    """A checkpoint of two processes is resumed by one that accumulates."""
    options = {"accumulated": 2, "batch": 1, "steps": 4, "lr_scheduler": "constant"}
    ready.run(tmp_path / "whole", TRAIN, str(tmp_path / "whole"), {**options, "accumulated": 4})
    for processes, steps in ((2, 2), (1, 4)):
        options |= {"steps": steps, "accumulated": 4 // processes, "resume": "latest", "checkpoint_every": 2}
        ready.run(tmp_path / "other", TRAIN, str(tmp_path / "other"), options, processes=processes)
    held = [torch.load(tmp_path / name / "weights-0.pt") for name in ("whole", "other")]
    assert all(torch.allclose(one, two, rtol=0, atol=1e-6) for one, two in zip(*held, strict=True))
    options |= {"steps": 5, "accumulated": 1}
    said = ready.run(tmp_path / "other", TRAIN, str(tmp_path / "other"), options).said()
    assert "was trained on 4 examples per optimizer step, and now there are 1" in said


@pytest.mark.parametrize(
    ("kind", "options", "broken", "words"),
    [
        ("failing", {}, None, ["this process fails"]),
        ("plain", {"batch": 5}, 6, ["NonFiniteError: The loss is nan at step 0, for the examples [0, 1, 2,"]),
        ("plain", {"idle": True}, None, ["need a gradient of every trained parameter; net.idle get none"]),
    ],
)
def test_a_process_that_fails_ends_the_run(kind, options, broken, words, ready, tmp_path) -> None:
    options |= {"accumulated": 1}
    group, begun = ready.start(tmp_path, TRAIN, str(tmp_path), options, kind, broken, processes=2), time.monotonic()
    assert group.wait() == [1, 1] and time.monotonic() - begun < 60
    assert all(word in group.said(1) for word in words)
    assert not list(tmp_path.glob("weights-*"))


def test_processes_that_would_each_train_alone_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 processes were started, but there is no device for each"):
        trainer(tmp_path)


def test_a_recipe_by_two_processes_is_written_by_one(ready, tmp_path) -> None:
    """Two trained networks, accumulated batches, previews, checkpoints and pictures of the class that are drawn."""
    model(tmp_path / "base")
    pictures(tmp_path / "pictures", 3)
    flags = [
        f"--pretrained_model_name_or_path={tmp_path / 'base' / 'model'}",
        f"--instance_data_dir={tmp_path / 'pictures'}",
        "--instance_prompt=a sks cat",
        "--with_prior_preservation",
        f"--class_data_dir={tmp_path / 'class'}",
        "--class_prompt=a cat",
        "--num_class_images=2",
        "--train_text_encoder",
        "--output_dir=out",
        "--resolution=16",
        "--train_batch_size=1",
        "--max_train_steps=2",
        "--checkpointing_steps=1",
        "--lr_warmup_steps=0",
        "--learning_rate=1e-3",
        "--validation_prompt=a cat",
        "--num_validation_images=1",
        "--validation_steps=2",
        "--seed=0",
        "--report_to=none",
    ]
    two = ready.run(tmp_path / "two", RUN, "dreambooth", [*flags, "--gradient_accumulation_steps=2"], processes=2)
    one = ready.run(tmp_path / "one", RUN, "dreambooth", [*flags, "--gradient_accumulation_steps=4"])
    assert "Steps:" in two.said(0) and "Steps:" not in two.said(1)
    written = [sorted(p.relative_to(run.folder) for p in (run.folder / "out").rglob("*")) for run in (one, two)]
    assert written[0] == written[1] and Path("out/previews/step-2.png") in written[0]
    logs = [[json.loads(line) for line in (run.folder / "out" / "log.jsonl").open()] for run in (one, two)]
    assert [(point["step"], point["lr"]) for point in logs[0]] == [(point["step"], point["lr"]) for point in logs[1]]
    for name in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        first, other = (load_file(run.folder / "out" / "checkpoint-1" / name) for run in (one, two))
        assert max(float((first[key] - other[key]).abs().max()) for key in first) < 1e-5
