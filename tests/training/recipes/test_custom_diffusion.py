"""Custom Diffusion on a tiny pipeline: what is trained, written and loaded, resume, subjects, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import langevin
from langevin.adapters.files import open_source
from langevin.core.errors import ConfigError, InputError
from langevin.core.records import Problems, pictures_in
from langevin.training.recipes import custom_diffusion
from langevin.training.recipes.subject import read_class
from langevin.weights.dialects.textual_inversion import read
from tests.training.recipes.places import model, pictures, trained

CUSTOM = (custom_diffusion.CustomSettings, custom_diffusion.train)
WEIGHTS = "pytorch_custom_diffusion_weights.bin"
ONE = ("--instance_prompt=a <new1> cat", "--modifier_token=<new1>")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the folders of a tiny pipeline and of three pictures."""
    return model(tmp_path_factory.mktemp("base")), pictures(tmp_path_factory.mktemp("subject"), 3)


def run(places, folder: Path, *flags: str) -> Path:
    words = [f"--pretrained_model_name_or_path={places[0]}", f"--output_dir={folder}", "--learning_rate=0.02"]
    if not any(flag.startswith("--concepts_list") for flag in flags):
        words.append(f"--instance_data_dir={places[1]}")
    return trained(CUSTOM, words, *flags)


