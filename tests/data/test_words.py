"""A table of words gives exactly the ids that the tokenizer itself gives."""

from __future__ import annotations

import unicodedata
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

from sad_components.data import HFTokenizer, words
from sad_components.data.tokenizers import OffsetTokenizer
from sad_components.data.words import WordTable

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Digits(individual_digits=True)
SPLIT = pre_tokenizers.Split(Regex(r"\w+|\W"), "isolated")


def household(pre_tokenizer):
    """The shipped vocabulary behind another cut into words."""
    backend = Tokenizer.from_str(HFTokenizer("shipped:household/tokenizer").backend.to_str())
    backend.encode_special_tokens = True
    backend.pre_tokenizer = pre_tokenizer
    return backend


#: As the ``tokenizer.json`` of these families have it.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NO_WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split(digits):
    return pre_tokenizers.Split(Regex(WORDS % digits), "isolated")


def qwen():
    backend = household(pre_tokenizers.Sequence([split(""), NO_WORDS]))
    backend.normalizer = normalizers.NFC()
    backend.add_tokens([AddedToken(t, normalized=False) for t in ("<think>", "<tool_call>")])
    return backend


BACKENDS = {
    "smollm2": household(pre_tokenizers.Sequence([DIGITS, BYTES])),
    "gpt2": household(BYTES),
    "llama3": household(pre_tokenizers.Sequence([split("{1,3}"), NO_WORDS])),
    "qwen": qwen(),
}
PIECES = st.one_of(
    st.text(st.characters(max_codepoint=127), max_size=6),
    st.text(" \n\t\r\v\f\x1c\x1f'1a.", max_size=8),
    st.sampled_from(["I'll", " don't", "'S", "  12", "<|im_end|>", "drawer 12\n", " ..."]),
    st.text("\u00e9\u4e2d\u00a0\u3000\u0660\u017f\u2028' a1.\n", max_size=8),
    st.text(max_size=4),
    st.sampled_from(["<think>", "<tool_call> ", "1234567", "'LL go", ".\r\n\n", "\tx", "_x"]),
)


@pytest.mark.parametrize("name", BACKENDS)
@given(pieces=st.lists(PIECES, max_size=12))
def test_ids_are_the_tokenizers_own(name, pieces):
    text = "".join(pieces)
    if name == "qwen":
        text = unicodedata.normalize("NFC", text)
    table = WordTable.of(BACKENDS[name])
    expected = BACKENDS[name].encode(text, add_special_tokens=False).ids
    assert table.encode(text) == expected
    assert table.encode(text) == expected  # from the table now


def test_a_full_table_starts_anew(monkeypatch):
    monkeypatch.setattr(words, "MAX_CHARACTERS", 2)
    backend = BACKENDS["gpt2"]
    table = WordTable.of(backend)
    for text in ("a cup of tea", "go to drawer 12", "a cup of tea"):
        assert table.encode(text) == backend.encode(text, add_special_tokens=False).ids
        assert len(table._ids) <= 4


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        pre_tokenizers.Sequence([]),
        SPLIT,
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        pre_tokenizers.Sequence([SPLIT, BYTES]),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), BYTES]),
        pre_tokenizers.Sequence([split("{1,3}"), BYTES]),
        pre_tokenizers.Sequence([split("{1,2}"), NO_WORDS]),
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(WORDS % ""), "removed"), NO_WORDS]),
    ],
    ids=str,
)
def test_no_table_for_words_cut_another_way(pre_tokenizer):
    backend = household(BYTES)
    backend.pre_tokenizer = pre_tokenizer
    assert WordTable.of(backend) is None


def test_no_table_where_the_text_is_changed_before_its_words():
    lower = household(BYTES)
    lower.normalizer = normalizers.Lowercase()
    assert WordTable.of(lower) is None


@pytest.mark.parametrize("name", BACKENDS)
@given(text=st.one_of(st.text(max_size=20), st.text("e\u0301\u00e9 a\u0328<1", max_size=12)))
def test_offsets_are_the_tokenizers_own_whatever_the_text(tmp_path_factory, name, text):
    folder = tmp_path_factory.getbasetemp() / name
    if not folder.exists():
        folder.mkdir()
        BACKENDS[name].save(str(folder / "tokenizer.json"))
    tokenizer = tokenizer_in(folder)
    ids, offsets = tokenizer.encode_arrays(text, [])
    expected = OffsetTokenizer.encode_arrays(tokenizer, text, [])
    assert ids.tolist() == expected[0].tolist()
    assert offsets.tolist() == expected[1].tolist()


@cache
def tokenizer_in(folder):
    return HFTokenizer(str(folder))
