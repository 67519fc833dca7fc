"""Where the documented modules and names of `diffusers` live in this library.

A name is looked up in the table of its module, then in those of the packages around it, then in the home of the module,
and then in the registry: every public class can be imported from every module here.
"""

from __future__ import annotations

RATES = "optimization.learning_rates"
LORA = "pipelines.lora:StableDiffusionLoraLoaderMixin"

NAMES: dict[str, dict[str, str]] = {
    "callbacks": {},
    "configuration_utils": {"FrozenDict": "core.config:Config"},
    "image_processor": {"PipelineImageInput": "core.images:ImageInput"},
    "loaders": {
        "FromOriginalModelMixin": "models.single_file",
        "FromSingleFileMixin": "pipelines.single_file",
        "IPAdapterMixin": "pipelines.ip_adapter",
        "LoraLoaderMixin": LORA,
        "PeftAdapterMixin": "models.adapting:AdapterMixin",
        "StableDiffusionLoraLoaderMixin": LORA,
        "StableDiffusionXLLoraLoaderMixin": LORA,
        "TextualInversionLoaderMixin": "pipelines.textual_inversion",
        "UNet2DConditionLoadersMixin": "models.adapting:AdapterMixin",
    },
    "models": {"ImageProjection": "nn.embedding"},
    "models.lora": {"adjust_lora_scale_text_encoder": "compat.helpers:scale_lora_layers"},
    "optimization": {
        "SchedulerType": RATES,
        "get_constant_schedule": RATES,
        "get_constant_schedule_with_warmup": RATES,
        "get_cosine_schedule_with_warmup": RATES,
        "get_cosine_with_hard_restarts_schedule_with_warmup": RATES,
        "get_linear_schedule_with_warmup": RATES,
        "get_piecewise_constant_schedule": RATES,
        "get_polynomial_decay_schedule_with_warmup": RATES,
        "get_scheduler": RATES,
    },
    "pipelines": {
        "StableDiffusionMixin": "pipelines.authoring",
        "rescale_noise_cfg": "compat.helpers",
        "retrieve_latents": "compat.helpers",
        "retrieve_timesteps": "compat.helpers",
    },
    "schedulers": {"SchedulerOutput": "schedulers.base"},
    "training_utils": {"compute_snr": "compat.helpers"},
    "utils": {
        "CONFIG_NAME": "compat.helpers",
        "PIL_INTERPOLATION": "compat.helpers",
        "SAFETENSORS_WEIGHTS_NAME": "compat.helpers",
        "USE_PEFT_BACKEND": "compat.helpers",
        "WEIGHTS_NAME": "compat.helpers",
        "check_min_version": "compat.helpers",
        "deprecate": "compat.helpers",
        "get_logger": "core.logging",
        "is_compiled_module": "compat.helpers",
        "load_image": "core.images",
        "make_image_grid": "core.images:grid",
        "numpy_to_pil": "core.images:from_array",
        "pt_to_pil": "core.images:to_images",
        "randn_tensor": "core.rng",
        "replace_example_docstring": "compat.helpers",
        "scale_lora_layers": "compat.helpers",
        "unscale_lora_layers": "compat.helpers",
    },
}
"""Package or module -> documented name -> `module` or `module:name` of this library, for what is no registry row."""

HOMES: dict[str, str] = {
    "models.attention_processor": "models.attention_processor",
    "models.autoencoders.autoencoder_kl": "models.autoencoders.vae",
    "models.autoencoders.autoencoder_tiny": "models.autoencoders.autoencoder_tiny",
    "models.autoencoders.vae": "models.autoencoders.vae",
    "models.controlnet": "models.controlnets.controlnet",
    "models.controlnets.controlnet": "models.controlnets.controlnet",
    "models.modeling_outputs": "models.autoencoders.vae",
    "models.unet_2d": "models.unets.unet_2d",
    "models.unet_2d_condition": "models.unets.unet_2d_condition",
    "models.unets.unet_2d": "models.unets.unet_2d",
    "models.unets.unet_2d_condition": "models.unets.unet_2d_condition",
    "models.vae": "models.autoencoders.vae",
    "utils.logging": "core.logging",
}
"""Documented module -> the module of this library whose public names it has too."""

