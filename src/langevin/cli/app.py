"""The commands and their options. What a command does stands in its own file, imported when it is called."""

from __future__ import annotations

from typing import Annotated

import typer

from .schedulers import group

app = typer.Typer(
    help="Langevin: diffusion models from the command line.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(group, name="schedulers")

Prompt = Annotated[str | None, typer.Argument(help="What the picture shows. Left out for unconditional models.")]
Model = Annotated[str, typer.Option("--model", "-m", help="A folder, a hub repository, or the shipped 'picturebook'.")]
Negative = Annotated[str | None, typer.Option("--negative-prompt", "-n", help="What the picture should not show.")]
Steps = Annotated[int | None, typer.Option("--steps", help="Denoising steps. Default: the model's.")]
Guidance = Annotated[float | None, typer.Option("--guidance-scale", "-g", help="Weight of the prompt; 1 is none.")]
Scheduler = Annotated[str | None, typer.Option("--scheduler", help="A sampler: ddim, euler-ancestral ...")]
Seed = Annotated[int | None, typer.Option("--seed", "-s", help="Image k uses seed + k. Default: drawn and printed.")]
Count = Annotated[int, typer.Option("--num-images", min=1, help="How many; several also give a contact sheet.")]
Size = Annotated[str | None, typer.Option("--size", help="WIDTHxHEIGHT or one number. Default: the model's.")]
Dtype = Annotated[str, typer.Option("--dtype", help="Number format of the weights: float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps ...; auto takes an accelerator if any.")]
Output = Annotated[str, typer.Option("--output", "-o", help="A .png file, or a folder. Existing files are kept.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the path of the picture and nothing else.")]


@app.callback()
def _commands() -> None:
    """Keep the commands named even while there are few."""


@app.command()
def generate(
    prompt: Prompt = None,
    model: Model = "picturebook",
    negative_prompt: Negative = None,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    scheduler: Scheduler = None,
    seed: Seed = None,
    num_images: Count = 1,
    size: Size = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    output: Output = "outputs",
    quiet: Quiet = False,
) -> None:
    """Draw pictures and write them as PNG files that carry their parameters."""
    from .generate import Request, run

    request = Request(
        prompt=prompt,
        model=model,
        negative_prompt=negative_prompt,
        steps=steps,
        guidance_scale=guidance_scale,
        scheduler=scheduler,
        seed=seed,
        num_images=num_images,
        size=size,
        dtype=dtype,
        device=device,
        output=output,
        quiet=quiet,
    )
    for path in run(request):
        typer.echo(path)


@app.command()
def env() -> None:
    """Print versions, devices and folders, as a bug report needs them."""
    from .env import report

    typer.echo(report())
