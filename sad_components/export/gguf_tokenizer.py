"""A tokenizer folder in GGUF's terms: tokens, types, merges, and llama.cpp's name for its rule."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf.constants import TokenType

from sad_components.data.tokenizers import HFTokenizer

#: Regular expressions by which texts are split before byte-level BPE -> llama.cpp's name of the
#: rule. A text is split as llama.cpp's own code for that name does it.
_SPLITS = {
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ): "qwen2",
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ): "llama-bpe",
}


@dataclass(frozen=True)
class GGUFTokenizer:
    """What a GGUF file says of its tokenizer.

    Args:
        model: ``gpt2`` (byte-level BPE) or ``llama`` (SentencePiece).
        pre: llama.cpp's name of the rule that splits texts into words.
        tokens: every token's text, in the vocabulary's own alphabet.
        types: each token's ``TokenType``.
        merges: pairs, a blank between them; None for SentencePiece.
        scores: of SentencePiece's tokens; None for BPE.
        ids: of ``bos``, ``eos``, ``unk`` and ``pad``, where there is one.
        adds_bos: whether texts get a bos token.
        adds_space: whether texts get a blank in front.
        chat_template: Jinja source, or None.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str] | None
    scores: list[float] | None
    ids: dict[str, int]
    adds_bos: bool
    adds_space: bool
    chat_template: str | None


def gguf_tokenizer(folder: str | Path, vocab_size: int) -> GGUFTokenizer:
    """The tokenizer in a folder.

    Args:
        folder: with ``tokenizer.json`` of a byte-level BPE, or SentencePiece's ``tokenizer.model``.
        vocab_size: rows of the model's embedding; ids without a token are filled up as unused.

    Raises:
        FileNotFoundError: no ``tokenizer.json``.
        ValueError: a tokenizer that llama.cpp has no rule for, or more tokens than rows.
    """
    path = Path(folder)
    tokenizer = HFTokenizer(str(path))
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"the tokenizer in {path} has {tokenizer.vocab_size} tokens, but the model's embedding "
            f"{vocab_size} rows: they are not of one model"
        )
    described = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    settings = _json(path / "tokenizer_config.json")
    ids = _ids(tokenizer, settings)
    kind = described["model"]["type"]
    common: dict[str, Any] = {"ids": ids, "chat_template": tokenizer.chat_template}
    if (path / "tokenizer.model").is_file():
        return _sentencepiece(path, tokenizer, vocab_size, common, settings)
    if kind != "BPE" or described["model"].get("byte_fallback"):
        raise ValueError(
            f"llama.cpp reads byte-level BPE (tokenizer.json) and SentencePiece (tokenizer.model); "
            f"{path} holds a tokenizer.json of type {kind} and no tokenizer.model: copy that of "
            "the original model there"
        )
    pre = _rule(described, path)
    tokens, types = _vocabulary(tokenizer, vocab_size)
    merges = [m if isinstance(m, str) else " ".join(m) for m in described["model"]["merges"]]
    adds_bos = "bos" in ids and tokenizer.backend.encode("a").ids[:1] == [ids["bos"]]
    return GGUFTokenizer(
        "gpt2", pre, tokens, types, merges, None, adds_bos=adds_bos, adds_space=False, **common
    )


def _rule(described: Mapping[str, Any], path: Path) -> str:
    """llama.cpp's name of the way in which texts are split into words.

    Raises:
        ValueError: it has none.
    """
    before = described.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    kinds = [step.get("type") for step in steps]
    normalizer = (described.get("normalizer") or {}).get("type")
    last = steps[-1]
    if kinds and kinds[-1] == "ByteLevel" and not last.get("add_prefix_space"):
        own_regex = last.get("use_regex", True)
        if kinds == ["ByteLevel"] and own_regex and normalizer is None:
            return "gpt-2"
        individual = steps[0].get("individual_digits")
        if kinds == ["Digits", "ByteLevel"] and individual and own_regex and normalizer is None:
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and not own_regex and normalizer in (None, "NFC"):
            split = (steps[0].get("pattern") or {}).get("Regex")
            if split in _SPLITS and steps[0].get("behavior") == "Isolated":
                return _SPLITS[split]
    raise ValueError(
        f"llama.cpp splits texts by rules of its own; none is that of {path / 'tokenizer.json'} "
        f"(normalizer {normalizer}, pre-tokenizer {kinds}): known here are those of GPT-2, "
        "SmolLM2, Qwen2 and Llama 3"
    )


def _vocabulary(tokenizer: HFTokenizer, vocab_size: int) -> tuple[list[str], list[int]]:
    """Texts and types of all ids."""
    by_id = {i: text for text, i in tokenizer.backend.get_vocab(with_added_tokens=True).items()}
    added = tokenizer.backend.get_added_tokens_decoder()
    tokens, types = [], []
    for token in range(vocab_size):
        if token not in by_id:
            tokens.append(f"[PAD{token}]")
            types.append(TokenType.UNUSED)
            continue
        tokens.append(by_id[token])
        if token not in added:
            types.append(TokenType.NORMAL)
        else:
            types.append(TokenType.CONTROL if added[token].special else TokenType.USER_DEFINED)
    return tokens, [int(kind) for kind in types]


def _sentencepiece(
    path: Path,
    tokenizer: HFTokenizer,
    vocab_size: int,
    common: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> GGUFTokenizer:
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(path / "tokenizer.model"))
    tokens, types = _vocabulary(tokenizer, vocab_size)
    scores = [-1000.0] * vocab_size
    for token in range(min(model.vocab_size(), vocab_size)):
        piece = model.id_to_piece(token)
        if tokens[token] != piece:
            raise ValueError(
                f"{path}: tokenizer.model and tokenizer.json disagree about token {token} "
                f"({piece!r} and {tokens[token]!r}): they are not of one model"
            )
        scores[token] = model.get_score(token)
        kinds = (
            (model.is_unknown, TokenType.UNKNOWN),
            (model.is_control, TokenType.CONTROL),
            (model.is_unused, TokenType.UNUSED),
            (model.is_byte, TokenType.BYTE),
        )
        types[token] = int(next((kind for is_it, kind in kinds if is_it(token)), TokenType.NORMAL))
    return GGUFTokenizer(
        "llama",
        "default",
        tokens,
        types,
        None,
        scores,
        adds_bos=bool(settings.get("add_bos_token", True)),
        adds_space=bool(settings.get("add_prefix_space", True)),
        **common,
    )


def _ids(tokenizer: HFTokenizer, settings: Mapping[str, Any]) -> dict[str, int]:
    found = {}
    for name in ("bos", "eos", "unk", "pad"):
        token = settings.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        identity = tokenizer.backend.token_to_id(text) if text else None
        if identity is not None:
            found[name] = identity
    return found


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
