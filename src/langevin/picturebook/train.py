"""Trains the picturebook: `python -m langevin.picturebook.train`, which can be stopped and started again at any time.

The stages, each of which goes on from its own checkpoint:

    tokenizer    writes the vocabulary learned from the caption grammar
    clip         trains the text and the vision tower together
    text         goes on with a copy of the text tower, for the denoiser
    autoencoder  trains the autoencoder
    unet         caches latents and text states, then trains the denoiser on them
    decoder      goes on with the decoder, the encoder locked
    export       writes a StableDiffusionPipeline folder

Two more are run by name, when there is a denoiser:

    control         trains a ControlNet on edges for it
    export-control  writes that as a ControlNetModel folder
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed

from ..models.autoencoders.autoencoder_kl import AutoencoderKL
from ..models.unets.unet_2d_condition import UNet2DConditionModel
from . import autoencoder, clip, control, data, denoiser, edges, tokenizer
from .loop import Budget, Stage, fit, load_average

STAGES = ("tokenizer", "clip", "text", "autoencoder", "unet", "decoder", "export")
"""The stages that make a pipeline, in order."""

EXTRAS = ("control", "export-control")
"""Stages that add to a pipeline."""

MINUTES = {"clip": 6.0, "text": 5.0, "autoencoder": 12.0, "unet": 90.0, "decoder": 10.0, "control": 45.0}
"""How long a stage trains unless --minutes says otherwise, on two cores."""

STALE = {"clip": ("states.npy",), "text": ("states.npy",), "autoencoder": ("latents.npy",)}
"""Caches that a stage's training makes worthless."""

HOME = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "langevin" / "picturebook"


@dataclass(frozen=True)
class Settings:
    """What a run of the training is told.

    Attributes:
        folder: where checkpoints, caches, curves and pictures go.
        scenes: how many scenes the training set has.
        budget: how long the chosen stage trains in all.
        recipe: numbers of the recipe that differ from the stage's own.
        start: a pipeline folder written by export; the unet stage goes on from its denoiser and uses its other parts,
            the control stage steers its denoiser.
        device: where stages train.
    """

    folder: Path
    scenes: int = 60_000
    budget: Budget | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    start: Path | None = None
    device: str = "cpu"
    seed: int = 0


