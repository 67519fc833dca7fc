"""What every parameter of a pipeline's call means, in one place; help and documentation are built from it."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import Any, TypeVar

from ..core.errors import ConfigError

Call_ = TypeVar("Call_", bound=Callable[..., Any])

GLOSSARY: dict[str, str] = {
    "adapter_conditioning_factor": "Part of the run, from its start, in which the adapter acts, in [0, 1].",
    "adapter_conditioning_scale": "Weight of the T2I-Adapter; 0 switches it off. One number, or one per adapter.",
    "aesthetic_score": "Aesthetic score, about 1 to 10, that refiners are told with the prompts.",
    "batch_size": "Number of pictures to make.",
    "callback": "Deprecated: function `(step, timestep, latents)`, called every `callback_steps` steps.",
    "callback_on_step_end": (
        "Function `(pipe, step, timestep, tensors) -> tensors`, or a `PipelineCallback`, called after every step. "
        "`tensors` holds what `callback_on_step_end_tensor_inputs` names; what it returns replaces them. Setting "
        "`pipe._interrupt = True` in it stops the run after this step."
    ),
    "callback_on_step_end_tensor_inputs": (
        "Names of the tensors the callback receives; a pipeline lists those it offers in `_callback_tensor_inputs`."
    ),
    "callback_steps": "Every how many steps the deprecated `callback` is called.",
    "clip_skip": (
        "Number of last layers of the text encoder to skip: 1 takes the output of the layer before the last. None "
        "takes the last."
    ),
    "control_guidance_end": (
        "Part of the run after which a ControlNet is not asked any more, in [0, 1]; one number, or one per ControlNet."
    ),
    "control_guidance_start": (
        "Part of the run before which a ControlNet is not asked, in [0, 1]; one number, or one per ControlNet."
    ),
    "control_image": (
        "Picture that a ControlNet follows, or one per prompt; several ControlNets take a list with one entry each, or "
        "one such list per prompt. Values in [0, 1] in the order of `image`."
    ),
    "controlnet_conditioning_scale": (
        "Weight of the ControlNet; 0 switches it off. One number, or one per ControlNet."
    ),
    "crops_coords_top_left": (
        "Where, (top, left) in pixels, the picture looks cut out of a larger one; (0, 0) looks centred (Podell et al. "
        "2023, section 2.2)."
    ),
    "cross_attention_kwargs": (
        "Options of the network's attentions; `scale` multiplies the weights of all active adapters in this run."
    ),
    "denoising_end": (
        "Fraction of the training schedule, in [0, 1], after which the run stops; the latents are noisy and are for "
        "another run with `denoising_start` and the same number of steps."
    ),
    "denoising_start": (
        "Fraction of the training schedule, in [0, 1], where the run starts: `image` is noised that far already, as "
        "`denoising_end` left it. Replaces `strength`."
    ),
    "deprecated": (
        "Old documented keywords: `callback(step, timestep, latents)` and `callback_steps`, every how many steps it is "
        "called; use `callback_on_step_end`."
    ),
    "depth_map": "Depth of the picture, a tensor (rows, height, width); near is large. None estimates it.",
    "eta": (
        "Amount of fresh noise per step of samplers that know it (DDIM, Song et al. 2021): 0 is deterministic, 1 is "
        "DDPM. Other samplers ignore it with a warning."
    ),
    "generator": (
        "Random stream, or one per picture; a generator on the CPU serves every device and gives the same noise on all "
        "of them. Without `generator` and `seed` the noise is new each time; the global stream is never used."
    ),
    "guess_mode": (
        "Let the control picture guide without a prompt: the ControlNet acts on the positive prompt alone and its "
        "early layers are weakened (Zhang & Agrawala 2023); a guidance_scale of 3 to 5 suits it."
    ),
    "guidance_rescale": (
        "Strength in [0, 1] of the correction that keeps the standard deviation of guided predictions (Lin et al. "
        "2023, section 3.4); 0 is off."
    ),
    "guidance_scale": (
        "Weight w of classifier-free guidance (Ho & Salimans 2022): uncond + w (cond - uncond). Values of 1 and below "
        "switch it off and halve the work."
    ),
    "height": "Height of the picture in pixels, a multiple of the autoencoder's factor. None: the model's own size.",
    "image": (
        "Picture to start from, or one per prompt: PIL pictures, arrays (height, width, channels) or tensors "
        "(channels, height, width) in [0, 1] or [-1, 1]; a tensor with the latents' number of channels is latents. In "
        "text-to-image pipelines with a control it is the control picture, as `control_image` elsewhere."
    ),
    "image_guidance_scale": (
        "Weight of the picture that is edited (Brooks et al. 2023): larger values stay closer to it. Below 1 guidance "
        "is off."
    ),
    "ip_adapter_image": (
        "Picture that the result follows beside the prompt, for a loaded IP-Adapter: one picture, or a list with one "
        "entry per adapter, each a picture or a list of pictures. None draws from the prompt alone."
    ),
    "ip_adapter_image_embeds": (
        "Embeddings in place of `ip_adapter_image`, one tensor (rows, pictures, ..., width) per IP-Adapter, with "
        "guidance first the rows of the negative prompts; `prepare_ip_adapter_image_embeds` makes them."
    ),
    "latents": (
        "Starting noise with unit variance in place of a drawn one, (pictures, channels, height / factor, width / "
        "factor)."
    ),
    "long_prompt": (
        '"chunk" encodes prompts of any length in rows of the encoder\'s length; "truncate" drops what does not fit, '
        "and a warning names the words."
    ),
    "mask_feather": "Pixels inside the hole over which the kept part fades out when it is pasted back.",
    "mask_image": (
        "Mask over the picture: white is painted anew, black is kept. A picture, array or tensor in [0, 1], cut at one "
        "half."
    ),
    "masked_image_latents": (
        "Latents of the picture without its masked part, for networks that see them; None encodes it."
    ),
    "match_colour": "Bring the colours of the painted part to those around the hole when the kept part is pasted back.",
    "negative_aesthetic_score": "Aesthetic score that refiners are told with the negative prompts.",
    "negative_crops_coords_top_left": (
        "`crops_coords_top_left` of the negative prompts; that of the prompts where no negative size is given."
    ),
    "negative_original_size": "`original_size` of the negative prompts; None is that of the prompts.",
    "negative_pooled_prompt_embeds": "Pooled encodings (prompts, width) of the negative prompts.",
    "negative_prompt": "What the picture should not show: one text for all prompts or one per prompt. Needs guidance.",
    "negative_prompt_2": "Negative prompts of the second text encoder; None is `negative_prompt`.",
    "negative_prompt_embeds": "Encoded negative prompts (prompts, tokens, width) in place of `negative_prompt`.",
    "negative_target_size": "`target_size` of the negative prompts; None is that of the prompts.",
    "noise_level": "Training step of the noise that is added to the small picture; more hides more of its flaws.",
    "num_images_per_prompt": "Number of pictures per prompt.",
    "num_inference_steps": "Number of denoising steps; more are slower and usually better.",
    "original_size": (
        "Size (height, width) in pixels that the picture looks as if it had before it was brought to its own; None is "
        "its own (Podell et al. 2023, section 2.2)."
    ),
    "output_type": (
        '"pil" (list of PIL pictures), "np" (array (pictures, height, width, channels) in [0, 1]), "pt" (tensor '
        '(pictures, channels, height, width) in [0, 1]) or, where there are latents, "latent" (not decoded).'
    ),
    "padding_mask_crop": (
        "Margin in pixels around the masked part: that part alone is enlarged, painted and put back. None works on the "
        "whole picture."
    ),
    "paste_back": ("Give every kept pixel back exactly as it was; False returns what the autoencoder makes of it."),
    "pooled_prompt_embeds": "Pooled encodings (prompts, width) of the prompts, beside `prompt_embeds`.",
    "prompt": "What the picture should show: one text, or a list for several pictures.",
    "prompt_2": "Prompts of the second text encoder; None is `prompt`.",
    "prompt_embeds": "Encoded prompts (prompts, tokens, width) in place of `prompt`, as `encode_prompt` returns them.",
    "prompt_syntax": (
        'How prompts are read: "a1111", "compel" or "comfy" for weights and more; None takes them as plain text.'
    ),
    "return_dict": "True returns an output object, False a plain tuple of its fields.",
    "seed": (
        "Whole number, or one per picture, in place of `generator`: picture k of a call with seed s is the picture "
        "that seed s + k makes alone."
    ),
    "sigmas": "Own noise levels, descending, for samplers that take them; replaces `num_inference_steps`.",
    "strength": (
        "How much of the picture is replaced, in [0, 1]: the run starts from the picture with that part of the noise "
        "and makes that part of the steps. 0 returns the picture, 1 all but ignores it."
    ),
    "target_size": "Size (height, width) in pixels that the network is told; None is that of the picture.",
    "timesteps": "Own timesteps, descending, for samplers that take them; replaces `num_inference_steps`.",
    "use_clipped_model_output": (
        "Recompute the noise prediction from the clipped picture prediction (DDIM only); None is the sampler's default."
    ),
    "width": "Width of the picture in pixels, a multiple of the autoencoder's factor. None: the model's own size.",
}
"""Parameter of a pipeline call -> meaning, shape and unit. Defaults stand in the signatures."""


def parameters(call: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a call by name, without self and with the extra keywords."""
    return {name: p for name, p in inspect.signature(call).parameters.items() if name != "self"}


def describe(call: Callable[..., Any]) -> str:
    """Return the argument section of a call's help, from its signature and the glossary.

    Raises:
        ConfigError: for a parameter that the glossary does not explain.
    """
    lines = []
    for name, parameter in parameters(call).items():
        if name not in GLOSSARY:
            raise ConfigError(
                f"The parameter {name!r} of {call.__qualname__} is not explained in pipelines.glossary.GLOSSARY."
            )
        default = "" if parameter.default in (parameter.empty, None) else f" Default: {parameter.default!r}."
        text = f"{name}: {GLOSSARY[name]}{default}"
        lines.append(textwrap.fill(text, 112, initial_indent=" " * 4, subsequent_indent=" " * 8))
    return "Args:\n" + "\n".join(lines)


def documented(call: Call_) -> Call_:
    """Decorate a `__call__`: its help gains the glossary's words for every parameter."""
    call.__doc__ = f"{inspect.cleandoc(call.__doc__ or '')}\n\n{describe(call)}\n"
    return call
