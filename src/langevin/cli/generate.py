"""`langevin generate`: from the words on the command line to PNG files."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.progress import progress_bar
from ..pipelines.base import DiffusionPipeline
from . import grid
from .calling import arguments, counted, describe, draw
from .model import build_scheduler, load, pick_class
from .output import Place, write
from .request import Request, check, find_scheduler, parse_size
from .sheet import contact_sheet
from .sources import Sources, read

if TYPE_CHECKING:
    from ..optimization.estimate import Estimate


def run(request: Request) -> list[Path]:
    """Generate what is asked and return the paths of the files written.

    Raises:
        LangevinError: for anything in the request that cannot be done, before the model is loaded where possible.
    """
    place = Place.of(request.output)
    axes = grid.parse(request.grid) if request.grid is not None else []
    cells = grid.cells(request, axes)
    for cell in cells:
        check(cell)
    sources = read(request)
    if request.seed is None:
        drawn = secrets.randbelow(2**32)
        cells = [cell if cell.seed is not None else replace(cell, seed=drawn) for cell in cells]
    if axes and not request.quiet:
        print(grid.summary(axes), file=sys.stderr)
    cls = pick_class(request)
    calls = [arguments(cls, cell) for cell in cells]

    started = time.perf_counter()
    pipe = load(cls, request)
    loaded = time.perf_counter()
    if axes:
        paths = draw_grid(pipe, cells, calls, sources, axes, place)
        what = f"{len(cells)} pictures"
    else:
        images, facts = draw_one(pipe, cells[0], calls[0], sources)
        paths = write(images, facts, place)
        plural, (width, height) = "s" * (len(images) > 1), images[0].size
        what = f"{len(images)} picture{plural} of {width}x{height}, seed {cells[0].seed}"
    if not request.quiet:
        done = time.perf_counter() - loaded
        print(f"{what}: loaded in {loaded - started:.1f} s, drawn in {done:.1f} s", file=sys.stderr)
    return paths


def draw_one(
    pipe: DiffusionPipeline,
    request: Request,
    call: dict[str, Any],
    sources: Sources,
    scheduler: Any = None,
) -> tuple[list[Any], list[dict[str, Any]]]:
    """Return the pictures of one request, whose seed is known, and the facts of each.

    Args:
        scheduler: the request's, where it is built already.
    """
    take_scheduler(pipe, request, scheduler)
    seed = request.seed or 0
    pictures, crop = sources.arguments(pipe, parse_size(request.size))
    images = draw(pipe, call | pictures, seed=seed, count=request.num_images)
    images = images if crop is None else crop.apply(images)
    return images, [describe(pipe, request, call, image, seed + k) for k, image in enumerate(images)]


def take_scheduler(pipe: DiffusionPipeline, request: Request, scheduler: Any = None) -> None:
    """Give a pipeline the scheduler that is asked for, which may be built already."""
    if request.scheduler:
        pipe.register_modules(scheduler=scheduler or build_scheduler(pipe, find_scheduler(request.scheduler)))


def forecast(request: Request) -> Estimate:
    """Return what a request would need, without drawing it.

    Raises:
        LangevinError: for anything in the request that cannot be done.
    """
    check(request)
    sources, cls = read(request), pick_class(request)
    call = arguments(cls, request)
    pipe = load(cls, request)
    take_scheduler(pipe, request)
    pictures, _ = sources.arguments(pipe, parse_size(request.size))
    return pipe.estimate(**call, **pictures, **counted(pipe, request.num_images))


def draw_grid(
    pipe: DiffusionPipeline,
    cells: Sequence[Request],
    calls: Sequence[dict[str, Any]],
    sources: Sources,
    axes: Sequence[grid.Axis],
    place: Place,
) -> list[Path]:
    """Draw one picture per request, write each as soon as it is done, and a sheet at the end."""
    schedulers: dict[str | None, Any] = {None: None}
    for name in {cell.scheduler for cell in cells if cell.scheduler}:
        schedulers[name] = build_scheduler(pipe, find_scheduler(name))
    pipe.set_progress_bar_config(disable=True)
    paths: list[Path] = []
    images: list[Any] = []
    first: dict[str, Any] = {}
    with progress_bar(total=len(cells), unit="picture", disable=cells[0].quiet) as bar:
        for cell, call, ending in zip(cells, calls, grid.endings(axes), strict=True):
            (image,), (facts,) = draw_one(pipe, cell, call, sources, schedulers[cell.scheduler])
            first = first or facts
            paths.append(place.save(image, facts, place.base(first), ending))
            images.append(image)
            bar.update()
    sheet = contact_sheet(images, axes)
    tried = {axis.name: list(axis.values) for axis in axes}
    facts = {**first, "grid": tried, "width": sheet.width, "height": sheet.height}
    return [*paths, place.save(sheet, facts, place.base(first), "sheet")]
