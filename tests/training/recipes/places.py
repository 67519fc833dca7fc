"""A tiny pipeline and a few pictures on the disk, for the tests of recipes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file

import langevin
from langevin.training.settings import parse
from tests.pipelines import tiny

FLAGS = ("--resolution=16", "--train_batch_size=2", "--max_train_steps=4", "--lr_warmup_steps=0", "--seed=0")


def model(folder: Path) -> Path:
    """Write a tiny Stable Diffusion pipeline and return its folder."""
    pipe = langevin.StableDiffusionPipeline(
        **tiny.networks(langevin),
        text_encoder=tiny.text_encoder(),
        tokenizer=tiny.tokenizer(folder / "words"),
        scheduler=tiny.scheduler(langevin, "DDIMScheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder / "model")
    return folder / "model"


def pictures(folder: Path, count: int = 5) -> Path:
    """Write pictures with captions beside them and return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        tiny.picture(k, (20, 24)).save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text(f"a cat {k}")
    return folder


def trained(recipe, words: list[str], *flags: str, common: Sequence[str] = FLAGS) -> Path:
    """Train a recipe (settings, function) with flags and return the folder of the result."""
    settings, train = recipe
    return train(parse(settings, [*words, *common, *flags], name="train"))


@contextmanager
def own_precision() -> Iterator[None]:
    """Context in which a run may choose its precision, which accelerate takes once per process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def cut(folder: Path) -> None:
    """Leave of a run of four steps what a kill before its second checkpoint would."""
    shutil.rmtree(folder / "checkpoint-4")
    (folder / "log.jsonl").write_text("".join((folder / "log.jsonl").open().readlines()[:3]))


def digest(folder: Path) -> str:
    """Return a hash of the result, of the last checkpoint and of the log."""
    found = (path for path in folder.rglob("*.safetensors") if "checkpoint-2" not in path.parts)
    parts = [load_file(path) for path in sorted(found)]
    assert parts
    values = b"".join(tensor.numpy().tobytes() for part in parts for _, tensor in sorted(part.items()))
    return hashlib.sha256(values + (folder / "log.jsonl").read_bytes()).hexdigest()
