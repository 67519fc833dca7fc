"""What a picture was made with, written into its PNG file in two forms.

The text chunk `parameters` is the form that AUTOMATIC1111's web UI and the tools around it read; the chunk `langevin`
is JSON and complete.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

SAMPLERS = {
    "DDIMScheduler": "DDIM",
    "DPMSolverMultistepScheduler": "DPM++ 2M",
    "EulerAncestralDiscreteScheduler": "Euler a",
    "EulerDiscreteScheduler": "Euler",
    "PNDMScheduler": "PLMS",
}
"""Class -> the name that the `parameters` form uses; any other class is written as it is."""


def sampler_name(scheduler: str, config: dict[str, Any]) -> str:
    """Return the name of a sampler in the `parameters` form, with its noise schedule."""
    name = SAMPLERS.get(scheduler, scheduler)
    if name == "DPM++ 2M" and "sde" in str(config.get("algorithm_type", "")):
        name += " SDE"
    return f"{name} Karras" if config.get("use_karras_sigmas") else name


def a1111(facts: dict[str, Any]) -> str:
    """Return the `parameters` text: the prompt, the negative prompt, and a line of `Key: value` pairs.

    Adapters follow the prompt as that form has them, `<lora:NAME:SCALE>`.
    """
    pairs = {
        "Steps": facts.get("steps"),
        "Sampler": sampler_name(facts["scheduler"], facts.get("scheduler_config", {})),
        "CFG scale": facts.get("guidance_scale"),
        "Seed": facts.get("seed"),
        "Size": f"{facts['width']}x{facts['height']}",
        "Denoising strength": facts.get("strength"),
        "ControlNet 0": control(facts),
        "Model": facts["model"],
        "Version": f"langevin {facts['langevin']}",
    }
    line = ", ".join(f"{key}: {_quoted(value)}" for key, value in pairs.items() if value is not None)
    tags = [f"<lora:{one}>" for one in facts.get("lora", ())]
    lines = [" ".join([facts.get("prompt") or "", *tags]).strip()]
    if facts.get("negative_prompt"):
        lines.append(f"Negative prompt: {facts['negative_prompt']}")
    return "\n".join([*lines, line])


def control(facts: dict[str, Any]) -> str | None:
    """Return what the `parameters` form says about a ControlNet, None when there is none."""
    if "controlnet" not in facts:
        return None
    module = "canny" if facts.get("edges") else "none"
    return f"Module: {module}, Model: {facts['controlnet']}, Weight: {facts['control_scale']}"


def _quoted(value: object) -> str:
    """Quote a value that holds a separator, as JSON."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text


def chunks(facts: dict[str, Any]) -> PngInfo:
    """Return both chunks for `Image.save(pnginfo=...)`."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", a1111(facts))
    info.add_text("langevin", json.dumps(_finite(facts), ensure_ascii=False, sort_keys=True, allow_nan=False))
    return info


def _finite(value: Any) -> Any:
    """Return `value` with infinities and NaN as text, since JSON has no numbers for them."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
