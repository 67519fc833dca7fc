"""Latents that are kept: what they are known by, what is encoded anew, damage, shares of processes, and runs."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from threading import Barrier, Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import langevin
from langevin.core.errors import ConfigError, InputError, NonFiniteError
from langevin.core.records import read_folder
from langevin.training import caching
from langevin.training.data.buckets import plan
from langevin.training.data.examples import Captions, PictureExamples
from langevin.training.data.framing import Framing
from langevin.training.data.memory import Memory
from langevin.training.data.paired import Paired
from langevin.training.data.shelf import entries
from langevin.training.latent import TextToImage
from langevin.training.recipes import controlnet, dreambooth, instruct_pix2pix, text_to_image
from langevin.training.streams import Draw, Streams
from tests.pipelines import tiny
from tests.training.recipes.places import digest, model, pictures, trained

STREAMS = Streams(3)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny pipeline."""
    return model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def pipe(base: Path) -> Any:
    """Return a tiny pipeline."""
    return langevin.DiffusionPipeline.from_pretrained(base)


@pytest.fixture
def shown(tmp_path: Path) -> Path:
    """Return a folder of five pictures with captions."""
    return pictures(tmp_path / "pictures")


def examples(folder: Path, side: int = 16, **options) -> PictureExamples:
    framing = Framing(side, side, **{"centre": True, **options})
    return PictureExamples(read_folder(folder), framing, captions=Captions(lambda text: torch.tensor([len(text)])))


def run(pipe, data, *, batch: int = 2, process: int = 0, processes: int = 1, wait: Callable[[], Any] = int) -> Any:
    """Return what filling asks of a run."""
    task = TextToImage(pipe, None, [], learning_rate=0.0)  # type: ignore[arg-type]
    task.seen = []  # type: ignore[attr-defined]
    spread = task.spread

    def counted(pixels):
        task.seen.append(pixels)  # type: ignore[attr-defined]
        return spread(pixels)

    task.spread = counted  # type: ignore[method-assign]
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), process_index=process, num_processes=processes, autocast=nullcontext,
        wait_for_everyone=wait,
    )  # fmt: skip
    return SimpleNamespace(
        task=task, data=data, accelerator=accelerator, main=process == 0, run=SimpleNamespace(batch=batch, workers=0)
    )


def encoded(pipe, data, folder: Path, **options) -> int:
    """Fill a folder and return how many pictures were encoded."""
    before = set(folder.glob("*"))
    caching.fill(run(pipe, data, **options), folder)
    new = set(folder.glob("*")) - before
    assert all(file.name.startswith("latents-") and file.suffix == ".safetensors" for file in new)
    return sum(len(entries(file) or ()) for file in new)


def test_a_batch_of_latents_is_what_the_autoencoder_says_of_the_pictures(pipe, shown, tmp_path) -> None:
    plain, kept = examples(shown, mirror=True), examples(shown, mirror=True)
    task = TextToImage(pipe, None, [], learning_rate=0.0)  # type: ignore[arg-type]
    assert encoded(pipe, kept, tmp_path / "latents") == 10
    for first in range(0, 12, 2):
        positions = range(first, first + 2)
        one, other = (data.collate([data.example(p % 5, STREAMS.at(p)) for p in positions]) for data in (plain, kept))
        assert set(other["pixels"]) == {"mean", "std"} and other["frames"] == one["frames"]
        assert torch.equal(one["ids"], other["ids"]) and one["said"] == other["said"]
        with torch.no_grad():
            found = [task.latents(batch["pixels"], Draw(STREAMS, positions)) for batch in (one, other)]
        assert torch.equal(*found)
    assert {frame.mirrored for frame in other["frames"]} <= {True, False}


