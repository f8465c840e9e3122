"""The same trajectory supervises the same characters whatever the tokenizer."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sad_components.data import HFTokenizer, SpanTokenizer
from sad_components.data.rendering import render_plain
from sad_components.data.shipped import resolve_source
from sad_components.data.tokenizers import (
    OffsetTokenizer,
    SentencePiece,
    TikToken,
    as_offset_tokenizer,
)
from sad_components.formats import get_format
from sad_components.formats.registry import segment
from sad_components.spans import AGENT_KINDS, SpanKind
from sad_components.trajectory import Message, Trajectory, read_jsonl

SHIPPED = list(read_jsonl(resolve_source("shipped:household/heldout")))
HARD = Trajectory(
    [
        Message("user", "Café ☕: find  the cup.\n\tNow </s> <s> <|endoftext|> <unk>."),
        Message("assistant", "Thought: 你好 — naïve 😀  two  blanks.\nAction: go to drawer 12"),
        Message("user", "Nothing happens.\r\n  ▁ e\u0301 \u00a0x"),
        Message("assistant", "Action: look[a > b] </s>"),
        Message("user", " "),
        Message("assistant", "Thought: \nAction: finish"),
    ],
    id="hard",
    format="react",
)
TRAJECTORIES = [*SHIPPED[:6], HARD]
HOUSEHOLD = HFTokenizer("shipped:household/tokenizer")
PIECES = st.one_of(
    st.sampled_from(
        ["\n", "Thought: a cup", "Café ☕", "你好 😀", "<|im_", "end|>", *HOUSEHOLD.special]
    ),
    st.text(max_size=12),
)
CORPUS = [m.text for t in SHIPPED[:20] for m in t.messages] + ["你好 😀 Café naïve ☕ drawer 12"]


def train_sentencepiece(folder: Path, kind: str, **options) -> str:
    import sentencepiece

    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(line for text in CORPUS for line in text.splitlines()))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / kind),
        model_type=kind,
        vocab_size=420,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    return str(folder / f"{kind}.model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizers")


def sentencepiece_unigram(folder):
    """As Llama 2 has it: every character kept, blanks too."""
    from torchtune.modules.transforms.tokenizers import SentencePieceBaseTokenizer

    options = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    return SentencePieceBaseTokenizer(train_sentencepiece(folder, "unigram", **options))


def sentencepiece_bpe(folder):
    """With SentencePiece's own normaliser: NFKC, runs of blanks folded."""
    from torchtune.modules.transforms.tokenizers import SentencePieceBaseTokenizer

    return SentencePieceBaseTokenizer(train_sentencepiece(folder, "bpe"))


def llama2(folder):
    from torchtune.models.llama2 import llama2_tokenizer

    options = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    return llama2_tokenizer(train_sentencepiece(folder, "unigram", **options))


def tiktoken_file(folder: Path) -> str:
    """256 bytes and some merges, in tiktoken's own file format."""
    pieces = [bytes([b]) for b in range(256)] + [b"th", b"in", b" c", b" cu", b" cup", b"on: "]
    lines = [f"{base64.b64encode(p).decode()} {rank}" for rank, p in enumerate(pieces)]
    path = folder / "tiny.tiktoken"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def tiktoken(folder):
    from torchtune.modules.transforms.tokenizers import TikTokenBaseTokenizer

    pattern = r"""'s|'t| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
    special = {"<|endoftext|>": 262, "<|im_start|>": 263, "<|im_end|>": 264}
    return TikTokenBaseTokenizer(tiktoken_file(folder), "tiny", pattern, 262, 262, special)


def gpt2(folder):
    """A byte-level BPE with GPT-2's pre-tokenizer, as Hugging Face saves it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return save_hf(tokenizer, folder / "gpt2")


