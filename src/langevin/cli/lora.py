"""`langevin lora`: several LoRAs merged, one taken from two models. What a command does stands in `lora_files.py`."""

from __future__ import annotations

from typing import Annotated

import typer

group = typer.Typer(
    help="LoRAs: several merged into one, or one taken from the difference of two models.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

WHERE = "a folder, a single file, a hub repository, or the shipped 'picturebook'."
Files = Annotated[
    list[str], typer.Argument(metavar="FILE[:WEIGHT] ...", help="LoRAs of any dialect, with their weights. Default: 1.")
]
Model = Annotated[str, typer.Option("--model", "-m", help=f"The model that they are for: {WHERE}")]
Tuned = Annotated[str, typer.Argument(metavar="TUNED", help=f"The model that was trained: {WHERE}")]
Base = Annotated[str, typer.Argument(metavar="BASE", help="The model that it was trained from.")]
Output = Annotated[str, typer.Option("--output", "-o", help="The .safetensors file. Nothing is overwritten.")]
Dialect = Annotated[
    str | None, typer.Option("--dialect", help="diffusers, peft or kohya. Default: what has words for it.")
]
Method = Annotated[
    str, typer.Option("--method", help="svd, cat (exact), linear, ties, dare_linear, magnitude_prune ...")
]
Rank = Annotated[int | None, typer.Option("--rank", min=1, help="Rank of the result, at most.")]
Density = Annotated[float | None, typer.Option("--density", help="The fraction of entries that pruning methods keep.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the entries that the dare methods drop.")]
Energy = Annotated[
    float | None, typer.Option("--energy", help="The fraction of each layer's difference to keep, such as 0.95.")
]
Iterations = Annotated[
    int | None, typer.Option("--niter", min=0, help="With --rank: decompose by so many iterations, which is faster.")
]
Dtype = Annotated[str, typer.Option("--dtype", help="Number format to write: float16, bfloat16 or float32.")]


@group.command("merge")
def merge_(
    files: Files,
    model: Model,
    output: Output,
    method: Method = "svd",
    rank: Rank = None,
    density: Density = None,
    seed: Seed = 0,
    dialect: Dialect = None,
) -> None:
    """Merge LoRAs into one."""
    from .lora_files import merge

    typer.echo(merge(files, model, output, method=method, rank=rank, density=density, seed=seed, dialect=dialect))


@group.command("extract")
def extract_(
    tuned: Tuned,
    base: Base,
    output: Output,
    rank: Rank = None,
    energy: Energy = None,
    niter: Iterations = None,
    dtype: Dtype = "float16",
    dialect: Dialect = None,
) -> None:
    """Take a LoRA from the difference of two models, and say what it loses."""
    from .lora_files import extract

    for line in extract(tuned, base, output, dialect=dialect, dtype=dtype, rank=rank, energy=energy, niter=niter):
        typer.echo(line)
