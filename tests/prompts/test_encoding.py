"""Embeddings of long, weighted, changing and joined prompts, against formulas written out here."""

from __future__ import annotations

import math

import pytest
import torch

from langevin.core.errors import InputError
from langevin.prompts.encoding import Encoding, aligned, encode, given
from langevin.prompts.reader import Tower
from langevin.prompts.syntax import SYNTAXES, parse, parse_all
from langevin.prompts.weighting import scaled
from tests.prompts.towers import states, tower


def embed(tower, text: str | list[str], syntax: str | None = None, **options) -> torch.Tensor:
    """Return the hidden states of prompts that neither change nor have members."""
    return encode([tower], [parse_all(text, syntax)], **options).only().hidden


def same(a: torch.Tensor, b: torch.Tensor, tolerance: float = 2e-6) -> bool:
    assert a.shape == b.shape
    return (a - b).abs().max().item() <= tolerance


# Plain text ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [None, *SYNTAXES])
@pytest.mark.parametrize("text", ["", "a cat", "a cat, two dogs.", "a well-known cat"])
def test_weight_one_is_bit_equal_to_the_plain_encoding(sd, syntax, text) -> None:
    assert torch.equal(embed(sd, text, syntax), states(sd, text))


@pytest.mark.parametrize(
    ("text", "syntax"), [("(a:1.0) (cat)", "a1111"), ("((a:1) (cat:1.0):1.3)", "comfy"), ("(a)1 (cat)1.0", "compel")]
)
def test_written_weights_of_one_are_too(sd, text, syntax) -> None:
    text = text.replace("(cat)", "cat") if syntax == "a1111" else text
    assert torch.equal(embed(sd, text, syntax), states(sd, "a cat"))


