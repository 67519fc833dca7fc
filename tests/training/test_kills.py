"""Recipes that are killed at random moments, within saves and at their end too, end as those that were not."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.training.recipes.places import model, pictures
from tests.training.warm import PATIENCE, Group, Warm, warm

KILLS = int(os.environ.get("LANGEVIN_KILLS", "3"))
"""Kills of every recipe."""
STEPS = 4 + 3 * KILLS // 2
RUN = "langevin.training.recipes:run"
RECIPES = {
    "text_to_image": (
        "--train_data_dir=pictures",
        "--use_ema",
        "--random_flip",
        "--gradient_accumulation_steps=2",
        "--train_batch_size=1",
    ),
    "dreambooth_lora": (
        "--instance_data_dir=pictures",
        "--instance_prompt=a sks cat",
        "--with_prior_preservation",
        "--class_data_dir=class",
        "--class_prompt=a cat",
        "--num_class_images=2",
        "--train_batch_size=1",
    ),
    "textual_inversion": (
        "--train_data_dir=pictures",
        "--placeholder_token=<toy>",
        "--initializer_token=cat",
        "--train_batch_size=2",
    ),
}
SHARED = (
    "--pretrained_model_name_or_path=base/model",
    "--output_dir=out",
    "--resolution=16",
    f"--max_train_steps={STEPS}",
    "--lr_scheduler=cosine",
    "--lr_warmup_steps=2",
    "--seed=1",
    "--learning_rate=1e-3",
    "--checkpointing_steps=1",
    "--checkpoints_total_limit=2",
    "--resume_from_checkpoint=latest",
    "--report_to=none",
)


@dataclass
class Place:
    """Where the runs find a pipeline and pictures, and a process that begins them at once."""

    folder: Path
    warm: Warm

    def home(self, name: str) -> Path:
        """Return a folder in which a run finds the model, the pictures and those of the class."""
        home = self.folder / name
        home.mkdir()
        for given in ("base", "pictures", "class"):
            (home / given).symlink_to(self.folder / given)
        return home


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("kills")
    model(folder / "base")
    pictures(folder / "pictures", 3)
    pictures(folder / "class", 2)
    with warm() as process:
        process.here("langevin:DiffusionPipeline.from_pretrained", str(folder / "base" / "model"))
        yield Place(folder, process)


def files(folder: Path) -> dict[str, str]:
    """Return the path of every file that a run wrote -> a hash of its bytes."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def until(group: Group, happened: Callable[[], bool]) -> None:
    """Wait for something to happen or for the end of a run."""
    end = time.monotonic() + PATIENCE
    while not happened() and group.alive() and time.monotonic() < end:
        time.sleep(0.0005)


def unfinished(out: Path) -> set[str]:
    """Return the names of checkpoints and results that are being written, or were when a run was killed."""
    return {path.name for path in (*out.glob(".checkpoint-*.partial"), *out.parent.glob(".*.partial"))}


def strike(group: Group, out: Path, moment: str, stream: random.Random, longest: float) -> str:
    """Kill a run at a moment of a kind, and return whether it was at its start, at a step, at a save or done.

    Args:
        moment: "start", "step", "save" or "end", after the last checkpoint; when exactly is drawn.
        longest: seconds of the longest wait after that.
    """
    before, reached = unfinished(out), steps(out)
    if moment == "step":
        until(group, lambda: steps(out) > reached)
    elif moment == "save":
        until(group, lambda: bool(unfinished(out) - before))
    elif moment == "end":
        until(group, lambda: steps(out) == STEPS)
    time.sleep(stream.uniform(0, longest))
    if group.alive():
        os.kill(group.pids[0], signal.SIGSTOP)
    found = "save" if unfinished(out) - before else ("step" if steps(out) > reached else "start")
    group.kill()
    (status,) = group.wait()
    return found if status == -signal.SIGKILL else "done"


def steps(out: Path) -> int:
    """Return the steps of the last checkpoint."""
    return max((int(path.parent.name.split("-")[1]) for path in out.glob("checkpoint-*/state.json")), default=0)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are copied")
@pytest.mark.parametrize("name", RECIPES)
def test_kills_change_no_byte(name: str, place: Place) -> None:
    flags = [*SHARED, *RECIPES[name]]
    one, other = place.home(f"{name} whole"), place.home(f"{name} killed")
    place.warm.run(one, RUN, name, flags)
    ended, before = (
        (one / "out" / name).stat().st_mtime for name in ("log.jsonl", f"checkpoint-{STEPS - 1}/state.json")
    )
    pace = max(ended - before, 0.02)
    stream, found = random.Random(f"{name} {os.environ.get('LANGEVIN_KILLS_SEED', '0')}"), []
    moments = [("save", "step", "save", "start")[k % 4] for k in range(KILLS - 1)] + ["end"]
    for moment in moments:
        group = place.warm.start(other, RUN, name, flags)
        longest = {"start": min(0.5, 8 * pace), "save": pace / 2 if "save" in found else 0.0}.get(moment, pace)
        found.append(strike(group, other / "out", moment, stream, longest))
    place.warm.run(other, RUN, name, flags)
    print(name, {what: found.count(what) for what in found})
    assert found.count("done") <= 1 and "save" in found
    wanted, got = files(one / "out"), files(other / "out")
    assert f"checkpoint-{STEPS}/optimizer.bin" in wanted
    assert got == wanted
    assert sorted(path.name for path in other.iterdir()) == ["base", "class", "out", "pictures", "said-0"]
