"""Models at the shapes of published ones with seeded weights, in the documented folders that both libraries load.

A file is written tensor by tensor, and a folder that exists is left as it is, so that the rows of a run share it.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FULL, TINY = "full", "tiny"
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "steps_offset": 1,
    "set_alpha_to_one": False,
}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SMALL: dict[str, Any] = {
    "sample_size": 32,
    "block_out_channels": (32, 64),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 64,
    "attention_head_dim": 8,
    "norm_num_groups": 16,
}
CLIP = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
FILES = {"text_encoder": "model.safetensors"}
ENDS = ("conv2.weight", "to_out.0.weight", "ff.net.2.weight", "proj_out.weight")
DAMPED = 0.3
"""Residual branches end with layers that are smaller than torch begins with; without, two orders of the same bfloat16
arithmetic differ by 1.3e-2 after a UNet, which would hide mistakes."""
MODELS: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    ("sd15", FULL): {"unet": {"sample_size": 64, "cross_attention_dim": 768}, "vae": VAE, "text_encoder": CLIP},
    ("sd15", TINY): {
        "unet": {"sample_size": 16, "cross_attention_dim": 32, "block_out_channels": (32, 64, 64, 64)},
        "vae": VAE | {"sample_size": 128, "block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4},
        "text_encoder": CLIP
        | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    },
    ("sdxl", FULL): {"unet": SDXL},
    ("sdxl", TINY): {
        "unet": SDXL
        | {"sample_size": 16, "block_out_channels": (32, 32, 64), "transformer_layers_per_block": (1, 1, 2)}
        | {"attention_head_dim": (2, 4, 8), "cross_attention_dim": 32}
    },
    ("small", FULL): {"unet": SMALL},
    ("small", TINY): {"unet": SMALL | {"sample_size": 16}},
}
"""Model and size -> configuration of each part."""


class Seeded(Mapping):
    """Weights by name, made when they are asked for: uniform within 1 / sqrt(inputs), as torch begins with."""

    def __init__(self, shapes: Mapping[str, Any], dtype: Any) -> None:
        self.shapes, self.dtype = shapes, dtype

    def __iter__(self) -> Any:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, name: str) -> Any:
        import torch

        shape = self.shapes[name]
        if len(shape) < 2:
            return torch.full(shape, float(name.endswith("weight")), dtype=self.dtype)
        bound = (DAMPED if name.endswith(ENDS) else 1.0) * shape[1:].numel() ** -0.5
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        return torch.empty(shape).uniform_(-bound, bound, generator=generator).to(self.dtype)

    def items(self) -> Any:
        """Return the names with tensors of the right shape that take no memory: writers look at shapes first."""
        import torch

        empty = torch.zeros((), dtype=self.dtype)
        return {name: empty.expand(shape) for name, shape in self.shapes.items()}.items()


def blank(part: str, config: Mapping[str, Any]) -> Any:
    """Return a network without values."""
    import torch

    with torch.device("meta"):
        if part == "text_encoder":
            from transformers import CLIPTextConfig, CLIPTextModel

            return CLIPTextModel(CLIPTextConfig(**config))
        import langevin

        return getattr(langevin, CLASSES[part])(**config)


def network_folder(root: Path, model: str, part: str, *, size: str = FULL, dtype: str = "float32") -> Path:
    """Return the folder of one network, written if there is none yet."""
    import torch

    from langevin.core.weights_io import write_safetensors

    folder = root / f"{model}-{size}-{dtype}" / part
    if not folder.exists():
        network = blank(part, MODELS[model, size][part])
        folder.mkdir(parents=True)
        (network.config.save_pretrained if part == "text_encoder" else network.save_config)(folder)
        weights = Seeded({name: tensor.shape for name, tensor in network.state_dict().items()}, getattr(torch, dtype))
        file = FILES.get(part, "diffusion_pytorch_model.safetensors")
        write_safetensors(folder / file, weights, {"format": "pt"})
    return folder


def pipeline_folder(root: Path, *, size: str = FULL, dtype: str = "float32") -> Path:
    """Return the folder of a Stable Diffusion 1.5 pipeline; its tokenizer is the shipped one, for 77 tokens."""
    from langevin.picturebook import model_folder

    for part in MODELS["sd15", size]:
        folder = network_folder(root, "sd15", part, size=size, dtype=dtype).parent
    if not (folder / "model_index.json").exists():
        shutil.copytree(model_folder() / "tokenizer", folder / "tokenizer")
        edit(folder / "tokenizer" / "tokenizer_config.json", {"model_max_length": 77})
        (folder / "scheduler").mkdir()
        write(folder / "scheduler" / "scheduler_config.json", {"_class_name": "PNDMScheduler", **SCHEDULER})
        shutil.copy(model_folder() / "model_index.json", folder)
        edit(folder / "model_index.json", {"scheduler": ["diffusers", "PNDMScheduler"]})
    return folder


def write(file: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file."""
    file.write_text(json.dumps(values, indent=2), encoding="utf-8")


def edit(file: Path, changes: Mapping[str, Any]) -> None:
    """Change values of a JSON file."""
    write(file, json.loads(file.read_text(encoding="utf-8")) | changes)
