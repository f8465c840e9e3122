"""Tokenizers that say which characters each token covers.

One small interface, :class:`OffsetTokenizer`, over Hugging Face ``tokenizers``, tiktoken and
SentencePiece as torchtune wraps them.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sad_components.data.shipped import resolve_folder
from sad_components.data.words import WordTable

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
        """:meth:`encode_arrays` as lists: ids, and a pair per token."""
        ids, offsets = self.encode_arrays(text, literal)
        return ids.tolist(), [(start, end) for start, end in offsets.tolist()]

    def encode_arrays(
        self, text: str, literal: Sequence[tuple[int, int]] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encodes rendered text: control tokens are read outside the ``literal`` ranges only.

        Args:
            text: rendered text.
            literal: ordered character ranges that are message content.

        Returns:
            ids, int64 shape [T], and offsets, int64 shape [T, 2]; a token inside one character
            (byte-level pieces) has that character's range.
        """
        control = list(self._control_tokens(text, literal))
        bounds = [0, *(at for start, end, _ in control for at in (start, end)), len(text)]
        starts = bounds[::2]
        texts = [text[a:b] for a, b in zip(starts, bounds[1::2])]
        pieces = [_as_arrays(*self.encode_text(piece) if piece else ([], [])) for piece in texts]
        ids, offsets = [], []
        for index, ((some, where), start) in enumerate(zip(pieces, starts)):
            if index:
                begin, end, token = control[index - 1]
                ids.append(np.array([token]))
                offsets.append(np.array([[begin, end]]))
            if len(some):
                ids.append(some)
                offsets.append(where + start)
        if not ids:
            return np.zeros(0, np.int64), np.zeros((0, 2), np.int64)
        return np.concatenate(ids), np.concatenate(offsets)

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        """Finds control tokens, of two at one place the longer; nothing where there are none."""
        tokens = sorted(self.special, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, tokens)) or "(?!)")

    def _control_tokens(self, text: str, literal: Sequence[tuple[int, int]]):
        """``(start, end, id)`` of the control tokens that the harness wrote, in order."""
        if not self._control_pattern.search(text):
            return
        position = 0
        for start, end in [*literal, (len(text), len(text))]:
            for found in self._control_pattern.finditer(text, position, start):
                yield *found.span(), self.special[found[0]]
            position = end


