"""Training of Stable Diffusion XL: one step by hand with the peer's networks, and what the network is told."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest
import torch
import torch.nn.functional as F

import langevin
from langevin.core.errors import ConfigError
from langevin.core.records import Record, Records
from langevin.diffusion.objective import Noising, Objective
from langevin.training.data.examples import Captions, PictureExamples
from langevin.training.data.framing import Frame, Framing
from langevin.training.denoising import Denoiser
from langevin.training.latent_xl import TextToImageXL
from langevin.training.recipes.common import words_of
from langevin.training.streams import Draw, Streams
from langevin.training.trainables import Whole
from langevin.training.trainer import Run, Trainer
from tests.pipelines import tiny, tiny_xl

RATE = 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny pipeline."""
    where = tmp_path_factory.mktemp("xl")
    tiny_xl.base(langevin, where).save_pretrained(where / "model")
    return where / "model"


def data(pipe, count: int = 3) -> PictureExamples:
    rows = [Record(f"{k}", {"image": tiny.picture(k, (24 + 4 * k, 20)), "text": f"a cat {k}"}) for k in range(count)]
    captions = Captions(words_of(pipe.tokenizer), second=words_of(pipe.tokenizer_2))
    return PictureExamples(Records("here", rows), Framing(16, 16, mirror=True), captions=captions)


def task(folder: Path, *, networks: tuple[str, ...] = ("unet",), **options) -> TextToImageXL:
    pipe = langevin.StableDiffusionXLPipeline.from_pretrained(folder)
    denoiser = Denoiser(Noising.of(pipe.scheduler.process), Objective("epsilon"))
    parts = [Whole(name, getattr(pipe, name)) for name in networks]
    return TextToImageXL(pipe, denoiser, parts, learning_rate=RATE, **options)


def test_one_step_is_that_of_a_hand_computation_with_the_peers_networks(folder, tmp_path) -> None:
    own = task(folder)
    before = {name: p.detach().clone() for name, p in own.pipe.unet.named_parameters()}
    run = Run(tmp_path, steps=1, seed=7, batch=3, optimizer=torch.optim.SGD, max_grad_norm=None, checkpoint_every=None)
    trainer = Trainer(own, data(own.pipe), run)
    trainer.fit()

    peer = diffusers.StableDiffusionXLPipeline.from_pretrained(folder)
    streams = Streams(7)
    draw, size = Draw(streams, range(3)), (4, 8, 8)
    examples = [trainer.data.example(trainer.order.example(k), streams.at(k)) for k in range(3)]
    assert {example["frames"].mirrored for example in examples} == {True, False}
    pixels = torch.stack([example["pixels"] for example in examples])
    with torch.no_grad():
        spread = peer.vae.encode(pixels).latent_dist
        x0 = (spread.mean + spread.std * draw.normal("latent", size)) * peer.vae.config.scaling_factor
        texts = [f"a cat {trainer.order.example(k)}" for k in range(3)]
        hidden, _, pooled, _ = peer.encode_prompt(texts, do_classifier_free_guidance=False)
    time_ids = []
    for example in examples:
        frame = example["frames"]
        width = round(16 * frame.original[1] / frame.original[0])
        left = width - 16 - frame.left if frame.mirrored else frame.left
        time_ids.append([*frame.original, 0, left, 16, 16])
    noise, t = draw.normal("noise", size), (draw.uniform("level") * 1000).long()
    noised = diffusers.DDPMScheduler.from_config(peer.scheduler.config).add_noise(x0, noise, t)
    told = {"text_embeds": pooled, "time_ids": torch.tensor(time_ids, dtype=torch.float32)}
    loss = F.mse_loss(peer.unet(noised, t, hidden, added_cond_kwargs=told).sample, noise)
    loss.backward()

    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(line)["loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
    for name, p in peer.unet.named_parameters():
        taken = (before[name] - own.pipe.unet.get_parameter(name)) / RATE
        torch.testing.assert_close(taken, p.grad, atol=1e-5, rtol=0, msg=name)


def test_texts_are_read_as_the_pipeline_reads_them(folder) -> None:
    own = task(folder)
    examples, streams = data(own.pipe), Streams(1)
    batch = examples.collate([examples.example(k, streams.at(k)) for k in range(3)])
    with torch.no_grad():
        told = own.conditions(batch)
        texts = [f"a cat {k}" for k in range(3)]
        hidden, _, pooled, _ = own.pipe.encode_prompt(texts, do_classifier_free_guidance=False)
    torch.testing.assert_close(told["encoder_hidden_states"], hidden)
    torch.testing.assert_close(told["added_cond_kwargs"]["text_embeds"], pooled)


@pytest.mark.parametrize("corner", [(None, None), (5, None), (None, 6), (0, 0)])
@pytest.mark.parametrize("mirrored", [True, False])
def test_sizes_are_told_in_the_order_of_the_paper(corner, mirrored, folder) -> None:
    frames = [Frame((30, 60), (20, 40), 4, 9, mirrored, (16, 16)), Frame((16, 16), (16, 16), 0, 0, mirrored, (16, 16))]
    first = [30, 60, 4, 40 - 16 - 9 if mirrored else 9, 16, 16]
    rows = [first, [16, 16, 0, 0, 16, 16]]
    for row in rows:
        row[2:4] = [own if told is None else told for own, told in zip(row[2:4], corner, strict=True)]
    found = TextToImageXL.sizes(Corner(corner), frames)
    assert found.tolist() == rows and found.dtype == torch.float32


class Corner:
    """As much of a task as says what is told of a crop."""

    def __init__(self, corner) -> None:
        self.corner = corner


def test_the_autoencoder_stays_exact_where_it_says_so(folder) -> None:
    for upcast, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        own = task(folder)
        own.pipe.vae.register_to_config(force_upcast=upcast)
        before = {name: tensor.clone() for name, tensor in own.pipe.vae.state_dict().items()}
        own.place(torch.device("cpu"), torch.bfloat16)
        assert own.pipe.vae.dtype == dtype and own.pipe.text_encoder.dtype == torch.bfloat16
        kept = [torch.equal(tensor, before[name]) for name, tensor in own.pipe.vae.state_dict().items()]
        assert all(kept) is upcast
        pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            mean, _ = own.spread(pixels)
        with torch.no_grad():
            assert torch.equal(mean, own.pipe.vae.encode(pixels.to(dtype)).latent_dist.mean)


def test_text_encoders_may_have_a_learning_rate_of_their_own(folder) -> None:
    names = ("unet", "text_encoder", "text_encoder_2")
    own = task(folder, networks=names, text={"lr": 0.5, "weight_decay": 0.0})
    rates = {id(p): (g["lr"], g.get("weight_decay")) for g in own.groups() for p in g["params"]}
    for name in names:
        wanted = (RATE, None) if name == "unet" else (0.5, 0.0)
        assert {rates[id(p)] for p in getattr(own.pipe, name).parameters()} == {wanted}
    assert len(own.groups()) == 3


def test_a_network_for_other_sizes_is_refused(folder, tmp_path) -> None:
    own = task(folder)
    own.pipe.unet.register_to_config(projection_class_embeddings_input_dim=99)
    examples, streams = data(own.pipe), Streams(1)
    batch = examples.collate([examples.example(0, streams.at(0))])
    with pytest.raises(ConfigError, match="adds 99 numbers"), torch.no_grad():
        own.conditions(batch)
