"""LoRA, IP-Adapters and learned words in one pipeline: whatever happens, nothing is left when all are gone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import langevin
from tests.adapters import loras
from tests.pipelines import ip_adapters as ip
from tests.pipelines import tiny

STEPS = ("lora", "scale", "fuse", "unfuse", "drop", "picture", "look", "away", "word", "forget", "draw")
PICTURE = tiny.picture(11, (40, 32))


def digest(pipe) -> str:
    """Return a hash of the weights of a pipeline and of the words of its tokenizer."""
    found = hashlib.sha256(repr(sorted(pipe.tokenizer.get_vocab().items())).encode())
    for module in (pipe.unet, pipe.text_encoder):
        for name, value in module.state_dict().items():
            found.update(name.encode() + value.contiguous().numpy().tobytes())
    return found.hexdigest()


def draw(pipe, prompt: str = "a cat", **more) -> np.ndarray:
    """Return the picture of a prompt."""
    return pipe(prompt, num_inference_steps=2, output_type="np", seed=3, **more).images


class Together:
    """A pipeline, and files for it; every step does what is possible at its time."""

    def __init__(self, folder) -> None:
        self.pipe = langevin.StableDiffusionPipeline.from_pretrained(folder)
        self.pipe.scheduler = tiny.scheduler(langevin, "DDIMScheduler")
        self.pipe.set_progress_bar_config(disable=True)
        self.pipe.image_encoder, self.pipe.feature_extractor = tiny.image_encoder(), tiny.feature_extractor()
        unet, text = self.pipe.unet, self.pipe.text_encoder
        parts = [
            {"unet": loras.halves(unet, seed=k), "text_encoder": loras.halves(text, loras.TEXT, seed=9 + k)}
            for k in range(2)
        ]
        self.styles = {f"style{k}": loras.diffusers(part) for k, part in enumerate(parts)}
        self.adapters = [ip.adapter("base", unet), ip.adapter("plus", unet), ip.adapter("faceid", unet, lora=2)]
        self.shown: int | None = None
        self.words: list[str] = []
        self.before, self.kept = draw(self.pipe), digest(self.pipe)

    def lora(self, which: int, number: float) -> None:
        """Load a style beside those that are there."""
        name = f"style{which % 2}"
        if name not in self.pipe.get_list_adapters().get("unet", ()):
            self.pipe.load_lora_weights(dict(self.styles[name]), adapter_name=name)

    def scale(self, which: int, number: float) -> None:
        """Weigh what is loaded."""
        present = self.pipe.get_list_adapters().get("unet", [])
        if present and not self.pipe.fused_loras:
            self.pipe.set_adapters(present, [number] * len(present))

    def fuse(self, which: int, number: float) -> None:
        """Fuse the active styles."""
        if self.pipe.get_active_adapters() and not self.pipe.fused_loras:
            self.pipe.fuse_lora(lora_scale=number)

    def unfuse(self, which: int, number: float) -> None:
        """Take them out again."""
        if self.pipe.fused_loras:
            self.pipe.unfuse_lora()

    def drop(self, which: int, number: float) -> None:
        """Unload all styles, or one."""
        if which == 0:
            self.pipe.unload_lora_weights()
        elif f"style{which % 2}" in self.pipe.get_list_adapters().get("unet", ()):
            self.pipe.delete_adapters(f"style{which % 2}")

    def picture(self, which: int, number: float) -> None:
        """Load one IP-Adapter in place of another."""
        self.pipe.load_ip_adapter(self.adapters[which])
        self.shown = which

    def look(self, which: int, number: float) -> None:
        """Weigh it."""
        if self.shown is not None:
            self.pipe.set_ip_adapter_scale(number if which else {"up": number})

    def away(self, which: int, number: float) -> None:
        """Remove it."""
        if self.shown is not None:
            self.pipe.unload_ip_adapter()
        self.shown = None

    def word(self, which: int, number: float) -> None:
        """Learn a word."""
        word = f"<w{which}>"
        if word not in self.words:
            rows = torch.randn(which + 1, tiny.WIDTH, generator=torch.Generator().manual_seed(which))
            self.pipe.load_textual_inversion({word: rows}, token=word)
            self.words.append(word)

    def forget(self, which: int, number: float) -> None:
        """Forget one."""
        word = f"<w{which}>"
        if word in self.words:
            self.pipe.unload_textual_inversion(word)
            self.words.remove(word)

    def draw(self, which: int, number: float) -> None:
        """Draw with all that is there."""
        faces = {"ip_adapter_image_embeds": [ip.faces()]} if self.shown == 2 else {"ip_adapter_image": PICTURE}
        picture = draw(self.pipe, f"a cat {' '.join(self.words)}", **(faces if self.shown is not None else {}))
        assert np.isfinite(picture).all()

    def all_gone(self) -> None:
        """Remove everything that is left."""
        self.away(0, 0.0)
        self.pipe.unload_lora_weights()
        for word in list(self.words):
            self.pipe.unload_textual_inversion(word)
        self.words.clear()


@pytest.fixture(scope="module")
def together(sd_folder):
    return Together(sd_folder)


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 2), st.sampled_from([0.0, 0.4, 1.0, -0.7])), max_size=10)
)
def test_nothing_is_left_of_any_sequence(together, steps) -> None:
    try:
        for step, which, number in steps:
            action: Callable[[int, float], None] = getattr(together, step)
            action(which, number)
    finally:
        together.all_gone()
    assert digest(together.pipe) == together.kept
    assert np.array_equal(draw(together.pipe), together.before)


def test_all_of_them_at_once(together) -> None:
    together.lora(0, 1.0)
    style = draw(together.pipe)
    together.picture(1, 1.0)
    together.word(1, 1.0)
    all_of_them = draw(together.pipe, "a cat <w1>", ip_adapter_image=PICTURE)
    together.fuse(0, 1.0)
    assert np.allclose(draw(together.pipe, "a cat <w1>", ip_adapter_image=PICTURE), all_of_them, atol=1e-4)
    together.unfuse(0, 1.0)
    assert np.array_equal(draw(together.pipe, "a cat <w1>", ip_adapter_image=PICTURE), all_of_them)
    together.away(0, 1.0)
    together.forget(1, 1.0)
    assert np.array_equal(draw(together.pipe), style)
    together.all_gone()
    assert np.array_equal(draw(together.pipe), together.before)
