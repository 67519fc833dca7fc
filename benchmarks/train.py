"""Fine-tuning of a text-to-image model: the recipe, and the same training written in plain torch over the peer's parts.

The settings are those of the documented commands: the middle of every picture, mirrored at random, batches of one, four
of them per step, activations computed twice, a constant rate. The plain loop restates what published loops over these
parts do: pictures are decoded, resized, cropped and mirrored as they come, latents and states are computed at every
step, the loss is read at every step, AdamW is torch's default one, and the average is the peer's own class. Before
anything is timed, both compute the loss and the gradient of one batch with the same random numbers.
"""

from __future__ import annotations

import importlib
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from .measures import on_gpu
from .seeded import pipeline_folder

WORDS = ("a red house", "two blue cats", "a green tree under a yellow sun", "a white boat")
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
RATE, CLIP, RANK, DECAY = 1e-5, 1.0, 4, 0.9999
SHOWN = 20
"""Every so many trained parameters are kept for the comparison of gradients, in parts."""
COMPARED = 64
"""Height and width of the pictures that the libraries are compared by."""


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        lora: train a LoRA; else the whole UNet, with an average of its weights.
        large: a model of the size of Stable Diffusion 1.5 with random weights; else the shipped one.
        precision: "no" or "bf16".
        resolution: of the pictures, which are a third wider and higher on the disk.
        cached: let the recipe keep latents and texts' states, which changes no bit of what is trained; encoding once
            comes before the first step and is not timed.
        batch, accumulated: pictures per batch, batches per step.
        warm: steps that are not counted.
        steps: those that are.
    """

    lora: bool = False
    large: bool = False
    precision: str = "no"
    resolution: int = 64
    cached: bool = False
    batch: int = 1
    accumulated: int = 4
    warm: int = 2
    steps: int = 12

    @property
    def pictures(self) -> int:
        """Pictures per step."""
        return self.batch * self.accumulated


CASES = {
    "train-full": Case(),
    "train-lora": Case(lora=True),
    "train-full-cached": Case(cached=True),
    "train-lora-cached": Case(lora=True, cached=True),
    "train-bf16": Case(precision="bf16"),
    "train-large": Case(large=True, precision="bf16", resolution=512, warm=5, steps=20),
}
"""Row -> training. Without bfloat16 in its hardware a processor computes `train-bf16` many times slower."""


@dataclass
class Clock:
    """When steps ended."""

    case: Case
    ends: list[float]

    def tick(self, *_: Any) -> None:
        if on_gpu():
            import torch

            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def figures(self, row: str) -> dict[str, float]:
        """Return the median time per picture in ms."""
        ends = self.ends[self.case.warm - 1 :]
        step = statistics.median(after - before for before, after in itertools.pairwise(ends))
        return {f"{row}, ms per picture": 1e3 * step / self.case.pictures}


# What both train on ---------------------------------------------------------------------------------------------------


def write_pictures(folder: Path, case: Case, count: int = 24) -> None:
    """Write smooth random pictures with captions, if there are none yet."""
    import numpy as np
    from PIL import Image

    if folder.exists():
        return
    folder.mkdir(parents=True)
    rng, size = np.random.default_rng(0), (case.resolution * 5 // 3, case.resolution * 4 // 3)
    for k in range(count):
        small = Image.fromarray(rng.integers(0, 256, (12, 15, 3), dtype=np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(folder / f"{k:03}.jpg", quality=92)
        (folder / f"{k:03}.txt").write_text(WORDS[k % len(WORDS)], encoding="utf-8")


def model_for(folder: Path, case: Case) -> Path:
    """Return the folder of the pipeline that both begin with; the large one is written, if there is none yet."""
    from langevin.picturebook import model_folder

    return pipeline_folder(folder) if case.large else model_folder()


def fill(named: Sequence[tuple[str, Any]]) -> None:
    """Give the parameters of a new LoRA values that are the same in both libraries."""
    import torch

    generator = torch.Generator().manual_seed(1)
    for _, parameter in sorted(named, key=lambda pair: pair[0]):
        parameter.data.copy_(0.02 * torch.randn(parameter.shape, generator=generator))


def keep(file: Path, loss: Any, named: Sequence[tuple[str, Any]]) -> None:
    """Write the loss of a batch and parts of its gradient, and forget the gradient."""
    import torch

    loss.backward()
    chosen = sorted(named, key=lambda pair: pair[0])[::SHOWN]
    grads = torch.cat([parameter.grad.flatten()[:1000].cpu() for _, parameter in chosen])
    torch.save(torch.cat([loss.detach().reshape(1).cpu(), grads / grads.norm()]), file)
    for _, parameter in named:
        parameter.grad = None


# The recipe -----------------------------------------------------------------------------------------------------------


def recipe(case: Case, model: Path, pictures: Path, clock: Clock, file: Path) -> None:
    """Train by the recipe; what it is watched by is put in before it begins."""
    from langevin.training.recipes import RECIPES
    from langevin.training.trainer import Trainer

    settings, train = RECIPES["text_to_image_lora" if case.lora else "text_to_image"].loaded()
    fit = Trainer.fit

    def watched(trainer: Any) -> None:
        names = [pair for pair in trainer.task.networks["unet"].named_parameters() if pair[1].requires_grad]
        if case.lora:
            fill(names)
        keep(file, first_loss(trainer), names)
        trainer.watch.append(clock.tick)
        fit(trainer)

    more = {"rank": RANK} if case.lora else {"use_ema": True, "ema_decay": DECAY}
    chosen = settings(
        pretrained_model_name_or_path=str(model),
        train_data_dir=str(pictures),
        output_dir=str(file.parent / f"{file.stem}-out"),
        resolution=case.resolution,
        center_crop=True,
        random_flip=True,
        cache_latents=case.cached,
        gradient_checkpointing=True,
        train_batch_size=case.batch,
        gradient_accumulation_steps=case.accumulated,
        max_train_steps=case.warm + case.steps,
        learning_rate=RATE,
        lr_warmup_steps=0,
        mixed_precision=case.precision,
        report_to="none",
        seed=0,
        **more,
    )
    with mock.patch.object(Trainer, "fit", watched):
        train(chosen)


def first_loss(trainer: Any) -> Any:
    """Return the loss of the first pictures as they stand in the middle, with the numbers of `Draw`."""
    draw, batch = checked(trainer.run.batch, trainer.data.records.rows[0].columns["image"])
    ids = trainer.data.example(0, trainer.streams.at(0))["ids"]
    batch = {"pixels": batch, "ids": ids[None].expand(len(batch), -1)}
    return trainer.task.losses(batch, draw).rows.mean()


def checked(count: int, picture: Any) -> tuple[Any, Any]:
    """Return the random numbers and the pixels, one picture several times, that both libraries are compared by."""
    from langevin.training.streams import Draw, Streams

    return Draw(Streams(0), range(count)), pixels(picture, COMPARED, mirror=False)[None].expand(count, -1, -1, -1)


# The plain loop -------------------------------------------------------------------------------------------------------


def pixels(file: Any, size: int, *, mirror: bool) -> Any:
    """Return the middle of a picture, resized and scaled to [-1, 1]."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    picture = Image.open(file).convert("RGB")
    scale = size / min(picture.size)
    wide, high = (max(size, round(side * scale)) for side in picture.size)
    picture = picture.resize((wide, high), Image.Resampling.LANCZOS)
    left, top = (wide - size) // 2, (high - size) // 2
    picture = picture.crop((left, top, left + size, top + size))
    picture = ImageOps.mirror(picture) if mirror else picture
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().div(255).sub(0.5).div(0.5)


