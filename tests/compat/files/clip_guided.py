# ruff: noqa
"""Stable Diffusion pulled towards a text by the gradient of a CLIP model, which the caller brings."""

import inspect
from typing import List, Optional, Union

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.utils.torch_utils import randn_tensor


def distance(x, y):
    return (F.normalize(x, dim=-1) - F.normalize(y, dim=-1)).norm(dim=-1).div(2).arcsin().pow(2).mul(2)


def frozen(model, value):
    for parameter in model.parameters():
        parameter.requires_grad = value


class GuidedByCLIP(DiffusionPipeline, StableDiffusionMixin):
    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        clip_model: CLIPModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: Union[PNDMScheduler, LMSDiscreteScheduler, DDIMScheduler, DPMSolverMultistepScheduler],
        feature_extractor: CLIPImageProcessor,
    ):
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            clip_model=clip_model,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            feature_extractor=feature_extractor,
        )
        size = feature_extractor.size
        self.side = size if isinstance(size, int) else size["shortest_edge"]
        frozen(self.text_encoder, False)
        frozen(self.clip_model, False)

    @torch.enable_grad()
    def pull(self, latents, timestep, text_embeddings, noise_pred_original, text_of_clip, scale):
        latents = latents.detach().requires_grad_()
        latent_model_input = self.scheduler.scale_model_input(latents, timestep)
        noise_pred = self.unet(latent_model_input, timestep, encoder_hidden_states=text_embeddings).sample
        if not isinstance(self.scheduler, (PNDMScheduler, DDIMScheduler, DPMSolverMultistepScheduler)):
            raise ValueError(f"scheduler type {type(self.scheduler)} not supported")
        alpha_prod_t = self.scheduler.alphas_cumprod[timestep]
        beta_prod_t = 1 - alpha_prod_t
        pred_original_sample = (latents - beta_prod_t ** (0.5) * noise_pred) / alpha_prod_t ** (0.5)
        fac = torch.sqrt(beta_prod_t)
        sample = pred_original_sample * (fac) + latents * (1 - fac)

        image = self.vae.decode(1 / self.vae.config.scaling_factor * sample).sample
        image = (image / 2 + 0.5).clamp(0, 1)
        image = F.interpolate(image, (self.side, self.side))
        embeddings = self.clip_model.visual_projection(self.clip_model.vision_model(image)[1])
        loss = distance(embeddings, text_of_clip).mean() * scale
        grads = -torch.autograd.grad(loss, latents)[0]
        return noise_pred_original - torch.sqrt(beta_prod_t) * grads, latents.detach()

    @torch.no_grad()
    def __call__(
        self,
        prompt: Union[str, List[str]],
        height: Optional[int] = 16,
        width: Optional[int] = 16,
        num_inference_steps: Optional[int] = 50,
        guidance_scale: Optional[float] = 7.5,
        clip_guidance_scale: Optional[float] = 100,
        eta: float = 0.0,
        generator: Optional[torch.Generator] = None,
        output_type: Optional[str] = "pil",
        return_dict: bool = True,
    ):
        batch_size = 1 if isinstance(prompt, str) else len(prompt)
        length = self.tokenizer.model_max_length
        words = self.tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        text_embeddings = self.text_encoder(words.input_ids.to(self.device))[0]
        text_of_clip = self.clip_model.text_projection(self.clip_model.text_model(words.input_ids)[1])
        empty = self.tokenizer([""] * batch_size, padding="max_length", max_length=length, return_tensors="pt")
        uncond_embeddings = self.text_encoder(empty.input_ids.to(self.device))[0]
        both = torch.cat([uncond_embeddings, text_embeddings])

        latents_shape = (batch_size, self.unet.config.in_channels, height // 2, width // 2)
        latents = randn_tensor(latents_shape, generator=generator, device=self.device, dtype=text_embeddings.dtype)
        accepts_offset = "offset" in set(inspect.signature(self.scheduler.set_timesteps).parameters.keys())
        self.scheduler.set_timesteps(num_inference_steps, **({"offset": 1} if accepts_offset else {}))
        timesteps_tensor = self.scheduler.timesteps.to(self.device)
        latents = latents * self.scheduler.init_noise_sigma
        accepts_eta = "eta" in set(inspect.signature(self.scheduler.step).parameters.keys())
        extra_step_kwargs = {"eta": eta} if accepts_eta else {}

        for t in self.progress_bar(timesteps_tensor):
            latent_model_input = self.scheduler.scale_model_input(torch.cat([latents] * 2), t)
            noise_pred = self.unet(latent_model_input, t, encoder_hidden_states=both).sample
            noise_pred_uncond, noise_pred_text = noise_pred.chunk(2)
            noise_pred = noise_pred_uncond + guidance_scale * (noise_pred_text - noise_pred_uncond)
            if clip_guidance_scale > 0:
                noise_pred, latents = self.pull(
                    latents, t, text_embeddings, noise_pred, text_of_clip, clip_guidance_scale
                )
            latents = self.scheduler.step(noise_pred, t, latents, **extra_step_kwargs).prev_sample

        image = self.vae.decode(1 / self.vae.config.scaling_factor * latents).sample
        image = (image / 2 + 0.5).clamp(0, 1)
        image = image.cpu().permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            image = self.numpy_to_pil(image)
        if not return_dict:
            return (image, None)
        return StableDiffusionPipelineOutput(images=image, nsfw_content_detected=None)
