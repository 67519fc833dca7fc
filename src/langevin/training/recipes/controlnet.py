"""ControlNet (Zhang & Agrawala 2023, 2302.05543): a network learns to make a model follow pictures, such as edges."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import ConfigError
from ..data.examples import Captions, PictureExamples
from ..proof import Proof
from ..settings import share, told
from ..shown import Controlled
from ..streams import seeded
from ..trainables import Whole
from ..trainer import Trainer
from .common import (
    LookSettings,
    ModelSettings,
    PictureSettings,
    completed,
    pipeline,
    rate_of,
    ready,
    run_of,
    speckled,
    words_of,
)
from .feeding import BucketSettings, CacheSettings

USE = """from langevin import ControlNetModel, StableDiffusionControlNetPipeline

net = ControlNetModel.from_pretrained("REPO")
pipe = StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=net)"""
"""How the result is loaded, see `cards.card`."""


@dataclass
class ControlSettings(ModelSettings, PictureSettings, BucketSettings, CacheSettings, LookSettings):
    """Settings of train_controlnet."""

    output_dir: str = told("controlnet-model", "folder for checkpoints, the log and the result")
    controlnet_model_name_or_path: str | None = told(None, "ControlNet to begin with; a copy of the UNet if unset")
    learning_rate: float = told(5e-6, "of the optimizer, after the warm-up")
    conditioning_image_column: str = told("conditioning_image", "column of the pictures to follow")
    caption_column: str = told("text", "column of the captions, texts or lists of texts")
    proportion_empty_prompts: float = told(0.0, "chance that an example is seen without its caption")
    validation_image: list[str] | None = told(None, "files of pictures to follow on the way")
    validation_prompt: list[str] | None = told(None, "a prompt for each of them, or one for all")
    tracker_project_name: str | None = told("train_controlnet", "project of the trackers")

    def check(self) -> None:
        """Raise InputError or ConfigError for all that can be known before anything is loaded."""
        super().check()
        share(self, "proportion_empty_prompts")
        prompts, files = self.validation_prompt or [], self.validation_image or []
        if bool(prompts) != bool(files):
            raise ConfigError("validation_image and validation_prompt go together: give both or none.")
        if 1 not in (len(prompts), len(files)) and len(prompts) != len(files):
            raise ConfigError(
                f"There are {len(prompts)} values of validation_prompt for {len(files)} of validation_image; "
                "give as many, or one of either."
            )

    def rows(self) -> list[dict[str, Any]]:
        """Return what is drawn on the way.

        Raises:
            InputError: when a picture cannot be read.
        """
        prompts, files = self.validation_prompt or [], self.validation_image or []
        count = max(len(prompts), len(files))
        pictures = [self.shown(file) for file in files]
        pairs = zip(*(values * (count if len(values) == 1 else 1) for values in (prompts, pictures)), strict=True)
        return [{"prompt": prompt, "image": picture, "num_inference_steps": 20} for prompt, picture in pairs]

    def network(self, pipe: Any) -> Any:
        """Return the ControlNet to begin with; what is new in it follows from the seed.

        Raises:
            ConfigError: when it was made for another UNet.
        """
        from ...models.controlnets.controlnet import EMBEDDING_WIDTHS, ControlNetModel
        from ...pipelines.controlnet import FITTING
        from ...pipelines.controls import check_fits

        if self.controlnet_model_name_or_path is not None:
            net = ControlNetModel.from_pretrained(self.controlnet_model_name_or_path, cache_dir=self.cache_dir)
            check_fits(net, pipe.unet, FITTING)
        else:
            halvings = len(pipe.vae.config.block_out_channels) - 1
            widths = (*EMBEDDING_WIDTHS, *EMBEDDING_WIDTHS[-1:] * halvings)[: halvings + 1]
            with seeded(self.decided()):
                net = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=widths)
        if self.gradient_checkpointing:
            net.enable_gradient_checkpointing()
            pipe.unet.enable_gradient_checkpointing()
        if self.enable_xformers_memory_efficient_attention:
            net.enable_xformers_memory_efficient_attention()
        return net


def train(settings: ControlSettings) -> Path:
    """Train a ControlNet and return the folder that holds it.

    Raises:
        ConfigError, InputError: for settings and data that cannot be used, before a model is loaded.
    """
    from ...models.controlnets.controlnet import ControlNetModel
    from ...pipelines.controlnet import StableDiffusionControlNetPipeline

    settings = ready(settings)
    columns = {"pixels": settings.image_column, "control": settings.conditioning_image_column}
    records = settings.records(*columns.values(), settings.caption_column)
    rows = settings.rows()
    pipe = pipeline(settings)
    net = settings.network(pipe)
    captions = Captions(
        words_of(pipe.tokenizer), column=settings.caption_column, dropout=settings.proportion_empty_prompts
    )
    data = PictureExamples(records, settings.framing(), columns, captions, ranged=("control",))
    part, rate = Whole("controlnet", net), rate_of(settings)
    task = Controlled(pipe, settings.denoiser(pipe.scheduler), [part], learning_rate=rate)
    run = Trainer(task, data, settings.bucketed(run_of(settings, len(data)), data))
    settings.keep(run)
    settings.hold(run)
    whole = StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=net)
    run.watch += settings.looks(whole, run.order, rows)

    def load(folder: Path) -> Any:
        saved = ControlNetModel.from_pretrained(folder)
        return StableDiffusionControlNetPipeline.from_pipe(pipeline(settings), controlnet=saved)

    proof = Proof(whole, {"prompt": "a picture", "image": speckled(settings, pipe), "output_type": "latent"}, load)
    return completed(settings, run, net.save_pretrained, use=USE, proof=proof)
