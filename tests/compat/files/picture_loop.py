# ruff: noqa
"""Picture to picture with the loop written out."""

import torch

from diffusers import StableDiffusionImg2ImgPipeline
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents


class RepeatedPicturePipeline(StableDiffusionImg2ImgPipeline):
    @torch.no_grad()
    def __call__(
        self,
        prompt,
        image: PipelineImageInput = None,
        strength=0.5,
        num_inference_steps=8,
        guidance_scale=5.0,
        num_images_per_prompt=1,
        eta=0.0,
        generator=None,
        output_type="pil",
    ):
        self.check_inputs(prompt, strength, None)
        self._guidance_scale = guidance_scale
        device = self._execution_device
        negative, positive = self.encode_prompt(prompt, device, num_images_per_prompt, True)[::-1]
        embeds = torch.cat([negative, positive])
        image = self.image_processor.preprocess(image)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        timesteps, num_inference_steps = self.get_timesteps(num_inference_steps, strength, device)
        latent_timestep = timesteps[:1].repeat(len(prompt) * num_images_per_prompt)
        latents = self.prepare_latents(
            image, latent_timestep, len(prompt), num_images_per_prompt, embeds.dtype, device, generator
        )
        clean = retrieve_latents(self.vae.encode(image), sample_mode="argmax") * self.vae.config.scaling_factor
        extra_step_kwargs = self.prepare_extra_step_kwargs(generator, eta)
        with self.progress_bar(total=num_inference_steps) as progress_bar:
            for t in timesteps:
                doubled = self.scheduler.scale_model_input(torch.cat([latents] * 2), t)
                uncond, text = self.unet(doubled, t, encoder_hidden_states=embeds, return_dict=False)[0].chunk(2)
                noise_pred = uncond + self.guidance_scale * (text - uncond)
                latents = self.scheduler.step(noise_pred, t, latents, **extra_step_kwargs, return_dict=False)[0]
                progress_bar.update()
        image = self.vae.decode((0.9 * latents + 0.1 * clean) / self.vae.config.scaling_factor, return_dict=False)[0]
        return self.image_processor.postprocess(image, output_type=output_type)
