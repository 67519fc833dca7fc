"""What recipes share: settings of a model and of pictures, and how settings become a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from torch import nn

from ...adapters.files import SAFE
from ...core.errors import ConfigError, InputError
from ...core.images import from_array, load_image
from ...core.push import upload
from ...core.records import Records, read_folder, read_hub
from ...diffusion.objective import Noising, Objective
from ...families.latents import scale_factor
from ...prompts import expand_words
from .. import checkpoints, report
from ..average import Decay
from ..data.examples import Captions
from ..data.framing import Framing
from ..denoising import Denoiser
from ..divided import asked, plainly
from ..heldout import BINS, HeldOut, apart, check_apart
from ..latent import TextToImage
from ..machine import machine
from ..optimizers import optimizer
from ..previews import Preview
from ..proof import Proof
from ..settings import S, Settings, at_least, share, told
from ..streams import Order, Streams
from ..trainables import Trainable
from ..trainer import Run, Trainer, seed_of
from .cards import card

LARGE = "_sdxl"
"""How the names of recipes for Stable Diffusion XL end."""
TEXTS = 10_000
"""Captions whose tokens are kept, so that a text is read once and not in every epoch."""


@dataclass
class ModelSettings(Settings):
    """Settings of recipes that begin with a published pipeline."""

    pretrained_model_name_or_path: str | None = told(None, "folder or hub repository of the pipeline to begin with")
    revision: str | None = told(None, "branch, tag or commit of that repository")
    variant: str | None = told(None, "variant of its weight files, such as fp16")
    prediction_type: str | None = told(None, "epsilon or v_prediction; the scheduler's own if unset")
    snr_gamma: float | None = told(None, "weigh losses by min-SNR with this bound; 5 is its authors' choice")
    noise_offset: float = told(0.0, "share of noise that is the same over a whole channel")
    input_perturbation: float = told(0.0, "share of further noise in the samples alone")
    loss_type: str = told("mse", "mse, huber or smooth_l1")
    huber_c: float = told(0.1, "where huber and smooth_l1 bend")
    enable_xformers_memory_efficient_attention: bool = told(False, "attention by xFormers, which has to be installed")
    wants: ClassVar[tuple[str, ...]] = ("unet", "vae", "text_encoder", "tokenizer")

    def check(self) -> None:
        """Raise InputError or ConfigError for all that can be known before anything is loaded."""
        super().check()
        if not self.pretrained_model_name_or_path:
            raise ConfigError("pretrained_model_name_or_path is missing: name the pipeline to begin with.")

    def objective(self, scheduler: Any) -> Objective:
        """Return what the network is trained to say."""
        return Objective(
            kind=self.prediction_type or scheduler.config.prediction_type,
            loss=self.loss_type,
            bend=self.huber_c,
            weighting=None if self.snr_gamma is None else "min_snr",
            gamma=self.snr_gamma or 5.0,
            offset=self.noise_offset,
            perturbation=self.input_perturbation,
        )

    def denoiser(self, scheduler: Any) -> Denoiser:
        """Return the cost of a prediction at the scheduler's training levels."""
        noising = Noising.of(scheduler.process)
        return Denoiser(noising, self.objective(scheduler), self.odds(len(noising)))

    def odds(self, levels: int) -> torch.Tensor | None:
        """Return how likely every noise level is, see `Denoiser`."""
        return None

    def replaced(self) -> dict[str, Any]:
        """Return components that are loaded in place of the pipeline's own."""
        return {}

    def encoders(self) -> tuple[str, ...]:
        """Return the text encoders that are trained."""
        names = tuple(name for name in self.wants if name.startswith("text_encoder"))
        return names if getattr(self, "train_text_encoder", False) else ()

    def task(self, pipe: Any, parts: Sequence[Trainable]) -> TextToImage:
        """Return the training of parts of a pipeline."""
        return TextToImage(pipe, self.denoiser(pipe.scheduler), parts, learning_rate=rate_of(self))

    def spare(self, pipe: Any) -> None:
        """Let what is trained compute activations twice, if asked."""
        if self.gradient_checkpointing:
            pipe.unet.enable_gradient_checkpointing()
            for name in self.encoders():
                getattr(pipe, name).gradient_checkpointing_enable()


