"""An exported student in ExecuTorch's runtime: logits of the next token, with a cache.

Shape legend: B sequences, S tokens, V vocabulary.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from sad_components.data.tokenizers import HFTokenizer
from sad_components.data.transform import SpanTokenizer
from sad_components.export.manifest import MANIFEST_FILE, Manifest, read_manifest
from sad_components.export.requirements import require_executorch

#: The method of a .pte that reads tokens; its inputs are ids [1, S] and the first one's position
#: [1], its output logits [1, S, V]: ExecuTorch's own LLM runners call it so, too.
METHOD = "forward"


class HasSession(Protocol):
    """A growing sequence, such as ``evaluation.decoding.Prefix``."""

    session: int
    token_ids: list[int]


@dataclass
class _Slot:
    """An instance of the method, whose caches hold ``read``."""

    method: Any
    read: list[int] = field(default_factory=list)


class ExportedStudent:
    """What generation needs of a model (``evaluation.decoding.NextToken``), out of a ``.pte``.

    Each session keeps its keys and values in an instance of the program, as long as there are no
    more than ``sessions`` of them; then the one longest unused is read anew when it comes back.

    Args:
        folder: an exported student (kind ``executorch``).
        sessions: instances of the program at most; each holds caches, and weights in the order in
            which XNNPACK computes with them.
        threads: that ExecuTorch computes with, for the whole process; None: as many as torch has.
        verify: compare the hash of every file first.

    Attributes:
        manifest: what the folder says about itself.
        tokenizer: of the student.
        transform: how it was shown its transcripts.
        max_seq_len: longest sequence it can read, in tokens.
        vocab_size: logits per token.

    Raises:
        ImportError: ExecuTorch is not set up.
        ValueError: a file is missing, damaged, or not of the others; the message names it.
    """

    def __init__(
        self,
        folder: str | Path,
        sessions: int = 1,
        threads: int | None = None,
        verify: bool = True,
    ) -> None:
        require_executorch()
        if sessions < 1:
            raise ValueError(f"sessions must be at least 1; got {sessions}")
        self.folder = Path(folder)
        self.manifest: Manifest = read_manifest(folder, verify)
        if self.manifest.kind != "executorch":
            raise ValueError(
                f"{folder} is of kind {self.manifest.kind!r}; this class runs executorch exports"
            )
        self.max_seq_len = self.manifest.max_seq_len
        self.vocab_size = self.manifest.vocab_size
        self.tokenizer = tokenizer_of(self.folder, self.manifest)
        self._threads = threads
        _check_program(self._load(), self.manifest, self.folder)
        self._sessions = sessions
        self._slots: OrderedDict[int, _Slot] = OrderedDict()

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
        return torch.stack([self._advance(s.session, s.token_ids)[-1] for s in sequences])

    def sequence_logits(self, token_ids: Sequence[int], start: int = 0) -> Tensor:
        """Logits behind each token from ``start`` on, shape [S - start, V], fp32.

        Args:
            token_ids: a whole sequence.
            start: the first token whose logits are asked for.
        """
        self._slot(-1).read = []
        return self._advance(-1, list(token_ids), start)

    def close(self) -> None:
        """Frees the instances; what was read is forgotten."""
        self._slots.clear()

    def _advance(self, session: int, token_ids: list[int], start: int | None = None) -> Tensor:
        """Reads what is new of a session; logits behind the tokens read from ``start`` on."""
        if not 0 < len(token_ids) <= self.max_seq_len:
            raise ValueError(
                f"the model reads 1 to {self.max_seq_len} tokens; got a sequence of "
                f"{len(token_ids)}"
            )
        slot = self._slot(session)
        at = min(_common_prefix(slot.read, token_ids), len(token_ids) - 1)
        wanted = len(token_ids) - 1 if start is None else start
        kept: list[Tensor] = []
        slot.read = slot.read[:at]
        while at < len(token_ids):
            end = min(len(token_ids), at + self.manifest.prefill_tokens)
            ids = torch.tensor([token_ids[at:end]])
            logits_SV = slot.method.execute([ids, torch.tensor([at])])[0][0]
            if end > wanted:
                kept.append(logits_SV[max(0, wanted - at) :].float())
            slot.read = token_ids[:end]
            at = end
        return torch.cat(kept)

    def _load(self) -> Any:
        """The program anew: methods of one that was loaded once share their caches."""
        return _load_program(self.folder / self.manifest.model_file, self._threads)

    def _slot(self, session: int) -> _Slot:
        if session not in self._slots:
            if len(self._slots) < self._sessions:
                self._slots[session] = _Slot(self._load().load_method(METHOD))
            else:
                _, oldest = self._slots.popitem(last=False)
                oldest.read = []
                self._slots[session] = oldest
        self._slots.move_to_end(session)
        return self._slots[session]


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


def _load_program(path: Path, threads: int | None) -> Any:
    """ExecuTorch's program in a file."""
    import executorch.extension.llm.custom_ops.custom_ops
    import executorch.kernels.quantized  # noqa: F401  both register kernels with the runtime
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime, Verification

    wanted = torch.get_num_threads() if threads is None else threads
    if portable_lib._threadpool_get_thread_count() != wanted:
        portable_lib._unsafe_reset_threadpool(wanted)
    try:
        return Runtime.get().load_program(path, verification=Verification.InternalConsistency)
    except RuntimeError as error:
        raise ValueError(
            f"{path} is no program that ExecuTorch reads ({error}): copy it anew, or export the "
            "student anew"
        ) from error


