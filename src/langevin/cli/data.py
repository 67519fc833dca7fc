"""`langevin data`: what is wrong with pictures that are to be trained on. The work is done in `training/data/`."""

from __future__ import annotations

import json as notation
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .schedulers import Json

if TYPE_CHECKING:
    from ..core.records import Records
    from ..training.data.doctor import Report

group = typer.Typer(
    help="Data to train on: whether it is whole, and what to mend.", no_args_is_help=True, rich_markup_mode=None
)
CELLS = 120
"""Pictures on a contact sheet, those that lose most."""

Source = Annotated[
    str,
    typer.Argument(metavar="FOLDER_OR_DATASET", help="A folder of pictures, a manifest, or a dataset of the hub."),
]
Resolution = Annotated[int, typer.Option("--resolution", min=8, help="Pixels per side that training will have.")]
Least = Annotated[
    int, typer.Option("--step-size", min=1, help="Examples of an optimizer step; buckets with fewer are dissolved.")
]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        metavar="FOLDER_OR_REPO",
        help="Count the tokens of captions: a tokenizer's folder, a pipeline's, or the shipped 'picturebook'.",
    ),
]
Images = Annotated[
    list[str] | None,
    typer.Option("--image-column", help="Column of the pictures; several for tasks with further pictures."),
]
Caption = Annotated[str, typer.Option("--caption-column", help="Column of the captions.")]
Plain = Annotated[bool, typer.Option("--no-captions", help="Training needs no captions, as DreamBooth.")]
Against = Annotated[
    str | None, typer.Option("--against", metavar="FOLDER_OR_DATASET", help="Another split, to share no picture with.")
]
Split = Annotated[str, typer.Option("--split", help="Of a hub dataset.")]
Other = Annotated[str, typer.Option("--against-split", help="Of a hub dataset after --against.")]
Sheet = Annotated[
    str | None,
    typer.Option("--sheet", metavar="FILE.png", help="Draw what the buckets cut away. Existing files are kept."),
]
Write = Annotated[
    str | None,
    typer.Option(
        "--write",
        metavar="MANIFEST.jsonl",
        help="Write the good examples, for --train_data_dir. Existing files are kept.",
    ),
]


@group.command()
def check(
    source: Source,
    resolution: Resolution = 512,
    step_size: Least = 1,
    tokenizer: Tokenizer = None,
    image_column: Images = None,
    caption_column: Caption = "text",
    no_captions: Plain = False,
    split: Split = "train",
    against: Against = None,
    against_split: Other = "test",
    sheet: Sheet = None,
    write: Write = None,
    json: Json = False,
) -> None:
    """Say everything that is wrong with a set of pictures, with the cure, and change nothing; status 1 on errors."""
    from ..training.data import doctor

    image, *further = image_column or ["image"]
    records = listed(source, split, caption_column)
    if write is not None:
        doctor.check_manifest(records, Path(write))
    if sheet is not None:
        free_picture(Path(sheet))
    report = doctor.examine(
        records,
        image=image,
        further=further,
        caption=None if no_captions else caption_column,
        resolution=resolution,
        least=step_size,
        tokenizer=tokenizer_of(tokenizer) if tokenizer else None,
        against=listed(against, against_split, caption_column) if against else None,
    )
    typer.echo(notation.dumps(report.facts(), indent=1) if json else report)
    written = []
    if sheet is not None:
        written.append(draw(report, image, Path(sheet)))
    if write is not None:
        written.append(f"{write}: {doctor.write(report, Path(write))} good examples of {len(report.seen)}")
    for line in written:
        typer.echo(f"wrote {line}", err=json)
    if not report.ok:
        raise typer.Exit(1)


def listed(source: str, split: str, caption: str) -> Records:
    """Return the examples of a folder, a manifest or a hub dataset.

    Raises:
        InputError: when there is none, naming the nearest folder.
    """
    from ..core.errors import InputError, LangevinError, nearest
    from ..core.files import is_local
    from ..core.records import read_folder, read_hub

    if is_local(Path(source).expanduser()) or source.endswith(".jsonl"):
        return read_folder(source, caption=caption)
    try:
        return read_hub(source, split=split)
    except LangevinError as error:
        place = Path(source)
        beside = [path.name for path in place.parent.iterdir() if path.is_dir()] if place.parent.is_dir() else []
        near = nearest(place.name, beside)
        meant = "" if near is None else f" (did you mean {str(place.with_name(near))!r}?)"
        raise InputError(f"{source} is neither a folder{meant} nor a dataset that can be loaded. {error}") from error


def tokenizer_of(name: str) -> Any:
    """Return the tokenizer of a folder, a pipeline or a hub repository.

    Raises:
        InputError: when there is none.
    """
    from transformers import AutoTokenizer

    from ..core.errors import InputError
    from .request import place_of

    folder = place_of(name)
    place = str(Path(folder, "tokenizer")) if Path(folder, "tokenizer").is_dir() else folder
    try:
        return AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise InputError(f"No tokenizer can be loaded from {name} ({first}); name a folder that has one.") from error


def free_picture(file: Path) -> None:
    """Raise InputError unless a PNG file can be written there."""
    from ..core.errors import InputError

    if file.suffix.lower() != ".png":
        raise InputError(f"The contact sheet is a .png file; {file} is none.")
    if file.exists():
        raise InputError(f"{file} exists and is kept; name another file.")


def draw(report: Report, image: str, file: Path) -> str:
    """Draw the contact sheet of what buckets cut away, and return what was written."""
    from ..core.files import atomic_file
    from ..training.data.buckets import sheet
    from ..training.data.framing import opened

    good = [(one, bucket) for bucket, members in report.buckets().items() for one in members]
    good.sort(key=lambda pair: (-(pair[0].cut or 0), pair[0].record.name))
    shown = [
        (one.record.name, partial(opened, one.record.columns[image], one.record.name), bucket)
        for one, bucket in good[:CELLS]
    ]
    if not shown:
        return f"no {file}: there is no good picture to show"
    with atomic_file(file) as unfinished:
        sheet(shown).save(unfinished, "PNG")
    return f"{file}: {len(shown)} of {len(good)} pictures, those that lose most first"