def test_a_batch_is_encoded_in_one_call_as_the_peer_does(sd, words) -> None:
    texts = ["a cat", "", "dog"]
    ids = words(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    expected = sd.encode_ids(ids, None)[0]
    sd.encode_ids.calls.clear()
    assert torch.equal(embed(sd, texts), expected)
    assert sd.encode_ids.calls == [(3, 77)]


def test_the_mask_of_the_padding(words, encoder) -> None:
    masked = tower(words, encoder, masked=True)
    tokens = words("a cat", padding="max_length", max_length=77, return_tensors="pt")
    expected = encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
    assert torch.equal(embed(masked, "a cat"), expected)


def test_another_padding_token(other_words, encoder) -> None:
    other = tower(other_words, encoder)
    assert torch.equal(embed(other, "a cat"), states(other, "a cat"))


# Length --------------------------------------------------------------------------------------------------------------


def test_long_prompts_lie_side_by_side(sd) -> None:
    got = embed(sd, "cat " * 75 + "dog " * 10)
    assert same(got, torch.cat([states(sd, "cat " * 75), states(sd, "dog " * 10)], dim=1))


def test_the_tail_of_a_long_prompt_counts(sd) -> None:
    head = "cat " * 80
    assert not torch.equal(embed(sd, head + "a"), embed(sd, head + "b"))
    cut = [embed(sd, head + tail, long_prompt="truncate") for tail in "ab"]
    assert torch.equal(cut[0], cut[1]) and torch.equal(cut[0], states(sd, head))


def test_truncation_warns(sd, log) -> None:
    embed(sd, "cat " * 75 + "dog", long_prompt="truncate")
    assert "dropped: 'dog'" in log.text
    with pytest.raises(InputError, match="long_prompt"):
        embed(sd, "cat", long_prompt="trim")


def test_shorter_prompts_of_a_batch_are_filled_with_the_empty_prompt(sd) -> None:
    got = embed(sd, ["cat " * 80, "dog"])
    assert got.shape[:2] == (2, 154)
    assert same(got[1:], torch.cat([states(sd, "dog"), states(sd, "")], dim=1))


def test_positive_and_negative_prompts_are_brought_to_one_length(sd) -> None:
    long, short = (encode([sd], [parse_all(text)]) for text in ("cat " * 160, "dog"))
    for pair in (aligned(long, short), aligned(short, long)[::-1]):
        assert [e.tokens for e in pair] == [231, 231]
        assert same(pair[1].only().hidden, torch.cat([states(sd, t) for t in ("dog", "", "")], dim=1))
    assert aligned(short)[0] is short


def test_embeddings_made_elsewhere(sd) -> None:
    mine = encode([sd], [parse_all("cat " * 80)])
    outside = given(torch.randn(1, 77, 32))
    filled = aligned(outside, mine)[0].only().hidden
    assert same(filled[:, 77:], states(sd, ""))
    assert encode([sd], [parse_all("dog")], length=154).tokens == 154
    assert torch.equal(embed(sd, "dog", length=20), sd.encode_ids(*row(sd, "dog", 20))[0])
    with pytest.raises(InputError, match="cannot be filled up"):
        aligned(given(torch.zeros(1, 77, 32)), given(torch.zeros(1, 154, 32)))
    with pytest.raises(InputError, match="multiple"):
        encode([sd], [parse_all("dog")], length=100)


def row(tower, text: str, length: int):
    return tower.tokenizer(text, padding="max_length", max_length=length, return_tensors="pt").input_ids, None


def test_break_is_a_row_of_its_own(sd) -> None:
    got = embed(sd, "a cat BREAK dog", "a1111")
    assert same(got, torch.cat([states(sd, "a cat"), states(sd, "dog")], dim=1))


def test_ten_thousand_words(sd) -> None:
    got = embed(sd, "(cat:1.1) " * 10_000, "a1111")
    assert got.shape == (1, 134 * 77, 32) and torch.isfinite(got).all()


# Weights -------------------------------------------------------------------------------------------------------------


def spread(values: dict[int, float]) -> torch.Tensor:
    """Return weights (77, 1), 1 except at the given positions."""
    w = torch.ones(77, 1)
    for position, value in values.items():
        w[position] = value
    return w


def test_a1111_multiplies_and_restores_the_mean(sd) -> None:
    z, w = states(sd, "a cat b"), spread({2: 1.5, 3: 0.7})
    product = z * w
    expected = product * (z.mean() / product.mean())
    got = embed(sd, "a (cat:1.5) (b:0.7)", "a1111")
    assert same(got, expected) and abs(got.mean() - z.mean()) < 1e-6
    assert not same(got, product)


def test_a1111_does_so_for_every_row(sd) -> None:
    got = embed(sd, "(a:1.5) BREAK dog", "a1111")
    z = states(sd, "a")
    product = z * spread({1: 1.5})
    assert same(got[:, :77], product * (z.mean() / product.mean()))
    assert torch.equal(got[:, 77:], embed(sd, "a BREAK dog", "a1111")[:, 77:])


def test_a_mean_that_says_nothing_is_not_restored() -> None:
    z = torch.randn(77, 32, generator=torch.Generator().manual_seed(0))
    z = z - z.mean(dim=1, keepdim=True)
    w = spread({2: 1.5})
    assert torch.equal(scaled(z, w), w * z)
    flipped = spread({k: -1.0 for k in range(77)})
    assert torch.equal(scaled(z + 1, flipped), flipped * (z + 1))


def test_comfy_interpolates_from_the_empty_prompt(sd) -> None:
    z, empty = states(sd, "a cat b"), states(sd, "")
    expected = empty + spread({2: 1.5, 3: -0.5}) * (z - empty)
    assert same(embed(sd, "a (cat:1.5) (b:-0.5)", "comfy"), expected)
    other = embed(sd, "a (cat:0) b", "comfy")
    assert same(other[:, 2], empty[:, 2])


def test_compel_goes_away_from_empty_upward_and_toward_absence_downward(sd) -> None:
    z, empty = states(sd, "a cat b"), states(sd, "")
    assert same(embed(sd, "a (cat)1.5 b", "compel"), empty + spread({2: 1.5}) * (z - empty))
    w = spread({2: 0.8, 3: 0.3})
    mixed, total = empty + w * (z - empty), 1.0
    for position, v in ((2, 0.8), (3, 0.3)):
        share = math.tan((1 - v) * math.pi / 2)
        mixed = mixed + share * (empty + w * (states(sd, "a cat b", (position,)) - empty))
        total += share
    assert same(embed(sd, "a (cat)0.8 (b)0.3", "compel"), mixed / total)


def test_half_precision_is_weighed_in_single(words, encoder) -> None:
    half = tower(words, encoder)
    whole = half.encode_ids

    def encode_ids(ids, mask):
        return whole(ids, mask)[0].half(), None

    low = type(half)(encode_ids, words)
    for text, syntax in (("(cat:1.3)", "a1111"), ("(cat:1.3)", "comfy"), ("(cat)1.3 b-", "compel")):
        got, exact = embed(low, text, syntax), embed(half, text, syntax)
        assert got.dtype == torch.float16 and same(got.float(), exact, 4e-3)


def test_everything_stays_on_the_device_of_the_encoder(words) -> None:
    def encode_ids(ids, mask):
        return torch.empty(*ids.shape, 8, device="meta"), torch.empty(len(ids), 4, device="meta")

    away = Tower(encode_ids, words)
    for syntax, text in [
        ("a1111", f"(a:1.2) [b|c] {'cat ' * 80} AND (dog:0.5)"),
        ("comfy", "(a:1.2)"),
        ("compel", "a+ b-"),
        ("compel", '("a+ b-", "c").blend(1, 2)'),
        ("compel", '("a+ b-", "c").and(1, 2)'),
    ]:
        encoding = encode([away], [parse_all([text, "dog"], syntax)], steps=2)
        for condition in aligned(encoding, given(torch.empty(2, 231, 8, device="meta")))[0].at(1):
            assert condition.hidden.shape == (2, 231, 8) and condition.hidden.device.type == "meta"


def test_only_weighted_prompts_cost_more_calls(sd) -> None:
    for text, syntax, calls in (
        ("(a:1.2)", "a1111", 1),
        ("(a:1.2)", "comfy", 2),
        ("a+", "compel", 2),
        ("a- b", "compel", 3),
    ):
        sd.encode_ids.calls.clear()
        embed(sd, text, syntax)
        assert len(sd.encode_ids.calls) == calls, text


# Blends and joins ----------------------------------------------------------------------------------------------------


def test_a_blend_is_the_weighted_mean(sd) -> None:
    a, b = states(sd, "a cat"), states(sd, "dog")
    assert same(embed(sd, '("a cat", "dog").blend(0.6, 0.2)', "compel"), (0.6 * a + 0.2 * b) / 0.8)
    assert same(embed(sd, '("a cat", "dog").blend(1, -0.5, no_normalize)', "compel"), a - 0.5 * b)


def test_a_join_lays_texts_side_by_side(sd) -> None:
    a, b, empty = states(sd, "a cat"), states(sd, "dog"), states(sd, "")
    assert same(embed(sd, '("a cat", "dog").and()', "compel"), torch.cat([a, b], dim=1))
    got = embed(sd, '("a cat", "dog").and(1, 0.4)', "compel")
    assert same(got, torch.cat([a, empty + 0.4 * (b - empty)], dim=1))


def test_blends_of_different_length_and_mixed_batches(sd) -> None:
    got = embed(sd, [f'("{"cat " * 80}", "dog").blend(1, 1)', "a"], "compel")
    long = torch.cat([states(sd, "cat " * 75), states(sd, "cat " * 5)], dim=1)
    short = torch.cat([states(sd, "dog"), states(sd, "")], dim=1)
    assert same(got[:1], (long + short) / 2)
    assert same(got[1:], torch.cat([states(sd, "a"), states(sd, "")], dim=1))


# Steps and members ---------------------------------------------------------------------------------------------------


def test_a_schedule_is_encoded_once_for_every_text(sd) -> None:
    encoding = encode([sd], [parse_all("a [cat:dog:2]", "a1111")], steps=5)
    assert encoding.index == (0, 0, 1, 1, 1) and len(sd.encode_ids.calls) == 2
    for step, word in enumerate(["cat", "cat", "dog", "dog", "dog", "dog"]):
        (condition,) = encoding.at(step)
        assert torch.equal(condition.hidden, states(sd, f"a {word}"))
    with pytest.raises(InputError, match="without \\[from:to:when\\]"):
        encoding.only()
    with pytest.raises(InputError, match="how many"):
        encode([sd], [parse_all("[a|b]", "a1111")])


def test_schedules_of_a_batch_run_side_by_side(sd) -> None:
    encoding = encode([sd], [parse_all(["[a|b]", "[cat:dog:0.75]"], "a1111")], steps=4)
    assert encoding.index == (0, 1, 0, 2)
    for step, texts in enumerate([("a", "cat"), ("b", "cat"), ("a", "cat"), ("b", "dog")]):
        expected = torch.cat([states(sd, text) for text in texts])
        assert same(encoding.at(step)[0].hidden, expected)


def test_members_of_and(sd) -> None:
    encoding = encode([sd], [parse_all(["a AND cat:0.5", "dog"], "a1111")])
    first, second = encoding.at(0)
    assert (first.weights, second.weights) == ((1.0, 1.0), (0.5, 0.0))
    assert same(first.hidden, torch.cat([states(sd, "a"), states(sd, "dog")]))
    assert same(second.hidden, torch.cat([states(sd, "cat"), states(sd, "")]))
    with pytest.raises(InputError, match="without AND"):
        encoding.only()


def test_members_and_steps_have_one_length(sd) -> None:
    text = f"a AND [b:{'cat ' * 80}:1] AND c"
    encoding = encode([sd], [parse_all(text, "a1111")], steps=3)
    assert {c.hidden.shape[1] for state in encoding.states for c in state} == {154}
    filled = aligned(encoding, given(torch.zeros(1, 231, 32)))[0]
    assert {c.hidden.shape[1] for state in filled.states for c in state} == {231}


# Two encoders --------------------------------------------------------------------------------------------------------


def test_two_encoders_are_joined_along_the_width(sdxl) -> None:
    scripts = parse_all("a cat")
    got = encode(sdxl, [scripts, scripts]).only()
    expected = torch.cat([states(t, "a cat") for t in sdxl], dim=-1)
    assert torch.equal(got.hidden, expected) and got.hidden.shape == (1, 77, 80)
    assert torch.equal(got.pooled, pooled(sdxl, "a cat"))


def pooled(sdxl, text: str) -> torch.Tensor:
    tokens = sdxl[1].tokenizer(text, padding="max_length", max_length=77, return_tensors="pt")
    return sdxl[1].encode_ids(tokens.input_ids, None)[1]


def test_a_second_prompt_of_another_length(sdxl) -> None:
    got = encode(sdxl, [parse_all("cat"), parse_all("dog " * 80)]).only()
    first = torch.cat([states(sdxl[0], "cat"), states(sdxl[0], "")], dim=1)
    assert got.hidden.shape == (1, 154, 80) and same(got.hidden[..., :32], first)


@pytest.mark.parametrize(
    ("text", "syntax", "stripped"),
    [
        ("a (cat:0.9)", "a1111", "a cat"),
        ("a (cat:1.4)", "comfy", "a cat"),
        ("a cat-- dog+", "compel", "a cat dog"),
        ("a cat BREAK dog", "a1111", "a cat"),
        ("cat " * 75 + "dog", None, "cat " * 75),
        ('("a+", "b").and()', "compel", "a"),
    ],
)
def test_pooled_states_come_from_the_first_row_of_the_stripped_text(sdxl, text, syntax, stripped) -> None:
    scripts = parse_all(text, syntax)
    assert same(encode(sdxl, [scripts, scripts]).only().pooled, pooled(sdxl, stripped))


def test_members_over_two_encoders(sdxl) -> None:
    got = encode(sdxl, [parse_all("a AND b:2", "a1111"), parse_all("dog", "a1111")]).at(0)
    assert [condition.weights for condition in got] == [(1.0,), (2.0,)]
    for condition, text in zip(got, "ab", strict=True):
        expected = torch.cat([states(sdxl[0], text), states(sdxl[1], "dog")], dim=-1)
        assert torch.equal(condition.hidden, expected)
    with pytest.raises(InputError, match="AND joins 2 and 3 conditions"):
        encode(sdxl, [parse_all("a AND b", "a1111"), parse_all("a AND b AND c", "a1111")])


def test_the_empty_prompt_of_two_encoders_fills(sdxl) -> None:
    scripts = parse_all("cat")
    short = encode(sdxl, [scripts, scripts])
    filled = aligned(short, given(torch.zeros(1, 154, 80)))[0].only().hidden
    assert same(filled[:, 77:], torch.cat([states(t, "") for t in sdxl], dim=-1))


def test_batches_have_to_match(sdxl) -> None:
    with pytest.raises(InputError, match="equally many prompts"):
        encode(sdxl, [parse_all("a"), parse_all(["a", "b"])])
    with pytest.raises(InputError, match="equally many prompts"):
        encode(sdxl, [parse_all("a")])
    with pytest.raises(InputError, match="equally many prompts"):
        encode(sdxl, [[], []])


def test_encoders_of_different_length_cannot_be_joined(sdxl, tmp_path) -> None:
    from tests.prompts.towers import tokenizer

    shorter = tokenizer(tmp_path)
    shorter.model_max_length = 20
    other = type(sdxl[0])(sdxl[0].encode_ids, shorter)
    with pytest.raises(InputError, match="different lengths"):
        encode([other, sdxl[1]], [parse_all("a")] * 2)


def test_an_encoding_is_data(sd) -> None:
    encoding = encode([sd], [[parse("a")]])
    assert isinstance(encoding, Encoding) and encoding.tokens == 77 and encoding.index == (0,)
