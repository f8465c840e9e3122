"""Tokenizers that say which characters each token covers.

One small interface, :class:`OffsetTokenizer`, over Hugging Face ``tokenizers``, tiktoken and
SentencePiece as torchtune wraps them.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sad_components.data.shipped import resolve_folder

#: Token ids and, per token, the half-open character range it covers.
Encoded = tuple[list[int], list[tuple[int, int]]]


class OffsetTokenizer(ABC):
    """Text to token ids with character offsets.

    Attributes:
        special: every control token's text and id.
        bos_id, eos_id, pad_id: ids, or None where the tokenizer has none (``pad_id`` falls back
            to ``eos_id``, then 0: padding is masked anyway).
        chat_template: Jinja source, or None.
    """

    special: dict[str, int]
    bos_id: int | None = None
    eos_id: int | None = None
    chat_template: str | None = None
    _pad_id: int | None = None

    @property
    def pad_id(self) -> int:
        for candidate in (self._pad_id, self.eos_id):
            if candidate is not None:
                return candidate
        return 0

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included."""

    @abstractmethod
    def encode_text(self, text: str) -> Encoded:
        """Encodes plain text: the text of a control token is just text."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, control tokens left out."""

    @cached_property
    def fingerprint(self) -> str:
        """Hash that is equal for tokenizers that encode alike (16 hex digits)."""
        probe = "Thought 1: héllo, wörld\n\tAction: go to drawer 12 \u4f60\u597d {}[]<think>"
        ids, _ = self.encode_text(probe)
        known = json.dumps([ids, self.vocab_size, sorted(self.special.items()), self.chat_template])
        return hashlib.sha256(known.encode()).hexdigest()[:16]

    def encode(self, text: str, literal: Sequence[tuple[int, int]] = ()) -> Encoded:
        """Encodes rendered text: control tokens are read outside the ``literal`` ranges only.

        Args:
            text: rendered text.
            literal: ordered character ranges that are message content.

        Returns:
            ids and offsets; a token inside one character (byte-level pieces) has that character's
            range.
        """
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        position = 0
        for start, end, control in self._control_tokens(text, literal):
            self._extend(ids, offsets, text, position, start)
            ids.append(control)
            offsets.append((start, end))
            position = end
        self._extend(ids, offsets, text, position, len(text))
        return ids, offsets

    def _extend(self, ids: list, offsets: list, text: str, start: int, end: int) -> None:
        if end > start:
            more, where = self.encode_text(text[start:end])
            ids.extend(more)
            offsets.extend((a + start, b + start) for a, b in where)

    def _control_tokens(self, text: str, literal: Sequence[tuple[int, int]]):
        """``(start, end, id)`` of the control tokens that the harness wrote, in order."""
        found = []
        starts = [r[0] for r in literal]
        for token, token_id in self.special.items():
            at = text.find(token)
            while at >= 0:
                end = at + len(token)
                inside = bisect_right(starts, end - 1) - 1
                if inside < 0 or literal[inside][1] <= at:
                    found.append((at, end, token_id))
                at = text.find(token, end)
        found.sort(key=lambda item: (item[0], -item[1]))
        position = 0
        for item in found:
            if item[0] >= position:
                yield item
                position = item[1]


class HFTokenizer(OffsetTokenizer):
    """A Hugging Face fast tokenizer from a folder with ``tokenizer.json``.

    Args:
        path: the folder, or ``shipped:household/tokenizer``; its ``tokenizer_config.json`` gives
            the chat template and the names of the bos, eos and pad tokens.
        chat_template: Jinja source that replaces the tokenizer's own, or a path to it.

    Raises:
        FileNotFoundError: no ``tokenizer.json`` there.
    """

    def __init__(self, path: str, chat_template: str | None = None) -> None:
        from tokenizers import Tokenizer

        folder = resolve_folder(path)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise FileNotFoundError(
                f"no tokenizer.json in {folder}: expected a folder in Hugging Face format "
                "(sad fetch-demo makes one)"
            )
        self.path = folder
        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True
        added = self._tokenizer.get_added_tokens_decoder()
        self.special = {t.content: i for i, t in added.items() if t.special}
        config = _read_json(folder / "tokenizer_config.json")
        self.bos_id, self.eos_id, self._pad_id = (
            self._id_of(config.get(f"{name}_token")) for name in ("bos", "eos", "pad")
        )
        self.chat_template = _template_source(chat_template, config, folder)
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        self.template_variables = {n: _token_text(config.get(n)) or "" for n in names}

    def _id_of(self, token: Any) -> int | None:
        text = _token_text(token)
        return self._tokenizer.token_to_id(text) if text else None

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode_text(self, text: str) -> Encoded:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)


