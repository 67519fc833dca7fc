"""Held-out examples: the same draws at every look, a run that does not notice, and a loss that says what it should."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from langevin.core.errors import ConfigError, InputError
from langevin.core.records import Problems, Record, Records, read_folder
from langevin.training.heldout import BINS, FILE, HeldOut, Spread, apart
from langevin.training.recipes import RECIPES
from langevin.training.recipes.custom_diffusion import CustomSettings
from langevin.training.recipes.text_to_image import LoraSettings, train_lora
from langevin.training.settings import parse
from langevin.training.streams import Streams
from langevin.training.trainer import Losses
from tests.training.line import Line, Points, bits, trainer
from tests.training.recipes.places import FLAGS, model, pictures, trained
from tests.training.test_trainer import Stopped, stop_at


def watched(folder: Path, every: int = 5, task: Line | None = None, watch=(), draws: int = 20, **options):
    """Return a trainer that looks at three held-out points."""
    run = trainer(folder, task=task, **options)
    look = HeldOut(Points(3), every=every, draws=draws)
    run.before.append(look.begin)
    run.watch += [look, *watch]
    return run


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    """A run with looks that nothing interrupted."""
    run = watched(tmp_path_factory.mktemp("whole"))
    run.fit()
    return run


def test_a_run_does_not_notice_that_it_is_watched(whole, tmp_path) -> None:
    quiet = trainer(tmp_path)
    quiet.fit()
    assert bits(quiet) == bits(whole)
    assert [point["step"] for point in lines(whole.run.folder)] == [0, 5, 10, 12]
    assert whole.task.net.training


@pytest.mark.parametrize("step", [3, 6, 11])
def test_a_resumed_run_tells_what_one_that_was_not_tells(step: int, whole, tmp_path) -> None:
    with pytest.raises(Stopped):
        watched(tmp_path, watch=[stop_at(step)]).fit()
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 99')
    run = watched(tmp_path, resume="latest")
    run.fit()
    assert bits(run) == bits(whole)
    assert (tmp_path / FILE).read_bytes() == (whole.run.folder / FILE).read_bytes()


def test_a_run_that_begins_anew_forgets_the_looks_of_the_one_before(tmp_path) -> None:
    for _ in range(2):
        watched(tmp_path).fit()
    assert [point["step"] for point in lines(tmp_path)] == [0, 5, 10, 12]


def test_the_figures_are_the_losses_of_the_average_in_evaluation(whole) -> None:
    """By hand: the draws of every position, dropout off, the averaged weights, and as many draws in every range."""
    point = lines(whole.run.folder)[-1]
    streams, data = Streams(whole.streams.number("held out")), Points(3)
    task = Line()
    with torch.no_grad():
        for parameter, value in zip(task.net.parameters(), whole.average.values, strict=True):
            parameter.copy_(value)
    places = torch.randperm(20, generator=streams.stream("ranges"))
    batch = torch.stack([data.example(p % 3, streams.at(p)) for p in range(20)])
    noise = torch.stack([torch.randn(1, generator=streams.stream("noise", p)) for p in range(20)])
    costs = (task.net.eval()(batch[:, :1] + 0.01 * noise) - batch[:, 1:]).square()[:, 0]
    expected = [costs[places // 2 == k].mean().item() for k in range(BINS)]
    assert point["bins"] == pytest.approx(expected, rel=1e-4)
    assert point["loss"] == pytest.approx(costs.mean().item(), rel=1e-4)
    first = lines(whole.run.folder)[0]
    assert point["loss"] < 0.5 * first["loss"]


def test_levels_are_spread_and_losses_are_those_before_weighing(tmp_path) -> None:
    class Weighed(Line):
        def losses(self, batch, draw) -> Losses:
            assert isinstance(draw, Spread) or torch.is_grad_enabled()
            level = draw.uniform("level")
            assert draw.uniform("other").shape == level.shape
            if not torch.is_grad_enabled():
                seen.append(level)
            return Losses(100 * super().losses(batch, draw).rows, level, 2 * level)

    seen: list[torch.Tensor] = []
    watched(tmp_path, task=Weighed(), every=99, draws=30, steps=1).fit()
    assert sorted(torch.cat(seen[: len(seen) // 2]).tolist()) == pytest.approx([(k + 0.5) / 30 for k in range(30)])
    assert lines(tmp_path)[0]["bins"] == pytest.approx([(2 * k + 1) / BINS for k in range(BINS)])
    assert lines(tmp_path)[0]["loss"] == pytest.approx(1.0)


# What is held out ----------------------------------------------------------------------------------------------------


def records(count: int, folder: Path | None = Path()) -> Records:
    return Records("set", [Record(f"{k // 2}.png", {"image": k}) for k in range(count)], folder=folder)


def test_a_share_follows_from_names_and_keeps_those_of_one_name_together() -> None:
    found = apart(records(40), 0.25)
    held = {row.name for row in found.held.rows}
    assert len(held) == 5 and len(found.held) == 10 and len(found) == 30
    assert held.isdisjoint(row.name for row in found.rows)
    turned = Records("set", records(40).rows[::-1], folder=Path())
    assert {row.name for row in apart(turned, 0.25).held.rows} == held
    more = {row.name for row in apart(records(44), 0.25).held.rows}
    assert len(more & held) >= 4
    assert found.rows[:2] == [found.rows[0], found.rows[1]]


def test_rows_of_a_table_are_told_apart_by_their_number() -> None:
    found = apart(records(40, folder=None), 0.25)
    assert len(found.held) == 10 and len(found) == 30
    assert sorted(row.columns["image"] for part in (found, found.held) for row in part.rows) == list(range(40))


@pytest.mark.parametrize(("count", "share"), [(4, 0.1), (4, 1.0)])
def test_a_share_that_leaves_nothing_is_refused(count: int, share: float) -> None:
    with pytest.raises(ConfigError, match="one at least on both sides"):
        apart(records(count), share)


# Recipes -------------------------------------------------------------------------------------------------------------

LORA = (LoraSettings, train_lora)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the folders of a tiny pipeline and of five pictures with captions."""
    return model(tmp_path_factory.mktemp("base")), pictures(tmp_path_factory.mktemp("pictures"))