def _check_program(program: Any, manifest: Manifest, folder: Path) -> None:
    """Raises ``ValueError`` where a program is not the one that the manifest describes."""
    path = folder / manifest.model_file
    if METHOD not in program.method_names:
        raise ValueError(f"{path} has no method {METHOD!r}: it was not exported by this project")
    said = {
        "max_seq_len": "get_max_context_len",
        "prefill_tokens": "get_max_seq_len",
        "vocab_size": "get_vocab_size",
    }
    for key, method in said.items():
        if method not in program.method_names:
            raise ValueError(
                f"{path} has no method {method!r}: it was not exported by this project"
            )
        (found,) = program.load_method(method).execute([])
        if int(found) != getattr(manifest, key):
            raise ValueError(
                f"{path} was exported with {key} {int(found)}, but {MANIFEST_FILE} says "
                f"{getattr(manifest, key)}: they are not of one export; export the student anew"
            )


def _common_prefix(known: Sequence[int], asked: Sequence[int]) -> int:
    length = min(len(known), len(asked))
    if known[:length] == asked[:length]:
        return length
    return next(i for i in range(length) if known[i] != asked[i])


def load_exported(folder: str | Path, **options: Any) -> ExportedStudent:
    """The student in an exported folder, ready to give logits.

    Args:
        folder: that holds a ``manifest.json``.
        options: of the class that runs its kind: ``sessions``, ``threads``, ``verify``.

    Raises:
        ImportError: the runtime of its kind is not installed.
        ValueError: see :func:`read_manifest`; or a kind that nothing here runs.
    """
    kind = read_manifest(folder, verify=False).kind
    if kind not in LOADERS:
        raise ValueError(f"{folder} is of kind {kind!r}; known here: {', '.join(LOADERS)}")
    return LOADERS[kind](folder, **options)


def _gguf_student(folder: str | Path, **options: Any) -> Any:
    """llama.cpp's; its module needs this one."""
    from sad_components.export.gguf_student import GGUFStudent

    return GGUFStudent(folder, **options)


#: Kind -> what runs it; each gives ``logits``, ``sequence_logits``, ``tokenizer``, ``transform``,
#: ``manifest``, ``max_seq_len`` and ``vocab_size``.
LOADERS: dict[str, Any] = {"executorch": ExportedStudent, "gguf": _gguf_student}
