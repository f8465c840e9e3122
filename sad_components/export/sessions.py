"""What all exported students have in common: a folder, a tokenizer, and sessions with caches.

Shape legend: B sequences, S tokens, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from sad_components.data.tokenizers import HFTokenizer
from sad_components.data.transform import SpanTokenizer
from sad_components.export.manifest import MANIFEST_FILE, Manifest, read_manifest


class HasSession(Protocol):
    """A growing sequence, such as ``evaluation.decoding.Prefix``."""

    session: int
    token_ids: list[int]


class SessionStudent(ABC):
    """What generation needs of a model (``evaluation.decoding.NextToken``), out of a folder.

    Each session keeps its keys and values in a slot of its own, as long as there are no more than
    ``sessions`` of them; then the one longest unused is read anew when it comes back.

    Args:
        folder: an exported student of the class's kind.
        sessions: slots at most.
        verify: compare the hash of every file first.

    Attributes:
        manifest: what the folder says about itself.
        tokenizer: of the student.
        transform: how it was shown its transcripts.
        max_seq_len: longest sequence it can read, in tokens.
        vocab_size: logits per token.

    Raises:
        ValueError: a file is missing, damaged, or not of the others; the message names it.
    """

    kind: ClassVar[str]

    def __init__(self, folder: str | Path, sessions: int, verify: bool) -> None:
        if sessions < 1:
            raise ValueError(f"sessions must be at least 1; got {sessions}")
        self.folder = Path(folder)
        self.manifest: Manifest = read_manifest(folder, verify)
        if self.manifest.kind != self.kind:
            raise ValueError(
                f"{folder} is of kind {self.manifest.kind!r}; this class runs {self.kind} exports"
            )
        self.max_seq_len = self.manifest.max_seq_len
        self.vocab_size = self.manifest.vocab_size
        self.tokenizer = tokenizer_of(self.folder, self.manifest)
        self._sessions = sessions
        self._slots: OrderedDict[int, Any] = OrderedDict()

    @cached_property
    def transform(self) -> SpanTokenizer:
        return SpanTokenizer(self.tokenizer, **self.manifest.transform)

    def logits(self, sequences: Sequence[HasSession]) -> Tensor:
        """Logits of the token behind each sequence, shape [B, V], fp32.

        Args:
            sequences: at least one, each of at least one token, no session twice.

        Raises:
            ValueError: a sequence is empty or longer than ``max_seq_len``.
        """
        return torch.stack([self._checked(s.session, s.token_ids)[-1] for s in sequences])

    def sequence_logits(self, token_ids: Sequence[int], start: int = 0) -> Tensor:
        """Logits behind each token from ``start`` on, shape [S - start, V], fp32.

        Args:
            token_ids: a whole sequence.
            start: the first token whose logits are asked for.
        """
        return self._checked(-1, list(token_ids), start)

    def close(self) -> None:
        """Frees the slots; what was read is forgotten."""
        self._slots.clear()

    def _checked(self, session: int, token_ids: list[int], start: int | None = None) -> Tensor:
        if not 0 < len(token_ids) <= self.max_seq_len:
            raise ValueError(
                f"the model reads 1 to {self.max_seq_len} tokens; got a sequence of "
                f"{len(token_ids)}"
            )
        first = len(token_ids) - 1 if start is None else start
        return self._read(self._slot(session), token_ids, first)

    def _slot(self, session: int) -> Any:
        if session not in self._slots:
            if len(self._slots) < self._sessions:
                self._slots[session] = self._new_slot()
            else:
                _, oldest = self._slots.popitem(last=False)
                self._forget(oldest)
                self._slots[session] = oldest
        self._slots.move_to_end(session)
        return self._slots[session]

    @abstractmethod
    def _new_slot(self) -> Any:
        """Caches in which nothing is read."""

    @abstractmethod
    def _forget(self, slot: Any) -> None:
        """Makes a used slot as good as new."""

    @abstractmethod
    def _read(self, slot: Any, token_ids: list[int], first: int) -> Tensor:
        """Reads what is new to a slot; logits behind the tokens from ``first`` on, [., V], fp32."""


def tokenizer_of(folder: Path, manifest: Manifest) -> HFTokenizer:
    """The tokenizer in an exported folder.

    Raises:
        ValueError: it is not the one that the manifest describes.
    """
    tokenizer = HFTokenizer(str(folder))
    known = manifest.tokenizer.get("fingerprint")
    if tokenizer.fingerprint != known or tokenizer.chat_template != manifest.chat_template:
        raise ValueError(
            f"{folder / 'tokenizer.json'} and the chat template beside it are not those that the "
            f"student was exported with (fingerprint {tokenizer.fingerprint}, {MANIFEST_FILE} says "
            f"{known!r}): copy the student's tokenizer there, or export the student anew"
        )
    if tokenizer.vocab_size > manifest.vocab_size:
        raise ValueError(
            f"{folder / 'tokenizer.json'} has {tokenizer.vocab_size} ids, but the model gives "
            f"{manifest.vocab_size} logits ({MANIFEST_FILE}): they are not of one student"
        )
    return tokenizer
