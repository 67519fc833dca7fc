"""Files of IP-Adapters: parts in dictionaries or prefixes, what is refused, and what a look tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from langevin.core.errors import WeightsError
from langevin.core.weights_io import Entry, write_safetensors
from langevin.weights.dialects.ip_adapter import parse, probe, read
from tests.weights import zoo

KEYS = {"down.attn2.to_k.weight": (8, 16), "up.attn2.to_k.weight": (12, 16)}


def state(**more: Any) -> dict[str, torch.Tensor]:
    """Return a base adapter of two cross-attentions that turns 6 numbers into 2 tokens."""
    shapes = zoo.ip_adapter(KEYS, tokens=2, embedding=6)
    return {name: torch.randn(shape) for name, shape in shapes.items()} | more


def test_both_ways_of_writing_and_both_formats(tmp_path: Path) -> None:
    flat = state()
    nested: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, value in flat.items():
        part, _, inside = name.partition(".")
        nested[part][inside] = value
    write_safetensors(tmp_path / "one.safetensors", flat, {})
    torch.save(nested, tmp_path / "two.bin")
    for found in (parse(flat), parse(nested), read(tmp_path / "one.safetensors"), read(tmp_path / "two.bin")):
        assert (found.kind.name, found.tokens, found.width("image_embeds")) == ("base", 2, 6)
        assert sorted(found.attention) == [1, 3] and found.lora == {}
        assert torch.equal(found.attention[3]["to_v"], flat["ip_adapter.3.to_v_ip.weight"])
        assert torch.equal(found.projection["image_embeds.weight"], flat["image_proj.proj.weight"])


def test_names_that_no_adapter_has_and_halves_are_refused() -> None:
    for stray in ("other.weight", "image_proj.prj.weight", "ip_adapter.1.to_q_ip.weight"):
        with pytest.raises(WeightsError, match=rf"names that none has, or halves: {stray}"):
            parse(state(**{stray: torch.zeros(1)}))
    half = state()
    del half["ip_adapter.3.to_v_ip.weight"]
    with pytest.raises(WeightsError, match=r"halves: 3\."):
        parse(half)
    with pytest.raises(WeightsError, match=r"halves: 1\.to_q"):
        parse(state(**{"ip_adapter.1.to_q_lora.down.weight": torch.zeros(2, 8)}))


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ("", "it is empty"),
        ("image_proj.", r"it has no `ip_adapter\.\*`"),
        ("ip_adapter.", r"it has no `image_proj\.\*`"),
        ("ip_adapter. image_proj.norm", "of no kind that is known"),
    ],
)
def test_what_is_no_adapter(left: str, said: str) -> None:
    kept = {name: value for name, value in state().items() if left and name.startswith(tuple(left.split()))}
    with pytest.raises(WeightsError, match=f"is no IP-Adapter: .*{said}"):
        parse(kept)


def test_a_look() -> None:
    entries = {name: Entry(value.dtype, tuple(value.shape), 0, 0) for name, value in state().items()}
    found = probe(entries, {})
    assert found is not None and (found.kind, found.family, found.dialect) == ("ip-adapter", None, "base")
    assert found.details == {"variant": "base", "attentions": 2, "tokens per picture": 2, "context width": 16}
    lora = {"ip_adapter.0.to_q_lora.down.weight": Entry(torch.float32, (2, 8), 0, 0)}
    also = probe({**entries, **lora}, {})
    assert also is not None and also.details["lora"] == "layers of all attentions beside it"
    assert probe({name: entry for name, entry in entries.items() if "ip_adapter" in name}, {}) is None
