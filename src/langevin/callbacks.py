"""The documented home of the callback objects."""

from .pipelines.callbacks import (
    IPAdapterScaleCutoffCallback,
    MultiPipelineCallbacks,
    PipelineCallback,
    SDCFGCutoffCallback,
)

__all__ = ["IPAdapterScaleCutoffCallback", "MultiPipelineCallbacks", "PipelineCallback", "SDCFGCutoffCallback"]