@dataclass
class AverageSettings(Settings):
    """Settings of recipes that train a whole network and may keep the average of its weights."""

    use_ema: bool = told(False, "keep a moving average of the weights, and make it the result")
    ema_decay: float = told(0.9999, "highest decay of the average")

    def check(self) -> None:
        """Raise InputError or ConfigError for all that can be known before anything is loaded."""
        super().check()
        self.average()

    def average(self) -> Decay | None:
        """Return the decay of the moving average, if there is one."""
        return Decay(self.ema_decay) if self.use_ema else None


@dataclass
class LookSettings(Settings):
    """Settings of recipes that draw pictures on the way."""

    num_validation_images: int = told(4, "pictures per prompt")
    validation_steps: int = told(100, "optimizer steps between two looks")
    validation_epochs: int | None = told(None, "epochs between two looks, in place of validation_steps")

    def check(self) -> None:
        """Raise InputError or ConfigError for all that can be known before anything is loaded."""
        super().check()
        for name in ("num_validation_images", "validation_steps", "validation_epochs"):
            at_least(self, name, 1)

    def looks(self, pipe: Any, order: Order, rows: Sequence[Mapping[str, Any]]) -> list[Preview]:
        """Return what looks at a run, with one row per call of the pipeline, nothing if there is none."""
        if not rows:
            return []
        every = self.validation_steps if self.validation_epochs is None else order.steps(self.validation_epochs)
        count = self.num_validation_images
        return [Preview(pipe, [{**row, "num_images_per_prompt": count} for row in rows], count=count, every=every)]


@dataclass
class PreviewSettings(LookSettings):
    """Settings of recipes that draw pictures of prompts alone."""

    validation_prompt: str | None = told(None, "draw this on the way; several prompts stand between |")

    def watch(self, pipe: Any, order: Order) -> list[Preview]:
        """Return what looks at a run."""
        prompts = self.validation_prompt.split("|") if self.validation_prompt else []
        return self.looks(pipe, order, [{"prompt": prompt.strip()} for prompt in prompts])


@dataclass
class HeldOutSettings(Settings):
    """Settings of examples that are measured on, and not trained on."""

    heldout_data_dir: str | None = told(None, "folder of examples to measure on, laid out as those to train on")
    heldout_share: float = told(0.0, "share of the examples that is not trained on, but measured; 0.05 is usual")
    heldout_steps: int = told(100, "optimizer steps between two looks at them")
    heldout_draws: int = told(100, "pictures per look, in all at ten ranges of noise levels")

    def check(self) -> None:
        """Raise InputError or ConfigError for all that can be known before anything is loaded."""
        super().check()
        share(self, "heldout_share")
        at_least(self, "heldout_steps", 1)
        at_least(self, "heldout_draws", BINS)
        if self.heldout_share and self.heldout_data_dir is not None:
            raise ConfigError("heldout_share has no effect with heldout_data_dir: give one of them.")

    def held(self, found: Records, *columns: str | None) -> Records:
        """Return examples with those that are held out beside them, which have these columns.

        Raises:
            Problems: with everything that is wrong with them.
            ConfigError: when some of them are trained on, or a share leaves nothing.
        """
        if self.heldout_share:
            return apart(found, self.heldout_share)
        if self.heldout_data_dir is None:
            return found
        found = replace(found, held=read_folder(self.heldout_data_dir).checked(*columns))
        check_apart(found)
        return found

    def hold(self, run: Trainer, data: Any = None) -> None:
        """Let a run look at what is held out, if anything is.

        Args:
            data: examples, whose records say what is held out; those of the run by default.
        """
        data = run.data if data is None else data
        if data.records.held is not None:
            data = replace(data, records=data.records.held, sizes=None, encoded=None)
            look = HeldOut(data, every=self.heldout_steps, draws=self.heldout_draws)
            run.before.append(look.begin)
            run.watch.append(look)


