"""`langevin schedulers`: list, show, check and plot samplers. What a command does stands in `laboratory.py`."""

from __future__ import annotations

from typing import Annotated

import typer

group = typer.Typer(
    help="Samplers: what there is, what one does at every step, and whether it does it right.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Subject = Annotated[
    str,
    typer.Argument(
        metavar="NAME_OR_FILE",
        help="A class or its short name; a scheduler_config.json or its folder; or file.py:ClassName.",
    ),
]
Names = Annotated[list[str], typer.Argument(metavar="NAME_OR_FILE ...", help="As for check; several share the axes.")]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Denoising steps.")]
Options = Annotated[
    list[str] | None, typer.Option("--option", "-o", help="key=value of the class or its step, several times.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")]
Space = Annotated[
    str | None, typer.Option("--space", help="Where samples of a foreign class live: preserving, exploding or flow.")
]
Picture = Annotated[str, typer.Option("--output", help="The PNG file. Existing files are kept.")]


@group.command("list")
def list_() -> None:
    """Print every sampler: space, outputs that it reads, calls per step, noise, and who shares its configuration."""
    from .laboratory import overview

    typer.echo(overview())


@group.command()
def show(name: Subject, steps: Steps = 10, option: Options = None) -> None:
    """Print the levels and the coefficients of a run."""
    from .laboratory import table

    typer.echo(table(name, steps, option or []))


@group.command()
def check(name: Subject, steps: Steps = 20, json: Json = False, option: Options = None, space: Space = None) -> None:
    """Run a sampler over data whose diffusion is known exactly, and say what is wrong with it; status 1 on faults."""
    from .laboratory import examine

    text, ok = examine(name, steps, option or [], space=space, as_json=json)
    typer.echo(text)
    if not ok:
        raise typer.Exit(1)


@group.command()
def plot(name: Names, output: Picture, steps: Steps = 20, option: Options = None) -> None:
    """Draw noise levels by step and errors by network calls into a PNG file."""
    from .laboratory import draw

    typer.echo(draw(name, steps, option or [], output))
