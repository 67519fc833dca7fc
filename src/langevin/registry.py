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
    Row("logging", "core"),
    Row("register_to_config", "core.config"),
)
MODELS = (
    Row("AutoencoderKL", "models.autoencoders.autoencoder_kl"),
    Row("AutoencoderTiny", "models.autoencoders.autoencoder_tiny"),
    Row("ModelMixin", "models.base"),
    Row("UNet2DConditionModel", "models.unets.unet_2d_condition"),
    Row("UNet2DModel", "models.unets.unet_2d"),
)
SCHEDULERS = (
    Row("CMStochasticIterativeScheduler", "schedulers.consistency"),
    Row("CosineDPMSolverMultistepScheduler", "schedulers.edm"),
    Row("DDIMInverseScheduler", "schedulers.ddim"),
    Row("DDIMParallelScheduler", "schedulers.ddim"),
    Row("DDIMScheduler", "schedulers.ddim"),
    Row("DDPMParallelScheduler", "schedulers.ddpm"),
    Row("DDPMScheduler", "schedulers.ddpm"),
    Row("DEISMultistepScheduler", "schedulers.dpmsolver_multistep"),
    Row("DPMSolverMultistepInverseScheduler", "schedulers.dpmsolver_multistep"),
    Row("DPMSolverMultistepScheduler", "schedulers.dpmsolver_multistep"),
    Row("DPMSolverSDEScheduler", "schedulers.two_stage"),
    Row("DPMSolverSinglestepScheduler", "schedulers.dpmsolver_multistep"),
    Row("EDMDPMSolverMultistepScheduler", "schedulers.edm"),
    Row("EDMEulerScheduler", "schedulers.edm"),
    Row("EulerAncestralDiscreteScheduler", "schedulers.euler_ancestral_discrete"),
    Row("EulerDiscreteScheduler", "schedulers.euler_discrete"),
    Row("FlowMatchEulerDiscreteScheduler", "schedulers.flow_match"),
    Row("FlowMatchHeunDiscreteScheduler", "schedulers.flow_match"),
    Row("HeunDiscreteScheduler", "schedulers.two_stage"),
    Row("IPNDMScheduler", "schedulers.ipndm"),
    Row("KDPM2AncestralDiscreteScheduler", "schedulers.two_stage"),
    Row("KDPM2DiscreteScheduler", "schedulers.two_stage"),
    Row("KarrasDiffusionSchedulers", "schedulers.base"),
    Row("KarrasVeScheduler", "schedulers.score_sde"),
    Row("LCMScheduler", "schedulers.consistency"),
    Row("LMSDiscreteScheduler", "schedulers.lms"),
    Row("PNDMScheduler", "schedulers.pndm"),
    Row("RePaintScheduler", "schedulers.ddim"),
    Row("SASolverScheduler", "schedulers.predictor_corrector"),
    Row("SchedulerMixin", "schedulers.base"),
    Row("ScoreSdeVeScheduler", "schedulers.score_sde"),
    Row("ScoreSdeVpScheduler", "schedulers.score_sde"),
    Row("TCDScheduler", "schedulers.consistency"),
    Row("UnCLIPScheduler", "schedulers.ddpm"),
    Row("UniPCMultistepScheduler", "schedulers.predictor_corrector"),
    Row("VQDiffusionScheduler", "schedulers.vq_diffusion"),
)
PIPELINES = (
    Row("DDIMPipeline", "pipelines.unconditional", "unconditional", "generation"),
    Row("DDPMPipeline", "pipelines.unconditional", "unconditional", "generation"),
    Row("DiffusionPipeline", "pipelines.base"),
    Row("PNDMPipeline", "pipelines.unconditional", "unconditional", "generation"),
    Row("StableDiffusionPipeline", "pipelines.stable_diffusion", "stable_diffusion", "text-to-image"),
)
PIPELINE_PARTS = (
    Row("ImagePipelineOutput", "pipelines.outputs"),
    Row("MultiPipelineCallbacks", "pipelines.callbacks"),
    Row("PipelineCallback", "pipelines.callbacks"),
    Row("SDCFGCutoffCallback", "pipelines.callbacks"),
    Row("StableDiffusionPipelineOutput", "pipelines.outputs"),
    Row("StableDiffusionSafetyChecker", "pipelines.safety"),
    Row("VaeImageProcessor", "pipelines.image_processor"),
)

ROWS = (*CORE, *MODELS, *SCHEDULERS, *PIPELINES, *PIPELINE_PARTS)
