"""The documented home of the callback objects."""

from .pipelines.callbacks import (
    IPAdapterScaleCutoffCallback,
    MultiPipelineCallbacks,
    PipelineCallback,
    SDCFGCutoffCallback,
)
from .pipelines.previews import PreviewCallback

__all__ = [
    "IPAdapterScaleCutoffCallback",
    "MultiPipelineCallbacks",
    "PipelineCallback",
    "PreviewCallback",
    "SDCFGCutoffCallback",
]
