"""The commands and their options. What a command does stands in its own file, imported when it is called."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .data import group as data
from .lora import group as loras
from .schedulers import Json, group

app = typer.Typer(
    help="Langevin: diffusion models from the command line.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(group, name="schedulers")
app.add_typer(loras, name="lora")
app.add_typer(data, name="data")

Prompt = Annotated[str | None, typer.Argument(help="What the picture shows. Left out for unconditional models.")]
Model = Annotated[
    str, typer.Option("--model", "-m", help="A folder, a single file, a hub repository, or the shipped 'picturebook'.")
]
Negative = Annotated[str | None, typer.Option("--negative-prompt", "-n", help="What the picture should not show.")]
Syntax = Annotated[
    str,
    typer.Option(
        "--prompt-syntax",
        help="How prompts are read: a1111 '(word:1.3)', compel 'word++', comfy '(word:1.3)', or plain as written.",
        show_default=True,
    ),
]
Picture = Annotated[str | None, typer.Option("--image", help="A picture to start from, a file or an address.")]
Mask = Annotated[str | None, typer.Option("--mask", help="With --image: white is painted anew, black is kept.")]
Outpaint = Annotated[
    str | None,
    typer.Option(
        "--outpaint",
        metavar="LEFT,RIGHT,TOP,BOTTOM",
        help="With --image: margins in pixels to paint around the picture, which is kept.",
    ),
]
Strength = Annotated[
    float | None, typer.Option("--strength", help="How much of --image changes, 0 to 1. Default: the pipeline's.")
]
Control = Annotated[str | None, typer.Option("--control", help="A picture that a ControlNet follows, such as edges.")]
ControlNet = Annotated[
    str | None,
    typer.Option(
        "--controlnet", metavar="FOLDER_OR_REPO", help="The ControlNet. The shipped model has its own, for edges."
    ),
]
ControlScale = Annotated[
    float | None, typer.Option("--control-scale", help="Weight of the ControlNet. Default: the pipeline's.")
]
Edges = Annotated[bool, typer.Option("--edges", help="--control is a photo or drawing: follow its edges (Canny).")]
ImagePrompt = Annotated[
    str | None, typer.Option("--image-prompt", help="With --ip-adapter: a picture that speaks beside the prompt.")
]
IPAdapter = Annotated[
    str | None,
    typer.Option("--ip-adapter", metavar="FILE_OR_FOLDER", help="The IP-Adapter, with image_encoder beside the file."),
]
IPAdapterScale = Annotated[
    float | None, typer.Option("--ip-adapter-scale", help="Weight of --image-prompt. Default: 1.")
]
Loras = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE[:SCALE]",
        help="A LoRA of any dialect: a file, folder or hub repository, and its weight. May be given several times. "
        "The shipped model has 'sepia'.",
    ),
]
Embeddings = Annotated[
    list[str] | None,
    typer.Option(
        "--embedding",
        metavar="FILE",
        help="Learned words (textual inversion): a file, folder or hub repository. May be given several times. "
        "The shipped model has 'mika', for the word <mika>.",
    ),
]
Grid = Annotated[
    str | None,
    typer.Option(
        "--grid",
        metavar="AXES",
        help="Every combination, and a labelled sheet: 'guidance_scale=3,5,7 x scheduler=euler,ddim x seed=1,2'. "
        "Axes: control_scale, guidance_scale, negative_prompt, prompt, scheduler, seed, steps, strength; at most 3. "
        "Values with commas go in double quotes.",
    ),
]
Steps = Annotated[int | None, typer.Option("--steps", help="Denoising steps. Default: the model's.")]
Guidance = Annotated[float | None, typer.Option("--guidance-scale", "-g", help="Weight of the prompt; 1 is none.")]
Scheduler = Annotated[str | None, typer.Option("--scheduler", help="A sampler: ddim, euler-ancestral ...")]
Seed = Annotated[int | None, typer.Option("--seed", "-s", help="Image k uses seed + k. Default: drawn and printed.")]
Count = Annotated[int, typer.Option("--num-images", min=1, help="How many; several also give a contact sheet.")]
Size = Annotated[str | None, typer.Option("--size", help="WIDTHxHEIGHT or a number. Default: --image's or the model's")]
Dtype = Annotated[str, typer.Option("--dtype", help="Number format of the weights: float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps ...; auto takes an accelerator if any.")]
Output = Annotated[str, typer.Option("--output", "-o", help="A .png file, or a folder. Existing files are kept.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the path of the picture and nothing else.")]
Many = Annotated[
    str | None,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help="Draw every prompt of a file: a .txt with one a line, or a .tsv or .csv with a column Prompt. Names of "
        "pictures are number and prompt; called again, it draws what is missing. --seed is 0 unless given.",
    ),
]
Processes = Annotated[
    int | None,
    typer.Option("--processes", help="With --prompts: draw in that many processes, one on each GPU. Default: 1."),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", help="With --prompts, on a CPU: threads of each process, which decide last bits. Default: 1."
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="With --prompts: draw pictures that are there with other settings anew.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Draw nothing: tell what memory and, roughly, what time it would take.")
]


@app.command()
def generate(
    prompt: Prompt = None,
    prompts: Many = None,
    model: Model = "picturebook",
    negative_prompt: Negative = None,
    prompt_syntax: Syntax = "plain",
    image: Picture = None,
    mask: Mask = None,
    outpaint: Outpaint = None,
    strength: Strength = None,
    control: Control = None,
    controlnet: ControlNet = None,
    control_scale: ControlScale = None,
    edges: Edges = False,
    image_prompt: ImagePrompt = None,
    ip_adapter: IPAdapter = None,
    ip_adapter_scale: IPAdapterScale = None,
    lora: Loras = None,
    embedding: Embeddings = None,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    scheduler: Scheduler = None,
    seed: Seed = None,
    num_images: Count = 1,
    grid: Grid = None,
    size: Size = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    output: Output = "outputs",
    processes: Processes = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Draw pictures and write them as PNG files that carry their parameters."""
    options = {**locals(), "lora": tuple(lora or ()), "embedding": tuple(embedding or ())}
    from .request import Request

    if dry_run:
        from .generate import forecast

        typer.echo(forecast(Request(**options)))
        return
    if prompts is not None:
        from .spread import run as spread

        paths, lacking = spread(Request(**options))
    else:
        from .generate import run

        paths, lacking = run(Request(**options)), ""
    for path in paths:
        typer.echo(path)
    if lacking:
        typer.echo(f"langevin: {lacking}", err=True)
        raise typer.Exit(1)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A single file, its address on the hub, or a folder.")],
    target: Annotated[str, typer.Argument(help="A folder, or a .safetensors or .ckpt file. Nothing is overwritten.")],
    dtype: Annotated[str, typer.Option(help="Number format to write: float16 ...; auto keeps the source's.")] = "auto",
    layout: Annotated[str | None, typer.Option(help="Family to write as. Default: told from the networks.")] = None,
    original_config: Annotated[str | None, typer.Option(help="The authors' YAML file of a single file.")] = None,
    config: Annotated[str | None, typer.Option(help="A folder with the configurations of a single file.")] = None,
    extract_ema: Annotated[
        bool, typer.Option("--extract-ema", help="Take the moving averages of the UNet's weights.")
    ] = False,
    prediction_type: Annotated[str | None, typer.Option(help="epsilon or v_prediction, if not as told.")] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="FOLDER_OR_REPO", help="For weights of KerasCV (.h5): a pipeline that has the rest."),
    ] = None,
    keras_text_encoder: Annotated[
        str | None, typer.Option(metavar="FILE", help="With --base: KerasCV's text encoder.")
    ] = None,
    placeholder_token: Annotated[
        list[str] | None, typer.Option(help="With --base: a word that it learned. May be given several times.")
    ] = None,
) -> None:
    """Convert a checkpoint in its authors' single file to a folder, or a folder to such a file."""
    options = {**locals(), "placeholder_token": placeholder_token or ()}
    from .convert import run

    what, written = run(**options)
    typer.echo(what)
    for line in written:
        typer.echo(f"wrote {line}")