def test_what_changes_is_encoded_anew_and_nothing_else(pipe, shown, tmp_path) -> None:
    folder = tmp_path / "latents"
    assert encoded(pipe, examples(shown), folder) == 5
    assert encoded(pipe, examples(shown), folder) == 0
    tiny.picture(77, (20, 24)).save(shown / "2.png")
    (shown / "3.png").rename(shown / "9.png")
    assert encoded(pipe, examples(shown), folder) == 1
    assert encoded(pipe, examples(shown, mirror=True), folder) == 5
    assert encoded(pipe, examples(shown, filter="nearest"), folder) == 5
    assert encoded(pipe, examples(shown, side=8), folder) == 5
    pipe.vae.register_to_config(scaling_factor=3.0)
    torch.nn.init.ones_(pipe.vae.decoder.conv_in.weight)
    assert encoded(pipe, examples(shown), folder) == 0
    with torch.no_grad():
        pipe.vae.encoder.conv_in.bias[0] += 1e-3
    assert encoded(pipe, examples(shown), folder) == 5
    pipe.vae.bfloat16()
    assert encoded(pipe, examples(shown), folder) == 5
    held = examples(shown)
    encoded(pipe, held, folder)
    assert held.example(0, STREAMS.at(0))["pixels"]["mean"].dtype == torch.bfloat16


def test_pictures_of_a_table_and_of_memory_are_known_by_what_they_show(pipe, shown, tmp_path) -> None:
    data = examples(shown)
    assert encoded(pipe, data, tmp_path / "latents") == 5
    for record in data.records.rows:
        record.columns["image"] = {"bytes": record.columns["image"].read_bytes(), "path": None}  # type: ignore[index]
    assert encoded(pipe, data, tmp_path / "latents") == 0
    data.records.rows[0].columns["image"] = tiny.picture(0, (20, 24))  # type: ignore[index]
    assert encoded(pipe, data, tmp_path / "latents") == 1
    assert encoded(pipe, data, tmp_path / "latents") == 0


