"""Model cards of trained results: what they began with can be read from them, and their program is Python."""

from __future__ import annotations

import re

import pytest

from langevin.training.recipes.cards import card

USE = 'pipe.unet.load_attn_procs("REPO")\npipe.load_textual_inversion("REPO", weight_name="<new1>.bin")'


@pytest.mark.parametrize(("base", "known"), [("some/model", "some/model"), ("./folder", None)])
@pytest.mark.parametrize("use", ["", USE])
def test_a_card_says_what_training_began_with(base: str, known: str | None, use: str) -> None:
    from huggingface_hub.repocard import RepoCard

    text = card(base, use, "me/mine")
    assert RepoCard(text).data.to_dict().get("base_model") == known
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    compile(code, "card", "exec")
    assert RepoCard(text).data.pipeline_tag == "text-to-image" and f"beginning with `{base}`" in text
    assert f'from_pretrained("{base if use else "me/mine"}")' in code
    assert code.count('("me/mine"') == 1 + use.count("\n")


def test_a_pipeline_that_began_with_nothing_has_a_card_too() -> None:
    from huggingface_hub.repocard import RepoCard

    text = card(None, "", "me/flowers")
    found = RepoCard(text).data
    assert found.pipeline_tag == "unconditional-image-generation" and found.get("base_model") is None
    assert 'from_pretrained("me/flowers")' in text and "from the beginning" in text and "None" not in text
