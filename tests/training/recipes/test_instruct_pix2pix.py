"""InstructPix2Pix from the recipe on a tiny pipeline: what it sees, what is left out, what is written, and resume."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

import langevin
from langevin.core.errors import ConfigError, InputError
from langevin.core.records import Problems, read_folder
from langevin.training.data.edits import Edits
from langevin.training.data.examples import Captions
from langevin.training.data.framing import Framing
from langevin.training.recipes import instruct_pix2pix
from langevin.training.recipes.instruct_pix2pix import EditSettings, train, widen
from langevin.training.streams import Draw, Streams
from tests.pipelines import tiny
from tests.training.recipes.places import cut, digest, model, own_precision, trained


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the folders of a tiny pipeline and of pictures before and after an edit."""
    base, shown = model(tmp_path_factory.mktemp("base")), tmp_path_factory.mktemp("pictures")
    lines = []
    for k in range(5):
        tiny.picture(k, (20, 24)).save(shown / f"{k}.png")
        tiny.picture(k + 50, (20, 24)).save(shown / f"{k}-after.png")
        lines.append({"file_name": f"{k}-after.png", "input_image_file_name": f"{k}.png", "edit_prompt": f"a cat {k}"})
    (shown / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return base, shown


def run(places, folder: Path, *flags: str) -> Path:
    words = [f"--pretrained_model_name_or_path={places[0]}", f"--train_data_dir={places[1]}", f"--output_dir={folder}"]
    return trained((EditSettings, train), [*words, "--edited_image_column=image"], *flags)


def edited(pipe, seen: Image.Image) -> torch.Tensor:
    return pipe("a cat", image=seen, num_inference_steps=2, seed=0, output_type="pt").images


def test_a_run_that_goes_on_ends_as_one_that_did_not_stop(places, tmp_path) -> None:
    flags = ("--checkpointing_steps=2", "--random_flip", "--use_ema", "--conditioning_dropout_prob=0.2")
    whole = run(places, tmp_path / "whole", *flags)
    run(places, tmp_path / "cut", *flags)
    cut(tmp_path / "cut")
    again = run(places, tmp_path / "cut", *flags, "--resume_from_checkpoint=latest")
    assert digest(again) == digest(whole)


def test_the_result_is_a_pipeline_that_sees_the_picture(places, tmp_path) -> None:
    folder = run(places, tmp_path, "--learning_rate=1e-2", "--checkpointing_steps=2", "--gradient_checkpointing")
    pipe = langevin.DiffusionPipeline.from_pretrained(folder)
    assert type(pipe) is langevin.StableDiffusionInstructPix2PixPipeline
    assert pipe.unet.config.in_channels == 8 and pipe.unet.conv_in.weight[:, 4:].abs().max() > 0
    one, other = (edited(pipe, tiny.picture(k)) for k in (70, 71))
    assert (one - other).abs().max() > 1e-3
    held = langevin.UNet2DConditionModel.from_pretrained(folder / "checkpoint-4" / "unet")
    assert all(torch.equal(tensor, pipe.unet.state_dict()[name]) for name, tensor in held.state_dict().items())


def test_further_channels_change_nothing_at_first() -> None:
    narrow, wide = tiny.unets()[1], tiny.unets()[1]
    widen(wide, 8)
    x, states = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0)), torch.ones(2, 3, tiny.WIDTH)
    assert torch.equal(narrow(x[:, :4], 5, states).sample, wide(x, 5, states).sample)
    weight = wide.conv_in.weight.detach().clone()
    widen(wide, 8)
    assert torch.equal(wide.conv_in.weight, weight) and wide.config.in_channels == 8
    with pytest.raises(ConfigError, match="sees 8 channels"):
        widen(wide, 4)


def test_a_share_lacks_the_instruction_or_the_picture_or_both(places) -> None:
    words = lambda text: torch.tensor([len(text)])  # noqa: E731
    columns = {"pixels": "image", "original": "input_image"}
    data = Edits(read_folder(places[1]), Framing(8, 8), columns, Captions(words, "edit_prompt"), dropout=0.15)
    examples = [data.example(0, Streams(0).at(position)) for position in range(600)]
    found = Counter((bool(one["ids"].item()), bool(one["shown"].item())) for one in examples)
    assert all(60 < found[case] < 120 for case in ((False, True), (False, False), (True, False)))
    whole = Edits(data.records, data.framing, columns, data.captions)
    examples = [whole.example(0, Streams(0).at(position)) for position in range(50)]
    assert all(one["ids"] == 7 and one["shown"] == 1 for one in examples)
    assert whole.collate(examples)["shown"].shape == (50,)