class HFTokenizer(OffsetTokenizer):
    """A Hugging Face fast tokenizer from a folder with ``tokenizer.json``.

    Args:
        path: the folder, or ``shipped:household/tokenizer``; its ``tokenizer_config.json`` gives
            the chat template and the names of the bos, eos and pad tokens.
        chat_template: Jinja source that replaces the tokenizer's own, or a path to it.

    Raises:
        FileNotFoundError: no ``tokenizer.json`` there.
        ValueError: it is not readable as one.
    """

    def __init__(self, path: str, chat_template: str | None = None) -> None:
        from tokenizers import Tokenizer
        from tokenizers.normalizers import NFC

        folder = resolve_folder(path)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise FileNotFoundError(
                f"no tokenizer.json in {folder}: expected a folder in Hugging Face format "
                "(sad fetch-demo makes one)"
            )
        self.path = folder
        try:
            self.backend = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises no narrower type
            raise ValueError(
                f"{file} is no tokenizer.json that the tokenizers library reads ({error}); copy it "
                "anew from the model's folder"
            ) from error
        self.backend.no_padding()
        self.backend.no_truncation()
        self.backend.encode_special_tokens = True
        added = self.backend.get_added_tokens_decoder()
        self.special = {t.content: i for i, t in added.items() if t.special}
        config = _read_json(folder / "tokenizer_config.json")
        self.bos_id, self.eos_id, self._pad_id = (
            self._id_of(config.get(f"{name}_token")) for name in ("bos", "eos", "pad")
        )
        self.chat_template = _template_source(chat_template, config, folder)
        self._composes = isinstance(self.backend.normalizer, NFC)
        self._byte_widths = self._find_byte_widths()
        self._words = WordTable.of(self.backend) if self._byte_widths is not None else None
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        self.template_variables = {n: _token_text(config.get(n)) or "" for n in names}

    def _id_of(self, token: Any) -> int | None:
        text = _token_text(token)
        return self.backend.token_to_id(text) if text else None

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode_text(self, text: str) -> Encoded:
        encoding = self.backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def encode_arrays(
        self, text: str, literal: Sequence[tuple[int, int]] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        if self._byte_widths is None or not self._is_unchanged(text):
            return super().encode_arrays(text, literal)
        control = list(self._control_tokens(text, literal))
        bounds = [0, *(at for start, end, _ in control for at in (start, end)), len(text)]
        pieces = [text[a:b] for a, b in zip(bounds[::2], bounds[1::2])]
        ids_of = self._ids_of(pieces)
        ids: list[int] = []
        counts = []  # tokens up to the end of each piece
        for piece, following in zip(pieces, [*control, None]):
            ids += ids_of[piece]
            counts.append(len(ids))
            if following:
                ids.append(following[2])
        tokens = np.fromiter(ids, np.int64, count=len(ids))
        edges = np.concatenate(([0], self._byte_widths[tokens].cumsum()))
        starts, ends = _chars_around(text, edges)
        expected = bounds[1::2]
        if (starts[counts] != expected).any() or (ends[counts] != expected).any():
            return super().encode_arrays(text, literal)  # something of the text is in no token
        return tokens, np.array([starts[:-1], ends[1:]]).T

    def _ids_of(self, pieces: Sequence[str]) -> dict[str, list[int]]:
        """The ids of each piece, once: what a template writes comes with every turn."""
        different = list(set(pieces))
        if self._words is not None:
            return {piece: self._words.encode(piece) for piece in different}
        encodings = self.backend.encode_batch_fast(different, add_special_tokens=False)
        return {piece: encoding.ids for piece, encoding in zip(different, encodings)}

    def _find_byte_widths(self) -> np.ndarray | None:
        """Bytes of text per token id, shape [V]; None unless tokens are the text's own bytes.

        That is so in a byte-level BPE, where :meth:`_is_unchanged` holds; then offsets need not be
        tracked while encoding, which costs a third of it.
        """
        described = json.loads(self.backend.to_str())
        before = described["pre_tokenizer"] or {}
        steps = before.get("pretokenizers", [before])
        byte_level = [step for step in steps if step.get("type") == "ByteLevel"]
        changes = bool(described["normalizer"]) and not self._composes
        if described["model"]["type"] != "BPE" or changes or len(byte_level) != 1:
            return None
        if byte_level[0].get("add_prefix_space") or described["model"].get("unk_token"):
            return None
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        widths = np.zeros(max(vocabulary.values()) + 1, dtype=np.int64)
        widths[list(vocabulary.values())] = [len(piece) for piece in vocabulary]  # a letter a byte
        for token, added in self.backend.get_added_tokens_decoder().items():
            widths[token] = len(added.content.encode("utf-8"))
        return widths

    def _is_unchanged(self, text: str) -> bool:
        """Whether the tokenizer's normalizer leaves a text as it is."""
        return not self._composes or text.isascii() or unicodedata.is_normalized("NFC", text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.backend.decode(list(ids), skip_special_tokens=True)


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
        return ids, _pairs_to_chars(text, list(pairwise(ends)))

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
        chars = _pairs_to_chars(text, [(piece.begin, piece.end) for piece in pieces])
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


def _as_arrays(ids: Sequence[int], offsets: Sequence[tuple]) -> tuple[np.ndarray, np.ndarray]:
    where = np.fromiter(chain.from_iterable(offsets), dtype=np.int64, count=2 * len(offsets))
    return np.array(ids, dtype=np.int64), where.reshape(-1, 2)


def _chars_around(text: str, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the characters begin and end that places between the UTF-8 bytes of a text cut.

    Args:
        text: the text.
        places: offsets into its bytes, any shape.

    Returns:
        Offsets into ``text``, each shaped as ``places``; equal where nothing is cut.
    """
    if text.isascii():
        return places, places
    encoded = np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8)
    inner = np.flatnonzero((encoded & 0xC0) == 0x80)  # bytes that begin no character
    return (
        places - inner.searchsorted(places, side="right"),
        places - inner.searchsorted(places, side="left"),
    )


def _pairs_to_chars(text: str, ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Character ranges of ranges of UTF-8 bytes; part of a character gives the whole."""
    if text.isascii():
        return ranges
    array = np.array(ranges, dtype=np.int64).reshape(-1, 2)
    starts, ends = _chars_around(text, array)
    ends = np.where(array[:, 1] > array[:, 0], ends[:, 1], starts[:, 0])
    return list(zip(starts[:, 0].tolist(), ends.tolist()))


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