@dataclass
class PictureSettings(HeldOutSettings):
    """Settings of recipes that read pictures from a folder or a hub dataset."""

    dataset_name: str | None = told(None, "hub dataset, or a local one that the package datasets can load")
    dataset_config_name: str | None = told(None, "its configuration")
    train_data_dir: str | None = told(None, "folder of pictures and their texts (see docs/training.md), or a manifest")
    image_column: str = told("image", "column of the pictures")
    max_train_samples: int | None = told(None, "take that many examples at most")
    resolution: int = told(512, "height and width in pixels")
    center_crop: bool = told(False, "crop the middle instead of a random place")
    random_flip: bool = told(False, "mirror half of the pictures")
    image_interpolation_mode: str = told("lanczos", "filter of resizing")

    def check(self) -> None:
        """Raise InputError or ConfigError for all that can be known before anything is loaded."""
        super().check()
        at_least(self, "resolution", 1)
        at_least(self, "max_train_samples", 1)
        if (self.dataset_name is None) == (self.train_data_dir is None):
            raise ConfigError("Name the data: either dataset_name or train_data_dir.")
        self.framing()

    def framing(self) -> Framing:
        """Return how pictures are brought to one size."""
        size = self.resolution
        return Framing(size, size, self.center_crop, self.random_flip, self.image_interpolation_mode)

    def shown(self, file: str) -> Any:
        """Return a picture of a file or an address, the middle of it at the resolution."""
        from PIL import ImageOps

        return ImageOps.fit(load_image(file), (self.resolution, self.resolution))

    def records(self, *columns: str | None) -> Records:
        """Return the examples, which have these columns.

        Raises:
            Problems: with everything that is wrong.
        """
        if self.train_data_dir is not None:
            found = read_folder(self.train_data_dir)
        else:
            found = read_hub(str(self.dataset_name), self.dataset_config_name, cache_dir=self.cache_dir)
        found = found.checked(*columns)
        if self.max_train_samples is not None:
            found = replace(found, rows=found.rows[: self.max_train_samples])
        return self.held(found, *columns)


def ready(settings: S) -> S:
    """Check settings, and return them with the seed of the run: the given one, that of the checkpoint, or one drawn.

    Raises:
        ConfigError, InputError: for settings that cannot be used.
    """
    settings.check()
    if (division := asked()) is not None:
        division.check(accumulated=settings.gradient_accumulation_steps, clipping=settings.max_grad_norm or None)
        if settings.optimizer != "adamw" or settings.use_8bit_adam:
            name = "use_8bit_adam" if settings.use_8bit_adam else f"optimizer={settings.optimizer}"
            raise division.untrained(name, "optimizer=adamw without use_8bit_adam")
    folder, resume = Path(settings.output_dir), settings.resume_from_checkpoint
    found = copy(settings)
    found.seed = seed_of(settings.seed, checkpoints.find(folder, resume) if resume else None)
    return found


