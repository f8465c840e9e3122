"""A teacher that was written down: the same interface as a live one, without its forward pass.

Shape legend: B rows, S positions, N supervised tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from sad_components.data.batch import Batch, row_key
from sad_components.data.tokenizers import OffsetTokenizer
from sad_components.data.transform import TokenizedTrajectory
from sad_components.loss import Head, HiddenRows, LossSpec, TopKRows
from sad_components.spans import SpanKind
from sad_components.training.teacher_cache import shards
from sad_components.training.teacher_cache.codecs import DrawnRows, HiddenCodec, make_codec
from sad_components.training.teacher_cache.errors import CacheError
from sad_components.training.teacher_cache.fingerprint import (
    check_parts,
    check_rows,
    describe_tokenizer,
    hash_weight_files,
)
from sad_components.training.teachers import Teacher

_REMEDY = "use what the cache was made with, or make another cache"
#: Memory-mapped shards at a time.
_OPEN_SHARDS = 64


class CachedTeacher(Teacher):
    """Reads a folder that ``recipes/cache_teacher.py`` wrote.

    Only the rows that are asked for are read, from memory-mapped shards, so that a cache may be
    larger than memory; a thread reads and decodes the next rows ahead.

    Args:
        path: the folder.
        verify: ``full`` checks every shard's checksum at once, ``lazy`` each shard's when it is
            first used, ``off`` none.
        prefetch_rows: rows that may be read ahead.
        weights: the teacher's folder in Hugging Face format; if given, its files must be those
            that the cache was made with.

    Raises:
        CacheError: no complete cache, a damaged file (named), or other weights.
    """

    def __init__(
        self,
        path: str,
        *,
        verify: str = "full",
        prefetch_rows: int = 64,
        weights: str | None = None,
    ) -> None:
        if verify not in ("full", "lazy", "off"):
            raise ValueError(f"verify is full, lazy or off; got {verify!r}")
        self.root = Path(path).expanduser()
        self._manifest = shards.read_manifest(self.root)
        self.settings: dict[str, Any] = self._manifest["settings"]
        if weights is not None:
            self._check_weights(weights)
        self._verify = verify
        self._shards = [
            shards.read_entry(self.root, shard, expected_sha256=self._sha256(record))
            for shard in self._manifest["shards"]
            for record in [str(Path(shard).with_suffix(".json"))]
        ]
        if verify == "full":
            for entry in self._shards:
                shards.check_file(self.root / entry.path, self._sha256(entry.path))
        self._places = self._index()
        self.codec = make_codec(self.settings["codec"])
        self._head = self._load_head() if isinstance(self.codec, HiddenCodec) else None
        self.kl_note = _kl_note(self.settings["codec"])
        self.vocab_size: int = self.settings["vocab_size"]
        self.cut_vocab(self.vocab_size)
        self._kinds = [int(SpanKind.parse(k)) for k in self.settings["spans"]["supervise"]]
        self._open: OrderedDict[int, Any] = OrderedDict()
        self._lock = Lock()
        self._ahead: OrderedDict[str, Future] = OrderedDict()
        self._prefetch_rows = prefetch_rows
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="teacher-cache")

    def _sha256(self, file: str) -> str:
        known = self._manifest["sha256"].get(file)
        if known is None:
            raise CacheError(f"{self.root / shards.MANIFEST} has no checksum of {file}")
        return known

    def _check_weights(self, folder: str) -> None:
        if "weights_files" not in self.settings:
            raise CacheError(
                f"the teacher cache {self.root} knows no weight files (its teacher came from no "
                "folder): leave weights out"
            )
        given = {"weights_files": hash_weight_files(folder)}
        check_parts(self.settings, given, str(self.root), _REMEDY)

    def _index(self) -> dict[str, tuple[int, int, int]]:
        places = {}
        for number, entry in enumerate(self._shards):
            start = 0
            for row in entry.rows:
                places[row.key] = (number, start, start + row.tokens)
                start += row.tokens
        return places

    def _load_head(self) -> Head:
        file = self.root / shards.HEAD
        shards.check_file(file, self._sha256(shards.HEAD))
        device = str(torch.get_default_device())
        tensors = load_file(file, device=device)
        return Head(tensors["weight"], tensors.get("bias"), **self.settings["head"])

    # -- the teacher's interface ----------------------------------------------------------------

    def cut_vocab(self, size: int) -> None:
        """Leaves out ids from ``size`` on.

        Raises:
            CacheError: probabilities are stored of ids from ``size`` on.
        """
        if isinstance(self.codec, HiddenCodec) and self._head is not None:
            whole = self._head
            self.codec.head = Head(
                whole.weight_VD, whole.bias_V, whole.scale, whole.softcap, vocab_size=size
            )
        elif self.settings["codec"]["vocab_size"] > size:
            raise CacheError(
                f"the teacher cache {self.root} holds probabilities of "
                f"{self.settings['codec']['vocab_size']} token ids, but the student has {size}: "
                "take a student of the tokenizer's vocabulary"
            )

    def check(
        self, spec: LossSpec, tokenizer: OffsetTokenizer, rows: Sequence[TokenizedTrajectory]
    ) -> None:
        """Whether the cache serves this loss, tokenizer and rows.

        Raises:
            CacheError: it does not; the mode that would, or the part that differs, is named.
        """
        reason = self.codec.refusal(spec)
        if reason is not None:
            raise CacheError(f"the teacher cache {self.root} cannot serve this loss: {reason}")
        needed = {int(kind) for kind in spec.by_kind}
        if spec.reason is not None and spec.branch == "reason":
            needed.add(int(SpanKind.ACT))  # an action's branch token is learnt as REASON
        missing = sorted(needed - set(self._kinds))
        if missing:
            names = ", ".join(SpanKind(kind).label for kind in missing)
            raise CacheError(
                f"the teacher cache {self.root} has no tokens of the span kinds {names}, which "
                "the loss reads: add them to cache.supervise and make the cache anew"
            )
        check_parts(self.settings, describe_tokenizer(tokenizer), str(self.root), _REMEDY)
        check_rows(self._places, rows, str(self.root))

    def entropies(self, rows: Sequence[TokenizedTrajectory]) -> list[float | None]:
        """What was written down of each row: nats per supervised token; None of other rows."""
        known = {
            row.key: sum(row.entropy) / max(row.tokens, 1)
            for entry in self._shards
            for row in entry.rows
        }
        return [known.get(row_key(row)) for row in rows]

    def prefetch(self, rows: Sequence[TokenizedTrajectory]) -> None:
        """Starts to read these rows; the oldest unread ones give way."""
        for key in (row_key(row) for row in rows[: self._prefetch_rows]):
            if key in self._places and key not in self._ahead:
                self._ahead[key] = self._pool.submit(self._read, key)
        while len(self._ahead) > self._prefetch_rows:
            self._ahead.popitem(last=False)[1].cancel()

    def rows(self, batch: Batch, chosen_BS: Tensor) -> HiddenRows | TopKRows:
        """Stored rows of the chosen positions.

        Raises:
            CacheError: a row, or one of its positions, is not in the cache; or a shard is damaged.
        """
        device = chosen_BS.device
        chosen_BS, kinds_BS = chosen_BS.cpu(), batch.span_ids_BS.cpu()
        stored_BS = torch.isin(kinds_BS, torch.tensor(self._kinds))
        if (chosen_BS & ~stored_BS).any():
            raise CacheError(
                f"the teacher cache {self.root} holds tokens of the span kinds "
                f"{self.settings['spans']['supervise']}, but others are asked for"
            )
        pieces = []
        for row in batch.places:
            here = (row.sequence, slice(row.start, row.stop))
            stored_at = stored_BS[here].cumsum(0) - 1
            pieces.append(_select(self._take(row.key, row.id), stored_at[chosen_BS[here]]))
        if not pieces:  # of a batch without rows: nothing, in the shape of any row
            pieces.append(_select(self._read(next(iter(self._places))), torch.arange(0)))
        return self._join(pieces, device)

    def close(self) -> None:
        """Ends the reading thread."""
        self._pool.shutdown(cancel_futures=True)

    # -- reading --------------------------------------------------------------------------------

    def _take(self, key: str, name: str) -> HiddenRows | TopKRows:
        if key not in self._places:
            raise CacheError(
                f"the teacher cache {self.root} has no row like {name!r} (key {key}): {_REMEDY}"
            )
        future = self._ahead.pop(key, None)
        try:
            return self._read(key) if future is None or future.cancelled() else future.result()
        except CacheError:
            raise
        except Exception as error:
            thread = "at once" if future is None else "ahead, in the thread teacher-cache"
            shard = self.root / self._shards[self._places[key][0]].path
            raise CacheError(
                f"the row {name!r} of the teacher cache could not be read ({thread}) from {shard}: "
                f"{type(error).__name__}: {error}; {_REMEDY}"
            ) from error

    def _read(self, key: str) -> HiddenRows | TopKRows:
        number, start, stop = self._places[key]
        shard = self._shard(number)
        parts = {name: shard.get_slice(name)[start:stop] for name in shard.keys()}  # noqa: SIM118
        return self.codec.decode(parts)

    def _shard(self, number: int) -> Any:
        with self._lock:
            if number not in self._open:
                entry = self._shards[number]
                if self._verify == "lazy":
                    shards.check_file(self.root / entry.path, self._sha256(entry.path))
                self._open[number] = shards.open_shard(self.root, entry)
            self._open.move_to_end(number)
            while len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
            return self._open[number]

    def _join(
        self, pieces: list[HiddenRows | TopKRows], device: torch.device
    ) -> HiddenRows | TopKRows:
        if isinstance(self.codec, HiddenCodec):
            assert self.codec.head is not None
            hidden = [p.hidden_ND for p in pieces if isinstance(p, HiddenRows)]
            return HiddenRows(torch.cat(hidden).to(device), self.codec.head)
        top = [p for p in pieces if isinstance(p, TopKRows)]
        ids_NK = torch.cat([p.ids_NK for p in top]).to(device)
        masses = _join_temperatures([p.log_masses for p in top], device)
        if not all(isinstance(p, DrawnRows) for p in top):
            return TopKRows(ids_NK, masses)
        offsets = [p.offsets for p in top if isinstance(p, DrawnRows)]
        return DrawnRows(ids_NK, masses, _join_temperatures(offsets, device))


def _join_temperatures(
    parts: list[dict[float, Tensor]], device: torch.device
) -> dict[float, Tensor]:
    return {t: torch.cat([part[t] for part in parts]).to(device) for t in parts[0]}


def _kl_note(codec: dict[str, Any]) -> str | None:
    if codec["mode"] == "topk":
        return f"taken over {codec['k'] + 1} buckets of a cached teacher"
    if codec["mode"] == "sampled":
        return (
            f"taken with {codec['draws']} draws for the tail of a cached teacher: KL too high and "
            "entropy too low by one constant of the student; differences hold"
        )
    return None


def _select(rows: HiddenRows | TopKRows, index: Tensor) -> HiddenRows | TopKRows:
    if isinstance(rows, HiddenRows):
        return HiddenRows(rows.hidden_ND[index], rows.head)
    return rows[index]
