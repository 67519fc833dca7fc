"""Networks at published shapes, one call at a time, and pictures end to end, with seeded weights.

A step of guided sampling is a call on a batch of two halves that differ in their text alone. Calls repeat with the same
texts, as the steps of a run do, so what is computed once per prompt is not counted.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .measures import clocked, on_gpu, seconds
from .seeded import CLASSES, FULL, MODELS, network_folder, pipeline_folder

OURS, PEER, OPENVINO = "langevin", "diffusers", "openvino"
PROMPTS = ("a red house under a yellow sun", "two blue cats", "a green tree left of a white boat", "a yellow moon")
CHECKED = WARM = 2
"""The steps of pictures that are compared before, and drawn to warm up."""


@dataclass(frozen=True)
class Setting:
    """What is measured beside the row and the library.

    Attributes:
        level: L0, L1 or L2.
        dtype: of weights and computation.
        size: "full", the published shapes, or "tiny".
        steps: of a picture.
        compile: with torch.compile at L1 and L2.
        option: the name of what is lossy, at L2.
        check: compute what the libraries are compared by and do not take the time.
    """

    level: str = "L0"
    dtype: str = "float32"
    size: str = FULL
    steps: int = 20
    compile: bool = False
    option: str = ""
    check: bool = False


# The levels -----------------------------------------------------------------------------------------------------------


def defaults(model: Any, setting: Setting) -> None:
    """Leave a pipeline or a network as it was loaded."""


def ours_best(model: Any, setting: Setting) -> None:
    """Let this library choose what is lossless on the hardware at hand."""
    plan = importlib.import_module("langevin.optimization.plan")
    networks = model._networks if hasattr(model, "optimize") else {"": model}
    convolutional = any(plan.spatial(network) for network in networks.values())
    # A compiled network takes no kernels of the library's own.
    compiler = importlib.import_module("langevin.core.native").compiler_path()
    able = any(plan.takes(plan.NATIVE, network, None) for network in networks.values())
    kernels = bool(compiler) and able and not setting.compile
    optimize = model.optimize if hasattr(model, "optimize") else functools.partial(plan.optimize, model)
    optimize(compile=setting.compile and convolutional, kernels=kernels)


def peers_best(model: Any, setting: Setting) -> None:
    """Choose what the peer's pages on speed name: channels_last, one product for query, key and value, compilation.

    In float32 on a CPU channels_last is left out: there a step of SD 1.5 took 14.4 s of one core with it, 12.6 without.
    """
    import torch

    for name in ("unet", "vae"):
        part = getattr(model, name, None)
        if part is not None:
            peers_best(part, setting)
    if isinstance(model, torch.nn.Module):
        if on_gpu() or setting.dtype != "float32":
            model.to(memory_format=torch.channels_last)
        if hasattr(model, "fuse_qkv_projections"):
            model.fuse_qkv_projections()
        if setting.compile:
            model.compile(mode="max-autotune", fullgraph=True)


def merged(pipe: Any) -> None:
    """Merge half of the tokens where the UNet has most, in its first attention (Bolya & Hoffman 2023, 2303.17604)."""
    level = next(k for k, kind in enumerate(pipe.unet.config.down_block_types) if "CrossAttn" in kind)
    importlib.import_module("tomesd").apply_patch(pipe, ratio=0.5, max_downsample=2**level)


def cached(pipe: Any) -> None:
    """Compute the deep blocks at every third step (Ma et al. 2023, 2312.00858)."""
    pipe.enable_deep_cache(interval=3)


LEVELS: dict[str, dict[str, Callable[[Any, Setting], None]]] = {
    "L0": {OURS: defaults, PEER: defaults},
    "L1": {OURS: ours_best, PEER: peers_best},
    "L2": {OURS: ours_best, PEER: peers_best},
}
"""Level -> what each library is told after loading; at L2 one of `LOSSY` comes on top."""
LOSSY: dict[str, dict[str, Callable[[Any], None]]] = {
    "token merging 0.5": {OURS: merged, PEER: merged},
    "feature cache 3": {OURS: cached},
}
"""What is lossy -> the libraries that have it without a further package, and how it is asked for."""


# Networks -------------------------------------------------------------------------------------------------------------


def placed(value: Any, dtype: str) -> Any:
    """Return a tensor where it is computed; floating-point ones in the type of the row."""
    import torch

    return value.to("cuda" if on_gpu() else "cpu", getattr(torch, dtype) if value.is_floating_point() else value.dtype)


def noise(*shape: int, seed: int = 0) -> Any:
    """Return seeded normal numbers."""
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tokens(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return two rows of 77 tokens."""
    import torch

    return {"input_ids": torch.randint(0, 40000, (2, 77), generator=torch.Generator().manual_seed(0))}