def held(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors that a run has written."""
    found = dict(open_source(folder, weight_name=WEIGHTS).state)
    for path in folder.glob("<*>.bin"):
        (learned,) = read(path)
        assert learned.word == path.stem
        found[path.name] = learned.vectors[""]
    return found


@pytest.mark.parametrize(("kind", "parts"), [("crossattn_kv", {"k", "v"}), ("crossattn", {"k", "v", "q", "out"})])
def test_what_is_written_loads_as_documented_and_changes_the_picture(kind, parts, places, tmp_path) -> None:
    folder = run(places, tmp_path, *ONE, f"--freeze_model={kind}", "--gradient_checkpointing")
    names = [name for name in held(folder) if name != "<new1>.bin"]
    assert {name.split(".processor.to_")[1].split("_")[0] for name in names} == parts
    assert all(".attn2." in name for name in names)
    pipe = langevin.DiffusionPipeline.from_pretrained(places[0])
    before = pipe("a cat", num_inference_steps=2, seed=0, output_type="pt").images
    bare = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    pipe.unet.load_attn_procs(folder, weight_name=WEIGHTS)
    assert all(tensor.equal(bare[name]) for name, tensor in pipe.unet.state_dict().items())
    after = pipe("a cat", num_inference_steps=2, seed=0, output_type="pt").images
    assert (after - before).abs().max() > 1e-3
    pipe.load_textual_inversion(folder, weight_name="<new1>.bin")
    learned = pipe("a <new1> cat", num_inference_steps=2, guidance_scale=6.0, eta=1.0, seed=0, output_type="pt").images
    assert (learned - after).abs().max() > 1e-3


def test_it_begins_as_the_model_was(places) -> None:
    from langevin.training.projections import Projections

    pipe = langevin.StableDiffusionPipeline.from_pretrained(places[0])
    before = pipe("a cat", num_inference_steps=2, seed=0, output_type="pt").images
    part = Projections(pipe.unet, "crossattn")
    torch.testing.assert_close(pipe("a cat", num_inference_steps=2, seed=0, output_type="pt").images, before)
    trained = [name for name, weight in pipe.unet.named_parameters() if weight.requires_grad]
    assert len(trained) == len(part.parameters()) and all("_custom_diffusion" in name for name in trained)


def test_a_run_that_goes_on_ends_as_one_that_did_not_stop(places, tmp_path) -> None:
    flags = (*ONE, "--checkpointing_steps=2", "--hflip", "--lr_scheduler=cosine", "--freeze_model=crossattn")
    whole = run(places, tmp_path / "whole", *flags)
    shutil.copytree(whole / "checkpoint-2", tmp_path / "cut" / "checkpoint-2")
    (tmp_path / "cut" / "log.jsonl").write_text("".join((whole / "log.jsonl").open().readlines()[:3]))
    again = run(places, tmp_path / "cut", *flags, "--resume_from_checkpoint=latest")
    results = [held(folder) for folder in (whole, again, again / "checkpoint-4", again / "checkpoint-2")]
    for name, tensor in results[0].items():
        assert tensor.equal(results[1][name]) and tensor.equal(results[2][name])
    assert not all(tensor.equal(results[3][name]) for name, tensor in results[0].items())
    assert (again / "log.jsonl").read_bytes() == (whole / "log.jsonl").read_bytes()


def test_two_subjects_with_real_pictures_of_their_classes(places, tmp_path) -> None:
    concepts = []
    for k, kind in enumerate(("cat", "dog"), 1):
        own, prior = pictures(tmp_path / f"own-{kind}", k + 1), pictures(tmp_path / f"real-{kind}", 4)
        concepts.append({
            "instance_prompt": f"a <new{k}> {kind}",
            "class_prompt": kind,
            "instance_data_dir": str(own),
            "class_data_dir": str(prior),
        })  # fmt: skip
    file = tmp_path / "concepts.json"
    file.write_text(json.dumps(concepts))
    prior = ("--with_prior_preservation", "--real_prior", "--num_class_images=3", "--modifier_token=<new1>+<new2>")
    flags = (f"--concepts_list={file}", *prior)
    found = held(run(places, tmp_path / "out", *flags))
    pipe = langevin.StableDiffusionPipeline.from_pretrained(places[0])
    for k in (1, 2):
        pipe.load_textual_inversion(tmp_path / "out", weight_name=f"<new{k}>.bin")
    assert not found["<new1>.bin"].equal(found["<new2>.bin"])
    settings = custom_diffusion.CustomSettings(
        **{"concepts_list": str(file), "with_prior_preservation": True, "real_prior": True, "num_class_images": 3}
    )
    parts = [settings.examples(concept, pipe.tokenizer) for concept in settings.concepts()]
    assert [(len(part), len(part.prior)) for part in parts] == [(2, 3), (3, 3)]


def test_pictures_of_a_class_are_drawn_where_none_are_real(places, tmp_path) -> None:
    prior = ("--with_prior_preservation", "--class_prompt=a cat", f"--class_data_dir={tmp_path / 'class'}")
    run(places, tmp_path / "out", *ONE, *prior, "--num_class_images=3", "--sample_batch_size=2", "--noaug")
    assert len({path.read_bytes() for path in pictures_in(tmp_path / "class")}) == 3


def test_without_new_words_only_projections_are_written(places, tmp_path) -> None:
    folder = run(places, tmp_path, "--instance_prompt=a cat", "--gradient_checkpointing")
    assert sorted(path.name for path in folder.glob("*.bin")) == [WEIGHTS]


def test_a_model_without_cross_attention_is_refused() -> None:
    from langevin.training.projections import Projections
    from tests.pipelines import tiny

    with pytest.raises(ConfigError, match="UNet2DModel has no cross-attention"):
        Projections(langevin.UNet2DModel(**tiny.PIXELS))


def test_fewer_real_pictures_than_asked_for_are_told_of(places, tmp_path, monkeypatch) -> None:
    told = []
    monkeypatch.setattr(custom_diffusion.logger, "warning", lambda text, *parts: told.append(text % parts))
    prior = pictures(tmp_path / "real", 2)
    flags = ("--with_prior_preservation", "--real_prior", "--num_class_images=4", f"--class_data_dir={prior}")
    run(places, tmp_path / "out", *ONE, *flags)
    assert told == [f"{prior} holds 2 of 4 pictures"]


def test_captions_of_real_pictures(tmp_path) -> None:
    folder = pictures(tmp_path / "real", 3)
    assert [row.columns["text"] for row in read_class(folder).rows] == ["a cat 0", "a cat 1", "a cat 2"]
    (folder / "1.txt").unlink()
    with pytest.raises(Problems, match=r"1 examples have no 'text', such as 1\.png"):
        read_class(folder)
    assert read_class(folder, "cat").rows[1].columns["text"] == "cat"
    (folder / "images.txt").write_text("somewhere/images/0.png\nsomewhere/images/1.png\n")
    (folder / "caption.txt").write_text("other\nmy cat\n")
    assert [row.columns["text"] for row in read_class(folder).rows] == ["a cat 0", "my cat", "a cat 2"]
    (folder / "caption.txt").write_text("one\n")
    with pytest.raises(Problems, match=r"2 lines and caption\.txt 1"):
        read_class(folder)


@pytest.mark.parametrize(
    ("flags", "error", "words"),
    [
        ((*ONE, "--freeze_model=crossatn"), InputError, "did you mean 'crossattn'"),
        ((*ONE, "--real_prior"), ConfigError, "no effect without with_prior_preservation"),
        ((*ONE, "--class_prompt=a cat"), ConfigError, "class_prompt has no effect without"),
        ((*ONE, "--with_prior_preservation"), ConfigError, "class_data_dir is missing"),
        ((ONE[0], "--modifier_token=<new2>"), ConfigError, "No instance_prompt says '<new2>'"),
        ((ONE[0], "--modifier_token=<new1>+<new1>"), ConfigError, "comes twice"),
        ((*ONE, "--initializer_token=cat+dog"), ConfigError, "1 new words begin as 2 known ones"),
        ((ONE[0], "--initializer_token=cat"), ConfigError, "no effect without modifier_token"),
        ((ONE[1],), ConfigError, "instance_prompt is missing"),
        ((*ONE, "--instance_data_dir=nowhere"), InputError, "does not exist"),
        (("--concepts_list=nowhere.json",), InputError, "does not exist"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(flags, error, words, places, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(custom_diffusion, "pipeline", lambda settings: pytest.fail("loaded"))
    with pytest.raises(error, match=words):
        run(places, tmp_path, *flags)


def test_all_that_is_wrong_with_subjects_is_said_at_once(places, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(custom_diffusion, "pipeline", lambda settings: pytest.fail("loaded"))
    file = tmp_path / "concepts.json"
    file.write_text(json.dumps([{"instance_promt": "a cat"}, 3, {"instance_data_dir": "x", "class_data_dir": "y"}]))
    with pytest.raises(Problems) as told:
        run(places, tmp_path, f"--concepts_list={file}")
    assert told.value.found == [
        "subject 1: there is no 'instance_promt'; did you mean 'instance_prompt'?",
        "subject 1: instance_data_dir is missing",
        "subject 1: instance_prompt is missing",
        "subject 2: it is a int; an object was expected",
        "subject 3: instance_prompt is missing",
        "subject 3: class_data_dir has no effect without with_prior_preservation",
    ]
    with pytest.raises(ConfigError, match="instance_prompt has no effect with concepts_list"):
        run(places, tmp_path, f"--concepts_list={file}", "--instance_prompt=a cat")
    for text, words in (("[", "is no JSON"), ("{}", "must hold a list"), ("[]", "must hold a list")):
        file.write_text(text)
        with pytest.raises(ConfigError, match=words):
            run(places, tmp_path, f"--concepts_list={file}")