class Training:
    """The parts that the stages hand to each other, loaded when first asked for."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = settings.folder

    @cached_property
    def scenes(self) -> data.Scenes:
        """The training set."""
        return data.load(self.folder / "data", self.settings.scenes, seed=self.settings.seed)

    @cached_property
    def words(self) -> Any:
        """The tokenizer."""
        return tokenizer.load(self.word_files)

    @property
    def word_files(self) -> Path:
        """The folder of the tokenizer's files."""
        return (self.settings.start or self.folder) / "tokenizer"

    @cached_property
    def ids(self) -> torch.Tensor:
        """The captions' tokens."""
        return clip.tokens(self.folder / "data", self.scenes, self.words)

    def finished(self, stage: Stage) -> Stage:
        """Return a stage whose model has the averaged weights of its checkpoint; without one it stays as it is."""
        if stage.checkpoint.exists():
            load_average(stage.model, stage.checkpoint)
        stage.model.eval()
        return stage

    @cached_property
    def vae(self) -> Any:
        """The autoencoder as trained so far, its decoder polished if that stage has run."""
        if self.settings.start:
            return AutoencoderKL.from_pretrained(self.settings.start / "vae")
        whole = self.finished(autoencoder.AutoencoderStage(self.folder, self.scenes)).model
        self.finished(autoencoder.DecoderStage(self.folder, self.scenes, whole))
        return whole

    @cached_property
    def clip_stage(self) -> clip.ClipStage:
        """The stage that trains both towers, as far as it has come."""
        return self.finished(clip.ClipStage(self.folder, self.scenes, self.ids, self.words))

    @cached_property
    def towers(self) -> Any:
        """The CLIP as trained so far."""
        if self.settings.start:
            from transformers import CLIPModel

            return CLIPModel.from_pretrained(self.settings.start / "clip").float()
        return self.clip_stage.clip

    @cached_property
    def text_tower(self) -> Any:
        """The denoiser's text tower as trained so far."""
        if self.settings.start:
            from transformers import CLIPTextModel

            return CLIPTextModel.from_pretrained(self.settings.start / "text_encoder").float().eval()
        return self.finished(clip.TextStage(self.clip_stage)).tower  # type: ignore[attr-defined]

    @cached_property
    def unet(self) -> UNet2DConditionModel:
        """The denoiser that training starts from or steers: that of the start's folder, or the one trained here."""
        if self.settings.start:
            return UNet2DConditionModel.from_pretrained(self.settings.start / "unet")
        return self.trained_unet()

    def trained_unet(self) -> UNet2DConditionModel:
        """Return the denoiser trained here with its averaged weights, without the caches that its training needs."""
        model = denoiser.build()
        load_average(model, self.folder / "unet.pt")
        return model.eval()

    def states(self, prompts: Sequence[str]) -> torch.Tensor:
        """Return the text states of prompts: (prompts, 32, 256)."""
        inputs = self.words(list(prompts), padding="max_length", truncation=True, return_tensors="pt")
        return clip.text_states(self.text_tower, inputs.input_ids)

    def stage(self, name: str) -> Stage:
        """Return the stage called `name`, ready to be trained."""
        scenes = self.scenes
        if name == "autoencoder":
            return autoencoder.AutoencoderStage(self.folder, scenes)
        if name == "decoder":
            return autoencoder.DecoderStage(self.folder, scenes, self.vae)
        if name == "clip":
            return clip.ClipStage(self.folder, scenes, self.ids, self.words)
        if name == "text":
            return clip.TextStage(self.clip_stage)
        latents = denoiser.cache_latents(self.folder / "data", scenes, self.vae)
        states = denoiser.cache_states(self.folder / "data", self.ids, self.text_tower)
        untold = self.states([""])[0]
        if name == "control":
            fresh = edges.tasks(12)
            return control.ControlStage(
                self.folder,
                latents,
                states,
                control.cache_edges(self.folder / "data", scenes),
                unet=self.unet,
                untold=untold,
                shown=self.states([task.caption for task in fresh]),
                shown_outlines=torch.from_numpy(np.stack([task.outline for task in fresh])),
                vae=self.vae,
            )
        return denoiser.DenoiserStage(
            self.folder,
            latents,
            states,
            untold=untold,
            shown=self.states(denoiser.PROMPTS),
            vae=self.vae,
            model=self.unet if self.settings.start else None,
        )

    def train(self, name: str, report: Callable[[str], None] = print) -> Stage:
        """Train one stage until its budget is spent; return it with the averaged weights in its model."""
        torch.manual_seed(self.settings.seed)
        stage = self.stage(name).to(torch.device(self.settings.device))
        stage.recipe = replace(stage.recipe, **self.settings.recipe)
        for cache in STALE.get(name, ()):
            (self.folder / "data" / cache).unlink(missing_ok=True)
        for line in fit(stage, self.settings.budget or Budget(minutes=MINUTES[name])):
            report(line)
        return stage


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m langevin.picturebook.train", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--stage",
        choices=(*STAGES, *EXTRAS, "all"),
        default="all",
        help="which stage to run (default: all of a pipeline, in this order)",
    )
    parser.add_argument("--minutes", type=float, help="how long a stage trains in all, earlier runs included")
    parser.add_argument("--steps", type=int, help="how many steps a stage trains in all, instead of --minutes")
    parser.add_argument("--scenes", type=int, default=60_000, help="scenes of the training set (default: 60000)")
    parser.add_argument("--batch", type=int, help="samples of a step")
    parser.add_argument("--lr", type=float, help="learning rate")
    parser.add_argument("--start", type=Path, help="pipeline folder whose denoiser is trained on or steered")
    parser.add_argument("--device", default="cpu", help="where to train, for example cuda (default: cpu)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of a CPU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=HOME, help=f"checkpoints and caches (default: {HOME})")
    parser.add_argument("--output", type=Path, help="where an export writes (default: model/ or control/ in --folder)")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        torch.distributed.init_process_group("gloo" if chosen.device == "cpu" else "nccl")
    budget = Budget(minutes=chosen.minutes, steps=chosen.steps) if chosen.minutes or chosen.steps else None
    recipe = {key: value for key, value in (("batch", chosen.batch), ("lr", chosen.lr)) if value is not None}
    settings = Settings(
        chosen.folder,
        scenes=chosen.scenes,
        budget=budget,
        recipe=recipe,
        start=chosen.start,
        device=chosen.device,
        seed=chosen.seed,
    )
    for name in STAGES if chosen.stage == "all" else (chosen.stage,):
        training = Training(settings)
        if name == "tokenizer":
            tokenizer.write(chosen.folder / "tokenizer")
        elif name == "export":
            from .export import export

            export(training, chosen.output or chosen.folder / "model")
        elif name == "export-control":
            from .export import export_control

            export_control(training, chosen.output or chosen.folder / "control")
        else:
            training.train(name, lambda line: print(line, flush=True))
    part_company()


def part_company() -> None:
    """End the work of several processes: all wait for the last, since one that leaves early may abort another."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
