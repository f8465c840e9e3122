"""An exported student in llama.cpp: logits of the next token, with a cache.

Shape legend: B sequences, S tokens, V vocabulary.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sad_components.data.transform import SpanTokenizer
from sad_components.export.manifest import Manifest, read_manifest
from sad_components.export.student import HasSession, tokenizer_of

INSTALL = "pip install llama-cpp-python"


class GGUFStudent:
    """What generation needs of a model (``evaluation.decoding.NextToken``), out of a GGUF.

    Texts are encoded by the student's own tokenizer; llama.cpp reads token ids.

    Args:
        folder: an exported student (kind ``gguf``).
        sessions: contexts of llama.cpp at most, each with a cache of its own; with more sequences
            the one longest unused is read anew when it comes back.
        threads: that llama.cpp computes with; None: as many as torch has.
        verify: compare the hash of every file first.

    Attributes:
        manifest: what the folder says about itself.
        tokenizer: of the student.
        max_seq_len: longest sequence it can read, in tokens.
        vocab_size: logits per token.

    Raises:
        ImportError: llama-cpp-python is not installed.
        ValueError: a file is missing, damaged, or not of the others; the message names it.
    """

    def __init__(
        self,
        folder: str | Path,
        sessions: int = 1,
        threads: int | None = None,
        verify: bool = True,
    ) -> None:
        self._llama = _llama_class()
        if sessions < 1:
            raise ValueError(f"sessions must be at least 1; got {sessions}")
        self.folder = Path(folder)
        self.manifest: Manifest = read_manifest(folder, verify)
        if self.manifest.kind != "gguf":
            raise ValueError(
                f"{folder} is of kind {self.manifest.kind!r}; this class runs gguf exports"
            )
        self.max_seq_len = self.manifest.max_seq_len
        self.vocab_size = self.manifest.vocab_size
        self.tokenizer = tokenizer_of(self.folder, self.manifest)
        self._threads = torch.get_num_threads() if threads is None else threads
        self._sessions = sessions
        self._slots: OrderedDict[int, Any] = OrderedDict()
        self._slot(-1)  # a broken file is told of now

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
        return torch.stack([self._read(s.session, s.token_ids)[-1] for s in sequences])

    def sequence_logits(self, token_ids: Sequence[int], start: int = 0) -> Tensor:
        """Logits behind each token from ``start`` on, shape [S - start, V], fp32.

        Args:
            token_ids: a whole sequence.
            start: the first token whose logits are asked for.
        """
        return self._read(-1, list(token_ids), start)

    def close(self) -> None:
        """Frees the contexts; what was read is forgotten."""
        for context in self._slots.values():
            context.close()
        self._slots.clear()

    def _read(self, session: int, token_ids: list[int], start: int | None = None) -> Tensor:
        """Reads what is new of a session; logits behind its tokens from ``start`` on."""
        if not 0 < len(token_ids) <= self.max_seq_len:
            raise ValueError(
                f"the model reads 1 to {self.max_seq_len} tokens; got a sequence of "
                f"{len(token_ids)}"
            )
        context = self._slot(session)
        known = context.input_ids[: context.n_tokens].tolist()
        first = len(token_ids) - 1 if start is None else start
        common = next(
            (i for i, (a, b) in enumerate(zip(known, token_ids)) if a != b),
            min(len(known), len(token_ids)),
        )
        # llama.cpp keeps keys and values of what it has read, and this object no logits of it
        context.n_tokens = min(common, first)
        context.eval(token_ids[context.n_tokens :])
        return torch.tensor(context.scores[first : len(token_ids), : self.vocab_size]).float()

    def _slot(self, session: int) -> Any:
        if session not in self._slots:
            if len(self._slots) < self._sessions:
                self._slots[session] = self._context()
            else:
                _, oldest = self._slots.popitem(last=False)
                oldest.n_tokens = 0
                self._slots[session] = oldest
        self._slots.move_to_end(session)
        return self._slots[session]

    def _context(self) -> Any:
        path = self.folder / self.manifest.model_file
        try:
            context = self._llama(
                model_path=str(path),
                n_ctx=self.max_seq_len,
                n_threads=self._threads,
                n_threads_batch=self._threads,
                logits_all=True,
                verbose=False,
            )
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"{path} is no GGUF that llama.cpp reads ({error}): copy it anew, or export the "
                "student anew"
            ) from error
        if context.n_vocab() != self.vocab_size:
            raise ValueError(
                f"{path} has {context.n_vocab()} tokens, but manifest.json says {self.vocab_size}: "
                "they are not of one export; export the student anew"
            )
        return context


def _llama_class() -> Any:
    try:
        from llama_cpp import Llama
    except ImportError as error:
        raise ImportError(
            f"a GGUF is run by llama-cpp-python, which is not installed ({error}): {INSTALL} (it "
            "compiles llama.cpp and needs a C++ compiler and cmake)"
        ) from error
    return Llama