CLASSES: dict[str, str] = {
    "loaders": "ip_adapter lora_base lora_pipeline peft single_file single_file_model textual_inversion unet",
    "models": "adapter autoencoder_kl controlnets autoencoders modeling_utils unets",
    "models.autoencoders": "",
    "models.controlnets": "multicontrolnet",
    "models.unets": "",
    "pipelines": "auto_pipeline controlnet ddim ddpm deprecated pipeline_utils pndm "
    "stable_diffusion stable_diffusion_xl t2i_adapter",
    "pipelines.controlnet": "pipeline_controlnet pipeline_controlnet_img2img pipeline_controlnet_inpaint "
    "pipeline_controlnet_inpaint_sd_xl pipeline_controlnet_sd_xl pipeline_controlnet_sd_xl_img2img",
    "pipelines.ddim": "pipeline_ddim",
    "pipelines.ddpm": "pipeline_ddpm",
    "pipelines.deprecated": "pndm",
    "pipelines.deprecated.pndm": "pipeline_pndm",
    "pipelines.pndm": "pipeline_pndm",
    "pipelines.stable_diffusion": "pipeline_output pipeline_stable_diffusion pipeline_stable_diffusion_depth2img "
    "pipeline_stable_diffusion_image_variation pipeline_stable_diffusion_img2img pipeline_stable_diffusion_inpaint "
    "pipeline_stable_diffusion_instruct_pix2pix pipeline_stable_diffusion_latent_upscale "
    "pipeline_stable_diffusion_upscale safety_checker",
    "pipelines.stable_diffusion_xl": "pipeline_output pipeline_stable_diffusion_xl "
    "pipeline_stable_diffusion_xl_img2img pipeline_stable_diffusion_xl_inpaint "
    "pipeline_stable_diffusion_xl_instruct_pix2pix",
    "pipelines.t2i_adapter": "pipeline_stable_diffusion_adapter pipeline_stable_diffusion_xl_adapter",
    "schedulers": "deprecated scheduling_consistency_models scheduling_cosine_dpmsolver_multistep scheduling_ddim "
    "scheduling_ddim_inverse scheduling_ddim_parallel scheduling_ddpm scheduling_ddpm_parallel "
    "scheduling_deis_multistep scheduling_dpmsolver_multistep scheduling_dpmsolver_multistep_inverse "
    "scheduling_dpmsolver_sde scheduling_dpmsolver_singlestep scheduling_edm_dpmsolver_multistep scheduling_edm_euler "
    "scheduling_euler_ancestral_discrete scheduling_euler_discrete scheduling_flow_match_euler_discrete "
    "scheduling_flow_match_heun_discrete scheduling_heun_discrete scheduling_ipndm "
    "scheduling_k_dpm_2_ancestral_discrete scheduling_k_dpm_2_discrete scheduling_lcm scheduling_lms_discrete "
    "scheduling_pndm scheduling_repaint scheduling_sasolver scheduling_sde_ve scheduling_tcd scheduling_unclip "
    "scheduling_unipc_multistep scheduling_utils scheduling_vq_diffusion",
    "schedulers.deprecated": "scheduling_karras_ve scheduling_sde_vp",
    "utils": "constants deprecation_utils doc_utils import_utils loading_utils logging outputs peft_utils pil_utils "
    "torch_utils",
}
"""Documented package -> the modules in it."""

_INSIDE = (f"{package}.{name}" for package, names in CLASSES.items() for name in names.split())
MODULES = frozenset({"", *NAMES, *HOMES, *CLASSES, *_INSIDE})
"""Every documented module that this library serves, without the leading `diffusers`; the package itself is empty."""