@app.command("inspect")
def inspect_(
    path: Annotated[
        str,
        typer.Argument(metavar="FILE_OR_FOLDER", help="A .safetensors, .ckpt, .bin or .pt file, or a model's folder."),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Also say whether it fits this model: a folder, a file, or the shipped 'picturebook'."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Say what a weight file or a model's folder is, from its header alone; status 1 when something is wrong."""
    from .inspect import report

    text, ok = report(path, model, as_json=json)
    typer.echo(text)
    if not ok:
        raise typer.Exit(1)


@app.command()
def env() -> None:
    """Print versions, devices and folders, as a bug report needs them."""
    from .env import report

    typer.echo(report())


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="What is trained, such as dreambooth_lora; a wrong name lists them. 'report' and the folder of a run "
            "write its report anew."
        ),
    ],
    flags: Annotated[
        list[str] | None, typer.Argument(metavar="--FLAG=VALUE ...", help="See `langevin train RECIPE --help`.")
    ] = None,
) -> None:
    """Train a model, or what is added to one, on pictures."""
    from ..training.recipes import run as trained
    from ..training.recipes import tell

    tell(trained(recipe.replace("-", "_"), flags or [], command=f"langevin train {recipe}"))


Eye = Annotated[
    str,
    typer.Option(
        "--clip", metavar="FOLDER_OR_REPO", help="The CLIP that judges, such as openai/clip-vit-base-patch16."
    ),
]
FeaturesOf = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER_OR_REPO",
        help="What FID and its kin see with: a CLIP, 'checker', or a file of Inception's weights. Default: --clip.",
    ),
]
PromptFile = Annotated[
    str | None, typer.Option("--prompts", metavar="FILE", help="A .tsv or .csv with a column Prompt, or a .txt.")
]
Category = Annotated[str | None, typer.Option(help="Only the prompts with this value in the column Category.")]
Against = Annotated[str | None, typer.Option(metavar="FOLDER", help="Pictures that these should resemble.")]
Resamples = Annotated[int, typer.Option(help="Resamples behind an interval.")]
Batch = Annotated[int, typer.Option(min=1, help="Pictures at a time.")]
DrawSeed = Annotated[int, typer.Option("--seed", help="Seed of the resamples.")]