def run_of(settings: Settings, examples: int, *, average: Decay | None = None) -> Run:
    """Return the run that settings describe.

    Raises:
        InputError: when there is nothing to do.
    """
    if settings.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    steps = settings.max_train_steps
    if steps is None:
        batches = (settings.train_batch_size, settings.gradient_accumulation_steps, processes())
        steps = Order(Streams(0), examples, *batches).steps(settings.num_train_epochs)
    if settings.lr_warmup_steps > steps and settings.lr_scheduler != "constant":
        raise InputError(f"lr_warmup_steps is {settings.lr_warmup_steps}, but the run has only {steps} steps.")
    shapes = {
        "cosine_with_restarts": {"cycles": float(settings.lr_num_cycles)},
        "polynomial": {"power": settings.lr_power},
    }
    return Run(
        folder=Path(settings.output_dir),
        steps=steps,
        seed=settings.seed,
        batch=settings.train_batch_size,
        accumulated=settings.gradient_accumulation_steps,
        lr_scheduler=settings.lr_scheduler,
        warmup=settings.lr_warmup_steps,
        lr_shape=shapes.get(settings.lr_scheduler, {}),
        optimizer=partial(optimizer, settings=settings),
        max_grad_norm=settings.max_grad_norm or None,
        mixed_precision=settings.mixed_precision,
        average=average,
        checkpoint_every=settings.checkpointing_steps,
        checkpoint_limit=settings.checkpoints_total_limit,
        resume=settings.resume_from_checkpoint,
        on_nonfinite=settings.on_nonfinite,
        workers=settings.dataloader_num_workers,
        trackers=settings.trackers(),
        tracker_folder=Path(settings.output_dir) / settings.logging_dir,
        project=settings.tracker_project_name or Path(settings.output_dir).resolve().name,
        settings=asdict(settings),
    )


def processes() -> int:
    """Return how many processes train together."""
    return machine().num_processes


def rate_of(settings: Settings, rate: float | None = None) -> float:
    """Return a learning rate, multiplied by the examples of a step where `scale_lr` asks for it.

    Args:
        rate: in place of that of the settings.
    """
    rate = settings.learning_rate if rate is None else rate
    if not settings.scale_lr:
        return rate
    return rate * settings.train_batch_size * settings.gradient_accumulation_steps * processes()