def test_the_loss_is_that_of_the_network_beside_the_picture(places, tmp_path, monkeypatch) -> None:
    seen: list = []
    fit = instruct_pix2pix.Trainer.fit

    def keep(self) -> None:
        fit(self)
        seen.append(self)

    monkeypatch.setattr(instruct_pix2pix.Trainer, "fit", keep)
    run(places, tmp_path, "--max_train_steps=1", "--learning_rate=0", "--center_crop")
    trainer, streams = seen[0], Streams(0)
    pipe = trainer.task.pipe.to("cpu")
    torch.nn.init.normal_(pipe.unet.conv_in.weight)
    examples = [trainer.data.example(number, streams.at(number)) for number in range(2)]
    examples[1]["shown"] = torch.tensor(0.0)
    rows = []
    for position, one in enumerate(examples):
        draw = {what: torch.randn(4, 8, 8, generator=streams.stream(what, position)) for what in ("latent", "noise")}
        spread = pipe.vae.encode(one["pixels"][None]).latent_dist
        x0 = (spread.mean + spread.std * draw["latent"]) * pipe.vae.config.scaling_factor
        chance = torch.rand((), generator=streams.stream("level", position), dtype=torch.float64)
        t = (chance * 1000).long()
        cumulated = pipe.scheduler.alphas_cumprod[t]
        x = cumulated.sqrt() * x0 + (1 - cumulated).sqrt() * draw["noise"]
        picture = pipe.vae.encode(one["original"][None]).latent_dist.mode() * one["shown"]
        said = pipe.unet(torch.cat([x, picture], 1), t, pipe.text_encoder(one["ids"][None])[0]).sample
        rows.append((said - draw["noise"]).square().mean())
    found = trainer.task.losses(trainer.data.collate(examples), Draw(streams, range(2))).rows
    torch.testing.assert_close(found, torch.stack(rows), rtol=0, atol=1e-4)


def test_a_picture_is_edited_on_the_way(places, tmp_path) -> None:
    tiny.picture(9, (40, 20)).save(tmp_path / "seen.png")
    looks = (f"--val_image_url={tmp_path / 'seen.png'}", "--validation_prompt=a cat", "--num_validation_images=2")
    with own_precision():
        folder = run(places, tmp_path / "out", *looks, "--mixed_precision=bf16")
    (sheet,) = (folder / "previews").iterdir()
    assert sheet.name == "step-4.png" and Image.open(sheet).size == (3 * 16, 16)


@pytest.mark.parametrize(
    ("flags", "error", "words"),
    [
        (("--conditioning_dropout_prob=0.4",), InputError, "from 0 to 1/3"),
        (("--validation_prompt=a cat",), ConfigError, "go together"),
        (("--validation_prompt=a", "--val_image_url=nowhere.png"), InputError, "nowhere.png"),
        (("--image_column=image",), ConfigError, "image_column"),
        (("--edit_prompt_column=edit_promt",), Problems, "did you mean 'edit_prompt'"),
        (("--use_ema", "--ema_decay=1"), InputError, "lowest <= highest"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(flags, error, words, places, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(instruct_pix2pix, "pipeline", lambda settings: pytest.fail("loaded"))
    with pytest.raises(error, match=words):
        run(places, tmp_path, *flags)


def test_a_unet_for_more_channels_loads_from_a_pipeline_as_documented(places) -> None:
    base = langevin.StableDiffusionPipeline.from_pretrained(places[0]).unet
    options = {"in_channels": 9, "low_cpu_mem_usage": False, "ignore_mismatched_sizes": True}
    unet = langevin.UNet2DConditionModel.from_pretrained(places[0], subfolder="unet", **options)
    assert unet.config.in_channels == 9 and unet.conv_in.weight.shape[1] == 9 and unet.conv_in.weight.std() > 0
    others = {name: tensor for name, tensor in base.state_dict().items() if name != "conv_in.weight"}
    assert all(torch.equal(tensor, unet.state_dict()[name]) for name, tensor in others.items())
    said = unet(torch.ones(1, 9, 8, 8), 5, torch.ones(1, 3, tiny.WIDTH)).sample
    assert said.shape == (1, 4, 8, 8) and said.isfinite().all()
