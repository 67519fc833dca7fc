"""One row per public class: where it lives and what it is for.

Read by `langevin.__init__` (lazy import), the auto pipelines, the command line, the docs index and the contract tests.
"""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """A public name. `family` and `task` are set for pipelines."""

    name: str
    module: str
    family: str | None = None
    task: str | None = None


CORE = (
    Row("BaseOutput", "core.outputs"),
    Row("ConfigMixin", "core.config"),
    Row("inspect", "weights.inspect"),
    Row("logging", "core"),
    Row("register_to_config", "core.config"),
)
MODELS = (
    Row("AutoencoderKL", "models.autoencoders.autoencoder_kl"),
    Row("AutoencoderTiny", "models.autoencoders.autoencoder_tiny"),
    Row("ControlNetModel", "models.controlnets.controlnet"),
    Row("ModelMixin", "models.base"),
    Row("MultiAdapter", "models.t2i_adapters.t2i_adapter"),
    Row("MultiControlNetModel", "models.controlnets.multicontrolnet"),
    Row("T2IAdapter", "models.t2i_adapters.t2i_adapter"),
    Row("UNet2DConditionModel", "models.unets.unet_2d_condition"),
    Row("UNet2DModel", "models.unets.unet_2d"),
)
SCHEDULERS = (
    Row("CMStochasticIterativeScheduler", "schedulers.exploding"),
    Row("CosineDPMSolverMultistepScheduler", "schedulers.exploding"),
    Row("DDIMInverseScheduler", "schedulers.preserving"),
    Row("DDIMParallelScheduler", "schedulers.preserving"),
    Row("DDIMScheduler", "schedulers.preserving"),
    Row("DDPMParallelScheduler", "schedulers.preserving"),
    Row("DDPMScheduler", "schedulers.preserving"),
    Row("DEISMultistepScheduler", "schedulers.log_snr"),
    Row("DPMSolverMultistepInverseScheduler", "schedulers.log_snr"),
    Row("DPMSolverMultistepScheduler", "schedulers.log_snr"),
    Row("DPMSolverSDEScheduler", "schedulers.exploding"),
    Row("DPMSolverSinglestepScheduler", "schedulers.log_snr"),
    Row("EDMDPMSolverMultistepScheduler", "schedulers.exploding"),
    Row("EDMEulerScheduler", "schedulers.exploding"),
    Row("EulerAncestralDiscreteScheduler", "schedulers.exploding"),
    Row("EulerDiscreteScheduler", "schedulers.exploding"),
    Row("FlowMatchEulerDiscreteScheduler", "schedulers.flow_match"),
    Row("FlowMatchHeunDiscreteScheduler", "schedulers.flow_match"),
    Row("HeunDiscreteScheduler", "schedulers.exploding"),
    Row("IPNDMScheduler", "schedulers.preserving"),
    Row("KDPM2AncestralDiscreteScheduler", "schedulers.exploding"),
    Row("KDPM2DiscreteScheduler", "schedulers.exploding"),
    Row("KarrasDiffusionSchedulers", "schedulers.base"),
    Row("KarrasVeScheduler", "schedulers.score_sde"),
    Row("LCMScheduler", "schedulers.preserving"),
    Row("LMSDiscreteScheduler", "schedulers.exploding"),
    Row("PNDMScheduler", "schedulers.preserving"),
    Row("RePaintScheduler", "schedulers.preserving"),
    Row("SASolverScheduler", "schedulers.log_snr"),
    Row("SchedulerMixin", "schedulers.base"),
    Row("ScoreSdeVeScheduler", "schedulers.score_sde"),
    Row("ScoreSdeVpScheduler", "schedulers.score_sde"),
    Row("TCDScheduler", "schedulers.preserving"),
    Row("UnCLIPScheduler", "schedulers.preserving"),
    Row("UniPCMultistepScheduler", "schedulers.log_snr"),
    Row("VQDiffusionScheduler", "schedulers.vq_diffusion"),
)
PIPELINES = (
    Row("DDIMPipeline", "pipelines.unconditional", "unconditional", "generation"),
    Row("DDPMPipeline", "pipelines.unconditional", "unconditional", "generation"),
    Row("DiffusionPipeline", "pipelines.base"),
    Row("PNDMPipeline", "pipelines.unconditional", "unconditional", "generation"),
    Row("StableDiffusionAdapterPipeline", "pipelines.t2i_adapter", "stable_diffusion", "adapter-text-to-image"),
    Row(
        "StableDiffusionControlNetImg2ImgPipeline",
        "pipelines.controlnet",
        "stable_diffusion",
        "controlnet-image-to-image",
    ),
    Row(
        "StableDiffusionControlNetInpaintPipeline", "pipelines.controlnet", "stable_diffusion", "controlnet-inpainting"
    ),
    Row("StableDiffusionControlNetPipeline", "pipelines.controlnet", "stable_diffusion", "controlnet-text-to-image"),
    Row("StableDiffusionDepth2ImgPipeline", "pipelines.stable_diffusion_edit", "stable_diffusion", "depth-to-image"),
    Row("StableDiffusionImageVariationPipeline", "pipelines.stable_diffusion_edit", "stable_diffusion", "variation"),
    Row("StableDiffusionImg2ImgPipeline", "pipelines.stable_diffusion", "stable_diffusion", "image-to-image"),
    Row("StableDiffusionInpaintPipeline", "pipelines.stable_diffusion", "stable_diffusion", "inpainting"),
    Row("StableDiffusionInstructPix2PixPipeline", "pipelines.stable_diffusion_edit", "stable_diffusion", "instruction"),
    Row("StableDiffusionLatentUpscalePipeline", "pipelines.stable_diffusion_upscale", "stable_diffusion", "upscaling"),
    Row("StableDiffusionPipeline", "pipelines.stable_diffusion", "stable_diffusion", "text-to-image"),
    Row("StableDiffusionUpscalePipeline", "pipelines.stable_diffusion_upscale", "stable_diffusion", "upscaling"),
    Row("StableDiffusionXLAdapterPipeline", "pipelines.t2i_adapter", "stable_diffusion_xl", "adapter-text-to-image"),
    Row(
        "StableDiffusionXLControlNetImg2ImgPipeline",
        "pipelines.controlnet_xl",
        "stable_diffusion_xl",
        "controlnet-image-to-image",
    ),
    Row(
        "StableDiffusionXLControlNetInpaintPipeline",
        "pipelines.controlnet_xl",
        "stable_diffusion_xl",
        "controlnet-inpainting",
    ),
    Row(
        "StableDiffusionXLControlNetPipeline",
        "pipelines.controlnet_xl",
        "stable_diffusion_xl",
        "controlnet-text-to-image",
    ),
    Row("StableDiffusionXLImg2ImgPipeline", "pipelines.stable_diffusion_xl", "stable_diffusion_xl", "image-to-image"),
    Row("StableDiffusionXLInpaintPipeline", "pipelines.stable_diffusion_xl", "stable_diffusion_xl", "inpainting"),
    Row(
        "StableDiffusionXLInstructPix2PixPipeline",
        "pipelines.stable_diffusion_xl_edit",
        "stable_diffusion_xl",
        "instruction",
    ),
    Row("StableDiffusionXLPipeline", "pipelines.stable_diffusion_xl", "stable_diffusion_xl", "text-to-image"),
)
PIPELINE_PARTS = (
    Row("AutoPipelineForImage2Image", "pipelines.auto"),
    Row("AutoPipelineForInpainting", "pipelines.auto"),
    Row("AutoPipelineForText2Image", "pipelines.auto"),
    Row("IPAdapterScaleCutoffCallback", "pipelines.callbacks"),
    Row("IPAdapterMaskProcessor", "pipelines.image_processor"),
    Row("ImagePipelineOutput", "pipelines.outputs"),
    Row("MultiPipelineCallbacks", "pipelines.callbacks"),
    Row("PipelineCallback", "pipelines.callbacks"),
    Row("PreviewCallback", "pipelines.previews"),
    Row("SDCFGCutoffCallback", "pipelines.callbacks"),
    Row("StableDiffusionPipelineOutput", "pipelines.outputs"),
    Row("StableDiffusionSafetyChecker", "pipelines.safety"),
    Row("StableDiffusionXLPipelineOutput", "pipelines.outputs"),
    Row("VaeImageProcessor", "pipelines.image_processor"),
    Row("reference_only", "pipelines.reference"),
)

ROWS = (*CORE, *MODELS, *SCHEDULERS, *PIPELINES, *PIPELINE_PARTS)
HOMES = {row.name: row.module for row in ROWS}
"""Public name -> the module that it is read from."""