@pytest.mark.parametrize("harm", ["flip", "cut"])
def test_a_damaged_file_is_told_and_computed_again(harm, pipe, shown, tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(caching, "ENTRIES", 2)
    folder = tmp_path / "latents"
    assert encoded(pipe, examples(shown), folder) == 5
    files = sorted(folder.iterdir())
    assert len(files) == 3
    sound = {file: file.read_bytes() for file in files}
    content = bytearray(sound[files[0]])
    content[-1] ^= 1
    files[0].write_bytes(content if harm == "flip" else content[:-9])
    logging.getLogger("langevin").addHandler(caplog.handler)
    try:
        caching.fill(run(pipe, examples(shown)), folder)
    finally:
        logging.getLogger("langevin").removeHandler(caplog.handler)
    assert f"{files[0]} is damaged and was deleted" in caplog.text
    assert {file: file.read_bytes() for file in sorted(folder.iterdir())} == sound


def test_a_kill_loses_only_what_was_not_written(pipe, shown, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(caching, "ENTRIES", 2)
    stopped = run(pipe, examples(shown))
    spread = stopped.task.spread

    def killed(pixels):
        if len(stopped.task.seen) == 2:
            raise KeyboardInterrupt
        return spread(pixels)

    stopped.task.spread = killed
    with pytest.raises(KeyboardInterrupt):
        caching.fill(stopped, tmp_path / "latents")
    assert encoded(pipe, examples(shown), tmp_path / "latents") == 1


def test_processes_encode_a_share_each(pipe, shown, tmp_path) -> None:
    barrier, found = Barrier(2, timeout=60), {}

    def work(process: int) -> None:
        data = examples(shown, mirror=True)
        one = run(pipe, data, process=process, processes=2, wait=barrier.wait)
        caching.fill(one, tmp_path / "latents")
        found[process] = (len(one.task.seen), data.example(4, STREAMS.at(1))["pixels"]["mean"])

    threads = [Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0][0] == found[1][0] == 3 and torch.equal(found[0][1], found[1][1])
    assert sum(len(entries(file) or ()) for file in (tmp_path / "latents").iterdir()) == 10
    with pytest.raises(ConfigError, match=r"5 latents that other processes encoded are not in .* latents_dir"):
        caching.fill(run(pipe, examples(shown, mirror=True), processes=2), tmp_path / "elsewhere")


def test_what_cannot_be_kept_is_refused(pipe, shown, tmp_path) -> None:
    with pytest.raises(ConfigError, match="pass center_crop"):
        caching.fill(run(pipe, examples(shown, centre=False)), tmp_path)
    torch.nn.init.constant_(pipe.vae.encoder.conv_in.bias, float("nan"))
    with pytest.raises(NonFiniteError, match=r"0\.png"):
        caching.fill(run(pipe, examples(shown)), tmp_path)
    (shown / "1.png").unlink()
    data = examples(shown)
    (shown / "2.png").unlink()
    with pytest.raises(InputError, match=r"2\.png cannot be read"):
        caching.fill(run(pipe, data), tmp_path)


def test_memory_keeps_what_was_asked_for_last_and_no_more_than_it_may() -> None:
    memory, calls = Memory(3 * 8), []

    def ask(*rows: int) -> list[float]:
        def compute():
            calls.append(rows)
            return {"x": torch.tensor([[float(row), 0.0] for row in rows])}

        return memory([bytes([row]) for row in rows], compute)["x"][:, 0].tolist()

    assert ask(1, 1) == [1, 1] and ask(1, 2) == [1, 2] and ask(2, 1) == [2, 1] and calls == [(1, 1), (1, 2)]
    assert ask(3, 2) == [3, 2] and ask(1, 4) == [1, 4] and len(calls) == 4
    assert set(memory.rows) == {(2, b"\2"), (2, b"\1"), (2, b"\4")} and memory.size == 3 * 8
    assert ask(2) == [2] and len(calls) == 5


def test_states_are_computed_once_unless_the_encoder_learns(pipe, monkeypatch) -> None:
    task = TextToImage(pipe, None, [], learning_rate=0.0)  # type: ignore[arg-type]
    task.memory = Memory(2**20)
    ids = torch.tensor([[0, 5, 6], [0, 7, 8]])
    batch = {"ids": ids, "said": [row.numpy().tobytes() for row in ids]}
    one = task.conditions(batch)["encoder_hidden_states"]
    states = task.states
    monkeypatch.setattr(task, "states", lambda ids: pytest.fail("computed again"))
    turned = {"ids": ids, "said": batch["said"][::-1]}
    assert torch.equal(task.conditions(turned)["encoder_hidden_states"], one.flip(0))
    task.reads = True
    monkeypatch.setattr(task, "states", lambda ids: states(ids) + 1)
    assert torch.equal(task.conditions(batch)["encoder_hidden_states"], one + 1)


# ---- recipes --------------------------------------------------------------------------------------------------------


def listed(folder: Path, column: str, text: str) -> Path:
    """Return a folder of pairs of pictures in two shapes, with texts."""
    folder.mkdir()
    lines = []
    for k in range(6):
        size = (20, 24) if k % 2 else (40, 20)
        for name, number in ((f"{k}.png", k), (f"{k}-too.png", k + 50)):
            tiny.picture(number, size).save(folder / name)
        lines.append({"file_name": f"{k}.png", f"{column}_file_name": f"{k}-too.png", text: f"a cat {k % 3}"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def shapes(folder: Path, count: int = 4) -> Path:
    """Return a folder of pictures with captions, in two shapes."""
    pictures(folder, count)
    for k in range(0, count, 2):
        tiny.picture(k, (40, 20)).save(folder / f"{k}.png")
    return folder


def words_for(name: str, folder: Path) -> tuple[tuple, list[str]]:
    """Return a recipe and the flags of its data."""
    if name == "text_to_image":
        flags = [f"--train_data_dir={pictures(folder / 'data')}", "--caption_dropout_prob=0.3"]
        return (text_to_image.LoraSettings, text_to_image.train_lora), flags
    if name == "dreambooth":
        flags = [f"--instance_data_dir={shapes(folder / 'data')}", "--instance_prompt=a sks cat"]
        prior = [f"--class_data_dir={shapes(folder / 'class', 3)}", "--class_prompt=a cat", "--num_class_images=3"]
        flags += [*prior, "--with_prior_preservation", "--aspect_ratio_buckets"]
        return (dreambooth.LoraSettings, dreambooth.train_lora), flags
    if name == "controlnet":
        flags = [f"--train_data_dir={listed(folder / 'data', 'conditioning_image', 'text')}", "--aspect_ratio_buckets"]
        return (controlnet.ControlSettings, controlnet.train), flags
    data = listed(folder / "data", "input_image", "edit_prompt")
    flags = [f"--train_data_dir={data}", "--edited_image_column=image", "--aspect_ratio_buckets"]
    return (instruct_pix2pix.EditSettings, instruct_pix2pix.train), [*flags, "--conditioning_dropout_prob=0.2"]


@pytest.mark.parametrize("name", ["text_to_image", "dreambooth", "controlnet", "instruct_pix2pix"])
def test_a_run_on_latents_ends_as_one_on_pictures(name, base, tmp_path, monkeypatch) -> None:
    recipe, data = words_for(name, tmp_path)
    words = [f"--pretrained_model_name_or_path={base}", *data, "--center_crop"]
    words += [] if name == "dreambooth" else ["--random_flip"]
    plain = trained(recipe, [*words, f"--output_dir={tmp_path / 'plain'}"])
    words += ["--cache_latents", f"--latents_dir={tmp_path / 'latents'}"]
    first = trained(recipe, [*words, f"--output_dir={tmp_path / 'first'}"])
    assert digest(plain) == digest(first)
    if name in ("text_to_image", "instruct_pix2pix"):
        monkeypatch.setattr(TextToImage, "spread", stored)
        assert digest(plain) == digest(trained(recipe, [*words, f"--output_dir={tmp_path / 'again'}"]))


def stored(self, pixels):
    """Stand for an autoencoder that must not be asked."""
    return pixels["mean"], pixels["std"]


def test_no_picture_is_opened_where_all_are_encoded(base, shown, tmp_path, monkeypatch) -> None:
    pipe, data = langevin.DiffusionPipeline.from_pretrained(base), examples(shown)
    caching.fill(run(pipe, data), tmp_path / "latents")
    monkeypatch.setattr("langevin.training.data.examples.opened", lambda source, name: pytest.fail("opened"))
    assert data.example(3, STREAMS.at(0))["pixels"]["mean"].shape == (4, 8, 8)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--cache_latents",), "cache_latents needs center_crop"),
        (("--latents_dir=here",), "latents_dir has no effect without cache_latents"),
        (("--cache_text_mb=5", "--train_text_encoder"), "no effect with train_text_encoder"),
        (("--cache_text_mb=-1",), "at least 0"),
    ],
)
def test_flags_that_cannot_be_are_refused_before_anything_is_loaded(flags, words, base, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(dreambooth, "pipeline", lambda settings: pytest.fail("loaded"))
    recipe = (dreambooth.LoraSettings, dreambooth.train_lora)
    data = [f"--instance_data_dir={shapes(tmp_path / 'data')}", "--instance_prompt=a sks cat"]
    with pytest.raises((ConfigError, InputError), match=words):
        trained(recipe, [f"--pretrained_model_name_or_path={base}", *data, f"--output_dir={tmp_path / 'out'}"], *flags)


def test_the_class_comes_in_the_sizes_of_the_subject(tmp_path) -> None:
    subject, prior = examples(shapes(tmp_path / "one"), side=64), examples(shapes(tmp_path / "two", 3), side=64)
    data = Paired(subject, prior, 0.5)
    groups = data.bucket(2)
    assert sorted(map(sorted, groups)) == [[0, 2], [1, 3]]
    assert set(subject.sizes or ()) == set(data.fitting) and set(data.fitting) < set(plan(64))
    assert sorted(len(part) for part in data.fitting.values()) == [1, 2]
    for group in groups:
        batch = data.collate([data.example(k, STREAMS.at(k)) for k in group])
        assert batch["pixels"].shape[0] == 4 and tuple(batch["pixels"].shape[2:]) == subject.sizes[group[0]]
    alone = Paired(examples(shapes(tmp_path / "three", 1), side=64), prior)
    alone.bucket(1)
    assert [len(part) for part in alone.fitting.values()] == [3]
