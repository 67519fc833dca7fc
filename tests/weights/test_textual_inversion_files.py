"""Files of learned words: every layout read and written, recognised from names alone, and refused with a reason."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from langevin.core.errors import InputError, WeightsError
from langevin.core.pickles import PickleFile
from langevin.core.weights_io import Entry, SafetensorsFile, write_safetensors
from langevin.weights.dialects.textual_inversion import ANY, parse, probe, read, write

VECTORS = torch.arange(24.0).reshape(3, 8)
OTHER = torch.arange(15.0).reshape(3, 5)
A1111 = {
    "string_to_token": {"*": 265},
    "string_to_param": {"*": VECTORS},
    "name": "toy",
    "step": 9,
    "sd_checkpoint": None,
}
LAYOUTS = {
    "one vector": ({"<toy>": VECTORS[0]}, "<toy>", {ANY: VECTORS[:1]}),
    "a row": ({"<toy>": VECTORS[:1]}, "<toy>", {ANY: VECTORS[:1]}),
    "several vectors": ({"<toy>": VECTORS}, "<toy>", {ANY: VECTORS}),
    "a1111": (A1111, "toy", {ANY: VECTORS}),
    "a1111 with a name of its own": ({"string_to_param": {"<toy>": VECTORS}}, "<toy>", {ANY: VECTORS}),
    "a1111 safetensors": ({"emb_params": VECTORS}, None, {ANY: VECTORS}),
    "sdxl": ({"clip_l": VECTORS, "clip_g": OTHER}, None, {"text_encoder": VECTORS, "text_encoder_2": OTHER}),
    "sdxl, the other way round": (
        {"clip_g": OTHER, "clip_l": VECTORS},
        None,
        {"text_encoder": VECTORS, "text_encoder_2": OTHER},
    ),
    "sdxl, from training": (
        {"text_encoders_0": VECTORS, "text_encoders_1": OTHER},
        None,
        {"text_encoder": VECTORS, "text_encoder_2": OTHER},
    ),
    "sdxl, one encoder": ({"clip_g": OTHER}, None, {"text_encoder_2": OTHER}),
}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("ending", [".safetensors", ".bin", ".pt"])
def test_every_layout_is_read(tmp_path, name, ending) -> None:
    state, word, vectors = LAYOUTS[name]
    path = tmp_path / f"my-style{ending}"
    if ending == ".safetensors":
        if "string_to_param" in state:
            pytest.skip("a layout of pickles")
        write_safetensors(path, state, {})
    else:
        torch.save(state, path)
    (found,) = read(path)
    assert found.word == (word or "my-style")
    assert same(found.vectors, vectors)


def test_several_words_in_one_file(tmp_path) -> None:
    torch.save({"<a>": VECTORS[0], "<b>": VECTORS}, tmp_path / "words.bin")
    assert [(each.word, len(each.vectors[ANY])) for each in read(tmp_path / "words.bin")] == [("<a>", 1), ("<b>", 3)]
    several = parse({"string_to_param": {"<a>": VECTORS, "<b>": VECTORS[0]}, "name": None}, "it")
    assert [each.word for each in several] == ["<a>", "<b>"]


def test_vectors_that_still_ask_for_gradients_are_read(tmp_path) -> None:
    torch.save({"string_to_param": {"*": torch.nn.Parameter(VECTORS)}, "name": "toy"}, tmp_path / "toy.pt")
    (found,) = read(tmp_path / "toy.pt")
    assert not found.vectors[ANY].requires_grad and torch.equal(found.vectors[ANY], VECTORS)


def test_a_file_called_by_default_says_no_word(tmp_path) -> None:
    write_safetensors(tmp_path / "learned_embeds.safetensors", {"emb_params": VECTORS}, {})
    assert read(tmp_path / "learned_embeds.safetensors")[0].word is None


WORDS = {"<toy>": {"text_encoder": VECTORS}}
BOTH = {"<toy>": {"text_encoder": VECTORS, "text_encoder_2": OTHER}}


@pytest.mark.parametrize("layout", ["diffusers", "a1111"])
@pytest.mark.parametrize("ending", [".safetensors", ".bin", ".pt"])
@pytest.mark.parametrize("words", [WORDS, BOTH], ids=["one encoder", "both"])
def test_what_is_written_is_read_again(tmp_path, layout, ending, words) -> None:
    write(tmp_path / f"<toy>{ending}", words, layout)
    (found,) = read(tmp_path / f"<toy>{ending}")
    assert found.word == "<toy>"
    expected = {ANY: VECTORS} if words is WORDS else {"text_encoder": VECTORS, "text_encoder_2": OTHER}
    assert same(found.vectors, expected)


def test_what_a1111_writes_is_written(tmp_path) -> None:
    write(tmp_path / "toy.pt", {"toy": {"text_encoder": VECTORS}}, "a1111")
    state = torch.load(tmp_path / "toy.pt", weights_only=True)
    assert state["name"] == "toy" and torch.equal(state["string_to_param"]["*"], VECTORS)
    write(tmp_path / "toy.bin", {"<a>": {"x": VECTORS[:1]}, "<b>": {"x": VECTORS}})
    state = torch.load(tmp_path / "toy.bin", weights_only=True)
    assert {word: tuple(rows.shape) for word, rows in state.items()} == {"<a>": (8,), "<b>": (3, 8)}


def test_what_does_not_fit_into_a_file(tmp_path) -> None:
    with pytest.raises(InputError, match="holds one word and not 2"):
        write(tmp_path / "a.pt", {"<a>": {"x": VECTORS}, "<b>": {"x": VECTORS}}, "a1111")
    with pytest.raises(InputError, match=r"\.safetensors, \.bin, \.pt"):
        write(tmp_path / "a.ckpt", WORDS)
    with pytest.raises(InputError, match="did you mean 'a1111'"):
        write(tmp_path / "a.pt", WORDS, "a111")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, "holds nothing"),
        ([VECTORS], "holds list"),
        ({"a": VECTORS, "b": 3}, "'b' is int where vectors"),
        ({"a": torch.zeros(2, 3, 4)}, r"'a' is torch.float32 of shape \(2, 3, 4\)"),
        ({"a": torch.zeros(0, 3)}, "where vectors"),
        ({"a": torch.arange(3)}, "torch.int64"),
        ({"a": torch.tensor([1.0, float("nan")])}, "NaN or infinity"),
        ({"string_to_param": {}}, "no vectors under 'string_to_param'"),
        ({"clip_l": VECTORS, "clip_g": OTHER[:2]}, "3 for text_encoder, 2 for text_encoder_2"),
        ({f"layer.{k}.weight": VECTORS for k in range(100)}, "has 100 entries"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_file_of_words(state, words) -> None:
    with pytest.raises(WeightsError, match=words):
        parse(state, "it")


def test_damaged_and_foreign_files(tmp_path) -> None:
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "word.png")
    with pytest.raises(WeightsError, match="PNG picture: words hidden in pictures are not read"):
        read(tmp_path / "word.png")
    write(tmp_path / "toy.safetensors", WORDS)
    whole = (tmp_path / "toy.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(whole[:-5])
    with pytest.raises(WeightsError, match="truncated"):
        read(tmp_path / "short.safetensors")
    (tmp_path / "page.bin").write_text("<!DOCTYPE html><html></html>")
    with pytest.raises(WeightsError, match="an HTML page"):
        read(tmp_path / "page.bin")


def test_the_bytes_tell_the_format_and_not_the_name(tmp_path) -> None:
    for true, told in ((".safetensors", ".bin"), (".bin", ".safetensors"), (".pt", ".SAFETENSORS")):
        write(tmp_path / f"toy{true}", WORDS)
        (tmp_path / f"other{told}").write_bytes((tmp_path / f"toy{true}").read_bytes())
        (one,), (other,) = (read(tmp_path / name) for name in (f"toy{true}", f"other{told}"))
        assert one.word == other.word and one.vectors.keys() == other.vectors.keys()


def test_no_code_runs(tmp_path) -> None:
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "was-here"), "w")

    torch.save({"string_to_param": {"*": VECTORS}, "name": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match="run code"):
        read(tmp_path / "evil.pt")
    assert not (tmp_path / "was-here").exists()


def entries(**shapes) -> dict[str, Entry]:
    return {name: Entry(torch.float32, shape, 0, int(np.prod(shape)) * 4) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("shapes", "family", "dialect"),
    [
        ({"<toy>": (768,)}, "sd1", "diffusers"),
        ({"<toy>": (4, 1024)}, "sd2", "diffusers"),
        ({"<a>": (768,), "<b>": (2, 768)}, "sd1", "diffusers"),
        ({"<toy>": (1280,)}, "sdxl", "diffusers"),
        ({"<a>": (768,), "<b>": (1024,)}, None, "diffusers"),
        ({"emb_params": (2, 768)}, "sd1", "a1111"),
        ({"string_to_param.*": (2, 1024)}, "sd2", "a1111"),
        ({"clip_l": (2, 768), "clip_g": (2, 1280)}, "sdxl", "sdxl"),
        ({"text_encoders_0": (2, 768), "text_encoders_1": (2, 1280)}, "sdxl", "sdxl-train"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_look_tells_what_it_is(shapes, family, dialect) -> None:
    found = probe(entries(**shapes), {"name": "<toy>"})
    assert found is not None
    assert (found.kind, found.family, found.dialect) == ("textual inversion", family, dialect)
    assert found.reasons and found.details["widths"] == sorted({shape[-1] for shape in shapes.values()})
    assert found.details["words"] == (list(shapes) if dialect == "diffusers" else ["<toy>"])


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"conv_in.weight": (320, 4, 3, 3)},
        {"norm.weight": (768,), "norm.bias": (768,)},
        {"lora_unet_down_alpha": (768,)},
        {"<toy>": (77, 55)},
        {f"{k}": (768,) for k in range(100)},
    ],
)
def test_a_look_at_something_else(shapes) -> None:
    assert probe(entries(**shapes), {}) is None


def test_a_look_at_files(tmp_path) -> None:
    write(tmp_path / "toy.pt", {"toy": {"x": torch.zeros(2, 768)}}, "a1111")
    with PickleFile(tmp_path / "toy.pt") as file:
        found = probe(file.entries, file.metadata)
    assert found is not None and found.dialect == "a1111" and found.details["words"] == ["toy"]
    write(tmp_path / "toy.safetensors", {"<toy>": {"x": torch.zeros(2, 768)}})
    with SafetensorsFile(tmp_path / "toy.safetensors") as file:
        found = probe(file.entries, file.metadata)
    assert found is not None and found.details == {"words": ["<toy>"], "vectors": 2, "widths": [768]}
