"""From `--model` and its companions to a pipeline on a device."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

import langevin

from ..core.config import options_of
from ..core.errors import InputError, WeightsError, check_choice
from ..models.controlnets.controlnet import ControlNetModel
from ..picturebook import control_folder
from ..pipelines import auto
from ..pipelines.base import DiffusionPipeline
from ..pipelines.latent import LatentPipeline
from ..weights.checkpoint import header_of
from ..weights.detect import recognise
from ..weights.wishes import locate
from .loras import attach, teach
from .request import PICTUREBOOK, Request, place_of


def is_single_file(place: str) -> bool:
    """Tell whether a model is one file in its authors' own layout: a file on disk, or its address on the hub."""
    return "/blob/" in place or Path(place).expanduser().is_file()


def class_of(model: str) -> str:
    """Return the pipeline class that a model is for.

    Raises:
        WeightsError: for a single file that holds no pipeline.
    """
    place = place_of(model)
    if not is_single_file(place):
        return auto.class_in(place)
    _, facts = recognise(header_of(locate(place)), model)
    if facts.pipeline is None:
        raise WeightsError(f"{model} is a {facts.kind} and no whole model; `langevin inspect` says more.")
    return facts.pipeline


def pick_class(request: Request) -> type[Any]:
    """Return the pipeline class for what is asked: that of the model's family for the task of the pictures given.

    A model that is made for one task alone, such as editing by instruction, is taken as it is.

    Raises:
        LangevinError: for a model that is not here, or a family without the task.
    """
    row = auto.row_of(class_of(request.model))
    if auto.task_of(row) in auto.AUTO:
        row = auto.row_for(row, request.task, {"controlnet"} if request.control else set())
    return auto.load_class(row)


def load(cls: type[Any], request: Request) -> DiffusionPipeline:
    """Load a pipeline in the asked number format onto the asked device."""
    device, dtype = pick_device(request.device), getattr(torch, request.dtype)
    given = {}
    net = controlnet_of(request)
    if net is not None:
        given["controlnet"] = ControlNetModel.from_pretrained(net, torch_dtype=dtype)
    if not request.quiet:
        print(f"Loading {request.model} on {device} in {request.dtype} ...", file=sys.stderr)
    place = place_of(request.model)
    build = cls.from_single_file if is_single_file(place) else cls.from_pretrained
    pipe = build(place, torch_dtype=dtype, **given).to(device)
    pipe.set_progress_bar_config(disable=request.quiet)
    attach(pipe, request.lora)
    teach(pipe, request.embedding)
    if request.ip_adapter:
        pipe.load_ip_adapter(request.ip_adapter)
        pipe.set_ip_adapter_scale(1.0 if request.ip_adapter_scale is None else request.ip_adapter_scale)
    return pipe


def controlnet_of(request: Request) -> str | None:
    """Return the folder or repository of the ControlNet, None when there is nothing to follow or the model has its own.

    Raises:
        InputError: when there is none.
    """
    if request.control is None or request.controlnet is not None:
        return request.controlnet
    if request.model == PICTUREBOOK:
        return str(control_folder())
    if "controlnet" in auto.control_of(auto.row_of(class_of(request.model))):
        return None
    raise InputError(f"--control needs a ControlNet made for {request.model}; name it by --controlnet FOLDER_OR_REPO.")


def pick_device(name: str) -> str:
    """Return a device that exists; "auto" is the accelerator if there is one, else the CPU.

    Raises:
        InputError: naming the devices at hand.
    """
    present = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return present.type if present is not None else "cpu"
    valid = ["cpu"]
    if present is not None:
        valid += [present.type, *(f"{present.type}:{k}" for k in range(torch.accelerator.device_count()))]
    check_choice("--device", name, ["auto", *valid])
    return name


def build_scheduler(pipe: DiffusionPipeline, name: str) -> Any:
    """Return a scheduler of the class `name`, built from the configuration of the pipeline's own.

    Latents have no bounds as pixels have, so samplers that clip what they predict do so only where that was said.
    """
    present, cls = getattr(pipe, "scheduler", None), getattr(langevin, name)
    if present is None:
        raise InputError(f"{type(pipe).__name__} has no scheduler that --scheduler could replace.")
    options = {}
    if isinstance(pipe, LatentPipeline) and "clip_sample" in options_of(cls):
        options["clip_sample"] = present.config.get("clip_sample", False)
    return cls.from_config(present.config, **options)
