"""An exported student in ExecuTorch's runtime: logits of the next token, with a cache.

Shape legend: B sequences, S tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sad_components.data.prefixes import common_prefix
from sad_components.export.manifest import MANIFEST_FILE, Manifest, read_manifest
from sad_components.export.requirements import require_executorch
from sad_components.export.sessions import SessionStudent

#: The method of a .pte that reads tokens; its inputs are ids [1, S] and the first one's position
#: [1], its output logits [1, S, V]: ExecuTorch's own LLM runners call it so, too.
METHOD = "forward"


@dataclass
class _Slot:
    """An instance of the method, whose caches hold ``read``."""

    method: Any
    read: list[int] = field(default_factory=list)


class ExportedStudent(SessionStudent):
    """What generation needs of a model (``evaluation.decoding.NextToken``), out of a ``.pte``.

    Args:
        folder: an exported student (kind ``executorch``).
        sessions: instances of the program at most; each holds caches, and weights in the order in
            which XNNPACK computes with them.
        threads: that ExecuTorch computes with, for the whole process; None: as many as torch has.
        verify: compare the hash of every file first.

    Attributes and methods are those of :class:`SessionStudent`.

    Raises:
        ImportError: ExecuTorch is not set up.
        ValueError: a file is missing, damaged, or not of the others; the message names it.
    """

    kind = "executorch"

    def __init__(
        self,
        folder: str | Path,
        sessions: int = 1,
        threads: int | None = None,
        verify: bool = True,
    ) -> None:
        require_executorch()
        super().__init__(folder, sessions, verify)
        self._threads = threads
        _check_program(self._load(), self.manifest, self.folder)

    def sequence_logits(self, token_ids: Sequence[int], start: int = 0) -> Tensor:
        """Logits behind each token from ``start`` on; see :class:`SessionStudent`."""
        self._forget(self._slot(-1))  # logits of what was read are not kept
        return super().sequence_logits(token_ids, start)

    def _new_slot(self) -> _Slot:
        return _Slot(self._load().load_method(METHOD))

    def _forget(self, slot: _Slot) -> None:
        slot.read = []

    def _read(self, slot: _Slot, token_ids: list[int], first: int) -> Tensor:
        at = min(common_prefix(slot.read, token_ids), len(token_ids) - 1)
        kept: list[Tensor] = []
        slot.read = slot.read[:at]
        while at < len(token_ids):
            end = min(len(token_ids), at + self.manifest.prefill_tokens)
            ids = torch.tensor([token_ids[at:end]])
            logits_SV = slot.method.execute([ids, torch.tensor([at])])[0][0]
            if end > first:
                kept.append(logits_SV[max(0, first - at) :].float())
            slot.read = token_ids[:end]
            at = end
        return torch.cat(kept)

    def _load(self) -> Any:
        """The program anew: methods of one that was loaded once share their caches."""
        return _load_program(self.folder / self.manifest.model_file, self._threads)


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
