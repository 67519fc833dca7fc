"""Learned words in pipelines: the peer's pictures, every syntax and encoder, and no trace after unloading."""

from __future__ import annotations

import copy
import json
import logging
import random
import threading

import diffusers
import numpy as np
import pytest
import torch

import langevin
from langevin.adapters.textual_inversion import Place, add, remove
from langevin.core.errors import ConfigError, InputError, WeightsError
from tests.pipelines import tiny, tiny_xl
from tests.pipelines.pairs import difference

CALL = {"num_inference_steps": 2, "output_type": "np", "seed": 3, "guidance_scale": 4.0}
PAIRS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))


def vectors(count: int, width: int = tiny.WIDTH, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def state(tokenizer, encoder):
    """Return all that loading may change: the tokenizer inside and out, the weights, the configuration."""
    backend = json.loads(tokenizer._tokenizer.to_str()) if tokenizer.is_fast else None
    if backend:
        backend["padding"] = backend["truncation"] = None
    outside = {
        name: repr(value)
        for name, value in vars(tokenizer).items()
        if name not in ("_tokenizer", "tokens_trie", "cache")
    }
    weights = {name: (weight.shape, weight.clone()) for name, weight in encoder.state_dict().items()}
    inner = getattr(encoder, "text_model", encoder)
    return backend, outside, len(tokenizer), encoder.config.to_dict(), getattr(inner, "eos_token_id", None), weights


def states(pipe):
    return [state(getattr(pipe, t), getattr(pipe, e)) for t, e in PAIRS if getattr(pipe, t, None) is not None]


def same(one, other) -> bool:
    for a, b in zip(one, other, strict=True):
        assert a[:-1] == b[:-1]
        assert a[-1].keys() == b[-1].keys()
        assert all(torch.equal(a[-1][name][1], b[-1][name][1]) for name in a[-1])
    return True


@pytest.fixture
def pipe(our_sd):
    """A pipeline whose text encoder and tokenizer are its own."""
    parts = our_sd.components | {name: copy.deepcopy(getattr(our_sd, name)) for name in PAIRS[0]}
    made = langevin.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def xl(tmp_path):
    made = tiny_xl.base(langevin, tmp_path)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def peer(peer_sd):
    parts = peer_sd.components | {name: copy.deepcopy(getattr(peer_sd, name)) for name in PAIRS[0]}
    made = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


# Parity --------------------------------------------------------------------------------------------------------------


def a1111(word: str, rows: torch.Tensor) -> dict:
    return {"string_to_token": {"*": 265}, "string_to_param": {"*": rows}, "name": word, "step": 9}


@pytest.mark.parity
@pytest.mark.parametrize(
    ("files", "options"),
    [
        ({"learned_embeds.bin": {"<toy>": vectors(1)[0]}}, {}),
        ({"learned_embeds.bin": {"<toy>": vectors(3)}}, {}),
        ({"learned_embeds.bin": {"<other>": vectors(2)}}, {"token": "<toy>"}),
        ({"charturner.pt": a1111("<toy>", vectors(2))}, {"weight_name": "charturner.pt"}),
        ({"charturner.pt": a1111("<other>", vectors(1))}, {"weight_name": "charturner.pt", "token": "<toy>"}),
        ({"<toy>.bin": {"<toy>": vectors(1)[0]}}, {"weight_name": "<toy>.bin"}),
    ],
)
def test_pictures_with_a_learned_word_are_the_peers(pipe, peer, tmp_path, files, options) -> None:
    for name, held in files.items():
        torch.save(held, tmp_path / name)
    for each in (peer, pipe):
        each.load_textual_inversion(tmp_path, **options)
    plain = difference((peer, pipe), prompt=["a cat", "a dog"], num_inference_steps=2)
    told = {"prompt": ["a <toy> cat", "two <toy>, and a dog"], "negative_prompt": ["<toy>", "a cat"]}
    assert plain <= 1e-4 and difference((peer, pipe), **told, num_inference_steps=2) <= 1e-4


@pytest.mark.parity
def test_several_files_are_the_peers(pipe, peer, tmp_path) -> None:
    paths = []
    for k, count in enumerate((1, 2)):
        paths.append(str(tmp_path / f"{k}.bin"))
        torch.save({f"<{k}>": vectors(count, seed=k)}, paths[-1])
    for each in (peer, pipe):
        each.load_textual_inversion(paths, token=["<a>", "<b>"])
        each.load_textual_inversion({"<c>": vectors(1, seed=7)})
    call = {"prompt": ["a <a> <b> cat", "<b> <c>"], "num_inference_steps": 2}
    assert difference((peer, pipe), **call) <= 1e-4
    for each in (peer, pipe):
        each.unload_textual_inversion("<a>")
    assert difference((peer, pipe), **call) <= 1e-4


@pytest.mark.parity
def test_both_encoders_of_sdxl_in_one_call(xl_folder) -> None:
    theirs, xl = (lib.StableDiffusionXLPipeline.from_pretrained(xl_folder) for lib in (diffusers, langevin))
    held = {"clip_l": vectors(2), "clip_g": vectors(2, tiny_xl.WIDTH)}
    for (tokenizer, encoder), name in zip(PAIRS, held, strict=True):
        parts = {"tokenizer": getattr(theirs, tokenizer), "text_encoder": getattr(theirs, encoder)}
        theirs.load_textual_inversion(held[name], token="<toy>", **parts)
    report = xl.load_textual_inversion(held, token="<toy>")
    assert report.applied == ["clip_l", "clip_g"]
    call = {"prompt": ["a <toy> cat", "<toy>"], "negative_prompt": ["a dog", "<toy>"], "num_inference_steps": 2}
    assert difference((theirs, xl), None, **call) <= 1e-4


# Prompts -------------------------------------------------------------------------------------------------------------


def test_every_way_of_writing_prompts_knows_the_word(pipe) -> None:
    pipe.load_textual_inversion({"<toy>": vectors(2)})
    assert pipe.maybe_convert_prompt("a <toy>", pipe.tokenizer) == "a <toy> <toy>_1"
    plain = pipe.encode_prompt("a <toy> cat", do_classifier_free_guidance=False)[0]
    written = pipe.encode_prompt("a <toy> <toy>_1 cat", do_classifier_free_guidance=False)[0]
    assert torch.equal(plain, written)
    for syntax, text in (
        ("a1111", "a (<toy>:1.0) cat"),
        ("comfy", "a (<toy>:1.0) cat"),
        ("compel", "a (<toy>)1.0 cat"),
    ):
        read = pipe.encode_prompt(text, do_classifier_free_guidance=False, prompt_syntax=syntax)[0]
        assert torch.allclose(read, plain, atol=1e-6), syntax
    heavy = pipe.encode_prompt("a (<toy>:1.5) cat", do_classifier_free_guidance=False, prompt_syntax="a1111")[0]
    assert not torch.allclose(heavy, plain, atol=1e-3)
    long = pipe.encode_prompt("<toy> " * 60, do_classifier_free_guidance=False)[0]
    assert long.shape[1] == 2 * 77
    first = pipe.encode_prompt("<toy> " * 37, do_classifier_free_guidance=False)[0]
    assert torch.allclose(long[:, :75], first[:, :75], atol=1e-5)


def test_negative_prompts_know_the_word(pipe) -> None:
    without = pipe("a cat", negative_prompt="toy", **CALL).images
    pipe.load_textual_inversion({"<toy>": vectors(1)})
    assert np.array_equal(pipe("a cat", negative_prompt="toy", **CALL).images, without)
    assert not np.array_equal(pipe("a cat", negative_prompt="<toy>", **CALL).images, without)


def test_tasks_that_share_components_share_words(pipe) -> None:
    pipe.load_textual_inversion({"<toy>": vectors(2)})
    change = langevin.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    change.set_progress_bar_config(disable=True)
    call = {**CALL, "image": tiny.picture(1), "strength": 0.9}
    assert not np.array_equal(change("<toy>", **call).images, change("a cat", **call).images)
    before = states(change)
    change.load_textual_inversion({"<more>": vectors(1)})
    change.unload_textual_inversion("<more>")
    assert same(states(pipe), before)


def with_old_end(xl):
    """Return a pipeline with its second text encoder as old configurations have it, and the true end's id."""
    encoder = xl.text_encoder_2
    real = encoder.config.eos_token_id
    encoder.config.eos_token_id = encoder.text_model.eos_token_id = 2
    return xl, real


def test_the_end_of_a_text_is_found_by_old_configurations_too(xl) -> None:
    xl, real = with_old_end(xl)
    inner = xl.text_encoder_2.text_model
    before = states(xl)
    _, _, pooled, _ = xl.encode_prompt("a cat")
    held = {"text_encoders_0": vectors(1), "text_encoders_1": vectors(1, tiny_xl.WIDTH)}
    xl.load_textual_inversion(held, token="<toy>")
    assert torch.equal(xl.encode_prompt("a cat")[2], pooled)
    _, _, first, _ = xl.encode_prompt("<toy> a cat")
    _, _, other, _ = xl.encode_prompt("<toy> a dog")
    assert not torch.equal(first, other) and inner.eos_token_id == real
    xl.unload_textual_inversion()
    assert same(states(xl), before) and inner.eos_token_id == 2


def test_the_end_of_a_text_is_found_after_loading_a_pipeline_with_words(xl, tmp_path) -> None:
    xl, real = with_old_end(xl)
    plain = xl.encode_prompt("a cat")[2]
    held = {"clip_l": vectors(1), "clip_g": vectors(1, tiny_xl.WIDTH)}
    xl.load_textual_inversion(held, token="<toy>")
    xl.save_pretrained(tmp_path / "saved")
    again = langevin.StableDiffusionXLPipeline.from_pretrained(tmp_path / "saved")
    encoder = again.text_encoder_2
    assert (encoder.config.eos_token_id, encoder.text_model.eos_token_id) == (2, real)
    pooled = [pipe.encode_prompt("<toy> a cat")[2] for pipe in (xl, again)]
    assert torch.allclose(*pooled, atol=1e-5)
    again.unload_textual_inversion()
    assert encoder.text_model.eos_token_id == 2
    assert torch.allclose(again.encode_prompt("a cat")[2], plain, atol=1e-5)


def test_a_pipeline_saved_with_words_knows_them(pipe, tmp_path) -> None:
    pipe.load_textual_inversion({"<toy>": vectors(3), "<b>": vectors(1, seed=1)})
    pipe.save_pretrained(tmp_path / "saved")
    again = langevin.StableDiffusionPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert np.array_equal(again("a <toy>", **CALL).images, pipe("a <toy>", **CALL).images)
    again.unload_textual_inversion()
    pipe.unload_textual_inversion()
    assert torch.equal(*(each.text_encoder.get_input_embeddings().weight for each in (again, pipe)))


# Undoing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_random_sequences_leave_no_trace(xl, seed) -> None:
    choose = random.Random(seed)
    before, loaded = states(xl), {}
    for k in range(12):
        if loaded and choose.random() < 0.45:
            gone = choose.sample(sorted(loaded), choose.randint(1, len(loaded)))
            xl.unload_textual_inversion(gone)
            loaded = {word: held for word, held in loaded.items() if word not in gone}
        else:
            count, word = choose.randint(1, 4), f"<{choose.choice('abc')}{k}>"
            held = {"clip_l": vectors(count, seed=k), "clip_g": vectors(count, tiny_xl.WIDTH, seed=k)}
            part = choose.choice([held, {"clip_l": held["clip_l"]}, {"clip_g": held["clip_g"]}])
            xl.load_textual_inversion(part, token=word)
            loaded[word] = part
        for word, part in loaded.items():
            for name, (tokenizer, encoder) in zip(("clip_l", "clip_g"), PAIRS, strict=True):
                if name in part:
                    place = Place(encoder, getattr(xl, tokenizer), getattr(xl, encoder))
                    assert torch.equal(place.vectors(word), part[name])
    xl.unload_textual_inversion(list(loaded))
    assert same(states(xl), before)


def test_in_half_precision_too(pipe) -> None:
    pipe.text_encoder.half()
    before = states(pipe)
    pipe.load_textual_inversion({"<toy>": vectors(2)})
    assert pipe.text_encoder.get_input_embeddings().weight.dtype == torch.float16
    pipe.load_textual_inversion({"<b>": vectors(1)})
    pipe.unload_textual_inversion("<toy>")
    pipe.unload_textual_inversion("<b>")
    assert same(states(pipe), before)


def test_random_numbers_and_gradients_stay_as_they_are(pipe) -> None:
    pipe.text_encoder.get_input_embeddings().weight.requires_grad_(False)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    pipe.load_textual_inversion({"<toy>": vectors(2)})
    assert torch.equal(torch.rand(3), expected)
    assert not pipe.text_encoder.get_input_embeddings().weight.requires_grad


def python_tokenizer(folder):
    """A tokenizer written in Python, whose tokens are kept in dictionaries."""
    from transformers import CTRLTokenizer

    (folder / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "c": 2, "<unk>": 3}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CTRLTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


def test_tokenizers_written_in_python(tmp_path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = python_tokenizer(tmp_path)
    assert not tokenizer.is_fast
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    place = Place("text_encoder", tokenizer, CLIPTextModel(config))

    def inside():
        return state(tokenizer, place.encoder), dict(tokenizer._added_tokens_decoder), tokenizer.tokenize("a <x>_1 b")

    before = inside()
    a, b = vectors(2, 8), vectors(3, 8, seed=1)
    add({"text_encoder": place}, {"<x>": {"text_encoder": a}})
    add({"text_encoder": place}, {"<y>": {"text_encoder": b}})
    assert tokenizer.convert_tokens_to_ids(["<x>_1", "<y>"]) == [len(tokenizer) - 4, len(tokenizer) - 3]
    assert tokenizer.tokenize("a <y>_2")[-1] == "<y>_2"
    remove([place], ["<x>"])
    assert torch.equal(place.vectors("<y>"), b) and tokenizer.tokenize("a <y>_2")[-1] == "<y>_2"
    remove([place], None)
    after = inside()
    assert same([before[0]], [after[0]]) and before[1:] == after[1:]


# Files and names -----------------------------------------------------------------------------------------------------


def test_where_files_are_found(pipe, tmp_path, monkeypatch) -> None:
    (tmp_path / "inner").mkdir()
    torch.save({"<new1>": vectors(1)}, tmp_path / "inner" / "<new1>.bin")
    pipe.load_textual_inversion(tmp_path / "inner", token="<only>")
    torch.save({"<new2>": vectors(1, seed=2)}, tmp_path / "<new2>.bin")
    torch.save({"<new3>": vectors(1, seed=3)}, tmp_path / "learned_embeds.bin")
    monkeypatch.chdir(tmp_path)
    pipe.load_textual_inversion(".", weight_name="<new1>.bin", subfolder="inner")
    pipe.load_textual_inversion(".", weight_name="<new2>.bin")
    pipe.load_textual_inversion(".")
    pipe.load_textual_inversion("./<new2>.bin", token="<again>")
    assert pipe.tokenizer.tokenize("<new1> <new2> <new3> <again>") == ["<new1>", "<new2>", "<new3>", "<again>"]
    pipe.load_textual_inversion([tmp_path / "<new2>.bin", {"<m>": vectors(1)}], token=["<k>", None])
    assert {"<k>", "<m>"} <= set(pipe.tokenizer.added_tokens_encoder)


def test_safetensors_come_first(pipe, tmp_path) -> None:
    torch.save({"<bin>": vectors(1)}, tmp_path / "learned_embeds.bin")
    langevin_file = pipe.load_textual_inversion({"<safe>": vectors(1)})
    assert langevin_file.applied == ["<safe>"]
    pipe.save_textual_inversion(tmp_path, "<safe>")
    pipe.unload_textual_inversion()
    assert pipe.load_textual_inversion(tmp_path).applied == ["<safe>"]
    assert pipe.load_textual_inversion(tmp_path, use_safetensors=False).applied == ["<bin>"]


@pytest.mark.parametrize("layout", ["diffusers", "a1111"])
@pytest.mark.parametrize("safe", [True, False])
def test_what_is_saved_is_loaded(pipe, xl, tmp_path, layout, safe) -> None:
    rows = vectors(3)
    pipe.load_textual_inversion({"<toy>": rows})
    file = pipe.save_textual_inversion(tmp_path / "sd", layout=layout, safe_serialization=safe)
    pipe.unload_textual_inversion()
    pipe.load_textual_inversion(file)
    assert torch.equal(Place("", pipe.tokenizer, pipe.text_encoder).vectors("<toy>"), rows)
    held = {"clip_l": rows, "clip_g": vectors(3, tiny_xl.WIDTH)}
    xl.load_textual_inversion(held, token="<toy>")
    file = xl.save_textual_inversion(tmp_path / "xl", "<toy>", layout=layout, safe_serialization=safe)
    assert file.stem == "<toy>"
    before = states(xl)
    xl.unload_textual_inversion()
    xl.load_textual_inversion(file)
    assert same(states(xl), before)


@pytest.mark.parity
def test_the_peer_reads_what_is_saved(pipe, peer, tmp_path) -> None:
    pipe.load_textual_inversion({"<toy>": vectors(3)})
    for layout, name, options in (
        ("diffusers", "a.safetensors", {}),
        ("diffusers", "b.bin", {}),
        ("a1111", "c.pt", {}),
        ("a1111", "d.safetensors", {"token": "<toy>"}),
    ):
        file = pipe.save_textual_inversion(tmp_path / name, layout=layout)
        peer.load_textual_inversion(str(file), **options)
        ids = peer.tokenizer("<toy> <toy>_1 <toy>_2", add_special_tokens=False).input_ids
        assert torch.equal(peer.text_encoder.get_input_embeddings().weight[ids], vectors(3))
        peer.unload_textual_inversion()


def test_an_encoder_is_found_by_width_or_named(xl, caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="langevin"):
        xl.load_textual_inversion(vectors(1, tiny_xl.WIDTH), token="<two>")
    assert "text_encoder_2 knows '<two>' and text_encoder does not" in caplog.text
    assert "<two>" in xl.tokenizer_2.get_vocab() and "<two>" not in xl.tokenizer.get_vocab()
    held = {"clip_l": vectors(2), "clip_g": vectors(2, tiny_xl.WIDTH)}
    xl.load_textual_inversion(held, token="<one>", text_encoder=xl.text_encoder, tokenizer=xl.tokenizer)
    assert "<one>" in xl.tokenizer.get_vocab() and "<one>" not in xl.tokenizer_2.get_vocab()
    xl.unload_textual_inversion("<one>", tokenizer=xl.tokenizer)
    assert "<one>" not in xl.tokenizer.get_vocab() and "<two>" in xl.tokenizer_2.get_vocab()


def test_a_refiner_takes_its_encoders_part(tmp_path) -> None:
    refiner = tiny_xl.refiner(langevin, tmp_path)
    held = {"clip_l": vectors(2), "clip_g": vectors(2, tiny_xl.WIDTH)}
    report = refiner.load_textual_inversion(held, token="<toy>")
    assert report.applied == ["clip_g"] and report.ignored == {"clip_l": "there is no text_encoder here"}


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "options", "error", "words"),
    [
        ({"<w>": vectors(1, 16)}, {}, WeightsError, "'<w>' have 16 numbers and those of text_encoder 32"),
        (
            {"<known>": vectors(1)},
            {},
            InputError,
            r"'<known>' is loaded already; .*unload_textual_inversion\('<known>'\)",
        ),
        ({"<w>": vectors(1)}, {"token": "<known>"}, InputError, "is loaded already"),
        ({"<known>_2": vectors(1)}, {}, InputError, "'<known>_2' would be taken for a part of '<known>'"),
        ({"a": vectors(1)}, {}, InputError, "'a' is in the vocabulary of text_encoder already"),
        ({"<|endoftext|>": vectors(1)}, {}, InputError, "in the vocabulary"),
        (vectors(1), {}, InputError, "the tensor does not say which word it is; pass it as `token`"),
        ({"emb_params": vectors(1)}, {}, InputError, "emb_params does not say which word it is"),
        ({"<w>": vectors(1)}, {"token": ""}, InputError, "does not say which word"),
        (
            {"<w>": vectors(1), "<v>": vectors(1)},
            {"token": "<w>"},
            InputError,
            "names 1 words, and 2 are loaded: '<w>', '<v>'",
        ),
        ([{"<w>": vectors(1)}, {"<w>": vectors(1)}], {}, InputError, "'<w>' is given twice"),
        ([{"<w>": vectors(2)}, {"<w>_1": vectors(1)}], {}, InputError, "pass another `token`"),
        ({"clip_l": vectors(1), "clip_g": vectors(1)}, {"token": "<w>"}, InputError, "the two text encoders of SDXL"),
        ({"clip_g": vectors(1)}, {"token": "<w>"}, InputError, "learned for text_encoder_2; here is text_encoder"),
        ({"<w>": vectors(1)}, {"weight_nam": "x"}, ValueError, "did you mean 'weight_name'"),
        ([{"<w>": vectors(1)}, {"<v>": vectors(1, 8)}], {}, WeightsError, "8 numbers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_loaded_changes_nothing(pipe, source, options, error, words) -> None:
    pipe.load_textual_inversion({"<known>": vectors(2)})
    before = states(pipe)
    with pytest.raises(error, match=words):
        pipe.load_textual_inversion(source, **options)
    assert same(states(pipe), before)


def test_all_encoders_or_none(xl, monkeypatch) -> None:
    before = states(xl)
    held = {"clip_l": vectors(2), "clip_g": vectors(2, tiny_xl.WIDTH)}
    with pytest.raises(WeightsError, match="those of text_encoder_2 24"):
        xl.load_textual_inversion({**held, "clip_g": vectors(2)}, token="<toy>")
    assert same(states(xl), before)

    def fail(tokens):
        raise RuntimeError("no room")

    monkeypatch.setattr(xl.tokenizer_2, "add_tokens", fail)
    with pytest.raises(RuntimeError, match="no room"):
        xl.load_textual_inversion(held, token="<toy>")
    monkeypatch.undo()
    assert same(states(xl), before)
    monkeypatch.setattr(xl.tokenizer_2, "convert_tokens_to_ids", lambda tokens: [0] * len(tokens))
    with pytest.raises(ConfigError, match="text_encoder_2 cannot keep these words apart"):
        xl.load_textual_inversion(held, token="<toy>")
    monkeypatch.undo()
    assert same(states(xl), before)


def test_files_that_are_not_there(pipe, tmp_path) -> None:
    with pytest.raises(InputError, match="did you mean"):
        (tmp_path / "folder").mkdir()
        pipe.load_textual_inversion(str(tmp_path / "foldr"))
    for name in ("<a>", "<c>"):
        torch.save({name: vectors(1)}, tmp_path / f"{name}.bin")
    with pytest.raises(InputError, match=r"several files .*weight_name=, one of: <a>\.bin, <c>\.bin"):
        pipe.load_textual_inversion(tmp_path)
    with pytest.raises(InputError, match=r"has no <b>\.bin"):
        pipe.load_textual_inversion(tmp_path, weight_name="<b>.bin")


def test_words_that_are_not_there(pipe, tmp_path, caplog) -> None:
    pipe.load_textual_inversion({"<toy>": vectors(2), "<b>": vectors(1)})
    before = states(pipe)
    with pytest.raises(InputError, match="no learned word '<toi>'; did you mean '<toy>'"):
        pipe.unload_textual_inversion(["<b>", "<toi>"])
    with pytest.raises(InputError, match="no learned word '<toi>'; did you mean '<toy>'"):
        pipe.save_textual_inversion(tmp_path, "<toi>")
    assert same(states(pipe), before)
    pipe.unload_textual_inversion()
    with caplog.at_level(logging.WARNING, logger="langevin"):
        pipe.unload_textual_inversion()
    assert "no learned word to unload" in caplog.text
    with pytest.raises(InputError, match="no learned word to save"):
        pipe.save_textual_inversion(tmp_path)


def test_parts_that_do_not_belong_together(pipe) -> None:
    with pytest.raises(ConfigError, match="none of the pipeline's; pass both"):
        pipe.load_textual_inversion({"<a>": vectors(1)}, text_encoder=tiny.text_encoder())
    with pytest.raises(ConfigError, match="200 vectors and its tokenizer 194 tokens"):
        pipe.load_textual_inversion({"<a>": vectors(1)}, text_encoder=tiny.text_encoder(200), tokenizer=pipe.tokenizer)
    with pytest.raises(ConfigError, match="no values now"):
        pipe.load_textual_inversion(
            {"<a>": vectors(1)}, text_encoder=copy.deepcopy(pipe.text_encoder).to("meta"), tokenizer=pipe.tokenizer
        )
    bare = langevin.StableDiffusionPipeline(
        **{**pipe.components, "text_encoder": None, "tokenizer": None}, requires_safety_checker=False
    )
    with pytest.raises(ConfigError, match="no text encoder"):
        bare.load_textual_inversion({"<a>": vectors(1)})


def test_a_word_of_the_vocabulary_is_pointed_out(pipe, caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="langevin"):
        pipe.load_textual_inversion({"cat": vectors(1)})
    assert "'cat' is a word of the vocabulary; in prompts it now means what was learned for it" in caplog.text


def test_words_come_while_calls_run(pipe) -> None:
    expected = pipe("a cat", **CALL).images
    made, errors = [], []

    def run():
        try:
            made.extend(pipe("a cat", **CALL).images for _ in range(6))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for k in range(20):
        pipe.load_textual_inversion({f"<{k}>": vectors(2, seed=k)})
    for thread in threads:
        thread.join()
    assert not errors and len(made) == 12 and all(np.array_equal(each, expected) for each in made)
