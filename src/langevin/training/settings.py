"""The settings of a recipe: a dataclass whose fields are the documented flags, read from a command line.

A field's name is the flag, its type decides how the flag is read, its `help` what is shown. A recipe's own class adds
its fields to those that it shares, and every field can be set from Python as well. A recipe that calls a shared setting
by another name declares it again with `init=False`, which takes the flag away.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..core.errors import ConfigError, InputError, check_choice, check_known
from ..core.files import atomic_write
from ..core.imports import is_available
from ..optimization.learning_rates import SchedulerType

S = TypeVar("S", bound="Settings")
TRACKERS = ("tensorboard", "wandb")
SCHEDULES = tuple(member.value for member in SchedulerType)


def told(default: Any, help: str) -> Any:
    """Return a field of a default and its explanation."""
    return field(default=default, metadata={"help": help})


@dataclass
class Settings:
    """What every recipe shares."""

    output_dir: str = told("model", "folder for checkpoints, the log and the result")
    seed: int | None = told(None, "of everything that is random; drawn and kept where none is given")
    train_batch_size: int = told(4, "examples per batch of one process")
    num_train_epochs: int = told(1, "how often every example is seen, where max_train_steps says nothing")
    max_train_steps: int | None = told(None, "optimizer steps; overrides num_train_epochs")
    gradient_accumulation_steps: int = told(1, "batches per optimizer step")
    gradient_checkpointing: bool = told(False, "compute activations twice to save memory")
    learning_rate: float = told(1e-4, "of the optimizer, after the warm-up")
    scale_lr: bool = told(False, "multiply the learning rate by batch size, accumulated batches and processes")
    lr_scheduler: str = told("constant", f"one of {', '.join(SCHEDULES)}")
    lr_warmup_steps: int = told(500, "optimizer steps of the warm-up")
    lr_num_cycles: int = told(1, "restarts of cosine_with_restarts")
    lr_power: float = told(1.0, "of the polynomial schedule")
    optimizer: str = told("adamw", "adamw, adafactor or prodigy")
    use_8bit_adam: bool = told(False, "AdamW with 8-bit states, from bitsandbytes")
    adam_beta1: float = told(0.9, "decay of the mean of gradients")
    adam_beta2: float = told(0.999, "decay of the mean of squared gradients")
    adam_weight_decay: float = told(1e-2, "weight decay")
    adam_epsilon: float = told(1e-8, "added to the root of the mean of squared gradients")
    max_grad_norm: float = told(1.0, "longer gradients are shortened to it")
    set_grads_to_none: bool = told(False, "documented; gradients are always freed between steps")
    allow_tf32: bool = told(False, "TF32 products on Ampere and later")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = told(None, "no, fp16 or bf16; accelerate's choice if unset")
    dataloader_num_workers: int = told(0, "processes that prepare batches")
    checkpointing_steps: int = told(500, "optimizer steps between two checkpoints")
    checkpoints_total_limit: int | None = told(None, "how many checkpoints are kept")
    resume_from_checkpoint: str | None = told(None, "name of a checkpoint in output_dir, or latest")
    on_nonfinite: Literal["stop", "skip"] = told("stop", "what happens when a loss is NaN or infinity")
    report_to: str | None = told(None, "tensorboard, wandb, all or none; tensorboard if unset and installed")
    logging_dir: str = told("logs", "folder of tensorboard's files, in output_dir")
    tracker_project_name: str | None = told(None, "project of the trackers; the name of output_dir if unset")
    proof: bool = told(True, "load the result again at the end and compare it with what was trained, before any upload")
    push_to_hub: bool = told(False, "upload the result")
    hub_token: str | None = told(None, "for the upload; that of `hf auth login` if unset")
    hub_model_id: str | None = told(None, "repository of the upload; the name of output_dir if unset")
    cache_dir: str | None = told(None, "folder for what is downloaded")
    local_rank: int = told(-1, "documented; accelerate and torchrun tell the rank through the environment")

    def check(self) -> None:
        """Raise InputError or ConfigError for all that can be known before anything is loaded."""
        for name in ("train_batch_size", "num_train_epochs", "gradient_accumulation_steps", "checkpointing_steps"):
            at_least(self, name, 1)
        for name in ("max_train_steps", "checkpoints_total_limit"):
            at_least(self, name, 1)
        for name in ("lr_warmup_steps", "dataloader_num_workers", "max_grad_norm"):
            at_least(self, name, 0)
        for name in ("learning_rate", "adam_weight_decay", "adam_epsilon"):
            at_least(self, name, 0.0)
        check_choice("lr_scheduler", self.lr_scheduler, SCHEDULES)
        if "wandb" in self.trackers() and self.push_to_hub and self.hub_token:
            raise ConfigError("hub_token would be shown by Weights & Biases; log in with `hf auth login` instead.")

    def decided(self) -> int:
        """Return the seed of the run.

        Raises:
            ConfigError: while there is none; `recipes.common.ready` draws it.
        """
        if self.seed is None:
            raise ConfigError("The seed is not drawn yet; set `seed`, or begin as the recipes do.")
        return self.seed

    def trackers(self) -> tuple[str, ...]:
        """Return who is told of the run.

        Raises:
            InputError: for an unknown name.
        """
        return trackers_of("report_to", self.report_to)

    def save(self, folder: Path) -> None:
        """Write the settings beside the results, without what is secret."""
        values = {name: value for name, value in asdict(self).items() if name != "hub_token"}
        atomic_write(folder / "settings.json", json.dumps(values, indent=1))


def trackers_of(flag: str, value: str | None) -> tuple[str, ...]:
    """Return the trackers that a flag names.

    Raises:
        InputError: for an unknown name.
    """
    if value is None:
        return TRACKERS[:1] if is_available(TRACKERS[0]) else ()
    check_choice(flag, value, [*TRACKERS, "all", "none"])
    return {"all": TRACKERS, "none": ()}.get(value, (value,))


def at_least(settings: Settings, name: str, low: float) -> None:
    """Raise InputError unless a setting is None or at least `low`."""
    value = getattr(settings, name)
    if value is not None and value < low:
        raise InputError(f"{name} is {value}; it must be at least {low}.")


def share(settings: Settings, name: str) -> None:
    """Raise InputError unless a setting is from 0 to 1."""
    if not 0 <= getattr(settings, name) <= 1:
        raise InputError(f"{name} is {getattr(settings, name)}; it must be from 0 to 1.")


def parse(cls: type[S], words: Sequence[str], *, name: str, about: str = "") -> S:
    """Return the settings that a command line gives.

    Args:
        words: the flags, such as ["--seed=0", "--push_to_hub"].
        name: of the command, for its help.
        about: what it does.

    Raises:
        ConfigError: for a flag that there is none of, with the nearest one, or a word that belongs to no flag.
        SystemExit: after `--help`, and for a value that a flag cannot take.
    """
    from transformers import HfArgumentParser

    parser = HfArgumentParser(cls, prog=name, description=about, allow_abbrev=False)  # type: ignore[arg-type]
    settings, rest = parser.parse_args_into_dataclasses(list(words), return_remaining_strings=True)
    flags = [word.split("=", 1)[0].lstrip("-") for word in rest if word.startswith("-")]
    check_known(name, flags, [part.name for part in fields(cls) if part.init])
    if rest:
        raise ConfigError(f"{name} does not know what to do with {rest[0]!r}; every value follows its flag.")
    return settings