class TikToken(OffsetTokenizer):
    """A torchtune tiktoken tokenizer (for example ``torchtune.models.llama3.llama3_tokenizer``).

    Args:
        tokenizer: object whose ``tt_model`` (or itself) is torchtune's ``TikTokenBaseTokenizer``.
    """

    def __init__(self, tokenizer: Any) -> None:
        base = getattr(tokenizer, "tt_model", tokenizer)
        base = getattr(base, "tt_model", base)
        self._encoding = base
        self.special = {
            token: base.encode_single_token(token) for token in sorted(base.special_tokens_set)
        }
        self.bos_id = getattr(tokenizer, "bos_id", None)
        self.eos_id = getattr(tokenizer, "eos_id", None)
        self._pad_id = getattr(tokenizer, "pad_id", None)

    @property
    def vocab_size(self) -> int:
        return self._encoding.n_vocab

    def encode_text(self, text: str) -> Encoded:
        ids = self._encoding.encode(text, disallowed_special=())
        ends = [0, *accumulate(len(self._encoding.decode_single_token_bytes(i)) for i in ids)]
        return ids, _bytes_to_chars(text, list(pairwise(ends)))

    def decode(self, ids: Sequence[int]) -> str:
        control = set(self.special.values())
        return self._encoding.decode([i for i in ids if i not in control])


class SentencePiece(OffsetTokenizer):
    """A torchtune SentencePiece tokenizer (for example ``torchtune.models.llama2``'s).

    Args:
        tokenizer: object whose ``spm_model`` is a ``SentencePieceProcessor`` (torchtune's base
            or model tokenizers).
    """

    def __init__(self, tokenizer: Any) -> None:
        model = tokenizer
        while hasattr(model, "spm_model") or hasattr(model, "_spm_model"):
            model = getattr(model, "spm_model", None) or model._spm_model
        self._model = model
        self.bos_id, self.eos_id = model.bos_id(), model.eos_id()
        self._pad_id = model.pad_id() if model.pad_id() >= 0 else None
        control = [i for i in range(model.vocab_size()) if model.is_control(i)]
        self.special = {model.id_to_piece(i): i for i in control}

    @property
    def vocab_size(self) -> int:
        return self._model.vocab_size()

    def encode_text(self, text: str) -> Encoded:
        pieces = self._model.encode(text, out_type="proto").pieces
        ids = [piece.id for piece in pieces]
        chars = _bytes_to_chars(text, [(piece.begin, piece.end) for piece in pieces])
        # only the last of the byte pieces that make one character says which
        for index in range(len(chars) - 2, -1, -1):
            start, end = chars[index]
            if start == end == chars[index + 1][0] and self._model.is_byte(ids[index]):
                chars[index] = chars[index + 1]
        return ids, chars

    def decode(self, ids: Sequence[int]) -> str:
        control = set(self.special.values())
        return self._model.decode([int(i) for i in ids if i not in control])


def as_offset_tokenizer(tokenizer: Any) -> OffsetTokenizer:
    """Wraps what torchtune configs instantiate (or passes an :class:`OffsetTokenizer` through).

    Raises:
        ValueError: no way to get character offsets from it.
    """
    if isinstance(tokenizer, OffsetTokenizer):
        return tokenizer
    if hasattr(tokenizer, "tt_model"):
        return TikToken(tokenizer)
    if hasattr(tokenizer, "spm_model") or hasattr(tokenizer, "_spm_model"):
        return SentencePiece(tokenizer)
    raise ValueError(
        f"spans need a tokenizer with character offsets; got {type(tokenizer).__name__}. Use "
        "sad_components.data.tokenizers.HFTokenizer, or torchtune's tiktoken or SentencePiece "
        "tokenizers"
    )


def _bytes_to_chars(text: str, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Character range of each range of UTF-8 bytes; part of a character gives the whole of it."""
    if text.isascii():
        return list(ranges)
    width = [len(c.encode("utf-8", "surrogatepass")) for c in text]
    char_of_byte = np.append(np.repeat(np.arange(len(text)), width), len(text)).tolist()
    return [
        (char_of_byte[a], char_of_byte[b - 1] + 1 if b > a else char_of_byte[a]) for a, b in ranges
    ]


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _token_text(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _template_source(given: str | None, config: dict[str, Any], folder: Path) -> str | None:
    if given is not None:
        return Path(given).read_text(encoding="utf-8") if Path(given).is_file() else given
    beside = folder / "chat_template.jinja"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    own = config.get("chat_template")
    if isinstance(own, list):  # several named templates: the one named default
        own = next((t["template"] for t in own if t.get("name") == "default"), None)
    return own