@app.command()
def evaluate(
    folder: Annotated[str, typer.Argument(help="The pictures.")],
    against: Against = None,
    prompts: PromptFile = None,
    category: Category = None,
    edited_from: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="The pictures before an edit, with captions, by the same names."),
    ] = None,
    clip: Eye = "picturebook",
    features: FeaturesOf = None,
    batch: Batch = 32,
    resamples: Resamples = 1000,
    seed: DrawSeed = 0,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Measure pictures: CLIP score by prompt, FID, KID, precision and recall against others, each with its interval."""
    from .evaluate import Eyes, run

    eyes = Eyes(clip, features, device=device, batch=batch, resamples=resamples, seed=seed)
    result = run(folder, against=against, prompts=prompts, category=category, edited_from=edited_from, eyes=eyes)
    typer.echo(dumped(result.to_dict()) if json else result)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A folder of pictures.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Pictures of the same prompts.")],
    prompts: PromptFile = None,
    category: Category = None,
    against: Against = None,
    clip: Eye = "picturebook",
    features: FeaturesOf = None,
    batch: Batch = 32,
    resamples: Resamples = 1000,
    seed: DrawSeed = 0,
    device: Device = "auto",
    output: Output = "outputs",
    json: Json = False,
) -> None:
    """Say whether A is better than B, worse, or no difference is seen, prompt by prompt; and draw a contact sheet."""
    from .compare import run
    from .evaluate import Eyes

    eyes = Eyes(clip, features, device=device, batch=batch, resamples=resamples, seed=seed)
    result, sheet = run(first, second, prompts=prompts, category=category, against=against, output=output, eyes=eyes)
    typer.echo(dumped({**result.to_dict(), "sheet": str(sheet)}) if json else f"{result}\nsheet: {sheet}")


def dumped(facts: dict[str, Any]) -> str:
    """Return facts as JSON."""
    from json import dumps

    return dumps(facts, indent=2, ensure_ascii=False)


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def run(
    script: Annotated[str, typer.Argument(help="A Python script that imports diffusers; it runs as it is.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="What follows the script belongs to the script.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Run nothing: list what the script uses of diffusers, and what is missing.")
    ] = False,
) -> None:
    """Run a script that was written for diffusers, unchanged, on this library."""
    from .run import report
    from .run import run as started

    if not check:
        started(script, arguments or [])
    lines, status = report(script)
    typer.echo("\n".join(lines))
    raise typer.Exit(status)
