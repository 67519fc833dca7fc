"""Auto pipelines: from a checkpoint or a pipeline, and a task, to the class; read from the registry.

A row's family and task say what a class does. A control in front, as in "controlnet-text-to-image", is the name of the
component that the class takes beside those of its family.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

from ..core.errors import ConfigError, did_you_mean, nearest
from ..core.files import is_local, read_json, resolve_file, resolve_folder
from ..core.hub import hub_options
from ..registry import PIPELINES, Row
from . import files, loading
from .base import DiffusionPipeline
from .sharing import share


class AutoPipeline:
    """What the auto pipelines share. Each names a task; its two methods build the class of a family for it."""

    task: ClassVar[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        name = type(self).__name__
        raise ConfigError(f"{name} is not built itself; call {name}.from_pretrained(path) or {name}.from_pipe(pipe).")

    @classmethod
    def from_pretrained(cls, pretrained_model_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """Load a folder or a hub repository as the pipeline of its family for this task.

        Args:
            kwargs: as for `DiffusionPipeline.from_pretrained`. With `controlnet=` it is the pipeline with ControlNets;
                the same holds for every component that stands in front of a task's name in the registry.

        Raises:
            ConfigError: for a class that is not here, naming the nearest, or a family without this task.
        """
        row = row_of(class_in(pretrained_model_or_path, **hub_options(kwargs)))
        target, without = cls._choose(row, kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name not in without}
        return load_class(target).from_pretrained(pretrained_model_or_path, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Any:
        """Build the pipeline of the same family for this task over the components of another; nothing is copied.

        Args:
            kwargs: as for `DiffusionPipeline.from_pipe`. A ControlNet of `pipeline` stays; `controlnet=` adds or
                replaces it, `controlnet=None` leaves it out.

        Raises:
            ConfigError: for a class that is not here, or a family without this task.
        """
        names = [base.__name__ for base in type(pipeline).__mro__]
        known = [name for name in names if name in ROWS]
        target, without = cls._choose(row_of(known[0] if known else names[0]), kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name not in without}
        return share(load_class(target), pipeline, kwargs, without=without)

    @classmethod
    def _choose(cls, row: Row, given: dict[str, Any]) -> tuple[Row, set[str]]:
        """Return the row for this task, and the controls that the caller leaves out by None."""
        without = {name for name in CONTROLS if name in given and given[name] is None}
        present = {name for name in CONTROLS if name in given} | set(control_of(row))
        return row_for(row, cls.task, present - without), without


class AutoPipelineForText2Image(AutoPipeline):
    """Pictures from prompts, with the pipeline of a checkpoint's family."""

    task = "text-to-image"


class AutoPipelineForImage2Image(AutoPipeline):
    """Pictures from a prompt and a picture to start from, with the pipeline of a checkpoint's family."""

    task = "image-to-image"


class AutoPipelineForInpainting(AutoPipeline):
    """Pictures of which a part is painted anew, with the pipeline of a checkpoint's family."""

    task = "inpainting"


ROWS = {row.name: row for row in PIPELINES if row.family}
AUTO = {cls.task: cls for cls in (AutoPipelineForText2Image, AutoPipelineForImage2Image, AutoPipelineForInpainting)}
"""Task -> its auto pipeline."""
CONTROLS = sorted({str(row.task).removesuffix(f"-{task}") for row in PIPELINES for task in AUTO
                   if str(row.task).endswith(f"-{task}")})  # fmt: skip
"""Components that make another pipeline of a task."""


def row_of(name: str) -> Row:
    """Return the row of a pipeline class.

    Raises:
        ConfigError: naming the nearest class.
    """
    if name not in ROWS:
        hint = did_you_mean(name, ROWS) if nearest(name, ROWS) else "."
        raise ConfigError(f"The pipeline is a {name!r}, which this library does not have{hint}")
    return ROWS[name]


def control_of(row: Row) -> list[str]:
    """Return the control of a row's task, if any."""
    return [name for name in CONTROLS if str(row.task).startswith(f"{name}-")]


def task_of(row: Row) -> str:
    """Return a row's task without its control."""
    return str(row.task).removeprefix("".join(f"{name}-" for name in control_of(row)))


def row_for(row: Row, task: str, controls: set[str]) -> Row:
    """Return the row of the same family for a task under some controls.

    Raises:
        ConfigError: when the family has none, naming the tasks that it has.
    """
    wanted = "-".join([*sorted(controls), task])
    family = [other for other in PIPELINES if other.family == row.family]
    found = [other for other in family if other.task == wanted]
    if not found:
        cure = "".join(f" To go without it, pass `{name}=None`." for name in sorted(controls))
        raise ConfigError(
            f"{row.name} is of the family {row.family!r}, which has no pipeline for {wanted}; it has: "
            f"{', '.join(sorted({str(other.task) for other in family}))}.{cure}"
        )
    return found[0]


def class_in(path: str | os.PathLike, **hub: Any) -> str:
    """Return the class that a pipeline's model_index.json names.

    Args:
        hub: see `core.hub`.
    """
    if is_local(path):
        index = files.read_index(DiffusionPipeline, resolve_folder(path))
    else:
        index = read_json(resolve_file(path, DiffusionPipeline.config_name, **hub))
    return str(index.get("_class_name", "?"))


def load_class(row: Row) -> Any:
    """Return the class of a row."""
    return loading.our_class(row.name, "The pipeline")
