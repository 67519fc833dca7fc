"""The documented IP-Adapter methods of pipelines; `picture_prompts`, which is imported when needed, does the work."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..families.conditioning import Conditions
from .inputs import Call

Source = str | os.PathLike | Mapping[str, Any]
Weight = float | Sequence[float] | Mapping[str, Any]


class IPAdapterMixin:
    """Adds picture prompts to a pipeline (Ye et al. 2023, 2308.06721)."""

    def load_ip_adapter(
        self,
        pretrained_model_name_or_path_or_dict: Source | Sequence[Source],
        subfolder: str | Sequence[str | None] | None = None,
        weight_name: str | Sequence[str] | None = None,
        image_encoder_folder: str | None = "image_encoder",
        low_cpu_mem_usage: bool | None = None,
        **hub: Any,
    ) -> None:
        """Load IP-Adapters in place of those that are loaded, with scale 1, and the picture encoder beside them.

        Args:
            pretrained_model_name_or_path_or_dict: a hub repository, a folder, a file, a state dict, or a list of them.
            subfolder: folder inside the repository, or one per adapter.
            weight_name: file name of the weights, or one per adapter; None takes the only one in a local folder.
            image_encoder_folder: folder of the encoder, beside the weights, or inside the repository where the name has
                a slash. None loads none; an encoder that the pipeline has is kept.
            low_cpu_mem_usage: accepted as documented; loading never holds the weights twice.
            hub: `revision`, `cache_dir`, `local_files_only`, `token`, `force_download`, `proxies`.

        Raises:
            ConfigError: the pipeline takes no picture prompts, or its network no adapters.
            InputError: a file or folder does not exist, or the lists differ in length.
            WeightsError: a file is damaged, is no IP-Adapter, or is for another network. Nothing has changed then.
        """
        from . import picture_prompts

        places = picture_prompts.spread(pretrained_model_name_or_path_or_dict, subfolder, weight_name)
        picture_prompts.load(self, places, image_encoder_folder, hub)

    def set_ip_adapter_scale(self, scale: Weight | Sequence[Weight]) -> None:
        """Set how much the pictures count beside the prompt: 0 not at all, 1 as the adapter was trained.

        Args:
            scale: one for all adapters, or a list with one for each. A scale is a number; a list of numbers, one per
                picture of an adapter whose pictures have masks; or numbers by block of the UNet, 0 for the others:
                `{"down": {"block_2": [0.0, 1.0]}, "up": {"block_0": [0.0, 1.0, 0.0]}}` (Wang et al. 2024, 2404.02733).

        Raises:
            ConfigError: when no adapter is loaded, or for a block that the UNet does not have.
            InputError: for another number of scales than adapters, or of numbers than transformers in a block.
        """
        from ..adapters.ip_adapter import set_scale

        set_scale(self._part("unet"), scale)  # type: ignore[attr-defined]

    def unload_ip_adapter(self) -> None:
        """Remove the IP-Adapters, and the encoder that was loaded with them; all is as it was before."""
        from . import picture_prompts

        picture_prompts.unload(self)

    def encode_image(
        self,
        image: Any,
        device: torch.device | str | None = None,
        num_images_per_prompt: int = 1,
        output_hidden_states: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return what the picture encoder sees in pictures, and in nothing for the negative prompts.

        Both are (pictures * num_images_per_prompt, width), or (..., tokens, width) with `output_hidden_states`, the
        states before the last layer; nothing is zeros, with `output_hidden_states` the states of a black picture.
        """
        from . import picture_prompts

        rows = picture_prompts.encode(self, image, device, hidden=bool(output_hidden_states))
        seen, nothing = (part.repeat_interleave(num_images_per_prompt, 0) for part in rows)
        return seen, nothing

    def prepare_ip_adapter_image_embeds(
        self,
        ip_adapter_image: Any,
        ip_adapter_image_embeds: Sequence[Tensor] | None,
        device: torch.device | str | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
    ) -> list[Tensor]:
        """Return the embeddings of pictures, one tensor (rows, pictures, ...) per adapter.

        There are `num_images_per_prompt` rows and, with guidance, as many of the negative prompts before them. The
        result may be given to a call as `ip_adapter_image_embeds` when there is one row of each.

        Raises:
            ConfigError: when no adapter is loaded.
            InputError: when the pictures do not fit the adapters.
        """
        from . import picture_prompts

        guided = do_classifier_free_guidance
        pairs = picture_prompts.shown(self, ip_adapter_image, ip_adapter_image_embeds, device, guided=guided)
        return [
            torch.cat([torch.cat([rows] * num_images_per_prompt) for rows in (nothing, seen) if rows is not None])
            for seen, nothing in pairs
        ]

    def _with_pictures(self, call: Call, conditions: Conditions) -> Conditions:
        """Return the conditioning of every branch with the call's picture prompts, if it has any."""
        if call.get("ip_adapter_image") is None and call.get("ip_adapter_image_embeds") is None:
            return conditions
        from . import picture_prompts

        return picture_prompts.told(self, call, conditions)

    def _check_picture_prompts(self, call: Call) -> None:
        """Check the picture prompts of a call against the adapters that are loaded, before any work."""
        masked = "ip_adapter_masks" in (call.get("cross_attention_kwargs") or {})
        if masked or any(call.get(name) is not None for name in ("ip_adapter_image", "ip_adapter_image_embeds")):
            from . import picture_prompts

            picture_prompts.check(self, call)
