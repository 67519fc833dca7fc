"""The documented home of the callback objects."""

from .pipelines.callbacks import MultiPipelineCallbacks, PipelineCallback, SDCFGCutoffCallback

__all__ = ["MultiPipelineCallbacks", "PipelineCallback", "SDCFGCutoffCallback"]
