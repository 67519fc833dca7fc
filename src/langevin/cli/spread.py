"""`langevin generate --prompts`: one picture for every prompt of a file, drawn by several processes.

A picture depends on its prompt, its seed and the settings alone, so neither the number of processes nor who draws
which matters. Each is one call of the pipeline for one picture, written whole or not at all, and says what it was
made with; what is there from an earlier run is recognised by that.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..core.errors import InputError, check_count
from ..core.progress import progress_bar
from ..evaluation.folders import kept_in
from ..evaluation.prompt_files import read_prompts
from .calling import arguments, settled
from .crew import Crew, Outcome
from .fingerprint import fingerprint
from .loras import parse as parse_loras
from .loras import shipped
from .model import controlnet_of, pick_class, pick_device
from .output import Place, free, overview, put, slug
from .request import Request, check, find_scheduler, flag, parse_size, place_of
from .sources import read

BARRED = ("prompt", "grid", "image", "mask", "outpaint", "strength")
"""Options that are for a single prompt."""
OF_THE_MODEL = {"scheduler", "scheduler_config", "width", "height"}
"""What a picture says that is known only when a model is loaded; what was asked of these is kept in "asked"."""
FEW = 36
"""Pictures that a contact sheet shows."""
SHEET = "sheet.png"
LISTED = 5
CONTINUE = "The same command draws what is lacking."
"""Pictures that a message lists; the others are counted."""


@dataclass(frozen=True)
class Picture:
    """One picture of the list: its request, and the file that it is for."""

    request: Request
    path: Path

    @property
    def task(self) -> dict[str, Any]:
        """What a process must know of it."""
        return {"prompt": self.request.prompt, "seed": self.request.seed, "path": str(self.path)}


def run(request: Request) -> tuple[list[Path], str]:
    """Draw what is missing; return the paths of all pictures that there are, and what is lacking or "".

    Raises:
        LangevinError: for anything in the request that cannot be done, and for pictures in the folder that are not
            those of this request, before a model is loaded.
    """
    pictures = listed(request)
    for picture in pictures:
        check(picture.request)
    read(request)
    cls = pick_class(request)
    calls = [arguments(cls, picture.request) for picture in pictures]
    devices = places(request)
    threads = (request.threads or 1) if devices[0] == "cpu" else None
    stamp = stamped(request, devices[0], threads)
    wanted = [
        settled(cls, picture.request, call, picture.request.seed or 0) | stamp
        for picture, call in zip(pictures, calls, strict=True)
    ]
    todo = missing(pictures, wanted, overwrite=request.overwrite)
    begins = [
        {
            "request": asdict(replace(request, device=device, num_images=1, quiet=True)),
            "stamp": stamp,
            "threads": threads,
        }
        for device in devices[: len(todo)]
    ]
    if not request.quiet:
        print(foretold(request, len(pictures), len(todo), len(begins), threads), file=sys.stderr)
    started = time.perf_counter()
    try:
        faults = draw(todo, begins, there=len(pictures) - len(todo), quiet=request.quiet)
    except KeyboardInterrupt:
        print(f"\n{CONTINUE}", file=sys.stderr)
        raise
    if not request.quiet and todo:
        took = time.perf_counter() - started
        print(f"{len(todo) - len(faults)} pictures drawn in {took:.1f} s, loading included", file=sys.stderr)
    paths = [picture.path for picture in pictures if picture.path not in faults]
    if not faults and 1 < len(pictures) <= FEW:
        paths.append(contact_sheet(paths, anew=bool(todo)))
    return paths, lacking(faults)


def listed(request: Request) -> list[Picture]:
    """Return the pictures that a request asks for; picture k has the seed `seed + k`.

    Raises:
        InputError: for options that are for a single prompt, and for a file of prompts that cannot be used.
    """
    for option in BARRED:
        if getattr(request, option) is not None:
            raise InputError(f"{flag(option)} is for a single prompt; leave it out, or leave out --prompts.")
    place = Place.of(request.output)
    if place.name is not None:
        raise InputError(f"--output {request.output}: --prompts gives many pictures; name a folder.")
    count = request.num_images
    found = []
    for number, prompt in enumerate(read_prompts(str(request.prompts))):
        for variant in range(count):
            name = f"{number + 1:04d}-{slug(prompt.text)}{f'-{variant + 1}' if count > 1 else ''}.png"
            seed = (request.seed or 0) + number * count + variant
            found.append(Picture(replace(request, prompt=prompt.text, seed=seed, num_images=1), place.folder / name))
    return found


def places(request: Request) -> list[str]:
    """Return the device of every process: accelerators in turn, unless one was named.

    Raises:
        InputError: for a device that is not here.
    """
    count = 1 if request.processes is None else request.processes
    check_count("--processes", count)
    device = pick_device(request.device)
    if device == "cpu" or ":" in device or torch.accelerator.device_count() < 2:
        return [device] * count
    return [f"{device}:{k % torch.accelerator.device_count()}" for k in range(count)]


def stamped(request: Request, device: str, threads: int | None) -> dict[str, Any]:
    """Return what every picture says beside what it was made with: enough to tell whether it is of this request.

    Which of several accelerators drew it is not said, since that is chance.
    """
    size = parse_size(request.size)
    asked = {"scheduler": request.scheduler and find_scheduler(request.scheduler), "size": size and list(size)}
    named = [place_of(request.model), controlnet_of(request), request.control, request.ip_adapter, request.image_prompt]
    named += [shipped(one.where) for one in parse_loras(request.lora)] + [shipped(one) for one in request.embedding]
    local = [Path(name).expanduser() for name in named if name]
    stamp = {"asked": asked, "device": device.split(":")[0]}
    stamp["fingerprint"] = fingerprint(path for path in local if path.exists())
    return stamp if threads is None else {**stamp, "threads": threads}


def missing(pictures: Sequence[Picture], wanted: Sequence[dict[str, Any]], *, overwrite: bool) -> list[Picture]:
    """Return the pictures that are to be drawn.

    Args:
        wanted: what each picture says, if it is of this request.
        overwrite: draw those anew that say something else.

    Raises:
        InputError: when there are such and they are to be kept, or pictures of another list.
    """
    todo, others = [], []
    for picture, facts in zip(pictures, wanted, strict=True):
        difference = "" if not picture.path.exists() else differs(picture.path, facts)
        if difference:
            others.append(f"{picture.path.name} {difference}")
        if difference or not picture.path.exists():
            todo.append(picture)
    folder, names = pictures[0].path.parent, {picture.path.name for picture in pictures}
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    strange = [name for name in there if re.fullmatch(r"\d{4,}-.*\.png", name) and name not in names]
    others += [f"{name} is of another list of prompts" for name in strange]
    if others and not overwrite:
        raise InputError(
            f"{folder} holds {len(others)} pictures that are not of this request: {shortened(others)}. Choose another "
            "--output, or draw those of this list anew with --overwrite."
        )
    if strange:
        print(f"Kept: {shortened(strange)}; they are of another list of prompts.", file=sys.stderr)
    return todo


def differs(path: Path, wanted: dict[str, Any]) -> str:
    """Return how a picture that is there differs from what is wanted, "" when it does not."""
    from PIL import Image

    try:
        found = kept_in(path)
        with Image.open(path) as picture:
            picture.verify()
    except (InputError, OSError, SyntaxError, ValueError):
        return "is no whole picture"
    if "langevin" not in found:
        return "does not say what it was made with"
    old, new = compared(found), compared(json.loads(json.dumps(wanted)))
    names = sorted(old.keys() | new.keys())
    pairs = [(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]
    shown = ", ".join(f"{name} {_short(before)}, now {_short(now)}" for name, before, now in pairs)
    return f"was made with {shown}" if pairs else ""


def compared(facts: dict[str, Any]) -> dict[str, Any]:
    """Return what two pictures of one request say alike."""
    asked = {flag(name): value for name, value in facts.get("asked", {}).items()}
    return {name: value for name, value in facts.items() if name not in (*OF_THE_MODEL, "asked")} | asked


def _short(value: Any) -> str:
    return repr(value) if len(repr(value)) < 60 else f"{repr(value)[:57]}..."


def foretold(request: Request, count: int, todo: int, processes: int, threads: int | None) -> str:
    """Return what is about to happen, as text."""
    plural = "es" * (processes != 1)
    lines = [f"{count} pictures, {count - todo} of them there; {todo} to draw in {processes} process{plural}"]
    cores = os.cpu_count() or 1
    used = processes * (threads or 0)
    if threads and todo and used < min(cores, todo * threads):
        lines.append(f"{used} of {cores} cores will be used; --processes {cores} uses all, --threads with less memory")
    if used > cores:
        lines.append(f"{used} threads share {cores} cores, which is slow; ask for fewer --processes or --threads")
    return "\n".join(lines)


def draw(
    todo: Sequence[Picture], begins: Sequence[dict[str, Any]], *, there: int = 0, quiet: bool = False
) -> dict[Path, str]:
    """Draw pictures in as many processes as there are `begins`, and return why those are lacking that are.

    Args:
        there: pictures that need not be drawn, for the progress bar.

    Raises:
        InputError: when no process can begin, or the first pictures all fail for one reason.
    """
    faults: dict[Path, str] = {}
    drawn = False
    with progress_bar(total=there + len(todo), initial=there, unit="picture", disable=quiet) as bar:
        for outcome in Crew([picture.task for picture in todo], begins).work():
            report(outcome, todo, bar)
            if outcome.task is None:
                continue
            path = todo[outcome.task].path
            for partial in path.parent.glob(f".{path.name}.*.partial"):
                with suppress(OSError):
                    partial.unlink()
            if outcome.fault is not None:
                faults[path] = outcome.fault
                if not drawn and not there and Counter(faults.values())[outcome.fault] > 1:
                    raise InputError(f"The first pictures cannot be drawn: {outcome.fault}")
                continue
            drawn = True
            bar.update()
    return faults


def report(outcome: Outcome, todo: Sequence[Picture], bar: Any) -> None:
    """Print above the bar what was said."""
    said = [outcome.said] if outcome.said else []
    said += [outcome.fault] if outcome.fault else []
    where = "" if outcome.task is None else f"{todo[outcome.task].path.name}: "
    for text in said:
        bar.write(f"{where}{text}", file=sys.stderr)


def lacking(faults: dict[Path, str]) -> str:
    """Return which pictures are lacking and why, "" when none is."""
    if not faults:
        return ""
    shown = shortened([f"{path.name} ({why})" for path, why in faults.items()])
    return f"{len(faults)} pictures are lacking: {shown}. {CONTINUE}"


def shortened(texts: Sequence[str]) -> str:
    """Return the first of many texts, and how many more there are."""
    more = f" and {len(texts) - LISTED} more" if len(texts) > LISTED else ""
    return f"{'; '.join(texts[:LISTED])}{more}"


def contact_sheet(paths: Sequence[Path], *, anew: bool) -> Path:
    """Write a contact sheet beside pictures and return its path; one that this wrote before is replaced.

    Args:
        anew: whether pictures have changed since.
    """
    from PIL import Image

    path = paths[0].parent / SHEET
    facts = [kept_in(one) for one in paths]
    seeds = [one["seed"] for one in facts]
    if path.exists():
        before = None
        with suppress(InputError):
            before = kept_in(path).get("seeds")
        if before == seeds and not anew:
            return path
        path = free(path) if before is None else path
    images = []
    for one in paths:
        with Image.open(one) as picture:
            images.append(picture.copy())
    sheet = overview(images)
    said = {**facts[0], "prompt": None, "seeds": seeds, "width": sheet.width, "height": sheet.height}
    return put(path, sheet, said)