def guided(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a UNet is called with in a step of guided sampling."""
    import torch

    side, width = config["sample_size"], config["cross_attention_dim"]
    given = {
        "sample": noise(1, 4, side, side).repeat(2, 1, 1, 1),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": noise(2, 77, width, seed=1),
    }
    if "addition_embed_type" in config:
        sizes = torch.tensor([8.0 * side, 8 * side, 0, 0, 8 * side, 8 * side])
        given["added_cond_kwargs"] = {"text_embeds": noise(2, 1280, seed=2), "time_ids": sizes.repeat(2, 1)}
    return given


def picture(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a picture."""
    return {"x": noise(1, 3, config["sample_size"], config["sample_size"]).clamp(-1, 1)}


def latents(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the latents of a picture."""
    return {"z": noise(1, 4, config["sample_size"] // 8, config["sample_size"] // 8)}


@dataclass(frozen=True)
class Case:
    """One network and its call: whose part it is, what it is given, the method, and what of the result is compared."""

    model: str
    part: str
    given: Callable[[Mapping[str, Any]], dict[str, Any]]
    method: str = "__call__"
    result: Callable[[Any], Any] = lambda output: output.sample
    load: bool = False

    def inputs(self, setting: Setting) -> dict[str, Any]:
        """Return the keyword arguments of the call."""
        given = self.given(MODELS[self.model, setting.size][self.part])
        return {
            name: {key: placed(inner, setting.dtype) for key, inner in value.items()}
            if isinstance(value, dict)
            else placed(value, setting.dtype)
            for name, value in given.items()
        }

    def loaded(self, library: str, folder: Path, setting: Setting) -> Any:
        """Return the network of a library."""
        import torch

        where = network_folder(folder, self.model, self.part, size=setting.size, dtype=setting.dtype)
        package = "transformers" if self.part == "text_encoder" else library
        kind = {"dtype" if self.part == "text_encoder" else "torch_dtype": getattr(torch, setting.dtype)}
        return getattr(importlib.import_module(package), CLASSES[self.part]).from_pretrained(where, **kind).eval()


CASES = {
    "text": Case("sd15", "text_encoder", tokens, result=lambda output: output.last_hidden_state),
    "unet": Case("small", "unet", guided, load=True),
    "step-sd15": Case("sd15", "unet", guided),
    "step-sdxl": Case("sdxl", "unet", guided),
    "vae-encode": Case("sd15", "vae", picture, "encode", lambda output: output.latent_dist.mean),
    "vae-decode": Case("sd15", "vae", latents, "decode"),
}
"""Row -> network."""


def network(row: str, library: str, folder: Path, setting: Setting) -> dict[str, float]:
    """Call one network, batch after batch. Unit: s."""
    import torch

    case, found, name = CASES[row], {}, f"{row} {setting.dtype}"
    inputs = case.inputs(setting)
    if library == OPENVINO:
        from .rival import converted

        call = converted(case, folder, setting)
    else:
        importlib.import_module(library)
        kept: list[Any] = []
        loading = seconds(lambda: kept.append(case.loaded(library, folder, setting)))
        model = kept[0].to("cuda" if on_gpu() else "cpu")
        found = {f"{name}, load s": loading} if case.load else {}
        LEVELS[setting.level][library](model, setting)
        method = model if case.method == "__call__" else getattr(model, case.method)
        call = lambda given: case.result(method(**given))  # noqa: E731
    with torch.no_grad():
        if setting.check:
            torch.save(call(inputs).float().cpu(), folder / f"{row}-{library}.pt")
            return {}
        return found | {f"{name}, s": clocked(lambda: finished(call(inputs)), 30, budget=10.0, least=1)}


def finished(value: Any) -> Any:
    """Return a value once the device has computed it."""
    if on_gpu():
        import torch

        torch.cuda.synchronize()
    return value


# Pictures -------------------------------------------------------------------------------------------------------------


def pictures(row: str, library: str, folder: Path, setting: Setting) -> dict[str, float]:
    """Draw a picture from a prompt with the scheduler of the checkpoint. Units: s, and dB, see `distance`."""
    import torch

    where = pipeline_folder(folder, size=setting.size, dtype=setting.dtype)
    pipe = pipeline(library, where, setting, offload=row == "offload")
    if setting.check:
        torch.save(draw(pipe, PROMPTS[:1], CHECKED), folder / f"{row}-{library}.pt")
        return {}
    if setting.option:
        LOSSY[setting.option][library](pipe)
    name = " ".join(filter(None, (row, setting.dtype, setting.option)))
    draw(pipe, PROMPTS[:1], WARM)
    found = {f"{name}, s": seconds(lambda: draw(pipe, PROMPTS[:1], setting.steps))}
    return found | ({f"{name}, dB": distance(library, setting)} if setting.option else {})


def pipeline(library: str, folder: Path, setting: Setting, *, offload: bool = False) -> Any:
    """Return a pipeline where it computes, at the level of the row."""
    import torch

    cls = importlib.import_module(library).StableDiffusionPipeline
    pipe = cls.from_pretrained(folder, torch_dtype=getattr(torch, setting.dtype))
    if offload:
        pipe.enable_model_cpu_offload()
    else:
        pipe.to("cuda" if on_gpu() else "cpu")
    LEVELS[setting.level][library](pipe, setting)
    return pipe


def draw(pipe: Any, prompts: Sequence[str], steps: int) -> Any:
    """Return pictures, as many as prompts."""
    import torch

    torch.manual_seed(0)  # which tokens others are merged into is drawn from the global stream
    generators = [torch.Generator().manual_seed(k) for k in range(len(prompts))]
    made = pipe(list(prompts), num_inference_steps=steps, generator=generators, output_type="np").images
    return finished(torch.from_numpy(made))


def distance(library: str, setting: Setting) -> float:
    """Return how far an option takes the pictures of the shipped model, whose weights are trained, from those of L1.

    Unit: dB, the peak signal-to-noise ratio, a mean over pictures.
    """
    from langevin.picturebook import model_folder

    pipe = pipeline(library, model_folder(), setting)
    before = draw(pipe, PROMPTS, setting.steps)
    LOSSY[setting.option][library](pipe)
    errors = (draw(pipe, PROMPTS, setting.steps) - before).double().square().mean(dim=(1, 2, 3))
    return float((-10 * errors.clamp_min(1e-20).log10()).mean())


ROWS: dict[str, Callable[[str, Path, Setting], dict[str, float]]] = {
    **{row: partial(network, row) for row in CASES},
    **{row: partial(pictures, row) for row in ("image-sd15", "offload")},
}