def llama2_hf(folder):
    """Llama 2's tokenizer.json: a normaliser that prepends a blank, BPE with byte fallback."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    described = json.loads(tokenizer.to_str())
    described["added_tokens"] = described["added_tokens"][:3]
    described["model"]["byte_fallback"] = True
    tokenizer = Tokenizer.from_str(json.dumps(described))
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<s>", "</s>")])
    return save_hf(tokenizer, folder / "llama2_hf", bos_token="<s>", eos_token="</s>")


def smollm2(_):
    demo = os.environ.get("SAD_DEMO_DIR")
    if not demo:
        pytest.skip("SAD_DEMO_DIR is not set")
    return HFTokenizer(demo)


def shipped(_):
    return HFTokenizer("shipped:household/tokenizer")


def save_hf(tokenizer, folder: Path, **config) -> HFTokenizer:
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return HFTokenizer(str(folder))


MAKERS = [
    shipped,
    smollm2,
    gpt2,
    llama2_hf,
    sentencepiece_unigram,
    sentencepiece_bpe,
    llama2,
    tiktoken,
]


@pytest.fixture(scope="module", params=MAKERS, ids=lambda make: make.__name__)
def any_tokenizer(request, folder):
    return as_offset_tokenizer(request.param(folder))


def rendered(trajectory):
    dialect = get_format(trajectory.format).dialect
    return render_plain(trajectory.messages, segment(trajectory), dialect)


def supervised_characters(tokenizer, trajectory):
    """Kind and step of every character that some token covers, as the row has them.

    Characters that the tokenizer drops (a normaliser folds blanks) are covered by none.
    """
    text = rendered(trajectory)
    row = SpanTokenizer(tokenizer, style="plain", add_bos=False).rows(trajectory)[0]
    ids, offsets = tokenizer.encode(text.text, text.literal)
    assert row.tokens.tolist() == list(ids)
    found = {}
    for (start, end), kind, step in zip(offsets, row.span_ids, row.steps):
        for position in range(start, end):
            found.setdefault(position, set()).add((SpanKind(kind), int(step)))
    return text, offsets, found


@pytest.mark.parametrize("trajectory", TRAJECTORIES, ids=lambda t: t.id)
def test_the_same_characters_are_supervised(any_tokenizer, trajectory):
    text, offsets, found = supervised_characters(any_tokenizer, trajectory)
    straddling = {
        p for a, b in offsets for p in range(a, b) if len({_kind(text, q) for q in range(a, b)}) > 1
    }
    for span in text.spans:
        for position in range(span.start, span.end):
            if position in straddling or position not in found:
                continue
            assert found[position] == {(span.kind, span.step)}
    # what no token covers is a blank that the tokenizer's normaliser folds away
    missing = [p for p in range(len(text.text)) if p not in found]
    assert all(text.text[p].isspace() or text.text[p] in "\u200b\u0301" for p in missing)
    # and what straddles is learnt as soon as the agent has a character in it
    for start, end in offsets:
        agent = [q for q in range(start, end) if _kind(text, q) in AGENT_KINDS]
        if agent:
            assert all(k in AGENT_KINDS for q in range(start, end) for k, _ in found[q])


@pytest.mark.parametrize("trajectory", TRAJECTORIES, ids=lambda t: t.id)
def test_offsets_are_in_order_and_control_tokens_come_from_the_harness_only(
    any_tokenizer, trajectory
):
    text = rendered(trajectory)
    ids, offsets = any_tokenizer.encode(text.text, text.literal)
    starts = [start for start, _ in offsets]
    assert starts == sorted(starts)
    assert all(0 <= a <= b <= len(text.text) for a, b in offsets)
    assert not set(ids) & set(any_tokenizer.special.values())


def test_control_tokens_outside_content_are_control_tokens(any_tokenizer):
    for token, token_id in any_tokenizer.special.items():
        ids, offsets = any_tokenizer.encode(f"a{token}b", [(0, 1)])
        assert token_id in ids
        assert offsets[ids.index(token_id)] == (1, 1 + len(token))
        ids, _ = any_tokenizer.encode(f"a{token}b", [(0, 2 + len(token))])
        assert token_id not in ids


def test_text_is_encoded_as_the_model_sees_it(any_tokenizer):
    """One text, one encoding: cutting it at content boundaries changes no token."""
    text = rendered(SHIPPED[0])
    ids, _ = any_tokenizer.encode(text.text, text.literal)
    assert list(ids) == list(any_tokenizer.encode_text(text.text)[0])


@given(st.lists(st.tuples(st.booleans(), PIECES), max_size=8))
def test_offsets_from_byte_widths_are_those_that_tokenizers_tracks(pieces):
    text, literal = "", []
    for is_content, piece in pieces:
        if is_content and piece:
            literal.append((len(text), len(text) + len(piece)))
        text += piece
    ids, offsets = HOUSEHOLD.encode_arrays(text, literal)
    expected_ids, expected = OffsetTokenizer.encode_arrays(HOUSEHOLD, text, literal)
    assert HOUSEHOLD._byte_widths is not None
    assert ids.tolist() == expected_ids.tolist()
    assert offsets.tolist() == expected.tolist()


def test_behind_a_control_token_hf_text_is_encoded_as_hugging_face_does(folder):
    """Llama 2's normaliser prepends a blank at the very start only."""
    ours = llama2_hf(folder)
    from tokenizers import Tokenizer

    reference = Tokenizer.from_file(str(ours.path / "tokenizer.json"))
    for text in ("a cup<s>a cup</s> the cup", "<s>a cup", "a <s> b", "cup</s></s>cup"):
        expected = reference.encode(text, add_special_tokens=False)
        ids, offsets = ours.encode(text)
        assert ids == expected.ids, text
        assert offsets == expected.offsets, text


def test_wrappers_of_torchtune_tokenizers(folder):
    assert isinstance(as_offset_tokenizer(tiktoken(folder)), TikToken)
    assert isinstance(as_offset_tokenizer(sentencepiece_bpe(folder)), SentencePiece)
    wrapped = as_offset_tokenizer(llama2(folder))
    assert isinstance(wrapped, SentencePiece)
    assert as_offset_tokenizer(wrapped) is wrapped


def test_decode_gives_the_text_back(any_tokenizer):
    ids, _ = any_tokenizer.encode_text("open drawer 12")
    assert any_tokenizer.decode(ids) == "open drawer 12"


def test_fingerprints_tell_tokenizers_apart(folder):
    prints = [as_offset_tokenizer(make(folder)).fingerprint for make in MAKERS if make != smollm2]
    assert prints[0] == shipped(folder).fingerprint
    assert len(set(prints)) == len(prints) - 1  # llama2 wraps the unigram model


def test_every_learnt_token_of_the_branch_is_the_agents_first(any_tokenizer):
    row = SpanTokenizer(any_tokenizer, style="plain").rows(SHIPPED[0])[0]
    where = np.flatnonzero(row.branch)
    agent = np.isin(row.span_ids, [int(k) for k in AGENT_KINDS])
    assert len(where) == row.steps.max()
    assert agent[where].all()
    assert not agent[where - 1].any()


def _kind(text, position):
    return next(s.kind for s in text.spans if s.start <= position < s.end)


def test_a_broken_tokenizer_json_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", ')
    with pytest.raises(ValueError, match=r"tokenizer.json is no .* copy it anew"):
        HFTokenizer(str(tmp_path))
