"""`langevin lora`: several LoRAs merged into one, and one taken from the difference of two models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

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
    for line in extract(tuned, base, output, dialect=dialect, dtype=dtype, rank=rank, energy=energy, niter=niter):
        typer.echo(line)


def merge(
    files: Sequence[str],
    model: str,
    output: str,
    *,
    method: str = "svd",
    rank: int | None = None,
    density: float | None = None,
    seed: int = 0,
    dialect: str | None = None,
) -> str:
    """Merge LoRAs for a model and return the path of the file that was written; see `adapters.merging.merge`."""
    from ..adapters import lora
    from ..adapters.files import open_source
    from ..core.rng import seeded
    from .loras import parse, shipped

    place = writable(output)
    models, given = networks(model), parse(files)
    for one in given:
        lora.load(models, open_source(shipped(one.where)), name=one.name)
    names = [one.name for one in given]
    name = lora.free_name(names, "merged")
    options: dict[str, Any] = {"combination_type": method, "svd_rank": rank, "density": density}
    if method.startswith("dare"):
        options["generator"] = seeded(seed)
    lora.combine(models, names, [one.scale for one in given], name, **options)
    lora.save(models, place.parent, name=name, dialect=dialect, weight_name=place.name)
    return str(place)


def extract(
    tuned: str, base: str, output: str, *, dialect: str | None = None, dtype: str = "float16", **how: Any
) -> list[str]:
    """Write a LoRA and return what it keeps of each component, and the path of the file.

    Args:
        how: rank, energy and niter of `adapters.extraction.extract`.

    Raises:
        InputError: the two models share no network, or all of these are equal.
    """
    from ..adapters import extraction, lora
    from ..core.errors import InputError
    from ..models.placement import resolve_dtype

    place, kind = writable(output), resolve_dtype(dtype, None)
    ours, theirs = networks(tuned), networks(base)
    adapter, lines = {}, []
    for component, network in ours.items():
        if component in theirs and differ(network, theirs[component]):
            adapter[component], report = extraction.extract(network, theirs[component], dtype=kind, **how)
            ranks = [row.rank for row in report.layers]
            lines.append(
                f"{component}: {len(ranks)} layers of rank {min(ranks)} to {max(ranks)}, "
                f"{report.energy:.1%} of the difference, error {report.error:.2e}"
            )
    if not adapter:
        raise InputError(f"{tuned} and {base} do not differ in any of: {', '.join(ours)}; there is nothing to extract.")
    lora.write(adapter, place.parent, dialect=dialect, weight_name=place.name)
    return [*lines, str(place)]


def writable(output: str) -> Path:
    """Return the path of a result.

    Raises:
        InputError: for a name that is no .safetensors file, or that is there already.
    """
    from ..core.errors import InputError
    from .convert import refuse_existing

    path = Path(output).expanduser()
    if path.suffix != ".safetensors":
        raise InputError(f"--output is {output}; name a .safetensors file.")
    refuse_existing(path)
    return path


def networks(model: str) -> dict[str, Any]:
    """Return the networks of a model that adapters can change, by component."""
    from torch import nn

    from ..pipelines.base import DiffusionPipeline
    from ..pipelines.lora import COMPONENTS
    from .convert import parts_of, read_file
    from .model import is_single_file
    from .request import place_of

    place = place_of(model)
    thing = read_file(place)[0] if is_single_file(place) else DiffusionPipeline.from_pretrained(place)
    return {name: part for name, part in parts_of(thing).items() if name in COMPONENTS and isinstance(part, nn.Module)}


def differ(one: Any, other: Any) -> bool:
    """Tell whether two networks have other names or values."""
    import torch

    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() != theirs.keys() or any(not torch.equal(value, theirs[name]) for name, value in mine.items())