class Plain:
    """The plain loop over the peer's model classes."""

    def __init__(self, case: Case, model: Path, pictures: Path) -> None:
        import torch
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        self.case, self.device = case, torch.device("cuda" if on_gpu() else "cpu")
        self.kind = torch.bfloat16 if case.precision == "bf16" else torch.float32
        self.files = sorted(pictures.glob("*.jpg"))
        self.tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
        self.noising = DDPMScheduler.from_pretrained(model / "scheduler")
        self.vae = AutoencoderKL.from_pretrained(model / "vae", torch_dtype=torch.float32).requires_grad_(False)
        self.text = CLIPTextModel.from_pretrained(model / "text_encoder", dtype=torch.float32).requires_grad_(False)
        self.unet = UNet2DConditionModel.from_pretrained(model / "unet", torch_dtype=torch.float32)
        if case.lora:
            from peft import LoraConfig

            self.unet.requires_grad_(False)
            self.unet.add_adapter(
                LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=list(TARGETS))
            )
        self.named = [pair for pair in self.unet.named_parameters() if pair[1].requires_grad]
        if case.lora:
            fill(self.named)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        import torch

        file = self.files[number]
        return pixels(file, self.case.resolution, mirror=bool(torch.rand(()) < 0.5)), self.words(file)

    def words(self, file: Path) -> Any:
        """Return the token ids of a picture's caption."""
        text = file.with_suffix(".txt").read_text(encoding="utf-8")
        length = self.tokenizer.model_max_length
        read = self.tokenizer(text, max_length=length, padding="max_length", truncation=True, return_tensors="pt")
        return read.input_ids[0]

    def loss(self, latents: Any, ids: Any, noise: Any, t: Any) -> Any:
        """Return the mean squared error of what the UNet says."""
        import torch.nn.functional as F

        noisy = self.noising.add_noise(latents, noise, t)
        states = self.text(ids, return_dict=False)[0]
        velocity = self.noising.config.prediction_type == "v_prediction"
        target = self.noising.get_velocity(latents, noise, t) if velocity else noise
        output = self.unet(noisy, t, states, return_dict=False)[0]
        return F.mse_loss(output.float(), target.float(), reduction="mean")

    def first_loss(self) -> Any:
        """Return the loss of what `checked` says."""
        draw, pictures = checked(self.case.batch, self.files[0])
        spread = self.vae.encode(pictures).latent_dist
        latents = (spread.mean + spread.std * draw.normal("latent", spread.mean.shape[1:])) * self.scale
        t = (draw.uniform("level") * self.noising.config.num_train_timesteps).long()
        ids = self.words(self.files[0])[None].expand(len(pictures), -1)
        return self.loss(latents, ids, draw.normal("noise", latents.shape[1:]), t)

    @property
    def scale(self) -> float:
        return self.vae.config.scaling_factor

    def batches(self) -> Iterator[Any]:
        """Yield batches without end, epoch after epoch."""
        from torch.utils.data import DataLoader

        loader: Any = DataLoader(self, batch_size=self.case.batch, shuffle=True, drop_last=True)  # type: ignore[arg-type]
        while True:
            yield from loader

    def batch_loss(self, pictures: Any, ids: Any) -> Any:
        """Return the loss of a batch."""
        import torch

        latents = self.vae.encode(pictures.to(self.device, self.kind)).latent_dist.sample() * self.scale
        noise = torch.randn_like(latents)
        t = torch.randint(0, self.noising.config.num_train_timesteps, (len(latents),), device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.kind is torch.bfloat16):
            return self.loss(latents, ids.to(self.device), noise, t)

    def train(self, clock: Clock) -> None:
        """Train."""
        import torch
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel
        from tqdm.auto import tqdm

        self.vae.to(self.device, self.kind)
        self.text.to(self.device, self.kind)
        self.unet.to(self.device).train()
        self.unet.enable_gradient_checkpointing()
        parameters = [parameter for _, parameter in self.named]
        optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
        rates = get_scheduler("constant", optimizer, num_warmup_steps=0, num_training_steps=0)
        average = None if self.case.lora else EMAModel(parameters, decay=DECAY)
        bar, batches = tqdm(total=self.case.warm + self.case.steps), self.batches()
        for _ in range(bar.total):
            for _ in range(self.case.accumulated):
                loss = self.batch_loss(*next(batches)) / self.case.accumulated
                loss.backward()
                bar.set_postfix(loss=loss.item(), lr=rates.get_last_lr()[0])
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
            if average is not None:
                average.step(parameters)
            bar.update()
            clock.tick()
        bar.close()


# The row --------------------------------------------------------------------------------------------------------------


def train(row: str, library: str, folder: Path) -> dict[str, float]:
    """Train for a few steps. Unit: ms per picture."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    case, file = CASES[row], folder / f"{row}-{library}.pt"
    pictures, model = folder / f"{row}-pictures", model_for(folder, case)
    write_pictures(pictures, case)
    clock = Clock(case, [])
    importlib.import_module(library)
    if library == "langevin":
        recipe(case, model, pictures, clock, file)
    else:
        plain = Plain(case, model, pictures)
        keep(file, plain.first_loss(), plain.named)
        plain.train(clock)
    return clock.figures(row)


ROWS: dict[str, Callable[[str, Path], dict[str, float]]] = {row: partial(train, row) for row in CASES}
