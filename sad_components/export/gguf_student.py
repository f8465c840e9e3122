"""An exported student in llama.cpp: logits of the next token, with a cache.

Shape legend: B sequences, S tokens, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sad_components.data.prefixes import common_prefix
from sad_components.export.sessions import SessionStudent

INSTALL = "pip install llama-cpp-python"


class GGUFStudent(SessionStudent):
    """What generation needs of a model (``evaluation.decoding.NextToken``), out of a GGUF.

    Texts are encoded by the student's own tokenizer; llama.cpp reads token ids.

    Args:
        folder: an exported student (kind ``gguf``).
        sessions: contexts of llama.cpp at most, each with a cache of its own; with more sequences
            the one longest unused is read anew when it comes back.
        threads: that llama.cpp computes with; None: as many as torch has.
        verify: compare the hash of every file first.

    Attributes and methods are those of :class:`SessionStudent`.

    Raises:
        ImportError: llama-cpp-python is not installed.
        ValueError: a file is missing, damaged, or not of the others; the message names it.
    """

    kind = "gguf"

    def __init__(
        self,
        folder: str | Path,
        sessions: int = 1,
        threads: int | None = None,
        verify: bool = True,
    ) -> None:
        self._llama = _llama_class()
        super().__init__(folder, sessions, verify)
        self._threads = torch.get_num_threads() if threads is None else threads
        self._slot(-1)  # a broken file is told of now

    def close(self) -> None:
        """Frees the contexts; what was read is forgotten."""
        for context in self._slots.values():
            context.close()
        super().close()

    def _forget(self, slot: Any) -> None:
        slot.n_tokens = 0

    def _read(self, slot: Any, token_ids: list[int], first: int) -> Tensor:
        known = slot.input_ids[: slot.n_tokens].tolist()
        # llama.cpp keeps keys and values of what it has read, and this object no logits of it
        slot.n_tokens = min(common_prefix(known, token_ids), first)
        slot.eval(token_ids[slot.n_tokens :])
        return torch.tensor(slot.scores[first : len(token_ids), : self.vocab_size]).float()

    def _new_slot(self) -> Any:
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
