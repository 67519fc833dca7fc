"""The documented textual inversion methods of pipelines: learned words from files, used in prompts, removed, saved."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..core.report import LoadReport
from ..prompts import expand_words

Source = str | os.PathLike | Mapping[str, Any] | Tensor


class TextualInversionLoaderMixin:
    """Adds the loading and removing of learned words to a pipeline.

    Words belong to the text encoder and its tokenizer: pipelines that share these share the words. A word that is
    loaded may be used in every prompt at once, also in calls that are running. While a word is removed no call should
    run that uses learned words.
    """

    def register_modules(self, **components: Any) -> None:
        """Take over components by name, text encoders with the words that they have learned before."""
        super().register_modules(**components)
        if any(name.startswith("text_encoder") and part is not None for name, part in components.items()):
            from . import words

            words.find_ends(self)

    def load_textual_inversion(
        self,
        pretrained_model_name_or_path: Source | Sequence[Source],
        token: str | Sequence[str | None] | None = None,
        tokenizer: Any = None,
        text_encoder: nn.Module | None = None,
        *,
        weight_name: str | None = None,
        subfolder: str | None = None,
        use_safetensors: bool | None = None,
        hf_token: str | bool | None = None,
        **hub: Any,
    ) -> LoadReport:
        """Load learned words (textual inversion, Gal et al. 2022, 2208.01618), all or none; later calls add to them.

        Args:
            pretrained_model_name_or_path: a file, a folder, a hub repository, a state dict, a tensor of vectors, or a
                list of these. See `weights.dialects.textual_inversion` for the layouts.
            token: the word in prompts, or a list with one for each word that is loaded; where None, what the file says.
            tokenizer, text_encoder: where the words are learned. By default the file says it, or else the width of its
                vectors: a file for both encoders of SDXL fills both.
            weight_name: file in the folder or repository; learned_embeds.safetensors or .bin by default.
            subfolder: folder inside it.
            use_safetensors: with True only .safetensors is looked for, with False only other files.
            hf_token: login for the hub, which is called `token` elsewhere.
            hub: `revision`, `cache_dir`, `local_files_only`, `force_download`, `proxies`.

        Returns:
            what was applied, by the names in the files, and what was ignored and why.

        Raises:
            InputError: for a file that does not exist, a word that is known already, or one that has no name.
            WeightsError: for a file that is damaged or holds no words, or vectors made for another text encoder.
            ConfigError: when the pipeline has no text encoder, or its tokenizer does not belong to it.
        """
        from . import words

        where = {"weight_name": weight_name, "subfolder": subfolder, "use_safetensors": use_safetensors}
        place = {"tokenizer": tokenizer, "text_encoder": text_encoder}
        return words.load(
            self, pretrained_model_name_or_path, token, where=where, hub={**hub, "hf_token": hf_token}, **place
        )

    def unload_textual_inversion(
        self,
        tokens: str | Sequence[str] | None = None,
        tokenizer: Any = None,
        text_encoder: nn.Module | None = None,
    ) -> None:
        """Remove learned words, all by default, from all text encoders or from the one given.

        The embedding matrix and the tokenizer are then as they were before, whatever the order of loading.

        Raises:
            InputError: for a word that is not loaded; nothing has changed then.
        """
        from . import words

        words.unload(self, tokens, tokenizer=tokenizer, text_encoder=text_encoder)

    def save_textual_inversion(
        self,
        save_directory: str | os.PathLike,
        token: str | Sequence[str] | None = None,
        *,
        layout: str = "diffusers",
        weight_name: str | None = None,
        safe_serialization: bool = True,
    ) -> Path:
        """Save learned words and return the file.

        Args:
            save_directory: folder, or a file that ends with .safetensors, .bin or .pt.
            token: the word, or several; all that are loaded by default.
            layout: "diffusers" or "a1111". A word of both encoders of SDXL is saved as `clip_l` and `clip_g`, which
                both tools read; the file's name is then the word.
            weight_name: name of the file in the folder; by default learned_embeds, or the word where the layout does
                not hold it.
            safe_serialization: .safetensors, and not a pickle.

        Raises:
            InputError: for a word that is not loaded, or words that do not fit into one file of the layout.
        """
        from . import words

        options: dict[str, Any] = {"layout": layout, "weight_name": weight_name, "safe": safe_serialization}
        return words.save(self, save_directory, token, **options)

    def maybe_convert_prompt(self, prompt: str | list[str], tokenizer: Any) -> str | list[str]:
        """Return prompts with learned words of several tokens written out, as packages for prompts ask for them."""
        if isinstance(prompt, str):
            return expand_words(prompt, tokenizer)
        return [expand_words(text, tokenizer) for text in prompt]