def words(places, folder: Path) -> list[str]:
    return [f"--pretrained_model_name_or_path={places[0]}", f"--train_data_dir={places[1]}", f"--output_dir={folder}"]


def test_a_recipe_measures_what_it_does_not_train_on(places, tmp_path) -> None:
    flags = ["--heldout_share=0.4", "--heldout_steps=3", "--heldout_draws=10", "--checkpointing_steps=4"]
    folder = trained(LORA, words(places, tmp_path / "out"), *flags, "--learning_rate=0.05")
    found = lines(folder)
    assert [point["step"] for point in found] == [0, 3, 4]
    assert found[0]["bins"] != found[-1]["bins"] and all(len(point["bins"]) == BINS for point in found)
    state = json.loads((folder / "checkpoint-4" / "state.json").read_text())
    assert state["examples"] == 3


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("text_to_image_lora", ("--cache_latents", "--center_crop", "--aspect_ratio_buckets", "--resolution=32")),
        ("dreambooth_lora", ("--with_prior_preservation", "--class_prompt=a dog", "--num_class_images=2")),
    ],
)
def test_looks_do_not_depend_on_how_examples_are_fed(name: str, flags, places, tmp_path) -> None:
    """Latents that are kept, buckets, and pictures of a class belong to training; a run ends as one without looks."""
    base, shown = places
    folder = "train_data_dir" if name.startswith("text") else "instance_data_dir"
    given = [f"--pretrained_model_name_or_path={base}", f"--{folder}={shown}", *flags, "--max_train_steps=2"]
    given += [] if name.startswith("text") else ["--instance_prompt=a sks cat", f"--class_data_dir={shown}"]
    held = f"--heldout_data_dir={pictures(tmp_path / 'held', 2)}"
    results = []
    for place, more in (("quiet", []), ("looking", [held, "--heldout_steps=1", "--heldout_draws=10"])):
        words = [word for word in FLAGS if not word.startswith(("--resolution", "--max_train_steps"))]
        words += [] if any(flag.startswith("--resolution") for flag in flags) else ["--resolution=16"]
        out = [f"--output_dir={tmp_path / place}", "--no_proof"]
        results.append(trained(RECIPES[name].loaded(), [*given, *out], *more, common=words))
    assert [point["step"] for point in lines(results[1])] == [0, 1, 2]
    one, other = (load_file(folder / "pytorch_lora_weights.safetensors") for folder in results)
    assert one and all(tensor.equal(other[key]) for key, tensor in one.items())


def test_held_out_pictures_of_several_subjects_have_captions(places, tmp_path) -> None:
    concepts = [{"instance_data_dir": str(places[1]), "instance_prompt": "a <new1> cat"}]
    (tmp_path / "list.json").write_text(json.dumps(concepts))
    held = pictures(tmp_path / "held", 2)
    given = [f"--pretrained_model_name_or_path={places[0]}", f"--concepts_list={tmp_path / 'list.json'}"]
    settings = parse(CustomSettings, [*given, f"--heldout_data_dir={held}"], name="train")
    settings.check()
    assert len(settings.unseen().held) == 2
    (held / "1.txt").unlink()
    with pytest.raises(Problems, match="1 examples have no 'text'"):
        settings.check()
    settings.heldout_data_dir = str(places[1])
    with pytest.raises(ConfigError, match="5 pictures are held out and trained on as well"):
        settings.check()


@pytest.mark.parametrize(
    ("flags", "error", "said"),
    [
        (("--heldout_share=2",), InputError, "heldout_share is 2.0; it must be from 0 to 1"),
        (("--heldout_draws=9",), InputError, "heldout_draws is 9; it must be at least 10"),
        (("--heldout_steps=0",), InputError, "heldout_steps is 0"),
        (("--heldout_share=0.4", "--heldout_data_dir=x"), ConfigError, "give one of them"),
        (("--heldout_share=0.05",), ConfigError, "5 examples, of which heldout_share=0.05 is 0"),
        (("--heldout_data_dir=nowhere",), InputError, "nowhere does not exist"),
    ],
)
def test_what_is_wrong_is_said(flags, error, said, places, tmp_path) -> None:
    settings = parse(LoraSettings, [*words(places, tmp_path), *flags], name="train")
    with pytest.raises(error, match=said):
        settings.check()
        settings.records("image", "text")


def test_held_out_pictures_lie_outside_of_those_that_are_trained_on(places, tmp_path) -> None:
    inside = pictures(tmp_path / "all" / "some", 2)
    pictures(tmp_path / "all", 3)
    flags = parse(LoraSettings, words((places[0], tmp_path / "all"), tmp_path / "out"), name="train")
    flags.heldout_data_dir = str(inside)
    with pytest.raises(ConfigError, match=r"2 pictures are held out and trained on as well, such as 0\.png"):
        flags.records("image", "text")
    (inside / "1.txt").unlink()
    with pytest.raises(Problems, match="1 examples have no 'text'"):
        flags.records("image", "text")
    flags.heldout_data_dir, flags.train_data_dir = str(places[1]), str(tmp_path / "all")
    found = flags.records("image")
    assert len(found.held) == len(read_folder(places[1])) == 5
