"""Convert a checkpoint in its authors' single file to a folder, with the documented flags.

    python scripts/convert_original_stable_diffusion_to_diffusers.py --checkpoint_path model.ckpt --dump_path folder

`langevin convert` does the same and more, with fewer flags: most of what had to be said is told from the file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from langevin.cli.convert import read_file, write_folder
from langevin.core.errors import InputError, LangevinError
from langevin.pipelines.assembly import SCHEDULERS

TEXT_ENCODERS = {"FrozenCLIPEmbedder": "stable_diffusion", "FrozenOpenCLIPEmbedder": "stable_diffusion_2"}
UNCLIP = {"txt2img": "StableUnCLIPPipeline", "img2img": "StableUnCLIPImg2ImgPipeline"}


def arguments() -> argparse.ArgumentParser:
    """Return the documented flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--checkpoint_path", required=True, help="The single file, or its address on the hub.")
    add("--original_config_file", help="The YAML file of the authors. Needed for unpublished architectures only.")
    add("--config_files", help="A folder with the configurations of the components.")
    add("--num_in_channels", type=int, help="Input channels of the UNet. Default: the file's.")
    add("--scheduler_type", choices=sorted(SCHEDULERS), help="The scheduler to save. Default: the checkpoint's own.")
    add("--pipeline_type", choices=[*TEXT_ENCODERS], help="Checked against the file, which tells it itself.")
    add("--image_size", type=int, help="Side of the training pictures in pixels. Default: as told from the file.")
    add("--prediction_type", choices=["epsilon", "v_prediction"], help="Default: as told from the file.")
    add("--extract_ema", action="store_true", help="Take the moving averages of the UNet's weights.")
    add("--upcast_attention", action="store_true", default=None, help="Attention of the UNet works in float32.")
    add("--from_safetensors", action="store_true", help="Accepted as documented; the kind of file is told from it.")
    add("--to_safetensors", action="store_true", help="Write .safetensors files in place of .bin files.")
    add("--dump_path", required=True, help="The folder to write.")
    add("--device", help="Device that the weights go through, such as cpu or cuda:0.")
    add("--stable_unclip", choices=sorted(UNCLIP), help="Convert a Stable unCLIP checkpoint to this pipeline.")
    add("--stable_unclip_prior", help="The prior of --stable_unclip txt2img.")
    add("--clip_stats_path", help="Mean and deviation of image embeddings, where the checkpoint has none.")
    add("--controlnet", action="store_true", default=False, help="Convert the ControlNet of the file and nothing else.")
    add("--half", action="store_true", help="Write float16.")
    add("--vae_path", help="A folder or single file of an autoencoder to take in place of the checkpoint's.")
    add("--pipeline_class_name", help="The pipeline class to save. Default: as told from the file.")
    return parser


def options_of(given: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `from_single_file` that the flags stand for."""
    if given.stable_unclip_prior or given.clip_stats_path:
        raise InputError("--stable_unclip_prior and --clip_stats_path have no use: the checkpoint's own are taken")
    options = {
        "original_config": given.original_config_file,
        "config": given.config_files,
        "num_in_channels": given.num_in_channels,
        "scheduler_type": given.scheduler_type,
        "image_size": given.image_size,
        "prediction_type": given.prediction_type,
        "extract_ema": given.extract_ema or None,
        "upcast_attention": given.upcast_attention,
        "device_map": given.device,
        "torch_dtype": "float16" if given.half else "float32",
        "pipeline_class": given.pipeline_class_name or UNCLIP.get(given.stable_unclip),
        "controlnet": given.controlnet or None,
        "vae": autoencoder(given.vae_path) if given.vae_path else None,
    }
    return {name: value for name, value in options.items() if value is not None}


def autoencoder(path: str) -> Any:
    """Return the autoencoder of a folder or single file."""
    from langevin import AutoencoderKL

    return AutoencoderKL.from_pretrained(path) if Path(path).is_dir() else AutoencoderKL.from_single_file(path)


def main() -> None:
    """Read the flags, convert, and say what was done."""
    parser = arguments()
    given = parser.parse_args()
    try:
        thing, facts = read_file(given.checkpoint_path, **options_of(given))
        expected = TEXT_ENCODERS.get(given.pipeline_type)
        if expected is not None and facts.family != expected:
            raise InputError(f"--pipeline_type is {given.pipeline_type}, and the file is {facts.explain()}")
        written = write_folder(thing, Path(given.dump_path), safe_serialization=given.to_safetensors)
    except LangevinError as error:
        parser.error(str(error))
    print(facts.explain())
    print("\n".join(f"wrote {path}" for path in written))


if __name__ == "__main__":
    main()
