"""Training of a network on pictures alone, from the beginning (Ho et al. 2020, 2006.11239)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.errors import ConfigError, InputError, check_choice
from ...diffusion.objective import Noising, Objective
from ..average import Decay
from ..data.examples import PictureExamples
from ..denoising import Denoiser, Unconditional
from ..previews import Preview
from ..proof import Proof
from ..settings import at_least, told, trackers_of
from ..streams import seeded
from ..trainer import Trainer
from .common import PictureSettings, completed, rate_of, ready, run_of

WIDTHS = (128, 128, 256, 256, 512, 512)
"""Channels of the stages of a network that no configuration describes; the last but one has attention."""
PREDICTIONS = ("epsilon", "sample", "v_prediction")


@dataclass
class UnconditionalSettings(PictureSettings):
    """Settings of train_unconditional."""

    output_dir: str = told("ddpm-model-64", "folder for checkpoints, the log and the result")
    model_config_name_or_path: str | None = told(
        None, "config.json of a UNet2DModel, or a folder or hub repository of it"
    )
    resolution: int = told(64, "height and width in pixels")
    train_batch_size: int = told(16, "examples per batch of one process")
    eval_batch_size: int = told(16, "pictures that are drawn at a look")
    num_train_epochs: int = field(default=100, init=False)
    num_epochs: int = told(100, "how often every example is seen, where max_train_steps says nothing")
    save_images_epochs: int = told(10, "epochs between two looks")
    save_model_epochs: int = told(10, "epochs after which the pipeline is written to output_dir again")
    lr_scheduler: str = told("cosine", "schedule of the learning rate; a wrong name lists them")
    adam_beta1: float = told(0.95, "decay of the mean of gradients")
    adam_weight_decay: float = told(1e-6, "weight decay")
    use_ema: bool = told(False, "keep a moving average of the weights, and make it the result")
    ema_inv_gamma: float = told(1.0, "the average keeps 1 - (1 + step / ema_inv_gamma)^-ema_power")
    ema_power: float = told(0.75, "see ema_inv_gamma")
    ema_max_decay: float = told(0.9999, "but not more than this")
    prediction_type: str = told("epsilon", f"what the network says: {', '.join(PREDICTIONS)}")
    ddpm_num_steps: int = told(1000, "levels of noise that it is trained at")
    ddpm_num_inference_steps: int = told(1000, "steps of the pictures that are drawn on the way")
    ddpm_beta_schedule: str = told("linear", "betas of the levels: linear, scaled_linear, squaredcos_cap_v2, sigmoid")
    report_to: str | None = field(default=None, init=False)
    logger: str | None = told(None, "tensorboard, wandb, all or none; tensorboard if unset and installed")
    enable_xformers_memory_efficient_attention: bool = told(False, "attention by xFormers, which has to be installed")

    def __post_init__(self) -> None:
        self.num_train_epochs = self.num_epochs

    def trackers(self) -> tuple[str, ...]:
        """Return who is told of the run.

        Raises:
            InputError: for an unknown name.
        """
        return trackers_of("logger", self.logger)

    def check(self) -> None:
        """Raise InputError or ConfigError for all that can be known before anything is loaded."""
        for name in ("num_epochs", "eval_batch_size", "save_images_epochs", "save_model_epochs", "ddpm_num_steps"):
            at_least(self, name, 1)
        super().check()
        if not 1 <= self.ddpm_num_inference_steps <= self.ddpm_num_steps:
            raise InputError(
                f"ddpm_num_inference_steps is {self.ddpm_num_inference_steps}; it must be at least 1 and at most "
                f"ddpm_num_steps, {self.ddpm_num_steps}."
            )
        check_choice("prediction_type", self.prediction_type, PREDICTIONS)
        self.average()
        self.scheduler()
        self.config()

    def average(self) -> Decay | None:
        """Return the decay of the moving average, if there is one."""
        if not self.use_ema:
            return None
        return Decay(self.ema_max_decay, warmup=True, inv_gamma=self.ema_inv_gamma, power=self.ema_power)

    def scheduler(self) -> Any:
        """Return the scheduler of the result, whose levels are trained."""
        from ...schedulers.preserving import DDPMScheduler

        return DDPMScheduler(
            self.ddpm_num_steps, beta_schedule=self.ddpm_beta_schedule, prediction_type=self.prediction_type
        )

    def denoiser(self, scheduler: Any) -> Denoiser:
        """Return the cost of a prediction. One of the sample costs what the same mistake would cost in the noise."""
        weighting = "min_snr" if self.prediction_type == "sample" else None
        objective = Objective(self.prediction_type, weighting=weighting, gamma=math.inf)
        return Denoiser(Noising.of(scheduler.process), objective)

    def config(self) -> dict[str, Any]:
        """Return the configuration of the network, for pictures of the resolution.

        Raises:
            ConfigError: when it is not for pictures with three channels of this size.
        """
        from ...models.unets.unet_2d import UNet2DModel

        if self.model_config_name_or_path is None:
            plain, last = len(WIDTHS) - 2, len(WIDTHS) - 1
            found: dict[str, Any] = {
                "block_out_channels": WIDTHS,
                "layers_per_block": 2,
                "down_block_types": ["AttnDownBlock2D" if k == plain else "DownBlock2D" for k in range(last + 1)],
                "up_block_types": ["AttnUpBlock2D" if k == 1 else "UpBlock2D" for k in range(last + 1)],
            }
        else:
            found = UNet2DModel.load_config(self.model_config_name_or_path, cache_dir=self.cache_dir)
        for name in ("in_channels", "out_channels"):
            if found.get(name, 3) != 3:
                raise ConfigError(f"The network has {name}={found[name]}; pictures have 3 channels.")
        halvings = len(found.get("block_out_channels", (0,) * 4)) - 1
        if self.resolution % 2**halvings:
            raise ConfigError(
                f"resolution is {self.resolution}, but the network halves pictures {halvings} times; it must be a "
                f"multiple of {2**halvings}."
            )
        return {**found, "sample_size": self.resolution}

    def network(self) -> Any:
        """Return the network, whose first values follow from the seed."""
        from ...models.unets.unet_2d import UNet2DModel

        with seeded(self.decided()):
            unet = UNet2DModel.from_config(self.config())
        if self.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        if self.enable_xformers_memory_efficient_attention:
            unet.enable_xformers_memory_efficient_attention()
        return unet


def train(settings: UnconditionalSettings) -> Path:
    """Train a network and return the folder of the pipeline with it.

    Raises:
        ConfigError, InputError: for settings and pictures that cannot be used, before a network is made.
    """
    from ...pipelines.unconditional import DDPMPipeline

    settings = ready(settings)
    records = settings.records(settings.image_column)
    unet, scheduler = settings.network(), settings.scheduler()
    pipe = DDPMPipeline(unet, scheduler)
    task = Unconditional(unet, settings.denoiser(scheduler), learning_rate=rate_of(settings))
    data = PictureExamples(records, settings.framing(), {"pixels": settings.image_column})
    run = Trainer(task, data, run_of(settings, len(data), average=settings.average()))
    settings.hold(run)
    call = {"batch_size": settings.eval_batch_size, "num_inference_steps": settings.ddpm_num_inference_steps}
    every = run.order.steps(settings.save_images_epochs)
    run.watch.append(Preview(pipe, [call], count=settings.eval_batch_size, every=every))
    every = run.order.steps(settings.save_model_epochs)

    def write(run: Trainer) -> None:
        if run.step % every == 0:
            with run.averaged() as main:
                if main:
                    pipe.save_pretrained(settings.output_dir)

    run.watch.append(write)
    proof = Proof(pipe, {"output_type": "pt"})
    return completed(settings, run, pipe.save_pretrained, proof=proof)
