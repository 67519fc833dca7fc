"""OpenVINO as a third contender on the CPU: the peer's network, converted once for static shapes, compiled anew."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .inference import Case, Setting


HINTS = {"float32": "f32", "bfloat16": "bf16"}
CAPABILITIES = {"float32": "FP32", "bfloat16": "BF16"}


def computes_in(dtype: str) -> bool:
    """Tell whether OpenVINO computes in a type on this processor."""
    core = importlib.import_module("openvino").Core()
    return CAPABILITIES[dtype] in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def converted(case: Case, folder: Path, setting: Setting) -> Callable[[dict[str, Any]], Any]:
    """Return the call of a network, compiled for one request at a time in the precision of the row.

    Shapes are those of the example inputs. The network is converted in float32, the first time alone.
    """
    import torch

    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it would send that a model was converted
    openvino = importlib.import_module("openvino")
    wide = replace(setting, dtype="float32")
    given = case.inputs(wide)
    file = folder / f"{case.model}-{case.part}-{setting.size}.xml"
    if not file.exists():

        class Wrapped(torch.nn.Module):
            """The peer's network, with arguments by position and a tensor as the result."""

            def __init__(self) -> None:
                super().__init__()
                self.network = case.loaded("diffusers", folder, wide)

            def forward(self, *values: Any) -> Any:
                return case.result(self.network(**dict(zip(given, values, strict=True))))

        shapes = [list(value.shape) for value in given.values()]
        with torch.no_grad():
            made = openvino.convert_model(Wrapped(), example_input=tuple(given.values()), input=shapes)
        openvino.save_model(made, file, compress_to_fp16=False)
        del made
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": HINTS[setting.dtype]}
    compiled = openvino.Core().compile_model(file, "CPU", hints)

    def call(inputs: dict[str, Any]) -> Any:
        wide = [value.float() if value.is_floating_point() else value for value in inputs.values()]
        return torch.from_numpy(compiled([value.numpy() for value in wide])[0])

    return call