def words_of(tokenizer: Any) -> Any:
    """Return the function from a text to its token ids, (tokens,), cut and padded to the tokenizer's length."""

    @lru_cache(maxsize=TEXTS)
    def words(text: str) -> torch.Tensor:
        length = tokenizer.model_max_length
        text = expand_words(text, tokenizer)
        read = tokenizer(text, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return read.input_ids[0]

    return words


def captions_of(pipe: Any, **options: Any) -> Captions:
    """Return captions that the text encoders of a pipeline read, one or two.

    Args:
        options: see `Captions`.
    """
    second = getattr(pipe, "tokenizer_2", None)
    return Captions(words_of(pipe.tokenizer), second=None if second is None else words_of(second), **options)


def pipeline(settings: ModelSettings, shared: Mapping[str, Any] | None = None) -> Any:
    """Return the pipeline to begin with, in float32.

    Args:
        shared: components of one that was loaded before, see `untrained`.

    Raises:
        ConfigError: when it lacks a component, or belongs to another family.
    """
    from ...pipelines.base import DiffusionPipeline

    options = {"revision": settings.revision, "variant": settings.variant, "cache_dir": settings.cache_dir}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    with plainly():
        given |= settings.replaced() if shared is None else shared
        pipe = DiffusionPipeline.from_pretrained(str(settings.pretrained_model_name_or_path), **given)
    lacking = [name for name in settings.wants if getattr(pipe, name, None) is None]
    two = getattr(pipe, "text_encoder_2", None) is not None
    if lacking or two is not ("text_encoder_2" in settings.wants):
        what = f"has no {lacking[0]}" if lacking else "has two text encoders"
        hint = "" if two is ("text_encoder_2" in settings.wants) else f"; {twin(settings)}"
        name = settings.pretrained_model_name_or_path
        raise ConfigError(f"{name} cannot be trained by this recipe: it {what}{hint}.")
    if settings.enable_xformers_memory_efficient_attention:
        pipe.enable_xformers_memory_efficient_attention()
    return pipe


def twin(settings: ModelSettings) -> str:
    """Return which recipe does for the other family what settings ask for, or the recipes that there are for it."""
    from . import RECIPES

    place = (type(settings).__module__.rpartition(".")[2], type(settings).__name__)
    own = next((name for name, recipe in RECIPES.items() if (recipe.module, recipe.settings) == place), "")
    large = "text_encoder_2" in settings.wants
    other = own.removesuffix(LARGE) if large else f"{own}{LARGE}"
    if other != own and other in RECIPES:
        return f"use the recipe {other}"
    family = "Stable Diffusion" if large else "Stable Diffusion XL"
    return f"recipes for {family}: {', '.join(name for name in RECIPES if name.endswith(LARGE) is not large)}"


def finish(
    settings: Settings, write: Callable[[Path], None], *, use: str = "", check: Callable[[Path], Any] | None = None
) -> Path:
    """Write what was trained and its settings into the output folder, upload it if asked, and return the folder.

    Args:
        use: see `cards.card`.
        check: raises an error when what lies in the folder is not what was trained, before it is uploaded.

    Raises:
        InputError: when the hub refuses.
    """
    folder = Path(settings.output_dir)
    write(folder)
    settings.save(folder)
    if check is not None:
        check(folder)
    if settings.push_to_hub:
        with TemporaryDirectory() as parent:
            clean = Path(parent) / folder.resolve().name
            write(clean)
            settings.save(clean)
            repo_id = settings.hub_model_id or folder.resolve().name
            base = getattr(settings, "pretrained_model_name_or_path", None)
            upload(clean, {"repo_id": repo_id, "token": settings.hub_token}, card=partial(card, base, use))
    return folder


def completed(
    settings: Settings,
    run: Trainer,
    write: Callable[[Path], None],
    *,
    use: str = "",
    proof: Proof | None = None,
    settle: Callable[[], None] | None = None,
) -> Path:
    """Train to the end, write what was trained, its average if there is one, and return the folder; see `finish`.

    Args:
        proof: compares what was written with what was trained, unless the settings turn it off.
        settle: makes what was trained a part of the pipeline, before it is written.

    Raises:
        WeightsError: when what was written is not what was trained.
    """
    folder, check = Path(settings.output_dir), None
    if proof is not None and settings.proof:
        run.before.append(proof.begin)
        check = partial(proof.check, run)
    if run.main:
        settings.save(folder)
    with report.kept(run):
        run.fit()
        run.settle()
        if settle is not None:
            settle()
        return finish(settings, write, use=use, check=check) if run.main else folder


def prompted(settings: Any, pipe: Any, prompt: str) -> dict[str, Any]:
    """Return the arguments of a call of a pipeline that draws one picture in the resolution of a run."""
    size = side(settings, pipe)
    return {"prompt": prompt, "height": size, "width": size, "output_type": "latent"}


def side(settings: Any, pipe: Any) -> int:
    """Return the resolution of a run, without the rest that the autoencoder leaves out."""
    factor = scale_factor(pipe.vae)
    return settings.resolution // factor * factor


def speckled(settings: Any, pipe: Any) -> Any:
    """Return a picture of noise in the resolution of a run, for pipelines that are shown one."""
    size = side(settings, pipe)
    values = torch.rand((1, size, size, 3), generator=Streams(0).stream("picture"))
    return from_array(values.numpy())[0]


def untrained(pipe: Any) -> dict[str, nn.Module]:
    """Return the networks of a pipeline that hold nothing trained, and so need no memory of their own a second time."""
    networks = {name: module for name, module in pipe.components.items() if isinstance(module, nn.Module)}
    return {name: net for name, net in networks.items() if not any(p.requires_grad for p in net.parameters())}


def lora_proof(settings: Any, pipe: Any, prompt: str) -> Proof:
    """Return the proof of a LoRA, which loads it into networks as they were before training."""

    def load(folder: Path) -> Any:
        fresh = pipeline(settings, untrained(pipe))
        fresh.load_lora_weights(folder)
        return fresh

    return Proof(pipe, prompted(settings, pipe, prompt), load, file=SAFE)
