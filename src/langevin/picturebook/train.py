"""Trains the picturebook: `python -m langevin.picturebook.train`, which can be stopped and started again at any time.

The stages, each of which goes on from its own checkpoint:

    tokenizer    writes the vocabulary learned from the caption grammar
    clip         trains the text and the vision tower together
    text         goes on with a copy of the text tower, for the denoiser
    autoencoder  trains the autoencoder
    unet         caches latents and text states, then trains the denoiser on them
    decoder      goes on with the decoder, the encoder locked
    export       writes a StableDiffusionPipeline folder

More are run by name; each trains, and writes what the package ships:

    control      a ControlNet on edges, when there is a denoiser
    style, word  a LoRA and a learned word for the shipped pipeline, or that of --start
    checker      the detector that judges pictures
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed

from ..models.autoencoders.autoencoder_kl import AutoencoderKL
from ..models.unets.unet_2d_condition import UNet2DConditionModel
from ..pipelines.stable_diffusion import StableDiffusionPipeline
from . import adapters, autoencoder, clip, control, data, denoiser, detector, edges, model_folder, tokenizer, unseen
from .loop import Budget, Crew, Stage, fit, load_average

PIPELINE = ("tokenizer", "clip", "text", "autoencoder", "unet", "decoder", "export")
"""What makes a pipeline, in order."""

SCENES, LESSON = 60_000, 96
"""Scenes of the training set, and pictures of a lesson for an adapter."""

HOME = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "langevin" / "picturebook"

AnyStage = TypeVar("AnyStage", bound=Stage)


@dataclass
class Training:
    """What a run of the training is told, and the parts that the stages share, loaded when first asked for.

    Attributes:
        folder: where checkpoints, caches, curves and pictures go.
        count: how many scenes, or pictures of a lesson, there are to learn from; None takes `SCENES`, or `LESSON`.
        budget: how long the chosen stage trains in all; None leaves it to the stage.
        recipe: numbers of the recipe that differ from the stage's own.
        start: a pipeline folder written by export; the unet stage goes on from its denoiser and uses its other parts,
            the control stage steers its denoiser, the adapters are made for it.
        device: where stages train.
    """

    folder: Path
    count: int | None = None
    budget: Budget | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    start: Path | None = None
    device: str = "cpu"
    seed: int = 0

    @property
    def caches(self) -> Path:
        """The folder of the training set and of what is worked out from it."""
        return self.folder / "data"

    @cached_property
    def scenes(self) -> data.Scenes:
        """The training set."""
        return data.load(self.caches, self.count or SCENES, seed=self.seed)

    @cached_property
    def words(self) -> Any:
        """The tokenizer."""
        return tokenizer.load(self.word_files)

    @property
    def word_files(self) -> Path:
        """The folder of the tokenizer's files."""
        return (self.start or self.folder) / "tokenizer"

    @cached_property
    def ids(self) -> torch.Tensor:
        """The captions' tokens."""
        return clip.tokens(self.caches, self.scenes, self.words)

    @cached_property
    def vae(self) -> Any:
        """The autoencoder as trained so far, its decoder polished if that stage has run."""
        if self.start:
            return AutoencoderKL.from_pretrained(self.start / "vae")
        whole = finished(autoencoder.AutoencoderStage(self.folder, self.scenes)).model
        finished(autoencoder.DecoderStage(self.folder, self.scenes, whole))
        return whole

    @cached_property
    def both_towers(self) -> clip.ClipStage:
        """The stage that trains both towers, as far as it has come."""
        return finished(clip.ClipStage(self.folder, self.scenes, self.ids, self.words))

    @cached_property
    def towers(self) -> Any:
        """The CLIP as trained so far."""
        if self.start:
            from transformers import CLIPModel

            return CLIPModel.from_pretrained(self.start / "clip").float()
        return self.both_towers.clip

    @cached_property
    def text_tower(self) -> Any:
        """The denoiser's text tower as trained so far."""
        if self.start:
            from transformers import CLIPTextModel

            return CLIPTextModel.from_pretrained(self.start / "text_encoder").float().eval()
        return finished(clip.TextStage(self.both_towers)).tower

    @cached_property
    def unet(self) -> UNet2DConditionModel:
        """The denoiser that training starts from or steers: that of the start's folder, or the one trained here."""
        if self.start:
            return UNet2DConditionModel.from_pretrained(self.start / "unet")
        return self.trained_unet()

    def trained_unet(self) -> UNet2DConditionModel:
        """Return the denoiser trained here with its averaged weights, without the caches that its training needs."""
        model = denoiser.build()
        load_average(model, self.folder / "unet.pt")
        return model.eval()

    @cached_property
    def pipe(self) -> StableDiffusionPipeline:
        """The pipeline that adapters are made for, in float32."""
        pipe = StableDiffusionPipeline.from_pretrained(self.start or model_folder(), torch_dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def states(self, prompts: Sequence[str]) -> torch.Tensor:
        """Return the text states of prompts: (prompts, 32, 256)."""
        return clip.text_states(self.text_tower, tokenizer.encode(self.words, prompts))

    def told(self) -> dict[str, Any]:
        """Return what a stage of the denoiser learns from, as its arguments."""
        latents = denoiser.cache_latents(self.caches, self.scenes, self.vae)
        states = denoiser.cache_states(self.caches, self.ids, self.text_tower)
        return {"latents": latents, "states": states, "untold": self.states([""])[0], "vae": self.vae}

    def denoiser_stage(self) -> Stage:
        """Return the stage that trains the denoiser, from new or on."""
        shown = self.states(denoiser.PROMPTS)
        model = self.unet if self.start else None
        return denoiser.DenoiserStage(self.folder, **self.told(), shown=shown, model=model)

    def control_stage(self) -> Stage:
        """Return the stage that trains a ControlNet; what it shows are scenes that training does not know."""
        fresh = edges.tasks(12)
        return control.ControlStage(
            self.folder,
            **self.told(),
            outlines=control.cache_edges(self.caches, self.scenes),
            unet=self.unet,
            shown=self.states([task.caption for task in fresh]),
            shown_outlines=torch.from_numpy(np.stack([task.outline for task in fresh])),
        )

    def train(self, name: str, report: Callable[[str], None] = print) -> Stage:
        """Train one stage until its budget is spent; return it with the averaged weights in its model."""
        torch.manual_seed(self.seed)
        stage = STAGES[name](self).to(torch.device(self.device))
        stage.recipe = replace(stage.recipe, seed=self.seed, **self.recipe)
        for cache in stage.stale:
            (self.caches / cache).unlink(missing_ok=True)
        for line in fit(stage, self.budget or stage.budget):
            report(line)
        return stage


STAGES: dict[str, Callable[[Training], Stage]] = {
    "clip": lambda run: clip.ClipStage(run.folder, run.scenes, run.ids, run.words),
    "text": lambda run: clip.TextStage(run.both_towers),
    "autoencoder": lambda run: autoencoder.AutoencoderStage(run.folder, run.scenes),
    "unet": Training.denoiser_stage,
    "decoder": lambda run: autoencoder.DecoderStage(run.folder, run.scenes, run.vae),
    "control": Training.control_stage,
    "style": lambda run: adapters.StyleStage(run.folder, run.pipe, unseen.style_lesson(run.count or LESSON)),
    "word": lambda run: adapters.WordStage(run.folder, run.pipe, unseen.word_lesson(run.count or LESSON)),
    "checker": lambda run: detector.DetectorStage(run.folder),
}
"""The stages that train, by name."""


def finished(stage: AnyStage) -> AnyStage:
    """Return a stage whose model has the averaged weights of its checkpoint; without one it stays as it is."""
    if stage.checkpoint.exists():
        load_average(stage.model, stage.checkpoint)
    stage.model.eval()
    return stage


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m langevin.picturebook.train", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add, whole = parser.add_argument, "which stage to run (default: all of a pipeline, in this order)"
    names = dict.fromkeys((*PIPELINE, *STAGES, "all"))
    add("--stage", choices=names, default="all", metavar="NAME", help=whole)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, help="how long a stage trains in all, earlier runs included")
    length.add_argument("--steps", type=int, help="how many steps a stage trains in all, instead of --minutes")
    add("--scenes", type=int, help=f"scenes to learn from (default: {SCENES}; for style and word {LESSON})")
    add("--batch", type=int, help="samples of a step")
    add("--lr", type=float, help="learning rate")
    add("--start", type=Path, help="pipeline folder whose denoiser is trained on or steered")
    add("--device", default="cpu", help="where to train, for example cuda (default: cpu)")
    add("--threads", type=int, default=os.cpu_count(), help="threads of a CPU")
    add("--seed", type=int, default=0)
    add("--folder", type=Path, default=HOME, help=f"checkpoints and caches (default: {HOME})")
    add("--output", type=Path, help="where the result is written (default: under its own name in --folder)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages that the command line names."""
    chosen = parser().parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        torch.distributed.init_process_group("gloo" if chosen.device == "cpu" else "nccl")
    untold = chosen.minutes is None and chosen.steps is None
    budget = None if untold else Budget(chosen.minutes or 0.0, chosen.steps)
    told = Training(
        chosen.folder,
        count=chosen.scenes,
        budget=budget,
        recipe={key: value for key in ("batch", "lr") if (value := getattr(chosen, key)) is not None},
        start=chosen.start,
        device=chosen.device,
        seed=chosen.seed,
    )
    for name in PIPELINE if chosen.stage == "all" else (chosen.stage,):
        run_stage(replace(told), name, chosen.output)
    part_company()


def run_stage(training: Training, name: str, output: Path | None) -> None:
    """Do what a stage does, and say what it wrote; `output` is in place of its product's own name in the folder."""
    folder = training.folder
    if name == "tokenizer":
        tokenizer.write(folder / name)
        return
    if name == "export":
        from .export import export

        path = output or folder / "model"
        export(training, path)
    else:
        stage = training.train(name, lambda line: print(line, flush=True))
        if stage.product is None or Crew().rank:
            return
        path = output or folder / stage.product
        stage.write(path)
    size = sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
    print(f"{path}: {size / 2**20:.1f} MiB")


def part_company() -> None:
    """End the work of several processes: all wait for the last, since one that leaves early may abort another."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
